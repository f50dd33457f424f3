"""Plan the claims' arms, run them side by side, and have each claim judged.

Runs are shared between claims, go on where they were stopped, and are not repeated.
"""
import dataclasses
import hashlib
import importlib
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minibert.claims.claims import CLAIMS, GRIDS, Arm, Claim, Grid
from minibert.claims.exact import EXACT, forward_seconds
from minibert.claims.judge import arms_of, interval, judge_claim, metrics_of
from minibert.config import (DistillConfig, ModelConfig, RunConfig, parse_flags, pick_device,
                             pick_preset)
from minibert.data import TokenizedCorpus, make_sequences
from minibert.errors import UserError
from minibert.files.corpus import prepare
from minibert.files.hub import load_pretrained
from minibert.files.run_folder import ROOT, atomic_write, machine, warn_of_other_code
from minibert.tools.fill_mask import blanks, fill_mask


@dataclass(eq=False)
class Run:
    """One arm with one seed: its folder, its command, and the run that must be there before."""
    arm: Arm
    seed: int
    out: Path
    command: list[str]
    teacher: "Run | None"
    cost: float  # relative to the others, for the time that is left

    @property
    def done(self) -> bool:
        return (self.out / "metrics.json").exists()

    def share(self) -> float:
        """How far it has come, 0..1, by the last line of its log."""
        try:
            log = (self.out / "log.jsonl").read_text(encoding="utf-8").splitlines()
            steps = int(self.command[self.command.index("--steps") + 1])
            return json.loads(log[-1])["step"] / steps
        except (OSError, ValueError, IndexError, KeyError):
            return 0.0


def plan(claims: tuple[Claim, ...], grid: Grid, seeds: range, flags: list[str], folder: Path,
         text: TokenizedCorpus, corpus: str) -> dict[tuple[Arm, int], Run]:
    """Every run that the claims need, teachers before students; an arm of two claims is one run.

    flags: what all runs share (corpus, preset). corpus: its fingerprint, for the folder's name:
    a folder is of one command on one text, so what is finished in it is what would be run.
    """
    runs: dict[tuple[Arm, int], Run] = {}
    budgets: dict[Arm, tuple[int, int]] = {}
    run, _ = read_flags("train_roberta", [*flags, *grid.flags.split(), *shape_flags(grid)])
    update = run.batch_size * tokens_in_a_sequence(run, text)

    def add(arm: Arm, seed: int) -> Run:
        if (arm, seed) in runs:
            return runs[arm, seed]
        teacher = add(arm.teacher, seed) if arm.teacher else None
        first = ["--teacher", str(teacher.out)] if teacher else shape_flags(grid)
        given = [*flags, *grid.flags.split(), *first, *arm.flags.format(layers=grid.layers).split(),
                 "--seed", str(seed), *([] if arm.tasks else ["--tasks", "none"])]
        if arm not in budgets:  # one for all seeds
            its_run, _ = read_flags(arm.script, given)
            budgets[arm] = budget_for(arm.budget * grid.tokens, update,
                                      tokens_in_a_sequence(its_run, text))
        batch, steps = budgets[arm]
        command = [f"{arm.script}.py", *last_of_each([*given, "--batch-size", str(batch),
                                                      "--steps", str(steps)])]
        said = " ".join([corpus, *command]).replace(f"{ROOT}/", "")
        digest = hashlib.sha256(said.encode()).hexdigest()[:8]
        name = re.sub(r"\W+", "-", arm.name).strip("-")
        out = folder / f"{name}-{seed}-{digest}"
        # A student has half the layers; its teacher's forward pass is 2/3 of that again.
        taught = teacher is not None and "--alpha-kl 0 --alpha-cos 0" not in arm.flags
        depth = 1.0 if teacher is None or "--student-layers" in arm.flags else 0.5 + taught / 3
        runs[arm, seed] = Run(arm, seed, out, [*command, "--out", str(out)], teacher, steps * depth)
        return runs[arm, seed]

    for claim in claims:
        for arm in arms_of(claim):
            for seed in seeds:
                add(arm, seed)
    return runs


