"""docs/lesson.md: its sizes are those of the code, and its excerpt is what `walk` prints.

Whether its pointers, links and commands are sound, lab/tests/test_promises.py tells.
"""
import math
import re
import sys

import pytest
from conftest import BUDGET, ROOT, TOY

from lab.exact import PUBLISHED
from minibert.__main__ import main
from minibert.config import DistillConfig
from minibert.student import layer_map

pytestmark = pytest.mark.promises
LESSON = (ROOT / "docs/lesson.md").read_text(encoding="utf-8")


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
    assert f"T = {terms.temperature:g}" in words


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
