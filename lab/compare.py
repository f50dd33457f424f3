"""Run the claims' arms side by side, and have each claim judged.

Runs are shared between claims, go on where they were stopped, and are not repeated.
"""
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lab.claims import CLAIMS, GRIDS, Arm
from lab.exact import EXACT, forward_seconds
from lab.judge import arms_of, interval, judge_claim, metrics_of
from lab.plan import Run, plan, plan_lines, read_flags, shape_flags, too_small
from minibert.config import ModelConfig, RunConfig, pick_device
from minibert.errors import UserError
from minibert.files.corpus import prepare
from minibert.files.hub import load_pretrained
from minibert.files.run_folder import ROOT, atomic_write, machine, warn_of_other_code
from minibert.model import MaskedLM
from lab.bench import our_step, take_turns
from minibert.tools.fill_mask import blanks, fill_mask


def run_all(runs: list[Run], jobs: int) -> None:
    """Do what is not done, `jobs` runs side by side, each in a process of one thread.

    Every run goes on where it was stopped. Raises UserError with a run's last words if it fails.
    """
    # The longest first, so that no core is idle at the end.
    waiting = sorted((run for run in runs if not run.done), key=lambda run: -run.sequences)
    running: dict[Run, subprocess.Popen] = {}
    start = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MINIBERT_PLAIN": "1", "PYTHONPATH":
                   os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    print(f"{len(waiting)} of {len(runs)} runs to do, {jobs} at a time", flush=True)
    # As Ctrl-C does: by default SIGTERM would end this process and leave the runs alone.
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        while waiting or running:
            for run in [run for run in waiting if not run.teacher or run.teacher.done]:
                if len(running) < jobs:
                    waiting.remove(run)
                    run.out.parent.mkdir(parents=True, exist_ok=True)
                    with open(run.out.with_suffix(".txt"), "w") as log:
                        running[run] = subprocess.Popen([sys.executable, ROOT / run.command[0],
                                                         *run.command[1:]], env=environment,
                                                        stdout=log, stderr=log)
            time.sleep(0.2)
            for run, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                if process.returncode:
                    last = run.out.with_suffix(".txt").read_text().strip().splitlines()[-1:]
                    raise UserError(f"the run {run.out} ended with {process.returncode}: "
                                    f"{' '.join(last).removeprefix('error: ')}")
                print(f"{sum(run.done for run in runs)} of {len(runs)} runs done after "
                      f"{(time.monotonic() - start) / 60:.0f} min: {run.arm.name}, seed {run.seed}",
                      flush=True)
    finally:
        # `make` passes the signal on that it gets itself, so a second one may come; the runs must
        # be told to stop all the same.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for process in running.values():  # they save before they stop
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, previous)


def compare(grid: str, corpus: str, name: str, seeds: int = 3, only: str = "",
            jobs: int | None = None, tokens: int | None = None, vocab_size: int | None = None,
            plan_only: bool = False) -> dict[str, Any] | str:
    """Run what is missing and judge every claim; return the content of results.json.

    grid: one of GRIDS, or auto. only: ids of claims with commas between them, by default all.
    jobs: runs side by side, by default one for each core, because even on a GPU a small model waits
    for Python, but no more than a GPU's memory holds. tokens, vocab_size: other numbers than the
    grid's, to try things out or for a small text. plan_only: return the commands of all runs
    instead, as `plan_lines` writes them. Raises UserError when a setting, the corpus or a run
    cannot be used.
    """
    device = pick_device("auto")
    if grid == "auto":
        grid = "full" if device == "cuda" else "quick"
    size = f" --vocab-size {vocab_size}" if vocab_size else ""
    chosen_grid = dataclasses.replace(GRIDS[grid], tokens=tokens or GRIDS[grid].tokens,
                                      shape=GRIDS[grid].shape + size)
    ids = [exact.__name__ for exact in EXACT] + [claim.id for claim in CLAIMS]
    chosen = only.split(",") if only else ids
    if unknown := sorted(set(chosen) - set(ids)):
        raise UserError(f"there is no claim {unknown[0]!r}; the claims are {', '.join(ids)}")
    for count in (seeds, seeds + chosen_grid.more_seeds):
        interval([0.0] * count)  # too few or too many are said before the first run, not after it
    flags = ["--corpus", corpus]
    run, base_config = read_flags("train_roberta", ["--preset", chosen_grid.preset, *flags,
                                                    *chosen_grid.flags.split(),
                                                    *shape_flags(chosen_grid)])
    tokenizer, text, held_out, fingerprint = prepare(corpus, run.tokenizer, base_config.vocab_size)
    claims = [claim for claim in CLAIMS if claim.id in chosen]
    refused = {claim.id: why for claim in claims if (why := too_small(claim, chosen_grid, text))}
    tested = [claim for claim in claims if claim.id not in refused]
    runs = plan(tested, chosen_grid, seeds, flags, ROOT / "runs" / name, text, fingerprint)
    expected = expected_minutes([*runs.values()], base_config, run, device)
    print(f"training will take about {expected:.0f} minutes of one thread, finished runs included, "
          "as a few steps of each kind show; tasks and evaluation come on top", file=sys.stderr)
    if plan_only:
        return plan_lines(runs)
    for id, why in refused.items():
        print(f"{id}: refused, because {why}", flush=True)
    warn_of_other_code([run.out for run in runs.values() if run.done])
    cores = os.cpu_count() or 1
    fit = torch.cuda.mem_get_info()[1] // 2**31 if device == "cuda" else cores  # 2 GB for each
    run_all(list(runs.values()), jobs or max(1, min(cores, fit)))

    folder = ROOT / "results" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_logs(list(runs.values()), folder / "logs.jsonl")
    results = {arm: [metrics_of(run.out) for run in runs.values() if run.arm == arm]
               for arm in {arm for arm, _ in runs}}
    spent = sum(one["seconds"] for found in results.values() for one in found) / 60
    print(f"training took {spent:.0f} minutes; the estimate was {expected:.0f}", file=sys.stderr)
    members = {arm: runs[arm, 0] for claim in tested if claim.id in ("stack", "retain")
               for arm in arms_of(claim)}
    family = show_family(members, blanks(held_out, tokenizer))
    found = [exact() for exact in EXACT if exact.__name__ in chosen]
    for claim in claims:
        if claim.id in refused:
            found.append(dict(id=claim.id, says=claim.says, verdict="refused",
                              found=refused[claim.id], published=claim.published))
            continue
        judged = judge_claim(claim, results)
        for arm in arms_of(claim):
            command = shlex.join(["python", *runs[arm, 0].command]).replace(f"{ROOT}/", "")
            judged["arms"][arm.name]["command"] = command
        if claim.retains:
            judged["found"] += f"; {size_and_speed(*claim.retains[:2], family)}"
        found.append(judged)
    return {"name": name, "grid": dataclasses.asdict(chosen_grid), "corpus": corpus,
            "fingerprint": fingerprint, "seeds": list(range(seeds)), **machine(),
            "left_out": [id for id in ids if id not in chosen], "claims": found, "family": family}


