"""The claims that need no training come out against themselves when the code is wrong."""
import dataclasses
import re
import time

import pytest

from lab import exact
from minibert.config import ModelConfig
from minibert.losses import soft_target_loss


def test_they_hold():
    """Catches an identity that our losses, encoder or constructor do not meet."""
    for claim in (exact.kl, exact.architecture, exact.size):
        found = claim()
        assert found["verdict"] == "holds" and found["id"] == claim.__name__, found
        assert found.keys() == {"id", "says", "verdict", "found", "published"}


@pytest.mark.parametrize("wrong", [
    lambda student, teacher, T: soft_target_loss(student, teacher, T) / T**2,
    lambda student, teacher, T: soft_target_loss(teacher, student, T),
    lambda student, teacher, T: 2 * soft_target_loss(student, teacher, T)])
def test_kl_is_contradicted_by_a_wrong_loss(wrong, monkeypatch):
    """Catches a check that passes whatever the loss: without T², swapped, or another mean."""
    monkeypatch.setattr(exact, "soft_target_loss", wrong)
    assert exact.kl()["verdict"] == "contradicted"


def test_architecture_is_contradicted_by_another_shape(monkeypatch):
    """Catches a comparison that does not look at every tensor."""
    roberta = dataclasses.replace(ModelConfig.preset("roberta-base"), intermediate_size=3080)
    presets = {"bert-base": ModelConfig.preset("bert-base"), "roberta-base": roberta}
    monkeypatch.setattr(ModelConfig, "preset", presets.get)
    assert exact.architecture()["verdict"] == "contradicted"


def test_size_is_contradicted_by_one_parameter(monkeypatch):
    """Catches counts that are rounded, or never compared."""
    monkeypatch.setitem(exact.PUBLISHED, "bert-mini", exact.PUBLISHED["bert-mini"] + 1)
    found = exact.size()
    assert found["verdict"] == "contradicted" and "10 of 11" in found["found"]
    # Nor does it hold of a student that is as large as its teacher.
    monkeypatch.setattr(exact, "PUBLISHED", {})
    shapes = exact.ModelConfig.preset.__globals__["MODEL_PRESETS"]
    monkeypatch.setitem(shapes, "distilbert-base", shapes["bert-base"])
    assert exact.size()["verdict"] == "contradicted"


@pytest.mark.parametrize("fast, expected", [(0.5, "holds"), (0.9, "inconclusive"),
                                            (1.3, "contradicted")])
def test_latency_by_a_made_up_clock(fast, expected, monkeypatch):
    """Catches warm-up rounds that count, a ratio upside down, and a margin that is not looked at:
    the clock says 1 s for each pass of the first encoder and `fast` for the second's."""
    monkeypatch.setitem(exact.ModelConfig.preset.__globals__["MODEL_PRESETS"], "bert-base",
                        dict(vocab_size=30_000, hidden_size=8, num_attention_heads=2,
                             num_hidden_layers=1, intermediate_size=8))
    monkeypatch.setitem(exact.ModelConfig.preset.__globals__["MODEL_PRESETS"], "distilbert-base",
                        dict(vocab_size=30_000, hidden_size=8, num_attention_heads=2,
                             num_hidden_layers=1, intermediate_size=8))
    calls, now = 0, 0.0

    def clock():
        nonlocal calls, now
        number, end = divmod(calls, 2)
        calls += 1
        if end:
            now += 100.0 if number < 4 else (1.0, fast)[number % 2]
        return now

    monkeypatch.setattr(time, "perf_counter", clock)
    encoders = [exact.Encoder(ModelConfig.preset(name))
                for name in ("bert-base", "distilbert-base")]
    for times, expected_time in zip(exact.forward_seconds(encoders, "cpu", rounds=5), (1.0, fast)):
        assert times == pytest.approx([expected_time] * 5)
    calls = 0
    found = exact.latency()
    assert found["verdict"] == expected
    ratio = float(re.match(r"([\d.]+) times", found["found"])[1])
    assert ratio == pytest.approx(1 / fast, abs=0.01)
    # Where there is a GPU, its figures stand behind the CPU's, which decides.
    monkeypatch.setattr(exact.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(exact, "forward_seconds", lambda encoders, device, batch: [
        [1.0] * 9, [fast if device == "cpu" else 1.1] * 9])
    found = exact.latency()
    said = found["found"].split("; ")
    assert "batch 1, 32 tokens, cpu" in said[0] and "batch 64, 32 tokens, cuda" in said[2]
    assert found["verdict"] == expected


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
