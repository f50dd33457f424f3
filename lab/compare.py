"""Measure what the claims need: plan their arms, run what is missing, and collect the figures.

Runs are shared between claims, go on where they were stopped, and are not repeated. What the
figures say is judged when they are shown: see judge.py and report.py.
"""
import dataclasses
import os
from statistics import median
from typing import Any

import torch

from lab.claims import CLAIMS, GRIDS, arms_of
from lab.exact import EXACT, forward_seconds
from lab.judge import interval
from lab.measure import measure, write_logs
from lab.plan import Job, plan, plan_lines, read_flags, shape_flags, too_small
from lab.run import run_all
from minibert.config import pick_device
from minibert.errors import UserError
from minibert.files.corpus import prepare
from minibert.files.hub import load_pretrained
from minibert.files.run_folder import ROOT, machine, warn_of_other_code, write_json
from minibert.tools.fill_mask import blanks, fill_mask


def compare(grid: str, corpus: str, name: str, seeds: int = 3, only: str = "",
            jobs: int | None = None, tokens: int | None = None, vocab_size: int | None = None,
            plan_only: bool = False) -> dict[str, Any] | None:
    """Run what is missing; return the content of results/NAME/results.json, which it writes.

    grid: one of GRIDS, or auto. only: ids of claims with commas between them, by default all.
    jobs: runs side by side, by default one for each core, because even on a GPU a small model waits
    for Python, but no more than a GPU's memory holds. tokens, vocab_size: other numbers than the
    grid's, to try things out or for a small text. plan_only: print the commands of all runs
    instead, as `plan_lines` writes them. Raises UserError when a setting, the corpus or a run
    cannot be used.
    """
    device = pick_device("auto")
    if grid == "auto":
        grid = "full" if device == "cuda" else "quick"
    size = f" --vocab-size {vocab_size}" if vocab_size else ""
    chosen_grid = dataclasses.replace(GRIDS[grid], tokens=tokens or GRIDS[grid].tokens,
                                      shape=GRIDS[grid].shape + size)
    ids = [*EXACT, *(claim.id for claim in CLAIMS)]
    chosen = only.split(",") if only else ids
    if unknown := sorted(set(chosen) - set(ids)):
        raise UserError(f"there is no claim {unknown[0]!r}; the claims are {', '.join(ids)}")
    for count in (seeds, seeds + chosen_grid.more_seeds):
        interval([0.0] * count)  # too few or too many are said before the first run, not after it
    base, sizes = read_flags("train_roberta", ["--preset", chosen_grid.preset, "--corpus", corpus,
                                               *chosen_grid.flags.split(),
                                               *shape_flags(chosen_grid)])
    tokenizer, text, held_out, fingerprint = prepare(corpus, base.tokenizer, sizes.vocab_size)
    claims = [claim for claim in CLAIMS if claim.id in chosen]
    refused = {claim.id: why for claim in claims if (why := too_small(claim, chosen_grid, text))}
    tested = [claim for claim in claims if claim.id not in refused]
    planned = plan(tested, chosen_grid, seeds, corpus, ROOT / "runs" / name, text, fingerprint)
    if plan_only:
        print(plan_lines(planned))
        return None
    for id, why in refused.items():
        print(f"{id}: refused, because {why}", flush=True)
    runs = [job for job in planned if not job.task]
    warn_of_other_code([run.out for run in runs if run.done])
    cores = os.cpu_count() or 1
    fit = torch.cuda.mem_get_info()[1] // 2**31 if device == "cuda" else cores  # 2 GB for each
    run_all(planned, jobs or max(1, min(cores, fit)))

    folder = ROOT / "results" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_logs(runs, folder / "logs.jsonl")
    members = {arm for claim in tested if claim.id in ("stack", "retain") for arm in arms_of(claim)}
    family = [run for run in runs if run.arm in members and run.seed == 0]
    results = {"name": name, "grid": dataclasses.asdict(chosen_grid), "corpus": corpus,
               "fingerprint": fingerprint, "seeds": list(range(seeds)), **machine(),
               "left_out": [id for id in ids if id not in chosen], "refused": refused,
               "exact": {id: measured() for id, (_, measured) in EXACT.items() if id in chosen},
               "arms": measure(planned),
               "family": show_family(family, blanks(held_out, tokenizer))}
    write_json(folder / "results.json", results)
    return results


def show_family(runs: list[Job], texts: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the family's sizes, the latency of one text (ms), and its guesses for blanks.

    runs: the arms' first seeds. texts: with [MASK] for a word, and the word. The guesses are those
    of each teacher with its student beside it.
    """
    by_arm = {run.arm: run for run in runs}
    encoders = [load_pretrained(run.out)[0].encoder for run in runs]
    times = forward_seconds(encoders, pick_device("auto"))
    shown = [both for arm in by_arm if arm.teacher in by_arm for both in (arm.teacher, arm)]
    folders, names = [str(by_arm[arm].out) for arm in shown], [arm.name for arm in shown]
    return {"latency_ms": {arm.name: 1000 * median(seconds)
                           for arm, seconds in zip(by_arm, times)},
            "encoder_parameters": {
                arm.name: sum(parameter.numel() for parameter in encoder.parameters())
                for arm, encoder in zip(by_arm, encoders)},
            "blanks": [{"word": word, "guesses": fill_mask(folders, text, names=names)}
                       for text, word in texts if shown]}