def expected_minutes(runs: list[Run], config: ModelConfig, run: RunConfig, device: str) -> float:
    """Return the minutes of one thread, or of the GPU, that all training takes.

    config, run: the teacher's. A few steps of it, of a student and of an untaught one are timed.
    """
    half = dataclasses.replace(config, num_hidden_layers=max(1, config.num_hidden_layers // 2))
    threads, teacher = torch.get_num_threads(), MaskedLM(config).to(device).eval()
    torch.set_num_threads(1)  # as in the runs
    seconds = take_turns({
        "taught": our_step(half, run, device, teacher), "untaught": our_step(half, run, device),
        "teacher": our_step(config, run, device)}, rounds=10, device=device)
    torch.set_num_threads(threads)

    def kind(arm: Arm) -> str:
        if arm.teacher and "--alpha-kl 0" not in arm.flags:
            return "taught"
        halved = "{half}" in arm.flags or arm.teacher and "{layers}" not in arm.flags
        return "untaught" if halved else "teacher"

    return sum(one.sequences * median(seconds[kind(one.arm)]) for one in runs) / run.batch_size / 60


def write_logs(runs: list[Run], path: Path) -> None:
    """Every line of every run's log in one file, each with its arm and seed before it."""
    with atomic_write(path) as aside, open(aside, "w", encoding="utf-8") as out:
        for run in runs:
            for line in (run.out / "log.jsonl").open(encoding="utf-8"):
                out.write(json.dumps({"arm": run.arm.name, "seed": run.seed, **json.loads(line)})
                          + "\n")


def show_family(runs: dict[Arm, Run], texts: list[tuple[str, str]]) -> dict[str, Any]:
    """The family's sizes, the latency of one text, and its guesses for blanks.

    runs: the arms' first seeds. texts: with [MASK] for a word, and the word. The guesses are those
    of each teacher with its student beside it.
    """
    encoders = [load_pretrained(run.out)[0].encoder for run in runs.values()]
    timed = zip(runs, forward_seconds(encoders, pick_device("auto")))
    sizes = {arm.name: sum(parameter.numel() for parameter in encoder.parameters())
             for arm, encoder in zip(runs, encoders)}
    shown = [both for arm in runs if arm.teacher in runs for both in (arm.teacher, arm)]
    folders, names = [str(runs[arm].out) for arm in shown], [arm.name for arm in shown]
    return {"latency_ms": {arm.name: 1000 * median(found) for arm, found in timed},
            "encoder_parameters": sizes,
            "blanks": [{"word": word, "guesses": fill_mask(folders, text, names=names)}
                       for text, word in texts if shown]}


def size_and_speed(first: Arm, second: Arm, family: dict[str, Any]) -> str:
    """Return how much smaller and faster the first arm's model is than the second's."""
    size, time = family["encoder_parameters"], family["latency_ms"]
    return (f"its encoder has {size[first.name] / size[second.name]:.0%} of the parameters "
            f"({size[first.name]:,} of {size[second.name]:,}) and is "
            f"{time[second.name] / time[first.name]:.2f} times as fast "
            f"({time[first.name]:.2f} ms a text against {time[second.name]:.2f})")
