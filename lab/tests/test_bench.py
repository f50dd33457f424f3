"""The bench: what it counts, what it times, what it prints; never how fast anything is."""
import json
import re
import sys
from dataclasses import asdict

import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

from lab import bench
from lab.__main__ import main
from lab.bench import BenchConfig, flops_of, random_text, speed_table, take_turns
from lab.claims import GRIDS
from minibert import MaskedLM
from minibert.config import ModelConfig, RunConfig
from minibert.data import full_sentences

sys.path.insert(0, str(ROOT / "docs"))
import speed  # noqa: E402
from speed import speed_lines  # noqa: E402

TOY = BenchConfig(num_hidden_layers=2, hidden_size=64, vocab_size=200, seq_length=16, batch_size=4,
                  rounds=1, device="cpu")
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in vars(TOY).items()
         if name != "compile"]


def test_arithmetic_is_what_torch_counts():
    """If the head were counted at all positions, or the last layer whole, our share of a machine's
    peak would look better than it is."""
    config = ModelConfig(vocab_size=300, hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
                         intermediate_size=128, max_position_embeddings=16, next_sentence=False,
                         attn_implementation="eager")
    model = MaskedLM(config)
    ids, positions = torch.randint(5, 300, (4, 16)), torch.randint(16, (4, 3))
    forward = flops_of(config, 4, 16, 3, training=False)
    with FlopCounterMode(display=False) as counter:
        output = model(ids, positions=positions)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        output.mlm_logits.sum().backward()
    assert flops_of(config, 4, 16, 3) == 3 * forward
    # Twice the forward pass, but nothing flows back to ids.
    assert counter.get_total_flops() == pytest.approx(2 * forward, rel=0.05)


def test_cases_take_turns():
    """Cases timed one after the other would be compared across a busy and a quiet minute, and a
    round of warm-up that counts would make the first one look slow."""
    calls = []
    seconds = take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3, "cpu")
    assert calls == ["a", "b"] * 5 and [len(seconds[name]) for name in "ab"] == [3, 3]


def test_random_text_leaves_no_padding():
    """Padding that is counted as tokens would make every step look faster than it is."""
    spans = full_sentences(random_text(200, sentence=14, sentences=400), 14)
    assert len(spans) == 400 and set(spans[:, 1] - spans[:, 0]) == {14}


@pytest.mark.parametrize("taught", [False, True])
def test_the_timed_step_learns(taught, monkeypatch):
    """A step that moves no weights, or not all of them, would be timed for work it leaves out."""
    models = []
    monkeypatch.setattr(bench, "MaskedLM",
                        lambda config: models.append(MaskedLM(config)) or models[-1])
    config = bench.model_config(TOY, layers=2)
    step = bench.our_step(config, RunConfig(out="none", seq_length=16, batch_size=4), "cpu",
                          MaskedLM(config) if taught else None)
    before = {name: weight.clone() for name, weight in models[0].state_dict().items()}
    step()
    step()
    assert not any(torch.equal(weight, before[name])
                   for name, weight in models[0].state_dict().items())


def test_the_command_shows_each_case(monkeypatch, capsys):
    """A case that is not shown would leave a reader of the table without the student's price."""
    monkeypatch.setattr(sys, "argv", ["lab", "bench", *FLAGS])
    main()
    shown = capsys.readouterr().out
    for name in ("RoBERTa", "student, untaught", "student, distilled", "matrix products"):
        assert f"| {name} |" in shown


def test_the_page_on_speed_times_other_code_as_well(monkeypatch, capsys, tmp_path):
    """If bench.json held other timings than were shown, docs/speed.md could not be checked."""
    monkeypatch.setattr(speed, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["speed.py", *FLAGS, "--name", "toy"])
    speed.main()
    shown = capsys.readouterr().out
    timings = json.loads((tmp_path / "results" / "toy" / "bench.json").read_text())
    rows = [*timings["steps"], *timings["masking"]]
    assert shown == "\n".join([speed_table(rows), "", *speed_lines(timings), ""])
    assert {"torch.nn.TransformerEncoder", "dynamic masks", "static masks",
            "RoBERTa, dropout .1"} <= {row["name"] for row in rows}


def test_ratios_are_of_one_round():
    """A ratio upside down, or of one case's best round and another's worst, would claim a speed
    that nobody has. Here ours is slowed down in two rounds of three, theirs in all."""
    ours = {"RoBERTa": 1.0, "RoBERTa, dropout .1": 1.25, "student, untaught": 0.5}
    theirs = {"transformers, as shipped": 3.0, "torch.nn.TransformerEncoder": 2.0,
              "student, distilled": 0.75}
    timed = {**{name: [best, 2 * best, 2 * best] for name, best in ours.items()},
             **{name: [2 * best] * 3 for name, best in theirs.items()}}
    rows = [{"name": name, "seconds": seconds, "share_of_peak": 0.7}
            for name, seconds in timed.items()]
    masks = [{"name": "static masks", "seconds": [0.01, 0.003]},
             {"name": "dynamic masks", "seconds": [0.01, 0.002]}]
    lines = " ".join(speed_lines({"steps": rows, "masking": masks}))
    for figures in ("RoBERTa against transformers, as shipped: 3.00 times as fast (middle half of "
                    "the rounds 3.00 to 4.50)", "RoBERTa, dropout .1 against transformers, as "
                    "shipped: 2.40", "RoBERTa against torch.nn.TransformerEncoder: 2.00",
                    "RoBERTa: 70%", "a distilled student's step: 1.50", "static masks: 0.30%",
                    "dynamic masks: 0.20%"):
        assert figures in lines
    table = speed_table([*rows, *masks]).splitlines()
    assert "| RoBERTa, dropout .1 | 1,250.00 (2,500.00) |  |  | 70% |" in table
    assert "| dynamic masks | 2.00 (6.00) |  |  |  |" in table


@pytest.mark.promises
@pytest.mark.parametrize("name, heading", [("cpu", "# Speed"), ("h100", "## One GPU")])
def test_speed_page_shows_what_was_timed(name, heading):
    """A ratio that the published timing does not have would promise readers a speed."""
    page = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    part = page[page.index(heading):].split("\n## ")[0]
    figures = re.compile(r"\d+\.\d\d%?|\d+%")
    timings = json.loads((ROOT / f"results/{name}/bench.json").read_text(encoding="utf-8"))
    timed = {figure for line in speed_lines(timings) for figure in figures.findall(line)}
    said = figures.findall(part)
    assert len(said) > 10 and set(said) <= timed, set(said) - timed


@pytest.mark.promises
def test_speed_page_shows_what_the_gpu_did():
    """A time of another step, or runs of another grid than the published one, would let readers
    plan their hours on a GPU by figures that belong to something else."""
    page = " ".join((ROOT / "docs/speed.md").read_text(encoding="utf-8").split())
    ours = json.loads((ROOT / "results/h100/bench.json").read_text(encoding="utf-8"))["steps"][0]
    tokens = f"{ours['tokens_per_second']:,.0f}"
    assert f"takes {1000 * min(ours['seconds']):.0f} ms, which is {tokens[:3]},000 tokens" in page
    results = json.loads((ROOT / "results/h100/results.json").read_text(encoding="utf-8"))
    # Its arms have three seeds each, as all had at that time.
    assert {**results["grid"], "more_seeds": GRIDS["full"].more_seeds} == asdict(GRIDS["full"])
    runs = [seconds for arm in results["arms"].values() for seconds in arm["seconds"]]
    assert f"{len(runs)} runs" in page and f"{sum(runs) / 60:.0f} minutes of training" in page
