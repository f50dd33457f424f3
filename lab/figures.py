"""The figures of a report, by matplotlib, which the package needs for nothing else.

Losses (nats) and scores of tasks (points) are different quantities, so no panel shows both. Every
axis is linear: a value that runs off it is an arrowhead at the edge, and its number stands at the
right. Marks differ in shape and in lightness, so that they can be told apart in grey, too.
"""
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave

from lab.claims import KL_TO_TEACHER, PAIRS_LOSS, TASKS
from lab.judge import Arms, Effect, Finding
from lab.measure import losses

RING = {"marker": "o", "color": "#08306b", "markerfacecolor": "none"}
MARKS = {"held-out": RING, "in pairs": {"marker": "s", "color": "0.5"},
         "training": {"marker": "x", "color": "#e08214"}, "gain of a seed": RING}
# The scale of a unit (scores are fractions of 1), the end of its axis, beyond which a gain would
# hide the differences between all others, and what is gained.
UNITS = {"nats": (1, 2.0, "gain in nats per masked token"),
         "points": (100, 40.0, "gain in the mean score of the tasks, points of a hundred")}
# Of a gain, what its axis does not say.
LABELS = {PAIRS_LOSS: "\n(loss in pairs)", KL_TO_TEACHER: "\n(distance from the teacher)"}
# What is seen in the curves of some arms.
CURVES = {"RoBERTa": "healthy:\nboth losses stay together",
          "one static mask, small slice": "memorised:\nthe held-out loss climbs",
          "dynamic masks, small slice": "the same text\nwith new masks in each epoch",
          "RoBERTa, half the steps": "stopped early:\nboth losses still fall"}


def draw_all(findings: list[Finding], log: list[dict[str, Any]], folder: Path) -> list[str]:
    """Draw each claim, all verdicts and some curves as NAME.png in a folder; return the names.

    log: the lines of logs.jsonl.
    """
    trained = [finding for finding in findings if finding.effects]
    drawn = {finding.claim.id: draw(finding) for finding in trained}
    if trained:
        drawn["verdicts"] = draw_verdicts(trained)
    if any(line["arm"] in CURVES for line in log):
        drawn["curves"] = draw_curves(log)
    for name, figure in drawn.items():
        save(figure, folder / f"{name}.png")
    return list(drawn)


def draw(finding: Finding) -> Figure:
    """Draw a claim's losses by arm, and its paired gains by unit."""
    panels = []
    for unit, effects in _by_unit(finding.effects).items():
        if unit == "nats":
            panels.append((0.4 * len(finding.arms), _draw_arms, finding.arms, effects))
        names = [effect.name.replace(" against ", "\nagainst ")
                 + LABELS.get(effect.contrast.measure, "") for effect in effects]
        panels.append((0.6 * len(effects), _draw_gains, unit, effects, names))
    return _draw_panels(panels, f"Claim: {finding.claim.says}\nVerdict: {finding.verdict}")


def draw_verdicts(findings: list[Finding]) -> Figure:
    """Draw all claims on one page, by unit: the gain of each one's first contrast, its verdict."""
    # The claim's verdict in place of the contrast's, because several contrasts may decide.
    firsts = [replace(finding.effects[0], verdict=finding.verdict) for finding in findings]
    says = {id(effect): f"{textwrap.fill(finding.claim.says, 38)}\n"
            f"{textwrap.fill(f'({effect.name})', 48)}"
            for effect, finding in zip(firsts, findings)}
    return _draw_panels([
        (0.8 * len(effects), _draw_gains, unit, effects, [says[id(effect)] for effect in effects])
        for unit, effects in _by_unit(firsts).items()], "What is claimed, and what was found")


def draw_curves(log: list[dict[str, Any]]) -> Figure:
    """Draw training losses (crosses) and held-out losses (rings) along some arms' runs, all seeds.

    log: the lines of logs.jsonl, with an arm of CURVES at least.
    """
    arms = [arm for arm in CURVES if any(line["arm"] == arm for line in log)]
    figure = Figure(figsize=(3.4 * len(arms), 4.4), layout="constrained")
    axes = figure.subplots(1, len(arms), sharex=True, sharey=True, squeeze=False)[0]
    for plot, arm in zip(axes, arms):
        own = [line for line in log if line["arm"] == arm]
        training = [(line["step"], line["mlm"]) for line in own if "mlm" in line]
        evals = [(line["step"], line["eval"]["mlm_loss"]) for line in own if "eval" in line]
        for kind, size, points in (("training", 2, training), ("held-out", 6, evals)):
            plot.plot(*zip(*points), linestyle="none", markersize=size, label=kind, **MARKS[kind])
        for unigram in {line["eval"]["unigram_entropy"] for line in own if "eval" in line}:
            plot.axhline(unigram, linestyle=":", color="black", label="unigram entropy")
        plot.set(title=f"{CURVES[arm]}\n({arm})", xlabel="steps")
    axes[0].set(ylim=(0, None), ylabel="loss, nats per masked token")
    return figure


