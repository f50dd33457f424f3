"""The exercises: blanks that can be filled, tests that notice, questions whose flags exist."""
import importlib
import inspect
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from test_promises import flags_in, help_of

from minibert.claims.judge import arms_of

README = (ROOT / "tests" / "exercises" / "README.md").read_text(encoding="utf-8")
PIECES = re.findall(r"make exercise PIECE=(\w+) +# (\w+)\.py", README)


@pytest.mark.parametrize("piece, module", PIECES)
def test_blanks_have_the_signature_of_what_they_replace(piece, module):
    """Catches an exercise that asks for something else than the package needs."""
    theirs = inspect.signature(getattr(importlib.import_module(f"minibert.{module}"), piece))
    code = (ROOT / "tests" / "exercises" / "mine.py").read_text(encoding="utf-8")
    namespace = {}
    exec(code, namespace)
    ours = inspect.signature(namespace[piece])
    assert [(one.name, one.kind, one.default) for one in ours.parameters.values()] == [
        (one.name, one.kind, one.default) for one in theirs.parameters.values()]
    assert f"TESTS_OF_{piece}" in (ROOT / "Makefile").read_text(encoding="utf-8")


ANSWER = """
def soft_target_loss(student_logits, teacher_logits, temperature, valid=None, denominator=None):
    p = (teacher_logits.float() / temperature).log_softmax(-1)
    q = (student_logits.float() / temperature).log_softmax(-1)
    each = (p.exp() * (p - q)).sum(-1)
    if valid is not None:
        each = each.where(valid, each.new_zeros(()))
        denominator = valid.sum() if denominator is None else denominator
    return SQUARE * each.sum() / (max(1, denominator) if denominator is not None else each.numel())
"""


@pytest.mark.parametrize("square, ends", [("temperature**2", 0), ("temperature", 1)])
def test_an_answer_is_judged(square, ends, tmp_path):
    """Catches an exercise that tests the package's function instead of the learner's: a right
    answer that is written otherwise passes, and T in T²'s place does not."""
    (tmp_path / "exercises").mkdir()
    for name in ("replace", "mine"):
        code = (ROOT / "tests" / "exercises" / f"{name}.py").read_text(encoding="utf-8")
        (tmp_path / "exercises" / f"{name}.py").write_text(
            code + (ANSWER.replace("SQUARE", square) if name == "mine" else ""), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "exercises.replace", "tests/test_losses.py"],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PIECE": "soft_target_loss", "PYTHONPATH": f"{ROOT}:{tmp_path}"})
    assert done.returncode == ends, done.stdout[-2000:]


def test_a_blank_piece_prints_one_hint():
    """Catches an exercise that greets whoever has not begun with a page of failures."""
    for piece, _ in PIECES:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "exercises.replace", "tests/test_losses.py"],
            cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "PIECE": piece, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"})
        said = done.stdout + done.stderr
        assert done.returncode == 1 and said.count("Hint: ") == 1, said
        assert piece in said and len(said.splitlines()) < 10, said


def test_an_exercise_stops_at_the_first_failure():
    """Catches a target that prints every failure of a piece that is nearly right."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert " -x " in makefile.split("\nexercise:")[1].split("\n\n")[0]


QUESTIONS = README.split("\n### ")[1:]


def test_ten_questions_have_a_prediction_and_a_folded_answer():
    """Catches a question without a command, with nothing to predict, or with an open answer."""
    assert [question.split(".")[0] for question in QUESTIONS] == [*map(str, range(1, 11))]
    for question in QUESTIONS:
        asked, answer = question.split("<details><summary>Answer</summary>\n\n")
        answer, after = answer.split("\n\n</details>")
        assert "\npython " in asked and "\nPredict: " in asked, question
        assert len(answer) > 200 and re.search(r"\d\.\d\d", answer), question


def test_answers_add_up():
    """Catches a gain in an answer that is not the difference of the losses that stand there."""
    loss, checked = r"(\d\.\d{3})", 0
    for question in QUESTIONS:
        answer = " ".join(question.split("<details>")[1].split("</details>")[0].split())
        means = [sum(map(float, seeds)) / 3
                 for seeds in re.findall(rf"{loss}, {loss} and {loss}", answer)]
        for gain in re.findall(r"(?:gains|costs?|worth|difference of) (\d\.\d\d)\b", answer):
            differences = [abs(one - two) for one in means for two in means if one != two]
            assert any(abs(one - float(gain)) < 0.006 for one in differences), (gain, answer)
            checked += 1
    assert checked == 9


def test_settings_of_the_questions_are_known():
    """Catches a question whose command the scripts do not understand."""
    settings = dict(re.findall(r'^(SMALL|STUDENT)="(.*?)"', README, re.M | re.S))
    commands = re.findall(r"^python (\w+\.py) (.*)$", README, re.M)
    assert len(commands) == 10 + 2  # the twin of most, and the twin of the students
    for script, flags in commands:
        known = help_of(script)
        for name, value in settings.items():
            flags = flags.replace(f"${name}", value)
        assert "$" not in flags and set(flags_in(flags)) <= set(flags_in(known)), flags


def test_the_claim_of_your_own_is_a_claim():
    """Catches an example that the table of claims does not take."""
    example = re.search(r"```python\n(.*?)```", README, re.S)[1]
    names = dict(vars(importlib.import_module("minibert.claims.claims")))
    exec(example, names)
    claim = names["CLAIMS"][-1]
    assert claim.id == "rate" and "--mask-rate" in help_of(f"{claim.contrasts[0].first.script}.py")
    assert [arm.flags for arm in arms_of(claim)] == ["--mask-rate 0.4", ""]
