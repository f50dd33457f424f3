"""The comparison as a reader sees it: the table of claims, report.md and its figures.

All words are made here, of what results.json holds and judge.py says of it.
"""
import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from lab.claims import CLAIMS, KL_TO_TEACHER, MEASURES, TASKS, Arm
from lab.exact import EXACT
from lab.judge import Effect, Finding, Verdict, interval, judge_claims
from lab.measure import losses
from minibert.files.run_folder import atomic_write
from minibert.tasks.tasks import FLOORS
from minibert.tools.table import markdown


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write report.md and, where matplotlib is installed, its figures.

    results: the content of results.json. folder: the one that it is in, with logs.jsonl.
    """
    logs = folder / "logs.jsonl"
    log = [json.loads(line) for line in logs.open(encoding="utf-8")] if logs.exists() else []
    try:
        from lab.figures import draw_all
    except ImportError:
        print(f"figures need matplotlib: pip install matplotlib, and python -m lab report "
              f"{folder.name}")
        drawn = []
    else:
        drawn = draw_all(findings(results), log, folder)
    with atomic_write(folder / "report.md") as aside:
        aside.write_text(report(results, drawn), encoding="utf-8")


def findings(results: dict[str, Any]) -> list[Finding]:
    """Judge all that was measured: first what needs no training, then the claims with arms."""
    exact = [Finding(EXACT[id][0], Verdict(its["kind"]))
             for id, its in results["exact"].items() if id in EXACT]
    return exact + judge_claims(CLAIMS, results)


# ---- the table of claims: in the README, in the report and on the terminal

def claims_table(results: dict[str, Any], readme: bool = False) -> str:
    """Return the claims as a Markdown table: the question, what was found, here and in the paper.

    A claim that was trained shows its first contrast: the perplexities (e to the loss) of the two
    arms, and the gain in nats with its 95 % interval. readme: leave out the verdicts, which take
    much room, and the claims without a question.
    """
    head = ["question", "here: perplexities (gain in nats)", "in the paper", "agrees?"]
    rows = []
    for finding in findings(results):
        claim = finding.claim
        row = [claim.asks or claim.says, in_short(finding, results), claim.paper or claim.published,
               agreement(finding)]
        if not readme:
            rows.append([claim.id, *row, str(finding.verdict)])
        elif claim.asks:
            rows.append(row)
    return markdown(head if readme else ["claim", *head, "verdict"], rows)


def readme_table(results: dict[str, Any]) -> str:
    """Return the README's table, and a note below it: how much was trained, what ± means, and how
    the tasks' scores stand to their floors."""
    arms = results["arms"].values()
    runs = sum(len(arm["seconds"]) for arm in arms)
    minutes = sum(sum(arm["seconds"]) for arm in arms) / 60
    spent = f"{minutes:.0f} minutes" if minutes < 180 else f"{minutes / 60:.1f} hours"
    best: dict[str, float] = {}
    floors: dict[str, float] = {}
    for arm in arms:
        for task, first in arm["tasks"][0].items():
            score = float(np.mean([tasks[task]["score"] for tasks in arm["tasks"]]))
            best[task] = max(best.get(task, 0.0), score)
            floors[task] = max(first.get(floor, 0.0) for floor in FLOORS)
    scores = ", ".join(f"`{task}` {best[task]:.2f} (floor {floors[task]:.2f})" for task in best)
    note = (f"{runs} runs, {spent} of one core, models of {results['grid']['layers']} layers and "
            f"students of half as many; ± is the 95 % interval over seeds."
            + f" Best fine-tuned scores, and the floor that needs no model: {scores}."
            * bool(scores))
    return f"{claims_table(results, readme=True)}\n\n{textwrap.fill(note, 100)}"


