"""The figures of a report, by matplotlib, which is not needed for anything else."""
from pathlib import Path
from typing import Any

import numpy as np


def losses(arm: dict[str, Any], kind: str = "full-sentences") -> list[float]:
    """An arm's held-out losses by seed."""
    return [found["mlm_loss"] for found in arm[kind]]


def draw(claim: dict[str, Any], path: Path) -> None:
    """A claim's arms, its paired gains with their intervals and, where epochs count, its curves."""
    from matplotlib import pyplot

    curves = claim["id"] == "masking"
    rows = max(len(claim["arms"]), len(claim["contrasts"]))
    figure, axes = pyplot.subplots(1, 2 + curves, layout="constrained",
                                   figsize=(6 * (2 + curves), max(3.5, 1.5 + 0.5 * rows)))
    _draw_arms(axes[0], claim)
    _draw_gains(axes[1], claim["contrasts"])
    if curves:
        _draw_curves(axes[2], claim["arms"])
    for plot in axes:
        plot.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{claim['says']}: {claim['verdict']}", fontsize=11)
    _save(figure, path)


def draw_verdicts(claims: list[dict[str, Any]], path: Path) -> None:
    """All claims on one page: the gain of each one's first contrast, which decides it."""
    from matplotlib import pyplot

    figure, plot = pyplot.subplots(layout="constrained", figsize=(9, 1 + 0.6 * len(claims)))
    _draw_gains(plot, [claim["contrasts"][0] for claim in claims])
    plot.set_yticks(range(len(claims)), [
        f"{claim['id']}: " + claim["contrasts"][0]["name"].replace(" against", "\nagainst")
        for claim in claims], fontsize=8)
    plot.set_xscale("symlog", linthresh=0.1)
    plot.set_xticks([-1, -0.1, 0, 0.1, 1], ["-1", "-0.1", "0", "0.1", "1"])
    plot.set_xlabel("gain of the first arm in nats per masked token (logarithmic beyond 0.1)\n"
                    "rings: seeds; line: 95 % interval; grey: too small to be worth a name")
    plot.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


# Arms whose curves differ in kind; the names in small letters are those of an earlier comparison.
CURVES = ("roberta", "RoBERTa", "static x1", "one static mask, small slice", "pairs, NSP", "BERT")


def draw_curves(log: list[dict[str, Any]], path: Path) -> None:
    """Training losses (lines) and held-out losses (rings) along the runs of some arms, all seeds.

    log: the lines of logs.jsonl, with an arm of CURVES at least.
    """
    from matplotlib import pyplot

    arms = [arm for arm in CURVES if any(line["arm"] == arm for line in log)]
    held_out = [line for line in log if "eval" in line]
    figure, axes = pyplot.subplots(1, len(arms), sharey=True, squeeze=False, layout="constrained",
                                   figsize=(4 * len(arms), 4))
    for plot, arm in zip(axes[0], arms):
        for seed in sorted({line["seed"] for line in log}):
            own = [line for line in log if (line["arm"], line["seed"]) == (arm, seed)
                   and "mlm" in line]
            plot.plot([line["step"] for line in own], [line["mlm"] for line in own], color="0.6",
                      linewidth=0.8)
        own = [line for line in held_out if line["arm"] == arm]
        plot.plot([line["step"] for line in own], [line["eval"]["mlm_loss"] for line in own], "o",
                  color="black", markerfacecolor="none", markersize=4)
        for line in held_out[:1]:
            plot.axhline(line["eval"]["unigram_entropy"], linestyle=":", color="black")
        plot.set_title(arm, fontsize=10)
        plot.set_xlabel("steps")
        plot.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("loss, nats per masked token\n(dotted: the unigram entropy)")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _draw_arms(plot: Any, claim: dict[str, Any]) -> None:
    """Each seed a ring, a stroke for the mean; a square and grey for the second measure."""
    arms = claim["arms"]
    kinds = dict.fromkeys(contrast["measure"].split(".")[0] for contrast in claim["contrasts"])
    for kind, shade, sign, shift, above in zip(kinds, ("black", "grey"), "os", (0, 0.25), (9, -16)):
        for row, arm in enumerate(arms.values()):
            values = losses(arm, kind)
            plot.plot(values, [row + shift] * len(values), sign, color=shade,
                      markerfacecolor="none", label=kind if row == 0 else None)
            plot.plot([np.mean(values)], [row + shift], "|", color=shade, markersize=16)
            plot.annotate(f"{np.mean(values):.2f}", (np.mean(values), row + shift),
                          xytext=(0, above), textcoords="offset points", ha="center", fontsize=8,
                          color=shade)
    unigram = next(iter(arms.values()))["full-sentences"][0]["unigram_entropy"]
    plot.axvline(unigram, linestyle=":", color="grey")
    plot.annotate(" unigram", (unigram, len(arms) - 0.5), fontsize=8, color="grey")
    plot.set_yticks(range(len(arms)), list(arms))
    plot.set_ylim(len(arms) - 0.4, -0.6)
    plot.set_xlabel("held-out loss, nats per masked token (less is better)")
    if len(kinds) > 1:
        plot.legend(fontsize=8)


