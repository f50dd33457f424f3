"""The comparison as a reader sees it: results.json, a table of verdicts, report.md and figures."""
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from minibert.report import FLOORS
from minibert.run_folder import write_json, written_aside


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write results.json, report.md and, where matplotlib is installed, its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results)
    trained = [claim for claim in results["claims"] if "arms" in claim]
    try:
        import matplotlib
        matplotlib.use("agg")
    except ImportError:
        print(f"figures need matplotlib: pip install matplotlib, and python -m minibert report "
              f"{folder.name}")
        drawn = []
    else:
        drawn = [claim["id"] for claim in trained]
        for claim in trained:
            draw(claim, folder / f"{claim['id']}.png")
        if trained:
            draw_verdicts(trained, folder / "verdicts.png")
    with written_aside(folder / "report.md") as aside:
        aside.write_text(report(results, drawn), encoding="utf-8")


def verdict_table(results: dict[str, Any]) -> str:
    """The claims as a Markdown table: verdict, effect with its interval, what was published."""
    return _markdown(["claim", "verdict", "found", "published"], [
        [f"**{claim['id']}**: {claim['says']}", claim["verdict"], claim["found"],
         claim["published"]] for claim in results["claims"]])


def verdict_lines(results: dict[str, Any]) -> str:
    """The same for a terminal: the verdict on what is claimed, and below it what was found."""
    lines = []
    for claim in results["claims"]:
        lines.append(f"{claim['id']:13} {claim['verdict'].upper()}: {claim['says']}")
        lines += textwrap.wrap(claim["found"], 86, initial_indent=" " * 14,
                               subsequent_indent=" " * 14)
    return "\n".join(lines)


def report(results: dict[str, Any], drawn: list[str]) -> str:
    """The whole report as Markdown: the verdicts, then each claim with its contrasts and arms."""
    machine = results["machine"]
    seconds = sum(sum(arm["seconds"]) for arm in _all_arms(results).values())
    parts = [f"# {results['name']}", f"Preset `{results['preset']}`, corpus `{results['corpus']}` "
             f"(fingerprint {results['fingerprint'][:12]}), seeds {results['seeds']}, "
             f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, torch "
             f"{results['versions']['torch']}, commit {(results['commit'] or 'none')[:12]}; "
             f"{seconds / 60:.0f} minutes of training in all.", verdict_table(results),
             *(["![the verdicts](verdicts.png)"] if drawn else []),
             "Gains are in nats per hidden token on held-out text, paired by seed, with 95 % "
             "intervals by Student's t; a positive gain is in favour of the first arm. The first "
             "contrast of a claim gives its verdict; the margins were set before the runs. Every "
             "line that a run logged is in logs.jsonl."]
    if results["left_out"]:
        parts.append(f"Not run: {', '.join(results['left_out'])}.")
    for claim in results["claims"]:
        parts.append(f"## {claim['id']}: {claim['says']}\n\nPublished: {claim['published']}.")
        if "arms" in claim:
            parts += _claim(claim, claim["id"] in drawn)
        else:
            parts.append(f"{claim['verdict']}: {claim['found']}.")
        if claim["id"] == "stack":
            parts += ["### The family", family_table(claim, results["family"]["latency_ms"]),
                      *_blanks(results["family"]["blanks"])]
    return "\n\n".join(parts) + "\n"


def _claim(claim: dict[str, Any], drawn: bool) -> list[str]:
    """The sections of a claim that was put to runs."""
    parts = [claim["differs"], _markdown(
        ["contrast", "question", "measure", "gain", "95 % interval", "each seed", "margin",
         "verdict"],
        [[c["name"], c["question"], c["measure"],
          *((f"{c['gain']:+.3f}", f"{c['low']:+.3f} to {c['high']:+.3f}",
             " ".join(f"{gain:+.3f}" for gain in c["gains"])) if c["gains"] else ("", "", "")),
          f"{c['margin']:g}", c["verdict"]] for c in claim["contrasts"]])]
    if "gap" in claim:
        parts.append(f"{claim['gap']['says']}.")
    if drawn:
        parts.append(f"![{claim['id']}]({claim['id']}.png)")
    parts.append(_markdown(
        ["arm", "loss, full sentences", "loss, pairs", "training loss", "steps", "epochs begun",
         "tokens", "seconds", "besides"],
        [[name, *(" ".join(f"{value:.3f}" for value in values) for values in (
            losses(arm), losses(arm, "segment-pair"), arm["train_loss"])),
          f"{arm['steps']:,}", str(arm["epochs"]), f"{np.mean(arm['tokens']):,.0f}",
          f"{np.mean(arm['seconds']):.0f}", _besides(arm)] for name, arm in claim["arms"].items()]))
    tasks = task_scores(claim["arms"])
    if len(tasks) > 1 + len(FLOORS):  # of two arms or more
        parts.append("Fine-tuned, each seed; in brackets what needs no model:")
        parts.append(_markdown(["arm", *tasks["(majority)"]], [
            [name, *(" ".join(f"{score:.3f}" for score in scores) for scores in row.values())]
            for name, row in tasks.items()]))
    return [*parts, "```\n" + "\n".join(arm["command"] for arm in claim["arms"].values())
            + "\n```"]


