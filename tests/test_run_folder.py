"""Run folders: who may write there, what a kill or a power cut leaves, what is no run folder."""
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import BUDGET, TOY

from minibert.config import RunConfig
from minibert.errors import UserError, run_cli
from minibert.files import run_folder
from minibert.files.hub import load_pretrained, save_pretrained
from minibert.files.run_folder import atomic_write, finished, open_run, write_json

METADATA = {"corpus_fingerprint": "a text", "model": {"hidden_size": 16}}


@pytest.fixture
def out(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def run(out):
    return RunConfig(out=str(out))


def names(folder):
    return {path.name for path in folder.iterdir()}


# By hand.


def test_a_folder_from_its_first_file_to_its_last(run, out, capsys):
    """A second `make all` would train again, or write over a run that had other settings. Where a
    run lies and which device it has is none of them."""
    shutil.rmtree(out)
    assert not finished(run, METADATA)
    open_run(run, METADATA).close()
    content = json.loads((out / "run.json").read_text())
    assert content["settings"] == dataclasses.asdict(run) and METADATA.items() <= content.items()
    open_run(run, METADATA).close()  # it was stopped, and goes on
    write_json(out / "metrics.json", {})
    capsys.readouterr()
    assert finished(dataclasses.replace(run, device="cpu"), METADATA)
    assert "nothing to do" in capsys.readouterr().out
    for other, metadata in ((dataclasses.replace(run, seed=1), METADATA),
                            (run, METADATA | {"corpus_fingerprint": "another"}),
                            (run, METADATA | {"model": {"hidden_size": 32}})):
        with pytest.raises(UserError, match="with (seed 0, not 1|corpus_finger|hidden_size 16)"):
            finished(other, metadata)
    assert json.loads((out / "run.json").read_text()) == content


def test_a_file_is_whole_or_not_there(tmp_path):
    """A reader, or a resume, would get half a file. An error may come from torch, whose writer
    hides that the disk was full."""
    path = tmp_path / "file"
    with atomic_write(path) as aside:
        aside.write_text("old")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), atomic_write(path) as aside:
        aside.write_text("ne")
        assert path.read_text() == "old" and 1 / 0
    assert path.read_text() == "old" and names(tmp_path) == {"file"}

    class FullDisk:
        room = 2000

        def write(self, block):
            self.room -= len(block)
            if self.room < 0:
                raise OSError(28, "No space left on device")
            return len(block)

        def flush(self):
            pass

    with pytest.raises(OSError, match="No space"), atomic_write(path):
        torch.save({"weight": torch.zeros(1000)}, FullDisk())
    assert names(tmp_path) == {"file"}


# What always holds.


