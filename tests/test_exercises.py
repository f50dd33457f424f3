"""The exercises: blanks that can be filled, tests that notice, questions whose flags exist."""
import importlib
import inspect
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from test_promises import help_of

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


def test_ten_questions_have_flags_that_exist():
    """Catches a question whose command the scripts do not understand."""
    commands = re.findall(r"`(python \w+\.py .*?)`", README)
    assert len(commands) == 10 + 1  # and a teacher
    for command in commands:
        known = help_of(command.split()[1])
        for flag in re.findall(r"--[\w-]+", command):
            assert flag in known or f"--[no-]{flag[2:].removeprefix('no-')}" in known, flag


def test_the_claim_of_your_own_is_a_claim():
    """Catches an example that the table of claims does not take."""
    example = re.search(r"```python\n(.*?)```", README, re.S)[1]
    names = dict(vars(importlib.import_module("minibert.claims.claims")))
    exec(example, names)
    claim = names["CLAIMS"][-1]
    assert claim.id == "rate" and "--mask-rate" in help_of(f"{names['BASE'].script}.py")
    assert [arm.flags for arm in arms_of(claim)] == ["--mask-rate 0.4", ""]