def in_short(finding: Finding, results: dict[str, Any]) -> str:
    """Return what was found, in a few words with their unit."""
    if finding.claim.id in EXACT:
        return results["exact"][finding.claim.id]["short"]
    if "mean" in finding.retained:
        return f"{np.mean(finding.retained['mean']):.0%}"
    if not finding.effects or not finding.effects[0].gains:
        return "not comparable"
    first = finding.effects[0]
    gain, half = first.gain, (first.high - first.low) / 2
    if first.contrast.measure == TASKS:
        return f"{100 * gain:+.1f} ± {100 * half:.2g} points"
    if first.contrast.measure == KL_TO_TEACHER:
        return f"{gain:+.2f} ± {half:.2g} nats"
    ours, theirs = np.exp(first.means)
    return f"{ours:,.0f} against {theirs:,.0f} ({gain:+.2f} ± {half:.2f})"


def agreement(finding: Finding) -> str:
    """Return whether a verdict is the paper's own, in a word or three."""
    verdict = finding.verdict
    nothing = verdict.kind == "no difference"
    if nothing and finding.effects[0].contrast.question == "no worse" and not finding.reversed:
        return "yes"
    if nothing or finding.reversed:
        return "not reproduced here"
    says = {"holds": "yes", "contradicted": "no", "mixed": "in part"}.get(verdict.kind)
    return f"{says}, early" if says and verdict.early else says or "not decided"


# ---- sentences

def in_words(effect: Effect) -> str:
    """Return a contrast's effect with its unit and what it stands for."""
    if not effect.gains:
        return "not compared"
    measure, (first, second) = effect.contrast.measure, effect.means
    scale, digits, unit = (100, 1, "points") if measure == TASKS else (1, 3, "nats")
    gain, low, high = (f"{scale * value:+.{digits}f}"
                       for value in (effect.gain, effect.low, effect.high))
    says = f"{gain} {unit} [{low}, {high}]"
    if measure == TASKS:
        return (f"{says}, {100 * first:.1f} against {100 * second:.1f} above the most frequent "
                "answer")
    if measure == KL_TO_TEACHER:
        return f"{says}, {first:.3f} against {second:.3f} nats away from the teacher"
    return f"{says}, a perplexity of {np.exp(first):.0f} against {np.exp(second):.0f}"


def in_sentences(finding: Finding, results: dict[str, Any]) -> str:
    """Return what was found of a claim besides its contrasts, which have a table; "" is nothing."""
    claim = finding.claim
    if claim.id in EXACT:
        exact = results["exact"][claim.id]
        return "; ".join([exact["short"], *(
            f"{name}: {value:{',' if isinstance(value, int) else '.3g'}}"
            for name, value in exact["measured"].items())])
    says = [f"by {measure} the effects rank in the reverse of the published order, which is not "
             "reproduced here" for measure in finding.reversed]
    if finding.gap:
        mean, low, high = interval(finding.gap)
        worst, between, best = (arm.name for arm in claim.gap)
        says.append(f"{between} closes {mean:.0%} [{low:.0%}, {high:.0%}] of the gap from {worst} "
                    f"to {best}")
    if claim.retains and finding.effects:
        student, teacher, _ = claim.retains
        says += [_retained(student.name, teacher.name, finding.retained),
                 size_and_speed(student, teacher, results["family"])]
    if finding.floors:
        says.append(", ".join(
            f"{task} {score:.3f} {'beats' if beaten else 'does not beat'} "
            f"{name.replace('_', ' ')} {floor:.3f}"
            for task, score, name, floor, beaten in finding.floors))
    return "; ".join(says)


def _retained(student: str, teacher: str, shares: dict[str, list[float]]) -> str:
    if "mean" not in shares:
        return f"{teacher} scores no better than the most frequent answer"
    mean, low, high = interval(shares["mean"])
    tasks = ", ".join(f"{name} {np.mean(values):.0%}" for name, values in shares.items()
                      if name != "mean")
    return (f"{student} keeps {mean:.0%} [{low:.0%}, {high:.0%}] of what {teacher} scores above "
            f"the most frequent answer ({tasks})")


