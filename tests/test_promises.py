"""What the README promises about the code itself: budgets, rooms, departures, commands."""
import ast
import contextlib
import difflib
import functools
import importlib
import io
import json
import re
import sys

import numpy as np
import pytest
from conftest import ROOT
from mutants import MUTANTS

from minibert.claims.verdicts import report, speed_lines, verdict_table
from minibert.config import DistillConfig
from minibert.tools.table import family_table

RECIPES = ["train_bert.py", "train_roberta.py", "distill.py"]
ALL_SHARE = ["minibert/data.py", "minibert/masking.py", "minibert/model.py", "minibert/losses.py"]
CODE = [*ROOT.glob("*.py"), *ROOT.glob("minibert/**/*.py"), *ROOT.glob("data/*.py")]
# Which rooms of the package each room may import; the package's own level is "".
MAY_IMPORT = {
    "": {"", "files"},
    "files": {"", "files"},
    "tasks": {"", "files", "tasks"},
    "tools": {"", "files", "tasks", "tools"},
    "claims": {"", "files", "tasks", "tools", "claims"},
    "the scripts": {"", "files", "tasks"},
    "the front door": {"", "files", "tasks", "tools", "claims"},
}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def lines_of_code(text):
    """How many lines are neither blank nor a comment nor part of a docstring."""
    free = set()
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
        if documented and ast.get_docstring(node) is not None:
            free |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(bool(line.strip()) and not line.strip().startswith("#") and number not in free
               for number, line in enumerate(text.splitlines(), 1))


def test_lines_of_code_are_counted():
    """Catches a count in which a comment, a docstring or a blank line costs something."""
    text = '"""One.\n\nTwo."""\nimport os  # a reason\n\n\ndef f():\n    "Says."\n    # Why.\n'
    assert lines_of_code(text + "    return os\n") == 3


def test_line_budgets():
    """Catches a path from text to loss, or a project, that outgrows an afternoon's reading."""
    size = {path: lines_of_code(path.read_text(encoding="utf-8")) for path in CODE}
    for recipe in RECIPES:  # from text to loss
        assert sum(size[ROOT / name] for name in [recipe, *ALL_SHARE]) <= 500
    assert sum(size.values()) <= 4400
    assert len(README.splitlines()) <= 220


def test_rooms_are_small():
    """Catches a room with more files than a newcomer takes in at a glance."""
    rooms = [path.parent for path in ROOT.glob("minibert/**/*.py")]
    assert len(set(rooms)) == 5
    for room in rooms:
        assert len([*room.glob("*.py")]) <= 12, room


def room_of(file):
    """The room that a file belongs to; the front doors are what users import and start."""
    path = file.relative_to(ROOT).parts
    if path[0] != "minibert":
        return "the scripts"
    if path[1] in ("__init__.py", "__main__.py"):
        return "the front door"
    return path[1] if len(path) > 2 else ""


