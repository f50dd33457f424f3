"""The loop that the scripts share: schedule, update, micro-batches, log, checkpoint and resume."""
import contextlib
import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import BUDGET, ROOT, TOY, assert_same_run, log
from torch import nn

import minibert.evaluation as evaluation_module
import minibert.training as training_module
from minibert import distributed
from minibert.config import ModelConfig, RunConfig
from minibert.data import Batch
from minibert.errors import UserError, run_cli
from minibert.files.corpus import prepare
from minibert.files.hub import load_pretrained
from minibert.hashing import hash_bits
from minibert.masking import DynamicMasker
from minibert.model import Block, MaskedLM
from minibert.tokenizer import special_ids
from minibert.training import Training, learning_rate, optimizer_groups

RUN = RunConfig(out="-", device="cpu", steps=10, warmup=0.4, learning_rate=0.6, seq_length=16,
                batch_size=8, eval_targets=20)
CONFIG = ModelConfig(vocab_size=70, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                     intermediate_size=32, max_position_embeddings=32)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def make_training(toy_text, tmp_path):
    """A function that makes a Training of a toy model in tmp_path/run, with changed settings."""
    def make(**changes):
        run = dataclasses.replace(RUN, out=str(tmp_path / "run"), **changes)
        tokenizer, text, held_out, _ = prepare(str(toy_text), "wordpiece", CONFIG.vocab_size)
        masker = DynamicMasker(special_ids(tokenizer), CONFIG.vocab_size, run.seed)
        return Training(run, MaskedLM(CONFIG), tokenizer, text, held_out, masker, {})
    return make


# By hand.


def test_schedule_of_ten_steps():
    """A rate that jumps where the warm-up ends, comes a step late or does not end at 0 would make
    each of our results another recipe's."""
    rates = [learning_rate(step, RUN) for step in range(11)]
    assert rates == pytest.approx([0, .15, .3, .45, .6, .5, .4, .3, .2, .1, 0])


def test_schedules_of_next_to_no_warmup():
    """A user who asks for no warm-up would waste the first step at a rate of 0. A share that rounds
    to no step at all still begins at 0."""
    without = dataclasses.replace(RUN, warmup=0.0)
    assert [learning_rate(step, without) for step in (0, 5, 10)] == [.6, .3, 0]
    short = dataclasses.replace(RUN, warmup=0.01)
    assert [learning_rate(step, short) for step in (0, 1, 10)] == [0, .6, 0]


def test_two_updates_of_one_weight(make_training, tmp_path):
    """Whoever clips each micro-batch instead of their sum, takes the rate of the next step, decays
    by the gradient, mixes up the betas or leaves gradients over gets other numbers than AdamW's.

    The loss is a slope times one weight, so that the slope is its gradient.
        step 0: rate 1.0, gradient 1 + 2 = 3, clipped to 1; Adam's first step is always 1 long
                2 - 1.0 * (0.1 * 2 + 1) = 0.8
        step 1: rate 0.9, gradient 0.5, which is not clipped
                mean of gradients  (0.9 * 0.1 * 1 + 0.1 * 0.5) / (1 - 0.9²) = 0.736842
                mean of squares    (0.5 * 0.5 * 1 + 0.5 * 0.25) / (1 - 0.5²) = 0.5
                0.8 - 0.9 * (0.1 * 0.8 + 0.736842 / √0.5) = -0.209847
    """
    training = make_training(warmup=0.0, learning_rate=1.0, weight_decay=0.1, adam_beta2=0.5,
                             max_grad_norm=1.0, gradient_accumulation_steps=2, log_every=2)
    weight, values = training.module.transform.weight, []
    with torch.no_grad():
        weight[0, 0] = 2
    for batch, slopes in zip(training, [(1.0, 2.0), (0.5, 0.0)]):
        masked = batch._replace(labels=batch.input_ids, masked_positions=batch.input_ids)
        for _, slope in zip(training.micro_batches(masked), slopes, strict=True):
            training.backward(slope * weight[0, 0], half=slope * weight[0, 0] / 2)
        training.update()
        values.append(weight[0, 0].item())
    assert values == pytest.approx([0.8, -0.209847], abs=1e-5)
    # The log has the means of both steps, and the rate of the second one.
    [line] = log(tmp_path / "run")
    assert line["loss"] == pytest.approx((3 * 2 + 0.5 * 0.8) / 2, abs=1e-5)
    assert line["half"] == pytest.approx(line["loss"] / 2)
    assert line["grad_norm"] == pytest.approx((3 + 0.5) / 2)  # before it is clipped
    assert (line["step"], line["epoch"], line["learning_rate"]) == (2, 0, pytest.approx(0.9))


