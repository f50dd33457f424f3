"""The comparison: what may be compared, what an interval says, and runs that are shared."""
import dataclasses
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import BUDGET, TOY

from lab.__main__ import main
from lab import compare as compare_module
from lab import plan as plan_module
from lab.claims import (CLAIMS, GRIDS, HALF_DEPTH, HARD, MORE_SEEDS, ROBERTA, SOFT,
                                    TRAINED_ON, Arm, Claim, Contrast, Grid)
from lab.compare import Run, compare, expected_minutes, run_all
from lab.judge import arms_of, judge_claim
from lab.plan import (plan, plan_lines, read_flags, shape_flags,
                                  slice_tokens, tokens_in_a_sequence, too_small, unit)
from lab.report import (_claim, _teacher_not_done, models_table, report,
                                      task_scores, verdict_lines, verdict_table, write_report)
from minibert.config import DistillConfig, ModelConfig, RunConfig, parse_flags
from minibert.data import TokenizedCorpus
from minibert.errors import UserError
from minibert.files.corpus import prepare

# ---- the table of claims

MAY_DIFFER = {"worth": {"steps"}, "capacity": {"num_hidden_layers"},
              "nsp": {"input_format", "nsp", "masking", "static_masks", "adam_beta2",
                      "max_grad_norm"},
              "masking": {"masking", "static_masks"}, "data": {"text"}, "steps": {"steps"},
              "distill": {"alpha_kl", "alpha_cos", "init", "steps"},
              "soft": {"alpha_kl", "alpha_mlm", "text"},
              "terms": {"alpha_kl", "alpha_mlm", "alpha_cos"},
              "stack": {"teacher", "steps", "input_format", "nsp", "masking", "adam_beta2",
                        "max_grad_norm", "static_masks"}}


def settings_of(arm, grid):
    script = importlib.import_module(arm.script)
    other = DistillConfig if arm.script == "distill" else ModelConfig
    flags = ["--preset", "tiny", "--out", "x", *grid.flags.split()]
    flags += ["--teacher", arm.teacher.name] if arm.teacher else shape_flags(grid)
    flags += arm.flags.format(layers=grid.layers, half=grid.layers // 2).split()
    run, more = parse_flags(script.__doc__, script.RECIPE, script.STEPS, other, argv=flags)
    return {**dataclasses.asdict(run), **dataclasses.asdict(more),
            "steps": arm.budget * unit(arm, grid),
            "text": arm.text, "eval_every": 0}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_rule_6_arms_differ_in_what_the_claim_is_about(claim):
    """Catches an arm that was given more than its claim says: a rate, a depth, a clip."""
    for contrast in claim.contrasts:
        first, second = (settings_of(arm, GRIDS["quick"])
                         for arm in (contrast.first, contrast.second))
        apart = {name for name in {*first, *second} if first.get(name) != second.get(name)}
        may = MAY_DIFFER.get(claim.id, apart)  # a claim of one's own may be about anything
        assert apart and apart <= may, (contrast, apart - may)
        assert ("tokens" == contrast.apart) == (first["steps"] != second["steps"])


def test_claims_have_names_of_their_own():
    """Catches two arms or claims that the report could not tell apart."""
    arms = {arm for claim in CLAIMS for arm in arms_of(claim)}
    assert len({arm.name for arm in arms}) == len(arms)
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)


# ---- the plan and the runner

@pytest.fixture(scope="module")
def text(toy_text):
    return prepare(str(toy_text), "wordpiece", 70)[1]


def test_plan_shares_runs_and_orders_teachers(text, tmp_path, monkeypatch):
    """Catches an arm that is trained once for each claim, a student before its teacher, another
    command or text in a folder that counts as done."""
    grid, flags = dataclasses.replace(GRIDS["quick"], tokens=20_000), []
    runs = plan(CLAIMS, grid, 2, flags, tmp_path, text, "abc")
    arms = {arm for claim in CLAIMS for arm in arms_of(claim)}
    assert len(runs) == 2 * len(arms) == len({run.out for run in runs.values()})
    seen = []
    for (arm, seed), run in runs.items():
        assert run.teacher is None or run.teacher in seen and run.teacher.seed == seed
        seen.append(run)
        tasks = run.command[run.command.index("--tasks") + 1]
        assert tasks == ("library,word-order" if arm.tasks else "none")
    other = plan(CLAIMS, grid, 2, flags, tmp_path, text, "abd")
    changed = plan(CLAIMS, dataclasses.replace(grid, flags="--batch-size 16"), 2, flags,
                   tmp_path, text, "abc")
    moved = []  # the same runs, wherever the project lies
    for root in (tmp_path / "here", tmp_path / "there"):
        monkeypatch.setattr(plan_module, "ROOT", root)
        moved.append([run.out.relative_to(root) for run in plan(
            CLAIMS, grid, 1, flags, root / "runs", text, "abc").values()])
    assert moved[0] == moved[1]
    for again in (other, changed):
        assert not {run.out for run in again.values()} & {run.out for run in runs.values()}


