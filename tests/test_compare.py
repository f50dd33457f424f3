"""The comparison: what may be compared, what an interval says, and runs that are shared."""
import dataclasses
import importlib
import json
import shutil

import numpy as np
import pytest
from conftest import BUDGET, TOY

from minibert import compare as compare_module
from minibert.claims import CLAIMS, GRIDS, Arm, Claim, Contrast, Grid
from minibert.compare import (T95, Run, arms_of, compare, interval, judge, plan, run_all, steps_for,
                              verdict)
from minibert.config import DistillConfig, ModelConfig, parse_flags
from minibert.corpus import prepare
from minibert.errors import UserError
from minibert.verdicts import report, verdict_table, write_report

A, B = Arm("a"), Arm("b")


# ---- statistics

def test_points_of_t_cover_95_percent():
    """Catches a quantile that is one-sided, of another level, or off by one degree of freedom."""
    for freedom, point in enumerate(T95, 1):
        t = np.tan(np.linspace(-np.pi / 2 + 1e-6, np.pi / 2 - 1e-6, 200_001))
        density = (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
        within = np.abs(t) <= point
        weight = np.diff(t, append=t[-1])
        assert (density * weight)[within].sum() / (density * weight).sum() == pytest.approx(
            0.95, abs=2e-4)


def test_interval_by_hand():
    """Catches a spread divided by n, an interval of the values instead of their mean."""
    mean, low, high = interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    half = 4.303 * np.std([1, 2, 4], ddof=1) / 3**0.5
    assert [high - mean, mean - low] == pytest.approx([half, half])
    for count in (0, 1, 11):
        with pytest.raises(UserError, match="seeds give no interval"):
            interval([0.0] * count)


@pytest.mark.parametrize("question, low, high, expected", [
    ("better", 0.06, 0.5, "holds"), ("better", 0.01, 0.5, "holds"),
    ("better", -0.01, 0.5, "inconclusive"), ("better", -0.5, -0.06, "contradicted"),
    ("better", -0.5, 0.01, "inconclusive"), ("better", 0.01, 0.04, "no difference beyond ±0.05"),
    ("no worse", -0.04, 0.5, "holds"), ("no worse", -0.04, 0.04, "no difference beyond ±0.05"),
    ("no worse", -0.06, 0.5, "inconclusive"), ("no worse", -0.5, -0.04, "inconclusive"),
    ("no worse", -0.5, -0.06, "contradicted"), ("better", float("nan"), 1.0, "inconclusive"),
])
def test_verdicts(question, low, high, expected):
    """Catches "not significant" read as "equal", and a margin that is not looked at."""
    assert verdict(question, low, high, 0.05) == expected


# ---- rules

@pytest.fixture
def runs(tmp_path):
    """Two arms of three seeds on disk, with results to be changed."""
    def write(changes=None):
        found = {}
        for arm, losses in ((A, (4.0, 4.5, 5.0)), (B, (4.2, 4.7, 5.2))):
            for seed, loss in enumerate(losses):
                out = tmp_path / f"{arm.name}{seed}"
                out.mkdir(exist_ok=True)
                metrics = {"tokens": 1000 + seed, "steps": 10, "seconds": 1.0, "parameters": 5}
                for kind in ("full-sentences", "segment-pair"):
                    metrics[kind] = {"mlm_loss": loss, "hash": kind, "unigram_entropy": 6.0}
                train_loss = 4.0
                if changes and changes[0] == (arm.name, seed):
                    metrics["full-sentences"] |= changes[1].get("full", {})
                    metrics |= changes[1].get("all", {})
                    train_loss = changes[1].get("train", train_loss)
                (out / "metrics.json").write_text(json.dumps(metrics))
                (out / "log.jsonl").write_text(json.dumps({"step": 5, "mlm": 9.0}) + "\n"
                                               + json.dumps({"step": 10, "mlm": train_loss}) + "\n")
                found[arm, seed] = Run(arm, seed, out, ["x", "--steps", "10"], None, 1.0)
        return found
    return write


def test_gains_are_paired_by_seed(runs):
    """Catches an interval over unpaired values: seeds differ by half a nat, the arms by 0.2."""
    found = judge(Contrast(A, B, "better"), runs(), range(3))
    assert found["gains"] == [pytest.approx(0.2)] * 3
    assert found["low"] == pytest.approx(0.2) == found["high"] and found["verdict"] == "holds"
    assert judge(Contrast(B, A, "better"), runs(), range(3))["verdict"] == "contradicted"


def test_rule_1_other_evaluation_set(runs):
    """Catches losses on other targets, also of one seed only."""
    changed = runs((("b", 2), {"full": {"hash": "other"}}))
    with pytest.raises(UserError, match="different sets"):
        judge(Contrast(A, B, "better"), changed, range(3))
    judge(Contrast(A, B, "better", measure="segment-pair.mlm_loss"), changed, range(3))


def test_rule_2_unequal_tokens(runs):
    """Catches an arm that saw more text, unless the budget is what differs."""
    changed = runs((("a", 0), {"all": {"tokens": 1040}}))
    with pytest.raises(UserError, match="saw 1,014 tokens, b 1,001"):
        judge(Contrast(A, B, "better"), changed, range(3))
    assert judge(Contrast(A, B, "better", apart="tokens"), changed, range(3))["verdict"] == "holds"


def test_rule_3_missing_seeds(runs):
    """Catches means over other seeds than the other arm's."""
    found = runs()
    (found[B, 1].out / "metrics.json").unlink()
    with pytest.raises(UserError, match="b lacks seed 1"):
        judge(Contrast(A, B, "better"), found, range(3))


@pytest.mark.parametrize("change, stuck", [
    ({"full": {"mlm_loss": 5.6}, "train": 5.7}, True),
    ({"full": {"mlm_loss": 5.4}, "train": 5.7}, False),
    ({"full": {"mlm_loss": 8.6}, "train": 0.3}, False)])  # by heart: that is no plateau
def test_rule_4_plateau(change, stuck, runs):
    """Catches "no difference" between runs that have learned frequencies only."""
    says = judge(Contrast(A, B, "better"), runs((("a", 1), change)), range(3))["verdict"]
    assert ("on the plateau: a" in says) == stuck


# ---- the table of claims

MAY_DIFFER = {"nsp": {"input_format", "nsp", "steps"}, "masking": {"masking", "static_masks"},
              "data": {"data_fraction"}, "steps": {"steps"},
              "distill": {"alpha_kl", "alpha_cos", "init", "steps"},
              "soft": {"alpha_kl", "alpha_mlm", "data_fraction"},
              "stack": {"teacher", "data_fraction", "steps", "input_format", "nsp", "masking",
                        "adam_beta2", "max_grad_norm", "static_masks"}}


def settings_of(arm, grid):
    script = importlib.import_module(arm.script)
    other = DistillConfig if arm.script == "distill" else ModelConfig
    flags = [*grid.flags.split(), *arm.flags.format(**vars(grid)).split(), "--out", "x",
             "--preset", "tiny"]
    if arm.script == "distill":
        flags += ["--teacher", arm.teacher.name]
    elif "--num-hidden-layers" not in flags:
        flags += ["--num-hidden-layers", str(grid.layers)]
    run, more = parse_flags(script.__doc__, script.RECIPE, script.STEPS, other, argv=flags)
    return {**dataclasses.asdict(run), **more, "steps": arm.budget}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_rule_6_arms_differ_in_what_the_claim_is_about(claim):
    """Catches an arm that was given more than its claim says: a rate, a depth, a clip."""
    for contrast in claim.contrasts:
        first, second = (settings_of(arm, GRIDS["tiny"])
                         for arm in (contrast.first, contrast.second))
        apart = {name for name in {*first, *second} if first.get(name) != second.get(name)}
        assert apart and apart <= MAY_DIFFER[claim.id], (contrast, apart - MAY_DIFFER[claim.id])
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


def test_plan_shares_runs_and_orders_teachers(text, tmp_path):
    """Catches an arm that is trained once for each claim, a student before its teacher, another
    command or text in a folder that counts as done."""
    flags = ["--preset", "tiny"]
    runs = plan(CLAIMS, GRIDS["tiny"], range(2), flags, tmp_path, text, "abc")
    arms = {arm for claim in CLAIMS for arm in arms_of(claim)}
    assert len(runs) == 2 * len(arms) == len({run.out for run in runs.values()})
    seen = []
    for (arm, seed), run in runs.items():
        assert run.teacher is None or run.teacher in seen and run.teacher.seed == seed
        seen.append(run)
    other = plan(CLAIMS, GRIDS["tiny"], range(2), flags, tmp_path, text, "abd")
    changed = plan(CLAIMS, dataclasses.replace(GRIDS["tiny"], flags="--batch-size 16"), range(2),
                   flags, tmp_path, text, "abc")
    for again in (other, changed):
        assert not {run.out for run in again.values()} & {run.out for run in runs.values()}


def test_formats_get_equal_tokens(text):
    """Catches equal steps called equal budgets: pairs hold more tokens than packed sentences."""
    flags = ["--preset", "tiny", "--seq-length", "16", "--batch-size", "4"]
    steps = {name: steps_for(Arm(name), 5000, [*flags, "--input-format", name], text)
             for name in ("segment-pair", "full-sentences", "doc-sentences")}
    assert steps["segment-pair"] < steps["full-sentences"] < steps["doc-sentences"]
    assert steps_for(Arm("x"), 10_000, flags, text) == pytest.approx(
        2 * steps["full-sentences"], abs=1)


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

    def make(name, *flags, teacher=None):
        out = tmp_path / "runs" / name
        return Run(Arm(name), 0, out, ["fake.py", *flags, "--out", str(out)], teacher, 1.0)
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
    assert "3 of 3 runs done, 0 min left" in capsys.readouterr().out
    before = {run.out: (run.out / "metrics.json").read_text() for run in (student, teacher)}
    run_all([student, teacher, other], jobs=2)  # nothing is done twice
    assert before == {out: (out / "metrics.json").read_text() for out in before}


def test_runner_stops_at_a_failure(scripts):
    """Catches a failed run that is passed over, and others that are left running."""
    with pytest.raises(UserError, match="ended with 2: no luck; try again"):
        run_all([slow := scripts("slow", "--wait"), scripts("bad", "--fail")], jobs=2)
    assert not slow.done  # waited for, it would be


# ---- all of it

@pytest.fixture
def toy_grid(monkeypatch, toy_text, tmp_path, run_script):
    """compare() on a toy text, with runs in this process."""
    toy = " ".join([*BUDGET[4:-6], *TOY, "--log-every 3 --eval-every 6"]).replace(
        "--num-hidden-layers 2", "")
    monkeypatch.setitem(GRIDS, "tiny", Grid(1, 2, 1500, toy))
    first, second = Arm("whole"), Arm("half", flags="--data-fraction 0.5")
    monkeypatch.setattr(compare_module, "CLAIMS", (
        Claim("data", "more text helps", (Contrast(first, second, "better"),), "a paper"),
        Claim("steps", "longer helps", (Contrast(Arm("long", budget=2.0), first, "better",
                                                 apart="tokens"),), "another paper")))
    monkeypatch.setattr(compare_module, "ROOT", tmp_path)

    def run_here(runs, jobs):
        for run in runs:
            run_script(run.command[0].removesuffix(".py"), *run.command[1:])
    monkeypatch.setattr(compare_module, "run_all", run_here)
    monkeypatch.setattr(compare_module, "EXACT", compare_module.EXACT[:1])
    return lambda **other: compare("tiny", str(toy_text), "toy", seeds=2, **other)


def without_seconds(results):
    for claim in results["claims"]:
        for arm in claim.get("arms", {}).values():
            arm["seconds"] = []
    return results


def test_twice_the_same(toy_grid, tmp_path):
    """Catches results that depend on anything but the settings, and arms outside the report."""
    first = toy_grid()
    assert [claim["id"] for claim in first["claims"]] == ["kl", "data", "steps"]
    write_report(first, tmp_path / "report")
    assert json.loads((tmp_path / "report" / "results.json").read_text()) == json.loads(
        json.dumps(first))
    text = (tmp_path / "report" / "report.md").read_text()
    for part in ("a paper", "whole against half", "more text helps", "train_roberta.py",
                 "--data-fraction 0.5", f"{first['claims'][1]['contrasts'][0]['gain']:+.3f}"):
        assert part in text
    assert verdict_table(first) in text and str(tmp_path) not in text.replace(first["corpus"], "")
    shutil.rmtree(tmp_path / "runs")
    assert without_seconds(toy_grid()) == without_seconds(first)


def test_some_claims_only(toy_grid, tmp_path):
    """Catches runs that nobody asked for, and names that are not there."""
    assert [claim["id"] for claim in toy_grid(only="data")["claims"]] == ["data"]
    assert len(list((tmp_path / "runs" / "toy").iterdir())) == 4
    with pytest.raises(UserError, match="no claim 'poetry'; the claims are kl, data, steps"):
        toy_grid(only="poetry")


def test_figures(toy_grid, tmp_path):
    """Catches a figure that is not drawn, or stops the report."""
    pytest.importorskip("matplotlib")
    write_report(toy_grid(only="data"), tmp_path / "report")
    assert (tmp_path / "report" / "data.png").stat().st_size > 5000
    assert "(data.png)" in report(toy_grid(only="data"), ["data"])
