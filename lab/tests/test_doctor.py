"""`python -m lab doctor`: troubles are planted in logs that the package's own code wrote."""
import json
import re
import shutil
import sys

import numpy as np
import pytest
from conftest import BUDGET, ROOT, TOY

from minibert import training as training_module
from lab.__main__ import main
from lab.claims import Arm
from lab.measure import measure, write_logs
from lab.plan import Job
from minibert.errors import UserError, run_cli
from lab import doctor as doctor_module
from lab.doctor import CURES, columns, doctor, nearest_arm, picture, read_log, troubles
from minibert.tools.walk import read_flags

FLAGS = [*BUDGET, "--steps", "40", "--log-every", "1", "--eval-every", "10"]


@pytest.fixture(scope="module")
def runs(toy_text, tmp_path_factory):
    """A run of each script, as they come; "published" is what compare makes of healthy ones."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = ["--corpus", str(toy_text), "--tasks", "none"]
    arms = {"roberta": ("train_roberta", TOY), "bert": ("train_bert", TOY),
            "student": ("distill", ["--teacher", str(folder / "roberta")])}
    done = []
    for name, (script, more) in arms.items():
        flags = [*FLAGS, *corpus, *more, "--out", str(folder / name)]
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(ROOT))
            patch.setattr(sys, "argv", [script, *flags])
            __import__(script).main()
        arm, command = Arm(name, script), [f"{script}.py", *flags]
        for seed in range(2):
            out = plant(folder / name, folder / "published" / f"{name}-{seed}", lift=0.1 * seed)
            done.append(Job(arm, seed, out, command, None, 0))
    (folder / "published" / "results.json").write_text(json.dumps({"arms": measure(done)}))
    write_logs(done, folder / "published" / "logs.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor_module, "PUBLISHED", folder / "published")
        yield folder


def plant(run, folder, loss=lambda x: 1 - 3 * x, held_out=lambda x: 1.1 - 3 * x, lift=0.0,
          scores=None, settings=None, **values):
    """A copy of a run with other losses, in nats above the unigram entropy, by the share of the
    steps; other values of a log's line, scores in metrics.json, settings in run.json."""
    shutil.copytree(run, folder)
    about, metrics = (json.loads((folder / name).read_text()) for name in ("run.json",
                                                                           "metrics.json"))
    entropy, steps = metrics["full-sentences"]["unigram_entropy"], about["settings"]["steps"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in log:
        x = line["step"] / steps
        if "eval" in line:
            line["eval"]["mlm_loss"] = entropy + held_out(x)
        else:
            line["mlm"] = line["loss"] = entropy + loss(x) + lift
            line.update({name: value(x) for name, value in values.items()})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    metrics["full-sentences"]["mlm_loss"] = entropy + held_out(1)
    metrics["segment-pair"] |= {"nsp_accuracy": 0.9, "nsp_majority": 0.6, "nsp_length": 0.7}
    for part, found in (scores or {}).items():
        metrics[part] |= found
    about["settings"] |= settings or {}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "run.json").write_text(json.dumps(about))
    return folder


def found_in(shown):
    """The names of what a doctor's text says."""
    return [name for name in CURES if re.search(rf"^{name}: .", shown, re.M)]


PLANTED = {
    "healthy": ("roberta", {}, ["HEALTHY"]),
    "plateau": ("roberta", dict(loss=lambda x: 0.1 - 0.4 * x, held_out=lambda x: 0.0),
                ["ON THE PLATEAU"]),
    "memorising": ("roberta", dict(held_out=lambda x: 0.2 - x), ["MEMORISING"]),
    "one mask": ("roberta", dict(loss=lambda x: -5.0, held_out=lambda x: 1.0 + x), ["MEMORISING"]),
    "divergence": ("roberta", dict(loss=lambda x: 1 - 3 * x if x < 0.6 else 0.8 - x),
                   ["LEARNING RATE TOO HIGH"]),
    "gradient": ("roberta", dict(grad_norm=lambda x: 30.0 if x == 0.5 else 2.0 + x),
                 ["LEARNING RATE TOO HIGH"]),
    "warm-up": ("roberta", dict(grad_norm=lambda x: 90.0 if x == 0.1 else 2.0), ["HEALTHY"]),
    "pairs": ("bert", dict(scores={"segment-pair": {"nsp_accuracy": 0.71}}), ["NSP NOT LEARNED"]),
    "pairs learned": ("bert", {}, ["HEALTHY"]),
    "student": ("student", {}, ["HEALTHY"]),
    "other text": ("roberta", dict(settings={"corpus": "elsewhere.txt"}),
                   ["HEALTHY", "OTHER TEXT"]),
    "other vocabulary": ("roberta", dict(scores={"full-sentences": {"hash": "0" * 16}}),
                         ["HEALTHY", "OTHER TEXT"])}


