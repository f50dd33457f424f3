"""What measurements say about a claim: paired intervals, verdicts, and the rules of comparing.

The rules that a comparison must meet are enforced here, and each says why it was not met: one
evaluation set, equal tokens, paired seeds, runs that have left the plateau, and an effect that is
larger than what the runs were still gaining when they ended. Nothing here is stored: a verdict is
made of results.json whenever it is shown.
"""
import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lab.claims import TASKS, Arm, Claim, Contrast, arms_of
from lab.measure import losses
from minibert.errors import UserError
from minibert.tasks.tasks import FLOORS

# Two-sided 95 % points of Student's t, by degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
# Nats below the unigram entropy that a run must have reached to be compared. A part of that needs
# no context: one target in five is not shown as [MASK], and half of those are shown as they are.
PLATEAU = 0.5
UNEQUAL = 0.01  # share by which the tokens of two arms may differ
RETAIN_MARGIN = 0.03  # a share of the teacher's score that is too small to matter
LEARNED_TASK = 0.02  # above the most frequent answer: a teacher's lower score is not shared out
FLOOR_MARGIN = 0.03  # by which a fine-tuned model has to beat each floor of a task

Arms = dict[str, dict[str, Any]]  # what `measure` returns of each arm, by its name


@dataclass(frozen=True)
class Verdict:
    """What is said of a contrast or a claim."""
    kind: str  # holds, contradicted, no difference, inconclusive, mixed or refused
    reason: str = ""  # why it is open, what counts as no difference, or how a mixture is made up
    early: bool = False  # longer runs may decide otherwise

    def __str__(self) -> str:
        """In words.

        >>> str(Verdict("no difference", "±0.05", early=True)), str(Verdict("refused", "too short"))
        ('no difference beyond ±0.05 (early)', 'refused: too short')
        """
        form = {"no difference": "{} beyond {}", "inconclusive": "{} ({})"}.get(self.kind, "{}: {}")
        says = form.format(self.kind, self.reason) if self.reason else self.kind
        return says + " (early)" * self.early


@dataclass(frozen=True)
class Effect:
    """A contrast that was judged: the first arm's gains by seed, their mean and its interval."""
    contrast: Contrast
    verdict: Verdict
    gains: list[float] = field(default_factory=list)  # none where it was refused
    gain: float = 0.0
    low: float = 0.0
    high: float = 0.0
    means: tuple[float, ...] = ()  # of the two arms, over the seeds that both have

    @property
    def name(self) -> str:
        """What the report calls it."""
        first, second = self.contrast.first.name, self.contrast.second.name
        return self.contrast.name or f"{first} against {second}"


@dataclass(frozen=True)
class Finding:
    """A claim that was judged, and what it asks for besides its contrasts."""
    claim: Claim
    verdict: Verdict
    effects: list[Effect] = field(default_factory=list)
    arms: Arms = field(default_factory=dict)  # the measurements of its arms
    gap: list[float] = field(default_factory=list)  # the share that is closed, by seed
    # Nats that the gap's teacher gains when it is trained on, and that the untaught are behind it.
    trained_on: tuple[float, float] | None = None
    retained: dict[str, list[float]] = field(default_factory=dict)  # shares by task, by seed
    floors: list[tuple[str, float, str, float, bool]] = field(default_factory=list)
    reversed: list[str] = field(default_factory=list)  # measures by which effects rank in reverse


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Return the mean of paired differences and its 95 % interval by Student's t.

    Raises UserError for a number of seeds that gives no interval.
    >>> ["%.3f" % value for value in interval([1.0, 2.0, 3.0])]
    ['2.000', '-0.484', '4.484']
    """
    count = len(differences)
    if not 2 <= count <= len(T95) + 1:
        raise UserError(f"{count} seeds give no interval; use 2 to {len(T95) + 1}")
    mean = float(np.mean(differences))
    half = T95[count - 2] * float(np.std(differences, ddof=1)) / count**0.5
    return mean, mean - half, mean + half


def verdict(question: str, low: float, high: float, margin: float) -> str:
    """Return the kind of verdict that an interval of the first arm's gain gives.

    The margin was fixed before, in the units of the gain.
    >>> verdict("better", 0.1, 0.2, 0.05), verdict("better", -0.03, 0.04, 0.05)
    ('holds', 'no difference')
    >>> verdict("no worse", -0.04, 0.2, 0.05), verdict("no worse", -0.2, 0.2, 0.05)
    ('holds', 'inconclusive')
    """
    if -margin < low and high < margin:
        return "no difference"
    if low > (margin if question == "better" else -margin):
        return "holds"
    if high < (0 if question == "better" else -margin):
        return "contradicted"
    return "inconclusive"


def above_majority(tasks: dict[str, dict]) -> float:
    """Return the mean score (0 to 1) of a run's tasks above that of the most frequent answer."""
    return float(np.mean([task["score"] - task["majority"] for task in tasks.values()]))


