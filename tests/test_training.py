"""The training loop: schedule, groups, accumulation, evaluation, checkpoint and resume."""
import contextlib
import dataclasses
import json
import re
import resource
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import (BUDGET, TOY, assert_one_error_line, assert_same_run, log, start_script,
                      weights)
from torch import nn

import minibert.evaluation as evaluation_module
import minibert.training as training_module
from minibert import distributed
from minibert.config import ModelConfig, RunConfig
from minibert.data import Batch, Batches
from minibert.errors import UserError, run_cli
from minibert.files.corpus import prepare, training_part
from minibert.files.hub import load_pretrained
from minibert.files.run_folder import atomic_write
from minibert.losses import mlm_loss
from minibert.masking import IGNORE, mask_tokens
from minibert.model import Block, MaskedLM
from minibert.tokenizer import special_ids
from minibert.training import Training, learning_rate, optimizer_groups

RUN = RunConfig(out="-", steps=100, warmup=0.1, learning_rate=1e-3)
CONFIG = ModelConfig(vocab_size=120, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                     intermediate_size=32, max_position_embeddings=32)


# ---- optimizer and schedule


def test_schedule_of_ten_steps():
    """Catches a rate that jumps at the end of the warm-up, comes a step too late, or does not end
    at 0."""
    run = dataclasses.replace(RUN, steps=10, warmup=0.4, learning_rate=0.6)
    rates = [learning_rate(step, run) for step in range(11)]
    assert rates == pytest.approx([0, .15, .3, .45, .6, .5, .4, .3, .2, .1, 0])


def test_no_warmup_has_no_idle_step():
    """Catches a first update at rate 0 where no warm-up was asked for; one that is asked for, but
    rounds to nothing, still begins at 0."""
    rates = [learning_rate(step, dataclasses.replace(RUN, warmup=0.0)) for step in range(101)]
    assert rates[0] == RUN.learning_rate and rates[50] == RUN.learning_rate / 2 and rates[100] == 0
    assert learning_rate(0, dataclasses.replace(RUN, steps=3)) == 0