def test_a_text_of_ones_own_has_no_tasks(text, tmp_path):
    """Catches the embedded corpus's tasks after runs on another text, where a grid names them."""
    for grid in GRIDS.values():
        small = dataclasses.replace(grid, tokens=20_000)
        for run in plan(CLAIMS, small, 1, ["--corpus", "my.txt"], tmp_path, text, "abc").values():
            assert run.command[run.command.index("--tasks") + 1] == "none"


def test_some_arms_have_more_seeds(text, tmp_path):
    """Catches a seed more of every arm, a student of a seed that has no teacher, a pair of which
    one arm alone has more, and other tasks than the preset's."""
    grid = dataclasses.replace(GRIDS["full"], tokens=20_000, student=1.0)
    runs = plan(CLAIMS, grid, 3, [], tmp_path, text, "abc")
    found = {arm: [seed for its_arm, seed in runs if its_arm == arm] for arm, _ in runs}
    more = {arm for arm, seeds in found.items() if seeds == [0, 1, 2, 3, 4]}
    assert more == set(MORE_SEEDS)
    assert all(seeds == [0, 1, 2] for arm, seeds in found.items() if arm not in more)
    for arm, seed in runs:
        assert not arm.teacher or runs[arm, seed].teacher is runs[arm.teacher, seed]
        assert ("--tasks" in runs[arm, seed].command) == (not arm.tasks)  # the preset's, or none
    for claim in CLAIMS:
        first = claim.contrasts[0]
        if claim.id in ("worth", "capacity", "nsp", "retain", "stack"):
            assert {first.first, first.second} <= more


def test_formats_get_equal_tokens(text, tmp_path):
    """Catches equal sequences called equal budgets: pairs hold more tokens than packed sentences,
    and documents' ends leave more padding; and budgets that one text's share does not change."""
    grid = Grid("tiny", 2, 20_000, 1.0, flags="--seq-length 16 --batch-size 128")
    arms = [Arm(name, flags=f"--input-format {name}") for name in
            ("full-sentences", "segment-pair", "doc-sentences")]
    arms += [Arm("half", flags="--data-fraction 0.5"), Arm("twice", budget=2.0)]
    claim = Claim("x", "", (Contrast(arms[0], arms[0], "better"),), "", "", tuple(arms))
    found = {}
    for (arm, _), run in plan((claim,), grid, 1, [], tmp_path, text, "").items():
        run = read_flags(arm.script, run.command[1:-2])[0]
        found[arm.name] = (run.batch_size, run.steps,
                           run.batch_size * tokens_in_a_sequence(run, text))
    base = found["full-sentences"]
    assert base[0] == 128 and base[1] * base[2] == pytest.approx(20_000, rel=0.05)
    assert found["segment-pair"][0] < 128 < found["doc-sentences"][0]
    for name in ("segment-pair", "doc-sentences", "half"):
        assert found[name][2] == pytest.approx(base[2], rel=0.03) and found[name][1] == base[1]
    assert found["twice"][1] == pytest.approx(2 * base[1], abs=1)


def test_tokens_are_counted_in_the_share_that_is_used():
    """Catches a budget reckoned from all of the text for an arm that sees a part of it: here the
    first document has sentences of 14 tokens, which fill a block, the second of 8."""
    bounds = np.array([[14 * i, 14 * (i + 1)] for i in range(20)]
                      + [[281 + 8 * i, 281 + 8 * (i + 1)] for i in range(35)])
    text = TokenizedCorpus(np.zeros(562), bounds, np.array([0, 20, 55]))
    run = RunConfig(out="x", seq_length=16, data_fraction=0.4)
    assert tokens_in_a_sequence(run, text) == 16
    assert tokens_in_a_sequence(dataclasses.replace(run, data_fraction=1.0), text) < 14


