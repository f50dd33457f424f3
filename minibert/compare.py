"""Run the claims' arms, paired by seed, and judge each claim from an interval and its margin.

The rules that a comparison must meet are enforced here, and each raises or prints why it was not
judged: one evaluation set, equal tokens, paired seeds, and runs that have left the plateau.
"""
import dataclasses
import hashlib
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minibert.claims import CLAIMS, GRIDS, Arm, Claim, Contrast, Grid
from minibert.config import (DistillConfig, ModelConfig, RunConfig, parse_flags, pick_device,
                             pick_preset)
from minibert.corpus import prepare
from minibert.data import Text, make_sequences
from minibert.errors import UserError
from minibert.exact import EXACT
from minibert.run_folder import machine

ROOT = Path(__file__).resolve().parent.parent
# Two-sided 95 % points of Student's t, by degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
PLATEAU = 0.5  # nats below the unigram entropy that a run must have got to be compared
UNEQUAL = 0.01  # share by which the tokens of two arms may differ


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
         text: Text, corpus: str) -> dict[tuple[Arm, int], Run]:
    """Every run that the claims need, teachers before students; an arm of two claims is one run.

    flags: what all runs share (corpus, preset). corpus: its fingerprint, for the folder's name:
    a folder is of one command on one text, so what is finished in it is what would be run.
    """
    runs: dict[tuple[Arm, int], Run] = {}
    steps_of: dict[Arm, int] = {}

    def add(arm: Arm, seed: int) -> Run:
        if (arm, seed) in runs:
            return runs[arm, seed]
        teacher = add(arm.teacher, seed) if arm.teacher else None
        own = arm.flags.format(**vars(grid)).split()
        if arm.script == "distill":
            own = ["--teacher", str(teacher.out), *own]
        elif "--num-hidden-layers" not in own:
            own = ["--num-hidden-layers", str(grid.layers), *own]
        given = [*flags, *grid.flags.split(), *own, "--seed", str(seed), "--tasks", "none"]
        if arm not in steps_of:  # for all seeds, so that they have one budget
            steps_of[arm] = steps_for(arm, arm.budget * grid.tokens, given, text)
        steps = steps_of[arm]
        command = [f"{arm.script}.py", *given, "--steps", str(steps)]
        digest = hashlib.sha256(" ".join([corpus, *command]).encode()).hexdigest()[:8]
        name = re.sub(r"\W+", "-", arm.name).strip("-")
        out = folder / f"{name}-{seed}-{digest}"
        depth = grid.teacher_layers if "teacher_layers" in arm.flags else grid.layers
        cost = steps * (depth + (teacher is not None and "--alpha-kl 0" not in arm.flags))
        runs[arm, seed] = Run(arm, seed, out, [*command, "--out", str(out)], teacher, cost)
        return runs[arm, seed]

    for claim in claims:
        for arm in arms_of(claim):
            for seed in seeds:
                add(arm, seed)
    return runs


def arms_of(claim: Claim) -> list[Arm]:
    """The arms of a claim, each once, in the order in which it names them."""
    contrasts = [arm for contrast in claim.contrasts for arm in (contrast.first, contrast.second)]
    return list(dict.fromkeys([*contrasts, *claim.besides]))


def steps_for(arm: Arm, tokens: float, flags: list[str], text: Text) -> int:
    """How many steps of an arm see so many tokens that are no padding: formats differ in that."""
    run, _ = read_flags(arm.script, flags)
    spans = make_sequences(text.fraction(run.data_fraction), run.input_format, run.seq_length,
                           seed=0, copy=0, short_seq_prob=run.short_seq_prob)
    a, b = spans[:, 1] - spans[:, 0], spans[:, 3] - spans[:, 2]
    return max(1, round(tokens / ((a + b + 2 + (b > 0)).mean() * run.batch_size)))


def read_flags(script: str, flags: list[str]) -> tuple[RunConfig, dict[str, Any]]:
    """The settings that a script makes of its flags."""
    module = importlib.import_module(script)
    other = DistillConfig if script == "distill" else ModelConfig
    return parse_flags(module.__doc__, module.RECIPE, module.STEPS, other,
                       argv=[*flags, "--out", "unused"])