@pytest.mark.parametrize("case", PLANTED)
def test_planted_troubles(case, runs, tmp_path):
    """Catches a trouble that is missed, or seen where there is none; no flag to change."""
    name, changes, expected = PLANTED[case]
    shown = doctor(str(plant(runs / name, tmp_path / "run", **changes)))
    assert found_in(shown) == expected
    assert f"nearest published arm, '{name}', 2 seeds, with the same flags" in shown
    for trouble in set(expected) - {"HEALTHY"}:
        assert re.search(rf"^{trouble}: .*--[a-z]", shown, re.M)


def test_students_that_do_not_listen(runs, tmp_path):
    """Catches a student that is taken for its teacher's while it follows the hard labels."""
    metrics = json.loads((runs / "student" / "metrics.json").read_text())
    near, far = metrics["full-sentences"]["kl_to_teacher"], ["FAR FROM ITS TEACHER"]
    for times, weight, expected in ((1.8, 5.0, ["HEALTHY"]), (2.2, 5.0, far), (1.0, 0.0, far)):
        run = plant(runs / "student", tmp_path / f"{times} {weight}",
                    scores={"full-sentences": {"kl_to_teacher": times * near}})
        about = json.loads((run / "run.json").read_text())
        about["distill"]["alpha_kl"] = weight
        (run / "run.json").write_text(json.dumps(about))
        assert found_in(doctor(str(run))) == expected


def test_runs_that_are_not_finished(runs, tmp_path):
    """Catches troubles that are seen only at the end, and a line that is just being written."""
    for number, (name, changes, expected) in enumerate((
            ("roberta", {}, ["HEALTHY"]),
            ("roberta", dict(held_out=lambda x: 1 + x), ["MEMORISING"]),
            ("bert", dict(nsp=lambda x: 0.69), ["NSP NOT LEARNED"]),
            ("bert", dict(nsp=lambda x: 0.3), ["HEALTHY"]))):
        run = plant(runs / name, tmp_path / str(number), **changes)
        (run / "metrics.json").unlink()
        kept = (run / "log.jsonl").read_text().splitlines()[:29]  # 27 steps, two evaluations
        (run / "log.jsonl").write_text("\n".join(kept) + '\n{"step": 28, "ep')
        shown = doctor(str(run))
        assert ": step 27 of 40, not finished" in shown and found_in(shown) == expected
    early = [line for line in kept if "eval" not in line][:9]
    (run / "log.jsonl").write_text("\n".join(early) + "\n")  # before the first evaluation
    assert found_in(doctor(str(run))) == ["ON THE PLATEAU"]


def test_a_loss_that_is_no_number_is_remembered(runs, toy_text, tmp_path, run_script, monkeypatch):
    """Catches a run that stops without a trace in its log of why; and one that cannot go on."""
    true_loss, calls = training_module.Training.backward, []

    def broken(self, loss, **terms):
        calls.append(loss)
        true_loss(self, loss * float("nan") if len(calls) == 7 else loss, **terms)

    flags = [*FLAGS, *TOY, "--corpus", toy_text, "--tasks", "none", "--out", tmp_path / "run"]
    monkeypatch.setattr(training_module.Training, "backward", broken)
    with pytest.raises(UserError, match="loss of step 7 is nan"):
        run_script("train_roberta", *flags)
    shown = doctor(str(tmp_path / "run"))
    assert ": step 7 of 40, not finished" in shown and "NOT FINITE" in found_in(shown)
    run_script("train_roberta", *flags)  # from its checkpoint, with a loss that is a number
    assert "NOT FINITE" not in found_in(doctor(str(tmp_path / "run")))


def test_a_run_beyond_the_published_tokens(runs, tmp_path):
    """Catches a traceback, or a band that is drawn where nothing was published."""
    run = plant(runs / "roberta", tmp_path / "run", tokens=lambda x: int(1e6 * x))
    shown = doctor(str(run))
    [end] = re.findall(r"it ends at ([\d,]+) tokens", shown)
    assert int(end.replace(",", "")) < 10_000 and "1,000,000 tokens" in shown
    rows = [line[8:] for line in shown.splitlines() if re.match(r" *[\d.-]+ \|", line)]
    assert not any(":" in row[5:] for row in rows) and found_in(shown) == ["HEALTHY"]


