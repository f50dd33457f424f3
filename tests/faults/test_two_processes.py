"""`make faults`: training in two processes that is stopped, and goes on."""
import os
import signal
import time

from conftest import finish, weights
from test_parallel import assert_same, flags_of, start


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
