"""`python -m minibert walk`: what it prints is what the scripts compute, and where."""
import json
import re
import sys

import pytest
from conftest import BUDGET, ROOT, TOY

from minibert.__main__ import main
from minibert.errors import UserError

SCRIPTS = {"bert": "train_bert", "roberta": "train_roberta", "distilbert": "distill"}


@pytest.fixture
def walk(monkeypatch, capsys):
    """What the command prints."""
    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["minibert", "walk", *map(str, flags)])
        main()
        return capsys.readouterr().out
    return run


@pytest.fixture
def logged(run_script, tmp_path, capsys):
    """A run's folder and its first logged losses."""
    def run(script, *flags):
        out = tmp_path / script
        run_script(script, *flags, "--out", out)
        capsys.readouterr()
        return out, json.loads((out / "log.jsonl").read_text().splitlines()[0])
    return run


@pytest.fixture
def flags(toy_text):
    """A toy run without dropout, which a walk does not draw, that logs each step."""
    model = [flag if flag != "0.1" else "0" for flag in TOY]
    return {"train": [*BUDGET, *model, "--log-every", "1", "--corpus", toy_text],
            "distill": [*BUDGET, "--log-every", "1", "--corpus", toy_text]}


def term(shown, name):
    """The value of a term of the loss."""
    return float(re.search(rf"    {name}: [^0-9]*([\d.]+[0-9])", shown)[1])


def files(shown):
    """The files of all stations, in whose lines there has to be what each station names."""
    places = re.findall(r"^\S.{11}(\S+\.py):(\d+) (\S+)$", shown, re.M)
    assert len(places) >= 11
    for file, number, name in places:
        line = (ROOT / file).read_text().splitlines()[int(number) - 1]
        assert re.match(rf"\s*(def|class) {name.split('.')[-1]}\b", line), (file, number, name)
    return {file for file, _, _ in places}


@pytest.mark.parametrize("recipe", ["bert", "roberta"])
def test_walk_shows_the_first_step(recipe, walk, logged, flags):
    """A reader would be shown another batch, mask, model or loss than the script's: the terms are
    those of the first step in the script's log. A station that names another line would send
    readers astray."""
    script, terms = SCRIPTS[recipe], {"bert": {"mlm", "nsp"}, "roberta": {"mlm"}}[recipe]
    shown = walk(recipe, *flags["train"], "--data-tokens", "600")
    _, first = logged(script, *flags["train"], "--data-tokens", "600")
    assert terms == {"mlm", "nsp"} & first.keys()
    for name in terms:
        assert term(shown, name) == pytest.approx(first[name], abs=2e-4), name
    total = float(re.search(r"mlm.* = ([\d.]+)$", shown.strip().splitlines()[-1])[1])
    assert total == pytest.approx(first["loss"], abs=4e-4)
    assert files(shown) == {"minibert/data.py", "minibert/masking.py", "minibert/model.py",
                            "minibert/losses.py", f"{script}.py"}


def test_walk_shows_what_flags_say(walk, flags):
    """The script's recipe would be printed where flags say otherwise; and a reader would take the
    probabilities of a new model for what a model learns."""
    shown = walk("bert", *flags["train"], "--masking", "dynamic", "--hidden-dropout-prob", "0.5")
    assert term(shown, "mlm") == term(walk("bert", *flags["train"]), "mlm")  # nothing is dropped
    assert "masking dynamic, static_masks 10" in shown and "seq_length 16" in shown
    assert shown.startswith("The weights are new")


def test_walk_shows_a_student_and_its_teacher(walk, logged, flags):
    """A reader would see another student or teacher than the script's, or terms weighed otherwise;
    or another text, other settings and another teacher than a finished run had."""
    teacher, _ = logged("train_bert", *flags["train"], "--steps", "60", "--learning-rate", "0.03",
                        "--data-tokens", "80", "--static-masks", "1")  # that it knows by heart
    of_teacher = [*flags["distill"], "--teacher", teacher]
    shown = walk("distilbert", *of_teacher)
    student, first = logged("distill", *of_teacher)
    for name in ("kl", "cos"):
        assert term(shown, name) == pytest.approx(first[name], abs=1e-4) and first[name] > 0.01
    assert "teacher: " in shown and "2 mlm + 5 kl + 1 cos = " in shown
    assert f"weights: layers [0] of {teacher}" in shown and "distill.py" in files(shown)
    trained = walk("distilbert", *of_teacher, "--run", student)
    assert f"weights: {student}" in trained and trained != shown
    assert "weights are new" not in shown + trained
    assert walk("distilbert", *of_teacher, "--init", "random").startswith("The weights are new")
    # A run brings its text, its settings and its teacher along; flags go before them.
    assert walk("distilbert", "--run", student) == trained
    changed = walk("distilbert", "--run", student, "--temperature", "3", "--mask-rate", "0.4")
    assert "at temperature 3" in changed and term(changed, "mlm") != term(trained, "mlm")


def test_what_does_not_belong_together(walk, logged, flags):
    """A walk through a run of another recipe, or with another teacher, would show numbers that no
    training ever had, or end in a traceback."""
    teacher, _ = logged("train_bert", *flags["train"], "--hidden-dropout-prob", "0.5")
    assert len({walk("distilbert", *flags["distill"], "--teacher", teacher) for _ in "ab"}) == 1
    student, _ = logged("distill", *flags["distill"], "--teacher", teacher)
    wider, _ = logged("train_roberta", *flags["train"], "--hidden-size", "32")
    for message, recipe, *wrong in (
            ("--teacher is missing", "distilbert"),
            ("unrecognized arguments: --teacher", "bert", "--teacher", teacher),
            ("is a run of distilbert; python -m minibert walk distil", "bert", "--run", student),
            ("another vocabulary or width than its teacher", "distilbert", "--run", student,
             "--teacher", wider)):
        with pytest.raises(UserError, match=message):
            walk(recipe, *flags["distill"], *wrong)
    (student / "run.json").unlink()  # as of a folder of Hugging Face's
    with pytest.raises(UserError, match="has no NSP head"):
        walk("bert", *flags["distill"], "--run", student)