def test_matrices_are_decayed_and_nothing_else():
    """A bias or a LayerNorm that is decayed, whatever its name, a matrix that is not, or a
    parameter in both groups or in neither would be another optimizer than BERT's."""
    model = nn.ModuleList([MaskedLM(CONFIG), nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))])
    decayed, not_decayed = optimizer_groups(model, 0.25)
    assert decayed["weight_decay"] == 0.25 and not_decayed["weight_decay"] == 0
    for group, dimensions in ((decayed, 2), (not_decayed, 1)):
        assert {parameter.dim() for parameter in group["params"]} == {dimensions}
    grouped = [id(parameter) for parameter in decayed["params"] + not_decayed["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))


def rows_of(monkeypatch, rank=0, processes=1, accumulation=2):
    """The rows of each micro-batch of eight sequences, and whether each of them is cut off from
    the other processes; row r of each tensor of the batch holds the number r."""
    apart, numbers = [False], torch.arange(8)

    @contextlib.contextmanager
    def alone(model):
        apart[0] = True
        yield
        apart[0] = False

    monkeypatch.setattr(distributed, "alone", alone)
    rows = numbers[:, None].expand(8, 16)
    batch = Batch(rows, rows, rows, numbers, numbers, 5, rows, rows)
    training = SimpleNamespace(rank=rank, world_size=processes, model=None,
                               module=SimpleNamespace(config=CONFIG),
                               run=SimpleNamespace(gradient_accumulation_steps=accumulation))
    pieces = []
    for piece in Training.micro_batches(training, batch):
        assert piece.epoch == 5
        columns = [value if value.dim() == 1 else value[:, 0] for value in piece
                   if isinstance(value, torch.Tensor)]
        assert len(columns) == 7 and all(torch.equal(columns[0], column) for column in columns)
        pieces.append((columns[0].tolist(), apart[0]))
    assert training.counts == {"tokens": rows.sum(), "targets": rows.numel()}  # of the whole batch
    return pieces


def test_micro_batches_of_eight_rows(monkeypatch):
    """A row that is lost, read twice or torn from its labels would be learned wrongly, without any
    error; gradients that are exchanged for each part would make torchrun slow."""
    assert rows_of(monkeypatch) == [([0, 1, 2, 3], True), ([4, 5, 6, 7], False)]
    assert rows_of(monkeypatch, 0, 2) == [([0, 1], True), ([4, 5], False)]
    assert rows_of(monkeypatch, 1, 2) == [([2, 3], True), ([6, 7], False)]


def test_micro_batches_fit_into_the_memory(monkeypatch):
    """Logits at all positions of a whole part (`--distill-positions all`) would be too large for
    any GPU at the size of `base`; here three rows fit."""
    monkeypatch.setattr(evaluation_module, "MOST_LOGITS", 3 * 16 * CONFIG.vocab_size)
    assert [rows for rows, _ in rows_of(monkeypatch)] == [[0, 1, 2], [3], [4, 5, 6], [7]]


# What always holds.


@pytest.fixture
def flags(toy_text, tmp_path):
    """The flags of a run in tmp_path/run: 12 steps through a text that it reads three times, a
    line of the log after every three of them, a checkpoint after every four."""
    return [*BUDGET, *TOY, "--corpus", toy_text, "--data-tokens", 250, "--out", tmp_path / "run"]


def test_a_run_learns_a_text_by_heart(flags, tmp_path, run_script):
    """If anything kept the model from learning (masks, heads, gradients, the schedule), no other
    test of a few steps would say so. Here the text is two documents, whose masks stay."""
    run_script("train_bert", *flags, "--data-tokens", 80, "--static-masks", 1, "--steps", 60,
               "--learning-rate", 0.03, "--hidden-dropout-prob", 0, "--log-every", 1)
    losses = [line["mlm"] for line in log(tmp_path / "run") if "mlm" in line]
    assert losses[0] > 4 and losses[-1] < 0.1, losses


def test_run_folder_holds_what_a_reader_needs(flags, tmp_path, run_script):
    """A run whose settings, versions, text, log or result are missing cannot be traced later."""
    handlers = [signal.getsignal(number) for number in SIGNALS]
    run_script("train_bert", *flags)
    assert handlers == [signal.getsignal(number) for number in SIGNALS]
    out = tmp_path / "run"
    assert {path.name for path in out.iterdir()} == {
        "run.json", "log.jsonl", "metrics.json", "config.json", "pytorch_model.bin",
        "tokenizer.json", "tokenizer_config.json"}
    metadata = json.loads((out / "run.json").read_text())
    assert {"settings", "model", "corpus_fingerprint", "versions", "machine", "commit",
            "code"} <= metadata.keys()
    lines = [line for line in log(out) if "loss" in line]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert [line["step"] for line in log(out) if "eval" in line] == [6, 12]
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["steps"], metrics["layers"]) == (12, 2)
    assert metrics["tokens"] == lines[-1]["tokens"] > 12 * 8 * 8
    assert metrics["targets"] == lines[-1]["targets"] >= 12 * 8
    assert metrics["full-sentences"] == log(out)[-1]["eval"]
    model, _ = load_pretrained(out)
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_the_log_tells_the_epoch_that_was_read(flags, tmp_path, run_script, monkeypatch):
    """An epoch that counts as begun when the last one has just ended would shift every curve that
    a reader draws."""
    epochs, micro_batches = [], Training.micro_batches
    monkeypatch.setattr(Training, "micro_batches", lambda training, batch: (
        epochs.append(batch.epoch), micro_batches(training, batch))[1])
    run_script("train_roberta", *flags, "--log-every", 1)
    assert epochs[0] == 0 and epochs[-1] > 1
    assert [line["epoch"] for line in log(tmp_path / "run") if "loss" in line] == epochs


def test_dropout_is_drawn_by_step_and_process(make_training):
    """With one key for all processes, the same neurons would be dropped for other rows; without
    the step, a resumed run would differ from one that was never stopped."""
    training = make_training(seed=7)
    for training.rank, training.step in ((0, 0), (1, 0), (0, 1)):
        next(iter(training))
        assert torch.initial_seed() == hash_bits(7, "dropout", training.step, training.rank)


def test_no_steps_leave_the_initial_weights(flags, tmp_path, run_script):
    """A run of no steps has what pretraining has to beat: the scores of a network that has learned
    nothing. It may neither divide by its steps nor move a weight."""
    run_script("train_roberta", *flags, "--steps", 0)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"] == metrics["tokens"] == 0 and log(tmp_path / "run") == []
    model, _ = load_pretrained(tmp_path / "run")
    initial = MaskedLM(model.config, seed=0).state_dict()
    assert all(torch.equal(weight, initial[name]) for name, weight in model.state_dict().items())


def test_compiled_blocks_are_saved_under_their_names(flags, tmp_path, run_script, monkeypatch):
    """With --compile, blocks that are not compiled would be slow, and compiled ones whose weights
    have other names would be lost to everybody who reads the folder. tests/faults compiles."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call: (compiled.append(call.__self__), call)[1])
    run_script("train_bert", *flags, "--compile")
    assert [type(module) for module in compiled] == [Block, Block]
    run_script("train_bert", *flags, "--out", tmp_path / "plain")
    assert len(compiled) == 2
    assert_same_run(tmp_path / "run", tmp_path / "plain")


def test_evaluation_is_as_precise_as_training(flags, run_script, monkeypatch):
    """A GPU that trains in bfloat16 and is measured in float32, or the reverse, would give scores
    that belong to another model."""
    seen, linear, bfloat16 = set(), nn.functional.linear, torch.autocast("cpu", torch.bfloat16)

    def note(*given):
        result = linear(*given)
        seen.add((torch.is_grad_enabled(), result.dtype))
        return result

    monkeypatch.setattr(training_module, "autocast", lambda device: bfloat16)
    monkeypatch.setattr(nn.functional, "linear", note)
    run_script("train_bert", *flags, "--steps", 1, "--eval-every", 1)
    assert seen == {(True, torch.bfloat16), (False, torch.bfloat16)}


KILLED = """
import os, signal, train_bert
checkpoints, replace = [], os.replace
def replace_or_die(source, target):
    checkpoints.extend([target] * target.name.startswith("checkpoint"))
    if len(checkpoints) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = replace_or_die
train_bert.main()
"""


def test_killed_run_goes_on_to_the_last_bit(flags, tmp_path, run_script):
    """A power cut or `kill -9`, here while the second checkpoint is written and half a line of the
    log is there, would leave another model than a run that was left alone, or none at all."""
    run_script("train_bert", *flags, "--out", tmp_path / "whole")
    process = subprocess.run([sys.executable, "-c", KILLED, *map(str, flags)], capture_output=True,
                             env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=100)
    assert process.returncode == -signal.SIGKILL, process.stderr
    out = tmp_path / "run"
    assert {"checkpoint.pt", "checkpoint.pt.part"} <= {path.name for path in out.iterdir()}
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 4
    with open(out / "log.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    run_script("train_bert", *flags)
    assert_same_run(out, tmp_path / "whole")
    assert not list(out.glob("checkpoint*"))


def stopped_at(step, number, run):
    """The exit code of a run that gets a signal in a step, and again while it saves."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        update, save = Training.update, torch.save

        def note(training):
            if training.step == step:
                os.kill(os.getpid(), number)
                patch.setattr(torch, "save", lambda *given: (os.kill(os.getpid(), number),
                                                             save(*given)))
            update(training)

        patch.setattr(Training, "update", note)
        run()
    return ended.value.code


@pytest.fixture
def heard():
    """Before and after a run, a signal fails the test instead of ending pytest."""
    def handler(number, frame):
        raise AssertionError(f"nobody waited for signal {number}")

    before = [signal.signal(number, handler) for number in SIGNALS]
    yield handler
    for number, old in zip(SIGNALS, before):
        signal.signal(number, old)


@pytest.mark.parametrize("script, number", [
    ("train_bert", signal.SIGINT), ("train_roberta", signal.SIGTERM), ("distill", signal.SIGTERM)])
def test_stopped_run_goes_on_to_the_last_bit(script, number, flags, teachers, tmp_path, run_script,
                                             monkeypatch, float64, heard):
    """Whoever presses Ctrl-C, in the first step, in the middle or in the last one, and again while
    it saves, would lose the steps since the last checkpoint, or get fresh dropout, another order, a
    line of the log twice, a mean of half the steps, or seconds that start again."""
    clock, out = itertools.count(), tmp_path / "run"
    monkeypatch.setattr(training_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    if script == "distill":
        flags = [*BUDGET, *flags[len(BUDGET + TOY):], "--teacher", teachers / "bert"]
    for step in (0, 5, 11):
        code = stopped_at(step, number, lambda: run_script(script, *flags))
        assert code == 128 + number and not (out / "metrics.json").exists()
        assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == step + 1
        assert [signal.getsignal(received) for received in SIGNALS] == [heard, heard]
    run_script(script, *flags)
    run_script(script, *flags, "--out", tmp_path / "whole")
    assert_same_run(out, tmp_path / "whole")
    seconds = [json.loads(line).get("seconds") for line in (out / "log.jsonl").open()]
    seconds = [value for value in seconds if value]
    assert len(seconds) == 4 and seconds == sorted(seconds)


# Corner cases.


@pytest.mark.parametrize("what", ["loss", "grad_norm"])
def test_loss_that_is_no_number(what, flags, tmp_path, run_script, monkeypatch):
    """A run that goes on with NaN would overwrite its last good checkpoint with weights that are
    all NaN; a finite loss may have a gradient that is not. The log says where it came from."""
    backward, calls, out = Training.backward, itertools.count(1), tmp_path / "run"
    run_script("train_roberta", *flags, "--out", tmp_path / "whole")

    def broken(training, loss, **terms):
        broken_now = next(calls) == 7
        factor = float("nan") if broken_now and what == "loss" else 1.0
        backward(training, loss * factor, **terms)
        if broken_now:
            training.module.decoder_bias.grad[3] = float("nan")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="step 7"):
        patch.setattr(Training, "backward", broken)
        run_script("train_roberta", *flags)
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert state["step"] == 4
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())
    last = log(out)[-1]
    assert last["step"] == 7 and last["grad_norm"] != last["grad_norm"]
    assert (last["loss"] != last["loss"]) == (what == "loss")
    run_script("train_roberta", *flags)  # as after a fault of the machine
    assert_same_run(out, tmp_path / "whole")


