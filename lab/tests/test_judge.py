"""What results say: intervals, verdicts, and the rules that a comparison must meet."""
import json

import numpy as np
import pytest

from lab.claims import KL_TO_TEACHER, PAIRS_LOSS, TASKS, Arm, Claim, Contrast
from lab.judge import (T95, above_floors, in_words, interval, judge, judge_claim,
                                   measured, metrics_of, nsp_unlearned, retained,
                                   reversed_rankings, verdict)
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
        found = {A: [], B: []}
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
                found[arm].append(metrics)
        return found
    return make


def test_gains_are_paired_by_seed(runs):
    """Catches an interval over unpaired values: seeds differ by half a nat, the arms by 0.2."""
    found = judge(Contrast(A, B, "better"), runs())
    assert found["gains"] == [pytest.approx(0.2)] * 3
    assert found["low"] == pytest.approx(0.2) == found["high"] and found["verdict"] == "holds"
    assert judge(Contrast(B, A, "better"), runs())["verdict"] == "contradicted"


def test_an_arm_with_more_seeds(runs):
    """Catches means, or a pair, of seeds that only one of the arms has."""
    found = runs()
    found[A].append({**found[A][0], "full-sentences": {**found[A][0]["full-sentences"],
                                                       "mlm_loss": 1.0}})
    for contrast, means in ((Contrast(A, B, "better"), [4.5, 4.7]),
                            (Contrast(B, A, "better"), [4.7, 4.5])):
        judged = judge(contrast, found)
        assert len(judged["gains"]) == 3 and judged["means"] == pytest.approx(means)


def test_an_open_verdict_says_how_exact_it_is(runs):
    """Catches "inconclusive" without a reason, and points that are given as a share of one."""
    found = runs()
    for seed, (loss, score) in enumerate(((4.0, 0.7), (4.7, 0.6), (5.4, 0.5))):
        found[A][seed]["full-sentences"]["mlm_loss"] = loss
        found[A][seed]["tasks"] = {"x": {"score": score, "majority": 0.5}}
        found[B][seed]["tasks"] = {"x": {"score": 0.6, "majority": 0.5}}
        found[A][seed]["last_fifth"] = found[B][seed]["last_fifth"] = 0.0
    says = judge(Contrast(B, A, "better"), found)["verdict"]
    assert says == "inconclusive (3 seeds tell it to ±0.5)"  # 0.2 x 4.303 / 3**0.5
    says = judge(Contrast(A, B, "better", measure=TASKS), found)["verdict"]
    assert says == "inconclusive (3 seeds tell it to ±25 points)"


def test_rule_1_other_evaluation_set(runs):
    """Catches losses on other targets, also of one seed only."""
    changed = runs((("b", 2), {"full": {"hash": "other"}}))
    found = judge(Contrast(A, B, "better"), changed)
    assert "refused: a and b were evaluated on different sets" in found["verdict"]
    assert not found["gains"]
    found = judge(Contrast(A, B, "better", measure="segment-pair.mlm_loss"), changed)
    assert found["verdict"] == "holds"


def test_rule_2_unequal_tokens(runs):
    """Catches an arm that saw more text, unless the budget is what differs."""
    changed = runs((("a", 0), {"all": {"tokens": 1040}}))
    says = judge(Contrast(A, B, "better"), changed)["verdict"]
    assert says == "refused: a saw 1,014 tokens, b 1,001"
    assert judge(Contrast(A, B, "better", apart="tokens"), changed)["verdict"] == "holds"


@pytest.mark.parametrize("change, stuck", [
    ({"full": {"mlm_loss": 5.6}, "all": {"train_loss": 5.7}}, True),
    ({"full": {"mlm_loss": 5.4}, "all": {"train_loss": 5.7}}, False),
    ({"full": {"mlm_loss": 8.6}, "all": {"train_loss": 0.3}}, False)])  # by heart is no plateau
def test_rule_4_plateau(change, stuck, runs):
    """Catches "no difference" between runs that have learned frequencies only."""
    says = judge(Contrast(A, B, "better"), runs((("a", 1), change)))["verdict"]
    assert ("on the plateau: a" in says) == stuck
    # In pairs it has learned, and it is pairs that are compared.
    says = judge(Contrast(A, B, "better", measure=PAIRS_LOSS), runs((("a", 1), change)))["verdict"]
    assert "on the plateau" not in says


