"""Tasks of single texts or pairs: where they are, how they are read and scored, and their floors.

A score means something only beside what needs no model: the most frequent answer, and a
classifier that counts words. N rows, C classes.
"""
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minibert.errors import UserError
from minibert.files.corpus import DATA, run_data_script
from minibert.files.run_folder import read_json


@dataclass(frozen=True)
class Task:
    """Where a task's texts and labels stand in its train.tsv and dev.tsv, and how it is scored."""
    texts: tuple[str, ...]  # names of columns, or numbers where the file has no header
    label: str
    metric: str = "accuracy"
    header: bool = True
    folder: str = ""  # its name in GLUE's layout, inside --task-dir or data/tasks
    script: str = "tasks_glue"  # what makes that folder, in data/
    rows: int = 0  # of train.tsv that are used unless other numbers are asked for; 0: all
    epochs: int = 3  # passes over them; few rows want many


TASKS = {
    "sst2": Task(("sentence",), "label", folder="SST-2"),
    "cola": Task(("3",), "1", "matthews", header=False, folder="CoLA"),
    "mrpc": Task(("#1 String", "#2 String"), "Quality", "f1", folder="MRPC"),
    "rte": Task(("sentence1", "sentence2"), "label", folder="RTE"),
    # With 120 labels a model has to know words that it has never seen a label for: that is what
    # pretraining is worth. With all 3,000, counting words goes nearly as far.
    "library": Task(("text",), "label", folder="library", script="tasks_pydocs", rows=120,
                    epochs=60),
    "text": Task(("text",), "label"),  # a task of one's own, with these columns
    "pair": Task(("text_a", "text_b"), "label"),
}
# Tasks that need no labels and no fine-tuning, see zero_shot.py.
CHOICES = {name: Task(("right", "wrong"), "scored", folder=name, script="tasks_pydocs")
           for name in ("word-order", "halves")}
# The rules that need no model, by their names in metrics.json.
FLOORS = {"majority": "majority", "bag_of_words": "bag of words", "overlap": "word overlap",
          "bigrams": "pairs of words"}


@dataclass(frozen=True)
class Choice:
    """Two texts as words, and which of their words are to be judged."""
    right: list[str]
    wrong: list[str]
    scored: slice


@dataclass(frozen=True)
class ChoiceData:
    """The choices of a task, and the scores that need no model of the whole text."""
    name: str
    choices: list[Choice]
    floors: dict[str, float]


@dataclass(frozen=True)
class TaskData:
    """A task's rows; labels are numbers of classes, (N,) int64."""
    name: str
    classes: list[str]
    texts: list[tuple[str, ...]]
    labels: np.ndarray
    dev_texts: list[tuple[str, ...]]
    dev_labels: np.ndarray

    @property
    def metric(self) -> str:
        """accuracy, f1 or matthews."""
        return TASKS[self.name].metric

    def score(self, guesses: np.ndarray) -> float:
        """How good guesses for the dev rows are, (N,) as the labels are."""
        return score(self.metric, guesses, self.dev_labels)

    def floors(self) -> dict[str, float]:
        """The scores of the most frequent answer and of words without order; no value is NaN.

        overlap where there are pairs and two classes.
        """
        most = np.full(len(self.dev_labels), np.bincount(self.labels).argmax())
        floors = {"majority": self.score(most), "bag_of_words": self.score(
            bag_of_words(self.texts, self.labels, self.dev_texts))}
        if len(self.texts[0]) == len(self.classes) == 2:
            shared = overlaps(self.texts)
            rules = [(cut, above) for cut in np.unique(shared) for above in (False, True)]
            cut, above = max(rules, key=lambda rule: score(
                self.metric, (shared > rule[0]) == rule[1], self.labels))
            floors["overlap"] = self.score((overlaps(self.dev_texts) > cut) == above)
        return floors


