"""Task files: GLUE's from a mirror of small archives, and the two that are made of pydocs."""
import hashlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

from minibert.errors import UserError

sys.path.insert(0, str(ROOT / "data"))
import tasks_glue  # noqa: E402
import tasks_pydocs  # noqa: E402

from minibert.tasks.tasks import TASKS, load_choices, load_task  # noqa: E402


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder that holds CoLA and MRPC as they are published, two rows each, with their hashes."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    with zipfile.ZipFile(folder / "CoLA.zip", "w") as archive:
        archive.writestr("CoLA/train.tsv", "gj04\t1\t\tOne.\ngj04\t0\t*\tTwo the.\n")
        archive.writestr("CoLA/dev.tsv", "gj04\t1\t\tThree.")
        archive.writestr("CoLA/test.tsv", "unread")
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    (folder / "msr_paraphrase_train.txt").write_text(
        header + "1\t7\t8\tA \"b.\tB.\n0\t7\t9\tC.\tD.\n1\t8\t7\tE.\tF.\n", encoding="utf-8")
    (folder / "mrpc_dev_ids.tsv").write_text("8\t7\n")

    def known(entry, name):
        content = (folder / name).read_bytes()
        return entry[0], len(content), hashlib.sha256(content).hexdigest()

    monkeypatch.setitem(tasks_glue.ARCHIVES, "CoLA", known(tasks_glue.ARCHIVES["CoLA"], "CoLA.zip"))
    monkeypatch.setattr(tasks_glue, "MRPC", known(tasks_glue.MRPC, "msr_paraphrase_train.txt"))
    monkeypatch.setattr(tasks_glue, "MRPC_DEV", known(tasks_glue.MRPC_DEV, "mrpc_dev_ids.tsv"))
    monkeypatch.setenv("MINIBERT_MIRROR", str(folder))
    return folder


def test_archives_become_tasks(mirror, tmp_path):
    """Catches a folder that `load_task` does not find, and members nobody asked for."""
    for name in ("CoLA", "MRPC"):
        tasks_glue.download(name, tmp_path / "tasks")
    data = load_task("cola", str(tmp_path / "tasks"))
    assert data.texts == [("One.",), ("Two the.",)] and data.dev_texts == [("Three.",)]
    assert sorted(path.name for path in (tmp_path / "tasks" / "CoLA").iterdir()) == [
        "dev.tsv", "train.tsv"]
    data = load_task("mrpc", str(tmp_path / "tasks"))
    assert data.texts == [('A "b.', "B."), ("C.", "D.")] and data.dev_texts == [("E.", "F.")]


def test_another_archive_is_not_used(mirror, tmp_path):
    """Catches a download that is not checked."""
    (mirror / "CoLA.zip").write_bytes(b"0" * (mirror / "CoLA.zip").stat().st_size)
    with pytest.raises(UserError, match="SHA-256"):
        tasks_glue.download("CoLA", tmp_path / "tasks")
    assert not list((tmp_path / "tasks" / "CoLA").iterdir())
    with pytest.raises(UserError, match="'SQuAD' is no task"):
        tasks_glue.download("SQuAD", tmp_path / "tasks")


def test_every_glue_task_has_its_archive():
    """Catches a name in one table that the other spells differently."""
    names = {task.folder for task in TASKS.values() if task.script == "tasks_glue" and task.folder}
    assert names == {*tasks_glue.ARCHIVES, "MRPC"}


PAGES = [("p", [f"p{page} {i}" for i in range(page)]) for page in range(1, 9)] + [
    ("q", ["q0 0", "q0 1"]), *(("r", [f"r{page} {i}" for i in range(3)]) for page in range(6))]


SENTENCES = [(package, [f"{package}{page} says {word} at the very end of it."
                        for word in ("one", "two", "three")])
             for package in "pqr" for page in range(5 if package < "r" else 1)]


