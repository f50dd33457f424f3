"""`python -m lab doctor`: troubles are planted in logs, beside a band of healthy runs."""
import json
import re
import sys
from dataclasses import fields

import numpy as np
import pytest
from conftest import BUDGET, ROOT, TOY

import lab.doctor
from lab.__main__ import main
from lab.doctor import CURES, WIDTH, columns, doctor, nearest_arm, picture, read_log, troubles
from minibert.config import DistillConfig, ModelConfig, RunConfig
from minibert.errors import UserError, run_cli
from minibert.training import Training

ENTROPY = 6.0  # of the held-out words, in nats
KINDS = {"roberta": dict(nsp=False), "bert": dict(nsp=True),
         "student": dict(nsp=False, alpha_kl=5.0)}


def settings_of(kind, **changes):
    """The settings of a run, as run.json and an arm of results.json have them, in one dict."""
    return {"corpus": "toy.txt", "steps": 40, "warmup": 0.1, "seed": 0, "learning_rate": 0.002,
            "num_hidden_layers": 2, **KINDS[kind], **changes}


def score_of(held_out, kind="roberta"):
    """The evaluation of a run that is so many nats above the entropy."""
    return {"mlm_loss": ENTROPY + held_out, "unigram_entropy": ENTROPY, "hash": "a set",
            **({"kl_to_teacher": 0.1} if kind == "student" else {})}


def log_of(loss=lambda x: 1 - 3 * x, held_out=lambda x: 1.1 - 3 * x, lift=0.0, **more):
    """A log of 40 steps. Losses are nats above the entropy by x, the share of the steps; more:
    other values of a line, by x."""
    lines = []
    for step in range(1, 41):
        mlm = ENTROPY + loss(step / 40) + lift
        lines.append({"step": step, "mlm": mlm, "loss": mlm, "grad_norm": 2.0, "tokens": 100 * step,
                      **{name: value(step / 40) for name, value in more.items()}})
        if step % 10 == 0:
            lines.append({"step": step, "eval": score_of(held_out(step / 40))})
    return lines


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(folder, kind, held_out=lambda x: 1.1 - 3 * x, scores=None, settings=None, **log):
    """A finished run's folder. scores: what metrics.json has instead, by part."""
    folder.mkdir()
    flat = settings_of(kind, **(settings or {}))
    distill = {"distill": {"alpha_kl": flat.pop("alpha_kl")}} if kind == "student" else {}
    (folder / "run.json").write_text(json.dumps({"model": {}, "settings": flat, **distill}))
    write_lines(folder / "log.jsonl", log_of(held_out=held_out, **log))
    metrics = {"full-sentences": score_of(held_out(1), kind), "steps": 40, "segment-pair": {
        "nsp_accuracy": 0.9, "nsp_majority": 0.6, "nsp_length": 0.7}}
    for part, changes in (scores or {}).items():
        metrics[part] = {**metrics[part], **changes}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture(autouse=True)
def published(tmp_path, monkeypatch):
    """One healthy arm of each kind, with two seeds; a dict of arms can be written in its place."""
    folder = tmp_path / "published"
    folder.mkdir()
    arms = {kind: {"steps": 40, "corpus": "toy.txt", "settings": settings_of(kind),
                   "full-sentences": [score_of(-1.9, kind)] * 2} for kind in KINDS}
    write_lines(folder / "logs.jsonl", [{"arm": kind, "seed": seed, **line} for kind in KINDS
                                        for seed in (0, 1) for line in log_of(lift=0.1 * seed)])
    write_arms = lambda arms: (folder / "results.json").write_text(json.dumps({"arms": arms}))
    write_arms(arms)
    monkeypatch.setattr(lab.doctor, "PUBLISHED", folder)
    return arms, write_arms


def names_in(shown):
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
    "near": ("student", dict(scores={"full-sentences": {"kl_to_teacher": 0.19}}), ["HEALTHY"]),
    "far": ("student", dict(scores={"full-sentences": {"kl_to_teacher": 0.21}}),
            ["FAR FROM ITS TEACHER"]),
    "untaught": ("student", dict(settings={"alpha_kl": 0.0}), ["FAR FROM ITS TEACHER"]),
    "other text": ("roberta", dict(settings={"corpus": "mine.txt"}), ["HEALTHY", "OTHER TEXT"]),
    "other vocabulary": ("roberta", dict(scores={"full-sentences": {"hash": "another set"}}),
                         ["HEALTHY", "OTHER TEXT"])}