def load_choices(name: str, task_dir: str) -> ChoiceData:
    """Read a task of choices from task_dir or, where that is "", from data/tasks.

    Its dev.tsv has the columns right, wrong and scored, a slice of the words such as 2:6 or -4:.
    Raises UserError when a file cannot be used.
    """
    folder = _folder(CHOICES[name], task_dir, "dev.tsv")
    texts, slices = read_task(folder / "dev.tsv", CHOICES[name])
    choices = []
    for (right, wrong), scored in zip(texts, slices):
        if not re.fullmatch(r"-?\d*:-?\d*", scored):
            raise UserError(f"{folder}/dev.tsv: {scored!r} is not a slice of words; write one such "
                            "as 2:6 or -4:")
        first, last = (int(part) if part else None for part in scored.split(":"))
        choices.append(Choice(right.split(), wrong.split(), slice(first, last)))
    floors = {"majority": 0.5, "overlap": shared_words(choices)}
    if (folder / "floors.json").exists():
        floors |= read_json(folder / "floors.json", "is missing")
    return ChoiceData(name, choices, floors)


def shared_words(choices: list[Choice]) -> float:
    """Return how often the right text's scored words occur more often among its other words.

    >>> shared_words([Choice("the fox and the".split(), "a cat and the".split(), slice(2, None))])
    1.0
    """
    def shared(words: list[str], scored: slice) -> int:
        wanted = range(len(words))[scored]
        others = {word.lower() for i, word in enumerate(words) if i not in wanted}
        return sum(words[i].lower() in others for i in wanted)

    counts = [(shared(choice.right, choice.scored), shared(choice.wrong, choice.scored))
              for choice in choices]
    return sum((right > wrong) + 0.5 * (right == wrong) for right, wrong in counts) / len(counts)


def load_task(name: str, task_dir: str, rows: int = 0) -> TaskData:
    """Read a task from task_dir or, where that is "", from data/tasks, made or downloaded there.

    rows: how many of train.tsv to use; 0: as many as the task asks for. Raises UserError when
    there is no such task, and when a file cannot be used.
    """
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}; use {', '.join([*TASKS, *CHOICES])}")
    task = TASKS[name]
    folder = _folder(task, task_dir, "train.tsv")
    texts, labels = read_task(folder / "train.tsv", task)
    rows = rows or task.rows
    texts, labels = texts[:rows or None], labels[:rows or None]
    dev_texts, dev_labels = read_task(folder / "dev.tsv", task)
    classes = sorted(set(labels))
    numbers = all(re.fullmatch(r"[-+]?\d*\.?\d+", name) for name in classes)
    if numbers and (values := [name for name in classes if float(name) % 1]):
        raise UserError(f"{folder}/train.tsv has labels such as {values[0]}, which are values and "
                        "no classes; name the classes in words")
    if unseen := sorted(set(dev_labels) - set(classes)):
        raise UserError(f"{folder}/dev.tsv has the label {unseen[0]!r}, which "
                        f"train.tsv {f'lacks in its first {rows} rows' if rows else 'lacks'}; "
                        "give both the same")
    if len(classes) < 2 or (task.metric != "accuracy" and len(classes) > 2):
        raise UserError(f"{folder}/train.tsv has {len(classes)} different labels; {name} "
                        f"needs two{' or more' * (task.metric == 'accuracy')}")
    return TaskData(name, classes, texts, np.array([classes.index(label) for label in labels]),
                    dev_texts, np.array([classes.index(label) for label in dev_labels]))


def _folder(task: Task, task_dir: str, file: str) -> Path:
    """The folder of a task's files, made or downloaded if it is ours and lacks `file`."""
    if task_dir:  # the task's own folder, or one that holds it beside others
        inside = Path(task_dir) / task.folder
        if inside.is_dir() or not task.folder:
            return inside
        if not (Path(task_dir) / file).exists():
            raise UserError(f"{task_dir} holds neither a folder {task.folder} nor a {file}; "
                            "name one that does with --task-dir")
        return Path(task_dir)
    if not task.folder:
        raise UserError("--task-dir is missing; name the folder with the task's train.tsv and "
                        "dev.tsv")
    folder = DATA / "tasks" / task.folder
    if not (folder / file).exists():
        run_data_script(task.script, task.folder)
    return folder


