"""Two processes, started by torchrun: the same training as one with the same global batch. That
they stop and go on together is in tests/faults."""
import contextlib
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import BUDGET, ROOT, TOY, finish, weights

import minibert.training as training_module
from minibert import distributed
from minibert.config import ModelConfig, RunConfig
from minibert.errors import UserError
from minibert.model import MaskedLM
from minibert.training import Training

NO_DROPOUT = ["--hidden-dropout-prob", "0"]


def flags_of(script, out, text, *flags):
    shape = [] if script == "distill" else [*TOY, *NO_DROPOUT]
    return [*BUDGET, *shape, "--corpus", str(text), "--out", str(out), *flags]


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
        distributed.join("cpu")
    assert (", RANK" in str(error.value)) == ("RANK" not in given)


def test_processes_take_a_gpu_each(monkeypatch):
    """Catches processes that all use the first GPU, and a group that cannot exchange what lies on
    the CPU, or does not know its GPU."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1"),
                        ("MASTER_ADDR", "here"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
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


def test_processes_touch_their_own_gpu_only(monkeypatch):
    """Catches a tensor that is made before a process knows its GPU, and so takes room on the first
    one, for every process."""
    class Chosen(Exception):
        pass

    def choose(device):
        raise Chosen

    monkeypatch.setattr(training_module, "pick_device", lambda _: "cuda")
    monkeypatch.setattr(distributed, "join", choose)
    with pytest.raises(Chosen):  # without a GPU, a tensor there would raise another error
        Training(RunConfig(out="-"), MaskedLM(ModelConfig.preset("tiny")), *[None] * 5)


@pytest.fixture
def exchanged(monkeypatch):
    """Two processes as the first of them sees it, where the other one adds nothing; and what is
    exchanged."""
    seen = []
    monkeypatch.setattr(distributed, "join", lambda _: (0, 2))
    monkeypatch.setattr(distributed, "DistributedDataParallel", lambda model: model)
    monkeypatch.setattr(distributed, "alone", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda value, *_: seen.append(
        (value.numel(), value.dtype)))
    return seen


def test_processes_exchange_little(exchanged, toy_text, tmp_path, run_script):
    """Catches an exchange for each part and for each logged number: beside the gradients, a step
    has one for the losses and one, on the CPU, that tells whether to stop."""
    run_script("train_bert", *flags_of("train_bert", tmp_path / "run", toy_text, "--steps", "3",
                                       "--gradient-accumulation-steps", "2"))
    stop, losses = (1, torch.int64), (3, torch.float32)  # the loss, mlm and nsp
    assert exchanged == [stop, *[stop, losses] * 3, stop]


def test_all_stop_where_one_is_stopped(exchanged, monkeypatch):
    """Catches a signal that is obeyed by one process alone, while the others wait for it."""
    def exchange(value, how):
        assert how == distributed.dist.ReduceOp.MAX
        value.fill_(max(value.item(), 15))

    monkeypatch.setattr(distributed.dist, "all_reduce", exchange)
    assert distributed.largest(0) == 15


def test_terms_keep_their_names(exchanged, monkeypatch):
    """Catches a loss that is logged as another one's after the exchange."""
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda value: value.mul_(2))
    terms = distributed.add_up({"loss": torch.tensor(3.0), "mlm": torch.tensor(1.0)})
    assert {name: value.item() for name, value in terms.items()} == {"loss": 6.0, "mlm": 2.0}
