"""What results say: intervals, verdicts, and the rules that a comparison must meet."""
import json

import numpy as np
import pytest

from minibert.claims.claims import PAIRS_LOSS, Arm, Claim, Contrast
from minibert.claims.judge import T95, interval, judge, judge_claim, metrics_of, verdict
from minibert.errors import UserError

A, B = Arm("a"), Arm("b")


# ---- statistics

def test_points_of_t_cover_95_percent():
    """Catches a quantile that is one-sided, of another level, or off by one degree of freedom."""
    for freedom, point in enumerate(T95, 1):
        t = np.tan(np.linspace(-np.pi / 2 + 1e-6, np.pi / 2 - 1e-6, 200_001))
        density = (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
        within = np.abs(t) <= point
        weight = np.diff(t, append=t[-1])
        assert (density * weight)[within].sum() / (density * weight).sum() == pytest.approx(
            0.95, abs=2e-4)


def test_interval_by_hand():
    """Catches a spread divided by n, an interval of the values instead of their mean."""
    mean, low, high = interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    half = 4.303 * np.std([1, 2, 4], ddof=1) / 3**0.5
    assert [high - mean, mean - low] == pytest.approx([half, half])
    for count in (0, 1, 11):
        with pytest.raises(UserError, match="seeds give no interval"):
            interval([0.0] * count)


@pytest.mark.parametrize("question, low, high, expected", [
    ("better", 0.06, 0.5, "holds"), ("better", 0.01, 0.5, "inconclusive"),
    ("better", -0.01, 0.5, "inconclusive"), ("better", -0.5, -0.06, "contradicted"),
    ("better", -0.5, 0.01, "inconclusive"), ("better", 0.01, 0.04, "no difference beyond ±0.05"),
    ("no worse", -0.04, 0.5, "holds"), ("no worse", -0.04, 0.04, "no difference beyond ±0.05"),
    ("no worse", -0.06, 0.5, "inconclusive"), ("no worse", -0.5, -0.04, "inconclusive"),
    ("no worse", -0.5, -0.06, "contradicted"), ("better", float("nan"), 1.0, "inconclusive"),
])
def test_verdicts(question, low, high, expected):
    """Catches "not significant" read as "equal", and a margin that is not looked at."""
    assert verdict(question, low, high, 0.05) == expected


# ---- rules

@pytest.fixture
def runs():
    """Two arms of three seeds, with results to be changed."""
    def make(changes=None):
        found = {}
        for arm, losses in ((A, (4.0, 4.5, 5.0)), (B, (4.2, 4.7, 5.2))):
            for seed, loss in enumerate(losses):
                metrics = {"tokens": 1000 + seed, "steps": 10, "seconds": 1.0, "parameters": 5,
                           "layers": 2, "disk": 99, "epochs": 1, "curve": [], "tasks": {},
                           "train_loss": 4.0, "last_fifth": 0.1}
                for kind in ("full-sentences", "segment-pair"):
                    metrics[kind] = {"mlm_loss": loss, "hash": kind, "unigram_entropy": 6.0}
                if changes and changes[0] == (arm.name, seed):
                    metrics["full-sentences"] |= changes[1].get("full", {})
                    metrics |= changes[1].get("all", {})
                found[arm, seed] = metrics
        return found
    return make


def test_gains_are_paired_by_seed(runs):
    """Catches an interval over unpaired values: seeds differ by half a nat, the arms by 0.2."""
    found = judge(Contrast(A, B, "better"), runs(), range(3))
    assert found["gains"] == [pytest.approx(0.2)] * 3
    assert found["low"] == pytest.approx(0.2) == found["high"] and found["verdict"] == "holds"
    assert judge(Contrast(B, A, "better"), runs(), range(3))["verdict"] == "contradicted"


def test_rule_1_other_evaluation_set(runs):
    """Catches losses on other targets, also of one seed only."""
    changed = runs((("b", 2), {"full": {"hash": "other"}}))
    found = judge(Contrast(A, B, "better"), changed, range(3))
    assert "refused: a and b were evaluated on different sets" in found["verdict"]
    assert not found["gains"]
    found = judge(Contrast(A, B, "better", measure="segment-pair.mlm_loss"), changed, range(3))
    assert found["verdict"] == "holds"


def test_rule_2_unequal_tokens(runs):
    """Catches an arm that saw more text, unless the budget is what differs."""
    changed = runs((("a", 0), {"all": {"tokens": 1040}}))
    says = judge(Contrast(A, B, "better"), changed, range(3))["verdict"]
    assert says == "refused: a saw 1,014 tokens, b 1,001"
    assert judge(Contrast(A, B, "better", apart="tokens"), changed, range(3))["verdict"] == "holds"


@pytest.mark.parametrize("change, stuck", [
    ({"full": {"mlm_loss": 5.6}, "all": {"train_loss": 5.7}}, True),
    ({"full": {"mlm_loss": 5.4}, "all": {"train_loss": 5.7}}, False),
    ({"full": {"mlm_loss": 8.6}, "all": {"train_loss": 0.3}}, False)])  # by heart is no plateau
def test_rule_4_plateau(change, stuck, runs):
    """Catches "no difference" between runs that have learned frequencies only."""
    says = judge(Contrast(A, B, "better"), runs((("a", 1), change)), range(3))["verdict"]
    assert ("on the plateau: a" in says) == stuck
    # In pairs it has learned, and it is pairs that are compared.
    says = judge(Contrast(A, B, "better", measure=PAIRS_LOSS), runs((("a", 1), change)),
                 range(3))["verdict"]
    assert "on the plateau" not in says


def test_a_claim_goes_by_its_first_contrast(runs):
    """Catches a verdict taken from the kindest contrast, and a gap measured from the wrong end."""
    claim = Claim("x", "a is better", (Contrast(B, A, "better"), Contrast(A, B, "better")), "", "",
                  gap=(B, A, A))
    found = judge_claim(claim, runs(), range(3))
    assert found["verdict"] == "contradicted" and "b against a: -0.200 nats" in found["found"]
    assert found["gap"]["shares"] == [pytest.approx(1.0)] * 3
    assert "a closes 100% [100%, 100%] of" in found["found"]
    assert found["arms"]["a"]["train_loss"] == [4.0] * 3
    half = {key: value for key, value in runs((("a", 0), {"full": {"mlm_loss": 4.1}})).items()}
    top = Arm("top")
    half |= {(top, seed): runs()[A, seed] for seed in range(3)}
    gap = judge_claim(Claim("x", "", (Contrast(A, B, "better"),), "", "", (top,), (B, A, top)),
                      half, range(3))["gap"]
    assert gap["shares"] == pytest.approx([0.5, 1, 1])
    assert "a closes 83% [12%, 155%] of the gap" in gap["says"]  # by Student's t, not 50 to 100


def test_refused_claims_are_told(runs):
    """Catches a refusal that ends the report of everything else."""
    changed = runs((("b", 2), {"full": {"hash": "other"}}))
    found = judge_claim(Claim("x", "", (Contrast(A, B, "better"),), "", ""), changed, range(3))
    assert found["verdict"].startswith("refused: ")
    assert found["found"] == "a against b: not compared"
    named = Contrast(A, B, "better", name="more against less")
    assert judge(named, changed, range(3))["name"] == "more against less"


def test_metrics_of_a_run(tmp_path):
    """Catches a training loss that is read from the start of the log, or from evaluations."""
    (tmp_path / "metrics.json").write_text(json.dumps({
        "steps": 20, "full-sentences": {"mlm_loss": 6.5}}))
    lines = [{"step": step, "epoch": step // 8, "mlm": float(100 - step)} for step in range(1, 21)]
    lines.insert(10, {"step": 12, "eval": {"mlm_loss": 7.0}})
    lines.append({"step": 20, "eval": {"mlm_loss": 6.5}})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "pytorch_model.bin").write_bytes(b"12345")
    found = metrics_of(tmp_path)
    assert found["train_loss"] == 80.5 and found["epochs"] == 3 and found["disk"] == 5
    assert found["curve"] == [(12, 7.0), (20, 6.5)]
    assert found["last_fifth"] == pytest.approx(0.25)  # at step 16 the curve is at 6.75


def test_metrics_of_a_run_without_steps(tmp_path):
    """Catches NaN where a network was not trained at all, whose scores are a floor of the tasks."""
    (tmp_path / "metrics.json").write_text(json.dumps({
        "steps": 0, "full-sentences": {"mlm_loss": 8.4}}))
    (tmp_path / "log.jsonl").write_text("")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    found = metrics_of(tmp_path)
    assert found["train_loss"] == 8.4 and found["last_fifth"] == 0 and found["curve"] == []
