"""Tasks: reading, scores, floors, and a classifier that learns what can be learned."""
import json
import math
import sys

import numpy as np
import pytest
import torch

from minibert import MaskedLM, ModelConfig, load_pretrained, save_pretrained
from minibert.__main__ import main
from minibert.config import FinetuneConfig
from minibert.errors import UserError, run_cli
from minibert.finetune import (TASKS, SequenceClassifier, bag_of_words, classify, finetune,
                               predict, read_task, score)
from minibert.tokenizer import train_tokenizer

WORDS = "ba be bi bo bu da de di do du".split()
CONFIG = ModelConfig(vocab_size=27, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                     intermediate_size=32, max_position_embeddings=16, initializer_range=0.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An encoder that knows nothing yet."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer(lambda: [" ".join(WORDS)] * 3, "wordpiece", 27)
    save_pretrained(MaskedLM(CONFIG, seed=9), tokenizer, folder)
    return str(folder)


@pytest.fixture
def task_dir(tmp_path):
    """Is "ba" before "du"? Both classes hold the same words, so that order alone tells."""
    draw = np.random.default_rng(0)
    for name, count in (("train", 400), ("dev", 60)):
        lines = ["label\ttext"]
        for i in range(count):
            pair = ["ba", "du"] if i % 2 else ["du", "ba"]
            pair.insert(int(draw.integers(0, 3)), str(draw.choice(WORDS[1:9])))
            lines.append(f"{'first' if i % 2 else 'last'}\t{' '.join(pair)}")
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def settings(task_dir, **other):
    return FinetuneConfig(**{**dict(task="text", task_dir=str(task_dir), batch_size=8, epochs=6,
                                    learning_rate=5e-3, device="cpu",
                                    out=str(task_dir / "out")), **other})


def test_learns_what_word_counts_do_not_show(run, task_dir):
    """Catches a head or an encoder that is not trained, labels shuffled against texts."""
    found = finetune(run, settings(task_dir))
    assert found["score"] > 0.9
    assert found["majority"] == 0.5
    rows = [line.split("\t") for line in (task_dir / "out/predictions.tsv").read_text()
            .splitlines()]
    assert rows[0] == ["label", "guess", "first", "last"] and len(rows) == 61
    right = sum(row[0] == row[1] for row in rows[1:])
    assert right / 60 == pytest.approx(found["score"])
    assert all(float(row[2]) + float(row[3]) == pytest.approx(1, abs=2e-4) for row in rows[1:])
    lines = classify(str(task_dir / "out"), [("ba be du",), ("du be ba",)]).splitlines()
    assert lines[0] == "ba be du" and lines[3] == "du be ba"
    shares = [float(line.split()[-1].rstrip("%")) for line in lines if line.startswith("  ")]
    assert shares[0] > 50 > shares[1] and shares[2] < 50 < shares[3]


def test_starts_from_the_pretrained_encoder(run, task_dir):
    """Catches a fine-tuning that leaves the run's weights aside."""
    finetune(run, settings(task_dir, epochs=1, rows=8, learning_rate=1e-12))
    weights = torch.load(task_dir / "out" / "classifier.pt", weights_only=True)
    for name, weight in load_pretrained(run)[0].encoder.state_dict().items():
        assert torch.allclose(weights[f"encoder.{name}"], weight, atol=1e-6), name


def test_same_seed_same_classifier(run, task_dir):
    """Catches order, dropout or weights that come from a global generator."""
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(results))
        finetune(run, settings(task_dir, epochs=1, seed=seed, out=str(task_dir / name)))
        results.append(torch.load(task_dir / name / "classifier.pt", weights_only=True))
    same = [all(torch.equal(results[0][name], other[name]) for name in other)
            for other in results[1:]]
    assert same == [True, False]


def test_trap_40_all_families_by_one_rule():
    """Catches a head that reads [CLS] for some, or a pooler that only BERT's pretraining made."""
    shapes = {model_type: {name: tuple(weight.shape) for name, weight in SequenceClassifier(
        ModelConfig(**{**vars(CONFIG), "model_type": model_type, "next_sentence": False}), 3)
        .named_parameters() if not name.startswith("encoder.")}
        for model_type in ("bert", "roberta", "distilbert")}
    assert shapes["bert"] == shapes["roberta"] == shapes["distilbert"]


def test_padding_does_not_change_the_class():
    """Catches a mean that counts padding."""
    model = SequenceClassifier(CONFIG, 3).eval()
    ids = torch.tensor([[2, 7, 8, 3]])
    padded = torch.tensor([[2, 7, 8, 3, 0, 0]])
    alone = model(ids, attention_mask=torch.ones_like(ids))
    batched = model(padded, attention_mask=(padded > 0).long())
    assert torch.allclose(alone, batched, atol=1e-6)


def test_prediction_is_without_dropout():
    """Catches another answer each time that the same text is asked about."""
    model = SequenceClassifier(CONFIG, 3).train()
    given = {"input_ids": torch.tensor([[2, 7, 8, 3]]), "attention_mask": torch.ones(1, 4)}
    one, two = (predict(model.train(), lambda rows: given, [("x",)]) for _ in range(2))
    assert (one == two).all() and one.sum() == pytest.approx(1)


