"""What a GPU would see of the recipes, on a device that counts: whether a step waits for it."""
import importlib
import math
import sys

import finetune as finetune_script
import pytest
import torch
from conftest import BUDGET, ROOT, TOY
from device import Device

import minibert.training as training_module

FAST = [*BUDGET, "--steps", "4", "--log-every", "100", "--eval-every", "100"]


def run_here(patch, script, *flags):
    patch.syspath_prepend(str(ROOT))
    patch.setattr(sys, "argv", [f"{script}.py", *map(str, flags)])
    importlib.import_module(script).main()


@pytest.fixture(scope="module")
def flags_of(toy_text, tmp_path_factory):
    """The flags of a short run by a script, in a folder of its own."""
    folder = tmp_path_factory.mktemp("device")
    with pytest.MonkeyPatch.context() as patch:
        run_here(patch, "train_bert", *FAST, *TOY, "--corpus", toy_text, "--out", folder / "bert")

    def flags(script):
        shape = ["--teacher", folder / "bert"] if script == "distill" else TOY
        out = folder / str(len([*folder.iterdir()]))
        return [*FAST, *shape, "--corpus", toy_text, "--out", out]
    return flags


@pytest.fixture
def counted(monkeypatch, flags_of):
    """Run a script on a device that counts: what it counted in each step, and in what follows the
    last one."""
    def run(name, script, *flags):
        steps, after_step = [], training_module.Training._after_step

        def note(training):
            after_step(training)
            steps.append(vars(device).copy())
            device.forget()

        monkeypatch.setattr(training_module, "pick_device", lambda _: name)
        monkeypatch.setattr(training_module.Training, "_after_step", note)
        with Device(name) as device:
            run_here(monkeypatch, script, *flags_of(script), *flags)
        return [*steps, vars(device)]
    return run


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("script, parts, flags", [
    ("train_bert", 1, []), ("train_bert", 2, []), ("train_roberta", 1, []),
    ("distill", 1, []),
    ("distill", 2, ["--distill-positions", "all"])])
def test_a_step_waits_for_nothing(script, parts, flags, counted):
    """Catches a number that is read, or a list that is copied to the device, in each step: a GPU
    would stand still until the next one is launched."""
    # The first step makes tables; the last one is logged; the rest follows it.
    steps = counted("cuda", script, *flags, "--gradient-accumulation-steps", parts)[1:-2]
    assert len(steps) == 2 and all(step["kernels"] > 100 for step in steps)
    assert not any(step["waits"] for step in steps), [step["waits"] for step in steps]


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_seconds_are_read_when_the_device_is_done(counted, monkeypatch):
    """Catches a clock that is read before the GPU has caught up: tokens/s would be too many. Here
    each wait takes a second, and nothing else takes any time."""
    now, logged = [0.0], []
    log_window = training_module.Training._log_window

    def note(training):
        before = now[0]
        log_window(training)
        logged.append((training.seconds, now[0] - training.start, now[0] - before))

    monkeypatch.setattr(training_module.Training, "_log_window", note)
    monkeypatch.setattr(training_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Device, "wait", lambda *_: now.append(now.pop() + 1))
    counted("cuda", "train_roberta")
    [(seconds, elapsed, waited)] = logged
    assert seconds == elapsed and waited > 3


def rows_of_logits(made, V=70):
    """For how many positions at once there were logits."""
    return max(math.prod(shape[:-1]) for shape, _ in made if shape and shape[-1] == V)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("script", ["train_bert", "train_roberta", "distill"])
def test_logits_are_of_predictions_only(script, counted):
    """Catches logits of all positions, (B, S, V), which no memory holds at the size of `base`:
    while training on 8 sequences of 16 tokens, 2 of them predicted, and evaluating on 15 or 17."""
    *steps, rest = counted("cuda", script)
    assert all(rows_of_logits(step["made"]) == 8 * 2 for step in steps)
    assert 15 * 2 <= rows_of_logits(rest["made"]) <= 17 * 2


@pytest.mark.parametrize("script", ["train_bert", "distill"])
def test_apple_s_gpu_gets_nothing_that_it_lacks(script, counted):
    """Catches numbers of 64 bits behind the point, which Apple's GPUs do not have: a run would end
    at its first line of the log, or when it is measured."""
    made = set().union(*(step["made"] for step in counted("mps", script, "--eval-every", 2)))
    assert {dtype for _, dtype in made} == {torch.float32, torch.int64, torch.int32, torch.bool}


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_fine_tuning_waits_for_nothing(flags_of, tmp_path, monkeypatch):
    """Catches rows that are tokenized, copied or looked up in each step, and an optimizer that
    launches a kernel for each weight."""
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("text\tlabel\n" + "be da\ta\nga\tb\n" * 20)
    waits, fused, zero_grad = [], [], torch.optim.AdamW.zero_grad

    def note(optimizer, **how):  # the last call of a step
        zero_grad(optimizer, **how)
        waits.append(device.waits)
        fused.append(optimizer.defaults["fused"])
        device.forget()

    monkeypatch.setattr(finetune_script, "pick_device", lambda _: "cuda")
    monkeypatch.setattr(torch.optim.AdamW, "zero_grad", note)
    bert = flags_of("distill")[len(FAST) + 1]  # the teacher
    with Device("cuda") as device:
        run_here(monkeypatch, "finetune", bert, "--task", "text", "--task-dir", tmp_path,
                 "--out", tmp_path / "out", "--batch-size", 8, "--epochs", 2)
    # Only an epoch's beginning waits: its order is copied there, and the rows' lengths back.
    assert [sum(each.values()) for each in waits[1:]] == [0, 0, 0, 0, 2, 0, 0, 0, 0] and all(fused)