@pytest.fixture
def crashed(flags, tmp_path, run_script, monkeypatch):
    """The folder of a run that crashed at step 6, after its checkpoint of step 4."""
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(training_module, "evaluate", lambda *given: 1 / 0)
        run_script("train_roberta", *flags)
    assert [line["step"] for line in log(tmp_path / "run")] == [3, 6]
    return tmp_path / "run"


def test_signals_are_given_back_after_a_crash(heard, crashed):
    """In a notebook, Ctrl-C would do nothing any more after a cell that has failed."""
    assert [signal.getsignal(number) for number in SIGNALS] == [heard, heard]


@pytest.mark.parametrize("left", ["no file", "half a line", "no lines"])
def test_log_that_lost_lines(left, crashed, flags, run_script):
    """A log without the steps before its checkpoint would pass for the whole; putting it back
    helps, as the error says."""
    whole = (crashed / "log.jsonl").read_text()
    (crashed / "log.jsonl").unlink()
    if left != "no file":
        (crashed / "log.jsonl").write_text({"half a line": whole[:30], "no lines": ""}[left])
    with pytest.raises(UserError, match="log.jsonl has lost lines about the 4 steps"):
        run_script("train_roberta", *flags)
    (crashed / "log.jsonl").write_text(whole)
    run_script("train_roberta", *flags)
    assert [line["step"] for line in log(crashed)] == [3, 6, 6, 9, 12, 12]


