"""What finished runs say about a claim: paired intervals, verdicts, and the rules of comparing.

The rules that a comparison must meet are enforced here, and each says why it was not met: one
evaluation set, equal tokens, paired seeds, runs that have left the plateau, and an effect that is
larger than what the runs were still gaining when they ended.
"""
import json
from pathlib import Path
from typing import Any

import numpy as np

from lab.claims import KL_TO_TEACHER, PAIRS_LOSS, TASKS, Arm, Claim, Contrast
from minibert.errors import UserError
from minibert.tasks.tasks import FLOORS

# Two-sided 95 % points of Student's t, by degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
# Nats below the unigram entropy that a run must have reached to be compared. A part of that needs
# no context: one target in five is not shown as [MASK], and half of those are shown as they are.
PLATEAU = 0.5
UNEQUAL = 0.01  # share by which the tokens of two arms may differ
LAST_FIFTH = 0.8  # the share of the steps after which the last fifth begins
RETAIN_MARGIN = 0.03  # a share of the teacher's score that is too small to matter
LEARNED_TASK = 0.02  # above the most frequent answer: a teacher's lower score is not shared out
FLOOR_MARGIN = 0.03  # by which a fine-tuned model has to beat each floor of a task

Results = dict[Arm, list[dict[str, Any]]]  # what `metrics_of` returns, for each seed of an arm