def test_matrices_are_decayed_and_nothing_else():
    """Catches a bias or a LayerNorm that is decayed, whatever its name; a matrix or an embedding
    that is not; a parameter in both groups, or in neither."""
    model = nn.ModuleList([MaskedLM(CONFIG), nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))])
    decayed, others = optimizer_groups(model, 0.25)
    assert decayed["weight_decay"] == 0.25 and others["weight_decay"] == 0
    for group, is_matrix in ((decayed, True), (others, False)):
        assert all((parameter.dim() == 2) == is_matrix for parameter in group["params"])
    grouped = [id(parameter) for parameter in decayed["params"] + others["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("world_size", [1, 2])
def test_micro_batches_cover_the_batch(world_size, monkeypatch):
    """Catches rows that are lost, doubled or misaligned with their labels, in each process, and
    gradients that processes add up more than once in a step."""
    rows = torch.arange(8).view(8, 1)
    batch = Batch(rows, rows, rows, rows[:, 0], rows[:, 0], 5, rows, rows)
    pieces, alone = [], [False]  # now: are the gradients of the other process left out?

    @contextlib.contextmanager
    def without_others(model):
        alone[0] = True
        yield
        alone[0] = False

    monkeypatch.setattr(distributed, "alone", without_others)
    for rank in range(world_size):
        training = SimpleNamespace(
            rank=rank, world_size=world_size, model=None, module=SimpleNamespace(config=CONFIG),
            run=SimpleNamespace(gradient_accumulation_steps=4 // world_size))
        apart = []
        for micro_batch in Training.micro_batches(training, batch):
            apart.append(alone[0])
            pieces.append(micro_batch)
        assert apart == [True] * (len(apart) - 1) + [False]
        assert training.counts["tokens"] == rows.sum() and training.counts["targets"] == 8
    for micro_batch in pieces:
        assert len(micro_batch.sequence_ids) == 2 and micro_batch.epoch == 5
        assert all(torch.equal(value.flatten(), micro_batch.sequence_ids) for value in micro_batch
                   if value is not micro_batch.epoch)
    seen = torch.cat([micro_batch.sequence_ids for micro_batch in pieces])
    assert seen.sort().values.tolist() == [*range(8)]


def test_micro_batches_fit_into_the_memory(monkeypatch):
    """Catches logits of all rows at once where they are wanted at every position."""
    monkeypatch.setattr(evaluation_module, "MOST_LOGITS", 3 * 16 * CONFIG.vocab_size)
    rows = torch.zeros(8, 16, dtype=torch.long)
    batch = Batch(rows, rows, rows, rows[:, 0], torch.arange(8), 0, rows, rows)
    training = SimpleNamespace(
        rank=0, world_size=1, model=None, module=SimpleNamespace(config=CONFIG),
        run=SimpleNamespace(gradient_accumulation_steps=2))
    sizes = [len(part.labels) for part in Training.micro_batches(training, batch)]
    assert sizes == [3, 1, 3, 1]


def test_compiled_blocks_train_alike(toy_text, tmp_path, run_script, monkeypatch):
    """Catches a flag without effect, and traced blocks whose weights are saved under other names or
    move otherwise. A compiler is used in tests/faults."""
    compiled, compile_it = [], torch.nn.Module.compile
    true_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, backend="eager": true_compile(
        function, backend=backend))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: (
        compiled.append(module), compile_it(module, backend="eager")))
    for flags in ([], ["--compile"]):
        run_script("train_bert", *BUDGET, *TOY, "--steps", "3", "--corpus", toy_text,
                   "--out", tmp_path / f"run{len(flags)}", *flags)
    assert [type(module) for module in compiled] == [Block, Block]
    plain, compiled = weights(tmp_path / "run0"), weights(tmp_path / "run1")
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(plain[name], compiled[name], atol=1e-6) for name in plain)


def test_overfits_one_batch():
    """Catches anything that keeps the model from learning: masks, heads, gradients, schedule."""
    torch.manual_seed(0)
    ids = torch.randint(5, 120, (8, 16))
    ids[:, 0], ids[:, -1] = 2, 3
    inputs, positions, labels = mask_tokens(ids, torch.arange(8), seed=0, epoch=0, vocab_size=120,
                                            mask_id=4, special_ids=range(5))
    config = dataclasses.replace(CONFIG, hidden_size=32, initializer_range=0.1,
                                 hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = MaskedLM(config)
    run = RunConfig(out="-", steps=200, learning_rate=5e-3)
    optimizer = torch.optim.AdamW(optimizer_groups(model, 0.01))
    for step in range(run.steps):
        output = model(inputs, positions=positions)
        mlm_loss(output.mlm_logits, labels).backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, run)
        optimizer.step()
        optimizer.zero_grad()
    right = (output.mlm_logits.argmax(-1) == labels)[labels != IGNORE]
    assert right.float().mean() > 0.95


def test_more_tokens_than_there_are(toy_text, tmp_path, run_script):
    """Catches a slice of --data-tokens that the text does not have."""
    with pytest.raises(UserError, match="--data-tokens 99999 is more than the"):
        run_script("train_roberta", *BUDGET, *TOY, "--corpus", toy_text, "--data-tokens", 99999,
                   "--out", tmp_path / "more")


@pytest.mark.parametrize("asked, short", [(20, False), (9999, True)])
def test_few_targets_are_said(asked, short, toy_text, tmp_path, run_script, capsys):
    """Catches a score of a hundred tokens that passes for one of fifty thousand."""
    run_script("train_roberta", *BUDGET, *TOY, "--corpus", toy_text, "--out", tmp_path / "run",
               "--steps", 1, "--eval-targets", asked)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    count = min(metrics[kind]["targets"] for kind in ("full-sentences", "segment-pair"))
    said = f"has {count} tokens to predict, fewer than --eval-targets {asked}"
    assert (said in capsys.readouterr().out) == short


def test_no_steps_leave_the_initial_weights(toy_text, tmp_path, run_script):
    """Catches a division by no steps, and an update that was not asked for: the scores of a network
    without training are what pretraining has to beat."""
    flags = [*BUDGET, *TOY, "--corpus", toy_text, "--steps", 0, "--out", tmp_path / "none"]
    run_script("train_roberta", *flags)
    metrics = json.loads((tmp_path / "none" / "metrics.json").read_text())
    assert metrics["steps"] == metrics["tokens"] == 0 and log(tmp_path / "none") == []
    trained = load_pretrained(str(tmp_path / "none"))[0]
    assert all(torch.equal(one, two) for one, two in zip(
        trained.parameters(), MaskedLM(trained.config, seed=0).parameters()))


def test_evaluation_is_as_precise_as_training(toy_text, tmp_path, run_script, monkeypatch):
    """Catches a GPU that trains in bfloat16 and is measured in float32, or the reverse."""
    seen, linear = set(), torch.nn.functional.linear
    bfloat16 = torch.autocast("cpu", torch.bfloat16)
    monkeypatch.setattr(training_module, "autocast", lambda _: bfloat16)
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *given: (
        seen.add((torch.is_grad_enabled(), (made := linear(*given)).dtype)), made)[1])
    run_script("train_bert", *BUDGET, *TOY, "--corpus", toy_text, "--out", tmp_path / "run")
    assert seen == {(True, torch.bfloat16), (False, torch.bfloat16)}


