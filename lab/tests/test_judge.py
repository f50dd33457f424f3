"""What measurements say: intervals, verdicts, and the rules that a comparison must meet."""
import numpy as np
import pytest

from lab.claims import KL_TO_TEACHER, PAIRS_LOSS, TASKS, Arm, Claim, Contrast
from lab.judge import (T95, Effect, Verdict, floors, interval, judge, judge_claim, judge_claims,
                       keeps, nsp_unlearned, retained, reversed_rankings, verdict)
from minibert.errors import UserError

A, B = Arm("a"), Arm("b")


def record(losses=(4.0, 4.5, 5.0), tasks=({}, {}, {}), **changes):
    """What `measure` returns of an arm: its losses by seed, and what a test is about."""
    kinds = {kind: [{"mlm_loss": loss, "hash": kind, "unigram_entropy": 6.0} for loss in losses]
             for kind in ("full-sentences", "segment-pair")}
    return {"tokens": [1000] * len(losses), "train_loss": [4.0] * len(losses),
            "last_fifth": [0.1] * len(losses), "tasks": list(tasks), **kinds, **changes}


def arms(a=None, b=None):
    """Two arms, of which the first is better by 0.2 nats in each of three seeds."""
    return {"a": record(**a or {}), "b": record(**{"losses": (4.2, 4.7, 5.2), **(b or {})})}


def scored(*seeds):
    """By seed the score of each task, where guessing is right half of the time."""
    return [{name: {"score": score, "majority": 0.5} for name, score in tasks.items()}
            for tasks in seeds]


# ---- statistics

