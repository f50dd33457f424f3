"""From a claim to its measurements: the table of claims, the plan, the runner, the records."""
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
from conftest import BUDGET, TOY

from lab import compare as compare_module
from lab import measure as measure_module
from lab import plan as plan_module
from lab import run as run_module
from lab.claims import CLAIMS, GRIDS, MORE_SEEDS, Arm, Claim, Contrast, Grid, arms_of
from lab.compare import compare
from lab.exact import EXACT
from lab.measure import measure, metrics_of, write_logs
from lab.plan import (Job, plan, plan_lines, read_flags, slice_tokens, tokens_in_a_sequence,
                      too_small)
from lab.run import run_all, seconds_left
from minibert.config import RunConfig
from minibert.data import TokenizedCorpus
from minibert.errors import UserError
from minibert.files.corpus import prepare

# ---- the table of claims

RECIPE = {"script", "input_format", "nsp", "masking", "static_masks", "adam_beta2",
          "max_grad_norm", "model_type", "next_sentence"}
MAY_DIFFER = {"worth": {"budget"}, "capacity": {"num_hidden_layers"}, "nsp": RECIPE,
              "masking": {"masking", "static_masks"}, "data": {"text"}, "steps": {"budget"},
              "distill": {"alpha_kl", "alpha_cos", "init", "budget"},
              "soft": {"alpha_kl", "alpha_mlm", "text"},
              "terms": {"alpha_kl", "alpha_mlm", "alpha_cos"},
              "stack": {"teacher", "budget"} | RECIPE}