def test_a_slice_is_read_equally_often_on_any_corpus(text, tmp_path):
    """Catches shares of the corpus, which make a verdict depend on its size, and a claim whose
    slice is most of the text."""
    grid = Grid("tiny", 2, 40_000, 0.5, flags="--seq-length 16 --batch-size 8")
    arm = Arm("slice", budget=0.5, text=0.5 / 20)
    student = Arm("student", "distill", teacher=Arm("teacher"), text=1 / 20)
    assert slice_tokens(arm, grid) == 1000 == slice_tokens(student, grid)
    claim = Claim("x", "", (Contrast(arm, student, "better"),), "", "")
    run = plan((claim,), grid, 1, [], tmp_path, text, "")[arm, 0]
    assert run.command[run.command.index("--data-tokens") + 1] == "1000"
    every, steps = (int(run.command[run.command.index(flag) + 1])
                    for flag in ("--eval-every", "--steps"))
    assert 9 <= steps / every <= 10  # its curve; where there is none, the last fifth is looked at
    assert too_small(claim, grid, text) == ""
    more = dataclasses.replace(grid, tokens=20 * len(text.tokens) + 400)
    assert too_small(claim, more, text).startswith(f"the corpus has {len(text.tokens):,} tokens, ")


def test_a_network_without_training_is_an_arm(text, tmp_path):
    """Catches a step that is made although the budget is none."""
    run = plan((Claim("x", "", (Contrast(Arm("a", budget=0.0), Arm("b"), "better"),), "", ""),),
               GRIDS["quick"], 1, [], tmp_path, text, "")[Arm("a", budget=0.0), 0]
    assert run.command[run.command.index("--steps") + 1] == "0" and run.sequences == 0


def test_another_engine_can_run_the_plan(text, tmp_path, monkeypatch):
    """Catches a line that cannot be run as it stands, and a student that does not wait."""
    monkeypatch.setattr(plan_module, "ROOT", tmp_path)
    grid = dataclasses.replace(GRIDS["quick"], tokens=20_000)
    runs = plan(CLAIMS, grid, 2, ["--corpus", "my text.txt"], tmp_path / "runs", text, "abc")
    lines = [line.split("\t") for line in plan_lines(runs).splitlines()]
    assert [int(number) for number, _, _ in lines] == list(range(1, len(runs) + 1))
    assert str(tmp_path) not in plan_lines(runs)
    for (_, before, command), run in zip(lines, runs.values()):
        words = shlex.split(command)
        assert words[:4] == ["env", "OMP_NUM_THREADS=1", "MINIBERT_PLAIN=1", "python"]
        assert [*words[4:]] == [part.replace(f"{tmp_path}/", "") for part in run.command]
        if run.teacher:  # which stands further up, so a runner from top to bottom needs no order
            teacher = shlex.split(lines[int(before) - 1][2])
            assert words[words.index("--teacher") + 1] == teacher[teacher.index("--out") + 1]
        else:
            assert before == "-"


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Scripts that note when they ran, and fail or wait when told to."""
    (tmp_path / "fake.py").write_text("""
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
if "--fail" in sys.argv:
    print("error: no luck; try again", file=sys.stderr)
    sys.exit(2)
if "--wait" in sys.argv:
    time.sleep(9)
