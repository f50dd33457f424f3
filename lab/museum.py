"""`python -m lab.museum` trains mistakes of published code beside the right code.

A mistake is planted as `make mutants` plants its bugs, in a copy of the project, and trained with
the seeds of the right code. All runs are measured by the right code. In the end there are
docs/museum.md, its picture docs/museum.svg (which needs matplotlib), and the figures of both,
results/museum.json. Given again, the command goes on where it was stopped.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from lab.judge import interval
from lab.planted_bugs import Mutant, plant
from minibert.errors import UserError, run_cli
from minibert.files.corpus import DATA, corpus_path
from minibert.files.run_folder import ROOT, code, read_json, write_json

# Two million tokens for a teacher; a student has half of its steps and of its layers.
STEPS = 2475
SHAPE = "--num-hidden-layers 2 --vocab-size 2048 --initializer-range 0.08"
FLAGS = "--preset tiny --seq-length 32 --batch-size 32 --learning-rate 0.002 --device cpu"
# A student that has nothing of its teacher but the soft targets, beside the hard labels.
STUDENT = "--init random --alpha-cos 0"
THREAD = "https://github.com/"


class Mistake(NamedTuple):
    id: str
    title: str
    script: str  # which recipe shows it
    change: tuple[str, str, str]  # a file, a line of it, and what was written in its place
    sources: str  # threads, without the address that they share
    prose: str  # what it is, and what it looks like from outside

    @property
    def bug(self) -> Mutant:
        return Mutant(self.title, *self.change, "")


MISTAKES = (
    Mistake(
        "nsp", "Pairs that teach nothing", "train_bert",
        ("minibert/losses.py", "F.cross_entropy(_to_float32(logits), is_random_next,",
         "F.cross_entropy(_to_float32(logits), is_random_next, ignore_index=0,"),
        "codertimo/BERT-pytorch/issues/32 codertimo/BERT-pytorch/issues/49",
        "The loss of the masked words ignores label 0, which stands for padding. The same loss "
        "function is then used for next sentences, where 0 is one of the two answers. Its pairs "
        "have no gradient, so the model may say the other answer every time and is never wrong. "
        "From outside, the loss of next sentences falls to nothing within a few steps, far faster "
        "than anything that has to be learned. The figure that gives it away is the accuracy: it "
        "is that of always giving one answer, however low the loss is."),
    Mistake(
        "all-tokens", "The mean over all tokens", "train_roberta",
        ("minibert/masking.py",
         "batch._replace(input_ids=inputs, masked_positions=masked_positions, labels=labels)",
         "batch._replace(input_ids=inputs, masked_positions=inputs.ne(IGNORE).cumsum(1) - 1,\n"
         "                               labels=batch.input_ids.where(batch.attention_mask > 0, "
         "IGNORE))"),
        "huggingface/transformers/issues/20797 lucidrains/mlm-pytorch/issues/2",
        "The labels of the tokens that were not chosen are not switched off, so that most of the "
        "loss asks for words that the model can see. To copy them is easy, and the gradient of the "
        "hidden words is one voice among seven. From outside, the training loss is surprisingly "
        "low: a user of transformers had 0.1 to 0.2, and 1.6 when it was mended. A loss far below "
        "the unigram entropy after a few hundred steps is that of another task. The log's "
        "`targets` tell the same, since they should be 15 % of the `tokens`."),
    Mistake(
        "masked-labels", "Labels from the masked text", "train_roberta",
        ("minibert/masking.py", "labels = input_ids.gather(", "labels = inputs.gather("),
        "gc-os-ai/pyaptamer/pull/462 princeton-nlp/SimCSE/pull/121",
        "The labels are taken when the tokens have been masked already. Then the right answer to "
        "`[MASK]` is `[MASK]`, and the model learns to copy what it sees. From outside, the loss "
        "falls to almost nothing in the time that a good run needs to learn how frequent words "
        "are. Nobody can guess hidden words so well; look at one batch (`python -m minibert walk "
        "roberta`), and ask the model to fill in a blank. It is a common mistake of first "
        "attempts. The threads below are about two relatives: labels that were cloned from the "
        "wrong tensor, and tokens that were masked in place although another task shared them."),
    Mistake(
        "kept", "No label where nothing is hidden", "train_roberta",
        ("minibert/masking.py", ".where(used, IGNORE)",
         ".where(used & (inputs.gather(1, masked_positions) == mask_id), IGNORE)"),
        "huggingface/transformers/issues/20797",
        "The labels are kept where the input shows `[MASK]`, and nowhere else. For a single blank "
        "that is right. In training it leaves out the chosen tokens that are shown as they are, or "
        "as another word, so that nothing is ever asked about a word in sight, and random words "
        "are mere noise. Such a run stays far longer on the plateau of a model that knows only how "
        "frequent words are. From outside little is odd. The training loss is higher than the "
        "right one, because the easiest questions are gone, but nobody sees that without the right "
        "one beside it. Count the predictions, as the log does: `targets` are a fifth too few."),
    Mistake(
        "kl", "KL the other way round", "distill",
        ("minibert/losses.py", "F.kl_div(student, teacher,", "F.kl_div(teacher, student,"),
        "paiml/aprender/pull/2153 huggingface/trl/pull/4935",
        "torch's `kl_div` takes the distribution that is to be learned as its *second* argument, "
        "and the first one as logarithms. With the two exchanged, the student is punished for "
        "words that it likes and its teacher does not, and hardly for words of the teacher that it "
        "has forgotten. Both directions are 0 for equal distributions, and both fall. So no curve "
        "of one run gives it away; only a test with two distributions that differ does, or the "
        "distance from the teacher, measured by other code (`kl_to_teacher`)."),
    Mistake(
        "t-squared", "T² is missing", "distill",
        ("minibert/losses.py", "temperature**2 * _mean(divergence", "_mean(divergence"),
        "IntelLabs/distiller/issues/122 keras-team/keras-io/issues/869",
        "Without the factor T² the gradient of the soft targets is smaller, at T = 2 by a factor "
        "of four, and the hard labels have more to say than their weight tells. From outside the "
        "run looks healthy, since any balance of the two losses trains a student. It is noticed by "
        "whoever changes the temperature and finds that the best weights change with it."),
)


def copy_project(folder: Path, bug: Mutant | None) -> None:
    """Copy the code to a folder and plant a bug, which does not change how runs are measured."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("minibert/**/*.py")]:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for name in ("losses", "masking"):
        shutil.copy(ROOT / f"minibert/{name}.py", folder / f"minibert/right_{name}.py")
    evaluation = folder / "minibert/evaluation.py"
    evaluation.write_text(re.sub(r"from minibert\.(losses|masking) import",
                                 r"from minibert.right_\1 import",
                                 evaluation.read_text(encoding="utf-8")), encoding="utf-8")
    if bug:
        plant(bug, folder)