def test_points_of_t_cover_95_percent():
    """Catches a quantile that is one-sided, of another level, or off by one degree of freedom."""
    for freedom, point in enumerate(T95, 1):
        t = np.tan(np.linspace(-np.pi / 2 + 1e-6, np.pi / 2 - 1e-6, 200_001))
        density = (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
        weight = np.diff(t, append=t[-1])
        within = (density * weight)[np.abs(t) <= point].sum() / (density * weight).sum()
        assert within == pytest.approx(0.95, abs=2e-4)


def test_interval_by_hand():
    """Catches a spread divided by n, an interval of the values instead of their mean."""
    mean, low, high = interval([1.0, 2.0, 4.0])  # the spread is (16 + 1 + 25) / 9 / 2 = 7 / 3
    half = 4.303 * (7 / 3) ** 0.5 / 3**0.5
    assert [mean, high - mean, mean - low] == pytest.approx([7 / 3, half, half])
    for count in (0, 1, 11):
        with pytest.raises(UserError, match="seeds give no interval"):
            interval([0.0] * count)


@pytest.mark.parametrize("question, low, high, expected", [
    ("better", 0.06, 0.5, "holds"), ("better", 0.01, 0.5, "inconclusive"),
    ("better", -0.01, 0.5, "inconclusive"), ("better", -0.5, -0.06, "contradicted"),
    ("better", -0.5, 0.01, "inconclusive"), ("better", 0.01, 0.04, "no difference"),
    ("no worse", -0.04, 0.5, "holds"), ("no worse", -0.04, 0.04, "no difference"),
    ("no worse", -0.06, 0.5, "inconclusive"), ("no worse", -0.5, -0.04, "inconclusive"),
    ("no worse", -0.5, -0.06, "contradicted"), ("better", float("nan"), 1.0, "inconclusive"),
])
def test_verdicts(question, low, high, expected):
    """Catches "not significant" read as "equal", and a margin that is not looked at."""
    assert verdict(question, low, high, 0.05) == expected


def test_gains_are_paired_by_seed():
    """Catches an interval over unpaired values (seeds differ by half a nat, the arms by 0.2), and
    means, or a pair, of a seed that only one of the arms has."""
    effect = judge(Contrast(A, B, "better"), arms())
    assert effect.gains == [pytest.approx(0.2)] * 3 and effect.verdict == Verdict("holds")
    assert (effect.gain, effect.low, effect.high) == pytest.approx((0.2, 0.2, 0.2))
    assert effect.means == pytest.approx((4.5, 4.7))
    assert judge(Contrast(B, A, "better"), arms()).verdict.kind == "contradicted"
    more = arms(a={"losses": (4.0, 4.5, 5.0, 1.0)})
    for contrast, means in ((Contrast(A, B, "better"), (4.5, 4.7)),
                            (Contrast(B, A, "better"), (4.7, 4.5))):
        effect = judge(contrast, more)
        assert len(effect.gains) == 3 and effect.means == pytest.approx(means)


def test_an_open_verdict_says_how_exact_it_is():
    """Catches a share of one called points, and half of an interval called the whole."""
    still = {"last_fifth": [0.0] * 3}
    wide = arms(a={"losses": (4.0, 4.7, 5.4), **still,  # gains of 0.2, 0 and -0.2
                   "tasks": scored({"x": 0.7}, {"x": 0.6}, {"x": 0.5})},
                b={**still, "tasks": scored({"x": 0.6}, {"x": 0.6}, {"x": 0.6})})
    said = judge(Contrast(A, B, "better"), wide).verdict
    assert said == Verdict("inconclusive", "3 seeds tell it to ±0.5")  # 0.2 x 4.303 / 3**0.5
    said = judge(Contrast(A, B, "better", measure=TASKS), wide).verdict
    assert said.reason == "3 seeds tell it to ±25 points"
    said = judge(Contrast(A, B, "better", 0.3), arms()).verdict
    assert said == Verdict("no difference", "±0.3")


# ---- rules, each with the smallest case in which either arm breaks it

@pytest.mark.parametrize("name", "ab")
@pytest.mark.parametrize("seed", (0, 2))
def test_rule_1_other_evaluation_set(name, seed):
    """Catches losses on other targets: of either arm, of one seed only."""
    changed = arms()
    changed[name]["full-sentences"][seed]["hash"] = "another"
    effect = judge(Contrast(A, B, "better"), changed)
    assert (effect.verdict.kind, effect.gains) == ("refused", [])
    assert "different sets (another, full-sentences)" in effect.verdict.reason
    assert judge(Contrast(A, B, "better", measure=PAIRS_LOSS), changed).verdict.kind == "holds"


@pytest.mark.parametrize("name", "ab")
@pytest.mark.parametrize("tokens, refused", [
    ([1040, 1000, 1000], True), ([980, 1000, 1000], False), ([1080, 960, 960], False)])
def test_rule_2_unequal_tokens(name, tokens, refused):
    """Catches an arm that read more text, and seeds whose sum or first is compared: what counts is
    their mean, unless the budget is what differs."""
    changed = arms(**{name: {"tokens": tokens}})
    assert (judge(Contrast(A, B, "better"), changed).verdict.kind == "refused") == refused
    assert judge(Contrast(A, B, "better", apart="tokens"), changed).verdict.kind == "holds"


def test_rule_2_is_about_means():
    """Catches the tokens of five seeds against those of three."""
    more = arms(a={"losses": (4.0, 4.5, 5.0, 5.0, 5.0)})
    assert judge(Contrast(A, B, "better"), more).verdict.kind == "holds"
    more["a"]["tokens"] = [1040] * 5
    assert judge(Contrast(A, B, "better"), more).verdict.reason == "a saw 1,040 tokens, b 1,000"


@pytest.mark.parametrize("name", "ab")
@pytest.mark.parametrize("loss, training, stuck", [
    (5.6, 5.7, True), (5.4, 5.7, False), (5.7, 5.4, False),
    (8.6, 0.3, False)])  # what was learned by heart is no plateau
def test_rule_4_plateau(name, loss, training, stuck):
    """Catches "no difference" where either arm, in one seed, has learned frequencies only."""
    changed = arms()
    changed[name]["full-sentences"][1]["mlm_loss"] = loss
    changed[name]["train_loss"][1] = training
    said = judge(Contrast(A, B, "better", apart="tokens"), changed).verdict
    assert (said == Verdict("inconclusive", f"on the plateau: {name}")) == stuck
    # In pairs it has learned, and it is pairs that are compared.
    said = judge(Contrast(A, B, "better", measure=PAIRS_LOSS), changed).verdict
    assert said.kind == "holds"


@pytest.mark.parametrize("name", "ab")
def test_rule_7_early(name):
    """Catches a verdict on a slope: the arms differ by 0.2 nats, and either still gained 0.3 in its
    last fifth, on the mean of its seeds. An arm that got worse there gained nothing."""
    gaining = arms(**{name: {"last_fifth": [0.1, 0.1, 0.7]}})
    gaining["ab".replace(name, "")]["last_fifth"] = [-5.0] * 3
    assert judge(Contrast(A, B, "better"), gaining).verdict == Verdict("holds", early=True)
    assert judge(Contrast(B, A, "better"), gaining).verdict == Verdict("contradicted", early=True)
    gaining[name]["last_fifth"] = [0.0, 0.0, 0.3]  # 0.1
    assert judge(Contrast(A, B, "better"), gaining).verdict == Verdict("holds")
    gaining[name]["last_fifth"] = [0.7] * 3
    gaining[name]["full-sentences"][0]["mlm_loss"] = gaining[name]["train_loss"][0] = 5.9
    said = judge(Contrast(A, B, "better"), gaining).verdict
    assert said == Verdict("inconclusive", f"on the plateau: {name}")  # which says more than early


# ---- tasks

def test_more_is_better_in_tasks():
    """Catches a score that is judged like a loss, or a sum over tasks."""
    pair = {"a": {"tasks": scored({"x": 0.8, "y": 0.6}, {"x": 0.9, "y": 0.7})},
            "b": {"tasks": scored({"x": 0.7, "y": 0.5}, {"x": 0.8, "y": 0.6})}}
    effect = judge(Contrast(A, B, "better", 0.01, TASKS), arms(**pair))
    assert effect.gains == [pytest.approx(0.1)] * 2 and effect.verdict == Verdict("holds")
    assert effect.means == pytest.approx((0.25, 0.15))  # above a guess, not 0.75 and 0.65
    said = judge(Contrast(A, B, "better", 0.3, TASKS), arms(**pair)).verdict
    assert said == Verdict("no difference", "±30 points")


@pytest.mark.parametrize("name", "ab")
def test_arms_without_scores_are_not_compared_by_them(name):
    """Catches scores compared that were never taken: of either arm, of one seed only."""
    both = {"a": {"tasks": scored(*[{"x": 0.8}] * 3)}, "b": {"tasks": scored(*[{"x": 0.7}] * 3)}}
    assert judge(Contrast(A, B, "better", 0.01, TASKS), arms(**both)).verdict.kind == "holds"
    both[name]["tasks"][2] = {}
    said = judge(Contrast(A, B, "better", 0.01, TASKS), arms(**both)).verdict
    assert said == Verdict("refused", f"{name} was not fine-tuned on any task")


def test_what_a_student_retains():
    """Catches a share of raw scores, which a guess has half of, and a share of means over seeds."""
    kept = lambda ours, theirs: retained(record(tasks=scored(*ours)), record(tasks=scored(*theirs)))
    shares = kept([{"x": 0.68, "y": 0.59}, {"x": 0.69, "y": 0.60}], [{"x": 0.7, "y": 0.6}] * 2)
    assert shares["x"] == pytest.approx([0.9, 0.95])
    assert shares["mean"] == pytest.approx([0.9, 29 / 30])
    assert keeps(shares, 0.97) == Verdict("inconclusive")
    assert keeps(kept([{"x": 0.7}] * 2, [{"x": 0.7}] * 2), 0.97) == Verdict("holds")
    assert keeps(kept([{"x": 0.6}] * 2, [{"x": 0.7}] * 2), 0.97) == Verdict("contradicted")
    # In y one of the teachers has learned next to nothing, so a share of it would say nothing.
    students = [{"x": 0.6, "y": 0.6}] * 2
    for teachers in ([{"x": 0.7, "y": 0.51}, {"x": 0.7, "y": 0.6}],
                     [{"x": 0.7, "y": 0.6}, {"x": 0.7, "y": 0.51}]):
        assert kept(students, teachers).keys() == {"x", "mean"}
    guessing = kept([{"x": 0.5}] * 2, [{"x": 0.5}, {"x": 0.51}])
    assert keeps(guessing, 0.97) == Verdict("inconclusive", "the teacher has learned no task")


def test_floors_are_beaten_by_a_margin():
    """Catches a floor that is left out, one seed's score for the mean, and a lead by chance."""
    tasks = scored({"x": 0.9, "y": 0.72}, {"x": 0.7, "y": 0.72})
    tasks[0]["y"]["bigrams"] = 0.7
    assert floors(record(tasks=tasks)) == [("x", pytest.approx(0.8), "majority", 0.5, True),
                                           ("y", pytest.approx(0.72), "bigrams", 0.7, False)]


# ---- claims

def claim(*contrasts, **more):
    return Claim("x", "", contrasts or (Contrast(A, B, "better"),), "", "", **more)


def test_a_claim_goes_by_its_deciding_contrasts():
    """Catches a verdict by the kindest contrast, or by the first of two that decide together."""
    both = Contrast(B, A, "better"), Contrast(A, B, "better")
    assert judge_claim(claim(*both), arms()).verdict.kind == "contradicted"
    assert str(judge_claim(claim(*both, decides=2), arms()).verdict) == (
        "mixed: 1 of 2 hold, 1 contradicted")
    early = arms(a={"last_fifth": [0.3] * 3})
    assert judge_claim(claim(both[1]), early).verdict == Verdict("holds", early=True)
    assert judge_claim(claim(both[1], both[1], decides=2), early).verdict == Verdict("holds")


def test_a_gap_by_hand():
    """Catches a gap from the wrong end, shares of means, and a teacher's third seed, which nobody
    trained on, in the mean of two."""
    top, more = Arm("top"), Arm("more")
    measured = {"b": record((6.0, 6.2, 11.0)), "a": record((5.0, 4.2, 9.0)),
                "top": record((4.0, 4.2, 9.0)), "more": record((3.5, 3.9))}
    finding = judge_claim(claim(besides=(more,), gap=(B, A, top), trained_on=more), measured)
    assert finding.gap == pytest.approx([0.5, 1.0, 1.0])
    assert finding.trained_on == pytest.approx((0.4, 2.0))  # (0.5 + 0.3) / 2; of all three seeds
    assert finding.arms.keys() == {"a", "b", "more", "top"}


def test_nsp_has_to_be_learned_first():
    """Catches "NSP is of no use" where it was not learned: no better than by length alone."""
    def scores(*accuracies):
        measured = arms()
        for seed, accuracy in enumerate(accuracies):
            measured["b"]["segment-pair"][seed] |= {
                "nsp_accuracy": accuracy, "nsp_majority": 0.55, "nsp_length": 0.6}
        return measured
    assert nsp_unlearned(scores(0.70, 0.71, 0.70)["b"]) == ""
    why = nsp_unlearned(scores(0.58, 0.62, 0.60)["b"])
    assert "accuracy 0.600, 0.600 without" in why
    judged = lambda *accuracies: judge_claim(
        claim(Contrast(A, B, "no worse"), learns_nsp=B), scores(*accuracies)).verdict
    assert judged(0.58, 0.62, 0.60) == Verdict("inconclusive", why)
    assert judged(0.7, 0.71, 0.7) == Verdict("holds")


def test_a_reversed_ranking_is_told():
    """Catches the published order of effects taken for reproduced where ours is its reverse."""
    effects = lambda *gains: [Effect(Contrast(A, B, "better", measure=KL_TO_TEACHER),
                                     Verdict("holds"), [gain], gain) for gain in gains]
    assert reversed_rankings(effects(0.3, 0.2, 0.1)) == reversed_rankings(effects(0.2, 0.3, 0.1)) \
        == reversed_rankings(effects(0.1)) == []
    assert reversed_rankings(effects(0.1, 0.2, 0.3)) == [KL_TO_TEACHER]


def test_claims_that_are_judged():
    """Catches a claim that nobody asked for, one without its arms, a refusal that ends the report
    of everything else, and a stand-in that is taken although the arm itself was measured."""
    parted = Arm("parted", stand_in=A)
    claims = [Claim(id, "", (Contrast(first, B, "better"),), "", "") for id, first in (
        ("kept", A), ("parted", parted), ("left", A), ("small", A), ("lacks", Arm("c")))]
    results = {"arms": arms(), "refused": {"small": "too short"}, "left_out": ["left"]}
    judged = {finding.claim.id: finding for finding in judge_claims(claims, results)}
    assert [*judged] == ["kept", "parted", "small"]
    assert judged["small"].verdict == Verdict("refused", "too short") and not judged["small"].arms
    assert judged["parted"].effects[0].name == "a against b"
    results["arms"]["parted"] = record((5.0, 5.5, 6.0))
    judged = judge_claims(claims, results)[1]
    assert judged.effects[0].name == "parted against b" and judged.verdict.kind == "contradicted"