def imports_of(file):
    """The modules of the package that a file imports, also those inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("minibert"))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import hides its room"
            if (node.module or "").startswith("minibert"):
                # A name may be a module: `from minibert.files import corpus`.
                yield from (f"{node.module}.{name.name}" for name in node.names)


def test_arrows_point_inward():
    """Catches a lesson that imports the laboratory: a recipe that cannot be read without it."""
    rooms = set(MAY_IMPORT) - {"", "the scripts", "the front door"}
    found = {}
    for file in CODE:
        for module in imports_of(file):
            second = module.split(".")[1]
            found.setdefault(room_of(file), set()).add(second if second in rooms else "")
    assert found.keys() == MAY_IMPORT.keys()
    for room, imported in found.items():
        assert imported <= MAY_IMPORT[room], (room, imported - MAY_IMPORT[room])


def test_rooms_say_what_they_are_for():
    """Catches a room that does not say in two lines what is in it and who may import it."""
    for name in set(MAY_IMPORT) - {"", "the scripts", "the front door"}:
        door = ROOT / "minibert" / name / "__init__.py"
        said = ast.get_docstring(ast.parse(door.read_text(encoding="utf-8")))
        assert "import" in said and len(said.splitlines()) <= 5
        assert lines_of_code(door.read_text(encoding="utf-8")) == 0


def test_line_width():
    """Catches lines that do not fit on a page."""
    wide = [f"{path.name}:{number}" for path in [*CODE, *ROOT.glob("tests/**/*.py")]
            for number, line in enumerate(lines(path), 1) if len(line) > 100]
    assert not wide


def test_readme_counts_lines_as_they_are():
    """Catches a reading order whose line counts have rotted."""
    counted = re.findall(r"`([\w/]+\.py)` \((\d+)\)", README)
    assert {name for name, _ in counted} >= {*RECIPES, *ALL_SHARE}
    for name, count in counted:
        assert int(count) == len(lines(ROOT / name)), name


def test_readme_shows_the_published_results():
    """Catches a table in the README that no run in results/ made, and a report of other runs."""
    results = json.loads((ROOT / "results/cpu/results.json").read_text(encoding="utf-8"))
    speed = json.loads((ROOT / "results/cpu/bench.json").read_text(encoding="utf-8"))
    shown = README.split("## The claims, put to the test\n\n")[1].split("\n\n")[0]
    assert shown == verdict_table(results)
    said = README.split("## The claims, put to the test\n\n")[1].split("\n## ")[0]
    found = {f"{one[key]:+.3f}" for claim in results["claims"]
             for one in claim.get("contrasts", []) for key in ("gain", "low", "high")}
    figures = set(re.findall(r"[+-]\d\.\d{3}", said.replace(shown, "")))
    assert len(figures) > 5 and figures <= found
    arms = {name: arm for claim in results["claims"] for name, arm in claim.get("arms", {}).items()}
    mean = lambda name: np.mean([found["mlm_loss"] for found in arms[name]["full-sentences"]])
    assert (f"({mean('hard, random, longer'):.2f} and {mean('full sentences'):.2f})") in said
    for task, floor in (("library", "bag_of_words"), ("same-page", "overlap")):
        done = [[one[task] for one in arm["tasks"]] for arm in arms.values() if arm["tasks"][0]]
        assert max(np.mean([one["score"] for one in seeds]) for seeds in done) < done[0][0][floor]
    drawn = [claim["id"] for claim in results["claims"] if "arms" in claim]
    assert (ROOT / "results/cpu/report.md").read_text(encoding="utf-8") == report(
        results, [*drawn, "curves", "speed"], speed)
    for name in [*drawn, "verdicts", "curves", "speed"]:
        assert (ROOT / f"results/cpu/{name}.png").exists()
    said = README.split("## Speed\n\n")[1].split("\n## ")[0]
    timed = set(re.findall(r"\d+\.\d\d|\d+%", " ".join(speed_lines(speed))))
    figures = set(re.findall(r"\d+\.\d\d|\d+%", said))
    assert len(figures) > 5 and figures <= timed
    models = (ROOT / "results/cpu/models.md").read_text(encoding="utf-8")
    shown = models.split("# Larger models\n\n")[1].split("\n\n`make models`")[0]
    runs = [line.split("|")[1].strip() for line in shown.splitlines()[2:8]]
    assert shown == family_table([str(ROOT / "results" / "cpu" / run) for run in runs])
    curve = re.search(r"steps was ([\d., and\n]+)\.", README)[1]
    log = [json.loads(line) for line in (ROOT / "results/cpu/bert/log.jsonl").open()]
    losses = {line["step"]: line["eval"]["mlm_loss"] for line in log if "eval" in line}
    assert re.findall(r"\d\.\d\d", curve) == [
        f"{losses[step]:.2f}" for step in (500, 1000, 1500, 2000, 3000)]


def test_readme_maps_the_lesson_to_code_and_claims():
    """Catches a sentence whose code was renamed, or whose claim nobody tests."""
    rows = README.split("## The lesson, sentence by sentence\n\n")[1].split("\n\n")[0]
    results = json.loads((ROOT / "results/cpu/results.json").read_text(encoding="utf-8"))
    claims = {claim["id"]: claim for claim in results["claims"]}
    for row in rows.splitlines()[2:]:
        _, said, code, tested, _ = row.split("|")
        for file, name in re.findall(r"`([\w/]+\.py)` `(\w+)`", code):
            assert re.search(rf"^(?:def |class )?{name}\b", (ROOT / file).read_text(), re.M), row
        for claim in re.findall(r"\*\*(\w+)\*\*", tested):
            assert claim in claims, row
        for figure in re.findall(r"\d+%", tested):
            assert figure in claims[re.search(r"\*\*(\w+)\*\*", tested)[1]]["found"], row
        assert "**" in tested or "`" in tested, row
    assert len(rows.splitlines()) > 10

def test_readme_text_to_loss_is_counted():
    """Catches a total that has rotted."""
    shared = sum(len(lines(ROOT / name)) for name in ALL_SHARE)
    said = re.search(r"five files: BERT (\d+) lines, RoBERTa (\d+), DistilBERT (\d+)", README)
    assert [*map(int, said.groups())] == [shared + len(lines(ROOT / name)) for name in RECIPES]


def test_readme_shows_the_recipes_side_by_side(monkeypatch):
    """Catches a table of the three recipes that says what the scripts do not, and scripts
    that differ by more than a screenful."""
    monkeypatch.syspath_prepend(str(ROOT))
    table = README.split("`diff train_roberta.py distill.py`:\n\n")[1].split("\n\n")[0]
    rows = [line.split("|")[2:5] for line in table.splitlines()]
    decay = lambda value: f"{value:g}".removeprefix("0") or "0"
    for script, (name, sequences, loss, _, optimizer) in zip(RECIPES, zip(*rows[:1], *rows[2:])):
        recipe = importlib.import_module(script.removesuffix(".py")).RECIPE
        assert script in name
        assert recipe["input_format"].split("-")[1].rstrip("s") in sequences
        assert ("ten static" if recipe.get("static_masks") == 10 else "dynamic") in sequences
        assert ("NSP" in loss) == recipe["nsp"]
        assert optimizer.strip() == ", ".join([
            decay(recipe["adam_beta2"]), decay(recipe["weight_decay"]),
            f"{recipe['max_grad_norm']:g}" if recipe["max_grad_norm"] else "none"])
    weights = DistillConfig(teacher="-")
    assert loss.strip() == (f"{weights.alpha_mlm:g} MLM + {weights.alpha_kl:g} KL + "
                            f"{weights.alpha_cos:g} cosine")
    changed = lambda one, two: [line for line in difflib.ndiff(lines(ROOT / one), lines(ROOT / two))
                                if line[0] in "+-"]
    assert len(changed(*RECIPES[:2])) <= 50 and len(changed(*RECIPES[1:])) <= 100


def test_planted_bugs_still_apply():
    """Catches a planted bug whose line was rewritten, and which would be planted no more."""
    assert f"plants {len(MUTANTS)} bugs" in README
    for mutant in MUTANTS:
        assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.before) == 1, mutant


def test_readme_names_every_departure():
    """Catches a deliberate difference from the papers that the README keeps quiet about."""
    tagged = sum(line.count("Departure:") for path in CODE for line in lines(path))
    listed = README.split("## Departures")[1].split("\n## ")[0].count("\n- ")
    assert tagged == listed


@pytest.mark.parametrize("command", re.findall(r"^python (?:-m minibert|\w+\.py).*$", README, re.M))
def test_readme_commands_name_flags_that_exist(command):
    """Catches a command in the README that the scripts do not understand."""
    script = re.match(r"python (-m minibert [\w-]+|\w+\.py)", command)[1].split()
    help_text = help_of(*script)
    for flag in re.findall(r"--[\w-]+", command):
        assert flag in help_text, flag


@functools.cache
def help_of(*script):
    """What a script or `-m minibert COMMAND` says of its flags."""
    module, *command = script[1:] if script[0] == "-m" else script
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.syspath_prepend(str(ROOT))
        patch.setattr(sys, "argv", [module, *command, "--help"])
        name = "minibert.__main__" if script[0] == "-m" else module.removesuffix(".py")
        with pytest.raises(SystemExit, match="0"):
            importlib.import_module(name).main()
    return shown.getvalue()


def test_no_package_but_the_named_ones():
    """Catches an import that `make setup` does not install."""
    ours = {path.stem for path in CODE} | {"minibert"}
    allowed = {"numpy", "torch", "tokenizers", "tqdm", "safetensors", "matplotlib", "transformers"}
    for path in CODE:
        for line in lines(path):
            if found := re.match(r"\s*(?:from (\w+)\S* import|import (\w+))", line):
                name = found[1] or found[2]
                assert name in allowed | ours | set(sys.stdlib_module_names), (path, line)
