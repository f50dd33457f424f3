"""`python -m lab doctor`: is my run normal? Its log beside those of the published runs.

The band is what the seeds of one published arm had after the same number of tokens. The run's
settings decide which arm that is, so any comparison may be published. docs/recipes.md explains what
may be found.
"""
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from minibert.errors import UserError
from minibert.files.run_folder import ROOT, read_json

PUBLISHED = ROOT / "results" / "cpu"
WIDTH, HEIGHT = 72, 14  # of the picture, in characters
# Settings that do not decide how a loss falls, or that follow from others.
PASSED_OVER = set("attn_implementation checkpoint_every compile corpus device eval_every "
                  "eval_targets log_every max_position_embeddings next_sentence out pad_token_id "
                  "preset seed teacher type_vocab_size".split())
CURES = {  # what may be found, and what to change
    "NOT FINITE": "start again, in another folder, with a lower --learning-rate",
    "LEARNING RATE TOO HIGH": "lower --learning-rate",
    "ON THE PLATEAU": "raise --steps or, if the band has left it, take its --learning-rate",
    "MEMORISING": "raise --data-tokens, lower --steps, or take --masking dynamic",
    "NSP NOT LEARNED": "raise --seq-length or --steps, or leave it out by --no-nsp",
    "FAR FROM ITS TEACHER": "raise --alpha-kl or --steps",
    "HEALTHY": "none of the troubles that are known here",
    "OTHER TEXT": "compare shapes, not heights: --corpus, --vocab-size or --seq-length differs"}


def doctor(folder: str) -> str:
    """Return a picture of a run beside the published band, and what to change if it is not normal.

    folder: a run that is finished, training or stopped. Raises UserError when one of its files is
    missing or broken, or when nothing is logged yet.
    """
    out = Path(folder)
    run = read_json(out / "run.json", "is missing; name the folder of a run")
    metrics = read_json(out / "metrics.json", "") if (out / "metrics.json").exists() else {}
    try:
        settings = {**run["model"], **run["settings"], **run.get("distill", {})}
        log, arm = read_log(out / "log.jsonl"), nearest_arm(settings)
        evals = [(line["step"], line["eval"]) for line in log if "eval" in line]
        if metrics:
            evals.append((metrics["steps"], metrics["full-sentences"]))
        logs = [line for line in read_log(PUBLISHED / "logs.jsonl") if line["arm"] == arm["name"]]
        band = [columns([line for line in logs if line["seed"] == seed])
                for seed in sorted({line["seed"] for line in logs})]
        names = troubles(settings, log, evals, metrics, arm)
        rows = picture(columns(log), evals, band)
    except (FileNotFoundError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} holds no run that has logged a loss ({error!r}); wait for its "
                        "first line, or name another folder") from None
    apart = ", ".join(f"{name} {value}" for name, value in arm["apart"].items())
    return "\n".join([
        f"{folder}: step {log[-1]['step']:,} of {settings['steps']:,}"
        + ", not finished" * (not metrics), *rows,
        f"The band is the nearest published arm, {arm['name']!r}, {len(band)} seeds, with "
        f"{apart or 'the same settings'}; it ends at "
        f"{max(seed[0, -1] for seed in band):,.0f} tokens.",
        *(f"{name}: {CURES[name]}." for name in names)])


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; one that is being written has no end yet, and is left out."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def columns(log: list[dict[str, Any]]) -> np.ndarray:
    """Return the tokens, losses, steps, gradient norms and NSP losses of a log, (5, N)."""
    return np.array([(line["tokens"], line["mlm"], line["step"], line["grad_norm"],
                      line.get("nsp", 0)) for line in log if "mlm" in line]).T