def last_of_each(flags: list[str]) -> list[str]:
    """Flags with their values, without those that a later one overrules.

    >>> last_of_each(["--steps", "1", "--no-nsp", "--steps", "2"])
    ['--no-nsp', '--steps', '2']
    """
    found: dict[str, list[str]] = {}
    for flag in flags:
        if flag.startswith("--"):
            found.pop(flag, None)
            name, found[flag] = flag, []
        else:
            found[name].append(flag)
    return [part for name, values in found.items() for part in (name, *values)]


def shape_flags(grid: Grid) -> list[str]:
    """The flags that give a model the grid's shape."""
    return ["--num-hidden-layers", str(grid.layers), *grid.shape.split()]


def tokens_in_a_sequence(run: RunConfig, text: TokenizedCorpus) -> float:
    """How many tokens of a sequence are no padding, on average: formats differ in that."""
    spans = make_sequences(text.fraction(run.data_fraction), run.input_format, run.seq_length,
                           seed=0, dupe=0, short_seq_prob=run.short_seq_prob)
    a, b = spans[:, 1] - spans[:, 0], spans[:, 3] - spans[:, 2]
    return float((a + b + 2 + (b > 0)).mean())


def budget_for(tokens: float, update: float, sequence: float) -> tuple[int, int]:
    """Sequences in an update and steps, so that arms see equal tokens in an update and in all.

    tokens, update, sequence: that are no padding, of a run, of the base's update, of one sequence.
    Paper: Liu et al. 2019, section 4.2, changes the batch size for the same reason.
    >>> budget_for(tokens=8000, update=32 * 25.0, sequence=25.0)
    (32, 10)
    >>> budget_for(tokens=8000, update=32 * 25.0, sequence=32.0)
    (25, 10)
    """
    batch = max(1, round(update / sequence))
    return batch, max(1, round(tokens / (batch * sequence)))


def read_flags(script: str, flags: list[str]) -> tuple[RunConfig, Any]:
    """The settings that a script makes of its flags."""
    module = importlib.import_module(script)
    other = DistillConfig if script == "distill" else ModelConfig
    return parse_flags(module.__doc__, module.RECIPE, module.STEPS, other,
                       argv=[*flags, "--out", "unused"])