def test_checkpoint_that_cannot_be_read(crashed, flags, run_script):
    """A broken checkpoint, or one of an older version, would end in a traceback or in a silent new
    start; without it, the run starts again, with its log."""
    checkpoint = crashed / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(UserError, match="checkpoint.pt cannot be read"):
        run_script("train_roberta", *flags)
    del state["logged"]
    torch.save(state, checkpoint)
    with pytest.raises(UserError, match="checkpoint.pt cannot be read"):
        run_script("train_roberta", *flags)
    checkpoint.unlink()
    run_script("train_roberta", *flags)
    assert [line["step"] for line in log(crashed)] == [3, 6, 6, 9, 12, 12]


def test_unfinished_run_with_other_settings(crashed, flags, toy_text, run_script):
    """A resume that goes on with another recipe, model or text would mix two runs."""
    for change in (["--learning-rate", 1], ["--hidden-size", 32], ["--data-tokens", 260]):
        name = change[0].strip("-").replace("-", "_")
        with pytest.raises(UserError, match=f"a run with {name} "):
            run_script("train_roberta", *flags, *change)
    longer = crashed.with_name("longer.txt")
    longer.write_text(toy_text.read_text() + "\n\nmore.\n")
    with pytest.raises(UserError, match="a run with corpus"):
        run_script("train_roberta", *flags, "--corpus", longer)


