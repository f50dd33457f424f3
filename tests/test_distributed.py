"""Two processes: the same training as one with the same global batch. That they stop and go on
together, and that torchrun starts them, is in tests/faults."""
import contextlib
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import BUDGET, ROOT, TOY, finish, log, weights

import minibert.training as training_module
from minibert import distributed
from minibert.config import ModelConfig, RunConfig
from minibert.errors import UserError
from minibert.model import MaskedLM
from minibert.training import Training

TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what it sets


def flags_of(script, out, text, *flags):
    """The flags of a short run without dropout, which no two processes draw as one does."""
    shape = [] if script == "distill" else [*TOY, "--hidden-dropout-prob", "0"]
    return [*BUDGET, *shape, "--corpus", str(text), "--out", str(out), *flags]


# A script, in a process that has to be alone again, without torch's threads, when it has left.
PROGRAM = """
import os, pathlib, runpy, sys
from minibert import distributed

def leave_and_look(leave=distributed.leave):
    leave()
    left = [path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
    if "gloo" in str(left):
        sys.exit(f"these threads are left: {left}")

distributed.leave = leave_and_look
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start_two(script, *flags):
    """Start a script in two processes, as torchrun does, but with nobody who looks after them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return [subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(ROOT / f"{script}.py"), *map(str, flags)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={
            **os.environ, "PYTHONPATH": str(ROOT),
            **dict(zip(TORCHRUN, ("2", rank, rank, "127.0.0.1", port)))}) for rank in ("0", "1")]


def assert_same(first, second):
    """Both have the same weights, but for the order in which gradients were added up."""
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-5, rtol=0)


# By hand.


def test_one_process_has_nobody_to_ask(monkeypatch):
    """Whoever trains on one machine would wait for others, or need a network."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    model, terms = MaskedLM(ModelConfig.preset("tiny")), {"loss": torch.tensor(3.0)}
    assert distributed.join("cpu") == (0, 1)
    assert distributed.wrap(model) is model and distributed.add_up(terms) is terms
    assert distributed.largest(15) == 15
    with distributed.alone(model):
        distributed.leave()
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    assert distributed.alone(SimpleNamespace(no_sync=lambda: "no exchange")) == "no exchange"


@pytest.fixture
def exchanged(monkeypatch):
    """Two processes as the first of them sees it, whose terms are all the same in the other one,
    and where nobody gets a signal; and the (size, dtype) of what they exchange."""
    seen = []

    def all_reduce(value, how=torch.distributed.ReduceOp.SUM):
        seen.append((value.numel(), value.dtype))
        if how == torch.distributed.ReduceOp.SUM:
            value *= 2

    monkeypatch.setattr(distributed, "join", lambda device: (0, 2))
    monkeypatch.setattr(distributed, "DistributedDataParallel", lambda model: model)
    monkeypatch.setattr(distributed, "alone", lambda model: contextlib.nullcontext())
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
    return seen


def test_sum_of_two_losses_and_the_larger_of_two_signals(exchanged, monkeypatch):
    """A log would have half the loss, or one loss under the name of another; and one process would
    obey a signal alone, while the other waits for it until it is killed."""
    terms = distributed.add_up({"loss": torch.tensor(3.0), "mlm": torch.tensor(1.0)})
    assert {name: value.item() for name, value in terms.items()} == {"loss": 6.0, "mlm": 2.0}
    assert distributed.largest(0) == 0 and distributed.largest(2) == 2
    assert exchanged == [(2, torch.float32), (1, torch.int64), (1, torch.int64)]

    def with_another(value, how):  # which has 15
        assert how == torch.distributed.ReduceOp.MAX
        value.clamp_(min=15)

    monkeypatch.setattr(distributed.dist, "all_reduce", with_another)
    assert distributed.largest(0) == 15 and distributed.largest(20) == 20


def test_exchanges_of_three_steps(exchanged, toy_text, tmp_path, run_script):
    """An exchange for each part or for each logged number would make each step slow: beside the
    gradients, a step has one for the losses and one, on the CPU, that tells whether to stop."""
    run_script("train_bert", *flags_of("train_bert", tmp_path / "run", toy_text, "--steps", "3",
                                       "--gradient-accumulation-steps", "2"))
    stop, losses = (1, torch.int64), (3, torch.float32)  # the loss, mlm and nsp
    start_together, after_the_last = stop, stop
    assert exchanged == [start_together, *[stop, losses] * 3, after_the_last]


# What always holds.


def test_two_processes_train_as_one(toy_text, tmp_path, run_script):
    """Gradients averaged that should be summed, rows seen twice or never, counts of one process's
    rows, or two processes that write one file: a run on two GPUs would be another experiment. And
    with a thread of torch's that is left, one run of ten would hang or abort at its end."""
    flags = ["--gradient-accumulation-steps", "2"]
    first, second = start_two("train_bert", *flags_of("train_bert", tmp_path / "two", toy_text,
                                                      *flags))
    run_script("train_bert", *flags_of("train_bert", tmp_path / "one", toy_text, *flags))
    assert "finished 12 steps" in finish(first) and not finish(second)  # only the first one writes
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    lines = [[line for line in log(tmp_path / name) if "mlm" in line] for name in ("one", "two")]
    assert len(lines[0]) == 4
    for expected, line in zip(*lines, strict=True):
        assert line == pytest.approx(expected, abs=1e-5)


def test_processes_take_a_gpu_each(monkeypatch):
    """All processes would share the first GPU, or could not exchange what lies on the CPU."""
    for name in TORCHRUN:
        monkeypatch.setenv(name, "1")
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(distributed.dist, "init_process_group",
                        lambda backend, device_id: chosen.append((backend, device_id)))
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    assert distributed.join("cuda") == (1, 2)
    gpu = torch.device("cuda", 1)
    assert chosen == [gpu, ("cpu:gloo,cuda:nccl", gpu)]
    distributed.join("cpu")
    assert chosen[2:] == [("gloo", None)]


def test_a_process_knows_its_gpu_before_it_makes_a_tensor(monkeypatch):
    """Each process would take room on the first GPU, whose memory might not do for all of them."""
    def choose(device):
        raise ZeroDivisionError

    monkeypatch.setattr(training_module, "pick_device", lambda name: "cuda")
    monkeypatch.setattr(distributed, "join", choose)
    with pytest.raises(ZeroDivisionError):  # without a GPU, a tensor there raises another error
        Training(RunConfig(out="-"), MaskedLM(ModelConfig.preset("tiny")), *[None] * 5)


# Corner cases.


def test_world_size_of_a_scheduler(monkeypatch):
    """On a cluster whose scheduler sets WORLD_SIZE, a run without torchrun would end in a KeyError,
    or wait for ever."""
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT, RANK"):
        distributed.join("cpu")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT;.*torchrun"):
        distributed.join("cpu")


def test_a_process_whose_partner_has_ended(exchanged, monkeypatch):
    """The process that is left would end in a traceback of torch's, which hides why the other one
    has ended."""
    def gone(*given):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(distributed.dist, "all_reduce", gone)
    with pytest.raises(UserError, match="another process has ended"):
        distributed.largest(0)
