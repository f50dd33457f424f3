"""Tasks: scores by hand, files as they are read, and what needs no model."""
import math

import numpy as np
import pytest

from minibert.errors import UserError
from minibert.files import corpus as corpus_module
from minibert.tasks import tasks as tasks_module
from minibert.tasks.tasks import (TASKS, Choice, bag_of_words, load_choices, load_task, overlaps,
                                  read_task, score, shared_words)

# ---- scores


def test_scores_of_four_rows_by_hand():
    """A score under another's name, or the F1 of the other class, could not be set beside a
    published one. Here one 1 of two is found, and one guess of two is right."""
    guesses, labels = np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])
    assert score("accuracy", guesses, labels) == 0.5
    assert score("f1", guesses, labels) == 0.5  # of precision 1/2 and recall 1/2
    assert score("matthews", guesses, labels) == 0
    guesses = np.array([1, 0, 0, 0])
    assert score("accuracy", guesses, labels) == 0.75
    assert score("f1", guesses, labels) == pytest.approx(2 / 3)  # of precision 1 and recall 1/2
    assert score("matthews", guesses, labels) == pytest.approx(2 / math.sqrt(12))


def test_scores_against_their_definitions():
    """What holds for four rows must hold for two hundred, and for guesses that never change."""
    draw = np.random.default_rng(1)
    guesses, labels = draw.integers(0, 2, 200), draw.integers(0, 2, 200)
    hits = int(((guesses == 1) & (labels == 1)).sum())
    precision, recall = hits / guesses.sum(), hits / labels.sum()
    assert score("f1", guesses, labels) == pytest.approx(
        2 * precision * recall / (precision + recall))
    assert score("matthews", guesses, labels) == pytest.approx(np.corrcoef(guesses, labels)[0, 1])
    assert score("matthews", np.ones(200, int), labels) == 0
    assert score("f1", np.zeros(200, int), np.zeros(200, int)) == 0


def test_each_task_has_the_metric_of_glue():
    """A score of another kind cannot be set beside a published one."""
    assert {name: task.metric for name, task in TASKS.items() if task.script == "tasks_glue"
            and task.folder} == {"sst2": "accuracy", "cola": "matthews", "mrpc": "f1",
                                 "rte": "accuracy"}


# ---- what needs no model


def write_task(folder, train, dev=None, header="text\tlabel"):
    """A task's two files of these lines; by default dev.tsv is train.tsv once more."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("dev", dev or train)):
        (folder / f"{name}.tsv").write_text("\n".join([header, *rows]) + "\n")
    return str(folder)


def test_bag_of_words_by_hand():
    """A floor that is lower than it should be flatters every model. After two good texts and a bad
    one, a text of unseen words is most likely good."""
    texts, labels = [("good film",), ("bad film",), ("good good",)], np.array([1, 0, 1])
    assert bag_of_words(texts, labels, [("good",), ("bad bad",), ("unseen",)]).tolist() == [1, 0, 1]


def test_bag_of_words_against_a_slow_one():
    """Without its smoothing, its word pairs or its prior the floor would be another rule than the
    documents name."""
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


def test_floors_learn_from_the_training_rows_alone(tmp_path):
    """A floor that has seen the answers would be out of every model's reach. Here the dev rows
    contradict the training rows."""
    train, dev = ["good\tx", "bad\ty", "good\tx"], ["good\ty", "bad\tx", "good\ty"]
    floors = load_task("text", write_task(tmp_path, train, dev)).floors()
    assert floors == {"majority": pytest.approx(1 / 3), "bag_of_words": 0}


@pytest.mark.parametrize("same, different", [("1", "0"), ("0", "1")])
def test_overlap_is_a_floor_of_pairs(same, different, tmp_path):
    """Whether two texts share their words is seen by no bag that holds both, so a model could seem
    clever by it; the rule has to know either polarity, for RTE's is the other way round."""
    pairs = "text_a\ttext_b\tlabel"
    assert overlaps([("a b", "B c"), ("a a", "a")]).tolist() == [1 / 3, 1]
    rows = [f"a{i} b{i}\ta{i} c{i}\t{same}" for i in range(20)]
    rows += [f"a{i} b{i}\td{i} e{i}\t{different}" for i in range(10)]
    floors = load_task("pair", write_task(tmp_path, rows, header=pairs)).floors()
    assert floors["majority"] == pytest.approx(2 / 3) and floors["overlap"] == 1
    # The threshold comes from the training rows, so that dev rows of another kind are missed.
    contrary = [f"a b\ta b\t{different}", f"a b\tc d\t{same}"]
    assert load_task("pair", write_task(tmp_path, rows, contrary, pairs)).floors()["overlap"] == 0