def run_all(runs: list[Run], jobs: int) -> None:
    """Do what is not done, `jobs` runs side by side, each in a process of one thread.

    Every run goes on where it was stopped. Raises UserError with a run's last words if it fails.
    """
    waiting = [run for run in runs if not run.done]
    running: dict[Run, subprocess.Popen] = {}
    total, start = sum(run.cost for run in runs), time.monotonic()
    before = sum(run.cost * (run.done or run.share()) for run in runs)
    plain = not sys.stderr.isatty() or bool(os.environ.get("MINIBERT_PLAIN"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MINIBERT_PLAIN": "1", "PYTHONPATH":
                   os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    bar = tqdm(total=total, initial=before, disable=plain, unit="", bar_format="{desc} "
               "{percentage:3.0f} % |{bar}| {elapsed} spent, {remaining} left")
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
                    done = sum(run.cost for run in runs if run.done)
                    left = (time.monotonic() - start) / (done - before) * (total - done) / 60
                    print(f"{sum(run.done for run in runs)} of {len(runs)} runs done, {left:.0f} "
                          f"min left: {run.arm.name}, seed {run.seed}", flush=True)
            bar.set_description(f"{sum(run.done for run in runs)}/{len(runs)} runs")
            bar.n = sum(run.cost * (run.done or run.share()) for run in runs)
            bar.refresh()
    finally:
        for process in running.values():  # they save before they stop
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            process.wait()
        bar.close()


def metrics_of(run: Run) -> dict[str, Any]:
    """metrics.json and, as train_loss, the mean loss of the last tenth of the log."""
    metrics = json.loads((run.out / "metrics.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (run.out / "log.jsonl").open(encoding="utf-8")]
    losses = [line["mlm"] for line in log if "mlm" in line]
    return {**metrics, "train_loss": float(np.mean(losses[-max(1, len(losses) // 10):]))}


def interval(differences: list[float]) -> tuple[float, float, float]:
    """The mean of paired differences and its 95 % interval by Student's t.

    >>> [round(x, 3) for x in interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    n = len(differences)
    if not 2 <= n <= len(T95) + 1:
        raise UserError(f"{n} seeds give no interval; use 2 to {len(T95) + 1}, better 3 or more")
    mean = float(np.mean(differences))
    half = T95[n - 2] * float(np.std(differences, ddof=1)) / n**0.5
    return mean, mean - half, mean + half


def verdict(question: str, low: float, high: float, margin: float) -> str:
    """What an interval of the gain of the first arm says; the margin was fixed before.

    >>> verdict("better", 0.1, 0.2, 0.05), verdict("better", -0.03, 0.04, 0.05)
    ('holds', 'no difference beyond ±0.05')
    >>> verdict("no worse", -0.04, 0.2, 0.05), verdict("no worse", -0.2, 0.2, 0.05)
    ('holds', 'inconclusive')
    """
    if -margin < low and high < margin:
        return f"no difference beyond ±{margin:g}"
    if low > (0 if question == "better" else -margin):
        return "holds"
    if high < (0 if question == "better" else -margin):
        return "contradicted"
    return "inconclusive"


def judge(contrast: Contrast, runs: dict[tuple[Arm, int], Run], seeds: range) -> dict[str, Any]:
    """One contrast: values by seed, the gain with its interval, the verdict.

    Raises UserError when the two arms may not be compared at all.
    """
    arms = (contrast.first, contrast.second)
    for arm in arms:
        if missing := [seed for seed in seeds if not runs[arm, seed].done]:
            raise UserError(f"{arm.name} lacks seed {missing[0]}; seeds are compared in pairs")
    metrics = {arm: [metrics_of(runs[arm, seed]) for seed in seeds] for arm in arms}
    kind, name = contrast.measure.split(".")
    hashes = {found[kind]["hash"] for arm in arms for found in metrics[arm]}
    if len(hashes) > 1:
        raise UserError(f"{arms[0].name} and {arms[1].name} were evaluated on different sets "
                        f"({', '.join(sorted(hashes))}); they do not compare")
    tokens = [np.mean([found["tokens"] for found in metrics[arm]]) for arm in arms]
    if contrast.apart != "tokens" and abs(tokens[0] / tokens[1] - 1) > UNEQUAL:
        raise UserError(f"{arms[0].name} saw {tokens[0]:,.0f} tokens, {arms[1].name} "
                        f"{tokens[1]:,.0f}; they do not compare")
    first, second = ([found[kind][name] for found in metrics[arm]] for arm in arms)
    gains = [loss - better for better, loss in zip(first, second)]
    mean, low, high = interval(gains)
    says = verdict(contrast.question, low, high, contrast.margin)
    if stuck := [arm.name for arm in arms if any(map(on_plateau, metrics[arm]))]:
        says = f"inconclusive (on the plateau: {', '.join(stuck)})"
    return {"first": arms[0].name, "second": arms[1].name,
            "question": contrast.question, "measure": contrast.measure, "margin": contrast.margin,
            "gains": gains, "gain": mean, "low": low, "high": high, "verdict": says}


def on_plateau(metrics: dict[str, Any]) -> bool:
    """Whether a run has learned no more than the frequencies of tokens.

    One that has learned its few training masks by heart is not there, however bad it is on others.
    """
    found = metrics["full-sentences"]
    return min(found["mlm_loss"], metrics["train_loss"]) > found["unigram_entropy"] - PLATEAU


def compare(preset: str, corpus: str, name: str, seeds: int = 3, only: str = "", jobs: int = 0,
            tokens: int = 0) -> dict[str, Any]:
    """Run what is missing and judge every claim; the content of results.json.

    only: ids of claims with commas between, by default all. jobs: runs side by side, by default
    one for each core, on a GPU one. tokens: another budget than the grid's, to try things out.
    Raises UserError when a setting, the corpus or a run cannot be used.
    """
    device = pick_device("auto")
    preset = pick_preset(preset)
    if preset not in GRIDS:
        raise UserError(f"there is no grid for the preset {preset}; use {', '.join(GRIDS)}")
    ids = [exact.__name__ for exact in EXACT] + [claim.id for claim in CLAIMS]
    chosen = only.split(",") if only else ids
    if unknown := sorted(set(chosen) - set(ids)):
        raise UserError(f"there is no claim {unknown[0]!r}; the claims are {', '.join(ids)}")
    interval([0.0] * seeds)  # too few seeds are said before the first run, not after the last
    claims = tuple(claim for claim in CLAIMS if claim.id in chosen)
    grid = GRIDS[preset]
    grid = dataclasses.replace(grid, tokens=tokens or grid.tokens)
    flags = ["--corpus", corpus, "--preset", preset]
    run, shape = read_flags("train_roberta", [*flags, *grid.flags.split()])
    _, text, _, fingerprint = prepare(corpus, run.tokenizer, shape["vocab_size"])
    runs = plan(claims, grid, range(seeds), flags, ROOT / "runs" / name, text, fingerprint)
    run_all(list(runs.values()), jobs or (1 if device == "cuda" else os.cpu_count() or 1))
    found = [exact() for exact in EXACT if exact.__name__ in chosen]
    found += [judge_claim(claim, runs, range(seeds)) for claim in claims]
    order = {id: number for number, id in enumerate(ids)}
    return {"name": name, "preset": preset, "corpus": corpus, "fingerprint": fingerprint,
            "seeds": list(range(seeds)), "grid": dataclasses.asdict(grid), **machine(),
            "claims": sorted(found, key=lambda claim: order[claim["id"]])}


def judge_claim(claim: Claim, runs: dict[tuple[Arm, int], Run], seeds: range) -> dict[str, Any]:
    """All contrasts of a claim, of which the first gives the verdict, and its arms' figures."""
    contrasts = [judge(contrast, runs, seeds) for contrast in claim.contrasts]
    first = contrasts[0]
    arms = {}
    for arm in arms_of(claim):
        metrics = [metrics_of(runs[arm, seed]) for seed in seeds]
        arms[arm.name] = {
            "command": shlex.join(["python", *runs[arm, 0].command]).replace(f"{ROOT}/", ""),
            "steps": metrics[0]["steps"], "tokens": [one["tokens"] for one in metrics],
            "seconds": [one["seconds"] for one in metrics],
            "parameters": metrics[0]["parameters"],
            **{key: [one[key] for one in metrics] for key in ("full-sentences", "segment-pair")},
            "train_loss": [one["train_loss"] for one in metrics],
            "curve": [curve_of(runs[arm, seed]) for seed in seeds]}
    return dict(id=claim.id, says=claim.says, verdict=first["verdict"], published=claim.published,
                found=f"{first['first']} against {first['second']}: {first['gain']:+.3f} nats "
                f"[{first['low']:+.3f}, {first['high']:+.3f}]", contrasts=contrasts, arms=arms)


def curve_of(run: Run) -> list[tuple[int, float]]:
    """Steps and held-out losses along a run."""
    log = [json.loads(line) for line in (run.out / "log.jsonl").open(encoding="utf-8")]
    return [(line["step"], line["eval"]["mlm_loss"]) for line in log if "eval" in line]