def test_both_texts_of_word_order_have_the_same_words():
    """Catches a choice that counting words can make, a slice that misses the exchange, and an
    exchange that a capital letter or a full stop would give away."""
    tempting = lambda words: -abs(words.index("at") - 1)  # "at" as far to the left as it can be
    _, *rows = [row.split("\t") for row in tasks_pydocs.word_order(SENTENCES, 12, tempting)]
    assert len(rows) == 11 + 1
    for right, wrong, scored in rows:
        right, wrong = right.split(), wrong.split()
        first, last = map(int, scored.split(":"))
        assert sorted(right) == sorted(wrong) and right != wrong
        assert right[first:last] != wrong[first:last] and last - first == 4
        assert (right[:first + 1], right[last - 1:]) == (wrong[:first + 1], wrong[last - 1:])
        assert wrong[2] == "at"  # the most tempting exchange


def test_both_texts_of_halves_end_alike():
    """Catches a wrong half from another package or from the same sentence, a slice that holds a
    part of the first half, and a package whose only sentence would be paired with itself."""
    _, *rows = [row.split("\t") for row in tasks_pydocs.halves(SENTENCES[:-1], 20)]
    assert len(rows) == 20
    for right, wrong, scored in rows:
        right, wrong, count = right.split(), wrong.split(), -int(scored.rstrip(":"))
        assert right[-count:] == wrong[-count:] and right[:-count] != wrong[:-count]
        assert right[0][0] == wrong[0][0]  # the package
        assert count == len(right) - len(right) // 2
    alone = [("r", ["r0 says one at the very end of it."])]
    assert len(list(tasks_pydocs.halves(alone, 5))) == 1  # the header


def test_bigrams_prefer_what_they_have_seen():
    """Catches a floor of neighbouring words that counts words alone, or reads unscored words."""
    likelihood = tasks_pydocs.bigrams([("p", ["the cat sat on the mat", "the dog sat on a mat"])])
    assert likelihood("The cat sat".split()) > likelihood("the sat cat".split())
    assert likelihood("dog sat on".split()) > likelihood("dog on sat".split())
    rows = ["the cat sat on x y\tthe cat sat on y x\t-4:-2",  # a tie: the slice is the same
            "z z sat on the\tz z on sat the\t2:4"]
    assert tasks_pydocs.bigram_score(rows, likelihood) == 0.75


def test_classes_of_libraries_are_balanced():
    """Catches a majority class that is the largest library, and texts of pages in one block."""
    _, *rows = [row.split("\t") for row in tasks_pydocs.libraries(PAGES, 3, {"p", "r"})]
    assert [row[0] for row in rows] == ["p", "r"] * 3
    assert [row[1] for row in rows if row[0] == "p"] == ["p1 0", "p2 0", "p3 0"]


def test_dev_is_of_documents_that_no_run_trains_on(tmp_path, monkeypatch):
    """Catches a task whose dev texts the encoder has already read while it was pretrained."""
    from minibert.files import corpus
    shutil.copytree(ROOT / "data", tmp_path / "data", ignore=shutil.ignore_patterns(
        "prepared", "tasks", "*.txt", "*.tsv", "__pycache__"))
    pages = [f"page {i} one is a sentence of some words.\npage {i} two is another one of them all."
             for i in range(300)]
    (tmp_path / "data" / "pydocs.txt").write_text("\n\n".join(pages) + "\n")
    (tmp_path / "data" / "pydocs.tsv").write_text(
        "".join(f"{'ab'[i % 2]}\t{i}\n" for i in range(300)))
    shutil.copytree(ROOT / "minibert", tmp_path / "minibert")
    subprocess.run([sys.executable, str(tmp_path / "data" / "tasks_pydocs.py")], check=True,
                   cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    held_out = corpus.held_out_documents(300)
    assert 10 < len(held_out) < 40
    task = load_task("library", str(tmp_path / "data" / "tasks"))
    choices = [one for name in ("word-order", "halves")
               for one in load_choices(name, str(tmp_path / "data" / "tasks")).choices]
    of = lambda words: int(words[1]) in held_out
    assert {of(text.split()) for (text,) in task.texts} == {False}
    assert {of(text.split()) for (text,) in task.dev_texts} == {True}
    assert len(choices) > 40 and {of(one.right) for one in choices} == {True}