def test_a_claim_goes_by_its_first_contrast(runs):
    """Catches a verdict taken from the kindest contrast, and a gap measured from the wrong end."""
    claim = Claim("x", "a is better", (Contrast(B, A, "better"), Contrast(A, B, "better")), "", "",
                  gap=(B, A, A))
    found = judge_claim(claim, runs())
    assert found["verdict"] == "contradicted" and "b against a: -0.200 nats" in found["found"]
    assert found["gap"]["shares"] == [pytest.approx(1.0)] * 3
    assert "a closes 100% [100%, 100%] of" in found["found"]
    assert found["arms"]["a"]["train_loss"] == [4.0] * 3
    top = Arm("top")
    half = {**runs((("a", 0), {"full": {"mlm_loss": 4.1}})), top: runs()[A]}
    gap = judge_claim(Claim("x", "", (Contrast(A, B, "better"),), "", "", (top,), (B, A, top)),
                      half)["gap"]
    assert gap["shares"] == pytest.approx([0.5, 1, 1])
    assert "a closes 83% [12%, 155%] of the gap" in gap["says"]  # by Student's t, not 50 to 100


def test_refused_claims_are_told(runs):
    """Catches a refusal that ends the report of everything else."""
    changed = runs((("b", 2), {"full": {"hash": "other"}}))
    found = judge_claim(Claim("x", "", (Contrast(A, B, "better"),), "", ""), changed)
    assert found["verdict"].startswith("refused: ")
    assert found["found"] == "a against b: not compared"
    named = Contrast(A, B, "better", name="more against less")
    assert judge(named, changed)["name"] == "more against less"


