"""docs/lesson.ipynb: its cells run from top to bottom, at a toy budget and without Jupyter."""
import json
import os
import re
import subprocess
import sys

from conftest import ROOT, finish
from notebook import LESSON, cells


def test_cells_run_from_top_to_bottom(toy_text, tmp_path):
    """Catches a cell that needs what no cell before it made, and a function that was renamed."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/notebook.py")], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MINIBERT_TOY": str(toy_text)})
    printed = finish(process)
    masks = dict(re.findall(r"epoch (\d) (hides positions .+)", printed.split("dynamic")[0]))
    assert masks["0"] == masks["2"] != masks["1"] == masks["3"]
    assert len(re.findall(r"T = \d: KL .+, to itself 0\.000$", printed, re.M)) == 3
    assert "\nall cells took " in printed
    made = {path.name for path in (tmp_path / "runs/notebook").iterdir()}
    assert made == {"new", "roberta", "student", "untaught"}


def test_it_is_plain_python_without_outputs():
    """Catches outputs that make each difference long, and what only Jupyter understands."""
    notebook = json.loads(LESSON.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == (
            [], None)
    for source in cells("code"):
        assert not re.search(r"^\s*[!%]", source, re.M)
        assert max(map(len, source.splitlines())) <= 100


def test_each_part_ends_with_something_to_try():
    """Catches a part that leaves nothing to do, and a link to a file that was moved."""
    text = "\n\n".join(cells("markdown"))
    *parts, last = re.split(r"^## .+$", text, flags=re.M)[1:]
    assert len(parts) == 6 and "make all" in last
    for part in parts:
        assert part.strip().split("\n\n")[-1].startswith("**Try it:**"), part
    for target in re.findall(r"\]\((.+?)\)", text):
        assert (LESSON.parent / target).exists(), target