def judge(contrast: Contrast, arms: Arms) -> Effect:
    """Judge one contrast. Arms that may not be compared give no gains, and the verdict says why."""
    both = [arms[contrast.first.name], arms[contrast.second.name]]
    if why := refusal(contrast, arms):
        return Effect(contrast, Verdict("refused", why))
    kind, _, name = contrast.measure.partition(".")
    values = [[above_majority(tasks) for tasks in arm["tasks"]] if contrast.measure == TASKS
              else [scores[name] for scores in arm[kind]] for arm in both]
    pairs = list(zip(*values))  # of an arm with more seeds, those that the other has, too
    sign = 1 if contrast.measure == TASKS else -1  # a score should be high, a loss low
    gains = [sign * (first - second) for first, second in pairs]
    gain, low, high = interval(gains)
    scale, unit = (100, " points") if contrast.measure == TASKS else (1, "")
    says = verdict(contrast.question, scale * low, scale * high, scale * contrast.margin)
    early, reason = False, ""
    if contrast.measure != TASKS:
        early = abs(gain) < max(float(np.mean(arm["last_fifth"])) for arm in both)
    if says == "no difference":
        reason = f"±{scale * contrast.margin:g}{unit}"
    elif says == "inconclusive" and not early:
        reason = f"{len(gains)} seeds tell it to ±{scale * (high - low) / 2:.2g}{unit}"
    if contrast.measure != TASKS:
        if stuck := [arm.name for arm in (contrast.first, contrast.second)
                     if on_plateau(arms[arm.name], kind)]:
            says, reason, early = "inconclusive", f"on the plateau: {', '.join(stuck)}", False
    return Effect(contrast, Verdict(says, reason, early), gains, gain, low, high,
                  tuple(float(np.mean(side)) for side in zip(*pairs)))


def refusal(contrast: Contrast, arms: Arms) -> str:
    """Return why the arms of a contrast may not be compared at all; "" where they may."""
    names = first, second = contrast.first.name, contrast.second.name
    if contrast.measure == TASKS:
        for name in names:
            if not all(arms[name]["tasks"]):
                return f"{name} was not fine-tuned on any task"
    else:
        kind = contrast.measure.split(".")[0]
        hashes = {scores["hash"] for name in names for scores in arms[name][kind]}
        if len(hashes) > 1:
            return (f"{first} and {second} were evaluated on different sets "
                    f"({', '.join(sorted(hashes))})")
    ours, theirs = (float(np.mean(arms[name]["tokens"])) for name in names)
    if contrast.apart != "tokens" and abs(ours / theirs - 1) > UNEQUAL:
        return f"{first} saw {ours:,.0f} tokens, {second} {theirs:,.0f}"
    return ""


def on_plateau(arm: dict[str, Any], kind: str) -> bool:
    """Return whether a run of an arm has learned nothing from context, on the compared set.

    A run that has learned its few training masks by heart has left the plateau, however badly it
    does on others.
    """
    return any(min(scores["mlm_loss"], training) > scores["unigram_entropy"] - PLATEAU
               for scores, training in zip(arm[kind], arm["train_loss"]))


def measured_claim(claim: Claim, arms: Arms) -> Claim:
    """Return a claim with the stand-in of each arm that was measured before the two parted."""
    there = lambda arm: arm if arm.name in arms else arm.stand_in or arm
    return dataclasses.replace(claim, contrasts=tuple(
        dataclasses.replace(contrast, first=there(contrast.first), second=there(contrast.second))
        for contrast in claim.contrasts))


def judge_claims(claims: tuple[Claim, ...], results: dict[str, Any]) -> list[Finding]:
    """Judge the claims that were asked for, in their order.

    results: the content of results.json. A claim whose arms it lacks is passed over.
    """
    findings = []
    for claim in claims:
        claim = measured_claim(claim, results["arms"])
        if why := results["refused"].get(claim.id):
            findings.append(Finding(claim, Verdict("refused", why)))
        elif claim.id not in results["left_out"] and all(
                arm.name in results["arms"] for arm in arms_of(claim)):
            findings.append(judge_claim(claim, results["arms"]))
    return findings


def judge_claim(claim: Claim, arms: Arms) -> Finding:
    """Judge all contrasts of a claim, of which the first `decides` give the verdict."""
    effects = [judge(contrast, arms) for contrast in claim.contrasts]
    deciding = effects[:claim.decides]
    says = together([effect.verdict for effect in deciding])
    if claim.learns_nsp and (why := nsp_unlearned(arms[claim.learns_nsp.name])):
        says = Verdict("inconclusive", why)
    shares = {}
    if claim.retains:
        student, teacher, share = claim.retains
        shares = retained(arms[student.name], arms[teacher.name])
        says = keeps(shares, share)
    return Finding(
        claim, says, effects, {arm.name: arms[arm.name] for arm in arms_of(claim)},
        gap_closed(claim.gap, arms) if claim.gap else [],
        teacher_not_done(claim, arms) if claim.trained_on else None, shares,
        floors(arms[claim.beats_floors.name]) if claim.beats_floors else [],
        reversed_rankings(deciding) if claim.ranked else [])