def run_all(runs: list[Run], jobs: int) -> None:
    """Do what is not done, `jobs` runs side by side, each in a process of one thread.

    Every run goes on where it was stopped. Raises UserError with a run's last words if it fails.
    """
    # The longest first, so that no core is idle at the end.
    waiting = sorted((run for run in runs if not run.done), key=lambda run: -run.cost)
    running: dict[Run, subprocess.Popen] = {}
    total, start = sum(run.cost for run in runs), time.monotonic()
    progress = lambda: sum(run.cost * (run.done or run.share()) for run in runs)
    before = progress()
    plain = not sys.stderr.isatty() or bool(os.environ.get("MINIBERT_PLAIN"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MINIBERT_PLAIN": "1", "PYTHONPATH":
                   os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    bar = tqdm(total=total, initial=before, disable=plain, unit="", bar_format="{desc} "
               "{percentage:3.0f} % |{bar}| {elapsed} spent, {remaining} left")
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
                if plain:
                    done = progress()  # no more than before, where only its metrics were missing
                    pace = (time.monotonic() - start) / (done - before or total)
                    left = pace * (total - done) / 60
                    print(f"{sum(run.done for run in runs)} of {len(runs)} runs done, {left:.0f} "
                          f"min left: {run.arm.name}, seed {run.seed}", flush=True)
            bar.set_description(f"{sum(run.done for run in runs)}/{len(runs)} runs")
            bar.n = progress()
            bar.refresh()
    finally:
        for process in running.values():  # they save before they stop
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, previous)
        bar.close()


def compare(preset: str, corpus: str, name: str, seeds: int = 3, only: str = "",
            jobs: int | None = None, tokens: int | None = None, vocab_size: int | None = None
            ) -> dict[str, Any]:
    """Run what is missing and judge every claim; the content of results.json.

    only: ids of claims with commas between, by default all. jobs: runs side by side, by default one
    for each core, on a GPU one. tokens, vocab_size: others than the grid's, to try things out or
    for a small text. Raises UserError when a setting, the corpus or a run cannot be used.
    """
    device = pick_device("auto")
    preset = pick_preset(preset)
    if preset not in GRIDS:
        raise UserError(f"there is no grid for the preset {preset}; use {', '.join(GRIDS)}")
    grid = GRIDS[preset]
    size = f" --vocab-size {vocab_size}" if vocab_size else ""
    grid = dataclasses.replace(grid, tokens=tokens or grid.tokens, shape=grid.shape + size)
    ids = [exact.__name__ for exact in EXACT] + [claim.id for claim in CLAIMS]
    chosen = only.split(",") if only else ids
    if unknown := sorted(set(chosen) - set(ids)):
        raise UserError(f"there is no claim {unknown[0]!r}; the claims are {', '.join(ids)}")
    interval([0.0] * seeds)  # too few seeds are said before the first run, not after the last
    claims = tuple(claim for claim in CLAIMS if claim.id in chosen)
    flags = ["--corpus", corpus, "--preset", preset]
    run, base_config = read_flags("train_roberta", [*flags, *grid.flags.split(),
                                                    *shape_flags(grid)])
    tokenizer, text, held_out, fingerprint = prepare(corpus, run.tokenizer, base_config.vocab_size)
    runs = plan(claims, grid, range(seeds), flags, ROOT / "runs" / name, text, fingerprint)
    warn_of_other_code([run.out for run in runs.values() if run.done])
    run_all(list(runs.values()), jobs or (1 if device == "cuda" else os.cpu_count() or 1))

    folder = ROOT / "results" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_logs(list(runs.values()), folder / "logs.jsonl")
    results = {key: metrics_of(run.out) for key, run in runs.items()}
    found = [exact() for exact in EXACT if exact.__name__ in chosen]
    for claim in claims:
        found.append(judge_claim(claim, results, range(seeds)))
        for arm in arms_of(claim):
            command = shlex.join(["python", *runs[arm, 0].command]).replace(f"{ROOT}/", "")
            found[-1]["arms"][arm.name]["command"] = command
    about = {"name": name, "preset": preset, "corpus": corpus, "fingerprint": fingerprint,
             "seeds": list(range(seeds)), "grid": dataclasses.asdict(grid), **machine()}
    return {**about, "left_out": [id for id in ids if id not in chosen], "claims": found,
            "family": show_family({arm: runs[arm, 0] for claim in claims if claim.id == "stack"
                                   for arm in arms_of(claim)}, blanks(held_out, tokenizer))}


def write_logs(runs: list[Run], path: Path) -> None:
    """Every line of every run's log in one file, each with its arm and seed before it."""
    with atomic_write(path) as aside, open(aside, "w", encoding="utf-8") as out:
        for run in runs:
            for line in (run.out / "log.jsonl").open(encoding="utf-8"):
                out.write(json.dumps({"arm": run.arm.name, "seed": run.seed, **json.loads(line)})
                          + "\n")


def show_family(runs: dict[Arm, Run], texts: list[tuple[str, str]]) -> dict[str, Any]:
    """The family's latency, by arm, and its guesses for blanks: a student beside its teacher.

    runs: the arms' first seeds. texts: with [MASK] for a word, and the word. The latency is that
    of one text; on a GPU also of 64 at once.
    """
    device = pick_device("auto")
    encoders = [load_pretrained(str(run.out))[0].encoder for run in runs.values()]
    latency = lambda batch: {arm.name: 1000 * statistics.median(found) for arm, found
                             in zip(runs, forward_seconds(encoders, device, batch))}
    shown = [both for arm in runs if arm.teacher in runs for both in (arm.teacher, arm)]
    return {"latency_ms": latency(1),
            **({"latency_64_ms": latency(64)} if device == "cuda" else {}),
            "blanks": [{"word": word, "guesses": fill_mask(
                [str(runs[arm].out) for arm in shown], text, names=[arm.name for arm in shown])}
                for text, word in texts if shown]}
