"""The commands of README and docs/recipes.md, one after another, at a toy budget."""
import importlib
import re
import shlex
import sys

import pytest
from conftest import BUDGET, ROOT, TOY

README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COMMANDS = [command.split("  #")[0] for page in (README, RECIPES)
            for command in re.findall(r"^python (.+)$", page, re.M)]


def test_commands_run_in_their_order(toy_text, tmp_path, monkeypatch, capsys):
    """Catches a command that needs what no command before it made, and one that fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    for name in ("train.tsv", "dev.tsv"):  # with the columns of all tasks that are learned here
        (tmp_path / name).write_text("text\tsentence\tlabel\n"
                                     + "ba be\tba be\tx\nbe ba\tbe ba\ty\n" * 8)
    # What makes each a matter of seconds; a flag that is given twice has its last value.
    text = ["--corpus", str(toy_text)]
    short = {"train_": [*BUDGET, *TOY, *text, "--no-compile"],
             "distill": [*BUDGET, *text, "--no-compile"],
             "finetune": ["--task-dir", ".", "--epochs", "1", "--device", "cpu"]}
    assert len(COMMANDS) >= 14
    for command in COMMANDS:
        script, *given = shlex.split(command)
        name = script.removesuffix(".py")
        if script == "-m":
            module, *given = given
            name = f"{module}.__main__"
        extra = next((flags for start, flags in short.items() if script.startswith(start)), [])
        monkeypatch.setattr(sys, "argv", [script, *given, *extra])
        importlib.import_module(name).main()
        assert capsys.readouterr().out.strip(), command
    made = {path.name for path in (tmp_path / "runs").iterdir()}
    assert {"bert", "distilroberta", "taught", "library-cls"} <= made
    assert (tmp_path / "runs/bert/tasks/library/metrics.json").exists()


@pytest.mark.parametrize("target", sorted(
    {*re.findall(r"(?:^|`)make ([a-z]+)", README + RECIPES + CONTRIBUTING, re.M)}))
def test_targets_exist(target):
    """Catches a `make` command that was renamed."""
    rules = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile",
                                                                         "lab/Makefile"))
    assert re.search(rf"^{target}:", rules, re.M)