def _draw_gains(plot: Any, contrasts: list[dict[str, Any]]) -> None:
    """Each seed's gain a ring, the mean with its 95 % interval; the margin a grey band."""
    for row, one in enumerate(contrasts):
        plot.fill_betweenx([row - 0.3, row + 0.3], -one["margin"], one["margin"], color="0.9")
        if not one["gains"]:
            plot.annotate(one["verdict"].split(":")[0], (0, row), fontsize=8)
            continue
        plot.plot([one["low"], one["high"]], [row, row], color="black")
        plot.plot(one["gains"], [row] * len(one["gains"]), "o", color="black",
                  markerfacecolor="none")
        plot.annotate(f"{one['gain']:+.3f}: {one['verdict'].split(' (')[0]}", (one["gain"], row),
                      xytext=(0, 9), textcoords="offset points", ha="center", fontsize=8)
    plot.axvline(0, color="grey", linewidth=0.8)
    plot.set_yticks(range(len(contrasts)), [
        one["name"].replace(" against", "\nagainst")
        + ", in pairs" * one["measure"].startswith("segment-pair") for one in contrasts],
        fontsize=8)
    plot.set_ylim(len(contrasts) - 0.4, -0.6)
    plot.margins(x=0.25)
    plot.locator_params(axis="x", nbins=5)
    plot.set_xlabel("gain of the first, nats; 95 % interval, paired seeds")


def _draw_curves(plot: Any, arms: dict[str, dict]) -> None:
    """Held-out losses along the runs, a line for each seed; the first one's end has the name."""
    for style, shade, shift, (name, arm) in zip(("-", "--", ":"), ("black", "black", "grey"),
                                                (-6, 0, 8), arms.items()):
        for curve in arm["curve"]:
            plot.plot(*zip(*curve), style, color=shade, linewidth=1 + (style == ":"))
        if arm["curve"][0]:
            plot.annotate(name, arm["curve"][0][-1], xytext=(4, shift), fontsize=8, color=shade,
                          textcoords="offset points", va="center", annotation_clip=False)
    plot.margins(x=0.15)
    plot.set_xlabel("steps")
    plot.set_ylabel("held-out loss, nats per masked token")


def draw_speed(found: dict[str, Any], path: Path) -> None:
    """What each timed step achieves of the machine's matrix products: by name, and by its size."""
    from matplotlib import pyplot

    figure, (named, sized) = pyplot.subplots(1, 2, layout="constrained", figsize=(12, 4))
    roof = found["steps"][-1]["flops_per_second"] / 1e9  # the matrix products come last
    for row, step in enumerate(found["steps"]):
        named.barh(row, step["flops_per_second"] / 1e9, color="0.6", height=0.6)
        named.annotate(f" {step['flops_per_second'] / 1e9 / roof:.0%}",
                       (step["flops_per_second"] / 1e9, row), va="center", fontsize=8)
    named.set_yticks(range(len(found["steps"])), [step["name"] for step in found["steps"]],
                     fontsize=8)
    named.invert_yaxis()
    named.set_xlabel("needed arithmetic done in a second, GFLOP/s")
    growth = found.get("growth", [])
    for row in growth[-1:]:
        sized.axhline(row["flops_per_second"] / 1e9, color="black", label="matrix products")
    for other, sign in (("batch_size", "o"), ("seq_length", "s"), ("num_hidden_layers", "^")):
        rows = [row for row in growth if row["name"].startswith((other, "base"))]
        rows.sort(key=lambda row: row["flops"])
        sized.plot([row["flops"] / 1e9 for row in rows],
                   [row["flops_per_second"] / 1e9 for row in rows], sign + "-", color="black",
                   linewidth=0.5, markerfacecolor="none", label=f"other {other}")
    sized.set_xscale("log")
    sized.set_ylim(0, 1.15 * roof)
    sized.set_xlabel("arithmetic that one step of RoBERTa needs, GFLOP")
    sized.set_ylabel("GFLOP/s")
    sized.legend(fontsize=8, loc="lower right")
    for plot in (named, sized):
        plot.spines[["top", "right"]].set_visible(False)
    _save(figure, path)
