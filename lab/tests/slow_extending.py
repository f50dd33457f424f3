"""docs/extending.md, executed: its changes are made in a copy of the project, its commands run."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import BUDGET, ROOT, TOY

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|diff|sh) ?(\S*)\n(.*?)^```$", PAGE, re.M | re.S)
# What makes each command a matter of seconds; a flag that is given twice has its last value.
SHORT = {"python train_": [*BUDGET, *TOY],
         "python finetune.py": ["--rows", "64", "--epochs", "1"],
         "python -m lab compare": ["--seeds", "2", "--tokens", "2000", "--vocab-size", "70"]}


def change(folder: Path, file: str, lines: list[str]) -> None:
    """Replace the lines with "-" and " " by those with "+" and " "; they occur exactly once."""
    before, after = ("".join(f"{line[1:]}\n" for line in lines if line[:1] in signs)
                     for signs in ("- ", "+ "))
    text = (folder / file).read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{file} does not hold this once:\n{before}"
    (folder / file).write_text(text.replace(before, after), encoding="utf-8")


def test_page_about_extending_works(toy_text, tmp_path):
    """Catches a step that a change of the code made wrong, and a reminder that does not fail."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.splitlines()
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MINIBERT_PLAIN": "1"}
    ended = {True: 0, False: 0}
    for kind, file, text in BLOCKS:
        if kind == "python":
            (tmp_path / file).write_text(text, encoding="utf-8")
        if kind == "diff":
            change(tmp_path, file, text.splitlines())
        for line in text.splitlines() if kind == "sh" else ():
            command, _, fails = line.partition("   # ")
            extra = next((flags for start, flags in SHORT.items() if command.startswith(start)), [])
            if extra and "finetune" not in command:
                extra = [*extra, "--corpus", str(toy_text)]
            command = [sys.executable if part == "python" else part for part in command.split()]
            done = subprocess.run([*command, *extra], cwd=tmp_path, env=environment,
                                  capture_output=True, text=True)
            assert (done.returncode != 0) == bool(fails), (line, done.stdout + done.stderr)
            ended[not fails] += 1
    assert ended == {True: 8, False: 4}