start = time.time()
time.sleep(0.3)
out.mkdir()
(out / "metrics.json").write_text(json.dumps([start, time.time()]))
""")
    monkeypatch.setattr(compare_module, "ROOT", tmp_path)

    def make(name, *flags, teacher=None, sequences=1):
        out = tmp_path / "runs" / name
        return Run(Arm(name), 0, out, ["fake.py", *flags, "--out", str(out)], teacher,
                   sequences)
    return make


def test_runner_order_and_side_by_side(scripts, capsys):
    """Catches a student that starts before its teacher is done, and jobs that wait for nothing."""
    teacher = scripts("teacher")
    student, other = scripts("student", teacher=teacher), scripts("other")
    run_all([student, teacher, other], jobs=2)
    times = {run.arm.name: json.loads((run.out / "metrics.json").read_text())
             for run in (student, teacher, other)}
    assert times["student"][0] >= times["teacher"][1]
    assert max(times["teacher"][0], times["other"][0]) < min(times["teacher"][1],
                                                             times["other"][1])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "3 of 3 runs to do, 2 at a time"
    assert said[-1] == "3 of 3 runs done after 0 min: student, seed 0"
    before = {run.out: (run.out / "metrics.json").read_text() for run in (student, teacher)}
    run_all([student, teacher, other], jobs=2)  # nothing is done twice
    assert capsys.readouterr().out == "0 of 3 runs to do, 2 at a time\n"
    assert before == {out: (out / "metrics.json").read_text() for out in before}


def test_runner_takes_the_longest_first_and_no_more_than_jobs(scripts):
    """Catches a core that is idle at the end, and more runs at once than there are cores."""
    runs = [scripts("short", sequences=1), scripts("long", sequences=3),
            scripts("middle", sequences=2)]
    run_all(runs, jobs=1)
    short, long, middle = (json.loads((run.out / "metrics.json").read_text()) for run in runs)
    assert long[1] <= middle[0] and middle[1] <= short[0]


def test_runner_stops_at_a_failure(scripts):
    """Catches a failed run that is passed over, and others that are left running."""
    with pytest.raises(UserError, match="ended with 2: no luck; try again"):
        run_all([slow := scripts("slow", "--wait"), scripts("bad", "--fail")], jobs=2)
    assert not slow.done  # waited for, it would be


def test_runner_that_is_stopped_stops_its_runs(scripts, monkeypatch):
    """Catches runs that go on alone when SIGTERM ends the process that started them, or before."""
    slow = scripts("slow", "--wait")
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **more: started.append(
        popen(*args, **more)) or started[-1])
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        run_all([slow], jobs=1)
    assert [process.returncode for process in started] == [-signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_second_signal_does_not_leave_runs_alone(scripts, monkeypatch):
    """Catches runs that go on alone because a second SIGTERM came while the first was handled: one
    from the user, and the same again from `make`."""
    started = []

    class Process(subprocess.Popen):
        def send_signal(self, number):
            os.kill(os.getpid(), signal.SIGTERM)  # the second one, at the worst moment
            super().send_signal(number)

    monkeypatch.setattr(subprocess, "Popen", lambda *args, **more: started.append(
        Process(*args, **more)) or started[-1])
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(SystemExit, match="143"):
        run_all([scripts("slow", "--wait")], jobs=1)
    assert [process.returncode for process in started] == [-signal.SIGTERM]


# ---- all of it

@pytest.fixture
def toy_grid(monkeypatch, toy_text, tmp_path, run_script):
    """compare() on a toy text, with runs in this process."""
    monkeypatch.setitem(GRIDS, "quick", Grid(
        "tiny", 2, 1500, 1.0, " ".join(TOY[:6] + TOY[8:]),
        " ".join([*BUDGET[6:-6], "--log-every 3 --eval-every 6"])))
    first, second = Arm("whole"), Arm("half", flags="--data-fraction 0.5")
    student = Arm("student", "distill", "", 0.5, first)
    monkeypatch.setattr(compare_module, "CLAIMS", (
        Claim("data", "more text helps", (Contrast(first, second, "better"),), "a paper", "why"),
        Claim("steps", "longer helps", (Contrast(Arm("long", budget=2.0), first, "better",
                                                 apart="tokens"),), "another paper", "why not"),
        Claim("stack", "they stack", (Contrast(student, first, "better", apart="tokens"),), "", "",
              gap=(second, student, first))))
    monkeypatch.setattr(compare_module, "ROOT", tmp_path)
    monkeypatch.setattr(plan_module, "ROOT", tmp_path)

    def run_here(runs, jobs):
        for run in runs:
            run_script(run.command[0].removesuffix(".py"), *run.command[1:])
    monkeypatch.setattr(compare_module, "run_all", run_here)
    monkeypatch.setattr(compare_module, "EXACT", compare_module.EXACT[:1])
    return lambda seeds=2, **other: compare("quick", str(toy_text), "toy", seeds=seeds, **other)


def test_minutes_are_those_of_the_steps_of_each_kind(monkeypatch):
    """Catches an estimate that takes a student for its teacher, an untaught one for a taught one,
    or that counts steps of another batch; what is timed is left to the bench."""
    timed = {}

    def take_turns(calls, rounds, device):
        timed.update(calls)
        return {"taught": [3.0] * rounds, "untaught": [2.0] * rounds, "teacher": [5.0] * rounds}

    monkeypatch.setattr(compare_module, "take_turns", take_turns)
    monkeypatch.setattr(compare_module, "our_step", lambda config, run, device, teacher=None: (
        config.num_hidden_layers, teacher is not None))
    config = ModelConfig(vocab_size=50, hidden_size=8, num_attention_heads=2, num_hidden_layers=4,
                         intermediate_size=8)
    for arm, seconds in ((ROBERTA, 5), (HALF_DEPTH, 2), (SOFT, 3), (HARD, 2), (TRAINED_ON, 5)):
        runs = [Run(arm, seed, None, [], None, sequences=60 * 32) for seed in range(2)]
        assert expected_minutes(runs, config, RunConfig(out="-", batch_size=32), "cpu") == (
            2 * seconds), arm
    assert timed == {"taught": (2, True), "untaught": (2, False), "teacher": (4, False)}


@pytest.mark.parametrize("cores, memory, jobs", [(16, 80, 16), (16, 9, 4), (4, 1, 1)])
def test_a_gpu_gets_the_full_grid_and_as_many_runs_as_fit(cores, memory, jobs, toy_text, tmp_path,
                                                          monkeypatch):
    """Catches a GPU that waits for Python, one whose memory is not enough, and the small grid."""
    class Reached(Exception):
        pass

    def stop(runs, jobs):
        raise Reached(jobs, {"--num-hidden-layers 4" in " ".join(run.command) for run in runs})

    monkeypatch.setattr(compare_module, "ROOT", tmp_path)
    monkeypatch.setattr(compare_module, "pick_device", lambda _: "cuda")
    monkeypatch.setattr(compare_module, "expected_minutes", lambda *_: 1.0)
    monkeypatch.setattr(compare_module, "run_all", stop)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(compare_module.torch.cuda, "mem_get_info", lambda: (0, memory * 2**30))
    with pytest.raises(Reached) as reached:
        compare("auto", str(toy_text), "gpu", only="steps", tokens=20_000, vocab_size=70)
    assert reached.value.args == (jobs, {True})


def test_minutes_are_said_before_and_after(toy_grid, capsys):
    """Catches a plan without its minutes, or with them among the commands for another engine."""
    lines = toy_grid(only="data", plan_only=True).splitlines()
    said = capsys.readouterr()
    assert re.search(r"^training will take about \d+ minutes of one thread", said.err, re.M)
    assert len(lines) == 4 and all(line.count("\t") == 2 for line in lines)
    toy_grid(only="data")
    assert re.search(r"^training took \d+ minutes; the estimate was \d+$", capsys.readouterr().err,
                     re.M)


def without_seconds(results):
    for claim in results["claims"]:
        for arm in claim.get("arms", {}).values():
            arm["seconds"] = []
    return {**results, "seconds": 0, "family": {**results["family"], "latency_ms": {}}}


def test_twice_the_same(toy_grid, tmp_path):
    """Catches results that depend on anything but the settings, and arms outside the report."""
    first = toy_grid()
    assert [claim["id"] for claim in first["claims"]] == ["kl", "data", "steps", "stack"]
    assert first["left_out"] == [] and first["family"]["latency_ms"].keys() == {
        "student", "whole", "half"}
    write_report(first, tmp_path / "report")
    assert json.loads((tmp_path / "report" / "results.json").read_text()) == json.loads(
        json.dumps(first))
    text = (tmp_path / "report" / "report.md").read_text()
    for part in ("a paper", "whole against half", "more text helps", "why not", "train_roberta.py",
                 "student closes", "### The family", "distill.py", "\n| student | 1 | ",
                 "--data-fraction 0.5", f"{first['claims'][1]['contrasts'][0]['gain']:+.3f}"):
        assert part in text
    assert verdict_table(first) in text and str(tmp_path) not in text.replace(first["corpus"], "")
    shutil.rmtree(tmp_path / "runs")
    assert without_seconds(toy_grid()) == without_seconds(first)


def test_some_claims_only(toy_grid, tmp_path):
    """Catches runs that nobody asked for, names that are not there, and an hour of runs before it
    is said that one seed gives no interval."""
    for count in (1, 11):
        with pytest.raises(UserError, match=f"{count} seeds give no interval"):
            toy_grid(seeds=count)
    assert not (tmp_path / "runs").exists()
    found = toy_grid(only="data")
    assert [claim["id"] for claim in found["claims"]] == ["data"]
    assert found["left_out"] == ["kl", "steps", "stack"]
    assert "Not asked for: kl, steps, stack." in report(found, [])
    assert len(list((tmp_path / "runs" / "toy").iterdir())) == 4
    assert "--seed 0" in found["claims"][0]["arms"]["whole"]["command"]
    logs = [json.loads(line) for line in (tmp_path / "results/toy/logs.jsonl").open()]
    assert {(line["arm"], line["seed"]) for line in logs} == {
        (name, seed) for name in ("whole", "half") for seed in (0, 1)}
    own = next((tmp_path / "runs" / "toy").glob("half-1-*")) / "log.jsonl"
    assert [json.loads(line) for line in own.open()] == [
        {key: value for key, value in line.items() if key not in ("arm", "seed")}
        for line in logs if (line["arm"], line["seed"]) == ("half", 1)]
    shorter = toy_grid(only="data", tokens=300)["claims"][0]["arms"]["whole"]
    assert shorter["steps"] < found["claims"][0]["arms"]["whole"]["steps"]
    again = toy_grid(only="data", vocab_size=65)
    assert (again["claims"][0]["arms"]["whole"]["parameters"]
            < found["claims"][0]["arms"]["whole"]["parameters"])
    with pytest.raises(UserError, match="no claim 'poetry'; the claims are kl, data, steps, stack"):
        toy_grid(only="poetry")


def test_figures(toy_grid, tmp_path):
    """Catches a figure that is not drawn, or stops the report: also of arms that were refused."""
    pytest.importorskip("matplotlib")
    found = toy_grid(only="data,steps")
    refused = found["claims"][1]["contrasts"][0]
    refused |= {"gains": [], "verdict": "refused: other text"}
    for key in ("gain", "low", "high"):
        del refused[key]
    write_report(found, tmp_path / "report")
    for name in ("data", "steps", "verdicts"):
        assert (tmp_path / "report" / f"{name}.png").stat().st_size > 5000
        assert f"({name}.png)" in (tmp_path / "report" / "report.md").read_text()


def made_up(arm, seed):
    """Metrics of a run that nobody trained: its own loss, and one that memorises."""
    loss = 4 + len(arm.name) / 50 + 0.01 * seed * len(arm.flags)
    loss, training = (12.7, 0.3) if "one static" in arm.name else (loss, loss - 0.1)
    held_out = {"mlm_loss": loss, "unigram_entropy": 6.1, "kl_to_teacher": loss / 9, "hash": "a"}
    nsp = {"nsp_accuracy": 0.9, "nsp_majority": 0.5, "nsp_length": 0.5}
    task = {"score": 0.9 - loss / 20, "majority": 0.2, "metric": "accuracy"}
    return {"full-sentences": held_out, "segment-pair": {**held_out, **nsp}, "tokens": 1e6,
            "train_loss": training, "last_fifth": 0.2, "tasks": {"a": task} if arm.tasks else {},
            "curve": [(100, 6.0), (200, loss)], "seconds": 1.0, "epochs": 1,
            "layers": 4, "parameters": 1, "disk": 1, "steps": 200}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The figures of the whole table of claims, by name, with all of their texts laid out."""
    pytest.importorskip("matplotlib")
    from lab import figures
    from lab.figures import CURVES

    found = {}
    save = figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: (
        save(figure, path), found.update({path.stem: figure})))
    results = {arm: [made_up(arm, seed) for seed in range(3)]
               for claim in CLAIMS for arm in arms_of(claim)}
    claims = [judge_claim(claim, results) for claim in CLAIMS]
    log = [{"arm": arm, "seed": seed, "step": step, **line}
           for arm in CURVES
           for seed in range(2) for step, line in (
               (1, {"mlm": 8.0}), (2, {"mlm": 4.0 + seed}),
               (2, {"eval": {"mlm_loss": 5.0, "unigram_entropy": 6.1}}))]
    assert figures.draw_all({"claims": claims}, log, tmp_path) == list(found)
    assert all((tmp_path / f"{name}.png").stat().st_size < 150_000 for name in found)
    return found


