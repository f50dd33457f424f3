"""docs/lesson.ipynb: its cells run from top to bottom, at a toy budget and without Jupyter."""
import json
import re
import sys

import notebook
from conftest import ROOT
from notebook import LESSON, cells


def test_cells_run_from_top_to_bottom(toy_text, tmp_path, monkeypatch, capsys):
    """A reader would end at a cell that needs what no cell before it made, or a function that was
    renamed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("MINIBERT_TOY", str(toy_text))
    monkeypatch.setenv("MINIBERT_PLAIN", "1")
    notebook.main()
    printed = capsys.readouterr().out
    masks = dict(re.findall(r"epoch (\d) (hides positions .+)", printed.split("dynamic")[0]))
    assert masks["0"] == masks["2"] != masks["1"] == masks["3"]
    assert len(re.findall(r"T = \d: KL .+, to itself 0\.000$", printed, re.M)) == 3
    made = {path.name for path in (tmp_path / "runs/notebook").iterdir()}
    assert made == {"new", "roberta", "student", "untaught"}


def test_it_is_plain_python_without_outputs():
    """Outputs would make each difference long, and what only Jupyter understands could not be run
    here."""
    content = json.loads(LESSON.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    for cell in content["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == (
            [], None)
    for source in cells("code"):
        assert not re.search(r"^\s*[!%]", source, re.M)
        assert max(map(len, source.splitlines())) <= 100


def test_each_part_ends_with_something_to_try():
    """A part would leave a reader nothing to do, or a link would lead nowhere."""
    text = "\n\n".join(cells("markdown"))
    *parts, last = re.split(r"^## .+$", text, flags=re.M)[1:]
    assert len(parts) == 6 and "make all" in last
    for part in parts:
        assert part.strip().split("\n\n")[-1].startswith("**Try it:**"), part
    for target in re.findall(r"\]\((.+?)\)", text):
        deleted = "/lab/" in target and not (LESSON.parent / "../lab").exists()
        assert deleted or (LESSON.parent / target).exists(), target
