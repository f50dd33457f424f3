"""Tasks: reading, scores and floors."""
import json
import math

import numpy as np
import pytest

from minibert.errors import UserError
from minibert.files import corpus as corpus_module
from minibert.tasks import tasks as tasks_module
from minibert.tasks.tasks import (TASKS, Choice, bag_of_words, load_choices, load_task, read_task,
                                  score, shared_words)


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


def write_task(folder, train, dev=None, header="text_a\ttext_b\tlabel"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("dev", dev or train)):
        (folder / f"{name}.tsv").write_text("\n".join([header, *rows]) + "\n")
    return str(folder)


@pytest.mark.parametrize("same, other", [("1", "0"), ("0", "1")])
def test_overlap_is_a_floor_of_pairs(same, other, tmp_path):
    """Catches pairs whose only floor looks at the words of both in one bag, where "the same words
    twice" cannot be seen; and a threshold that knows one polarity only (RTE has the other)."""
    rows = [f"a{i} b{i}\ta{i} c{i}\t{same}" for i in range(20)]
    rows += [f"a{i} b{i}\td{i} e{i}\t{other}" for i in range(10)]
    floors = load_task("pair", write_task(tmp_path, rows)).floors()
    assert floors["majority"] == pytest.approx(2 / 3) and floors["overlap"] == 1
    # The threshold is found on the training rows, so that dev rows of another kind are missed.
    other_dev = [f"a b\ta b\t{other}", f"a b\tc d\t{same}"]
    assert load_task("pair", write_task(tmp_path, rows, other_dev)).floors()["overlap"] == 0


def test_floors_learn_from_the_training_rows_only(tmp_path):
    """Catches a floor that has seen the answers: here the dev rows contradict the training rows."""
    train, dev = ["good\t1", "bad\t0"] * 4, ["good\t0", "bad\t1"] * 4
    folder = write_task(tmp_path, train, dev, header="text\tlabel")
    assert load_task("text", folder).floors()["bag_of_words"] == 0


def test_floors_of_many_classes(tmp_path):
    """Catches an overlap rule where more than two answers are possible."""
    three = write_task(tmp_path / "three", ["a\tb\tx", "a\tb\ty", "a\tb\tz"])
    assert set(load_task("pair", three).floors()) == {"majority", "bag_of_words"}


def test_folder_of_one_task_or_of_several(tmp_path):
    """Catches a --task-dir that is understood in one way only, and rows that are not counted."""
    rows = ["good\t1", "bad\t0", "fine\t1"]
    write_task(tmp_path / "SST-2", rows, header="sentence\tlabel")
    for folder in (tmp_path, tmp_path / "SST-2"):
        assert load_task("sst2", str(folder)).texts == [("good",), ("bad",), ("fine",)]
    assert len(load_task("sst2", str(tmp_path), rows=2).texts) == 2
    with pytest.raises(UserError, match="holds neither a folder MRPC nor a train.tsv"):
        load_task("mrpc", str(tmp_path))


def test_missing_tasks_are_made_by_their_script(tmp_path, monkeypatch):
    """Catches a script that is not run, is run again, or whose failure goes unnoticed."""
    monkeypatch.setattr(tasks_module, "DATA", tmp_path)
    monkeypatch.setattr(corpus_module, "DATA", tmp_path)
    (tmp_path / "tasks_glue.py").write_text(f"""
import sys, pathlib
folder = pathlib.Path({str(tmp_path)!r}) / "tasks" / sys.argv[1]
folder.mkdir(parents=True)
for name in "train", "dev":
    (folder / (name + ".tsv")).write_text("sentence\\tlabel\\na\\t1\\nb\\t0\\n")
""")
    assert load_task("sst2", "").labels.tolist() == [1, 0]
    (tmp_path / "tasks_glue.py").write_text("import sys; sys.exit(3)")
    assert load_task("sst2", "").labels.tolist() == [1, 0]
    with pytest.raises(SystemExit) as ended:
        load_task("cola", "")
    assert ended.value.code == 3


