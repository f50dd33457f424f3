"""Two processes, started by torchrun: the same training as one with the same global batch. That
they stop and go on together is in tests/faults."""
import contextlib
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import BUDGET, ROOT, TOY, finish, weights

import minibert.training as training_module
from minibert.config import ModelConfig, RunConfig
from minibert.errors import UserError
from minibert.model import MaskedLM
from minibert.training import Training, join_processes

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


@pytest.mark.parametrize("given", [{"WORLD_SIZE": "4"}, {"WORLD_SIZE": "4", "RANK": "1"}])
def test_world_size_of_a_scheduler(given, monkeypatch):
    """Catches a KeyError, or an endless wait, where WORLD_SIZE is set but torchrun was not used."""
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT.*torchrun") as error:
        join_processes("cpu")
    assert (", RANK" in str(error.value)) == ("RANK" not in given)


def test_processes_take_a_gpu_each(monkeypatch):
    """Catches processes that all use the first GPU, and a group that cannot exchange what lies on
    the CPU, or does not know its GPU."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1"),
                        ("MASTER_ADDR", "here"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(training_module.dist, "init_process_group",
                        lambda backend, device_id: chosen.append((backend, device_id)))
    monkeypatch.setattr(training_module.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(training_module.dist, "get_world_size", lambda: 2)
    assert join_processes("cuda") == (1, 2)
    gpu = torch.device("cuda", 1)
    assert chosen == [gpu, ("cpu:gloo,cuda:nccl", gpu)]
    join_processes("cpu")
    assert chosen[2:] == [("gloo", None)]


def test_processes_touch_their_own_gpu_only(monkeypatch):
    """Catches a tensor that is made before a process knows its GPU, and so takes room on the first
    one, for every process."""
    class Chosen(Exception):
        pass

    def choose(device):
        raise Chosen

    monkeypatch.setattr(training_module, "pick_device", lambda _: "cuda")
    monkeypatch.setattr(training_module, "join_processes", choose)
    with pytest.raises(Chosen):  # without a GPU, a tensor there would raise another error
        Training(RunConfig(out="-"), MaskedLM(ModelConfig.preset("tiny")), *[None] * 5)


class AsIfShared(torch.nn.Module):
    """Stands for DistributedDataParallel, without other processes."""

    def __init__(self, module):
        super().__init__()
        self.module, self.no_sync = module, contextlib.nullcontext

    def forward(self, *given, **named):
        return self.module(*given, **named)


def test_processes_exchange_little(toy_text, tmp_path, run_script, monkeypatch):
    """Catches an exchange for each part and for each logged number: beside the gradients, a step
    has one for the losses and one, on the CPU, that tells whether to stop."""
    exchanged = []
    monkeypatch.setattr(training_module, "join_processes", lambda _: (0, 2))
    monkeypatch.setattr(training_module, "DistributedDataParallel", AsIfShared)
    monkeypatch.setattr(training_module.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(training_module.dist, "all_reduce", lambda value, *_: exchanged.append(
        (value.numel(), value.dtype)))
    run_script("train_bert", *flags_of("train_bert", tmp_path / "run", toy_text, "--steps", "3",
                                       "--gradient-accumulation-steps", "2"))
    stop, losses = (1, torch.int64), (3, torch.float32)  # the loss, mlm and nsp
    assert exchanged == [stop, *[stop, losses] * 3, stop]


def test_signal_while_processes_ask_each_other(monkeypatch):
    """Catches a signal that is lost, or obeyed by one process alone, because it came while the
    processes exchanged that there was none: all of them obey it at the next step."""
    training = SimpleNamespace(interrupted=0, world_size=2)
    monkeypatch.setattr(training_module.dist, "all_reduce",
                        lambda *_: setattr(training, "interrupted", signal.SIGTERM))
    assert [Training._received(training) for _ in range(2)] == [0, signal.SIGTERM]