def settings_of(arm, grid):
    flags = ["--preset", "tiny", *grid.flags.split()]
    flags += ["--teacher", arm.teacher.name] if arm.teacher else plan_module.shape_flags(grid)
    run, more = read_flags(arm.script, [*flags, *arm.flags.format(
        layers=grid.layers, half=grid.layers // 2).split()])
    return {**vars(run), **vars(more), "steps": 0, "script": arm.script, "text": arm.text,
            "budget": arm.budget * plan_module.unit(arm, grid)}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_arms_differ_in_what_the_claim_is_about(claim):
    """Catches an arm that was given more than its claim says: a rate, a depth, another script."""
    for contrast in claim.contrasts:
        first, second = (settings_of(arm, GRIDS["quick"])
                         for arm in (contrast.first, contrast.second))
        apart = {name for name in {*first, *second} if first.get(name) != second.get(name)}
        may = MAY_DIFFER.get(claim.id, apart)  # a claim of one's own may be about anything
        assert apart and apart <= may, (contrast, apart - may)
        assert ("tokens" == contrast.apart) == (first["budget"] != second["budget"])


def test_a_stand_in_had_the_same_recipe():
    """Catches published measurements that stand for an arm of another recipe."""
    for arm in {arm for claim in CLAIMS for arm in arms_of(claim) if arm.stand_in}:
        settings, its = (settings_of(each, GRIDS["full"]) for each in (arm, arm.stand_in))
        assert {name for name in settings if settings[name] != its[name]} == {"script"}


def test_arms_and_claims_have_names_of_their_own():
    """Catches two arms or claims that the report could not tell apart, and more seeds of one arm
    than of the one that it is paired with, where three could not tell."""
    arms = {arm for claim in CLAIMS for arm in arms_of(claim)}
    assert len({arm.name for arm in arms}) == len(arms)
    assert len({*EXACT, *(claim.id for claim in CLAIMS)}) == len(EXACT) + len(CLAIMS)
    for claim in CLAIMS:
        first = claim.contrasts[0]
        if claim.id in ("worth", "capacity", "nsp", "retain", "stack"):
            assert {first.first, first.second} <= {*MORE_SEEDS}


# ---- the plan

@pytest.fixture(scope="module")
def text(toy_text):
    return prepare(str(toy_text), "wordpiece", 70)[1]


TEACHER = Arm("teacher", tasks=True)
STUDENT = Arm("student", "distill", teacher=TEACHER)
SCORED = dataclasses.replace(STUDENT, tasks=True)
SMALL = Grid("tiny", 2, 20_000, 0.5, flags="--seq-length 16 --batch-size 8", tasks="a,b",
             task_seeds=3)


@pytest.fixture
def planned(text, tmp_path):
    """Plan a claim about two arms or all claims, for `pydocs` unless it is said otherwise."""
    def make(*arms, grid=SMALL, seeds=1, corpus="pydocs", fingerprint="abc", folder=tmp_path):
        claim = Claim("x", "", (Contrast(arms[0], arms[-1], "better"),), "", "", arms) \
            if arms else None
        return plan([claim] if claim else CLAIMS, grid, seeds, corpus, folder, text, fingerprint)
    return make


def value(job, flag):
    return job.command[job.command.index(flag) + 1]


def test_a_plan_by_hand(planned, tmp_path, monkeypatch):
    """Catches a student of another seed's teacher or of none, one that does not wait, a run that is
    not scored, or an arm that is, and seeds that MORE_SEEDS does not ask for."""
    monkeypatch.setattr(plan_module, "MORE_SEEDS", (SCORED,))
    jobs = planned(SCORED, TEACHER, grid=dataclasses.replace(SMALL, more_seeds=1), seeds=2)
    assert [str(job) for job in jobs] == [part for seed in (0, 1, 2) for part in (
        *(f"{arm}, seed {seed}{task}" for arm in ("teacher", "student")
          for task in ("", ", a", ", b")),)]  # the last teacher is there for its student
    for teacher, a, b, student, a_too, b_too in zip(*[iter(jobs)] * 6):
        assert value(teacher, "--seed") == value(student, "--seed") == str(teacher.seed)
        assert a.before is b.before is student.before is teacher and teacher.before is None
        assert value(student, "--teacher") == str(teacher.out) == value(teacher, "--out")
        assert a_too.before is b_too.before is student
        for run, score in ((teacher, b), (student, b_too)):
            assert score.out == run.out / "tasks" / "b"
            assert score.command == ["finetune.py", str(run.out), "--task", "b", "--seeds", "3",
                                     "--max-length", "16"]
    assert not any(job.task for job in planned(TEACHER, corpus="my.txt"))  # the tasks are pydocs'


def test_the_whole_plan(planned, text):
    """Catches an arm that is trained once for each claim, two runs in one folder, a student or a
    score before what it needs, and other seeds than the full grid has."""
    grid = dataclasses.replace(GRIDS["full"], tokens=20_000, student=1.0)
    jobs = planned(grid=grid, seeds=3)
    runs = {(job.arm, job.seed): job for job in jobs if not job.task}
    assert len({job.out for job in jobs}) == len(jobs)
    assert [*runs] == [*dict.fromkeys(runs)] and {arm for arm, _ in runs} == {
        arm for claim in CLAIMS for arm in arms_of(claim)}
    for number, job in enumerate(jobs):
        assert job.before is None or job.before in jobs[:number] and job.before.seed == job.seed
    for arm in {arm for arm, _ in runs}:
        seeds = [seed for its, seed in runs if its == arm]
        assert seeds == [*range(5 if arm in MORE_SEEDS else 3)]
        scored = {job.task for job in jobs if job.task and job.arm == arm}
        assert scored == ({"library", "word-order", "halves"} if arm.tasks else set())


def test_a_folder_is_of_one_command_and_text(planned, tmp_path, monkeypatch):
    """Catches what is finished taken for what would be run: another text, command or scoring; and
    runs that are made again because the project was moved."""
    outs = lambda **more: [job.out.name for job in planned(TEACHER, STUDENT, **more)
                           if not job.task]
    changed = [dataclasses.replace(SMALL, flags="--seq-length 16 --batch-size 4"),
               dataclasses.replace(SMALL, task_seeds=1)]
    others = [outs(fingerprint="abd"), *(outs(grid=grid) for grid in changed)]
    for other in others:
        assert other[0] != outs()[0]
    assert others[1][1] != outs()[1] and others[0][1] != outs()[1]
    moved = []
    for root in (tmp_path / "here", tmp_path / "there"):
        monkeypatch.setattr(plan_module, "ROOT", root)
        moved.append(outs(folder=root / "runs"))
    assert moved[0] == moved[1]


def test_formats_get_equal_tokens(planned, text):
    """Catches equal sequences called equal budgets: pairs hold more tokens than packed sentences,
    and documents' ends leave more padding; and a budget that is not multiplied."""
    arms = [Arm(name, "train_bert", f"--no-nsp --input-format {name}") for name in
            ("full-sentences", "segment-pair", "doc-sentences")]
    budgets = {}
    for job in planned(*arms, Arm("twice", budget=2.0), STUDENT, Arm("slice", text=0.1),
                       Arm("none", budget=0.0),
                       grid=dataclasses.replace(SMALL, flags="--seq-length 16 --batch-size 128")):
        if not job.task:
            run = read_flags(job.arm.script, job.command[1:-2])[0]
            budgets[job.arm.name] = (run.batch_size, run.steps,
                                     run.batch_size * tokens_in_a_sequence(run, text))
            assert job.sequences == run.batch_size * run.steps
            assert run.eval_every == max(1, np.ceil(run.steps * (0.1 if job.arm.text else 0.4)))
    base = budgets["full-sentences"]
    assert base[0] == 128 and base[1] * base[2] == pytest.approx(20_000, rel=0.05)
    assert budgets["segment-pair"][0] < 128 < budgets["doc-sentences"][0]
    for name in ("segment-pair", "doc-sentences", "slice"):
        assert budgets[name][2] == pytest.approx(base[2], rel=0.03) and budgets[name][1] == base[1]
    assert budgets["twice"][1] == pytest.approx(2 * base[1], abs=1) and budgets["none"][1] == 0
    assert budgets["student"][1] == pytest.approx(base[1] / 2, abs=1)  # the grid's share


def test_tokens_are_counted_in_the_share_that_is_used(monkeypatch):
    """Catches a pair's second [SEP] that nobody counts, and a budget reckoned from all of the text
    for an arm that sees a part of it: here the first document has sentences of 14 tokens, which
    fill a block, the second of 8."""
    bounds = np.array([[14 * i, 14 * (i + 1)] for i in range(20)]
                      + [[281 + 8 * i, 281 + 8 * (i + 1)] for i in range(35)])
    text = TokenizedCorpus(np.zeros(562), bounds, np.array([0, 20, 55]))
    run = RunConfig(out="x", seq_length=16, data_tokens=280)
    assert tokens_in_a_sequence(run, text) == 16
    assert tokens_in_a_sequence(dataclasses.replace(run, data_tokens=0), text) < 14
    monkeypatch.setattr(plan_module, "make_sequences", lambda *_, **__: np.array(
        [[0, 4, 4, 8], [0, 6, 6, 6]]))
    assert tokens_in_a_sequence(run, text) == 9.5  # the mean of 4 + 4 + 3 and 6 + 2


def test_a_slice_is_read_equally_often_on_any_corpus(planned, text):
    """Catches shares of the corpus, which make a verdict depend on its size, and a claim of which
    either arm's slice is most of the text."""
    grid = dataclasses.replace(SMALL, tokens=40_000)
    arm = Arm("slice", budget=0.5, text=0.5 / 20)
    student = dataclasses.replace(STUDENT, text=1 / 20)
    assert slice_tokens(arm, grid) == 1000 == slice_tokens(student, grid)
    assert {value(job, "--data-tokens") for job in planned(arm, student, grid=grid)
            if job.arm.text and not job.task} == {"1000"}
    larger = dataclasses.replace(grid, tokens=20 * len(text.tokens) + 400)
    for arms in ((arm, TEACHER), (TEACHER, arm), (arm, student)):
        claim = Claim("x", "", (Contrast(*arms, "better"),), "", "")
        assert too_small(claim, grid, text) == ""
        assert too_small(claim, larger, text).startswith(f"the corpus has {len(text.tokens):,} tok")


def test_another_engine_can_run_the_plan(planned, tmp_path, monkeypatch):
    """Catches a line that cannot be run as it stands, one that does not wait, and other threads."""
    monkeypatch.setattr(plan_module, "ROOT", tmp_path)
    jobs = planned(TEACHER, STUDENT, corpus="pydocs", folder=tmp_path / "my runs", seeds=2)
    lines = [line.split("\t") for line in plan_lines(jobs).splitlines()]
    assert str(tmp_path) not in plan_lines(jobs) and len(lines) == len(jobs)
    for number, ((its, before, command), job) in enumerate(zip(lines, jobs), 1):
        words = shlex.split(command)
        assert words[:4] == ["env", "OMP_NUM_THREADS=1", "MINIBERT_PLAIN=1", "python"]
        assert [*words[4:]] == [part.replace(f"{tmp_path}/", "") for part in job.command]
        assert its == str(number) and before == (
            str(jobs.index(job.before) + 1) if job.before else "-")


# ---- the runner

@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Scripts that note when they ran and with how many threads, and fail or wait if told to."""
    (tmp_path / "fake.py").write_text("""
import json, os, pathlib, sys, time
out = pathlib.Path(sys.argv[1])
if "--fail" in sys.argv:
    print("error: no luck; try again", file=sys.stderr)
    sys.exit(2)
if "--wait" in sys.argv:
    time.sleep(9)
start = time.time()
time.sleep(0.3)
out.mkdir(parents=True)
if "--nothing" not in sys.argv:
    (out / "metrics.json").write_text(json.dumps([start, time.time(), os.environ["OMP_NUM_THREADS"],
                                                  os.environ["MINIBERT_PLAIN"]]))
""")
    monkeypatch.setattr(run_module, "ROOT", tmp_path)

    def make(name, *flags, before=None, sequences=1, task=""):
        out = tmp_path / "runs" / name
        return Job(Arm(name), 0, out, ["fake.py", str(out), *flags], before, sequences, task)
    return make


def times(*jobs):
    return [json.loads((job.out / "metrics.json").read_text())[:2] for job in jobs]


def test_runner_order_and_side_by_side(scripts, capsys, monkeypatch):
    """Catches a student that starts before its teacher is done, jobs that wait for nothing, one
    that is done twice, and threads that this process has."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    teacher, other = scripts("teacher"), scripts("other")
    student = scripts("student", before=teacher, sequences=9)
    score = scripts("student/tasks/a", before=student, task="a")
    jobs = [score, student, teacher, other]
    run_all(jobs, 2)
    scored, learned, taught, beside = times(*jobs)
    assert learned[0] >= taught[1] and scored[0] >= learned[1]
    assert max(taught[0], beside[0]) < min(taught[1], beside[1])
    for job in jobs:
        assert json.loads((job.out / "metrics.json").read_text())[2:] == ["1", "1"]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("4 of 4 ") and said[-1].startswith("4 of 4 runs done, about 0 min")
    run_all(jobs, 2)
    assert capsys.readouterr().out.startswith("0 of 4 ") and times(*jobs)[0] == scored


def test_runner_takes_the_longest_first_and_no_more_than_fit(scripts):
    """Catches a core that is idle at the end, and more runs at once than there are cores."""
    jobs = [scripts("short"), scripts("long", sequences=3), scripts("middle", sequences=2)]
    run_all(jobs, 1)
    short, long, middle = times(*jobs)
    assert long[1] <= middle[0] and middle[1] <= short[0]


def test_a_failure_does_not_hide_the_others(scripts, capsys):
    """Catches a failed run that is passed over, one that ends well and leaves nothing, others that
    are not done for its sake, and a student of a teacher that is not there."""
    bad, empty = scripts("bad", "--fail", sequences=9), scripts("empty", "--nothing")
    student, good = scripts("student", before=bad), scripts("good")
    with pytest.raises(UserError) as failed:
        run_all([bad, student, empty, good], 1)
    said, says = capsys.readouterr().out, str(failed.value)
    assert says.startswith("bad, seed 0 (") and "ended with 2: no luck; try again" in says
    assert "1 more failed" in says and "1 wait" in says and "\n" not in says
    assert "\nbad, seed 0 (" in said and "\nempty, seed 0 (" in said
    assert good.done and not student.out.exists()


def test_time_that_is_left_by_hand(monkeypatch):
    """Catches a sum for a mean, and runs that have begun counted in full: at 2 s a sequence, 10 and
    20 sequences take 60 s, of which 30 are over, with two at a time."""
    monkeypatch.setattr(time, "monotonic", lambda: 130.0)
    waits, runs = (Job(TEACHER, 0, None, [], None, sequences) for sequences in (20, 10))
    assert seconds_left(2.0, [waits], {runs: (None, 100.0)}, 2) == 15.0
    assert seconds_left(0.5, [], {runs: (None, 100.0)}, 2) == 0.0


@pytest.mark.parametrize("twice", (False, True))
def test_a_runner_that_is_stopped_stops_its_runs(twice, scripts, monkeypatch):
    """Catches runs that go on alone when SIGTERM ends the process that started them: also where a
    second one comes while the first is handled, from the user and the same again from `make`."""
    started = []

    class Process(subprocess.Popen):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            started.append(self)

        def send_signal(self, number):
            if twice:
                os.kill(os.getpid(), signal.SIGTERM)  # at the worst moment
            super().send_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Process)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        run_all([scripts("slow", "--wait"), scripts("slow too", "--wait")], 2)
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGTERM) == handler


# ---- the measurements

def finished(folder, loss, lines, steps=20, tasks=(), **more):
    """A run's folder as far as it is measured."""
    folder.mkdir(parents=True)
    scores = {"mlm_loss": loss}
    (folder / "metrics.json").write_text(json.dumps({
        "steps": steps, "full-sentences": scores, "segment-pair": scores, "layers": 2,
        "parameters": 5, "disk": 9, **more}))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.json").write_text(json.dumps({
        "model": {"hidden_size": 8}, "settings": {"corpus": "pydocs", "seed": loss},
        "distill": {"alpha_kl": 5.0}}))
    for task, score in tasks:
        (folder / "tasks" / task).mkdir(parents=True)
        (folder / "tasks" / task / "metrics.json").write_text(json.dumps({
            "task": task, "metric": "accuracy", "score": score, "majority": 0.5, "run": "x",
            "settings": {}}))