@pytest.mark.parametrize("name, rows, message", [
    ("poetry", [], "no task 'poetry'; use sst2"), ("text", [], "--task-dir is missing"),
])
def test_tasks_that_cannot_be_read(name, rows, message, tmp_path):
    """Catches a traceback where one line would do."""
    folder = write_task(tmp_path, rows, header="sentence1\tsentence2\tscore") if rows else ""
    with pytest.raises(UserError, match=message):
        load_task(name, folder)


def test_first_rows_that_lack_a_label(tmp_path):
    """Catches a message that blames train.tsv for what --rows left out."""
    folder = write_task(tmp_path, ["a\tx", "b\ty", "c\tz"], header="text\tlabel")
    with pytest.raises(UserError, match="train.tsv lacks in its first 2 rows"):
        load_task("text", folder, rows=2)


def test_a_row_without_a_label_is_named_by_its_line(tmp_path):
    """Catches a class that has no name, and a count that leaves blank lines out."""
    folder = write_task(tmp_path, ["x\ta", "", "y\t"], header="text\tlabel")
    with pytest.raises(UserError, match="line 4 has nothing in the column 'label'"):
        load_task("text", folder)


def test_each_task_has_glue_s_own_metric():
    """Catches a score that cannot be set beside a published one."""
    assert {name: task.metric for name, task in TASKS.items() if task.script == "tasks_glue"
            and task.folder} == {"sst2": "accuracy", "cola": "matthews", "mrpc": "f1",
                                 "rte": "accuracy"}


def test_the_majority_is_that_of_the_training_rows(tmp_path):
    """Catches a floor that has seen the dev labels."""
    train, dev = ["a\tx", "b\tx", "c\ty"], ["a\ty", "b\ty", "c\tx"]
    folder = write_task(tmp_path, train, dev, header="text\tlabel")
    assert load_task("text", folder).floors()["majority"] == pytest.approx(1 / 3)


def test_a_task_of_few_labels_asks_for_few_rows(tmp_path):
    """Catches all rows of a task that is about few of them, and a number of rows that is lost."""
    rows = [f"word{i} of it\t{i % 2}" for i in range(300)]
    write_task(tmp_path / "library", rows, header="text\tlabel")
    assert len(load_task("library", str(tmp_path)).texts) == TASKS["library"].rows == 120
    assert len(load_task("library", str(tmp_path), rows=7).texts) == 7
    assert len(load_task("text", str(tmp_path / "library")).texts) == 300


# ---- choices

def write_choices(folder, rows, floors=None):
    (folder / "halves").mkdir()
    lines = ["right\twrong\tscored", *rows]
    (folder / "halves" / "dev.tsv").write_text("\n".join(lines) + "\n")
    if floors:
        (folder / "halves" / "floors.json").write_text(json.dumps(floors))
    return str(folder)


def test_choices_are_read_with_their_floors(tmp_path):
    """Catches a slice that is read from the wrong end, and a floor that is forgotten."""
    folder = write_choices(tmp_path, ["a b c d\tc d a b\t-2:", "a b c\tb a c\t0:2"],
                           {"bigrams": 0.7})
    data = load_choices("halves", folder)
    assert [row.right[row.scored] for row in data.choices] == [["c", "d"], ["a", "b"]]
    assert [row.wrong[row.scored] for row in data.choices] == [["a", "b"], ["b", "a"]]
    assert data.floors == {"majority": 0.5, "overlap": 0.5, "bigrams": 0.7}


@pytest.mark.parametrize("row, message", [("a b\tb a\t1", "'1' is not a slice of words"),
                                          ("a b\tb a\t", "has nothing in the column 'scored'"),
                                          ("a b\tb a", "line 2 has 2 columns")])
def test_choices_that_cannot_be_read(row, message, tmp_path):
    """Catches a traceback, or a row that is judged by other words than were meant."""
    with pytest.raises(UserError, match=message):
        load_choices("halves", write_choices(tmp_path, [row]))


def test_words_in_common_are_those_outside_the_slice():
    """Catches scored words that are compared with themselves, and a tie that counts as won."""
    shares = Choice("a b a c".split(), "d e a c".split(), slice(2, None))
    assert shared_words([shares]) == 1
    assert shared_words([Choice(shares.wrong, shares.right, shares.scored)]) == 0
    assert shared_words([Choice(["a", "a"], ["a", "a"], slice(0, 2))]) == 0.5
