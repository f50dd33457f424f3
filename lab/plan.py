"""Plan the claims' arms: the command and folder of each run, and the run that comes before it."""
import hashlib
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from lab.claims import MORE_SEEDS, Arm, Claim, Grid
from lab.judge import arms_of
from minibert.config import RunConfig
from minibert.data import TokenizedCorpus, make_sequences
from minibert.files.corpus import training_part
from minibert.files.run_folder import ROOT
from minibert.tools.walk import read_flags


@dataclass(eq=False)
class Run:
    """One arm with one seed: its folder, its command, and the run that must be there before."""
    arm: Arm
    seed: int
    out: Path
    command: list[str]
    teacher: "Run | None"
    sequences: int  # that it reads, to tell long runs from short ones

    @property
    def done(self) -> bool:
        return (self.out / "metrics.json").exists()


def plan(claims: list[Claim], grid: Grid, seeds: int, flags: list[str], folder: Path,
         text: TokenizedCorpus, corpus: str) -> dict[tuple[Arm, int], Run]:
    """Return every run that the claims need, teachers before students.

    seeds: of each arm; those in MORE_SEEDS have as many more as the grid says. flags: what all runs
    share (the corpus). corpus: its fingerprint, which becomes a part of the folder's name together
    with the command, so what is finished in a folder is what would be run. An arm that two claims
    share is one run.
    """
    runs: dict[tuple[Arm, int], Run] = {}
    budgets: dict[Arm, tuple[int, int]] = {}
    flags = ["--preset", grid.preset, *flags, *grid.flags.split()]
    run, _ = read_flags("train_roberta", [*flags, *shape_flags(grid)])
    update = run.batch_size * tokens_in_a_sequence(run, text)

    def add(arm: Arm, seed: int) -> Run:
        if (arm, seed) in runs:
            return runs[arm, seed]
        teacher = add(arm.teacher, seed) if arm.teacher else None
        first = ["--teacher", str(teacher.out)] if teacher else shape_flags(grid)
        own = arm.flags.format(layers=grid.layers, half=grid.layers // 2).split()
        given = [*flags, *first, *own, "--seed", str(seed)]
        if arm.text:
            given += ["--data-tokens", str(slice_tokens(arm, grid))]
        # A text of one's own has none of the tasks of `tiny`, which are made of pydocs.
        if not arm.tasks or (run.corpus != "pydocs" and grid.preset == "tiny"):
            given += ["--tasks", "none"]
        if arm not in budgets:  # one budget for all seeds
            its_run, _ = read_flags(arm.script, given)
            budgets[arm] = budget_for(arm.budget * unit(arm, grid), update,
                                      tokens_in_a_sequence(its_run, text))
        batch, steps = budgets[arm]
        # At two and four fifths of the steps, so that the report can say what the last one gained.
        # A slice that is read again and again has a curve to show.
        every = ["--eval-every", str(max(1, math.ceil(steps * (0.1 if arm.text else 0.4))))]
        command = [f"{arm.script}.py", *last_of_each([
            *every, *given, "--batch-size", str(batch), "--steps", str(steps)])]
        said = " ".join([corpus, *command]).replace(f"{ROOT}/", "")
        digest = hashlib.sha256(said.encode()).hexdigest()[:8]
        name = re.sub(r"\W+", "-", arm.name).strip("-")
        out = folder / f"{name}-{seed}-{digest}"
        runs[arm, seed] = Run(arm, seed, out, [*command, "--out", str(out)], teacher,
                              steps * batch)
        return runs[arm, seed]

    for claim in claims:
        for arm in arms_of(claim):
            for seed in range(seeds + grid.more_seeds * (arm in MORE_SEEDS)):
                add(arm, seed)
    return runs


def plan_lines(runs: dict[tuple[Arm, int], Run]) -> str:
    """Return every run's command as a table for another engine, one a line, separated by tabs.

    The columns are the line's number, the number of the line that must be done before it ("-" where
    there is none), and the command, which goes on where it was stopped and is not done twice. The
    environment fixes the threads, because the sums of several threads differ in their last digit.
    """
    numbers = {run: number for number, run in enumerate(runs.values(), 1)}
    lines = []
    for run, number in numbers.items():
        before = numbers[run.teacher] if run.teacher else "-"
        command = shlex.join(["env", "OMP_NUM_THREADS=1", "MINIBERT_PLAIN=1", "python",
                              *run.command]).replace(f"{ROOT}/", "")
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
    found: dict[str, list[str]] = {}
    for flag in flags:
        if flag.startswith("--"):
            found.pop(flag, None)
            name, found[flag] = flag, []
        else:
            found[name].append(flag)
    return [part for name, values in found.items() for part in (name, *values)]


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
