"""The bench: what it counts, what it times, what it prints; never how fast anything is."""
import json
import re
import sys
from dataclasses import asdict

import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

from minibert import MaskedLM
from lab.__main__ import main
from lab.claims import GRIDS
from minibert.config import BenchConfig, ModelConfig, RunConfig
from minibert.data import full_sentences
from lab import bench
from lab.bench import flops_of, random_text, speed_table, take_turns

sys.path.insert(0, str(ROOT / "docs"))
import speed  # noqa: E402
from speed import speed_lines  # noqa: E402

TOY = BenchConfig(num_hidden_layers=2, hidden_size=64, vocab_size=200, seq_length=16, batch_size=4,
                  rounds=1, device="cpu")
CONFIG = ModelConfig(vocab_size=300, hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
                     intermediate_size=128, max_position_embeddings=16, next_sentence=False,
                     attn_implementation="eager")


def test_arithmetic_is_what_torch_counts():
    """Catches a head counted at all positions, a last layer counted whole, attention left out."""
    config, model = CONFIG, MaskedLM(CONFIG)
    ids, positions = torch.randint(5, 300, (4, 16)), torch.randint(16, (4, 3))
    with FlopCounterMode(display=False) as counter:
        output = model(ids, positions=positions)
    assert counter.get_total_flops() == flops_of(config, 4, 16, 3, training=False)
    with FlopCounterMode(display=False) as counter:
        output.mlm_logits.sum().backward()
    # Twice the forward pass, but nothing flows back to ids.
    assert flops_of(config, 4, 16, 3) == 3 * flops_of(config, 4, 16, 3, training=False)
    assert counter.get_total_flops() == pytest.approx(
        2 * flops_of(config, 4, 16, 3, training=False), rel=0.05)


def test_cases_take_turns():
    """Catches cases timed one after another, and warm-up rounds that count."""
    calls = []
    found = take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3, "cpu")
    assert calls == ["a", "b"] * 5 and [len(found[name]) for name in "ab"] == [3, 3]


def test_random_text_leaves_no_padding():
    """Catches tokens that are counted and are padding."""
    text = random_text(200, sentence=14, sentences=400)
    spans = full_sentences(text, 14)
    assert len(spans) == 400 and set(spans[:, 1] - spans[:, 0]) == {14}


def test_our_step_learns():
    """Catches a step that is timed but moves nothing, with and without a teacher."""
    run = RunConfig(out="none", seq_length=16, batch_size=4)
    config = bench.model_config(TOY)
    for teacher in (None, MaskedLM(config)):
        models = []
        original = bench.MaskedLM
        bench.MaskedLM = lambda config: models.append(original(config)) or models[-1]
        try:
            step = bench.our_step(config, run, "cpu", teacher)
        finally:
            bench.MaskedLM = original
        before = {name: value.clone() for name, value in models[0].state_dict().items()}
        step()
        step()
        moved = [name for name, value in models[0].state_dict().items()
                 if not torch.equal(value, before[name])]
        assert len(moved) == len(before)


FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in vars(TOY).items()
         if name != "compile"]


def test_bench_prints_its_table(monkeypatch, capsys):
    """Catches a case that is not timed or not shown."""
    monkeypatch.setattr(sys, "argv", ["lab", "bench", *FLAGS])
    main()
    shown = capsys.readouterr().out
    for name in ("RoBERTa", "student, distilled", "matrix products"):
        assert f"| {name} |" in shown


def test_the_page_on_speed_times_other_code_as_well(monkeypatch, capsys, tmp_path):
    """Catches other code that is not timed beside ours, and JSON that the table was not made of."""
    monkeypatch.setattr(speed, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["speed.py", *FLAGS, "--name", "toy"])
    speed.main()
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "results" / "toy" / "bench.json").read_text())
    assert speed_table([*found["steps"], *found["masking"]]) in shown
    for name in ("torch.nn.TransformerEncoder", "dynamic masks", "RoBERTa, dropout .1"):
        assert f"| {name} |" in shown
    assert "RoBERTa against torch.nn.TransformerEncoder: " in shown


