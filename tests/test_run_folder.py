"""Run folders: who may write there, what a kill or a power cut leaves, what is no run folder."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import BUDGET, TOY

from minibert.config import RunConfig
from minibert.errors import UserError, run_cli
from minibert.files.hub import load_pretrained, save_pretrained
from minibert.files.run_folder import open_run, write_json

METADATA = {"corpus_fingerprint": "a text", "model": {"hidden_size": 16}}


@pytest.fixture
def run(tmp_path):
    return RunConfig(out=str(tmp_path / "run"))


@pytest.fixture
def out(run, tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_the_lock_comes_before_the_first_file(run, out):
    """Catches two runs started in the same instant that write one run.json: the one that has the
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
    """Catches a second process that waited for nothing: it saw no metrics.json before the lock, and
    trains the finished run again."""
    open_run(run, METADATA).close()
    write_json(out / "metrics.json", {})
    with pytest.raises(SystemExit) as ended:
        open_run(run, METADATA)
    assert not ended.value.code and "nothing to do" in capsys.readouterr().out


def test_killed_while_the_first_file_is_written(run, out):
    """Catches a folder that belongs to nobody for ever after: half a run.json is no stranger's."""
    (out / "run.json.part").write_text('{"setti')
    (out / ".lock").touch()
    open_run(run, METADATA).close()
    assert json.loads((out / "run.json").read_text())["model"] == METADATA["model"]
    assert names(out) == {".lock", "run.json"}


@pytest.mark.parametrize("content", ["[]", "null", "7", "{", '{"settings": []}'])
def test_settings_that_are_none(run, out, content):
    """Catches a traceback on a run.json that was written by something else."""
    (out / "run.json").write_text(content)
    with pytest.raises(UserError, match="make its folder again|another --out"):
        open_run(run, METADATA)


@pytest.mark.parametrize("path", ["/proc/x", "x" * 300])
def test_folders_that_cannot_be_made(path, capsys):
    """Catches a traceback where the system refuses a path for a reason of its own."""
    with pytest.raises(SystemExit, match="2"):
        run_cli(lambda: open_run(RunConfig(out=path), METADATA))
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}") and "name another path" in line


def test_nothing_is_finished_before_it_is_on_the_disk(toy_text, tmp_path, run_script, monkeypatch):
    """Catches a power cut that leaves a metrics.json beside weights that are not there, a prepared
    corpus without its tokens, or a checkpoint whose log is lost: what counts as done has to be on
    the disk, and what it stands in for is deleted later."""
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
        found = synced.get(path.stat().st_ino)
        return found == what(path) or (without and {*found} == {*what(path)} - {without})

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
    """Catches a teacher that was trained again in the same folder, whose student counts as finished
    or goes on; and a student that does not know its teacher in another folder."""
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