def test_the_lock_comes_before_the_first_file(run, out):
    """Two runs that are started in the same instant would write one run.json: the one that has the
    lock has written nothing yet, and the other has to end in one line."""
    program = ("import fcntl, sys; lock = open(sys.argv[1], 'w');"
               "fcntl.lockf(lock, fcntl.LOCK_EX); print('locked', flush=True); sys.stdin.read()")
    first = subprocess.Popen([sys.executable, "-c", program, out / ".lock"], text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout.readline() == "locked\n"
    try:
        with pytest.raises(UserError, match="another process is training"):
            open_run(run, METADATA)
        assert names(out) == {".lock"}
    finally:
        first.communicate("")
    open_run(run, METADATA).close()
    assert names(out) == {".lock", "run.json"}


def test_a_run_that_another_process_has_just_finished(run, out, capsys):
    """A second process, which saw no metrics.json before it had the lock, would train the finished
    run again."""
    open_run(run, METADATA).close()
    write_json(out / "metrics.json", {})
    with pytest.raises(SystemExit) as ended:
        open_run(run, METADATA)
    assert not ended.value.code and "nothing to do" in capsys.readouterr().out


def test_edited_code_is_not_passed_off_as_the_same(run, out, capsys, monkeypatch):
    """Whoever tries an idea by editing the code would get the old run's result, without a word."""
    open_run(run, METADATA).close()
    open_run(run, METADATA).close()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(run_folder, "code", lambda: "0123456789ab")
    open_run(run, METADATA).close()
    assert "changed since" in capsys.readouterr().err
    write_json(out / "metrics.json", {})
    assert finished(run, METADATA) and "changed since" in capsys.readouterr().err


def test_code_is_what_pretrains(tmp_path, monkeypatch):
    """An edit of a loss that goes unnoticed would mix two experiments; one of a table or of a task
    would throw away all runs."""
    for name in ("train_bert.py", "distill.py", "finetune.py", "minibert/losses.py",
                 "minibert/files/hub.py", "minibert/tools/table.py", "tests/test_losses.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.setattr(run_folder, "ROOT", tmp_path)
    changed, before = set(), run_folder.code()
    for path in tmp_path.rglob("*.py"):
        path.write_text("# edited")
        if run_folder.code() != before:
            changed.add(path.name)
        before = run_folder.code()
    assert changed == {"train_bert.py", "distill.py", "losses.py", "hub.py"}


def test_nothing_is_finished_before_it_is_on_the_disk(toy_text, tmp_path, run_script, monkeypatch):
    """A power cut would leave a metrics.json beside weights that are not there, a prepared corpus
    without its tokens, or a checkpoint whose log is lost: what counts as done has to be on the
    disk, and what it stands in for is deleted later."""
    synced, seen = {}, []  # by file: what it was when it was synced, which a power cut leaves
    fsync, replace, rename, unlink = os.fsync, os.replace, Path.rename, Path.unlink

    def what(file):
        about = os.stat(file)
        return (about.st_ino, about.st_size, about.st_mtime_ns) if os.path.isfile(file) \
            else (about.st_ino, *sorted(os.listdir(file)))

    def note_fsync(number):
        fsync(number)
        synced[os.fstat(number).st_ino] = what(number)

    def is_safe(path, without=""):
        known = synced.get(path.stat().st_ino)
        return known == what(path) or (without and {*known} == {*what(path)} - {without})

    def note_replace(source, target):
        target = Path(target)
        assert is_safe(Path(source)), f"{target} would be empty"
        if target.name == "metrics.json":
            assert is_safe(target.parent, without="metrics.json.part")
            for path in target.parent.rglob("*"):
                assert is_safe(path), f"{path} would not be there"
        elif target.name == "checkpoint.pt":
            assert is_safe(target.with_name("log.jsonl"))
        seen.append(target.name)
        replace(source, target)

    def note_rename(source, target):
        assert all(map(is_safe, [source, *source.iterdir()])), [*source.iterdir()]
        seen.append(target.parent.name)
        return rename(source, target)

    def note_unlink(path, **options):
        if path.name == "checkpoint.pt":
            assert "metrics.json" in synced[path.parent.stat().st_ino]
            seen.append("deleted")
        unlink(path, **options)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(Path, "rename", note_rename)
    monkeypatch.setattr(Path, "unlink", note_unlink)
    monkeypatch.setenv("MINIBERT_PREPARED", str(tmp_path / "prepared"))
    run_script("train_bert", *BUDGET, *TOY, "--corpus", toy_text, "--out", tmp_path / "run")
    assert [seen[0], *seen[-2:]] == ["prepared", "metrics.json", "deleted"]
    assert seen.count("metrics.json") == 1 and seen.count("checkpoint.pt") == 3


@pytest.fixture
def distill(toy_text, tmp_path, run_script):
    """A function that distils for a step, from a teacher that it trains when there is none."""
    def distill(teacher="teacher"):
        flags = [*BUDGET, "--steps", 1, "--corpus", toy_text]
        if not (tmp_path / "teacher").exists():
            run_script("train_bert", *flags, *TOY, "--out", tmp_path / "teacher")
        run_script("distill", *flags, "--teacher", tmp_path / teacher, "--out",
                   tmp_path / "student")
    return distill


def test_a_student_knows_its_teacher_by_its_weights(distill, tmp_path, capsys):
    """The student of a teacher that was trained again in the same folder would count as finished,
    or go on; and one whose teacher was moved would not know it any more."""
    distill()
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "teacher")
    capsys.readouterr()
    distill("elsewhere")
    assert "nothing to do" in capsys.readouterr().out
    model, tokenizer = load_pretrained(tmp_path / "teacher")
    with torch.no_grad():
        model.decoder_bias += 1
    save_pretrained(model, tokenizer, tmp_path / "teacher")
    for file in ("pytorch_model.bin", "metrics.json"):  # as finished, and as half done
        with pytest.raises(UserError, match="a run with teacher_weights '"):
            distill()
        (tmp_path / "student" / file).unlink()


# Corner cases.


@pytest.mark.parametrize("room", [500, 20_000], ids=["for a tokenizer", "for a checkpoint"])
def test_disk_full(room, toy_text, tmp_path, run_script, monkeypatch, capsys):
    """Half a checkpoint or half a corpus would be taken for whole ones when there is room again."""
    monkeypatch.setenv("MINIBERT_PREPARED", str(tmp_path / "prepared"))
    train = lambda: run_script("train_bert", *BUDGET, *TOY, "--corpus", toy_text, "--out",
                               tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(SystemExit, match="2"):
            run_cli(train)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no room is left")
    assert not list((tmp_path / "run").glob("checkpoint*"))
    train()


def test_killed_while_the_first_file_is_written(run, out):
    """Half a run.json is no stranger's: the folder would belong to nobody for ever after."""
    (out / "run.json.part").write_text('{"setti')
    (out / ".lock").touch()
    open_run(run, METADATA).close()
    assert json.loads((out / "run.json").read_text())["model"] == METADATA["model"]
    assert names(out) == {".lock", "run.json"}


def test_a_folder_that_is_no_run_is_left_alone(run, out):
    """A run would write into somebody's documents."""
    (out / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not a run's folder"):
        open_run(run, METADATA)
    assert names(out) == {"letter.txt"}


@pytest.mark.parametrize("content", ["[]", "null", "{", '{"settings": []}'])
def test_settings_that_are_none(run, out, content):
    """A run.json that was written by something else would end in a traceback."""
    (out / "run.json").write_text(content)
    with pytest.raises(UserError, match="make its folder again|another --out"):
        open_run(run, METADATA)


@pytest.mark.parametrize("path", ["/proc/x", "x" * 300])
def test_folders_that_cannot_be_made(path, capsys):
    """Where the system refuses a path for a reason of its own, there would be a traceback."""
    with pytest.raises(SystemExit, match="2"):
        run_cli(lambda: open_run(RunConfig(out=path), METADATA))
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}") and "name another path" in line