def test_ratios_are_of_one_round():
    """Catches a ratio upside down, or of one case's best round and another's worst: ours is slowed
    down in two rounds of three, theirs in all."""
    ours = [(name, [best, 2 * best, 2 * best]) for name, best in (
        ("RoBERTa", 1.0), ("RoBERTa, dropout .1", 1.25), ("student, untaught", 0.5))]
    theirs = [(name, [2 * best] * 3) for name, best in (
        ("transformers, as shipped", 3.0), ("torch.nn.TransformerEncoder", 2.0),
        ("student, distilled", 0.75))]
    rows = [{"name": name, "seconds": seconds, "share_of_peak": 0.7}
            for name, seconds in [*ours, *theirs]]
    masks = [{"name": f"{kind} masks", "seconds": [0.01, seconds]}
             for kind, seconds in (("static", 0.003), ("dynamic", 0.002))]
    half = "(middle half of the rounds "
    assert speed_lines({"steps": rows, "masking": masks}) == [
        f"RoBERTa against transformers, as shipped: 3.00 times as fast {half}3.00 to 4.50)",
        "RoBERTa, dropout .1 against transformers, as shipped: 2.40 times as fast "
        f"{half}2.40 to 3.60)",
        f"RoBERTa against torch.nn.TransformerEncoder: 2.00 times as fast {half}2.00 to 3.00)",
        "RoBERTa: 70% of the machine's matrix products",
        f"a distilled student's step: 1.50 times an untaught one {half}1.50 to 2.25)",
        "static masks: 0.30% of the time of a step of RoBERTa",
        "dynamic masks: 0.20% of the time of a step of RoBERTa"]
    table = speed_table([*rows, *masks]).splitlines()
    assert "| RoBERTa, dropout .1 | 1,250.00 (2,500.00) |  |  | 70% |" in table
    assert "| dynamic masks | 2.00 (6.00) |  |  |  |" in table


@pytest.mark.promises
@pytest.mark.parametrize("name, heading", [("cpu", "# Speed"), ("h100", "## One GPU")])
def test_speed_page_shows_what_was_timed(name, heading):
    """Catches a ratio that the published timing does not have."""
    page = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    part = page[page.index(heading):].split("\n## ")[0]
    figures = re.compile(r"\d+\.\d\d%?|\d+%")
    found = json.loads((ROOT / f"results/{name}/bench.json").read_text(encoding="utf-8"))
    timed = {figure for line in speed_lines(found) for figure in figures.findall(line)}
    said = figures.findall(part)
    assert len(said) > 10 and set(said) <= timed, set(said) - timed


@pytest.mark.promises
def test_speed_page_shows_what_the_gpu_did():
    """Catches a time of another step or another number of runs than those of the GPU, and a GPU's
    comparison that is not of the grid that is published."""
    page = " ".join((ROOT / "docs/speed.md").read_text(encoding="utf-8").split())
    ours = json.loads((ROOT / "results/h100/bench.json").read_text(encoding="utf-8"))["steps"][0]
    tokens = f"{ours['tokens_per_second']:,.0f}"
    assert f"takes {1000 * min(ours['seconds']):.0f} ms, which is {tokens[:3]},000 tokens" in page
    results = json.loads((ROOT / "results/h100/results.json").read_text(encoding="utf-8"))
    # Its arms have three seeds each, as all had at that time.
    assert {**results["grid"], "more_seeds": GRIDS["full"].more_seeds} == asdict(GRIDS["full"])
    runs = [seconds for arm in results["arms"].values() for seconds in arm["seconds"]]
    assert f"{len(runs)} runs" in page and f"{sum(runs) / 60:.0f} minutes of training" in page