@pytest.mark.parametrize("changes, processes, message", [
    (dict(seq_length=64), 1, "--seq-length 64 is more than the model's 32 positions"),
    (dict(batch_size=6, gradient_accumulation_steps=2), 2, "each of 2 processes"),
    (dict(batch_size=500), 1, "fewer than one batch of 500"),
])
def test_settings_that_do_not_fit_together(changes, processes, message, make_training, monkeypatch,
                                           tmp_path):
    """An error deep in torch, or a folder that is half made, would be all that a user gets."""
    monkeypatch.setattr(distributed, "join", lambda device: (0, processes))
    with pytest.raises(UserError, match=message):
        make_training(**changes)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_trained_ends_in_one_line(flags, tmp_path, run_script, capsys):
    """A corpus that is not there, or too small for what is asked of it, would end in a traceback
    of forty lines, beside a folder that is half made."""
    for flag, value in (("--corpus", "nowhere.txt"), ("--vocab-size", 9000),
                        ("--data-tokens", 99999)):
        with pytest.raises(SystemExit, match="2"):
            run_cli(lambda wrong=(flag, value): run_script("train_roberta", *flags, *wrong))
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and (flag in line or value in line)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("targets, is_short", [(20, False), (9999, True)])
def test_few_targets_are_said(targets, is_short, make_training, capsys):
    """A score of a hundred tokens would pass for one of fifty thousand."""
    training = make_training(eval_targets=targets)
    count = min((batch.labels >= 0).sum() for batch in training.eval_sets.values())
    assert (count < targets) == is_short
    assert (f"has {count} tokens to predict" in capsys.readouterr().out) == is_short


def test_a_run_without_a_bar_says_what_is_left(flags, run_script, monkeypatch, capsys):
    """Whoever writes the output to a file would see hours without a sign of life, or a time left
    that is not of the steps that are. Here each look at the clock takes a minute."""
    flags, out, short = [*flags, "--log-every", 5], flags[-1], flags[-1].with_name("short")
    run_script("train_roberta", *flags, "--out", short)
    assert "minutes left" not in capsys.readouterr().out
    clock = itertools.count(0, 60)
    monkeypatch.setattr(training_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    run_script("train_roberta", *flags)
    said = re.findall(r"step (\d+) of 12, .* (\d+) minutes left", capsys.readouterr().out)
    minutes = [int(left) for _, left in said]
    assert [step for step, _ in said] == ["5", "10", "12"]  # a last window may be shorter
    assert minutes[0] > 2 * minutes[1] > minutes[2] == 0
    assert_same_run(out, short)
