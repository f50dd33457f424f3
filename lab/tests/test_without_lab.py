"""The laboratory can be deleted: `rm -r lab` leaves everything else working."""
import os
import shutil
import subprocess
import sys

import pytest
from conftest import BUDGET, ROOT, TOY


@pytest.fixture(scope="module")
def without_lab(tmp_path_factory):
    """A copy of the project's own files, without lab/."""
    copy = tmp_path_factory.mktemp("copy")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.splitlines()
    for file in files:
        if not file.startswith(("lab/", "results/")) and (ROOT / file).exists():
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, copy / file)
    return copy


def test_the_lesson_works_without_the_laboratory(without_lab, toy_text):
    """Whoever deletes lab/ to have the lesson alone would be left with scripts, commands or tests
    that need it."""
    run = [*BUDGET, *TOY, "--steps", "2", "--corpus", str(toy_text), "--out", "runs/toy"]
    commands = [["train_roberta.py", "--help"], ["train_roberta.py", *run],
                ["-m", "minibert", "table", "runs/toy"],
                ["-m", "pytest", "-q", "--collect-only", "tests", "minibert", "data"]]
    # One process for all of them, because each would import torch again.
    program = f"""
import runpy, sys
for command in {commands!r}:
    is_module = command[0] == "-m"
    sys.argv = command[1:] if is_module else command
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True) if is_module else \\
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{{command}} ended with {{ended.code}}")
assert not [name for name in sys.modules if name.split(".")[0] == "lab"]
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=without_lab, text=True, timeout=100,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(without_lab)})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "--learning-rate" in done.stdout and "finished 2 steps" in done.stdout
    assert " toy |" in done.stdout and "tests/test_training.py: " in done.stdout