def nearest_arm(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the published arm that differs from a run in the fewest settings that both have.

    A student is compared with students only. Of equally many, it is the arm whose budget is the
    nearest. To what results.json has of it come its name and, as `apart`, the settings that differ,
    as it has them.
    """
    arms = []
    for name, arm in read_json(PUBLISHED / "results.json", "is missing; copy it again")[
            "arms"].items():
        if arm["steps"] and ("alpha_kl" in arm["settings"]) == ("alpha_kl" in settings):
            apart = {key: value for key, value in arm["settings"].items()
                     if key not in PASSED_OVER and settings.get(key, value) != value}
            arms.append({**arm, "name": name, "apart": apart})
    return min(arms, key=lambda arm: (len(arm["apart"]), abs(arm["steps"] - settings["steps"])))


def picture(run: np.ndarray, evals: list[tuple[int, dict]], band: list[np.ndarray]) -> list[str]:
    """Return a run's losses by tokens, over the band, in plain characters.

    run, band: as `columns` returns them, the band's for each seed. evals: by step. What is far
    above the unigram entropy stands in the first line.
    """
    tokens, losses, steps = run[:3]
    read = np.linspace(0, min(tokens[-1], max(seed[0, -1] for seed in band)), WIDTH)
    seeds = [np.interp(read, *seed[:2]) for seed in band]
    layers = {":": [point for row in np.linspace(np.min(seeds, 0), np.max(seeds, 0), HEIGHT)
                    for point in zip(read, row)],
              "-": [(at, score["unigram_entropy"]) for _, score in evals[-1:]
                    for at in np.linspace(0, tokens[-1], WIDTH)],
              "x": list(zip(tokens, losses)),
              "o": [(np.interp(step, steps, tokens), score["mlm_loss"]) for step, score in evals]}
    top = max([loss for _, loss in layers["-"]] or losses) + 1
    bottom = min(loss for points in layers.values() for _, loss in points)
    rows = [[" "] * WIDTH for _ in range(HEIGHT)]
    for character, points in layers.items():
        for at, loss in points:
            row = max(0, round((HEIGHT - 1) * (top - loss) / (top - bottom)))
            rows[row][round((WIDTH - 1) * at / tokens[-1])] = character
    heights = np.linspace(top, bottom, HEIGHT)
    return [*(f"{height:6.2f} |{''.join(row)}".rstrip() for height, row in zip(heights, rows)),
            f"  nats +{'-' * WIDTH} {tokens[-1]:,.0f} tokens",
            "x training loss, o held-out loss, : the band's training losses, - unigram entropy"]


def troubles(settings: dict[str, Any], log: list[dict[str, Any]], evals: list[tuple[int, dict]],
             metrics: dict[str, Any], arm: dict[str, Any]) -> list[str]:
    """Return which of CURES a run needs.

    evals: by step. metrics: {} while the run is not finished. arm: the band's.
    """
    _, losses, steps, norms, nsp = columns(log)
    last = lambda values: float(np.mean(values[-max(1, len(values) // 10):]))  # a tenth of them
    theirs = arm["full-sentences"][0]
    step, score = evals[-1] if evals else (steps[-1], {**theirs, "mlm_loss": last(losses)})
    warm = steps > settings["warmup"] * settings["steps"]
    smooth = [last(losses[warm][:end]) for end in range(1, sum(warm) + 1)]
    jumps = norms[warm][3:] > [10 * np.median(norms[warm][:end]) for end in range(3, sum(warm))]
    pairs = metrics.get("segment-pair", {})
    floors = [pairs[name] for name in ("nsp_majority", "nsp_length") if name in pairs]
    far, near = (scores.get("kl_to_teacher", 0) for scores in (score, theirs))
    wrong = {
        "NOT FINITE": not all(math.isfinite(line.get("loss", 0) + line.get("grad_norm", 0))
                              for line in log),
        "LEARNING RATE TOO HIGH": any(jumps) or max(smooth - np.minimum.accumulate(smooth),
                                                    default=0) > 0.5,
        # As in the rules of the comparison.
        "ON THE PLATEAU": min(last(losses), score["mlm_loss"]) > score["unigram_entropy"] - 0.5,
        "MEMORISING": score["mlm_loss"] - last(losses[steps <= max(step, steps[0])]) > 0.75,
        "NSP NOT LEARNED": settings["nsp"] and 0.02 > (
            pairs["nsp_accuracy"] - max(floors) if floors else math.log(2) - last(nsp)),
        "FAR FROM ITS TEACHER": far > 2 * near or far and not settings["alpha_kl"]}
    wrong["HEALTHY"] = not any(wrong.values())
    wrong["OTHER TEXT"] = (settings["corpus"], score["hash"]) != (arm["corpus"], theirs["hash"])
    return [name for name, is_so in wrong.items() if is_so]
