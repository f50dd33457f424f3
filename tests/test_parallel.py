"""Two processes, started by torchrun: the same training as one with the same global batch. That
they stop and go on together is in tests/faults."""
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import BUDGET, ROOT, TOY, finish, weights

NO_DROPOUT = ["--hidden-dropout-prob", "0", "--attention-probs-dropout-prob", "0"]


def flags_of(script, out, text, *flags):
    shape = [] if script == "distill" else [*TOY, *NO_DROPOUT]
    return [*BUDGET, *shape, "--corpus", str(text), "--out", str(out), "--tasks", "none", *flags]


def start(script, *flags):
    """In two processes."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(ROOT / f"{script}.py"), *flags_of(script, *flags)]
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=0)


def losses(out):
    log = [json.loads(line) for line in (out / "log.jsonl").open()]
    return [(line["step"], line["mlm"], line["tokens"], line["targets"]) for line in log
            if "mlm" in line]


@pytest.mark.parametrize("script, flags", [("train_bert", ["--gradient-accumulation-steps", "2"])])
def test_two_processes_train_as_one(script, flags, toy_text, tmp_path, run_script):
    """Catches gradients averaged that should be summed, rows seen twice or never, counts of one
    process's rows, and two processes that write one file."""
    both = start(script, tmp_path / "two", toy_text, *flags)
    run_script(script, *flags_of(script, tmp_path / "one", toy_text, *flags))
    assert finish(both).count("finished 12 steps") == 1
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    for one, two in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert one == (two[0], pytest.approx(two[1], abs=1e-5), *two[2:])
