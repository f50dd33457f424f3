"""Fine-tuning: the loop by hand, what seeds and teachers always do, and the folder of a task."""
import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path
from unittest import mock

import finetune as script
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from minibert import MaskedLM, ModelConfig, load_pretrained, save_pretrained
from minibert.errors import UserError
from minibert.hashing import hash_bits
from minibert.tasks.classifier import (SequenceClassifier, classify, load_classifier,
                                       save_classifier)
from minibert.tasks.tasks import TASKS
from minibert.tokenizer import train_tokenizer

WORDS = "ba be bi bo bu da de di do du".split()
CONFIG = ModelConfig(vocab_size=27, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                     intermediate_size=32, max_position_embeddings=16, initializer_range=0.2,
                     hidden_dropout_prob=0, attention_probs_dropout_prob=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pretrained BERT, which knows nothing yet."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer(lambda: [" ".join(WORDS)] * 3, "wordpiece", 27)
    save_pretrained(MaskedLM(CONFIG, seed=9), tokenizer, folder)
    return folder


def finetune(run, folder, **flags):
    """The script's metrics of the task in a folder; the flags are written as Python has them."""
    flags = dict(task="text", task_dir=folder, out=folder / "out", device="cpu", batch_size=8,
                 learning_rate=0.005) | flags
    words = [word for name, value in flags.items()
             for word in (f"--{name.replace('_', '-')}", str(value))]
    with mock.patch.object(sys, "argv", ["finetune.py", str(run), *words]):
        script.main()
    return json.loads((Path(flags["out"]) / "metrics.json").read_text())


def write_rows(path, rows):
    """A train.tsv or dev.tsv of texts and their labels."""
    path.write_text("\n".join(["text\tlabel", *map("\t".join, rows)]) + "\n")


def weights_in(folder):
    return load_classifier(str(folder))[0].state_dict()


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# ---- the loop by hand: three rows in batches of two, twice

ROWS = [("ba be bi", "yes"), ("du", "no"), ("du da bo bu", "no")]
DEV = [("ba be", "yes"), ("bo du da", "yes"), ("di", "no"), ("du du du", "no"), ("be", "no")]
CLASSES = ["no", "yes"]


def logits_of(model, tokenizer, rows):
    """Those of a batch of rows, which are padded to the longest of them."""
    rows = [tokenizer.encode(text).ids for text, _ in rows]
    ids = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
    return model(ids, attention_mask=(ids > 0).long(), token_type_ids=torch.zeros_like(ids))


@torch.no_grad()
def accuracy(model, tokenizer):
    guesses = logits_of(model.eval(), tokenizer, DEV).argmax(1)
    return sum(CLASSES[guess] == label for guess, (_, label) in zip(guesses, DEV)) / len(DEV)


def train_by_hand(run, seed, pooling, soft_targets):
    """The same training with its loss, its schedule, its clipping and its Adam written out."""
    pretrained, tokenizer = load_pretrained(run)
    model = SequenceClassifier(dataclasses.replace(
        pretrained.config, next_sentence=False, hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1), 2, seed, pooling)
    model.encoder.load_state_dict(pretrained.encoder.state_dict())
    if pooling == "cls":
        model.dense.load_state_dict(pretrained.pooler.state_dict())
    model.train()
    mean, square = ({name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
                    for _ in range(2))
    step, steps, warmup = 0, 4, 1
    for epoch in range(2):
        keys = hash_bits(seed, "task order", epoch, torch.arange(3)).tolist()
        order = sorted(range(3), key=keys.__getitem__)
        for rows in (order[:2], order[2:]):
            torch.manual_seed(hash_bits(seed, "task dropout", step))
            logits = logits_of(model, tokenizer, [ROWS[row] for row in rows])
            shares = logits.log_softmax(-1)
            loss = -sum(shares[place, CLASSES.index(ROWS[row][1])]
                        for place, row in enumerate(rows)) / len(rows)
            if soft_targets is not None:  # with a share of 0.9, at a temperature of 3
                theirs = (soft_targets[rows] / 3).softmax(-1)
                ours = (logits / 3).log_softmax(-1)
                loss = 0.1 * loss + 0.9 * 9 * (theirs * (theirs.log() - ours)).sum() / len(rows)
            model.zero_grad()
            loss.backward()
            norm = math.sqrt(sum(weight.grad.square().sum() for weight in model.parameters()))
            rate = 0.02 * (step / warmup if step < warmup else (steps - step) / (steps - warmup))
            step += 1
            for name, weight in model.named_parameters():
                gradient = weight.grad * min(1, 1 / norm)
                mean[name] = 0.9 * mean[name] + 0.1 * gradient
                square[name] = 0.999 * square[name] + 0.001 * gradient.square()
                decay = 0.01 if weight.dim() == 2 else 0  # not of biases and LayerNorms
                weight.data *= 1 - rate * decay
                weight.data -= rate * (mean[name] / (1 - 0.9**step)) / (
                    (square[name] / (1 - 0.999**step)).sqrt() + 1e-8)
    return model.state_dict(), accuracy(model, tokenizer)


def assert_as_by_hand(trained, by_hand):
    for name, weight in by_hand.items():
        # The softmax does not see a key's bias: its gradient is what rounding leaves of 0.
        if "key_value.bias" not in name:
            assert torch.allclose(trained[name], weight, atol=2e-6), name


@pytest.fixture
def small_task(tmp_path):
    write_rows(tmp_path / "train.tsv", ROWS)
    write_rows(tmp_path / "dev.tsv", DEV)
    return tmp_path


FOUR_STEPS = dict(batch_size=2, epochs=2, learning_rate=0.02, warmup=0.25)


@pytest.mark.parametrize("pooling, seed", [("mean", 0), ("mean", 4), ("cls", 0)])
def test_four_steps_by_hand(pooling, seed, run, small_task):
    """If a label moved to another text, a batch of one row counted half, the order or the dropout
    repeated itself, or the score came from the training rows, everybody's scores would be of
    something else than what the page says."""
    metrics = finetune(run, small_task, pooling=pooling, seed=seed, **FOUR_STEPS)
    by_hand, score = train_by_hand(run, seed, pooling, None)
    assert_as_by_hand(weights_in(small_task / "out"), by_hand)
    assert metrics["score"] == score and metrics["dev_rows"] == 5


def test_four_steps_with_a_teacher_by_hand(run, small_task):
    """If soft targets came from a teacher with dropout, from the student's token ids or at another
    temperature, or reached the twin without a teacher, the gain would be invented. Here the ids of
    "ba" and "du" are exchanged in the teacher's vocabulary."""
    tokenizer = load_pretrained(run)[1]
    vocabulary = json.loads(tokenizer.to_str())
    ids = vocabulary["model"]["vocab"]
    ids["ba"], ids["du"] = ids["du"], ids["ba"]
    tokenizer = Tokenizer.from_str(json.dumps(vocabulary))
    teacher = SequenceClassifier(dataclasses.replace(CONFIG, next_sentence=False), 2, seed=5)
    save_classifier(teacher, tokenizer, small_task / "teacher", CLASSES, 1)
    metrics = finetune(run, small_task, teacher=small_task / "teacher", alpha_kl=0.9,
                       temperature=3, **FOUR_STEPS)
    with torch.no_grad():
        soft_targets = logits_of(teacher.eval(), tokenizer, ROWS)
    by_hand, score = train_by_hand(run, 0, "mean", soft_targets)
    assert_as_by_hand(weights_in(small_task / "out"), by_hand)
    assert metrics["score"] == score and metrics["teacher"] == accuracy(teacher, tokenizer)
    assert metrics["without_teacher"] == train_by_hand(run, 0, "mean", None)[1] != score


# ---- what always holds


@pytest.fixture
def order_task(tmp_path):
    """Is "ba" before "du"? Both classes hold the same words, so that order alone tells."""
    draw = np.random.default_rng(0)
    for name, count in (("train", 400), ("dev", 60)):
        rows = []
        for number in range(count):
            pair = ["ba", "du"] if number % 2 else ["du", "ba"]
            pair.insert(int(draw.integers(0, 3)), str(draw.choice(WORDS[1:9])))
            rows.append((" ".join(pair), "first" if number % 2 else "last"))
        write_rows(tmp_path / f"{name}.tsv", rows)
    return tmp_path


def test_learns_what_word_counts_do_not_show(run, order_task):
    """If the encoder was not trained along with the head, a bag of words would do as well, and
    nobody could tell what pretraining is worth; what is saved has to be what was scored."""
    metrics = finetune(run, order_task, epochs=6)
    assert metrics["score"] > 0.9 > metrics["bag_of_words"] > metrics["majority"] == 0.5
    dev = [line.split("\t") for line in (order_task / "dev.tsv").read_text().splitlines()[1:]]
    bars = [classify(str(order_task / "out"), (text,)).splitlines()[1:] for text, _ in dev]
    first = [float(lines[0].split()[-1].rstrip("%")) > 50 for lines in bars]
    right = sum(guess == (label == "first") for guess, (_, label) in zip(first, dev))
    assert right / 60 == pytest.approx(metrics["score"])


def test_a_seed_decides_everything(run, order_task):
    """If a global generator or an earlier seed had a say, a score could not be had again; and the
    score of several seeds is their mean, beside the classifier of the first."""
    def classifier(name, **flags):
        metrics = finetune(run, order_task, out=order_task / name, rows=80, epochs=4, **flags)
        return metrics, weights_in(order_task / name)

    third, third_weights = classifier("third", seed=3)
    torch.manual_seed(7)
    fourth, fourth_weights = classifier("fourth", seed=4)
    both, kept = classifier("both", seed=3, seeds=2)
    assert third["score"] != fourth["score"]
    assert both["scores"] == [third["score"], fourth["score"]]
    assert both["score"] == pytest.approx((third["score"] + fourth["score"]) / 2)
    assert equal(third_weights, kept) and not equal(third_weights, fourth_weights)


def test_a_task_says_how_long_it_is_learned_and_from_how_many_rows(run, order_task, monkeypatch):
    """If few rows were passed over three times like many, a task of 120 rows would not be learned;
    with BERT's 5e-5 as it is, a narrow model would hardly move. A number on the command line counts
    more than the task's."""
    noted = []
    monkeypatch.setitem(TASKS, "text", dataclasses.replace(TASKS["text"], epochs=5, rows=16))
    monkeypatch.setattr(script, "learning_rate", lambda step, schedule: noted.append(
        (step, schedule.learning_rate)) or 0)
    for out, flags, steps, peak in (("a", dict(learning_rate=0), 5 * 2, 5e-5 * 768 / 16),
                                    ("b", dict(rows=24, epochs=2), 2 * 3, 0.005)):
        noted.clear()
        finetune(run, order_task, out=order_task / out, **flags)
        # Both groups of weights have the same rate.
        assert noted == [(step, peak) for step in range(steps) for _ in range(2)]


@pytest.mark.parametrize("flags, noted, longest", [
    ({}, None, 16), ({}, 9, 9), (dict(max_length=8), 9, 8), (dict(max_length=100), 9, 16)])
def test_inputs_are_as_long_as_in_the_pretraining(flags, noted, longest, run, tmp_path):
    """Positions that the pretraining never reached hold noise, and positions that the model does
    not have end in an index error; whoever wants more or fewer tokens says so."""
    shutil.copytree(run, tmp_path / "run")
    if noted:
        (tmp_path / "run" / "run.json").write_text(json.dumps({"settings": {"seq_length": noted}}))
    for name in ("train", "dev"):
        write_rows(tmp_path / f"{name}.tsv", [(" ".join(WORDS * 4), "a"), ("ba", "b")])
    lengths, forward = set(), SequenceClassifier.forward
    with mock.patch.object(SequenceClassifier, "forward", lambda model, input_ids, **others: (
            lengths.add(input_ids.shape[1]), forward(model, input_ids, **others))[1]):
        metrics = finetune(tmp_path / "run", tmp_path, epochs=1, **flags)
        classify(str(tmp_path / "out"), (" ".join(WORDS * 4),))
    assert lengths == {longest} and metrics["settings"]["max_length"] >= longest


def test_what_cannot_teach_is_refused(run, small_task):
    """Soft targets of classes that mean something else would be learned without a word."""
    finetune(run, small_task, epochs=1)
    write_rows(small_task / "train.tsv", [("ba", "good"), ("du", "bad")])
    write_rows(small_task / "dev.tsv", [("ba", "good")])
    for teacher, message in ((small_task / "out", "tells no, yes apart"),
                             (run, "has no classifier")):
        with pytest.raises(UserError, match=message):
            finetune(run, small_task, teacher=teacher, out=small_task / "taught")
    with pytest.raises(UserError, match="no head for words"):
        finetune(small_task / "out", small_task, out=small_task / "again")


# ---- the folder


@pytest.fixture
def command(run, order_task):
    """Fine-tune a copy of the run, which has a folder of its own, shortly."""
    shutil.copytree(run, order_task / "run")
    return lambda **flags: finetune(order_task / "run", order_task, **dict(
        out=order_task / "run" / "tasks" / "text", epochs=1, rows=16) | flags)


def test_what_is_done_is_not_done_again(command, run, order_task, monkeypatch, capsys):
    """A loop over runs and tasks must be free to start again; but a score must not pass for that
    of other settings or of another model."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["finetune.py", f"{order_task}/run/", "--task", "text",
                                    "--task-dir", str(order_task), "--device", "cpu", "--rows",
                                    "16", "--epochs", "1", "--batch-size", "8",
                                    "--learning-rate", "0.005"])
        script.main()  # without --out
    first = capsys.readouterr().out
    folder = order_task / "run" / "tasks" / "text"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    metrics = command()
    assert f"{metrics['score']:.3f}" in first and first.split()[1:] == \
        capsys.readouterr().out.splitlines()[1].split()[1:]
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(UserError, match="rows 16, not 8"):
        command(rows=8)
    save_pretrained(MaskedLM(CONFIG, seed=3), load_pretrained(run)[1], order_task / "run")
    with pytest.raises(UserError, match="other weights"):
        command()


def test_a_kill_leaves_nothing_half_done(command, order_task, monkeypatch):
    """A folder with a classifier and no score, or half a classifier, would be taken for whole."""
    folder = order_task / "run" / "tasks" / "text"
    for name in ("save_classifier", "write_metrics"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(script, name, mock.Mock(side_effect=KeyboardInterrupt))
            command()
        assert not folder.exists()
    command()
    assert [path.name for path in folder.parent.iterdir()] == ["text"]


def test_folders_of_something_else_are_left_alone(command, run, order_task):
    """Somebody's letters, or a pretraining, would be lost under a classifier."""
    (order_task / "mine").mkdir()
    (order_task / "mine" / "letter.txt").write_text("dear")
    shutil.copytree(run, order_task / "pretrained")
    (order_task / "pretrained" / "metrics.json").write_text('{"steps": 3}')
    for name in ("mine", "pretrained", "train.tsv"):
        before = sorted(order_task.rglob("*"))
        with pytest.raises((UserError, NotADirectoryError)):
            command(out=order_task / name)
        assert sorted(order_task.rglob("*")) == before


@pytest.mark.parametrize("flags, message", [
    (dict(epochs=-1), "--epochs"), (dict(seed=2**32), "--seed must be in"),
    (dict(max_length=5), "--max-length 5"), (dict(alpha_kl=0.3), "--teacher"),
    (dict(temperature=3), "--teacher"), (dict(task="poetry"), "no task 'poetry'; use .*halves"),
    (dict(task="mrpc"), "no column '#1 String'")])
def test_bad_flags_leave_nothing_behind(flags, message, command, order_task):
    """A traceback says little, and an empty folder would be in the way of the next try."""
    with pytest.raises(UserError, match=message):
        command(**flags)
    assert not (order_task / "run" / "tasks").exists()


def test_choices_are_scored_as_the_model_is(command, order_task, monkeypatch):
    """Whoever asks for a task of choices wants to know what the pretraining has taught: training
    first would answer another question."""
    monkeypatch.setattr(script, "finetune", lambda *_: pytest.fail("it was trained"))
    (order_task / "halves").mkdir()
    (order_task / "halves" / "dev.tsv").write_text("right\twrong\tscored\nba du\tdu ba\t0:2\n")
    metrics = command(task="halves", out=order_task / "scored")
    assert (metrics["task"], metrics["dev_rows"], metrics["majority"]) == ("halves", 1, 0.5)
    assert metrics["score"] in (0, 1)
    assert [path.name for path in (order_task / "scored").iterdir()] == ["metrics.json"]