def read_task(path: Path, task: Task) -> tuple[list[tuple[str, ...]], list[str]]:
    """Texts and labels of a tab-separated file; quotes are text, as in GLUE.

    Raises UserError when the file is missing, empty, not UTF-8, holds a NUL or lacks a column.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; name the folder that holds it with --task-dir") \
            from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}); convert it first") from None
    if any("\0" in line for line in lines):
        raise UserError(f"{path} holds a NUL, as a binary file or UTF-16 does; convert it to UTF-8")
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    rows = [lines[number - 1].rstrip("\r").split("\t") for number in numbers]
    if len(rows) <= task.header:
        raise UserError(f"{path} holds no rows; give it some")
    names = rows[0] if task.header else [str(column) for column in range(len(rows[0]))]
    wanted = (*task.texts, task.label)
    if missing := [name for name in wanted if name not in names]:
        raise UserError(f"{path} has no column {missing[0]!r}; it has {', '.join(names)}")
    columns = [names.index(name) for name in wanted]
    for number, row in zip(numbers, rows):
        if len(row) != len(rows[0]):  # a stray tab would put a word where the label should be
            raise UserError(f"{path}: line {number} has {len(row)} columns, the first "
                            f"{len(rows[0])}; separate them by single tabs")
        if empty := [name for name, column in zip(wanted, columns) if not row[column].strip()]:
            raise UserError(f"{path}: line {number} has nothing in the column {empty[0]!r}; fill "
                            "it, or remove the line")
    cells = [[row[column] for column in columns] for row in rows[task.header:]]
    return [tuple(row[:-1]) for row in cells], [row[-1] for row in cells]


def score(metric: str, guesses: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy, F1 of class 1, or Matthews' correlation of two classes; all (N,) int64.

    A correlation with what does not vary counts as 0.
    >>> guesses, labels = np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])
    >>> [round(score(metric, guesses, labels), 3) for metric in ("accuracy", "f1", "matthews")]
    [0.75, 0.667, 0.577]
    """
    if metric == "accuracy":
        return float((guesses == labels).mean())
    if metric == "f1":
        return 2 * int((guesses & labels).sum()) / max(1, int(guesses.sum() + labels.sum()))
    # Matthews' correlation of two classes is Pearson's of 0 and 1.
    a, b = guesses - guesses.mean(), labels - labels.mean()
    spread = ((a @ a) * (b @ b)) ** 0.5
    return float(a @ b / spread) if spread else 0.0


def bag_of_words(texts: list[tuple[str, ...]], labels: np.ndarray,
                 tests: list[tuple[str, ...]]) -> np.ndarray:
    """The floor: naive Bayes on words and word pairs, in no order (labels 0..C-1); (tests,)."""
    def grams(row: tuple[str, ...]) -> list[str]:
        words = " ".join(row).lower().split()
        return words + [f"{a} {b}" for a, b in zip(words, words[1:])]

    counts = [Counter() for _ in range(labels.max() + 1)]
    for row, label in zip(texts, labels):
        counts[label].update(grams(row))
    known = set().union(*counts)
    totals = [sum(count.values()) + len(known) for count in counts]
    prior = np.log(np.bincount(labels) / len(labels))
    return np.array([np.argmax([prior[c] + sum(np.log((counts[c][g] + 1) / totals[c])
                                               for g in grams(row) if g in known)
                                for c in range(len(counts))]) for row in tests])


def overlaps(pairs: list[tuple[str, ...]]) -> np.ndarray:
    """The share of two texts' words that both have, for each pair; (N,).

    >>> overlaps([("the red fox", "The fox"), ("a", "b")])
    array([0.66666667, 0.        ])
    """
    words = [[set(text.lower().split()) for text in pair] for pair in pairs]
    return np.array([len(a & b) / max(1, len(a | b)) for a, b in words])