def test_the_picture_is_to_scale():
    """Catches losses at the wrong height or place, upside down or hidden behind the band."""
    run = np.array([[10, 20, 30, 40], [9.0, 6.0, 5.0, 4.0], [1, 2, 3, 4]])
    band = [np.array([[10, 40], [8.0, low]]) for low in (4.5, 5.5)]
    score = {"unigram_entropy": 7.0, "mlm_loss": 4.5}
    lines = picture(run, [(2, {**score, "mlm_loss": 6.5}), (4, score)], band)
    rows = {float(line.split("|")[0]): line.split("|")[1] for line in lines if "|" in line}
    heights = list(rows)
    assert heights == sorted(heights, reverse=True) and heights[0] == 8 and heights[-1] == 4
    place = lambda loss: min(heights, key=lambda height: abs(height - loss))
    width = doctor_module.WIDTH
    column = lambda tokens: round((width - 1) * tokens / 40)
    assert rows[heights[0]][column(10)] == "x"  # too high for the picture
    for tokens, loss in ((20, 6.0), (30, 5.0), (40, 4.0)):
        assert rows[place(loss)][column(tokens)] == "x"
    assert rows[place(6.5)][column(20)] == rows[place(4.5)][width - 1] == "o"
    assert rows[place(5.2)][width - 1] == ":" and rows[place(7.0)].count("-") > width - 9
    assert lines[-2].endswith(" 40 tokens")


def test_the_nearest_arm_is_the_one_with_the_fewest_other_flags(runs, toy_text, tmp_path):
    """Catches an arm of another script, flags that do not matter, and a longer run taken before
    one as long."""
    results = json.loads((runs / "published" / "results.json").read_text())
    arms, settings = results["arms"], results["arms"]["roberta"]["settings"]
    arms["wide"] = {**arms["roberta"], "settings": {**settings, "mask_rate": 0.3}}
    arms["long"] = {**arms["roberta"], "settings": {**settings, "steps": 400}, "steps": 400}
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor_module, "PUBLISHED", tmp_path)
        for flags, name, apart in (
                ([], "roberta", {}), (["--seed", "3", "--log-every", "5"], "roberta", {}),
                (["--mask-rate", "0.3"], "wide", {}),
                (["--learning-rate", "0.5"], "roberta", {"learning_rate": 0.002}),
                (["--steps", "300"], "long", {"steps": 400}),
                (["--steps", "60"], "roberta", {"steps": 40})):
            run, model = read_flags("train_roberta", [*FLAGS, *TOY, *flags])
            found = nearest_arm("train_roberta", {**vars(run), **vars(model)})
            assert (found["name"], found["apart"]) == (name, apart), flags


def test_published_runs_are_beside_themselves(monkeypatch):
    """Catches alarms at runs that ended well, whatever comparison is published."""
    published = ROOT / "results" / "cpu"
    monkeypatch.setattr(doctor_module, "PUBLISHED", published)
    results = json.loads((published / "results.json").read_text())
    logs = read_log(published / "logs.jsonl")
    for name, arm in results["arms"].items():
        if not arm["steps"]:
            continue
        found = nearest_arm(arm["script"], arm["settings"])
        assert found["apart"] == {} and found["steps"] == arm["steps"]
        for seed in range(len(arm["full-sentences"])):
            log = [line for line in logs if (line["arm"], line["seed"]) == (name, seed)]
            evals = [(arm["steps"], arm["full-sentences"][seed])]
            metrics = {"segment-pair": arm["segment-pair"][seed]}
            wrong = troubles(arm["settings"], log, evals, metrics, found)
            assert not {"NOT FINITE", "LEARNING RATE TOO HIGH", "OTHER TEXT"} & {*wrong}, name
            assert columns(log).shape[1] == len([line for line in log if "mlm" in line])


@pytest.mark.parametrize("file, content", [
    ("run.json", None), ("run.json", "{"), ("run.json", "{}"), ("log.jsonl", None),
    ("log.jsonl", ""), ("log.jsonl", "no JSON\n"), ("log.jsonl", '{"step": 3}\n'),
    ("metrics.json", "{"), ("metrics.json", '{"steps": 3}')])
def test_folders_that_hold_no_run(file, content, runs, tmp_path, monkeypatch, capsys):
    """Catches a traceback where a file is missing or broken."""
    shutil.copytree(runs / "roberta", tmp_path / "run")
    (tmp_path / "run" / file).unlink()
    if content is not None:
        (tmp_path / "run" / file).write_text(content)
    monkeypatch.setattr(sys, "argv", ["lab", "doctor", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="2"):
        run_cli(main)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(tmp_path / "run") in line


def test_from_the_command_line(runs, tmp_path, monkeypatch, capsys):
    """Catches a command that is not there."""
    run = plant(runs / "roberta", tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["lab", "doctor", str(run)])
    run_cli(main)
    assert capsys.readouterr().out == doctor(str(run)) + "\n"
