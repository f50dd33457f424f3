"""The comparison as a reader sees it: results.json, a table of verdicts, report.md and figures."""
from pathlib import Path
from typing import Any

import numpy as np

from minibert.compare import interval
from minibert.run_folder import write_json


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write results.json, report.md and, where matplotlib is installed, a figure for each claim."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results)
    drawn = []
    try:
        import matplotlib
        matplotlib.use("agg")
    except ImportError:
        print("figures need matplotlib: pip install matplotlib")
    else:
        for claim in results["claims"]:
            if "arms" in claim:
                draw(claim, folder / f"{claim['id']}.png")
                drawn.append(claim["id"])
    (folder / "report.md").write_text(report(results, drawn), encoding="utf-8")


def verdict_table(results: dict[str, Any]) -> str:
    """The claims as a Markdown table: verdict, effect with its interval, what was published."""
    rows = [("claim", "verdict", "found", "published")]
    rows += [(f"**{claim['id']}**: {claim['says']}", claim["verdict"], claim["found"],
              claim["published"]) for claim in results["claims"]]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|---|---|---|", *lines[1:]])


def report(results: dict[str, Any], drawn: list[str]) -> str:
    """The whole report as Markdown: the verdicts, then each claim with its contrasts and arms."""
    machine = results["machine"]
    seconds = sum(sum(arm["seconds"]) for arm in _all_arms(results).values())
    parts = [f"# {results['name']}", f"Preset `{results['preset']}`, corpus `{results['corpus']}` "
             f"(fingerprint {results['fingerprint'][:12]}), seeds {results['seeds']}, "
             f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, torch "
             f"{results['versions']['torch']}, commit {(results['commit'] or 'none')[:12]}; "
             f"{seconds / 60:.0f} minutes of training in all.", verdict_table(results),
             "Gains are in nats per hidden token on held-out text, paired by seed, with 95 % "
             "intervals by Student's t; a positive gain is in favour of the first arm. The first "
             "contrast of a claim gives its verdict; the margins were set before the runs."]
    for claim in results["claims"]:
        parts.append(f"## {claim['id']}: {claim['says']}\n\nPublished: {claim['published']}.")
        if "arms" not in claim:
            parts.append(f"{claim['verdict']}: {claim['found']}.")
            continue
        parts.append(_markdown(["contrast", "question", "measure", "gain", "95 % interval",
                                "each seed", "margin", "verdict"], [
            [f"{c['first']} against {c['second']}", c["question"], c["measure"],
             f"{c['gain']:+.3f}", f"{c['low']:+.3f} to {c['high']:+.3f}",
             " ".join(f"{gain:+.3f}" for gain in c["gains"]), f"{c['margin']:g}", c["verdict"]]
            for c in claim["contrasts"]]))
        parts.append(_markdown(["arm", "loss, full sentences", "loss, pairs", "training loss",
                                "steps", "tokens", "seconds", "besides"], [
            [name, *(" ".join(f"{value:.3f}" for value in values) for values in (
                losses(arm), losses(arm, "segment-pair"), arm["train_loss"])),
             f"{arm['steps']:,}", f"{np.mean(arm['tokens']):,.0f}",
             f"{np.mean(arm['seconds']):.0f}", _besides(arm)]
            for name, arm in claim["arms"].items()]))
        if claim["id"] in drawn:
            parts.append(f"![{claim['id']}]({claim['id']}.png)")
        parts.append("```\n" + "\n".join(arm["command"] for arm in claim["arms"].values())
                     + "\n```")
    return "\n\n".join(parts) + "\n"


def losses(arm: dict[str, Any], kind: str = "full-sentences") -> list[float]:
    """An arm's held-out losses by seed."""
    return [found["mlm_loss"] for found in arm[kind]]


def _all_arms(results: dict[str, Any]) -> dict[str, dict]:
    return {name: arm for claim in results["claims"] for name, arm in claim.get("arms", {}).items()}


def _besides(arm: dict[str, Any]) -> str:
    """What else was measured: nearness to the teacher, what NSP accuracy is worth."""
    names = {"kl_to_teacher": "KL to teacher", "agreement": "agreement",
             "nsp_accuracy": "NSP accuracy", "nsp_majority": "majority",
             "nsp_length": "length only", "sentence_order": "sentence order"}
    both = [{**pairs, **full} for pairs, full in zip(arm["segment-pair"], arm["full-sentences"])]
    return ", ".join(f"{text} {np.mean([found[name] for found in both]):.3f}"
                     for name, text in names.items() if name in both[0])


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def draw(claim: dict[str, Any], path: Path) -> None:
    """A claim's arms: each seed a dot, a bar for the mean; loss curves where epochs count."""
    from matplotlib import pyplot

    arms = claim["arms"]
    curves = claim["id"] == "masking"
    figure, axes = pyplot.subplots(1, 1 + curves, squeeze=False, layout="constrained",
                                   figsize=(7 + 5 * curves, 1.2 + 0.5 * len(arms)))
    plot = axes[0, 0]
    kinds = dict.fromkeys(contrast["measure"].split(".")[0] for contrast in claim["contrasts"])
    for shift, (kind, shade, sign) in enumerate(zip(kinds, ("black", "grey"), "os")):
        for row, (name, arm) in enumerate(arms.items()):
            values, y = losses(arm, kind), row + 0.25 * shift
            mean, low, high = interval(values)
            plot.plot(values, [y] * len(values), sign, color=shade, markerfacecolor="none",
                      markersize=6, label=kind if row == 0 else None)
            plot.plot([mean], [y], "|", color=shade, markersize=16)
            plot.annotate(f"{mean:.2f}", (mean, y), xytext=(0, 8), textcoords="offset points",
                          ha="center", fontsize=8, color=shade)
    found = next(iter(arms.values()))["full-sentences"][0]
    plot.axvline(found["unigram_entropy"], linestyle=":", color="grey")
    plot.annotate("unigram entropy", (found["unigram_entropy"], 0), fontsize=7, rotation=90,
                  color="grey", xytext=(3, 0), textcoords="offset points")
    plot.set_yticks(range(len(arms)), list(arms))
    plot.invert_yaxis()
    plot.set_xlabel("held-out loss, nats per hidden token (less is better)")
    plot.set_title(f"{claim['says']}: {claim['verdict']}", fontsize=10)
    if len(kinds) > 1:
        plot.legend(fontsize=8)
    if curves:
        for style, (name, arm) in zip(("-", "--", ":"), arms.items()):
            steps = [step for step, _ in arm["curve"][0]]
            for curve in arm["curve"]:
                axes[0, 1].plot(steps, [loss for _, loss in curve], style, color="black",
                                linewidth=1)
            axes[0, 1].annotate(name, (steps[-1], arm["curve"][0][-1][1]), fontsize=8)
        axes[0, 1].set_xlabel("steps")
        axes[0, 1].set_ylabel("held-out loss, nats")
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)