def test_scores_against_their_definitions():
    """Catches F1 of the wrong class, accuracy called F1, a Matthews that is not 0 by chance."""
    draw = np.random.default_rng(1)
    guesses, labels = draw.integers(0, 2, 200), draw.integers(0, 2, 200)
    both = int(((guesses == 1) & (labels == 1)).sum())
    precision, recall = both / guesses.sum(), both / labels.sum()
    assert score("f1", guesses, labels) == pytest.approx(
        2 * precision * recall / (precision + recall))
    assert score("matthews", guesses, labels) == pytest.approx(np.corrcoef(guesses, labels)[0, 1])
    assert score("matthews", np.ones(200, int), labels) == 0
    assert score("matthews", labels, labels) == pytest.approx(1)
    assert score("accuracy", 1 - labels, labels) == 0


def test_bag_of_words_by_hand():
    """Catches a floor that is lower than it should be, which flatters every model."""
    texts, labels = [("good film",), ("bad film",), ("good good",)], np.array([1, 0, 1])
    assert bag_of_words(texts, labels, [("good",), ("bad bad",), ("unseen",)]).tolist() == [1, 0, 1]


def test_bag_of_words_against_a_slow_one():
    """Catches smoothing, word pairs or the prior left out."""
    draw = np.random.default_rng(0)
    rows = [(" ".join(draw.choice(list("abcdefgh"), 4)),) for _ in range(90)]
    labels = draw.choice(2, 60, p=[0.3, 0.7])

    def grams(row):
        words = row[0].split()
        return words + [" ".join(pair) for pair in zip(words, words[1:])]

    seen = [[gram for row, label in zip(rows, labels) if label == c for gram in grams(row)]
            for c in (0, 1)]
    known = set(seen[0]) | set(seen[1])
    expected = []
    for row in rows[60:]:
        scores = [math.log((labels == c).mean()) for c in (0, 1)]
        for c in (0, 1):
            for gram in grams(row):
                if gram in known:
                    scores[c] += math.log((seen[c].count(gram) + 1) / (len(seen[c]) + len(known)))
        expected.append(int(scores[1] > scores[0]))
    assert 0 < sum(expected) < 30
    assert bag_of_words(rows[:60], labels, rows[60:]).tolist() == expected


def test_glue_files_are_read_as_published(tmp_path):
    """Catches quotes that eat rows, a lost last line, a byte order mark in a column's name."""
    path = tmp_path / "train.tsv"
    path.write_bytes('\ufeffsentence\tlabel\n"an open quote\t1\nlast line\t0'.encode())
    assert read_task(path, TASKS["sst2"]) == ([('"an open quote',), ("last line",)], ["1", "0"])
    path.write_text("gj04\t1\t\tOur friends.\r\ngj04\t0\t*\tThem they.\r\n")
    assert read_task(path, TASKS["cola"]) == ([("Our friends.",), ("Them they.",)], ["1", "0"])
    path.write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tOne.\tTwo.\n")
    assert read_task(path, TASKS["mrpc"]) == ([("One.", "Two.")], ["1"])


@pytest.mark.parametrize("train, dev, message", [
    (None, "label\ttext\na\tb\n", "train.tsv is missing"),
    ("", "", "holds no rows"),
    ("label\ttext\n", "", "holds no rows"),
    ("label\tsentence\na\tb\n", "", "no column 'text'"),
    ("label\ttext\na\n", "", "row 2 has 1 columns"),
    ("label\ttext\na\tb\n", "label\ttext\na\tb\n", "different labels"),
    ("label\ttext\na\tb\nc\td\n", "label\ttext\nz\tb\n", "label 'z'"),
])
def test_tasks_that_cannot_be_used(train, dev, message, run, tmp_path):
    """Catches a traceback, or a score on labels that were never learned."""
    for name, content in (("train", train), ("dev", dev)):
        if content is not None:
            (tmp_path / f"{name}.tsv").write_text(content)
    with pytest.raises(UserError, match=message):
        finetune(run, settings(tmp_path))
    assert not (tmp_path / "out").exists()


def test_settings_and_tasks_agree():
    """Catches a task that has no flag, or a flag without a task."""
    [field] = [f for f in FinetuneConfig.__dataclass_fields__.values() if f.name == "task"]
    assert field.metadata["allowed"] == tuple(TASKS)


def test_from_the_command_line(run, task_dir, monkeypatch, capsys):
    """Catches flags that do not arrive, and tracebacks on what users get wrong."""
    command = ["minibert", "finetune", run, "--task", "text", "--task-dir", str(task_dir),
               "--out", str(task_dir / "out"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, "--epochs", "1", "--rows", "16"])
    run_cli(main)
    printed = capsys.readouterr().out
    assert "text: accuracy" in printed and "bag of words" in printed
    assert json.loads((task_dir / "out/metrics.json").read_text())["settings"]["rows"] == 16
    for flags, message in (([], "is there already"), (["--epochs", "0"], "--epochs"),
                           (["--task", "poetry"], "poetry")):
        monkeypatch.setattr(sys, "argv", [*command, *flags])
        with pytest.raises(SystemExit) as ended:
            run_cli(main)
        assert ended.value.code == 2 and message in capsys.readouterr().err
