"""The comparison as a reader sees it: results.json, a table of verdicts, report.md and figures."""
import json
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minibert.claims.figures import CURVES, draw, draw_curves, draw_speed, draw_verdicts, losses
from minibert.files.run_folder import atomic_write, write_json
from minibert.claims.judge import in_words
from minibert.tools.table import FLOORS

MEASURES = {"full-sentences.mlm_loss": "loss in full sentences", "segment-pair.mlm_loss":
            "loss in pairs", "full-sentences.kl_to_teacher": "distance from the teacher (KL)",
            "tasks": "scores of the tasks"}


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write results.json, report.md and, where matplotlib is installed, its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    path, drawn = folder / "results.json", []
    again = path.exists() and json.loads(path.read_text(encoding="utf-8")) == results
    write_json(path, results)
    trained = [claim for claim in results["claims"] if "arms" in claim]
    speed, logs = folder / "bench.json", folder / "logs.jsonl"
    speed = json.loads(speed.read_text(encoding="utf-8")) if speed.exists() else {}
    log = [json.loads(line) for line in logs.open(encoding="utf-8")] if logs.exists() else []
    figures = {claim["id"]: partial(draw, claim) for claim in trained}
    if trained:
        figures["verdicts"] = partial(draw_verdicts, trained)
    if any(line["arm"] in CURVES for line in log):
        figures["curves"] = partial(draw_curves, log)
    if "steps" in speed:
        figures["speed"] = partial(draw_speed, speed)
    try:
        import matplotlib
        matplotlib.use("agg")
    except ImportError:
        print(f"figures need matplotlib: pip install matplotlib, and python -m minibert report "
              f"{folder.name}")
        if again:  # figures of these results that were drawn elsewhere stay
            drawn = [name for name in figures if (folder / f"{name}.png").exists()]
    else:
        for name, draw_it in figures.items():
            draw_it(folder / f"{name}.png")
        drawn = list(figures)
    with atomic_write(folder / "report.md") as aside:
        aside.write_text(report(results, drawn, speed), encoding="utf-8")


def verdict_table(results: dict[str, Any]) -> str:
    """The claims as a Markdown table: verdict, effect with its interval, what was published, and
    the minutes that its arms and their teachers were trained, those of other claims included."""
    arms = _all_arms(results)

    def minutes(claim: dict[str, Any]) -> float:
        own = {*claim.get("arms", ()), *(arm["teacher"] for arm in claim.get("arms", {}).values()
                                         if arm["teacher"] in arms)}
        return sum(sum(arms[name]["seconds"]) for name in own) / 60
    return _markdown(["claim", "verdict", "found", "published", "training"], [
        [f"**{claim['id']}**: {claim['says']}", claim["verdict"], claim["found"],
         claim["published"], f"{minutes(claim):.0f} min"]
        for claim in results["claims"]])


def verdict_lines(results: dict[str, Any]) -> str:
    """The same for a terminal: the verdict on what is claimed, and below it what was found."""
    lines = []
    for claim in results["claims"]:
        lines.append(f"{claim['id']:13} {claim['verdict'].upper()}: {claim['says']}")
        lines += textwrap.wrap(claim["found"], 86, initial_indent=" " * 14,
                               subsequent_indent=" " * 14)
    return "\n".join(lines)