def size_and_speed(first: Arm, second: Arm, family: dict[str, Any]) -> str:
    """Return how much smaller and faster the first arm's model is than the second's."""
    size, time = family["encoder_parameters"], family["latency_ms"]
    return (f"its encoder has {size[first.name] / size[second.name]:.0%} of the parameters "
            f"({size[first.name]:,} of {size[second.name]:,}) and is "
            f"{time[second.name] / time[first.name]:.2f} times as fast "
            f"({time[first.name]:.2f} ms a text against {time[second.name]:.2f})")


# ---- the report

def report(results: dict[str, Any], drawn: list[str]) -> str:
    """Return the whole report as Markdown: the table, and each claim with its contrasts and arms.

    drawn: the figures to show.
    """
    spent = [arm["seconds"] for arm in results["arms"].values()]
    seeds = " or ".join(map(str, sorted({len(seconds) for seconds in spent}) or [0]))
    grid, machine = results["grid"], results["machine"]
    parts = [f"# {results['name']}", f"{grid['layers']} layers, {grid['tokens']:,} tokens for a "
             f"teacher, students of {grid['layers'] // 2} layers; corpus `{results['corpus']}` "
             f"(fingerprint {results['fingerprint'][:12]}), {seeds} seeds of each arm, "
             f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, torch "
             f"{results['versions']['torch']}, commit {(results['commit'] or 'none')[:12]}; "
             f"{sum(map(sum, spent)) / 60:.0f} minutes of training in all.",
             claims_table(results), *["![the verdicts](verdicts.png)"] * ("verdicts" in drawn),
             "Losses are in nats per masked token on held-out text, scores of tasks in points of a "
             "hundred; the two are different quantities and must not be compared with each other. "
             "Gains are paired by seed, with 95 % intervals by Student's t, and a positive gain "
             "favours the first arm. The margins were set before the runs. *Early* marks a gain "
             "in loss that is smaller than what the last fifth of the runs still gained, so longer "
             "runs may decide otherwise. Every run had one thread (OMP_NUM_THREADS=1), and every "
             "line that it logged is in logs.jsonl."]
    if results["left_out"]:
        parts.append(f"Not asked for: {', '.join(results['left_out'])}.")
    for finding in findings(results):
        claim, says = finding.claim, in_sentences(finding, results)
        parts += [f"## {claim.id}: {claim.says}", f"Published: {claim.published}.",
                  f"**{finding.verdict}**" + f": {says}." * bool(says)]
        if finding.effects:
            parts += _section(finding, claim.id in drawn)
        if claim.id == "stack" and finding.effects:
            parts += ["### The family", models_table(finding.arms, results["family"])]
            if blanks := results["family"]["blanks"]:
                parts += ["### Blanks", "Held-out sentences, and the words that the first model "
                          "finds likeliest, with each model's probability (seed 0)."]
                parts += [f"```\n{blank['guesses']}\n```\n\nThe word was *{blank['word']}*."
                          for blank in blanks]
    if "curves" in drawn:
        parts += ["## Curves", "Crosses are training losses, rings held-out losses, of all seeds.",
                  "![curves](curves.png)"]
    return "\n\n".join(parts) + "\n"


