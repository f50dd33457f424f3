"""`make faults`: training in two processes that is stopped, and goes on."""
import os
import resource
import signal
import subprocess
import sys
import time

from conftest import ROOT, assert_one_error_line, finish, weights
from test_distributed import assert_same, flags_of, start_two


def start(script, *flags):
    """Start a script in two processes, which torchrun looks after."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(ROOT / f"{script}.py"), *flags_of(script, *flags)]
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def test_two_processes_stop_and_go_on(toy_text, tmp_path, run_script):
    """Catches processes that stop at different steps, and a resume that only the first one makes:
    the run is stopped by SIGTERM, goes on in two processes, and ends as one that was not stopped.
    """
    flags = ["--steps", "60", "--checkpoint-every", "9"]
    teacher = tmp_path / "teacher"
    run_script("train_roberta", *flags_of("train_roberta", teacher, toy_text))
    taught = [*flags, "--teacher", str(teacher)]
    stopped = start("distill", tmp_path / "two", toy_text, *taught)
    while not (tmp_path / "two" / "checkpoint.pt").exists():
        assert stopped.poll() is None
        time.sleep(0.02)
    os.killpg(stopped.pid, signal.SIGTERM)
    assert "stopped at step" in stopped.communicate(timeout=60)[1]
    assert "continues at step" in finish(start("distill", tmp_path / "two", toy_text, *taught))
    run_script("distill", *flags_of("distill", tmp_path / "one", toy_text, *taught))
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_first_process_ends_the_other(toy_text, tmp_path):
    """Catches a process that waits for one that has ended in an error, here because the folder
    holds something else: both end at once, each with one line."""
    (tmp_path / "letter.txt").write_text("dear")
    first, second = start_two("train_roberta", *flags_of("train_roberta", tmp_path, toy_text))
    assert_one_error_line(first, "not a run's folder")
    assert_one_error_line(second, "another process has ended")


def test_first_process_ends_the_other_while_training(toy_text, tmp_path):
    """Catches the same when only the first process has something to do: it runs out of room for
    its first checkpoint, at step 4."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # inherited: the write fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        first, second = start_two("train_roberta",
                                  *flags_of("train_roberta", tmp_path / "run", toy_text))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert_one_error_line(first, "no room is left")
    assert_one_error_line(second, "another process has ended")


def test_a_stop_is_agreed_at_once(toy_text, tmp_path):
    """Catches processes that ask each other only when they log, which may be later than the 30
    seconds that torchrun gives them: here they log never."""
    flags = ["--steps", "100000", "--log-every", "100000", "--eval-every", "100000",
             "--checkpoint-every", "20"]
    run = start("train_roberta", tmp_path / "run", toy_text, *flags)
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert run.poll() is None
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGTERM)
    assert "stopped at step" in run.communicate(timeout=25)[1]