# ---- run folders, resume and faults


def test_run_folder_holds_what_a_reader_needs(toy_text, tmp_path, run_script):
    """Catches a run that cannot be traced: settings, versions, text, log, result."""
    run_script("train_bert", *BUDGET, *TOY, "--corpus", toy_text, "--out", tmp_path / "run")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"run.json", "log.jsonl", "metrics.json", "config.json", "pytorch_model.bin",
                     "tokenizer.json", "tokenizer_config.json"}
    metadata = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {"settings", "model", "corpus_fingerprint", "versions", "machine",
            "commit"} <= metadata.keys()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    lines = [line for line in log(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert metrics["steps"] == 12 and metrics["tokens"] == lines[-1]["tokens"] > 12 * 8 * 8
    assert metrics["targets"] == lines[-1]["targets"] >= 12 * 8
    assert {"nsp_accuracy", "nsp_majority", "hash"} <= metrics["segment-pair"].keys()
    assert all(line["loss"] == pytest.approx(line["mlm"] + line["nsp"], abs=1e-5)
               for line in lines)


def test_finished_run_is_not_repeated(toy_text, tmp_path, run_script, capsys):
    """Catches a second `make all` that trains again, or overwrites a run with other settings."""
    flags = [*BUDGET, *TOY, "--corpus", toy_text, "--out", tmp_path / "run"]
    run_script("train_roberta", *flags)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    run_script("train_roberta", *flags)
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match="seed 0, not 1"):
        run_script("train_roberta", *flags, "--seed", 1)


def test_edited_code_is_not_passed_off_as_the_same(toy_text, tmp_path, run_script, capsys):
    """Catches an ablation by editing the code whose result is the old run's, without a word."""
    flags = [*BUDGET, *TOY, "--corpus", toy_text, "--out", tmp_path / "run"]
    run_script("train_roberta", *flags)
    run_script("train_roberta", *flags)
    assert "changed since" not in capsys.readouterr().err
    metadata = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**metadata, "code": "0123456789ab"}))
    run_script("train_roberta", *flags)
    assert "1 of 1 runs" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_left_alone(toy_text, tmp_path, run_script):
    """Catches a run that writes into somebody's documents."""
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not a run's folder"):
        run_script("train_roberta", *BUDGET, *TOY, "--corpus", toy_text, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_unfinished_run_with_other_settings(toy_text, tmp_path, run_script, monkeypatch):
    """Catches a resume that goes on with another recipe, model or text."""
    flags = [*BUDGET, *TOY, "--corpus", toy_text, "--out", tmp_path / "run"]
    monkeypatch.setattr(training_module, "evaluate", stop)
    with pytest.raises(KeyboardInterrupt):
        run_script("train_roberta", *flags)
    for change, name in ((["--learning-rate", "1"], "learning_rate"),
                         (["--hidden-size", "32"], "hidden_size")):
        with pytest.raises(UserError, match=name):
            run_script("train_roberta", *flags, *change)
    text = toy_text.read_text()
    toy_text.write_text(text + "\n\nmore.\n")
    try:
        with pytest.raises(UserError, match="corpus"):
            run_script("train_roberta", *flags)
    finally:
        toy_text.write_text(text)


def stop(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("script, sent", [
    ("train_bert", signal.SIGKILL), ("train_bert", signal.SIGINT), ("distill", signal.SIGTERM)])
def test_killed_run_goes_on_bit_for_bit(script, sent, toy_text, tmp_path, run_script, teacher):
    """Catches a resume with fresh random numbers, another order, or a lost or doubled log line."""
    shape = TOY if script != "distill" else ["--teacher", teacher]
    # Checkpoints fall between lines of the log, so that a window is saved half full.
    flags = [*BUDGET, *shape, "--corpus", toy_text, "--steps", 160, "--log-every", 7,
             "--eval-every", 80, "--checkpoint-every", 10]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start_script(script, *flags, "--out", killed)
    deadline = time.monotonic() + 60
    while not (killed / "checkpoint.pt").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(sent)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == (-sent if sent == signal.SIGKILL else 128 + sent), stderr
    assert not (killed / "metrics.json").exists()
    with open(killed / "log.jsonl", "a") as lines:  # as if it was killed while it logged
        lines.write('{"step": 155, "loss": 1.0}\n{"step": 156, "lo')
    if sent != signal.SIGKILL:
        assert "run the same command again" in stderr and "Traceback" not in stderr
    run_script(script, *flags, "--out", killed)
    run_script(script, *flags, "--out", whole)
    assert_same_run(killed, whole)


@pytest.fixture(scope="session")
def teacher(toy_text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    process = start_script("train_bert", *BUDGET, *TOY, "--corpus", toy_text, "--out", folder)
    assert process.wait(60) == 0, process.communicate()[1]
    return folder


@pytest.mark.parametrize("what", ["loss", "grad_norm"])
def test_loss_that_is_no_number(what, toy_text, tmp_path, run_script, monkeypatch):
    """Catches a run that goes on with NaN, or saves it over its last good checkpoint; a finite loss
    may have a gradient that is not."""
    true_loss, calls = training_module.Training.backward, []

    def broken(self, loss, **terms):
        calls.append(loss)
        broken_now = len(calls) == 7
        true_loss(self, loss * float("nan") if broken_now and what == "loss" else loss, **terms)
        if broken_now:
            self.module.decoder_bias.grad[3] = float("nan")

    monkeypatch.setattr(training_module.Training, "backward", broken)
    said = {"loss": "loss of step 7 is nan", "grad_norm": r"step 7 is \d.*norm nan"}[what]
    with pytest.raises(UserError, match=said):
        run_script("train_roberta", *BUDGET, *TOY, "--corpus", toy_text, "--out", tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 4
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())


def test_signals_are_given_back(toy_text, tmp_path, run_script):
    """Catches a Ctrl-C that nobody hears once the last step is done."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_script("train_roberta", *BUDGET, *TOY, "--corpus", toy_text, "--out", tmp_path / "run")
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_run_without_a_bar_says_how_long_it_will_take(toy_text, tmp_path, run_script,
                                                        monkeypatch, capsys):
    """Catches hours without a sign of life, and time left that is not of the steps that are."""
    flags = [*BUDGET, *TOY, "--corpus", toy_text, "--steps", 100, "--log-every", 30]
    run_script("train_roberta", *flags, "--out", tmp_path / "short")
    assert "left" not in capsys.readouterr().out
    monkeypatch.setattr(training_module, "SAID_EVERY", 0.0)
    clock = iter(range(10**6))  # a minute passes at each look
    monkeypatch.setattr(training_module.time, "monotonic", lambda: 60.0 * next(clock))
    run_script("train_roberta", *flags, "--out", tmp_path / "long")
    lines = re.findall(r"step (\d+) of 100, loss [\d.]+, \d+ tokens/s, (\d+) minutes left",
                       capsys.readouterr().out)
    assert [step for step, _ in lines] == ["30", "60", "90", "100"] and lines[-1][1] == "0"
    assert int(lines[0][1]) > int(lines[1][1]) > int(lines[2][1]) > 5
    assert_same_run(tmp_path / "short", tmp_path / "long")


def test_log_tells_the_epoch_that_was_read(toy_text, tmp_path, run_script):
    """Catches an epoch that counts as begun when the last one has just ended."""
    run_script("train_roberta", *BUDGET, *TOY, "--corpus", toy_text, "--out", tmp_path / "run",
               "--data-tokens", 250, "--log-every", 1)
    run = RunConfig(**json.loads((tmp_path / "run" / "run.json").read_text())["settings"])
    tokenizer, text, _, _ = prepare(run.corpus, run.tokenizer, 70)
    batches = Batches(training_part(text, run), run, special_ids(tokenizer), "cpu", lambda _: 0)
    epochs = [next(batches).epoch for _ in range(12)]
    assert epochs[0] == 0 and epochs[-1] > 1
    assert [line["epoch"] for line in log(tmp_path / "run") if "loss" in line] == epochs


def test_processes_drop_other_neurons():
    """Catches one key of dropout for all processes, whose rows would then be dropped alike."""
    seeds = set()
    for rank, step in ((0, 0), (1, 0), (0, 1)):
        training = SimpleNamespace(run=RUN, out=SimpleNamespace(name="run"), rank=rank, step=step,
                                   seconds=0, batches=iter([None]), received=0)
        next(Training.__iter__(training))
        seeds.add(torch.initial_seed())
    assert len(seeds) == 3


@pytest.fixture
def stopped(toy_text, tmp_path, run_script, monkeypatch):
    """The flags and the folder of a run that was stopped at step 6, after its checkpoint of step 4.
    """
    flags = [*BUDGET, *TOY, "--corpus", toy_text, "--out", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr(training_module, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            run_script("train_roberta", *flags)
    return flags, tmp_path / "run"


@pytest.mark.parametrize("left", ["no file", "half a line", "no lines"])
def test_log_that_lost_lines(left, stopped, run_script):
    """Catches a traceback, or a log that silently lacks the steps before its checkpoint."""
    flags, out = stopped
    lines = (out / "log.jsonl").read_text()
    assert lines.startswith('{"step": 3')
    (out / "log.jsonl").unlink()
    if left != "no file":
        (out / "log.jsonl").write_text({"half a line": lines[:30], "no lines": ""}[left])
    with pytest.raises(UserError, match="log.jsonl has lost lines about the 4 steps.*delete"):
        run_script("train_roberta", *flags)
    (out / "log.jsonl").write_text(lines)
    run_script("train_roberta", *flags)
    assert [line["step"] for line in log(out)] == [3, 6, 6, 9, 12, 12]


def test_log_without_a_checkpoint_starts_again(stopped, run_script):
    """Catches lines of a run that was killed before its first checkpoint, logged twice."""
    flags, out = stopped
    (out / "checkpoint.pt").unlink()
    run_script("train_roberta", *flags)
    assert [line["step"] for line in log(out)] == [3, 6, 6, 9, 12, 12]


def test_checkpoint_cut_short(stopped, run_script):
    """Catches a traceback, or a silent new start, when a checkpoint is broken."""
    flags, out = stopped
    checkpoint = out / "checkpoint.pt"
    whole = torch.load(checkpoint, weights_only=True)
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(UserError, match="checkpoint.pt cannot be read"):
        run_script("train_roberta", *flags)
    del whole["logged"]  # an older version did not note it
    torch.save(whole, checkpoint)
    with pytest.raises(UserError, match="checkpoint.pt cannot be read"):
        run_script("train_roberta", *flags)


@pytest.mark.parametrize("room", [500, 20_000], ids=["for a tokenizer", "for a checkpoint"])
def test_disk_full(room, toy_text, tmp_path, monkeypatch):
    """Catches a half-written checkpoint or corpus, or a traceback, when no room is left."""
    monkeypatch.setenv("MINIBERT_PREPARED", str(tmp_path / "prepared"))
    flags = [*BUDGET, *TOY, "--corpus", toy_text, "--out", tmp_path / "run"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # inherited: the write fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        process = start_script("train_bert", *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert_one_error_line(process, "no room is left")
    assert not list((tmp_path / "run").glob("checkpoint*"))
    process = start_script("train_bert", *flags)
    assert process.wait(60) == 0


class FullDisk:
    room = 2000

    def write(self, block):
        self.room -= len(block)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return len(block)

    def flush(self):
        pass


def test_disk_full_inside_torch(tmp_path):
    """Catches the RuntimeError that torch's writer makes of a full disk: a traceback for a user."""
    with pytest.raises(OSError, match="No space"), atomic_write(tmp_path / "a"):
        torch.save({"weight": torch.zeros(1000)}, FullDisk())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags, parts_of_message", [
    (["--corpus", "nowhere.txt"], ["nowhere.txt", "pydocs"]),
    (["--vocab-size", "9000"], ["--vocab-size"]),
    (["--batch-size", "5000"], ["fewer than one batch", "--batch-size"]),
    (["--no-such-flag"], ["--no-such-flag"]),
    (["--preset", "huge"], ["huge", "tiny"]),
])
def test_bad_input_is_one_line_and_exit_code_2(flags, parts_of_message, toy_text, tmp_path,
                                               run_script, capsys):
    """Catches tracebacks and half-made runs on what users get wrong first."""
    with pytest.raises(SystemExit, match="2"):
        run_cli(lambda: run_script("train_roberta", *BUDGET, *TOY, "--corpus", toy_text,
                                   "--out", tmp_path / "run", *flags))
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(part in line for part in parts_of_message)
    assert not (tmp_path / "run").exists()
