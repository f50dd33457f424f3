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


@pytest.mark.parametrize("recipe", ["bert", "roberta"])
def test_walk_shows_the_first_step(recipe, walk, logged, toy_text):
    """Catches a walk of another batch, mask, model or loss than the script's: its terms are those
    of the first step in the script's log. Catches stations that name no such line."""
    model = [flag if flag != "0.1" else "0" for flag in TOY]
    flags = [*BUDGET, *model, "--corpus", toy_text, "--data-tokens", "600"]
    shown = walk(recipe, *flags)
    _, first = logged(SCRIPTS[recipe], *flags, "--log-every", "1")
    terms = {name: first[name] for name in ("mlm", "nsp") if name in first}
    assert set(terms) == ({"mlm", "nsp"} if recipe == "bert" else {"mlm"})
    for name, value in terms.items():
        said = float(re.search(rf"    {name}: [^0-9]*([\d.]+[0-9])", shown)[1])
        assert said == pytest.approx(value, abs=2e-4), name
    total = float(re.search(r"mlm.* = ([\d.]+)$", shown.strip().splitlines()[-1])[1])
    assert total == pytest.approx(sum(terms.values()), abs=4e-4)
    check_places(shown)


def check_places(shown):
    """Every station's file and line hold what it names."""
    places = re.findall(r"^\S.{11}(\S+\.py):(\d+) (\S+)$", shown, re.M)
    assert len(places) >= 11
    for file, number, name in places:
        line = (ROOT / file).read_text().splitlines()[int(number) - 1]
        assert re.match(rf"\s*(def|class) {name.split('.')[-1]}\b", line), (file, number, name)


def test_walk_shows_a_student_and_its_teacher(walk, logged, toy_text):
    """Catches a student or teacher other than the script's, and terms weighed otherwise."""
    model = [flag if flag != "0.1" else "0" for flag in TOY]
    budget = [*BUDGET, "--log-every", "1", "--corpus", toy_text]
    teacher, _ = logged("train_bert", *budget, *model)
    shown = walk("distilbert", *budget, "--teacher", teacher)
    student, first = logged("distill", *budget, "--teacher", teacher)
    for name in ("kl", "cos"):
        said = float(re.search(rf"    {name}: ([\d.]+)", shown)[1])
        assert said == pytest.approx(first[name], rel=1e-3, abs=2e-4)
    assert "teacher: " in shown and "2 mlm + 5 kl + 1 cos = " in shown
    check_places(shown)
    assert f"weights: layers [0] of {teacher}" in shown
    trained = walk("distilbert", *budget, "--teacher", teacher, "--run", student)
    assert f"weights: {student}" in trained and trained != shown
    assert "weights are new" not in shown + trained
    new = walk("distilbert", *budget, "--teacher", teacher, "--init", "random")
    assert new.startswith("The weights are new")
    with pytest.raises(UserError, match="--teacher is missing"):
        walk("distilbert", *budget)
    with pytest.raises(UserError, match="is a run of distilbert; python -m minibert walk distil"):
        walk("bert", *budget, "--run", student)
    # A run brings its text, its settings and its teacher along; flags go before them.
    assert walk("distilbert", "--run", student) == trained
    other = walk("distilbert", "--run", student, "--temperature", "3", "--mask-rate", "0.4")
    assert "at temperature 3" in other and other != trained
    (student / "run.json").unlink()  # as of a folder of Hugging Face's
    with pytest.raises(UserError, match="has no NSP head"):
        walk("bert", *budget, "--run", student)
    other, _ = logged("train_roberta", *budget, *model, "--hidden-size", "32")
    with pytest.raises(UserError, match="another vocabulary or width than its teacher"):
        walk("distilbert", *budget, "--run", student, "--teacher", other)
    with pytest.raises(UserError, match="unrecognized arguments: --teacher"):
        walk("bert", *budget, "--teacher", teacher)


def test_walk_says_what_it_walks(walk, toy_text):
    """Catches the script's recipe printed where flags say otherwise."""
    shown = walk("bert", *BUDGET, *TOY, "--corpus", toy_text, "--masking", "dynamic")
    assert "masking dynamic, static_masks 10" in shown and "seq_length 16" in shown


def test_walk_says_first_that_new_weights_know_nothing(walk, logged, toy_text):
    """Catches a reader who takes the probabilities of a new model for what a model learns, and a
    trained model that is said to know nothing."""
    flags = [*BUDGET, *TOY, "--corpus", toy_text]
    first = walk("roberta", *flags).splitlines()[0]
    assert first.startswith("The weights are new") and "--run" in first
    run, _ = logged("train_roberta", *flags)
    trained = walk("roberta", "--run", run)
    assert f"weights: {run}" in trained and "weights are new" not in trained


def test_walk_in_five_files(walk, toy_text):
    """Catches a station that leaves the reading order of the README."""
    shown = walk("bert", *BUDGET, *TOY, "--corpus", toy_text)
    assert set(re.findall(r"^\S.{11}(\S+\.py):", shown, re.M)) == {
        "minibert/data.py", "minibert/masking.py", "minibert/model.py", "minibert/losses.py",
        "train_bert.py"}