def task_scores(arms: dict[str, dict]) -> dict[str, dict[str, list[float]]]:
    """Scores by arm and task, by seed, then those that need no model; {} where no task was done."""
    done = {name: arm["tasks"] for name, arm in arms.items() if arm["tasks"][0]}
    if not done:
        return {}
    first = next(iter(done.values()))[0]
    scores = {name: {f"{task}, {found['metric']}": [one[task]["score"] for one in tasks]
                     for task, found in tasks[0].items()} for name, tasks in done.items()}
    for heading, floor in FLOORS.items():
        scores[heading] = {f"{task}, {found['metric']}": [found[floor]] if floor in found else []
                           for task, found in first.items()}
    return scores


def family_table(claim: dict[str, Any], latency: dict[str, float]) -> str:
    """Size, speed, loss and tasks of the family as a Markdown table: means over the seeds.

    In brackets behind a student's score: the share of its teacher's that it keeps, both counted
    from the most frequent answer's score; not where the teacher is within 0.02 of that.
    """
    arms, scores = claim["arms"], task_scores(claim["arms"])
    tasks = list(scores.get("(majority)", {}))
    rows = []
    for name, arm in arms.items():
        cells = []
        for task in tasks:
            mean, floor = np.mean(scores[name][task]), scores["(majority)"][task][0]
            above = np.mean(scores[arm["teacher"]][task]) - floor if arm["teacher"] else 0.0
            kept = f" ({(mean - floor) / above:.0%})" if above > 0.02 else ""
            cells.append(f"{mean:.3f}{kept}")
        rows.append([name, str(arm["layers"]), f"{arm['parameters']:,}",
                     f"{arm['disk'] / 1e6:.1f}", f"{latency[name]:.2f}",
                     f"{np.mean(losses(arm)):.3f}", *cells])
    rows += [[floor, *[""] * 5, *(f"{scores[floor][task][0]:.3f}" if scores[floor][task] else ""
                                  for task in tasks)] for floor in FLOORS if tasks]
    return _markdown(["model", "layers", "parameters", "MB", "ms a text", "MLM loss", *tasks], rows)


def _blanks(blanks: list[dict[str, str]]) -> list[str]:
    """What the family puts into blanks of held-out sentences."""
    if not blanks:
        return []
    return ["### Blanks", "Held-out sentences, and the words that the first model finds likeliest, "
            "with each model's probability (seed 0).",
            *(f"```\n{blank['guesses']}\n```\n\nThe word was *{blank['word']}*."
              for blank in blanks)]


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
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def draw_verdicts(claims: list[dict[str, Any]], path: Path) -> None:
    """All claims on one page: the gain of each one's first contrast, which decides it."""
    from matplotlib import pyplot

    figure, plot = pyplot.subplots(layout="constrained", figsize=(9, 1 + 0.6 * len(claims)))
    _draw_gains(plot, [claim["contrasts"][0] for claim in claims])
    plot.set_yticks(range(len(claims)), [
        f"{claim['id']}: " + one["name"].replace(" against", "\nagainst")
        for claim in claims for one in claim["contrasts"][:1]], fontsize=8)
    plot.set_xscale("symlog", linthresh=0.1)
    plot.set_xticks([-1, -0.1, 0, 0.1, 1], ["-1", "-0.1", "0", "0.1", "1"])
    plot.set_xlabel("gain of the first arm in nats per hidden token (logarithmic beyond 0.1)\n"
                    "rings: seeds; line: 95 % interval; grey: too small to be worth a name")
    plot.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _draw_arms(plot: Any, claim: dict[str, Any]) -> None:
    """Each seed a ring, a stroke for the mean; a square and grey for the loss in pairs."""
    arms = claim["arms"]
    kinds = dict.fromkeys(contrast["measure"].split(".")[0] for contrast in claim["contrasts"])
    for kind, shade, sign, shift, above in zip(kinds, ("black", "grey"), "os", (0, 0.25), (9, -16)):
        for row, (name, arm) in enumerate(arms.items()):
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
    plot.set_xlabel("held-out loss, nats per hidden token (less is better)")
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
    plot.set_ylabel("held-out loss, nats per hidden token")
