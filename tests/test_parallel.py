"""Several processes, started by torchrun: the same training as one with the same global batch."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import BUDGET, ROOT, TOY

NO_DROPOUT = ["--hidden-dropout-prob", "0", "--attention-probs-dropout-prob", "0"]


def start(script, processes, out, text, *flags):
    shape = [] if script == "distill" else [*TOY, *NO_DROPOUT]
    command = [str(ROOT / f"{script}.py"), *BUDGET, *shape, "--corpus", str(text),
               "--out", str(out), "--tasks", "none", *flags]
    if processes > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
                   *command]
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def weights(out):
    return torch.load(out / "pytorch_model.bin", weights_only=True)


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=0)


def losses(out):
    log = [json.loads(line) for line in (out / "log.jsonl").open()]
    return [(line["step"], line["mlm"], line["tokens"], line["targets"]) for line in log
            if "mlm" in line]


@pytest.mark.parametrize("script, flags", [("train_bert", ["--accumulation", "2"])])
def test_two_processes_train_as_one(script, flags, toy_text, tmp_path):
    """Catches gradients averaged that should be summed, rows seen twice or never, counts of one
    process's rows, and two processes that write one file."""
    alone = start(script, 1, tmp_path / "one", toy_text, *flags)
    both = start(script, 2, tmp_path / "two", toy_text, *flags)
    finish(alone)
    assert finish(both).count("finished 12 steps") == 1
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    for one, two in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert one == (two[0], pytest.approx(two[1], abs=1e-5), *two[2:])


def test_two_processes_stop_and_go_on(toy_text, tmp_path, run_script):
    """Catches processes that stop at different steps, and a resume that only the first one makes:
    the run is stopped by SIGTERM, goes on in two processes, and ends as one that was not stopped.
    """
    flags = ["--steps", "60", "--checkpoint-every", "9"]
    teacher = tmp_path / "teacher"
    run_script("train_roberta", *BUDGET, *TOY, *NO_DROPOUT, "--corpus", toy_text, "--out", teacher,
               "--tasks", "none")
    taught = [*flags, "--teacher", str(teacher)]
    alone = start("distill", 1, tmp_path / "one", toy_text, *taught)
    stopped = start("distill", 2, tmp_path / "two", toy_text, *taught)
    while not (tmp_path / "two" / "checkpoint.pt").exists():
        assert stopped.poll() is None
        time.sleep(0.02)
    os.killpg(stopped.pid, signal.SIGTERM)
    assert "stopped at step" in stopped.communicate(timeout=60)[1]
    assert "goes on at step" in finish(start("distill", 2, tmp_path / "two", toy_text, *taught))
    finish(alone)
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "two"))
