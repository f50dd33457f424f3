"""The comparison as a reader sees it: results.json, a table of verdicts, report.md and figures."""
import json
import re
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
        if "arms" in claim:
            parts += _claim(claim, claim["id"] in drawn)
        else:
            parts.append(f"{claim['verdict']}: {claim['found']}.")
        if claim["id"] == "stack" and "arms" in claim:
            parts += ["### The family", models_table(claim, results["family"]),
                      *_blanks(results["family"]["blanks"])]
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
          " ".join(f"{gain:+.3f}" for gain in c["gains"]), f"{c['margin']:g}", c["verdict"]]
         for c in claim["contrasts"]])]
    if "gap" in claim:
        parts.append(f"{claim['gap']['says']}.")
        parts += _teacher_not_done(claim)
    if "retained" in claim:
        parts.append(_markdown(["share of the teacher's score that is kept", "each seed"], [
            [task, " ".join(f"{share:.0%}" for share in shares)]
            for task, shares in claim["retained"]["shares"].items()]))
    if drawn:
        parts.append(f"![{claim['id']}]({claim['id']}.png)")
    parts.append(_markdown(
        ["arm", "loss, full sentences", "loss, pairs", "training loss", "gain of the last fifth",
         "steps", "epochs begun", "tokens", "seconds", "also measured"],
        [[name, *(" ".join(f"{value:.3f}" for value in values) for values in (
            losses(arm), losses(arm, "segment-pair"), arm["train_loss"], arm["last_fifth"])),
          f"{arm['steps']:,}", str(arm["epochs"]), f"{np.mean(arm['tokens']):,.0f}",
          f"{np.mean(arm['seconds']):.0f}", _besides(arm)] for name, arm in claim["arms"].items()]))
    tasks = task_scores(claim["arms"])
    if len(tasks) > 1 + len(FLOORS):  # of two arms or more
        parts.append("Scores of tasks, each seed. What stands in brackets needs no model, and the "
                     "networks with random weights show what pretraining is worth.")
        parts.append(_markdown(["arm", *tasks["(majority)"]], [
            [name, *(" ".join(f"{score:.3f}" for score in scores) for scores in row.values())]
            for name, row in tasks.items()]))
    return [*parts, "```\n" + "\n".join(arm["command"] for arm in claim["arms"].values())
            + "\n```"]


def _teacher_not_done(claim: dict[str, Any]) -> list[str]:
    """Say so when training the teacher on closes more than half of the gap that is distilled.

    Then the teacher was not done, and what its student learns may be what any more steps teach.
    """
    trained_on = [arm for name, arm in claim["arms"].items() if "trained on" in name]
    teachers = [arm for arm in trained_on if arm["teacher"] in claim["arms"]]
    if not teachers:
        return []
    mean = lambda arm: float(np.mean(losses(arm)))
    teacher = claim["arms"][teachers[0]["teacher"]]
    worst = claim["arms"][claim["contrasts"][0]["second"]]
    more, gap = mean(teacher) - mean(teachers[0]), mean(worst) - mean(teacher)
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


def _blanks(blanks: list[dict[str, str]]) -> list[str]:
    """What the family puts into blanks of held-out sentences."""
    if not blanks:
        return []
    return ["### Blanks", "Held-out sentences, and the words that the first model finds likeliest, "
            "with each model's probability (seed 0).",
            *(f"```\n{blank['guesses']}\n```\n\nThe word was *{blank['word']}*."
              for blank in blanks)]


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
    best = {name: min(row["seconds"]) for name, row in rows.items() if "seconds" in row}
    if "RoBERTa" not in best:
        return []
    timed = {name: np.array(row["seconds"]) for name, row in rows.items() if "seconds" in row}

    def ratio(slow: str, fast: str, unit: str) -> str:
        low, middle, high = np.percentile(timed[slow] / timed[fast], [25, 50, 75])
        return f"{middle:.2f} times {unit} (middle half of the rounds {low:.2f} to {high:.2f})"

    peers = [("RoBERTa", "transformers, dropout 0"), ("RoBERTa", "transformers, as shipped"),
             ("RoBERTa, dropout .1", "transformers, as shipped"),
             ("RoBERTa", "torch.nn.TransformerEncoder")]
    return [f"{ours} against {peer}: {ratio(peer, ours, 'as fast')}"
            for ours, peer in peers if peer in best] + [
        f"RoBERTa: {rows['RoBERTa']['share_of_peak']:.0%} of the machine's matrix products",
        "a distilled student's step: "
        f"{ratio('student, distilled', 'student, untaught', 'an untaught one')}"] + [
        f"{name}: {best[name] / best['RoBERTa']:.2%} of the time of a step of RoBERTa"
        for name in ("static masks", "dynamic masks") if name in best]