def test_overlap_needs_two_answers(tmp_path):
    """A threshold tells two classes apart and no third."""
    rows = ["a\tb\tx", "a\tb\ty", "a\tb\tz"]
    three = write_task(tmp_path, rows, header="text_a\ttext_b\tlabel")
    assert set(load_task("pair", three).floors()) == {"majority", "bag_of_words"}


# ---- files


def test_glue_files_are_read_as_published(tmp_path):
    """Quotes that eat rows, a lost last line or a byte order mark in a column's name would make
    another task of the published one."""
    path = tmp_path / "train.tsv"
    path.write_bytes('\ufeffsentence\tlabel\n"an open quote\t1\nlast line\t0'.encode())
    assert read_task(path, TASKS["sst2"]) == ([('"an open quote',), ("last line",)], ["1", "0"])
    path.write_text("gj04\t1\t\tOur friends.\r\ngj04\t0\t*\tThem they.\r\n")
    assert read_task(path, TASKS["cola"]) == ([("Our friends.",), ("Them they.",)], ["1", "0"])
    path.write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tOne.\tTwo.\n")
    assert read_task(path, TASKS["mrpc"]) == ([("One.", "Two.")], ["1"])


def test_labels_become_numbers_of_classes(tmp_path):
    """If classes were numbered by their place in the file, a classifier's first class would depend
    on its first row; and each label must stay with its text."""
    data = load_task("text", write_task(tmp_path, ["a\tz", "b\tx", "c\ty"], ["d\ty"]))
    assert data.classes == ["x", "y", "z"] and data.texts == [("a",), ("b",), ("c",)]
    assert data.labels.tolist() == [2, 0, 1] and data.dev_labels.tolist() == [1]
    assert data.dev_texts == [("d",)] and data.score(np.array([1])) == 1


def test_first_rows_of_a_task(tmp_path):
    """If a task of few labels took all its rows, counting words would go as far as a model."""
    rows = [f"word{number} of it\t{number % 2}" for number in range(300)]
    write_task(tmp_path / "library", rows)
    assert len(load_task("library", str(tmp_path)).texts) == TASKS["library"].rows == 120
    first = load_task("library", str(tmp_path), rows=7)
    assert first.texts == [(f"word{number} of it",) for number in range(7)]
    assert first.labels.tolist() == [0, 1, 0, 1, 0, 1, 0] and len(first.dev_texts) == 300
    assert len(load_task("text", str(tmp_path / "library")).texts) == 300


def test_a_folder_of_one_task_or_of_several(tmp_path):
    """Whoever has GLUE names its folder, and whoever has a task names the task's."""
    write_task(tmp_path / "SST-2", ["good\t1", "bad\t0"], header="sentence\tlabel")
    for folder in (tmp_path, tmp_path / "SST-2"):
        assert load_task("sst2", str(folder)).texts == [("good",), ("bad",)]
    with pytest.raises(UserError, match="holds neither a folder MRPC nor a train.tsv"):
        load_task("mrpc", str(tmp_path))


def test_missing_tasks_are_made_by_their_script(tmp_path, monkeypatch):
    """A task would be missing, made anew each time, or half there after a failed download."""
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