def report(results: dict[str, Any], drawn: list[str], speed: dict[str, Any] | None = None) -> str:
    """The whole report as Markdown: the verdicts, each claim with its contrasts and arms, speed."""
    machine = results["machine"]
    seconds = sum(sum(arm["seconds"]) for arm in _all_arms(results).values())
    grid = results["grid"]
    parts = [f"# {results['name']}", f"{grid['layers']} layers, {grid['tokens']:,} tokens for a "
             f"teacher, students of {grid['layers'] // 2} layers; corpus `{results['corpus']}` "
             f"(fingerprint {results['fingerprint'][:12]}), seeds {results['seeds']}, "
             f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, torch "
             f"{results['versions']['torch']}, commit {(results['commit'] or 'none')[:12]}; "
             f"{seconds / 60:.0f} minutes of training in all.", verdict_table(results),
             *(["![the verdicts](verdicts.png)"] if drawn else []),
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
            parts += ["### The family", models_table(claim, results["family"])]
            if blanks := results["family"]["blanks"]:
                parts += ["### Blanks", "Held-out sentences, and the words that the first model "
                          "finds likeliest, with each model's probability (seed 0)."]
                parts += [f"```\n{blank['guesses']}\n```\n\nThe word was *{blank['word']}*."
                          for blank in blanks]
    if "curves" in drawn:
        parts += ["## Curves", "Crosses are training losses, rings held-out losses, of all seeds.",
                  "![curves](curves.png)"]
    if speed:
        parts += ["## Speed", _speed_setting(speed),
                  *(["![speed](speed.png)"] if "speed" in drawn else []), speed_table(speed)]
    return "\n\n".join(parts) + "\n"


def _claim(claim: dict[str, Any], drawn: bool) -> list[str]:
    """The sections of a claim that was put to runs."""
    parts = [claim["differs"], _markdown(
        ["contrast", "question", "measured by", "gain", "each seed", "margin", "verdict"],
        [[c["name"], c["question"], MEASURES[c["measure"]], in_words(c),
          _each(c["gains"], "+.3f"), f"{c['margin']:g}", c["verdict"]]
         for c in claim["contrasts"]])]
    if "gap" in claim:
        parts.append(f"{claim['gap']['says']}.")
        parts += _teacher_not_done(claim)
    if "retained" in claim:
        parts.append(_markdown(["share of the teacher's score that is kept", "each seed"], [
            [task, _each(shares, ".0%")] for task, shares in claim["retained"]["shares"].items()]))
    if drawn:
        parts.append(f"![{claim['id']}]({claim['id']}.png)")
    parts.append(_markdown(
        ["arm", "loss, full sentences", "loss, pairs", "training loss", "gain of the last fifth",
         "steps", "epochs begun", "tokens", "seconds", "also measured"],
        [[name, _each(losses(arm)), _each(losses(arm, "segment-pair")), _each(arm["train_loss"]),
          _each(arm["last_fifth"]), f"{arm['steps']:,}", str(arm["epochs"]),
          f"{np.mean(arm['tokens']):,.0f}", f"{np.mean(arm['seconds']):.0f}", _besides(arm)]
         for name, arm in claim["arms"].items()]))
    tasks = task_scores(claim["arms"])
    if len(tasks) > 1 + len(FLOORS):  # of two arms or more
        parts.append("Scores of tasks, each seed. What stands in brackets needs no model, and the "
                     "networks with random weights show what pretraining is worth.")
        parts.append(_markdown(["arm", *tasks["(majority)"]], [
            [name, *map(_each, row.values())] for name, row in tasks.items()]))
    return [*parts, "```\n" + "\n".join(arm["command"] for arm in claim["arms"].values())
            + "\n```"]


def _teacher_not_done(claim: dict[str, Any]) -> list[str]:
    """Say so when training the teacher on closes more than half of the gap that is distilled.

    Then the teacher was not done, and what its student learns may be what any more steps teach.
    """
    trained_on = [name for name in claim["arms"] if "trained on" in name]
    if not trained_on:
        return []
    mean = lambda name: float(np.mean(losses(claim["arms"][name])))
    teacher, untaught = claim["arms"][trained_on[0]]["teacher"], claim["contrasts"][0]["second"]
    more, gap = mean(teacher) - mean(trained_on[0]), mean(untaught) - mean(teacher)
    done = "was not done" if more > gap / 2 else "was nearly done"
    return [f"The teacher {done}: trained on for the student's budget it gains {more:+.3f} nats, "
            f"while {gap:.3f} nats lie between it and the untaught student."]


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


def models_table(claim: dict[str, Any], family: dict[str, Any]) -> str:
    """Size, speed, loss and tasks of the family as a Markdown table: means over the seeds.

    In brackets behind a student's score: the share of its teacher's that it keeps, both counted
    from the most frequent answer's score; not where the teacher is within 0.02 of that.
    """
    arms, scores = claim["arms"], task_scores(claim["arms"])
    tasks = list(scores.get("(majority)", {}))
    timed = {name: family[key] for name, key in (("ms a text", "latency_ms"),
                                                 ("ms for 64", "latency_64_ms")) if key in family}
    encoders = family.get("encoder_parameters", {})
    rows = []
    for name, arm in arms.items():
        cells = []
        for task in tasks:
            mean, floor = np.mean(scores[name][task]), scores["(majority)"][task][0]
            above = np.mean(scores[arm["teacher"]][task]) - floor if arm["teacher"] else 0.0
            kept = f" ({(mean - floor) / above:.0%})" if above > 0.02 else ""
            cells.append(f"{mean:.3f}{kept}")
        rows.append([name, str(arm["layers"]), f"{arm['parameters']:,}",
                     f"{encoders[name]:,}" if encoders else "", f"{arm['disk'] / 1e6:.1f}",
                     *(f"{ms[name]:.2f}" for ms in timed.values()),
                     f"{np.mean(losses(arm)):.3f}", *cells])
    for floor in FLOORS if tasks else ():
        rows.append([floor, *[""] * (5 + len(timed)), *(
            f"{scores[floor][task][0]:.3f}" if scores[floor][task] else "" for task in tasks)])
    return _markdown(["model", "layers", "parameters", "of its encoder", "MB", *timed, "MLM loss",
                      *tasks], rows)


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


def _each(values: list[float], form: str = ".3f") -> str:
    """The values of all seeds, in one cell."""
    return " ".join(format(value, form) for value in values)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _speed_setting(speed: dict[str, Any]) -> str:
    """What was timed, on what."""
    settings, machine = speed["settings"], speed["machine"]
    flags = " ".join(f"--{name.replace('_', '-')} {settings[name]}" for name in (
        "num_hidden_layers", "hidden_size", "vocab_size", "seq_length", "batch_size", "rounds"))
    flags += " --compile" * settings["compile"]
    return (f"`python -m minibert bench {flags}` on {machine['gpu'] or machine['processor']}, "
            f"{machine['cores']} cores, torch {speed['versions']['torch']}, commit "
            f"{(speed['commit'] or 'none')[:12]}. Times are the fastest of all rounds, the middle "
            "one in brackets; arithmetic is what the recipe needs, whoever computes more.")


def speed_table(found: dict[str, Any]) -> str:
    """What was timed, a table for each part: the fastest repetition, the middle one in brackets."""
    columns = (
        ("ms", "seconds", lambda value: f"{1e3 * min(value):,.2f} ({1e3 * np.median(value):,.2f})"),
        ("first call, s", "first_call", lambda value: f"{value:.1f}"),
        ("tokens/s", "tokens_per_second", lambda value: f"{value:,.0f}"),
        ("GFLOP/s", "flops_per_second", lambda value: f"{value / 1e9:,.1f}"),
        ("of the peak", "share_of_peak", lambda value: f"{value:.0%}"),
        ("peak MB", "peak_mb", lambda value: f"{value:,.0f}"))
    tables = []
    for part in ("steps", "masking", "latency", "growth", "corpus"):
        rows = found.get(part, [])
        shown = [column for column in columns if any(row.get(column[1]) for row in rows)]
        if rows:
            tables.append(_markdown([part, *(heading for heading, _, _ in shown)], [
                [row["name"], *(show(row[key]) if row.get(key) else "" for _, key, show in shown)]
                for row in rows]))
    return "\n\n".join([*tables, *(f"- {line}" for line in speed_lines(found))])


def speed_lines(found: dict[str, Any]) -> list[str]:
    """What the timings come to: ratios of the same round, the middle one and the middle half."""
    rows = {row["name"]: row for part in ("steps", "masking") for row in found.get(part, [])}
    timed = {name: np.array(row["seconds"]) for name, row in rows.items() if "seconds" in row}
    if "RoBERTa" not in timed:
        return []

    def ratio(slow: str, fast: str, unit: str) -> str:
        low, middle, high = np.percentile(timed[slow] / timed[fast], [25, 50, 75])
        return f"{middle:.2f} times {unit} (middle half of the rounds {low:.2f} to {high:.2f})"

    peers = [("RoBERTa", "transformers, dropout 0"), ("RoBERTa", "transformers, as shipped"),
             ("RoBERTa, dropout .1", "transformers, as shipped"),
             ("RoBERTa", "torch.nn.TransformerEncoder")]
    return [f"{ours} against {peer}: {ratio(peer, ours, 'as fast')}"
            for ours, peer in peers if peer in timed] + [
        f"RoBERTa: {rows['RoBERTa']['share_of_peak']:.0%} of the machine's matrix products",
        "a distilled student's step: "
        f"{ratio('student, distilled', 'student, untaught', 'an untaught one')}"] + [
        f"{name}: {min(timed[name]) / min(timed['RoBERTa']):.2%} of the time of a step of RoBERTa"
        for name in ("static masks", "dynamic masks") if name in timed]
