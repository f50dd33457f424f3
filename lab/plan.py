"""Plan the claims' arms: the command and folder of each job, and the job that comes before it."""
import functools
import hashlib
import importlib
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.claims import MORE_SEEDS, Arm, Claim, Grid, arms_of
from minibert.config import RunConfig
from minibert.data import TokenizedCorpus, make_sequences
from minibert.files.corpus import training_part
from minibert.files.run_folder import ROOT

TASK_SEQUENCES = 10_000  # about as many as a run reads in the time of one fine-tuning


@dataclass(eq=False)
class Job:
    """An arm's pretraining with one seed, or its scores on one task, and what must be done first.
    """
    arm: Arm
    seed: int
    out: Path  # the folder that is filled
    command: list[str]
    before: "Job | None"  # a student's teacher, or the run that is scored
    sequences: int  # that it reads, to tell long jobs from short ones
    task: str = ""

    @property
    def done(self) -> bool:
        """Whether its metrics are there, which are written last."""
        return (self.out / "metrics.json").exists()

    def __str__(self) -> str:
        return f"{self.arm.name}, seed {self.seed}" + f", {self.task}" * bool(self.task)


def read_flags(script: str, flags: list[str]) -> tuple[RunConfig, Any]:
    """Return the settings that a script makes of its flags: of the run, and of model or student."""
    return importlib.import_module(script).read_flags(["--out", "none", *flags])


