"""The claims that need no training come out against themselves when the code is wrong."""
import dataclasses
import time

import pytest

from lab import exact
from minibert.config import ModelConfig
from minibert.losses import soft_target_loss


def test_they_hold():
    """Catches an identity that our losses, encoder or constructor do not meet."""
    for measure in (exact.kl, exact.architecture, exact.size):
        assert measure()["kind"] == "holds"
    assert [*exact.EXACT] == [measure.__name__ for _, measure in exact.EXACT.values()]


@pytest.mark.parametrize("wrong", [
    lambda student, teacher, T: soft_target_loss(student, teacher, T) / T**2,
    lambda student, teacher, T: soft_target_loss(teacher, student, T),
    lambda student, teacher, T: 2 * soft_target_loss(student, teacher, T)])
def test_kl_is_contradicted_by_a_wrong_loss(wrong, monkeypatch):
    """Catches a check that passes whatever the loss: without T², swapped, or another mean."""
    monkeypatch.setattr(exact, "soft_target_loss", wrong)
    assert exact.kl()["kind"] == "contradicted"


def test_architecture_is_contradicted_by_another_shape(monkeypatch):
    """Catches a comparison that does not look at every tensor."""
    roberta = dataclasses.replace(ModelConfig.preset("roberta-base"), intermediate_size=3080)
    presets = {"bert-base": ModelConfig.preset("bert-base"), "roberta-base": roberta}
    monkeypatch.setattr(ModelConfig, "preset", presets.get)
    assert exact.architecture()["kind"] == "contradicted"


def test_size_is_contradicted_by_one_parameter(monkeypatch):
    """Catches counts that are rounded or never compared, and a student as large as its teacher."""
    monkeypatch.setitem(exact.PUBLISHED, "bert-mini", exact.PUBLISHED["bert-mini"] + 1)
    size = exact.size()
    assert size["kind"] == "contradicted"
    assert size["measured"]["counted to the last parameter"] == 10
    monkeypatch.setattr(exact, "PUBLISHED", {})
    assert exact.size()["kind"] == "holds"
    monkeypatch.setattr(ModelConfig, "preset", lambda name: ModelConfig())
    assert exact.size()["kind"] == "contradicted"


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
    latency = exact.latency()
    assert latency["kind"] == expected and latency["short"] == f"{1 / fast:.2f} times as fast"
    measured = latency["measured"]
    assert measured["ms of the whole (cpu, batch 1)"] == pytest.approx(1000)
    assert measured["ms of the half (cpu, batch 1)"] == pytest.approx(1000 * fast)
    assert measured["upper quartile (cpu, batch 1)"] == pytest.approx(1 / fast)
    # Where there is a GPU, its figures stand behind the CPU's, which decides.
    monkeypatch.setattr(exact.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(exact, "forward_seconds", lambda encoders, device, batch: [
        [1.0] * 9, [fast if device == "cpu" else 1.1] * 9])
    latency = exact.latency()
    assert latency["kind"] == expected and latency["short"] == f"{1 / fast:.2f} times as fast"
    assert latency["measured"]["times as fast (cuda, batch 64)"] == pytest.approx(1 / 1.1)


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