def test_metrics_of_a_run(tmp_path):
    """Catches a training loss that is read from the start of the log, or from evaluations."""
    (tmp_path / "metrics.json").write_text(json.dumps({
        "steps": 20, "full-sentences": {"mlm_loss": 6.5}}))
    lines = [{"step": step, "epoch": step // 8, "mlm": float(100 - step)} for step in range(1, 21)]
    lines.insert(10, {"step": 12, "eval": {"mlm_loss": 7.0}})
    lines.append({"step": 20, "eval": {"mlm_loss": 6.5}})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = metrics_of(tmp_path)
    assert found["train_loss"] == 80.5 and found["epochs"] == 3
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


def test_rule_7_early(runs):
    """Catches a verdict on a slope: the arms differ by 0.2 nats, and one still gained 0.3 in its
    last fifth. An arm that got worse there gained nothing."""
    gaining = runs()
    for seed in range(3):
        gaining[A][seed]["last_fifth"], gaining[B][seed]["last_fifth"] = 0.3, -5.0
    assert judge(Contrast(A, B, "better"), gaining)["verdict"] == "holds (early)"
    assert judge(Contrast(A, B, "better"), runs())["verdict"] == "holds"
    gaining[B][0] |= {"train_loss": 5.9, "last_fifth": 0.1}
    gaining[B][0]["full-sentences"]["mlm_loss"] = 5.8
    says = judge(Contrast(A, B, "better"), gaining)["verdict"]
    assert says == "inconclusive (on the plateau: b)"  # which says more than early


# ---- tasks

def with_tasks(scores):
    """Results of two seeds: arm -> task -> its two scores; a guess is right half of the time."""
    return {arm: [{"tasks": {name: {"score": both[seed], "majority": 0.5}
                             for name, both in tasks.items()},
                   "tokens": 10, "full-sentences": {"kl_to_teacher": 0.1}} for seed in range(2)]
            for arm, tasks in scores.items()}


def test_more_is_better_in_tasks(runs):
    """Catches a score that is judged like a loss, or compared although it was never taken."""
    found = with_tasks({A: {"x": [0.8, 0.9], "y": [0.6, 0.7]},
                        B: {"x": [0.7, 0.8], "y": [0.5, 0.6]}})
    assert measured(found[A][0], TASKS) == pytest.approx(0.2)
    says = judge(Contrast(A, B, "better", 0.01, TASKS), found)
    assert says["gains"] == [pytest.approx(0.1)] * 2 and says["verdict"] == "holds"
    assert in_words(says).startswith("+10.0 points [+10.0, +10.0], 25.0 against 15.0 above")
    says = judge(Contrast(A, B, "better", 0.3, TASKS), found)
    assert says["verdict"] == "no difference beyond ±30 points"
    says = judge(Contrast(A, B, "better", 0.01, TASKS), runs())
    assert says["verdict"] == "refused: a was not fine-tuned on any task"


def test_what_a_student_retains():
    """Catches a share of raw scores, which a guess has half of, and shares of means by seed."""
    found = with_tasks({A: {"x": [0.68, 0.69], "y": [0.59, 0.60]}, B: {"x": [0.7, 0.7],
                                                                       "y": [0.6, 0.6]}})
    says = retained(A, B, 0.97, found)
    assert says["shares"]["x"] == pytest.approx([0.9, 0.95])
    assert says["shares"]["mean"] == pytest.approx([0.9, 29 / 30])
    assert says["verdict"] == "inconclusive" and "a keeps 93% [" in says["says"]
    same = with_tasks({A: {"x": [0.7, 0.7]}, B: {"x": [0.7, 0.7]}})
    assert retained(A, B, 0.97, same)["verdict"] == "holds"
    half = with_tasks({A: {"x": [0.6, 0.6], "y": [0.5, 0.6]},
                       B: {"x": [0.7, 0.7], "y": [0.5, 0.6]}})
    assert retained(A, B, 0.97, half)["shares"].keys() == {"x", "mean"}  # y: 0 of 0
    guessing = with_tasks({A: {"x": [0.5, 0.5]}, B: {"x": [0.5, 0.51]}})
    says = retained(A, B, 0.97, guessing)
    assert says["verdict"] == "inconclusive: the teacher has learned no task"
    worse = with_tasks({A: {"x": [0.6, 0.6]}, B: {"x": [0.7, 0.7]}})
    assert retained(A, B, 0.97, worse)["verdict"] == "contradicted"


def test_floors_are_beaten_by_a_margin():
    """Catches a floor that is left out, and a score that is above it by chance."""
    found = with_tasks({A: {"x": [0.8, 0.8], "y": [0.72, 0.72]}})
    found[A][0]["tasks"]["y"]["bigrams"] = 0.7
    assert above_floors(found[A]) == (
        "x 0.800 beats majority 0.500, y 0.720 does not beat bigrams 0.700")


def test_a_claim_says_how_its_arm_stands_to_the_floors(runs):
    """Catches floors that are looked at for another arm, or for none."""
    found = runs()
    for seed in range(3):
        found[B][seed]["tasks"] = {"x": {"score": 0.9, "majority": 0.5}}
    said = lambda **more: judge_claim(Claim("x", "", (Contrast(A, B, "better"),), "", "", **more),
                                      found)["found"]
    assert said(beats_floors=B).endswith("; x 0.900 beats majority 0.500")
    assert "majority" not in said()


# ---- what a claim asks for besides

def test_nsp_has_to_be_learned_first(runs):
    """Catches "NSP is of no use" where it was not learned: no better than by length alone."""
    def scores(*accuracies):
        found = runs()
        for seed, accuracy in enumerate(accuracies):
            found[B][seed]["segment-pair"] |= {"nsp_accuracy": accuracy, "nsp_majority": 0.55,
                                               "nsp_length": 0.6}
        return found
    assert nsp_unlearned(scores(0.70, 0.71, 0.70)[B]) == ""
    why = "NSP was not learned here (accuracy 0.600, 0.600 without reading)"
    assert nsp_unlearned(scores(0.58, 0.62, 0.60)[B]) == why
    claim = Claim("nsp", "", (Contrast(A, B, "no worse"),), "", "", learns_nsp=B)
    judged = lambda *accuracies: judge_claim(claim, scores(*accuracies))["verdict"]
    assert judged(0.58, 0.62, 0.60) == f"inconclusive: {why}" and judged(0.7, 0.71, 0.7) == "holds"


def test_several_contrasts_decide_together(runs):
    """Catches a verdict by the first of two contrasts that both decide, or by the kindest."""
    both = Contrast(A, B, "better"), Contrast(B, A, "better")
    verdict_of = lambda **more: judge_claim(Claim("x", "", both, "", "", **more), runs())["verdict"]
    assert verdict_of() == "holds"
    assert verdict_of(decides=2) == "mixed: 1 of 2 hold, 1 contradicted"


def test_a_reversed_ranking_is_told():
    """Catches the published order of effects taken for reproduced where ours is its reverse."""
    effects = lambda *gains: [{"measure": KL_TO_TEACHER, "gain": gain, "gains": [gain]}
                              for gain in gains]
    assert reversed_rankings(effects(0.3, 0.2, 0.1)) == reversed_rankings(effects(0.2, 0.3, 0.1)) \
        == []
    (says,) = reversed_rankings(effects(0.1, 0.2, 0.3))
    assert "not reproduced here" in says and KL_TO_TEACHER in says
