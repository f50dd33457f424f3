"""The lesson stands alone: this very folder is deleted in a copy of the project."""
import os
import shutil
import subprocess
import sys

import pytest
from conftest import BUDGET, ROOT, TOY


@pytest.fixture
def lesson(tmp_path):
    """A function that runs Python in a copy of the project without lab/: what it prints."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.splitlines()
    for file in files:
        if not file.startswith(("lab/", "results/")):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, tmp_path / file)

    def run(*command):
        done = subprocess.run([*map(str, command)], cwd=tmp_path, text=True, capture_output=True,
                              env={**os.environ, "PYTHONPATH": str(tmp_path)})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    return run


def test_lesson_without_the_laboratory(lesson, toy_text):
    """A learner who deletes the laboratory would lose a recipe, a command or a test with it."""
    python = sys.executable
    lesson(python, "train_bert.py", *BUDGET, *TOY, "--corpus", toy_text, "--out", "runs/bert")
    assert "| bert |" in lesson(python, "-m", "minibert", "table", "runs/bert")
    collected = lesson(python, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider")
    assert "tests/test_training.py" in collected and "lab/" not in collected
    planned = lesson("make", "-n", "all", "test", "smoke", f"PY={python}")
    assert "train_bert.py" in planned and "-m lab" not in planned