def seen(figure):
    """The texts of a figure that are seen, each with its place in pixels."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    hidden = {tick.label1 for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
              for tick in axis.get_major_ticks()
              if not min(axis.get_view_interval()) <= tick.get_loc() <= max(
                  axis.get_view_interval())}
    return [(text, text.get_window_extent()) for text in figure.findobj(Text)
            if text.get_visible() and text.get_text().strip() and text not in hidden]


def test_figures_can_be_read(drawn):
    """Catches texts that overlap, are cut off at the edge or are too small, with the names and the
    number of contrasts that are published."""
    assert len(drawn) == len(CLAIMS) + 2
    for name, figure in drawn.items():
        texts = seen(figure)
        for number, (text, place) in enumerate(texts):
            assert text.get_fontsize() >= 9, (name, text)
            assert -1 <= place.x0 and place.x1 <= figure.bbox.x1 + 1, (name, text)
            assert -1 <= place.y0 and place.y1 <= figure.bbox.y1 + 1, (name, text)
            for other, its_place in texts[:number]:
                assert not place.padded(-1).overlaps(its_place.padded(-1)), (name, text, other)


def test_figures_keep_nats_and_points_apart(drawn):
    """Catches an axis with two units, an axis on which +0.4 and +1.4 look alike, and a gain whose
    direction is not said."""
    for claim in CLAIMS:
        gains = [axes for axes in drawn[claim.id].axes if axes.get_xlabel().startswith("gain")]
        units = ["points" if "points" in axes.get_xlabel() else "nats" for axes in gains]
        tasks = [contrast.measure == "tasks" for contrast in claim.contrasts]
        assert units == ["nats"] * (not all(tasks)) + ["points"] * any(tasks)
        rows = [tasks.count(unit == "points") for unit in units]
        assert [len(axes.get_yticks()) for axes in gains] == rows
        for axes in gains:
            assert axes.get_xscale() == "linear"
            assert "first arm better" in [text.get_text() for text in axes.texts]
    shown = [" ".join(label.get_text().split())
             for axes in drawn["verdicts"].axes for label in axes.get_yticklabels()]
    for claim in CLAIMS:
        assert any(claim.says in label for label in shown), claim.id


def test_figures_say_what_is_seen(drawn):
    """Catches a gain that runs off its axis unseen, and curves without a title or a legend."""
    texts = {name: " ".join(" ".join(text.get_text().split()) for text, _ in seen(figure))
             for name, figure in drawn.items()}
    gains = drawn["masking"].axes[1]
    assert gains.get_xlim()[1] < 2.5 and "off the axis" in texts["masking"]
    assert "nats, holds" in texts["masking"] and texts["masking"].count("memorised") == 1
    for part in ("healthy", "memorised", "stopped early", "training", "held-out",
                 "unigram entropy"):
        assert part in texts["curves"]


def test_terminal_and_report_again(toy_grid, tmp_path, monkeypatch, capsys):
    """Catches verdicts that the terminal does not show, and a report that cannot be written again
    from results.json alone."""
    found = toy_grid(only="kl,data")
    shown = verdict_lines(found)
    for claim in found["claims"]:
        assert re.search(rf"^{claim['id']} +{re.escape(claim['verdict'].upper())}: ", shown, re.M)
        assert claim["found"].split(":")[0] in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) < 140
    write_report(found, tmp_path / "results" / "toy")
    before = (tmp_path / "results" / "toy" / "report.md").read_text()
    (tmp_path / "results" / "toy" / "report.md").unlink()
    monkeypatch.setattr(sys, "argv", ["lab", "report", "toy"])
    monkeypatch.setattr("lab.__main__.ROOT", tmp_path)
    main()
    assert (tmp_path / "results" / "toy" / "report.md").read_text() == before
    # Without matplotlib there are no figures, and the terminal says how to get them.
    monkeypatch.setitem(sys.modules, "lab.figures", None)
    monkeypatch.setattr(sys, "argv", ["lab", "report", "toy"])
    main()
    assert "python -m lab report toy" in capsys.readouterr().out
    assert ".png)" not in (tmp_path / "results" / "toy" / "report.md").read_text()
    monkeypatch.setattr(sys, "argv", ["lab", "report", "toyy"])
    with pytest.raises(UserError, match="results.json is missing; make it with compare"):
        main()


def test_the_family_is_shown_side_by_side(toy_grid, monkeypatch):
    """Catches a student shown before its teacher, or the time of one model given to another."""
    monkeypatch.setattr(compare_module, "blanks", lambda *_: [("ba [MASK] be", "bi")])
    monkeypatch.setattr(compare_module, "forward_seconds",
                        lambda encoders, device: [
                            [0.001 * len(encoder.layers)] * 3 for encoder in encoders])
    family = toy_grid(only="stack")["family"]
    assert family["latency_ms"] == pytest.approx({"student": 1, "whole": 2, "half": 2})
    (blank,) = family["blanks"]
    assert blank["word"] == "bi" and blank["guesses"].startswith("ba [MASK] be\n")
    assert blank["guesses"].splitlines()[2].split() == ["whole", "student"]


# ---- the report's tables

def arm(teacher, scores):
    floors = {"metric": "accuracy", "majority": 0.5, "bag_of_words": 0.7}
    return {"teacher": teacher, "layers": 2, "parameters": 1000, "disk": 4_000_000,
            "full-sentences": [{"mlm_loss": 4.0}, {"mlm_loss": 5.0}],
            "last_fifth": [0.1, 0.2],
            "tasks": [{"sst2": {**floors, "score": score}} for score in scores] or [{}, {}]}


TIMED = {"latency_ms": {"big": 2.0, "small": 1.0},
         "encoder_parameters": {"big": 800, "small": 500}}


def test_the_family_in_one_table():
    """Catches a model's figure in another's row, a median or a sum for the mean of the seeds."""
    arms = {"big": arm(None, [0.9, 0.7]), "small": arm("big", [0.8, 0.7])}
    lines = models_table(arms, TIMED).splitlines()
    assert lines[2] == "| big | 2 | 1,000 | 800 | 4.0 | 2.00 | 4.500 | 0.800 |"
    assert lines[3:] == ["| small | 2 | 1,000 | 500 | 4.0 | 1.00 | 4.500 | 0.750 |"]


def test_tasks_that_were_not_done_have_no_columns():
    """Catches a report that stops where a text of one's own has no tasks."""
    arms = {"big": arm(None, []), "small": arm("big", [])}
    assert task_scores(arms) == {}
    assert models_table(arms, TIMED).splitlines()[-1].endswith("| 4.500 |")
    some = {"big": arm(None, [0.9, 0.7]), "other": arm(None, [])}
    parts = dict(curve=[], steps=1, epochs=1, tokens=[1], seconds=[1], command="", train_loss=[1.0])
    parts["segment-pair"] = parts["full-sentences"] = [{"mlm_loss": 4.0}]
    shown = "".join(_claim({"differs": "", "contrasts": [], "arms": {
        name: {**one, **parts} for name, one in some.items()}}, drawn=False))
    assert "Fine-tuned" not in shown  # one arm's scores compare with nothing
    assert task_scores(some)["big"] == {"sst2, accuracy": [0.9, 0.7]}
    assert task_scores(some)["(word overlap)"] == {"sst2, accuracy": []}


@pytest.mark.parametrize("trained_on, says", [
    ([3.5, 3.7], "was nearly done: it gains +0.500 nats from the student's budget, and the "
                 "untaught student is 2.000 nats behind"),
    ([2.9, 3.1], "was not done: it gains +1.100 nats from the student's budget, and the "
                 "untaught student is 2.000 nats behind")])
def test_a_report_says_whether_the_teacher_was_done(trained_on, says):
    """Catches a teacher's third seed, which nobody trained on, in the mean of two."""
    losses = {"big": [4.0, 4.2, 9.0], "big, trained on": trained_on, "untaught": [6.0, 6.2, 11.0]}
    arms = {name: {"teacher": "big", "full-sentences": [{"mlm_loss": loss} for loss in found]}
            for name, found in losses.items()}
    claim = {"arms": arms, "contrasts": [{"second": "untaught"}]}
    assert says in _teacher_not_done(claim)[0]
    del arms["big, trained on"]
    assert _teacher_not_done(claim) == []