def _section(finding: Finding, drawn: bool) -> list[str]:
    """The sections of a claim that was put to runs."""
    parts = [finding.claim.differs, markdown(
        ["contrast", "question", "measured by", "gain", "each seed", "margin", "verdict"],
        [[effect.name, effect.contrast.question, MEASURES[effect.contrast.measure],
          in_words(effect), _each(effect.gains, "+.3f"), f"{effect.contrast.margin:g}",
          str(effect.verdict)] for effect in finding.effects])]
    if finding.trained_on:
        more, behind = finding.trained_on
        parts.append(f"The teacher was {'not' if more > behind / 2 else 'nearly'} done: it gains "
                     f"{more:+.3f} nats from the student's budget, and the untaught student is "
                     f"{behind:.3f} nats behind.")
    if finding.claim.retains:
        parts.append(markdown(["share of the teacher's score that is kept", "each seed"], [
            [task, _each(shares, ".0%")] for task, shares in finding.retained.items()]))
    if drawn:
        parts.append(f"![{finding.claim.id}]({finding.claim.id}.png)")
    parts.append(markdown(
        ["arm", "loss, full sentences", "loss, pairs", "training loss", "gain of the last fifth",
         "steps", "epochs begun", "tokens", "seconds", "also measured"],
        [[name, _each(losses(arm)), _each(losses(arm, "segment-pair")), _each(arm["train_loss"]),
          _each(arm["last_fifth"]), f"{arm['steps']:,}", str(arm["epochs"]),
          f"{np.mean(arm['tokens']):,.0f}", f"{np.mean(arm['seconds']):.0f}", _besides(arm)]
         for name, arm in finding.arms.items()]))
    scores = task_scores(finding.arms)
    if len(scores) > 1 + len(FLOORS):  # of two arms or more
        parts.append("Scores of tasks, each seed. What stands in brackets needs no model, and the "
                     "networks with random weights show what pretraining is worth.")
        parts.append(markdown(["arm", *scores["(majority)"]], [
            [name, *map(_each, row.values())] for name, row in scores.items()]))
    return [*parts, "```\n" + "\n".join(arm["command"] for arm in finding.arms.values()) + "\n```"]


def task_scores(arms: dict[str, dict]) -> dict[str, dict[str, list[float]]]:
    """Return scores by arm and task, by seed, then those that need no model; {} without tasks."""
    done = {name: arm["tasks"] for name, arm in arms.items() if arm["tasks"][0]}
    if not done:
        return {}
    first = next(iter(done.values()))[0]
    scores = {name: {f"{task}, {its['metric']}": [seed[task]["score"] for seed in tasks]
                     for task, its in tasks[0].items()} for name, tasks in done.items()}
    for floor, heading in FLOORS.items():
        scores[f"({heading})"] = {f"{task}, {its['metric']}": [its[floor]] if floor in its else []
                                  for task, its in first.items()}
    return scores


def models_table(arms: dict[str, dict], family: dict[str, Any]) -> str:
    """Return size, speed, loss and tasks of the family as a Markdown table: means over the seeds.
    """
    scores = task_scores(arms)
    tasks = list(scores.get("(majority)", {}))
    rows = [[name, str(arm["layers"]), f"{arm['parameters']:,}",
             f"{family['encoder_parameters'][name]:,}", f"{arm['disk'] / 1e6:.1f}",
             f"{family['latency_ms'][name]:.2f}", f"{np.mean(losses(arm)):.3f}",
             *(f"{np.mean(scores[name][task]):.3f}" for task in tasks)]
            for name, arm in arms.items()]
    return markdown(["model", "layers", "parameters", "of its encoder", "MB", "ms a text",
                     "MLM loss", *tasks], rows)


def _besides(arm: dict[str, Any]) -> str:
    """What else was measured: nearness to the teacher, what NSP accuracy is worth."""
    names = {"kl_to_teacher": "KL to teacher", "agreement": "agreement",
             "nsp_accuracy": "NSP accuracy", "nsp_majority": "majority",
             "nsp_length": "length only", "sentence_order": "sentence order"}
    both = [{**pairs, **full} for pairs, full in zip(arm["segment-pair"], arm["full-sentences"])]
    return ", ".join(f"{text} {np.mean([seed[name] for seed in both]):.3f}"
                     for name, text in names.items() if name in both[0])


def _each(values: list[float], form: str = ".3f") -> str:
    """The values of all seeds, in one cell."""
    return " ".join(format(value, form) for value in values)