@pytest.mark.parametrize("train, dev, message", [
    (None, "text\tlabel\na\tb\n", "train.tsv is missing"),
    ("", "", "holds no rows"),
    ("text\tlabel\n", "", "holds no rows"),
    ("text\tlabel\na\tx\0\n", "", "holds a NUL"),
    ("text\tlabel\n\udcff\tx\n", "", "not UTF-8"),
    ("sentence\tlabel\na\tb\n", "", "no column 'text'"),
    ("text\tlabel\na\n", "", "line 2 has 1 columns, the first 2"),
    ("text\tlabel\na\tb\tc\n", "", "line 2 has 3 columns"),
    ("text\tlabel\nx\ta\n\ny\t\n", "", "line 4 has nothing in the column 'label'"),
    ("text\tlabel\n \ta\n", "", "line 2 has nothing in the column 'text'"),
    ("text\tlabel\na\tb\n", "text\tlabel\na\tb\n", "1 different labels; text needs two or more"),
    ("text\tlabel\na\tb\nc\td\n", "text\tlabel\nz\tb\nb\tz\n", "label 'z', which train.tsv lacks;"),
    ("text\tlabel\na\t0.5\nb\t1\nc\t-.25\n", "text\tlabel\na\t1\n", "values and no classes"),
])
def test_files_that_cannot_be_used(train, dev, message, tmp_path):
    """A traceback says little; worse, a score could count labels that were never learned."""
    for name, content in (("train", train), ("dev", dev)):
        if content is not None:
            (tmp_path / f"{name}.tsv").write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=message):
        load_task("text", str(tmp_path))


def test_tasks_that_cannot_be_read(tmp_path):
    """The message has to say what is wrong: a name, a folder, the number of rows, or of classes."""
    with pytest.raises(UserError, match="no task 'poetry'; use sst2.*word-order"):
        load_task("poetry", "")
    with pytest.raises(UserError, match="--task-dir is missing"):
        load_task("text", "")
    folder = write_task(tmp_path, ["a\tx", "b\ty", "c\tz"])
    with pytest.raises(UserError, match="train.tsv lacks in its first 2 rows"):
        load_task("text", folder, rows=2)
    three = ["_\tx\t_\ta", "_\ty\t_\tb", "_\tz\t_\tc"]  # CoLA, which has two classes and no header
    with pytest.raises(UserError, match="3 different labels; cola needs two$"):
        load_task("cola", write_task(tmp_path, three[1:], three[1:], three[0]))


# ---- choices


def test_words_in_common_are_those_outside_the_slice():
    """Scored words that were compared with themselves would make a perfect floor of nothing; the
    right text of the first choice shares a word, the wrong one none."""
    choice = Choice("a b a c".split(), "d e a c".split(), slice(2, None))
    assert shared_words([choice]) == 1
    assert shared_words([Choice(choice.wrong, choice.right, choice.scored)]) == 0
    assert shared_words([Choice(["a", "a"], ["a", "a"], slice(0, 2))]) == 0.5


def write_choices(folder, rows, floors=""):
    (folder / "halves").mkdir()
    (folder / "halves" / "dev.tsv").write_text("\n".join(["right\twrong\tscored", *rows]) + "\n")
    if floors:
        (folder / "halves" / "floors.json").write_text(floors)
    return str(folder)


def test_choices_are_read_with_their_floors(tmp_path):
    """A slice that is read from the wrong end would ask about other words; and a choice means
    little without the rules that make it, too."""
    folder = write_choices(tmp_path, ["a b c d\tc d a b\t-2:", "a b c\tb a c\t0:2"],
                           '{"bigrams": 0.7}')
    data = load_choices("halves", folder)
    assert [choice.right[choice.scored] for choice in data.choices] == [["c", "d"], ["a", "b"]]
    assert [choice.wrong[choice.scored] for choice in data.choices] == [["a", "b"], ["b", "a"]]
    assert data.floors == {"majority": 0.5, "overlap": 0.5, "bigrams": 0.7}


@pytest.mark.parametrize("row, floors, message", [
    ("a b\tb a\t1", "", "'1' is not a slice of words"),
    ("a b\tb a\t", "", "has nothing in the column 'scored'"),
    ("a b\tb a", "", "line 2 has 2 columns"), ("a b\tb a\t0:", "{", "floors.json is broken")])
def test_choices_that_cannot_be_read(row, floors, message, tmp_path):
    """A traceback says little; worse, a row could be judged by other words than were meant."""
    with pytest.raises(UserError, match=message):
        load_choices("halves", write_choices(tmp_path, [row], floors))
