"""The claims that need no training come out against themselves when the code is wrong."""
import dataclasses
import time

import pytest

from lab import exact
from minibert.config import ModelConfig
from minibert.losses import soft_target_loss


def kind(id):
    """The verdict of a claim that is measured now."""
    return exact.EXACT[id].tell(exact.EXACT[id].measure())[0]


def test_they_hold():
    """Catches an identity that our losses, encoder or constructor do not meet."""
    assert [id for id in exact.EXACT if id != "latency" and kind(id) != "holds"] == []


@pytest.mark.parametrize("wrong", [
    lambda student, teacher, T: soft_target_loss(student, teacher, T) / T**2,
    lambda student, teacher, T: soft_target_loss(teacher, student, T),
    lambda student, teacher, T: 2 * soft_target_loss(student, teacher, T)])
def test_kl_is_contradicted_by_a_wrong_loss(wrong, monkeypatch):
    """Catches a check that passes whatever the loss: without T², swapped, or another mean."""
    monkeypatch.setattr(exact, "soft_target_loss", wrong)
    assert kind("kl") == "contradicted"


@pytest.mark.parametrize("change", [{"error": 1e-3}, {"gradients": [[2.0, 1.2], [1e3, 1.2]]},
                                    {"gradients": [[2.0, 1.0], [1e3, 1.0]]}])
def test_kl_needs_all_of_its_parts(change):
    """Catches a part that is not looked at: the losses, the limit, or what a small T gives."""
    measured = {"error": 0.0, "gradients": [[2.0, 1.2], [1e3, 1.0]]}
    assert exact.tell_kl(measured)[:2] == ("holds", "equal to the last digit")
    assert exact.tell_kl({**measured, **change})[0] == "contradicted"


def test_architecture_is_contradicted_by_another_shape(monkeypatch):
    """Catches a comparison that does not look at every tensor, or at the outputs."""
    measured = exact.architecture()
    assert exact.tell_architecture({**measured, "error": 1e-3})[0] == "contradicted"
    roberta = dataclasses.replace(ModelConfig.preset("roberta-base"), intermediate_size=3080)
    presets = {"bert-base": ModelConfig.preset("bert-base"), "roberta-base": roberta}
    monkeypatch.setattr(ModelConfig, "preset", presets.get)
    assert kind("architecture") == "contradicted"


def test_size_is_contradicted_by_one_parameter(monkeypatch):
    """Catches counts that are rounded or never compared, and a student as large as its teacher."""
    monkeypatch.setitem(exact.PUBLISHED, "bert-mini", exact.PUBLISHED["bert-mini"] + 1)
    measured = exact.size()
    says, _, told = exact.tell_size(measured)
    assert says == "contradicted" and "10 of 11" in told
    right = {**measured, "counted": 11}
    assert exact.tell_size(right)[0] == "holds"
    assert exact.tell_size({**right, "encoders": [100, 100]})[0] == "contradicted"


@pytest.mark.parametrize("fast, expected", [(0.5, "holds"), (0.9, "inconclusive"),
                                            (1.3, "contradicted")])
def test_latency_by_a_made_up_clock(fast, expected, monkeypatch):
    """Catches warm-up rounds that count, a ratio upside down, and a margin that is not looked at:
    the clock says 1 s for each pass of the first encoder and `fast` for the second's."""
    tiny = dict(vocab_size=30_000, hidden_size=8, num_attention_heads=2, num_hidden_layers=1,
                intermediate_size=8)
    monkeypatch.setattr(ModelConfig, "preset", lambda name: ModelConfig(**tiny))
    calls, now = 0, 0.0

    def clock():
        nonlocal calls, now
        number, end = divmod(calls, 2)
        calls += 1
        if end:
            now += 100.0 if number < 4 else (1.0, fast)[number % 2]
        return now

    monkeypatch.setattr(time, "perf_counter", clock)
    [timed] = exact.latency()["timed"]
    assert timed["ms"] == pytest.approx([1000, 1000 * fast]) and timed["rounds"] == 9
    assert timed["ratio"] == pytest.approx([1 / fast] * 3)
    # Where there is a GPU, its figures stand behind the CPU's, which decides.
    gpu = {**timed, "device": "cuda", "batch": 64, "ratio": [1.1] * 3}
    says, short, told = exact.tell_latency({"timed": [timed, gpu]})
    assert says == expected and short == f"{1 / fast:.2f} times as fast"
    assert "batch 1, 32 tokens, cpu" in told and told.endswith("batch 64, 32 tokens, cuda")


def test_encoders_are_cast_before_they_are_timed(monkeypatch):
    """Catches a pass on a GPU that casts its weights in every call, as autocast does, and one in
    bfloat16 on a CPU, where that can be far slower."""
    shape = dict(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                 intermediate_size=64, max_position_embeddings=exact.LENGTH)
    seen = []
    encoder = exact.Encoder(ModelConfig(**shape))
    encoder.register_forward_hook(lambda module, given, hidden: seen.append(hidden.dtype))
    with monkeypatch.context() as patch:  # a GPU, without one
        patch.setattr(exact.torch.cuda, "synchronize", lambda: None)
        move = exact.torch.Tensor.to
        patch.setattr(exact.torch.Tensor, "to", lambda tensor, *to: (
            tensor if to == ("cuda",) else move(tensor, *to)))
        patch.setattr(exact.torch.nn.Module, "to", lambda module, device, dtype: module.type(dtype))
        exact.forward_seconds([encoder], "cuda", rounds=1)
    exact.forward_seconds([encoder], "cpu", rounds=1)
    assert seen == [exact.torch.bfloat16] * 3 + [exact.torch.float32] * 3
