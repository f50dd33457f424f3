"""docs/lesson.md: every file, function, picture, command and figure that it names is there."""
import ast
import math
import re
import sys

import pytest
from conftest import BUDGET, ROOT, TOY
from lab.tests.test_promises import help_of

from minibert.__main__ import main
from lab.exact import PUBLISHED
from minibert.config import DistillConfig
from minibert.student import layer_map

pytestmark = pytest.mark.promises
LESSON = (ROOT / "docs/lesson.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```$", "", LESSON, flags=re.M | re.S)  # without what a terminal shows
PICTURES = {"lineage.svg", "encoder.svg", "masks.svg", "soft-targets.svg", "attention.svg"}
POINTER = r"`([\w/]+\.py)`\s+`([\w.]+)`"  # a file, and a function or class in it


def defined_in(file):
    """The functions and classes of a file, and the methods as Class.method."""
    names = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            names |= {f"{node.name}.{child.name}" for child in node.body
                      if isinstance(node, ast.ClassDef) and isinstance(child, ast.FunctionDef)}
    return names


def test_every_file_and_function_exists():
    """Catches a pointer to what was renamed or moved, and a file without a function."""
    pointers = re.findall(POINTER, PROSE)
    assert len(pointers) > 30
    for file, name in pointers:
        assert name in defined_in(file), (file, name)
    assert len(re.findall(r"`[\w/]+\.py`", PROSE)) == len(pointers)


def test_every_paragraph_points_at_the_code():
    """Catches a paragraph that a reader cannot follow into the code."""
    for paragraph in PROSE.split("\n\n"):
        if not re.match(r"\s*(#|!\[|\||$)", paragraph):
            assert re.search(POINTER, paragraph), paragraph


def test_every_picture_is_there_and_is_shown():
    """Catches a picture that is missing, larger than a page should load, or shown nowhere."""
    shown = set(re.findall(r"!\[[^\]]+\]\((.+?)\)", LESSON))
    there = {path.name for path in (ROOT / "docs").glob("*.*g")}
    assert shown == PICTURES == there - {"museum.svg"}
    for name in shown:
        assert (ROOT / "docs" / name).stat().st_size < 150_000, name


def test_links_lead_somewhere():
    """Catches a link to a file that was moved."""
    for target in re.findall(r"\]\((.+?)\)", LESSON):
        assert (ROOT / "docs" / target).exists(), target


def test_it_is_read_in_ten_minutes():
    """Catches a lesson that grows into a chapter; a minute is about 200 words."""
    assert 1500 <= len(re.findall(r"\w[\w\'-]*", re.sub(POINTER, "", PROSE))) <= 2000


@pytest.mark.parametrize("command", re.findall(r"^(?:\$ )?(python .+)$", LESSON, re.M))
def test_commands_name_flags_that_exist(command):
    """Catches a command that the scripts do not understand."""
    script = re.match(r"python (-m minibert [\w-]+|\w+\.py)", command)[1].split()
    known = help_of(*script) + help_of("train_roberta.py") * ("walk" in script)  # takes both
    for flag in re.findall(r"--[\w-]+", command):
        assert flag in known, flag


def test_figures_are_those_of_the_code():
    """Catches a size, a layer or a weight in the lesson that the code does not have."""
    words = " ".join(LESSON.split())
    for name in ("bert-base", "roberta-base", "distilbert-base", "distilroberta-base"):
        million = f"{PUBLISHED[name] / 1e6:.0f}"
        assert re.search(rf"\b{million} million|has {million}\b", words), name
    saved = 1 - PUBLISHED["distilbert-base"] / PUBLISHED["bert-base"]
    assert f"{round(saved, 1):.0%} fewer" in words and f"{math.log(4096):.1f} nats" in words
    layers = [str(layer) for layer in layer_map(12, 6)]
    assert f"{', '.join(layers[:-1])} and {layers[-1]}" in words
    terms = DistillConfig(teacher="-")
    assert f"{terms.alpha_kl:g}, {terms.alpha_mlm:g} and {terms.alpha_cos:g}" in words
    assert f"DistilBERT uses T = {terms.temperature:g}" in words


def test_the_guesses_shown_are_a_trained_models(toy_text, monkeypatch, capsys):
    """Catches an excerpt of new weights, figures that were copied wrongly, and lines that `walk`
    prints in other words by now."""
    [shown] = re.findall(r"^\$ (python -m minibert walk roberta --run .+?)^```", LESSON,
                         re.M | re.S)
    assert "weights: runs/lesson" in shown and "weights are new" not in shown
    guess = r"^    position +\d+, (?:\S+ [\d.]+%, ){3}\S+ [\d.]+%; '.+' has (.+)%, -log p = (.+)$"
    for percent, loss in (guesses := re.findall(guess, shown, re.M)):
        assert -math.log(float(percent) / 100) == pytest.approx(float(loss), rel=0.05)
    monkeypatch.setattr(sys, "argv", ["minibert", "walk", "roberta", *BUDGET, *TOY, "--corpus",
                                      str(toy_text)])
    main()
    printed = capsys.readouterr().out
    assert len(guesses) >= 3 and re.search(guess, printed, re.M)
    last = lambda text: re.sub(r"[\d.]+", "#", re.search(r"^    mlm: .+", text, re.M)[0])
    assert last(shown) == last(printed)
