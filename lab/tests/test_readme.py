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
# What makes each a matter of seconds; a flag that is given twice has its last value.
SHORT = {"train_": [*BUDGET, *TOY, "--tasks", "none", "--data-fraction", "1"],
         "distill": [*BUDGET, "--tasks", "none"],
         "finetune": ["--task", "text", "--task-dir", ".", "--epochs", "1", "--device", "cpu"]}


def test_commands_run_in_their_order(toy_text, tmp_path, monkeypatch, capsys):
    """Catches a command that needs what no command before it made, and one that fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("text\tlabel\n" + "ba be\tx\nbe ba\ty\n" * 8)
    assert len(COMMANDS) >= 14
    for command in COMMANDS:
        script, *given = shlex.split(command)
        name = script.removesuffix(".py")
        if script == "-m":
            script, name = given[1], f"{given[0]}.__main__"
            given = given[1:]
        extra = next((flags for start, flags in SHORT.items() if script.startswith(start)), [])
        if not name.endswith("__main__"):
            extra = [*extra, "--corpus", str(toy_text)]
        monkeypatch.setattr(sys, "argv", [script, *given, *extra])
        importlib.import_module(name).main()
        assert capsys.readouterr().out.strip(), command
    made = {path.name for path in (tmp_path / "runs").iterdir()}
    assert {"bert", "distilroberta", "library", "taught"} <= made


@pytest.mark.parametrize("target", sorted(
    {*re.findall(r"(?:^|`)make ([a-z]+)", README + RECIPES + CONTRIBUTING, re.M)}))
def test_targets_exist(target):
    """Catches a `make` command that was renamed."""
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
