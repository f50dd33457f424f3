"""What finished runs measured: one record for each arm, as results.json keeps it."""
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from lab.plan import Job
from minibert.files.run_folder import ROOT, atomic_write, read_json

LAST_FIFTH = 0.8  # the share of the steps after which the last fifth begins


def metrics_of(out: Path, tasks: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return metrics.json of a run, with what its log and its tasks' folders add.

    curve: (step, held-out loss in nats) along the run. epochs: how many it began. train_loss: the
    mean of the last tenth. last_fifth: nats that the last fifth of its steps still gained. tasks:
    the scores of those that were asked for, by name.
    """
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (out / "log.jsonl").open(encoding="utf-8")]
    curve = [(line["step"], line["eval"]["mlm_loss"]) for line in log if "eval" in line]
    final = metrics["full-sentences"]["mlm_loss"]
    # A run of no steps has logged nothing; its only loss is that of its initial weights.
    training = [line["mlm"] for line in log if "mlm" in line] or [final]
    before = np.interp(LAST_FIFTH * metrics["steps"], *zip(*curve)) if curve else final
    scores = {task: read_json(out / "tasks" / task / "metrics.json", "is missing; fine-tune it")
              for task in tasks}
    return {**metrics, "train_loss": float(np.mean(training[-max(1, len(training) // 10):])),
            "curve": curve, "epochs": 1 + max((line.get("epoch", 0) for line in log), default=0),
            "last_fifth": float(before) - final,
            "tasks": {task: {name: value for name, value in its.items()
                             if name not in ("task", "run", "weights", "settings")}
                      for task, its in scores.items()}}


def measure(jobs: list[Job]) -> dict[str, dict[str, Any]]:
    """Return what each arm measured, by name: lists are by seed, all else is the first seed's.

    jobs: of a plan, all done. settings: those of its run.json, in one flat dict.
    """
    runs: dict[str, list[Job]] = {}
    tasks: dict[str, list[str]] = {}
    for job in jobs:
        if not job.task:
            runs.setdefault(job.arm.name, []).append(job)
        elif job.seed == 0:
            tasks.setdefault(job.arm.name, []).append(job.task)
    arms = {}
    for name, seeds in runs.items():
        first, arm = seeds[0], seeds[0].arm
        measured = [metrics_of(job.out, tuple(tasks.get(name, ()))) for job in seeds]
        run = read_json(first.out / "run.json", "is missing; run again")
        here = lambda value: value.replace(f"{ROOT}/", "") if isinstance(value, str) else value
        settings = {name: here(value) for name, value in
                    {**run["model"], **run["settings"], **run.get("distill", {})}.items()}
        arms[name] = {
            "teacher": arm.teacher.name if arm.teacher else None,
            **{key: measured[0][key] for key in ("layers", "parameters", "disk", "steps",
                                                 "epochs")},
            **{key: [metrics[key] for metrics in measured] for key in (
                "tokens", "seconds", "full-sentences", "segment-pair", "train_loss", "last_fifth",
                "curve", "tasks")},
            "command": here(shlex.join(["python", *first.command])),
            "script": arm.script, "corpus": settings["corpus"], "settings": settings}
    return arms


def losses(arm: dict[str, Any], kind: str = "full-sentences") -> list[float]:
    """Return the held-out losses (nats) by seed of an arm as `measure` returns it."""
    return [scores["mlm_loss"] for scores in arm[kind]]


def write_logs(jobs: list[Job], path: Path) -> None:
    """Write every line of every run's log to one file, each with its arm and seed before it."""
    with atomic_write(path) as aside, open(aside, "w", encoding="utf-8") as out:
        for job in jobs:
            for line in (job.out / "log.jsonl").open(encoding="utf-8") if not job.task else ():
                out.write(json.dumps({"arm": job.arm.name, "seed": job.seed, **json.loads(line)})
                          + "\n")