def metrics_of(out: Path) -> dict[str, Any]:
    """Return metrics.json of a run, with what its log adds.

    curve: (step, held-out loss) along the run. epochs: how many it began. train_loss: the mean of
    the last tenth. last_fifth: nats that the last fifth of its steps still gained.
    """
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (out / "log.jsonl").open(encoding="utf-8")]
    curve = [(line["step"], line["eval"]["mlm_loss"]) for line in log if "eval" in line]
    final = metrics["full-sentences"]["mlm_loss"]
    # A run of no steps has logged nothing; its only loss is that of its initial weights.
    losses = [line["mlm"] for line in log if "mlm" in line] or [final]
    before = np.interp(LAST_FIFTH * metrics["steps"], *zip(*curve)) if curve else final
    return {**metrics, "train_loss": float(np.mean(losses[-max(1, len(losses) // 10):])),
            "curve": curve, "epochs": 1 + max((line.get("epoch", 0) for line in log), default=0),
            "last_fifth": float(before) - final}


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


def verdict(question: str, low: float, high: float, margin: float, unit: str = "") -> str:
    """Return what an interval of the first arm's gain says; the margin was fixed before.

    >>> verdict("better", 0.1, 0.2, 0.05), verdict("better", -0.03, 0.04, 0.05)
    ('holds', 'no difference beyond ±0.05')
    >>> verdict("no worse", -0.04, 0.2, 0.05), verdict("no worse", -0.2, 0.2, 0.05)
    ('holds', 'inconclusive')
    """
    if -margin < low and high < margin:
        return f"no difference beyond ±{margin:g}{unit}"
    if low > (margin if question == "better" else -margin):
        return "holds"
    if high < (0 if question == "better" else -margin):
        return "contradicted"
    return "inconclusive"


def measured(metrics: dict[str, Any], measure: str) -> float:
    """Return a run's loss in nats, or its mean score above the most frequent answer's."""
    if measure == TASKS:
        return float(np.mean([task["score"] - task["majority"]
                              for task in metrics["tasks"].values()]))
    kind, name = measure.split(".")
    return metrics[kind][name]


def judge(contrast: Contrast, results: Results) -> dict[str, Any]:
    """Judge one contrast: gains by seed, their interval, the verdict.

    Arms that may not be compared give no gains, and the verdict says why.
    """
    arms = (contrast.first, contrast.second)
    summary = {"name": contrast.name or f"{arms[0].name} against {arms[1].name}",
               "first": arms[0].name, "second": arms[1].name, "question": contrast.question,
               "measure": contrast.measure, "margin": contrast.margin}
    if why := refusal(contrast, results):
        return {**summary, "gains": [], "verdict": f"refused: {why}"}
    # Where one arm has more seeds than the other, those that both have are paired.
    pairs = list(zip(*([measured(metrics, contrast.measure) for metrics in results[arm]]
                       for arm in arms)))
    sign = 1 if contrast.measure == TASKS else -1  # a score should be high, a loss low
    gains = [sign * (first - second) for first, second in pairs]
    mean, low, high = interval(gains)
    scale, unit = (100, " points") if contrast.measure == TASKS else (1, "")
    says = verdict(contrast.question, scale * low, scale * high, scale * contrast.margin, unit)
    if contrast.measure != TASKS:
        last = max(np.mean([metrics["last_fifth"] for metrics in results[arm]]) for arm in arms)
        if abs(mean) < last:
            says += " (early)"
        kind = contrast.measure.split(".")[0]
        if stuck := [arm.name for arm in arms
                     if any(on_plateau(metrics, kind) for metrics in results[arm])]:
            says = f"inconclusive (on the plateau: {', '.join(stuck)})"
    if says == "inconclusive":
        says += f" ({len(gains)} seeds tell it to ±{scale * (high - low) / 2:.2g}{unit})"
    return {**summary, "gains": gains, "gain": mean, "low": low, "high": high, "verdict": says,
            "means": [float(np.mean(values)) for values in zip(*pairs)]}


def in_words(contrast: dict[str, Any]) -> str:
    """Return a contrast's effect with its unit and what it stands for.

    >>> in_words({"measure": "full-sentences.mlm_loss", "gains": [0.28], "gain": 0.28, "low": 0.2,
    ...           "high": 0.36, "means": [3.53, 3.81]})
    '+0.280 nats [+0.200, +0.360], a perplexity of 34 against 45'
    >>> in_words({"measure": "tasks", "gains": [0.031], "gain": 0.031, "low": 0.01, "high": 0.052,
    ...           "means": [0.25, 0.219]})
    '+3.1 points [+1.0, +5.2], 25.0 against 21.9 above the most frequent answer'
    """
    if not contrast["gains"]:
        return "not compared"
    first, second = contrast["means"]
    scale, digits, unit = (100, 1, "points") if contrast["measure"] == TASKS else (1, 3, "nats")
    gain, low, high = (f"{scale * contrast[key]:+.{digits}f}" for key in ("gain", "low", "high"))
    effect = f"{gain} {unit} [{low}, {high}]"
    if contrast["measure"] == TASKS:
        return (f"{effect}, {100 * first:.1f} against {100 * second:.1f} above the most frequent "
                "answer")
    if contrast["measure"] == KL_TO_TEACHER:
        return f"{effect}, {first:.3f} against {second:.3f} nats away from the teacher"
    return f"{effect}, a perplexity of {np.exp(first):.0f} against {np.exp(second):.0f}"


def refusal(contrast: Contrast, results: Results) -> str:
    """Return why the arms of a contrast may not be compared at all; "" where they may."""
    first, second = contrast.first, contrast.second
    if contrast.measure == TASKS:
        for arm in (first, second):
            if not all(metrics["tasks"] for metrics in results[arm]):
                return f"{arm.name} was not fine-tuned on any task"
    else:
        kind = contrast.measure.split(".")[0]
        hashes = {metrics[kind]["hash"] for metrics in results[first] + results[second]}
        if len(hashes) > 1:
            return (f"{first.name} and {second.name} were evaluated on different sets "
                    f"({', '.join(sorted(hashes))})")
    ours, theirs = (float(np.mean([metrics["tokens"] for metrics in results[arm]]))
                    for arm in (first, second))
    if contrast.apart != "tokens" and abs(ours / theirs - 1) > UNEQUAL:
        return f"{first.name} saw {ours:,.0f} tokens, {second.name} {theirs:,.0f}"
    return ""


def on_plateau(metrics: dict[str, Any], kind: str) -> bool:
    """Return whether a run has learned nothing from context, on the held-out set that is compared.

    A run that has learned its few training masks by heart has left the plateau, however badly it
    does on others.
    """
    found = metrics[kind]
    return min(found["mlm_loss"], metrics["train_loss"]) > found["unigram_entropy"] - PLATEAU


def judge_claim(claim: Claim, results: Results) -> dict[str, Any]:
    """Judge all contrasts of a claim, of which the first `decides` give the verdict."""
    contrasts = [judge(contrast, results) for contrast in claim.contrasts]
    deciding = contrasts[:claim.decides]
    says = [f"{one['name']}{', in pairs' * (one['measure'] == PAIRS_LOSS)}: {in_words(one)}"
            for one in contrasts[:max(2, min(3, claim.decides))]]  # the report has all of them
    found = dict(id=claim.id, says=claim.says, verdict=together([c["verdict"] for c in deciding]),
                 published=claim.published, differs=claim.differs, contrasts=contrasts)
    if claim.learns_nsp and (unlearned := nsp_unlearned(results[claim.learns_nsp])):
        found["verdict"] = f"inconclusive: {unlearned}"
    if claim.ranked:
        says += reversed_rankings(deciding)
    if claim.gap:
        found["gap"] = gap_closed(claim.gap, results)
        says.append(found["gap"]["says"])
    if claim.retains:
        found["retained"] = retained(*claim.retains, results)
        found["verdict"] = found["retained"]["verdict"]
        says = [found["retained"]["says"]]
    if claim.beats_floors:
        says.append(above_floors(results[claim.beats_floors]))
    return {**found, "found": "; ".join(says),
            "arms": {arm.name: arm_results(arm, results[arm]) for arm in arms_of(claim)}}


def together(verdicts: list[str]) -> str:
    """Return the verdict that deciding contrasts share, or how often each was given.

    >>> together(["holds", "holds (early)"]), together(["holds", "inconclusive", "holds"])
    ('holds', 'mixed: 2 of 3 hold, 1 inconclusive')
    >>> together(["holds", "no difference beyond ±0.05", "no difference beyond ±1 points"])
    'mixed: 1 of 3 hold, 2 no difference'
    """
    if len(verdicts) == 1:
        return verdicts[0]
    kinds = [one.split(" (")[0].split(":")[0].split(" beyond")[0] for one in verdicts]
    counts = {kind: kinds.count(kind) for kind in kinds}
    if len(counts) == 1:
        return kinds[0]
    first = f"{counts.pop('holds', 0)} of {len(kinds)} hold"
    return "mixed: " + ", ".join([first, *(f"{count} {kind}" for kind, count in counts.items())])


def nsp_unlearned(metrics: list[dict[str, Any]]) -> str:
    """Return why an arm cannot be said to have learned next sentences; "" where it can.

    Its accuracy has to be above that of the more frequent answer and of the pair's length alone.
    metrics: of each seed.
    """
    scores = [one["segment-pair"] for one in metrics]
    accuracies = [one["nsp_accuracy"] for one in scores]
    floors = [max(one["nsp_majority"], one["nsp_length"]) for one in scores]
    if interval([accuracy - floor for accuracy, floor in zip(accuracies, floors)])[1] > 0:
        return ""
    return (f"NSP was not learned here (accuracy {np.mean(accuracies):.3f}, "
            f"{np.mean(floors):.3f} without reading)")


def reversed_rankings(contrasts: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each measure on which the published order of effects is reversed."""
    says = []
    for measure in dict.fromkeys(one["measure"] for one in contrasts):
        gains = [one["gain"] for one in contrasts if one["measure"] == measure and one["gains"]]
        if len(gains) > 1 and gains == sorted(gains):
            says.append(f"by {measure} the effects rank in the reverse of the published order, "
                        "which is not reproduced here")
    return says


def gap_closed(gap: tuple[Arm, Arm, Arm], results: Results) -> dict[str, Any]:
    """Return the share of the loss between the first arm and the last that the second saves."""
    worst, between, best = ([metrics["full-sentences"]["mlm_loss"] for metrics in results[arm]]
                            for arm in gap)
    shares = [(a - b) / (a - c) for a, b, c in zip(worst, between, best)]
    mean, low, high = interval(shares)
    return {"shares": shares, "says": f"{gap[1].name} closes {mean:.0%} [{low:.0%}, {high:.0%}] of "
            f"the gap from {gap[0].name} to {gap[2].name}"}


def retained(student: Arm, teacher: Arm, share: float, results: Results) -> dict[str, Any]:
    """Return the share of the teacher's score above the floor that the student keeps.

    Of each task and of their mean, by seed, with the verdict on the mean.
    """
    def above(metrics: dict[str, Any]) -> dict[str, float]:
        scores = {name: one["score"] - one["majority"] for name, one in metrics["tasks"].items()}
        return {**scores, "mean": float(np.mean(list(scores.values())))} if scores else {}

    ours, theirs = ([above(metrics) for metrics in results[arm]] for arm in (student, teacher))
    # A share of next to nothing would say nothing.
    learned = [name for name in theirs[0] if all(one[name] > LEARNED_TASK for one in theirs)]
    shares = {name: [one[name] / other[name] for one, other in zip(ours, theirs)]
              for name in learned}
    if "mean" not in shares:
        return {"shares": shares, "verdict": "inconclusive: the teacher has learned no task",
                "says": f"{teacher.name} scores no better than the most frequent answer"}
    mean, low, high = interval(shares["mean"])
    says = (f"{student.name} keeps {mean:.0%} [{low:.0%}, {high:.0%}] of what {teacher.name} "
            "scores above the most frequent answer")
    tasks = ", ".join(f"{name} {np.mean(values):.0%}" for name, values in shares.items()
                      if name != "mean")
    kept = verdict("no worse", low - share, high - share, RETAIN_MARGIN)
    return {"shares": shares, "says": f"{says} ({tasks})",
            "verdict": "holds" if kept.startswith("no difference") else kept}


def above_floors(metrics: list[dict[str, Any]]) -> str:
    """Return by how much an arm beats the best score that needs no model, task by task.

    metrics: of each seed.
    """
    says = []
    for name, first in metrics[0]["tasks"].items():
        score = np.mean([one["tasks"][name]["score"] for one in metrics])
        best = max((floor for floor in FLOORS if floor in first), key=first.get)
        beats = "beats" if score > first[best] + FLOOR_MARGIN else "does not beat"
        says.append(f"{name} {score:.3f} {beats} {best.replace('_', ' ')} {first[best]:.3f}")
    return ", ".join(says)


def arms_of(claim: Claim) -> list[Arm]:
    """Return the arms of a claim, each once, in the order in which it names them."""
    contrasts = [arm for contrast in claim.contrasts for arm in (contrast.first, contrast.second)]
    return list(dict.fromkeys([*contrasts, *claim.besides, *(claim.gap or ())]))


def arm_results(arm: Arm, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the report shows of an arm; lists are by seed."""
    return {"teacher": arm.teacher.name if arm.teacher else None,
            **{key: metrics[0][key] for key in ("layers", "parameters", "disk", "steps", "epochs")},
            **{key: [one[key] for one in metrics] for key in (
                "tokens", "seconds", "full-sentences", "segment-pair", "train_loss", "last_fifth",
                "curve", "tasks")}}


def losses(arm: dict[str, Any], kind: str = "full-sentences") -> list[float]:
    """The held-out losses by seed of an arm as `arm_results` returns it."""
    return [found["mlm_loss"] for found in arm[kind]]
