"""`make faults`: real processes that are killed, starved and crossed; ten minutes of them."""
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import BUDGET, ROOT, TOY, assert_one_error_line, assert_same_run, finish, start_script

BUDGET = [*BUDGET[:5], "200", *BUDGET[6:-2], "--checkpoint-every", "3"]


def wait_for(there, process):
    """Until there() is true, or the process has ended; whether it was true in time."""
    deadline = time.monotonic() + 60
    while not there():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return True


def test_killed_at_twenty_moments(toy_text, tmp_path):
    """Catches a checkpoint that is seen half written, and steps done twice or never: SIGKILL at 20
    moments, every other one while a checkpoint is being written; the run ends bit for bit as one
    that nobody killed, with the same log."""
    flags = [*BUDGET, *TOY, "--corpus", toy_text]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start_script("train_roberta", *flags, "--out", whole))
    draw, kills, writing = random.Random(0), 0, 0
    while kills < 20:
        before = json.loads(tail)["step"] if (tail := last_line(killed / "log.jsonl")) else 0
        process = start_script("train_roberta", *flags, "--out", killed)
        # It trains when its log is new, or longer than it was.
        log_file, part = killed / "log.jsonl", killed / "checkpoint.pt.part"
        trains = lambda: (tail := last_line(log_file)) and json.loads(tail)["step"] != before
        if not wait_for(part.exists if kills % 2 else trains, process):
            break
        if not kills % 2:
            time.sleep(draw.uniform(0, 0.03))
        process.kill()
        process.communicate()
        writing += part.exists()
        kills += 1
    assert kills >= 20 and writing >= 3, (kills, writing)
    assert "continues at step" in finish(start_script("train_roberta", *flags, "--out", killed))
    assert_same_run(killed, whole)
    assert not list(killed.glob("*.part"))


def last_line(path):
    """The last whole line of a file, "" where there is none."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return lines[-1] if lines else ""


def test_two_processes_on_one_folder(toy_text, tmp_path):
    """Catches two processes that write one log: the second ends in one line, the first goes on."""
    flags = [*BUDGET, *TOY, "--corpus", toy_text, "--out", tmp_path / "run"]
    first = start_script("train_roberta", *flags)
    assert wait_for((tmp_path / "run" / "log.jsonl").exists, first)
    os.kill(first.pid, signal.SIGSTOP)  # so that it has not ended before the second begins
    second = start_script("train_roberta", *flags)
    assert_one_error_line(second, "another process is training in", "--out")
    os.kill(first.pid, signal.SIGCONT)
    finish(first)
    alone = [*flags[:-1], tmp_path / "alone"]
    finish(start_script("train_roberta", *alone))
    assert_same_run(tmp_path / "run", tmp_path / "alone")


def test_text_that_changes_between_kill_and_resume(toy_text, tmp_path):
    """Catches a run that goes on with another text."""
    text = tmp_path / "text.txt"
    shutil.copy(toy_text, text)
    flags = [*BUDGET, *TOY, "--corpus", text, "--out", tmp_path / "run"]
    process = start_script("train_roberta", *flags)
    assert wait_for((tmp_path / "run" / "checkpoint.pt").exists, process)
    process.kill()
    process.communicate()
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    text.write_text(toy_text.read_text() + "\n\nda de di.\n")
    assert_one_error_line(start_script("train_roberta", *flags), "corpus", "another --out")
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    shutil.copy(toy_text, text)
    finish(start_script("train_roberta", *flags))


def no_superuser():
    """Let even root be refused what the permissions of a file refuse, from the next program on."""
    for capability in (1, 2):  # to write, and to read, where permissions say no
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def test_run_folder_that_cannot_be_written(toy_text, tmp_path):
    """Catches a traceback where a folder is somebody else's, or read-only: before a run and in
    the middle of one, which goes on when the folder can be written again."""
    flags = [*map(str, [*BUDGET, *TOY, "--corpus", toy_text, "--out"])]
    start = lambda out: subprocess.Popen(
        [sys.executable, str(ROOT / "train_roberta.py"), *flags, str(out)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=no_superuser,
        env={**os.environ, "PYTHONPATH": str(ROOT)})
    locked, run = tmp_path / "locked", tmp_path / "run"
    locked.mkdir(mode=0o555)
    assert_one_error_line(start(locked / "run"), "locked", "permissions")
    process = start(run)
    assert wait_for((run / "checkpoint.pt").exists, process)
    run.chmod(0o555)
    assert_one_error_line(process, "run", "permissions")
    assert_one_error_line(start(run), "run", "permissions")
    run.chmod(0o755)
    assert "continues at step" in finish(start(run))
    finish(start(tmp_path / "whole"))
    assert_same_run(run, tmp_path / "whole")


def test_clock_that_goes_backwards(toy_text, tmp_path):
    """Catches a step, a log line or a checkpoint that follows the wall clock: it jumps back by an
    hour at every look. Seconds are measured by the other clock, which cannot."""
    program = ("import sys, time, itertools, runpy; hours = itertools.count();"
               "time.time = lambda: 1e9 - 3600.0 * next(hours); sys.argv = sys.argv[1:];"
               "runpy.run_path(sys.argv[0], run_name='__main__')")
    flags = [*map(str, [*BUDGET, *TOY, "--corpus", toy_text, "--out"])]
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(ROOT / "train_roberta.py"), *flags,
         str(tmp_path / "back")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)})
    finish(process)
    finish(start_script("train_roberta", *flags, tmp_path / "straight"))
    assert_same_run(tmp_path / "back", tmp_path / "straight")
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "back" / "log.jsonl").open()
               if "seconds" in line]
    assert seconds == sorted(seconds) and seconds[0] > 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_make_all_is_stopped_in_every_phase(sent, toy_text, tmp_path):
    """Catches a phase of `make all` that a signal breaks for good: it is stopped while it prepares
    the text, trains, judges and writes, and then ends as if it had not been."""
    copy = tmp_path / "project"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.splitlines()
    for file in files:
        if not file.startswith("results/"):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, copy / file)
    text = tmp_path / "long.txt"  # long enough to be caught while it is prepared
    text.write_text("\n\n".join([toy_text.read_text()] * 200), encoding="utf-8")
    prepared = tmp_path / "prepared"
    environment = {**os.environ, "MINIBERT_PREPARED": str(prepared), "OMP_NUM_THREADS": "1"}
    command = ["make", "all", f"PY={sys.executable}", f"CORPUS={text}", "PRESET=tiny", "NAME=stop",
               "JOBS=2", "CLAIMS=--only kl,masking --seeds 2 --tokens 8000 --vocab-size 70"]
    results = copy / "results" / "stop" / "results.json"
    runs = copy / "runs" / "stop"
    phases = {"start": lambda: True,
              "prepare": lambda: prepared.exists() and any(prepared.iterdir()),
              "train": lambda: any(runs.glob("*/log.jsonl")),
              "train on": lambda: any(runs.glob("*/metrics.json")),
              "judge": lambda: len(list(runs.glob("*/metrics.json"))) == 6}
    for name, reached in phases.items():
        process = subprocess.Popen(command, cwd=copy, env=environment, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   start_new_session=True)
        assert wait_for(reached, process), (name, process.communicate())
        os.killpg(process.pid, sent)
        out, err = process.communicate(timeout=60)
        assert process.returncode, name
        if sent != signal.SIGKILL and name != "start":
            assert "Traceback" not in err, (name, err)
    assert not results.exists() or json.loads(results.read_text())
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "masking" in done.stdout, done.stderr
    again = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and "runs done" not in again.stdout
    assert len(json.loads(results.read_text())["claims"]) == 2