# What the README asks of each claim, in words that fit into a row, and what its paper found; of
# task scores, points in favour of the claim. The third text is what to quote of a claim that was
# counted or timed and not trained.
README_ROWS: dict[str, tuple[str, ...]] = {
    "kl": ("Is KL with a one-hot target cross-entropy?", "an identity", r"differ by [\w+-]+"),
    "architecture": ("Is RoBERTa's architecture BERT's?", "only the recipe changes",
                     r"\d+ of \d+ tensors"),
    "size": ("How much smaller are half the layers?", "40 % smaller",
             r"[\d.]+ ?% (?:fewer|smaller)"),
    "latency": ("How much faster are half the layers?", "1.63 times as fast",
                r"[\d.]+ times as fast"),
    "worth": ("Does pretraining pay on a task?", "+8.6 points"),
    "capacity": ("Does halving the layers cost anything?", "+2.5 points"),
    "nsp": ("Is a model without NSP as good?", "-0.4 to +0.7 points"),
    "masking": ("Are dynamic masks better than ten?", "-0.3 to +0.4 points"),
    "data": ("Does more text help?", "+0.3 points"),
    "steps": ("Do more steps help?", "+0.8 to +0.9 points"),
    "distill": ("Do soft targets help a student?", "+3.0 points"),
    "soft": ("Do soft targets help on 3 % of the text?", "+12.5 points, in speech"),
    "terms": ("Does DistilBERT need soft targets?", "+3.0 points"),
    "retain": ("What share of a score does a student keep?", "97 %", r"[\d.]+ ?%"),
    "stack": ("Is DistilRoBERTa the better student?", "+2.0 points"),
}


def readme_table(results: dict[str, Any]) -> str:
    """The claims as a Markdown table of at most 110 characters a row, and a note below it.

    Columns: the question, what was found here, what the paper found, and whether the two agree. A
    claim that was trained shows its first contrast: the perplexities (e to the loss) of the two
    arms, and the gain in nats with its 95 % interval. Claims that results.json lacks, and those
    that README_ROWS does not know, have no row.
    """
    rows = [[README_ROWS[claim["id"]][0], _found_in_short(claim), README_ROWS[claim["id"]][1],
             _agreement(claim)] for claim in results["claims"] if claim["id"] in README_ROWS]
    table = _markdown(["question", "here: perplexities (gain in nats)", "in the paper", "agrees?"],
                      rows)
    return f"{table}\n\n{textwrap.fill(_note(results), 100)}"


def _found_in_short(claim: dict[str, Any]) -> str:
    """What was found, in a few words with their unit."""
    first = next(iter(claim.get("contrasts", [])), None)
    quoted = README_ROWS[claim["id"]][2:]
    if match := re.search(quoted[0], claim["found"]) if quoted else None:
        return match[0].replace("differ by 0e+00", "equal to the last digit")
    if first is None:
        return textwrap.shorten(claim["found"].split(";")[0], 40, placeholder="…")
    if not first["gains"]:
        return "not comparable"
    gain, half = first["gain"], (first["high"] - first["low"]) / 2
    kind, _, measure = first["measure"].partition(".")
    if measure != "mlm_loss":  # shares of right answers, as far as they are no losses
        unit, scale = ("points", 100) if not measure else ("nats", 1)
        return f"{scale * gain:+.{2 if scale == 1 else 1}f} ± {scale * half:.2g} {unit}"
    ours, theirs = (np.exp(np.mean([found["mlm_loss"] for found in claim["arms"][arm][kind]]))
                    for arm in (first["first"], first["second"]))
    return f"{ours:,.0f} against {theirs:,.0f} ({gain:+.2f} ± {half:.2f})"


def _agreement(claim: dict[str, Any]) -> str:
    """Whether a verdict is the paper's own, in a word or three."""
    verdict = claim["verdict"]
    question = next((one["question"] for one in claim.get("contrasts", [])), "")
    if "not reproduced" in verdict + claim["found"]:
        return "not reproduced here"
    if verdict.startswith("no difference"):
        return "yes" if question == "no worse" else "not reproduced here"
    words = (("holds", "yes"), ("contradicted", "no"), ("mixed", "in part"))
    said = next((word for start, word in words if verdict.startswith(start)), "not decided")
    return f"{said}, early" if "early" in verdict and said != "not decided" else said


def _note(results: dict[str, Any]) -> str:
    """How much was trained, what ± means, and how the tasks' scores stand to their floors."""
    arms = {name: arm for claim in results["claims"] for name, arm in claim.get("arms", {}).items()}
    runs = sum(len(arm["seconds"]) for arm in arms.values())
    minutes = sum(sum(arm["seconds"]) for arm in arms.values()) / 60
    spent = f"{minutes:.0f} minutes" if minutes < 180 else f"{minutes / 60:.1f} hours"
    best: dict[str, float] = {}
    floors: dict[str, float] = {}
    for arm in arms.values():
        for task in (arm["tasks"] or [{}])[0]:
            scores = [done[task]["score"] for done in arm["tasks"]]
            best[task] = max(best.get(task, 0.0), float(np.mean(scores)))
            floors[task] = max(arm["tasks"][0][task].get(floor, 0.0) for floor in FLOORS.values())
    tasks = ", ".join(f"`{task}` {best[task]:.2f} (floor {floors[task]:.2f})" for task in best)
    return (f"{runs} runs, {spent} of one core, models of {results['grid']['layers']} layers and "
            f"students of half as many; ± is the 95 % interval over seeds."
            + f" Best fine-tuned scores, and the floor that needs no model: {tasks}." * bool(tasks))