def _draw_panels(panels: list[tuple], title: str) -> Figure:
    """Draw panels one below the other: the height of one, what draws it, and its arguments."""
    heights = [1.1 + height for height, *_ in panels]
    figure = Figure(figsize=(10, 1.2 + sum(heights)))
    figure.set_layout_engine("constrained", h_pad=0.1)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for plot, (_, draw_it, *about) in zip(axes, panels):
        draw_it(plot, *about)
    figure.suptitle("\n".join(textwrap.fill(line, 95) for line in title.splitlines()),
                    x=0.02, ha="left", fontsize=12)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Add one legend for all panels, and write 16 shades of each colour, for a small file."""
    for plot in figure.axes:
        plot.spines[["top", "right"]].set_visible(False)
    named = {name: mark for plot in figure.axes if not plot.get_legend()
             for mark, name in zip(*plot.get_legend_handles_labels())}
    figure.legend(named.values(), named, loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=120)
    imsave(path, np.round(15 * imread(path)[..., :3]) / 15, metadata={"Software": None})


def _by_unit(effects: list[Effect]) -> dict[str, list[Effect]]:
    """The contrasts whose gains may share an axis."""
    points = [effect for effect in effects if effect.contrast.measure == TASKS]
    nats = [effect for effect in effects if effect.contrast.measure != TASKS]
    return {unit: some for unit, some in (("nats", nats), ("points", points)) if some}


def _mark(plot: Any, values: list[float], row: float, limit: float, kind: str) -> None:
    """Mark a value for each seed, with an arrowhead for those that run off the axis."""
    inside = [value for value in values if abs(value) <= limit]
    plot.plot(inside, [row] * len(inside), linestyle="none", label=kind, **MARKS[kind])
    for sign in {np.sign(value) for value in values if abs(value) > limit}:
        plot.plot(sign * limit, row, linestyle="none", label="off the axis",
                  **{**MARKS[kind], "marker": ">" if sign > 0 else "<"})


def _rows(plot: Any, names: list[str], says: list[str], measured: str) -> None:
    """Name the rows at the left and say at the right, where nothing else is drawn, what is seen."""
    plot.set_yticks(range(len(names)), names, fontsize=9)
    plot.set(ylim=(len(names) - 0.5, -0.5), xlabel=measured)
    right = plot.secondary_yaxis("right")
    right.set_yticks(range(len(says)), [textwrap.fill(line, 34) for line in says], fontsize=9)
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)


def _draw_arms(plot: Any, arms: Arms, effects: list[Effect]) -> None:
    """Each arm's losses, a mark for each seed, and their means at the right."""
    pairs = any(effect.contrast.measure == PAIRS_LOSS for effect in effects)
    says = []
    for row, arm in enumerate(arms.values()):
        shown = {"held-out": losses(arm)}
        shown |= {"in pairs": losses(arm, "segment-pair")} if pairs else {}
        shown |= {"training": arm["train_loss"]}
        unigram = arm["full-sentences"][0]["unigram_entropy"]
        for shift, kind in zip(np.linspace(-0.15, 0.15, len(shown)), shown):
            _mark(plot, shown[kind], row + shift, unigram + 1, kind)
        says.append(", ".join(f"{kind} {np.mean(shown[kind]):.2f}" for kind in shown))
        if np.mean(shown["training"]) < unigram < np.mean(shown["held-out"]):
            says[-1] += ": memorised"  # new text is harder for it than for counts of words
    plot.axvline(unigram, linestyle=":", color="black", label="unigram entropy")
    _rows(plot, list(arms), says, "loss, nats per masked token (less is better)")


def _draw_gains(plot: Any, unit: str, effects: list[Effect], names: list[str]) -> None:
    """Each seed's gain, the mean with its 95 % interval, and the verdict at the right."""
    (scale, limit, gained), says = UNITS[unit], []
    for row, effect in enumerate(effects):
        margin, verdict = scale * effect.contrast.margin, effect.verdict
        plot.fill_betweenx([row - 0.3, row + 0.3], -margin, margin, color="0.88",
                           label="margin: less is too small to matter")
        # The band shows the margin, and the report has the reasons, but for what a mixture is of.
        short = str(verdict) if verdict.kind == "mixed" else verdict.kind
        says.append(short + ", early" * verdict.early)
        if effect.gains:
            says[-1] = f"{scale * effect.gain:+.{2 if scale == 1 else 1}f} {unit}, {says[-1]}"
            ends = [scale * value for value in (effect.low, effect.gain, effect.high)]
            plot.plot(np.clip(ends, -limit, limit), [row] * 3, "|-", color="black",
                      markersize=12, label="mean with its 95 % interval")
            _mark(plot, [scale * gain for gain in effect.gains], row, limit, "gain of a seed")
    plot.axvline(0, color="grey", linewidth=0.8)
    plot.annotate("first arm better", (0, 1), xycoords=plot.get_xaxis_transform(), va="bottom",
                  xytext=(12, 6), textcoords="offset points", fontsize=9,
                  bbox={"boxstyle": "rarrow", "facecolor": "0.95", "edgecolor": "0.4"})
    _rows(plot, names, says, gained)
