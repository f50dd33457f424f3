"""The comparison as a reader sees it: results.json, a table of verdicts, report.md and figures."""
import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from lab.claims import MEASURES
from lab.judge import in_words, losses
from minibert.files.run_folder import atomic_write, write_json
from minibert.tasks.tasks import FLOORS
from minibert.tools.table import markdown


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write results.json, report.md and, where matplotlib is installed, its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results)
    logs = folder / "logs.jsonl"
    log = [json.loads(line) for line in logs.open(encoding="utf-8")] if logs.exists() else []
    try:
        from lab.figures import draw_all
    except ImportError:
        print(f"figures need matplotlib: pip install matplotlib, and python -m lab report "
              f"{folder.name}")
        drawn = []
    else:
        drawn = draw_all(results, log, folder)
    with atomic_write(folder / "report.md") as aside:
        aside.write_text(report(results, drawn), encoding="utf-8")


def verdict_table(results: dict[str, Any]) -> str:
    """The claims as a Markdown table: verdict, effect with its interval, what was published."""
    return markdown(["claim", "verdict", "found", "published"], [
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
    """The whole report as Markdown: the verdicts, and each claim with its contrasts and arms.

    drawn: the figures to show.
    """
    spent = [arm["seconds"] for arm in all_arms(results).values()]
    seeds = " or ".join(map(str, sorted({len(seconds) for seconds in spent}) or [0]))
    grid, machine = results["grid"], results["machine"]
    parts = [f"# {results['name']}", f"{grid['layers']} layers, {grid['tokens']:,} tokens for a "
             f"teacher, students of {grid['layers'] // 2} layers; corpus `{results['corpus']}` "
             f"(fingerprint {results['fingerprint'][:12]}), {seeds} seeds of each arm, "
             f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, torch "
             f"{results['versions']['torch']}, commit {(results['commit'] or 'none')[:12]}; "
             f"{sum(map(sum, spent)) / 60:.0f} minutes of training in all.",
             verdict_table(results), *["![the verdicts](verdicts.png)"] * ("verdicts" in drawn),
             "Losses are in nats per masked token on held-out text, scores of tasks in points of a "
             "hundred; the two are different quantities and must not be compared with each other. "
             "Gains are paired by seed, with 95 % intervals by Student's t, and a positive gain "
             "favours the first arm. The margins were set before the runs. *Early* marks a gain "
             "in loss that is smaller than what the last fifth of the runs still gained, so longer "
             "runs may decide otherwise. Every run had one thread (OMP_NUM_THREADS=1), and every "
             "line that it logged is in logs.jsonl."]
    if results["left_out"]:
        parts.append(f"Not asked for: {', '.join(results['left_out'])}.")
    for claim in results["claims"]:
        parts.append(f"## {claim['id']}: {claim['says']}\n\nPublished: {claim['published']}.")
        if "arms" not in claim:
            parts.append(f"{claim['verdict']}: {claim['found']}.")
            continue
        parts += _claim(claim, claim["id"] in drawn)
        if claim["id"] == "stack":
            parts += ["### The family", models_table(claim["arms"], results["family"])]
            if blanks := results["family"]["blanks"]:
                parts += ["### Blanks", "Held-out sentences, and the words that the first model "
                          "finds likeliest, with each model's probability (seed 0)."]
                parts += [f"```\n{blank['guesses']}\n```\n\nThe word was *{blank['word']}*."
                          for blank in blanks]
    if "curves" in drawn:
        parts += ["## Curves", "Crosses are training losses, rings held-out losses, of all seeds.",
                  "![curves](curves.png)"]
    return "\n\n".join(parts) + "\n"


def _claim(claim: dict[str, Any], drawn: bool) -> list[str]:
    """The sections of a claim that was put to runs."""
    parts = [claim["differs"], markdown(
        ["contrast", "question", "measured by", "gain", "each seed", "margin", "verdict"],
        [[c["name"], c["question"], MEASURES[c["measure"]], in_words(c),
          _each(c["gains"], "+.3f"), f"{c['margin']:g}", c["verdict"]]
         for c in claim["contrasts"]])]
    if "gap" in claim:
        parts.append(f"{claim['gap']['says']}.")
        parts += _teacher_not_done(claim)
    if "retained" in claim:
        parts.append(markdown(["share of the teacher's score that is kept", "each seed"], [
            [task, _each(shares, ".0%")] for task, shares in claim["retained"]["shares"].items()]))
    if drawn:
        parts.append(f"![{claim['id']}]({claim['id']}.png)")
    parts.append(markdown(
        ["arm", "loss, full sentences", "loss, pairs", "training loss", "gain of the last fifth",
         "steps", "epochs begun", "tokens", "seconds", "also measured"],
        [[name, _each(losses(arm)), _each(losses(arm, "segment-pair")), _each(arm["train_loss"]),
          _each(arm["last_fifth"]), f"{arm['steps']:,}", str(arm["epochs"]),
          f"{np.mean(arm['tokens']):,.0f}", f"{np.mean(arm['seconds']):.0f}", _besides(arm)]
         for name, arm in claim["arms"].items()]))
    scores = task_scores(claim["arms"])
    if len(scores) > 1 + len(FLOORS):  # of two arms or more
        parts.append("Scores of tasks, each seed. What stands in brackets needs no model, and the "
                     "networks with random weights show what pretraining is worth.")
        parts.append(markdown(["arm", *scores["(majority)"]], [
            [name, *map(_each, row.values())] for name, row in scores.items()]))
    return [*parts, "```\n" + "\n".join(arm["command"] for arm in claim["arms"].values())
            + "\n```"]


def _teacher_not_done(claim: dict[str, Any]) -> list[str]:
    """Say so when training the teacher on closes more than half of the gap that is distilled.

    Then the teacher was not done, and what its student learns may be what any more steps teach.
    """
    trained_on = [name for name in claim["arms"] if "trained on" in name]
    if not trained_on:
        return []
    teacher, untaught = claim["arms"][trained_on[0]]["teacher"], claim["contrasts"][0]["second"]
    both = lambda *names: zip(*(losses(claim["arms"][name]) for name in names))
    more = float(np.mean([before - after for before, after in both(teacher, trained_on[0])]))
    gap = float(np.mean([worse - better for worse, better in both(untaught, teacher)]))
    return [f"The teacher was {'not' if more > gap / 2 else 'nearly'} done: it gains {more:+.3f} "
            f"nats from the student's budget, and the untaught student is {gap:.3f} nats behind."]


def task_scores(arms: dict[str, dict]) -> dict[str, dict[str, list[float]]]:
    """Scores by arm and task, by seed, then those that need no model; {} where no task was done."""
    done = {name: arm["tasks"] for name, arm in arms.items() if arm["tasks"][0]}
    if not done:
        return {}
    first = next(iter(done.values()))[0]
    scores = {name: {f"{task}, {found['metric']}": [one[task]["score"] for one in tasks]
                     for task, found in tasks[0].items()} for name, tasks in done.items()}
    for floor, heading in FLOORS.items():
        scores[f"({heading})"] = {
            f"{task}, {found['metric']}": [found[floor]] if floor in found else []
            for task, found in first.items()}
    return scores


def models_table(arms: dict[str, dict], family: dict[str, Any]) -> str:
    """Size, speed, loss and tasks of the family as a Markdown table: means over the seeds."""
    scores = task_scores(arms)
    tasks = list(scores.get("(majority)", {}))
    rows = [[name, str(arm["layers"]), f"{arm['parameters']:,}",
             f"{family['encoder_parameters'][name]:,}", f"{arm['disk'] / 1e6:.1f}",
             f"{family['latency_ms'][name]:.2f}", f"{np.mean(losses(arm)):.3f}",
             *(f"{np.mean(scores[name][task]):.3f}" for task in tasks)]
            for name, arm in arms.items()]
    return markdown(["model", "layers", "parameters", "of its encoder", "MB", "ms a text",
                     "MLM loss", *tasks], rows)


def all_arms(results: dict[str, Any]) -> dict[str, dict]:
    """Every arm of every claim, by name."""
    return {name: arm for claim in results["claims"] for name, arm in claim.get("arms", {}).items()}


def _besides(arm: dict[str, Any]) -> str:
    """What else was measured: nearness to the teacher, what NSP accuracy is worth."""
    names = {"kl_to_teacher": "KL to teacher", "agreement": "agreement",
             "nsp_accuracy": "NSP accuracy", "nsp_majority": "majority",
             "nsp_length": "length only", "sentence_order": "sentence order"}
    both = [{**pairs, **full} for pairs, full in zip(arm["segment-pair"], arm["full-sentences"])]
    return ", ".join(f"{text} {np.mean([found[name] for found in both]):.3f}"
                     for name, text in names.items() if name in both[0])


def _each(values: list[float], form: str = ".3f") -> str:
    """The values of all seeds, in one cell."""
    return " ".join(format(value, form) for value in values)
