"""What finished runs say about a claim: paired intervals, verdicts, and the rules of comparing.

The rules that a comparison must meet are enforced here, and each says why it was not met: one
evaluation set, equal tokens, paired seeds, and runs that have left the plateau.
"""
import json
from pathlib import Path
from typing import Any

import numpy as np

from minibert.claims.claims import PAIRS_LOSS, Arm, Claim, Contrast
from minibert.errors import UserError

# Two-sided 95 % points of Student's t, by degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
# Nats below the unigram entropy that a run must have got to be compared. A part of that is to be
# had without context: one target in five is not shown as [MASK], and half of those as they are.
PLATEAU = 0.5
UNEQUAL = 0.01  # share by which the tokens of two arms may differ

Results = dict[tuple[Arm, int], dict[str, Any]]  # an arm and a seed: what `metrics_of` returns


def metrics_of(out: Path) -> dict[str, Any]:
    """metrics.json of a run, and from its log: curve, (step, held-out loss) along the run, epochs
    that it began, and train_loss, the mean of the last tenth. disk: bytes of its weights."""
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (out / "log.jsonl").open(encoding="utf-8")]
    losses = [line["mlm"] for line in log if "mlm" in line]
    curve = [(line["step"], line["eval"]["mlm_loss"]) for line in log if "eval" in line]
    return {**metrics, "train_loss": float(np.mean(losses[-max(1, len(losses) // 10):])),
            "curve": curve, "epochs": 1 + max(line.get("epoch", 0) for line in log),
            "disk": (out / "pytorch_model.bin").stat().st_size}


def interval(differences: list[float]) -> tuple[float, float, float]:
    """The mean of paired differences and its 95 % interval by Student's t.

    Raises UserError for a number of seeds that gives none.
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
    """What an interval of the gain of the first arm says; the margin was fixed before.

    >>> verdict("better", 0.1, 0.2, 0.05), verdict("better", -0.03, 0.04, 0.05)
    ('holds', 'no difference beyond ±0.05')
    >>> verdict("no worse", -0.04, 0.2, 0.05), verdict("no worse", -0.2, 0.2, 0.05)
    ('holds', 'inconclusive')
    """
    if -margin < low and high < margin:
        return f"no difference beyond ±{margin:g}"
    if low > (margin if question == "better" else -margin):
        return "holds"
    if high < (0 if question == "better" else -margin):
        return "contradicted"
    return "inconclusive"


def judge(contrast: Contrast, results: Results, seeds: range) -> dict[str, Any]:
    """One contrast: gains by seed, their interval, the verdict.

    Arms that may not be compared give no gains, and the verdict says why.
    """
    arms = (contrast.first, contrast.second)
    about = {"name": contrast.name or f"{arms[0].name} against {arms[1].name}",
             "first": arms[0].name, "second": arms[1].name, "question": contrast.question,
             "measure": contrast.measure, "margin": contrast.margin}
    if why := refusal(contrast, results, seeds):
        return {**about, "gains": [], "verdict": f"refused: {why}"}
    kind, name = contrast.measure.split(".")
    first, second = ([results[arm, seed][kind][name] for seed in seeds] for arm in arms)
    gains = [loss - better for better, loss in zip(first, second)]
    mean, low, high = interval(gains)
    says = verdict(contrast.question, low, high, contrast.margin)
    if stuck := [arm.name for arm in arms
                 if any(on_plateau(results[arm, seed], kind) for seed in seeds)]:
        says = f"inconclusive (on the plateau: {', '.join(stuck)})"
    return {**about, "gains": gains, "gain": mean, "low": low, "high": high, "verdict": says}


def refusal(contrast: Contrast, results: Results, seeds: range) -> str:
    """Why the arms of a contrast may not be compared at all; "" where they may."""
    first, second = contrast.first, contrast.second
    found = {arm: [results[arm, seed] for seed in seeds] for arm in (first, second)}
    kind = contrast.measure.split(".")[0]
    hashes = {metrics[kind]["hash"] for arm in found for metrics in found[arm]}
    if len(hashes) > 1:
        return (f"{first.name} and {second.name} were evaluated on different sets "
                f"({', '.join(sorted(hashes))})")
    tokens = [float(np.mean([metrics["tokens"] for metrics in found[arm]])) for arm in found]
    if contrast.apart != "tokens" and abs(tokens[0] / tokens[1] - 1) > UNEQUAL:
        return f"{first.name} saw {tokens[0]:,.0f} tokens, {second.name} {tokens[1]:,.0f}"
    return ""


def on_plateau(metrics: dict[str, Any], kind: str) -> bool:
    """Whether a run has learned nothing from context, on the held-out set that is compared.

    One that has learned its few training masks by heart is not there, however bad it is on others.
    """
    found = metrics[kind]
    return min(found["mlm_loss"], metrics["train_loss"]) > found["unigram_entropy"] - PLATEAU


def judge_claim(claim: Claim, results: Results, seeds: range) -> dict[str, Any]:
    """All contrasts of a claim, of which the first gives the verdict, and its arms' figures."""
    contrasts = [judge(contrast, results, seeds) for contrast in claim.contrasts]
    says = []
    for one in contrasts[:claim.shown]:
        says.append(one["name"] + ", in pairs" * (one["measure"] == PAIRS_LOSS))
        if one["gains"]:
            says[-1] += f": {one['gain']:+.3f} nats [{one['low']:+.3f}, {one['high']:+.3f}]"
    found = dict(id=claim.id, says=claim.says, verdict=contrasts[0]["verdict"],
                 found="; ".join(says), published=claim.published, differs=claim.differs,
                 contrasts=contrasts)
    if claim.gap:
        found["gap"] = gap_closed(claim.gap, results, seeds)
        found["found"] += f"; {found['gap']['says']}"
    return {**found, "arms": {arm.name: arm_results(arm, results, seeds) for arm in arms_of(claim)}}


def gap_closed(gap: tuple[Arm, Arm, Arm], results: Results, seeds: range) -> dict[str, Any]:
    """The share of the loss between the first arm and the last that the second saves, by seed."""
    worst, between, best = ([results[arm, seed]["full-sentences"]["mlm_loss"] for seed in seeds]
                            for arm in gap)
    shares = [(a - b) / (a - c) for a, b, c in zip(worst, between, best)]
    mean, low, high = interval(shares)
    return {"shares": shares, "says": f"{gap[1].name} closes {mean:.0%} [{low:.0%}, {high:.0%}] of "
            f"the gap from {gap[0].name} to {gap[2].name}"}


def arms_of(claim: Claim) -> list[Arm]:
    """The arms of a claim, each once, in the order in which it names them."""
    contrasts = [arm for contrast in claim.contrasts for arm in (contrast.first, contrast.second)]
    return list(dict.fromkeys([*contrasts, *claim.besides, *(claim.gap or ())]))


def arm_results(arm: Arm, results: Results, seeds: range) -> dict[str, Any]:
    """What the report shows of an arm: lists are by seed."""
    metrics = [results[arm, seed] for seed in seeds]
    return {"teacher": arm.teacher.name if arm.teacher else None,
            **{key: metrics[0][key] for key in ("layers", "parameters", "disk", "steps", "epochs")},
            **{key: [one[key] for one in metrics] for key in (
                "tokens", "seconds", "full-sentences", "segment-pair", "train_loss", "curve",
                "tasks")}}