def together(verdicts: list[Verdict]) -> Verdict:
    """Return the verdict that deciding contrasts share, or how often each was given.

    >>> str(together([Verdict("holds"), Verdict("holds", early=True)]))
    'holds'
    >>> str(together([Verdict("holds"), Verdict("no difference", "±1"), Verdict("holds")]))
    'mixed: 2 of 3 hold, 1 no difference'
    """
    if len(verdicts) == 1:
        return verdicts[0]
    kinds = [verdict.kind for verdict in verdicts]
    if len(set(kinds)) == 1:
        return Verdict(kinds[0])
    counts = {kind: kinds.count(kind) for kind in kinds}
    first = f"{counts.pop('holds', 0)} of {len(kinds)} hold"
    return Verdict("mixed", ", ".join([first, *(f"{count} {kind}"
                                                for kind, count in counts.items())]))


def nsp_unlearned(arm: dict[str, Any]) -> str:
    """Return why an arm cannot be said to have learned next sentences; "" where it can.

    Its accuracy has to be above that of the more frequent answer and of the pair's length alone.
    """
    pairs = arm["segment-pair"]
    accuracies = [scores["nsp_accuracy"] for scores in pairs]
    without = [max(scores["nsp_majority"], scores["nsp_length"]) for scores in pairs]
    if interval([accuracy - floor for accuracy, floor in zip(accuracies, without)])[1] > 0:
        return ""
    return (f"NSP was not learned here: accuracy {np.mean(accuracies):.3f}, "
            f"{np.mean(without):.3f} without reading")


def reversed_rankings(effects: list[Effect]) -> list[str]:
    """Return the measures on which the published order of effects, largest first, is reversed."""
    measures = []
    for measure in dict.fromkeys(effect.contrast.measure for effect in effects):
        gains = [effect.gain for effect in effects
                 if effect.contrast.measure == measure and effect.gains]
        if len(gains) > 1 and gains == sorted(gains):
            measures.append(measure)
    return measures


def gap_closed(gap: tuple[Arm, Arm, Arm], arms: Arms) -> list[float]:
    """Return by seed the share of the loss between the first arm and the last that the second
    saves."""
    return [(worst - between) / (worst - best)
            for worst, between, best in zip(*(losses(arms[arm.name]) for arm in gap))]


def teacher_not_done(claim: Claim, arms: Arms) -> tuple[float, float]:
    """Return the nats that the gap's teacher gains when trained on, and that the untaught lack.

    Means of the seeds that both arms have. Where the first is more than half of the second, the
    teacher was not done, and what its student learns may be what any more steps teach.
    """
    untaught, teacher, more = (losses(arms[arm.name]) for arm in (
        claim.gap[0], claim.gap[-1], claim.trained_on))
    return (float(np.mean([before - after for before, after in zip(teacher, more)])),
            float(np.mean([worse - better for worse, better in zip(untaught, teacher)])))


def retained(student: dict[str, Any], teacher: dict[str, Any]) -> dict[str, list[float]]:
    """Return by task and by seed the share of the teacher's score above the floor that is kept.

    "mean" is the share of the mean score. Tasks that the teacher has not learned are left out: a
    share of next to nothing would say nothing.
    """
    def above(tasks: dict[str, dict]) -> dict[str, float]:
        scores = {name: task["score"] - task["majority"] for name, task in tasks.items()}
        return {**scores, "mean": above_majority(tasks)} if scores else {}

    ours, theirs = ([above(tasks) for tasks in arm["tasks"]] for arm in (student, teacher))
    learned = [name for name in theirs[0] if all(seed[name] > LEARNED_TASK for seed in theirs)]
    return {name: [mine[name] / its[name] for mine, its in zip(ours, theirs)] for name in learned}


def keeps(shares: dict[str, list[float]], share: float) -> Verdict:
    """Return whether the student keeps as large a share of its teacher's mean score."""
    if "mean" not in shares:
        return Verdict("inconclusive", "the teacher has learned no task")
    _, low, high = interval(shares["mean"])
    kept = verdict("no worse", low - share, high - share, RETAIN_MARGIN)
    return Verdict("holds" if kept == "no difference" else kept)


def floors(arm: dict[str, Any]) -> list[tuple[str, float, str, float, bool]]:
    """Return by task an arm's mean score, the best score that needs no model and its name, and
    whether it is beaten by a margin."""
    stand = []
    for name, task in arm["tasks"][0].items():
        score = float(np.mean([tasks[name]["score"] for tasks in arm["tasks"]]))
        best = max((floor for floor in FLOORS if floor in task), key=task.get)
        stand.append((name, score, best, task[best], score > task[best] + FLOOR_MARGIN))
    return stand