def plan(claims: list[Claim], grid: Grid, seeds: int, corpus: str, folder: Path,
         text: TokenizedCorpus, fingerprint: str) -> list[Job]:
    """Return every job that the claims need, each after the one that must be done before it.

    seeds: of each arm; those in MORE_SEEDS have as many more as the grid says. corpus: its name or
    path. fingerprint: the corpus's, which becomes a part of each folder's name together with the
    commands, so what is finished in a folder is what would be run. An arm that two claims share is
    trained once.
    """
    shared = ["--preset", grid.preset, "--corpus", corpus, *grid.flags.split()]
    base, _ = read_flags("train_roberta", [*shared, *shape_flags(grid)])
    update = base.batch_size * tokens_in_a_sequence(base, text)
    # A text of one's own has none of the tasks, which are made of pydocs.
    tasks = grid.tasks.split(",") if grid.tasks and corpus == "pydocs" else []
    scoring = ["--seeds", str(grid.task_seeds), "--max-length", str(base.seq_length)]

    @functools.cache
    def flags_of(arm: Arm) -> tuple[list[str], int]:  # one budget for all seeds
        flags = [*shared, *(["--teacher", "-"] if arm.teacher else shape_flags(grid)),
                 *arm.flags.format(layers=grid.layers, half=grid.layers // 2).split()]
        if arm.text:
            flags += ["--data-tokens", str(slice_tokens(arm, grid))]
        run, _ = read_flags(arm.script, flags)
        batch, steps = budget_for(arm.budget * unit(arm, grid), update,
                                  tokens_in_a_sequence(run, text))
        # At two and four fifths of the steps, so that the report can say what the last one gained.
        # A slice that is read again and again has a curve to show.
        every = max(1, math.ceil(steps * (0.1 if arm.text else 0.4)))
        return [*flags, "--batch-size", str(batch), "--steps", str(steps),
                "--eval-every", str(every)], batch * steps

    @functools.cache
    def add(arm: Arm, seed: int) -> Job:
        teacher = add(arm.teacher, seed) if arm.teacher else None
        flags, sequences = flags_of(arm)
        command = [f"{arm.script}.py", *last_of_each(
            [*flags, *(["--teacher", str(teacher.out)] if teacher else []), "--seed", str(seed)])]
        scored = tasks if arm.tasks else []
        said = " ".join([fingerprint, *command, *scored, *scoring]).replace(f"{ROOT}/", "")
        name = re.sub(r"\W+", "-", arm.name).strip("-")
        out = folder / f"{name}-{seed}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
        run = Job(arm, seed, out, [*command, "--out", str(out)], teacher, sequences)
        jobs.append(run)
        jobs.extend(Job(arm, seed, out / "tasks" / task,
                        ["finetune.py", str(out), "--task", task, *scoring], run,
                        TASK_SEQUENCES * grid.task_seeds, task) for task in scored)
        return run

    jobs: list[Job] = []
    for claim in claims:
        for arm in arms_of(claim):
            for seed in range(seeds + grid.more_seeds * (arm in MORE_SEEDS)):
                add(arm, seed)
    return jobs


def plan_lines(jobs: list[Job]) -> str:
    """Return every job's command as a table for another engine, one a line, separated by tabs.

    The columns are the line's number, the number of the line that must be done before it ("-" where
    there is none), and the command, which goes on where it was stopped and is not done twice. The
    environment fixes the threads, because the sums of several threads differ in their last digit.
    """
    numbers = {job: number for number, job in enumerate(jobs, 1)}
    lines = []
    for job, number in numbers.items():
        before = numbers[job.before] if job.before else "-"
        command = shlex.join(["env", "OMP_NUM_THREADS=1", "MINIBERT_PLAIN=1", "python",
                              *job.command]).replace(f"{ROOT}/", "")
        lines.append(f"{number}\t{before}\t{command}")
    return "\n".join(lines)


def slice_tokens(arm: Arm, grid: Grid) -> int:
    """Return how many tokens of text an arm reads again and again; 0 means the whole corpus."""
    return round(arm.text * unit(arm, grid))


def unit(arm: Arm, grid: Grid) -> float:
    """Return the tokens that an arm's budget is a multiple of: a teacher's, or a student's."""
    return grid.tokens * grid.student if arm.teacher else grid.tokens


def too_small(claim: Claim, grid: Grid, text: TokenizedCorpus) -> str:
    """Return why a text is too small for a claim; "" where it is not.

    A slice of more than half of the text would leave too little that the other arms see more of.
    """
    needed = 2 * max(slice_tokens(arm, grid) for arm in arms_of(claim))
    if needed <= len(text.tokens):
        return ""
    return f"the corpus has {len(text.tokens):,} tokens, and this claim needs {needed:,}"


def last_of_each(flags: list[str]) -> list[str]:
    """Return flags with their values, without those that a later one overrules.

    >>> last_of_each(["--steps", "1", "--no-nsp", "--steps", "2"])
    ['--no-nsp', '--steps', '2']
    """
    values: dict[str, list[str]] = {}
    for part in flags:
        if part.startswith("--"):
            values.pop(part, None)
            name, values[part] = part, []
        else:
            values[name].append(part)
    return [part for name in values for part in (name, *values[name])]


def shape_flags(grid: Grid) -> list[str]:
    """Return the flags that give a model the grid's shape."""
    return ["--num-hidden-layers", str(grid.layers), *grid.shape.split()]


def tokens_in_a_sequence(run: RunConfig, text: TokenizedCorpus) -> float:
    """Return the mean number of non-padding tokens in a sequence, in which the formats differ."""
    spans = make_sequences(training_part(text, run), run.input_format, run.seq_length,
                           seed=0, duplicate=0, short_seq_prob=run.short_seq_prob)
    a, b = spans[:, 1] - spans[:, 0], spans[:, 3] - spans[:, 2]
    return float((a + b + 2 + (b > 0)).mean())


def budget_for(tokens: float, update: float, sequence: float) -> tuple[int, int]:
    """Return sequences in an update and steps, so that arms see equal tokens in both.

    tokens, update, sequence: non-padding tokens of the whole run, of the base's update, and of one
    of the arm's sequences.
    Paper: Liu et al. 2019, section 4.2, changes the batch size for the same reason.
    >>> budget_for(tokens=8000, update=32 * 25.0, sequence=25.0)
    (32, 10)
    >>> budget_for(tokens=8000, update=32 * 25.0, sequence=32.0)
    (25, 10)
    >>> budget_for(tokens=0, update=32 * 25.0, sequence=25.0)
    (32, 0)
    """
    batch = max(1, round(update / sequence))
    return batch, round(tokens / (batch * sequence))