@pytest.mark.parametrize("case", PLANTED)
def test_planted_troubles(case, tmp_path):
    """A trouble that is missed, or seen where there is none, would send a learner to the wrong
    flag."""
    kind, changes, expected = PLANTED[case]
    shown = doctor(str(write_run(tmp_path / "run", kind, **changes)))
    assert names_in(shown) == expected and f"arm, '{kind}', 2 seeds" in shown


UNFINISHED = {
    "healthy": ("roberta", {}, ["HEALTHY"]),
    "memorising": ("roberta", dict(held_out=lambda x: 1 + x), ["MEMORISING"]),
    "learned since its last evaluation": (
        "roberta", dict(loss=lambda x: -1.0 if x <= 0.5 else -5.0, held_out=lambda x: -1.0),
        ["HEALTHY"]),
    "pairs": ("bert", dict(nsp=lambda x: 0.69), ["NSP NOT LEARNED"]),
    "pairs learned": ("bert", dict(nsp=lambda x: 0.3), ["HEALTHY"])}


@pytest.mark.parametrize("case", UNFINISHED)
def test_a_run_that_is_still_training(case, tmp_path):
    """A line that is just being written, or metrics.json that is not there yet, would keep the
    doctor from whoever wants to stop a bad run early."""
    kind, changes, expected = UNFINISHED[case]
    run = write_run(tmp_path / "run", kind, **changes)
    (run / "metrics.json").unlink()
    lines = (run / "log.jsonl").read_text().splitlines()[:29]  # 27 steps, two evaluations
    (run / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 28, "ep')
    shown = doctor(str(run))
    assert ": step 27 of 40, not finished" in shown and names_in(shown) == expected
    (run / "log.jsonl").write_text("\n".join(lines[:9]) + "\n")  # before the first evaluation
    assert ": step 9 of 40" in doctor(str(run))


def test_a_run_of_the_package_and_a_loss_that_is_no_number(toy_text, tmp_path, run_script,
                                                           monkeypatch):
    """If the log forgot why a run stopped, or had other names than the doctor reads, nobody would
    learn that the learning rate was too high."""
    backward, calls = Training.backward, []

    def broken(self, loss, **terms):
        calls.append(loss)
        backward(self, loss * float("nan") if len(calls) == 7 else loss, **terms)

    flags = [*BUDGET, *TOY, "--log-every", "1", "--corpus", toy_text, "--out", tmp_path / "run"]
    monkeypatch.setattr(Training, "backward", broken)
    with pytest.raises(UserError, match="loss of step 7 is nan"):
        run_script("train_roberta", *flags)
    shown = doctor(str(tmp_path / "run"))
    assert ": step 7 of 12, not finished" in shown and "NOT FINITE" in names_in(shown)
    run_script("train_roberta", *flags)  # from its checkpoint, with a loss that is a number
    assert "NOT FINITE" not in names_in(doctor(str(tmp_path / "run")))


def test_a_run_beyond_the_published_tokens(tmp_path):
    """A band that is drawn where nothing was published would be taken for a measurement."""
    run = write_run(tmp_path / "run", "roberta", tokens=lambda x: int(1e6 * x))
    shown = doctor(str(run))
    assert "ends at 4,000 tokens" in shown and "1,000,000 tokens" in shown
    rows = [line.split("|")[1] for line in shown.splitlines() if "|" in line]
    assert not any(":" in row[3:] for row in rows)


def test_the_picture_is_to_scale():
    """Losses at the wrong height or place, or hidden behind the band, would show another run."""
    run = np.array([[10, 20, 30, 40], [9.0, 6.0, 5.0, 4.0], [1, 2, 3, 4]])
    band = [np.array([[10, 40], [8.0, low]]) for low in (4.5, 5.5)]
    score = {"unigram_entropy": 7.0, "mlm_loss": 4.5}
    lines = picture(run, [(2, {**score, "mlm_loss": 6.5}), (4, score)], band)
    rows = {float(line.split("|")[0]): line.split("|")[1] for line in lines if "|" in line}
    heights = list(rows)
    assert heights == sorted(heights, reverse=True) and heights[0] == 8 and heights[-1] == 4
    row = lambda loss: rows[min(heights, key=lambda height: abs(height - loss))]
    column = lambda tokens: round((WIDTH - 1) * tokens / 40)
    assert rows[8][column(10)] == "x"  # too high for the picture
    assert all(row(loss)[column(tokens)] == "x" for tokens, loss in ((20, 6), (30, 5), (40, 4)))
    assert row(6.5)[column(20)] == row(4.5)[column(40)] == "o"
    assert row(5.2)[column(40)] == ":" and row(7.0).count("-") > WIDTH - 9


@pytest.mark.parametrize("settings, name, apart", [
    (settings_of("roberta"), "roberta", {}),
    (settings_of("roberta", seed=3, compile=True), "roberta", {}),
    (settings_of("roberta", learning_rate=0.5), "roberta", {"learning_rate": 0.002}),
    (settings_of("roberta", mask_rate=0.3), "wide", {}),
    (settings_of("roberta", steps=300), "long", {"steps": 400}),
    (settings_of("roberta", steps=60), "roberta", {"steps": 40}),
    (settings_of("student", num_hidden_layers=1), "student", {"num_hidden_layers": 2})])
def test_the_nearest_arm(settings, name, apart, published):
    """The band of an arm with other settings, or of a student, would make a good run look bad."""
    arms, write_arms = published
    arms["roberta"]["settings"] |= {"mask_rate": 0.15, "gone_since": True}
    arms["wide"] = {**arms["roberta"], "settings": settings_of("roberta", mask_rate=0.3)}
    arms["long"] = {**arms["roberta"], "settings": settings_of("roberta", mask_rate=0.15,
                                                               steps=400), "steps": 400}
    arms["untrained"] = {**arms["roberta"], "settings": settings_of("roberta", mask_rate=0.15,
                                                                    learning_rate=0.5), "steps": 0}
    write_arms(arms)
    arm = nearest_arm({"mask_rate": 0.15, **settings})
    assert (arm["name"], arm["apart"]) == (name, apart)


def test_published_runs_are_beside_themselves(monkeypatch):
    """An alarm at a published run, which ended well, would be false for its readers' runs, too."""
    monkeypatch.setattr(lab.doctor, "PUBLISHED", ROOT / "results" / "cpu")
    logs = read_log(lab.doctor.PUBLISHED / "logs.jsonl")
    arms = json.loads((lab.doctor.PUBLISHED / "results.json").read_text())["arms"]
    for name, arm in arms.items():
        if not arm["steps"]:
            continue
        nearest = nearest_arm(arm["settings"])
        assert nearest["apart"] == {} and nearest["steps"] == arm["steps"]
        for seed, score in enumerate(arm["full-sentences"]):
            log = [line for line in logs if (line["arm"], line["seed"]) == (name, seed)]
            metrics = {"segment-pair": arm["segment-pair"][seed]}
            wrong = troubles(arm["settings"], log, [(arm["steps"], score)], metrics, nearest)
            assert not {"NOT FINITE", "LEARNING RATE TOO HIGH", "OTHER TEXT"} & {*wrong}, name
            assert columns(log).shape[1] == len([line for line in log if "mlm" in line])


@pytest.mark.parametrize("file, content", [
    ("run.json", None), ("run.json", "{"), ("run.json", "{}"), ("log.jsonl", None),
    ("log.jsonl", ""), ("log.jsonl", "no JSON\n"), ("log.jsonl", '{"step": 3}\n'),
    ("metrics.json", "{"), ("metrics.json", '{"steps": 3}')])
def test_folders_that_hold_no_run(file, content, tmp_path, monkeypatch, capsys):
    """A traceback would tell nobody which file is missing or broken."""
    run = write_run(tmp_path / "run", "roberta")
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
    monkeypatch.setattr(sys, "argv", ["lab", "doctor", str(run)])
    with pytest.raises(SystemExit, match="2"):
        run_cli(main)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(run) in line


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    """A command that does not reach the doctor would leave docs/recipes.md without its answer."""
    run = write_run(tmp_path / "run", "roberta")
    monkeypatch.setattr(sys, "argv", ["lab", "doctor", str(run)])
    run_cli(main)
    assert capsys.readouterr().out == doctor(str(run)) + "\n"


def test_every_cure_is_a_flag():
    """A flag that no script has any more would be advice that ends in an error."""
    flags = {item.name for config in (RunConfig, ModelConfig, DistillConfig)
             for item in fields(config) if item.metadata.get("help")}
    for flag in re.findall(r"--([a-z-]+)", " ".join(CURES.values())):
        assert flag.removeprefix("no-").replace("-", "_") in flags, flag