def command(script: str, name: str, seed: int, folder: Path, steps: int) -> list[str]:
    """The flags of one run: `name` is a mistake's or "right"; steps: of a recipe."""
    shape = SHAPE.split()
    if script == "distill":
        steps = max(1, steps // 2)
        shape = ["--teacher", str(folder / f"train_roberta-right-{seed}"), *STUDENT.split()]
    return [f"{script}.py", *FLAGS.split(), *shape, "--corpus", str(corpus_path("pydocs")),
            "--seed", str(seed), "--steps", str(steps), "--log-every", str(max(1, steps // 40)),
            "--eval-every", str(max(1, steps // 10)),
            "--out", str(folder / f"{script}-{name}-{seed}")]


def run_all(chosen: list[Mistake], folder: Path, args: argparse.Namespace) -> None:
    """Make the runs that are missing: first those of the two recipes, then those of students."""
    runs = {(mistake.script, name) for mistake in chosen for name in ("right", mistake.id)}
    if any(script == "distill" for script, _ in runs):
        runs.add(("train_roberta", "right"))  # the teachers
    bugs = {"right": None, **{mistake.id: mistake.bug for mistake in chosen}}
    for name, bug in bugs.items():
        shutil.rmtree(folder / f"code-{name}", ignore_errors=True)
        copy_project(folder / f"code-{name}", bug)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MINIBERT_PLAIN": "1",
                   "MINIBERT_PREPARED": os.environ.get("MINIBERT_PREPARED", str(DATA / "prepared"))}

    def run(script: str, name: str, seed: int) -> None:
        copy = folder / f"code-{name}"
        done = subprocess.run([sys.executable, *command(script, name, seed, folder, args.steps)],
                              cwd=copy, capture_output=True, text=True,
                              env={**environment, "PYTHONPATH": str(copy)})
        print(done.stdout.strip().rpartition("\n")[2], flush=True)
        if done.returncode:
            raise UserError(f"{script} with {name!r} and seed {seed} failed: {done.stderr[-500:]}")

    for students in (False, True):
        with ThreadPoolExecutor(args.jobs) as pool:
            jobs = [pool.submit(run, script, name, seed) for seed in range(args.seeds)
                    for script, name in sorted(runs) if (script == "distill") == students]
            for job in jobs:
                job.result()


def collect(chosen: list[Mistake], folder: Path, steps: int, seeds: int) -> dict[str, Any]:
    """The curves and the final figures of all runs: the content of results/museum.json."""
    return {"steps": steps, "seeds": seeds, "mistakes": {
        mistake.id: {name: [read_run(folder / f"{mistake.script}-{kind}-{seed}", mistake)
                            for seed in range(seeds)]
                     for name, kind in (("right", "right"), ("wrong", mistake.id))}
        for mistake in chosen}}


def read_run(run: Path, mistake: Mistake) -> dict[str, Any]:
    """A run's curves as [step, loss], what its log says in the end, and what it is worth."""
    log = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    metrics = read_json(run / "metrics.json", "is missing; run again")
    term = "nsp" if mistake.id == "nsp" else "mlm"
    training = [[line["step"], round(line[term], 4)] for line in log if term in line]
    pairs, full = metrics["segment-pair"], metrics["full-sentences"]
    return {"training": training,
            "held_out": [[line["step"], round(line["eval"]["mlm_loss"], 4)] for line in log
                         if "eval" in line],
            "logged": round(sum(loss for _, loss in training[-4:]) / len(training[-4:]), 4),
            "targets": round(metrics["targets"] / metrics["tokens"], 4),
            "entropy": round(full["unigram_entropy"], 3),
            **{name: round(scores[name], 4) for scores, name in (
                (pairs, "nsp_accuracy"), (pairs, "nsp_majority"), (full, "kl_to_teacher"))
               if name in scores},
            "loss": round(full["mlm_loss"], 4)}


def differences(runs: dict[str, list[dict]], name: str) -> str:
    """A figure with the mistake and without it, and the paired difference with its interval."""
    wrong, right = ([run[name] for run in runs[kind]] for kind in ("wrong", "right"))
    mean, low, high = interval([a - b for a, b in zip(wrong, right)])
    return (f"{sum(wrong) / len(wrong):.3f} with the mistake and {sum(right) / len(right):.3f} "
            f"without it, a difference of {mean:+.3f} [{low:+.3f}, {high:+.3f}]")


def outcome(mistake: Mistake, runs: dict[str, list[dict]]) -> str:
    """What the runs with a mistake and those without it came to, in sentences."""
    logged = differences(runs, "logged")
    if mistake.id == "nsp":
        majority = runs["right"][0]["nsp_majority"]
        return (f"The accuracy of next sentences is {differences(runs, 'nsp_accuracy')}; the more "
                f"frequent answer alone has {majority:.3f}. The loss of next sentences in the log "
                f"is {logged}. The held-out loss of masked words is {differences(runs, 'loss')}.")
    text = (f"The held-out loss is {differences(runs, 'loss')}; the unigram entropy is "
            f"{runs['right'][0]['entropy']:.3f}. The training loss in the log is {logged}.")
    if mistake.script == "distill":
        return f"{text} The distance from the teacher is {differences(runs, 'kl_to_teacher')}."
    share = [runs[kind][0]["targets"] for kind in ("wrong", "right")]
    return f"{text} Predictions are {share[0]:.1%} of the tokens, and should be {share[1]:.1%}."


def page(results: dict[str, Any]) -> str:
    """docs/museum.md from the content of results/museum.json."""
    steps, seeds = results["steps"], results["seeds"]
    parts = ["# A museum of mistakes", (
        "These mistakes were made in published code, and each of them trains without an error. "
        "What do they look like from outside? Each is planted in a copy of this project, in one "
        "place, and trained with the seeds of the right code: the same initial weights, and the "
        "same text in the same order."), (
        "![A panel for each mistake: the losses of the right code and of the faulty one]"
        "(museum.svg)"), (
        "Solid lines are held-out losses of masked words, measured by the right code; dashed lines "
        "are the training losses that the runs themselves log, and for the first mistake the loss "
        "of next sentences. A line is the mean of the seeds, and the band of a solid line its 95 % "
        f"interval. Figures in the text are means of {seeds} seeds at the end of {steps:,} steps "
        "(a student has half as many), and differences are paired by seed, with a 95 % interval by "
        "Student's t. An interval that holds 0 means that so many seeds cannot tell.")]
    for mistake in MISTAKES:
        if mistake.id in results["mistakes"]:
            bug, names = mistake.bug, [
                f"[{source.replace('/issues/', '#').replace('/pull/', '#')}]({THREAD}{source})"
                for source in mistake.sources.split()]
            parts += [f"## {mistake.title}", mistake.prose,
                      "\n".join(["```diff", bug.file, f"- {bug.before}", *(
                          f"+ {line}" for line in bug.after.split("\n")), "```"]),
                      outcome(mistake, results["mistakes"][mistake.id]),
                      f"Seen in {', '.join(names)}."]
    parts += ["## How it is made", (
        "```\npython -m lab.museum\n```"), (
        "The mistakes, their sources and these paragraphs stand in `lab/museum.py`; "
        "`results/museum.json` has every curve.")]
    wrap = textwrap.TextWrapper(100, break_on_hyphens=False, break_long_words=False)
    return "\n\n".join(part if part[0] in "#!`" else wrap.fill(part) for part in parts) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """The curves of all mistakes as one SVG, in the colours of the lesson's pictures."""
    sys.path.insert(0, str(ROOT / "docs"))
    from draw import BLUE, BROWN, STYLE
    from matplotlib import style
    from matplotlib.figure import Figure
    chosen = [mistake for mistake in MISTAKES if mistake.id in results["mistakes"]]
    with style.context(["default", STYLE]):
        rows = (len(chosen) + 2) // 3
        figure = Figure(figsize=(10, 0.6 + 3.0 * rows), layout="constrained")
        axes = figure.subplots(rows, 3, squeeze=False).flatten()
        for plot in axes[len(chosen):]:
            plot.axis("off")
        for plot, mistake in zip(axes, chosen):
            plot.set_title(mistake.title, fontweight="bold")
            for kind, color in (("right", BLUE), ("wrong", BROWN)):
                for curve, line in (("training", "--"), ("held_out", "-")):
                    draw_curve(plot, [run[curve] for run in results["mistakes"][mistake.id][kind]],
                               color, line)
            plot.set_ylim(bottom=0)
            plot.set_axisbelow(True)
            plot.grid(axis="y", color="0.9")
            plot.set_xlabel("steps")
            plot.set_ylabel("nats")
        for color, kind in ((BLUE, "right code"), (BROWN, "with the mistake")):
            axes[0].plot([], [], color=color, label=kind)
        for line, kind in (("-", "held-out loss, rightly measured"), ("--", "what the run logs")):
            axes[0].plot([], [], line, color="0.3", label=kind)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def draw_curve(plot: Any, curves: list[list[list[float]]], color: str, line: str) -> None:
    """The mean of the seeds' curves and, for a solid line, a band for its 95 % interval."""
    steps = [step for step, _ in curves[0]]
    bands = [interval([curve[i][1] for curve in curves]) for i in range(len(steps))]
    mean, low, high = zip(*bands)
    plot.plot(steps, mean, line, color=color, linewidth=1.8 if line == "-" else 1.2)
    if line == "-":
        plot.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each recipe [{STEPS}]")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind [3]")
    parser.add_argument("--only", default="", help="ids of mistakes, with commas between them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at the same time")
    parser.add_argument("--out", default=str(ROOT), help="where docs/ and results/ are written")
    args = parser.parse_args()
    chosen = [mistake for mistake in MISTAKES
              if not args.only or mistake.id in args.only.split(",")]
    if unknown := set(filter(None, args.only.split(","))) - {mistake.id for mistake in chosen}:
        raise UserError(f"there is no mistake {min(unknown)!r}; they are "
                        f"{', '.join(mistake.id for mistake in MISTAKES)}")
    interval([0.0] * args.seeds)  # too few seeds are said before the first run, and what is missing
    if not find_spec("matplotlib"):
        raise UserError("the picture needs matplotlib; install it first: pip install matplotlib")
    folder = ROOT / "runs" / "museum" / code()  # runs of other code are not those of this version
    run_all(chosen, folder, args)
    results = collect(chosen, folder, args.steps, args.seeds)
    out = Path(args.out)
    for name in ("docs", "results"):
        (out / name).mkdir(parents=True, exist_ok=True)
    write_json(out / "results/museum.json", results)
    (out / "docs/museum.md").write_text(page(results), encoding="utf-8")
    draw(results, out / "docs/museum.svg")
    print(f"{out / 'docs/museum.md'}: {len(chosen)} mistakes, {args.seeds} seeds")


if __name__ == "__main__":
    run_cli(main)