def test_metrics_of_a_run_by_hand(tmp_path):
    """Catches a training loss that is read from the start of the log or from evaluations, a sum for
    its mean, and NaN where a network was not trained at all."""
    lines = [{"step": step, "epoch": step // 8, "mlm": float(100 - step)} for step in range(1, 21)]
    lines.insert(10, {"step": 12, "eval": {"mlm_loss": 7.0}})
    lines.append({"step": 20, "eval": {"mlm_loss": 6.5}})
    finished(tmp_path / "run", 6.5, lines)
    metrics = metrics_of(tmp_path / "run")
    assert metrics["train_loss"] == 80.5 and metrics["epochs"] == 3  # the mean of 81 and 80
    assert metrics["curve"] == [(12, 7.0), (20, 6.5)]
    assert metrics["last_fifth"] == pytest.approx(0.25)  # at step 16 the curve is at 6.75
    finished(tmp_path / "untrained", 8.4, [], steps=0)
    metrics = metrics_of(tmp_path / "untrained")
    assert (metrics["train_loss"], metrics["last_fifth"], metrics["curve"]) == (8.4, 0, [])


def test_an_arm_is_measured_by_seed(planned, tmp_path):
    """Catches a seed's figure in another's place, a sum where all seeds are kept, a task's score of
    another run or one that nobody planned, and a log's line under another arm's name."""
    jobs = planned(TEACHER, STUDENT, seeds=2)
    for loss, job in enumerate([job for job in jobs if not job.task], 1):
        line = {"step": 1, "epoch": job.seed, "mlm": float(loss)}
        tasks = [(task, loss / 10) for task in ("a", "b", "own")]
        finished(job.out, loss, [line], tasks=tasks, tokens=100 * loss, seconds=10.0 * loss)
    by_name = {job.arm.name: [] for job in jobs}
    for job in jobs:
        if not job.task:
            by_name[job.arm.name].append(metrics_of(job.out)["full-sentences"]["mlm_loss"])
    arms = measure(jobs)
    assert arms.keys() == {"teacher", "student"}
    for name, losses in by_name.items():
        arm = arms[name]
        assert [scores["mlm_loss"] for scores in arm["full-sentences"]] == losses
        assert arm["train_loss"] == losses and arm["seconds"] == [10.0 * loss for loss in losses]
        assert arm["tokens"] == [100 * loss for loss in losses] and arm["steps"] == 20
        assert arm["epochs"] == 1  # the first seed's
        assert arm["settings"] == {"hidden_size": 8, "corpus": "pydocs", "seed": losses[0],
                                   "alpha_kl": 5.0}
        assert "--seed 0" in arm["command"]
    assert arms["teacher"]["tasks"] == [
        {task: {"metric": "accuracy", "score": loss / 10, "majority": 0.5} for task in "ab"}
        for loss in by_name["teacher"]]
    assert arms["student"]["tasks"] == [{}, {}]
    assert (arms["student"]["teacher"], arms["student"]["script"]) == ("teacher", "distill")
    write_logs(jobs, tmp_path / "logs.jsonl")
    logs = [json.loads(line) for line in (tmp_path / "logs.jsonl").open()]
    assert [(line["arm"], line["seed"], line["mlm"]) for line in logs] == [
        (job.arm.name, job.seed, metrics_of(job.out)["train_loss"]) for job in jobs if not job.task]


# ---- all of it

@pytest.fixture
def toy_grid(monkeypatch, toy_text, tmp_path, run_script):
    """compare() on a toy text, with runs in this process."""
    monkeypatch.setitem(GRIDS, "quick", Grid(
        "tiny", 2, 1500, 1.0, " ".join(TOY[:6] + TOY[8:]),
        " ".join([*BUDGET[6:-6], "--log-every 3 --eval-every 6"]), tasks="library"))
    whole, half = Arm("whole", tasks=True), Arm("half", text=0.2)
    student = Arm("student", "distill", "", 0.5, whole)
    claims = (Claim("data", "more text helps", (Contrast(whole, half, "better"),), "a paper", ""),
              Claim("stack", "they stack", (Contrast(student, whole, "better", apart="tokens"),),
                    "", "", (half,)),
              Claim("large", "", (Contrast(whole, Arm("all", text=9.0), "better"),), "", ""))
    monkeypatch.setattr(compare_module, "CLAIMS", claims)
    monkeypatch.setattr(compare_module, "EXACT", {"kl": EXACT["kl"]})
    monkeypatch.setattr(compare_module, "ROOT", tmp_path)
    monkeypatch.setattr(plan_module, "ROOT", tmp_path)
    monkeypatch.setattr(measure_module, "ROOT", tmp_path)

    def run_here(jobs, at_once):
        for job in jobs:
            run_script(job.command[0].removesuffix(".py"), *job.command[1:])
    monkeypatch.setattr(compare_module, "run_all", run_here)
    return lambda seeds=2, **more: compare("quick", str(toy_text), "toy", seeds=seeds, **more)


def without_seconds(results):
    arms = {name: {**arm, "seconds": 0} for name, arm in results["arms"].items()}
    return {**results, "arms": arms, "family": {**results["family"], "latency_ms": {}}}


def test_twice_the_same(toy_grid, tmp_path):
    """Catches results that depend on anything but the settings, a verdict that is stored, and the
    path of a machine in what is published."""
    first = toy_grid()
    stored = json.loads((tmp_path / "results/toy/results.json").read_text())
    assert stored == json.loads(json.dumps(first)) and stored["arms"].keys() == {
        "whole", "half", "student"}
    assert [*first["exact"]] == ["kl"] and [*first["refused"]] == ["large"]
    assert "verdict" not in json.dumps(stored) and "claims" not in stored
    assert str(tmp_path) not in json.dumps(stored).replace(first["corpus"], "")
    shutil.rmtree(tmp_path / "runs")
    assert without_seconds(toy_grid()) == without_seconds(first)


def test_some_claims_only(toy_grid, tmp_path, capsys):
    """Catches runs that nobody asked for, an hour of runs before it is said that one seed gives no
    interval, and a plan that runs."""
    for count in (1, 11):
        with pytest.raises(UserError, match=f"{count} seeds give no interval"):
            toy_grid(seeds=count)
    with pytest.raises(UserError, match="no claim 'poetry'; the claims are kl, data, stack, large"):
        toy_grid(only="poetry")
    capsys.readouterr()
    assert toy_grid(only="data", plan_only=True) is None
    assert [line.count("\t") for line in capsys.readouterr().out.splitlines()] == [2] * 4
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()
    results = toy_grid(only="data")
    assert results["left_out"] == ["kl", "stack", "large"] and results["exact"] == {}
    assert len(list((tmp_path / "runs" / "toy").iterdir())) == 4
    shorter = toy_grid(only="data", tokens=600)["arms"]["whole"]
    assert shorter["steps"] < results["arms"]["whole"]["steps"]
    smaller = toy_grid(only="data", vocab_size=65)["arms"]["whole"]
    assert smaller["parameters"] < results["arms"]["whole"]["parameters"]


def test_the_family_is_shown_side_by_side(toy_grid, monkeypatch):
    """Catches a student shown before its teacher, or beside another seed's, and the time of one
    model given to another."""
    load, loaded = compare_module.load_pretrained, []
    monkeypatch.setattr(compare_module, "load_pretrained", lambda folder: (
        loaded.append(folder.name.split("-")[1]), load(folder))[1])
    monkeypatch.setattr(compare_module, "blanks", lambda *_: [("ba [MASK] be", "bi")])
    monkeypatch.setattr(compare_module, "forward_seconds", lambda encoders, device: [
        [0.001 * len(encoder.layers)] * 3 for encoder in encoders])
    family = toy_grid(only="stack")["family"]
    assert loaded == ["0", "0", "0"]
    assert family["latency_ms"] == pytest.approx({"student": 1, "whole": 2, "half": 2})
    (blank,) = family["blanks"]
    assert blank["word"] == "bi" and blank["guesses"].startswith("ba [MASK] be\n")
    assert blank["guesses"].splitlines()[2].split() == ["whole", "student"]


@pytest.mark.parametrize("cores, memory, jobs", [(16, 80, 16), (16, 9, 4), (4, 1, 1)])
def test_a_gpu_gets_the_full_grid_and_as_many_runs_as_fit(cores, memory, jobs, toy_text, tmp_path,
                                                          monkeypatch):
    """Catches a GPU that waits for Python, one whose memory is not enough, and the small grid."""
    class Reached(Exception):
        pass

    def stop(jobs, at_once):
        raise Reached(at_once, {"--num-hidden-layers 4" in " ".join(job.command) for job in jobs})

    monkeypatch.setattr(compare_module, "ROOT", tmp_path)
    monkeypatch.setattr(compare_module, "pick_device", lambda _: "cuda")
    monkeypatch.setattr(compare_module, "run_all", stop)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(compare_module.torch.cuda, "mem_get_info", lambda: (0, memory * 2**30))
    with pytest.raises(Reached) as reached:
        compare("auto", str(toy_text), "gpu", only="steps", tokens=20_000, vocab_size=70)
    assert reached.value.args == (jobs, {True})
