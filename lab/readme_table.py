"""The README's table of claims, made of a published run's results.json.

`test_readme_shows_the_published_results` holds the README to it, and prints it when they differ.
"""
import re
import textwrap
from typing import Any

import numpy as np

from lab.report import all_arms
from minibert.tasks.tasks import FLOORS
from minibert.tools.table import markdown

# What the README asks of each claim, in words that fit into a row, and what its paper found; of
# task scores, points in favour of the claim. The third text is what to quote of a claim that was
# counted or timed and not trained.
README_ROWS: dict[str, tuple[str, ...]] = {
    "kl": ("Is KL with a one-hot target cross-entropy?", "an identity",
           r"equal to the last digit|differ by \S+"),
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
    table = markdown(["question", "here: perplexities (gain in nats)", "in the paper", "agrees?"],
                     rows)
    return f"{table}\n\n{textwrap.fill(_note(results), 100)}"


def _found_in_short(claim: dict[str, Any]) -> str:
    """What was found, in a few words with their unit."""
    first = next(iter(claim.get("contrasts", [])), None)
    quoted = README_ROWS[claim["id"]][2:]
    if match := re.search(quoted[0], claim["found"]) if quoted else None:
        return match[0]
    if first is None:
        return textwrap.shorten(claim["found"].split(";")[0], 40, placeholder="…")
    if not first["gains"]:
        return "not comparable"
    gain, half = first["gain"], (first["high"] - first["low"]) / 2
    measure = first["measure"].partition(".")[2]
    if measure != "mlm_loss":  # shares of right answers, as far as they are no losses
        unit, scale = ("points", 100) if not measure else ("nats", 1)
        return f"{scale * gain:+.{2 if scale == 1 else 1}f} ± {scale * half:.2g} {unit}"
    ours, theirs = np.exp(first["means"])
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
    arms = all_arms(results)
    runs = sum(len(arm["seconds"]) for arm in arms.values())
    minutes = sum(sum(arm["seconds"]) for arm in arms.values()) / 60
    spent = f"{minutes:.0f} minutes" if minutes < 180 else f"{minutes / 60:.1f} hours"
    best: dict[str, float] = {}
    floors: dict[str, float] = {}
    for arm in arms.values():
        for task in (arm["tasks"] or [{}])[0]:
            scores = [done[task]["score"] for done in arm["tasks"]]
            best[task] = max(best.get(task, 0.0), float(np.mean(scores)))
            floors[task] = max(arm["tasks"][0][task].get(floor, 0.0) for floor in FLOORS)
    tasks = ", ".join(f"`{task}` {best[task]:.2f} (floor {floors[task]:.2f})" for task in best)
    return (f"{runs} runs, {spent} of one core, models of {results['grid']['layers']} layers and "
            f"students of half as many; ± is the 95 % interval over seeds."
            + f" Best fine-tuned scores, and the floor that needs no model: {tasks}." * bool(tasks))
