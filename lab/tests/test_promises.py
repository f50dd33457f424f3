"""What the documents promise: files, figures, links and commands, and every departure by name."""
import ast
import contextlib
import functools
import importlib
import io
import json
import re
import sys

import pytest
import torch
from conftest import ROOT

from lab.claims import CLAIMS
from lab.exact import EXACT
from lab.planted_bugs import MUTANTS
from lab.report import readme_table
from minibert.config import DistillConfig
from minibert.tools.table import family_table

pytestmark = pytest.mark.promises
SCRIPTS = ["train_bert.py", "train_roberta.py", "distill.py"]  # each with its paper's RECIPE
CODE = [*ROOT.glob("*.py"), *ROOT.glob("minibert/**/*.py"), *ROOT.glob("data/*.py")]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
         for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")),
                      ROOT / "data/README.md", ROOT / "lab/exercises/README.md"]}


def published(name):
    """A JSON file of the published run."""
    return json.loads((ROOT / "results/cpu" / name).read_text(encoding="utf-8"))


def section(page, heading):
    """What stands under a heading of a page, up to the next heading of its level."""
    level = heading.split(" ")[0]
    return PAGES[page].split(f"{heading}\n\n")[1].split(f"\n{level} ")[0]


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def flags_in(text):
    """Every flag that a command or a help text names."""
    return re.findall(r"(?<!\w)--[a-z][\w-]*", text)


@functools.cache
def help_of(*script):
    """What a script, `-m minibert COMMAND` or `-m lab COMMAND` says of its flags."""
    module, *command = script[1:] if script[0] == "-m" else script
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.syspath_prepend(str(ROOT))
        patch.setattr(sys, "argv", [module, *command, "--help"])
        name = f"{module}.__main__" if script[0] == "-m" else module.removesuffix(".py")
        with pytest.raises(SystemExit, match="0"):
            importlib.import_module(name).main()
    return shown.getvalue()


# The code.


def test_lesson_does_without_the_laboratory():
    """Catches an import of lab/ in the lesson or in its tests, which `rm -r lab` would break."""
    assert not [path for path in [*CODE, *ROOT.glob("tests/**/*.py")]
                if re.search(r"^ *(from|import) lab\b", path.read_text(encoding="utf-8"), re.M)]


def test_no_package_but_the_named_ones():
    """Catches an import that `make setup` does not install, so that a script ends at once."""
    ours = {path.stem for path in CODE} | {"minibert"}
    allowed = {"numpy", "torch", "tokenizers", "tqdm", "safetensors", "matplotlib", "transformers"}
    for path in CODE:
        for line in lines(path):
            if imported := re.match(r"\s*(?:from (\w+)\S* import|import (\w+))", line):
                name = imported[1] or imported[2]
                assert name in allowed | ours | set(sys.stdlib_module_names), (path, line)


def test_planted_bugs_still_apply():
    """Catches a planted bug whose line was rewritten, and which would be planted no more."""
    for mutant in MUTANTS:
        assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.before) == 1, mutant


def test_every_departure_is_listed():
    """Catches a deliberate difference from the papers that the documents keep quiet about."""
    tagged = sum(line.count("Departure:") for path in CODE for line in lines(path))
    assert tagged == PAGES["docs/departures.md"].count("\n- ")


def test_citation_is_of_this_version():
    """Catches a version or a licence that was changed in one place only."""
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert f"\nversion: {version}\n" in cited
    assert f"\nlicense: {(ROOT / 'LICENSE').read_text().split()[0]}\n" in cited


# Files, names, links and commands.


def test_readme_tree_is_the_project_s():
    """Catches a file of the lesson that the reading order lacks, and one that is not there."""
    tree = section("README.md", "## Reading order").split("```")[1].strip().splitlines()
    named, numbers = [], []
    for line in tree:
        names, number = re.fullmatch(r" *((?:[\w/.]+, )*[\w/.]+) +(\d?) *.*", line).groups()
        folder = "minibert/" if line.startswith(" ") else ""  # the one that is unfolded
        named += [folder + name for name in names.split(", ")]
        numbers += [int(number)] if number else []
    for name in named:
        assert (ROOT / name).exists(), name
    files = {f"minibert/{path.name}" for path in ROOT.glob("minibert/*.py")}
    folders = {f"minibert/{path.parent.name}/" for path in ROOT.glob("minibert/*/__init__.py")}
    assert (files | folders) - set(named) == {"minibert/__init__.py", "minibert/__main__.py"}
    assert sorted(numbers) == list(range(1, 9))


# Papers, and threads in issue trackers.
OUTSIDE = r"https://(arxiv\.org/abs/|github\.com/[\w-]+/[\w.-]+/(issues|pull)/\d)"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Catches a page that points to a file which was moved or renamed."""
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]):
        assert re.match(OUTSIDE, link) or (folder / link).exists(), link
    for path in re.findall(r"`((?:minibert|lab|tests|docs|results)/[\w./-]+\.\w+)`", PAGES[page]):
        assert (ROOT / path).exists(), path


def defined_in(file):
    """The functions, classes and constants of a file."""
    names = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("page, least", [("docs/lesson.md", 30), ("docs/claims.md", 10)])
def test_pointers_lead_into_the_code(page, least):
    """Catches a pointer, a file and a name in it, to what was renamed or moved."""
    pointers = re.findall(r"`([\w/]+\.py)`\s+`(\w+)`", PAGES[page])
    assert len(pointers) > least
    for file, name in pointers:
        assert name in defined_in(file), (file, name)


# The commands of docs/extending.md are executed by lab/tests/slow_extending.py, and those of the
# exercises, which have settings in variables, are read by lab/tests/test_exercises.py.
COMMANDS = sorted({command for name, page in PAGES.items()
                   if name not in ("docs/extending.md", "lab/exercises/README.md")
                   for command in re.findall(
                       r"^(?:\$ )?(python (?:-m (?:minibert|lab) |\w+\.py).*)$", page, re.M)})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_flags_that_exist(command):
    """Catches a command in README or docs that the scripts do not understand."""
    script = re.match(r"python (-m \w+ [\w-]+|\w+\.py)", command)[1].split()
    known = help_of(*script)
    if script[-1] == "walk":  # it takes the flags of the recipe's script as well
        name = re.search(r"walk (\w+)", command)[1]
        known += help_of("distill.py" if name == "distilbert" else f"train_{name}.py")
    assert set(flags_in(command)) <= set(flags_in(known))


# Figures.


def test_readme_shows_the_published_results():
    """Catches a table in the README that no run in results/ made."""
    results = published("results.json")
    shown = section("README.md", "## Results")
    assert readme_table(results) in shown, (
        f"put this into the README, under Results:\n\n{readme_table(results)}")
    assert all(len(line) <= 110 for line in shown.splitlines())
    for claim in [*EXACT, *(claim.id for claim in CLAIMS)]:
        assert f"\n**{claim}**: *" in PAGES["docs/claims.md"], f"{claim} is not explained"


def test_lesson_is_mapped_to_claims():
    """Catches a sentence of the lesson whose claim nobody tests."""
    rows = section("docs/claims.md", "## The lesson, sentence by sentence").split("\n\n")[0]
    for row in rows.splitlines()[2:]:
        named = re.findall(r"\*\*(\w+)\*\*", row.split("|")[3])
        assert named or "`python" in row
        assert {*EXACT, *(claim.id for claim in CLAIMS)}.issuperset(named), row


def test_larger_models_are_as_published():
    """Catches a table of `make models`, or a curve, that its logs do not say."""
    models = (ROOT / "results/cpu/models.md").read_text(encoding="utf-8")
    shown = models.split("# Larger models\n\n")[1].split("\n\n`make models`")[0]
    folders = [str(ROOT / "results/cpu" / line.split("|")[1].strip())
               for line in shown.splitlines()[2:8]]
    assert shown == family_table(folders)
    curve = re.search(r"after ([\d, and]+) steps\s+was ([\d., and]+) \(",
                      " ".join(PAGES["docs/measuring.md"].split()))
    log = [json.loads(line) for line in (ROOT / "results/cpu/bert/log.jsonl").open()]
    losses = {line["step"]: line["eval"]["mlm_loss"] for line in log if "eval" in line}
    steps = [int(step) for step in re.findall(r"\d+", curve[1])]
    assert re.findall(r"\d\.\d\d", curve[2]) == [f"{losses[step]:.2f}" for step in steps]
    roberta = published("roberta/metrics.json")["full-sentences"]
    assert f"about {roberta['mlm_loss']:.1f} nats" in README
    assert f"gets {roberta['unigram_entropy']:.2f}:" in README


def test_readme_shows_the_recipes_side_by_side(monkeypatch):
    """Catches a table of the three recipes that says what the scripts do not."""
    monkeypatch.syspath_prepend(str(ROOT))
    said = section("README.md", "## The three scripts, side by side")
    table = said[said.index("| |"):].split("\n\n")[0]
    rows = [line.split("|")[2:5] for line in table.splitlines()]
    decay = lambda value: f"{value:g}".removeprefix("0") or "0"
    for script, (name, sequences, loss, _, optimizer) in zip(SCRIPTS, zip(*rows[:1], *rows[2:])):
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


def test_measuring_shows_how_alike_positions_are(teachers, capsys):
    """Catches a snippet that the code has outgrown, and a share of something else: it is 0 where
    all positions are the same, and 1 where they have nothing in common."""
    [code] = re.findall(r"^```python\n(.+?)^```", PAGES["docs/measuring.md"], re.M | re.S)
    names, long = {}, code[code.index("text = "):code.index("\n\n\ndef")]
    exec(code.replace(long, 'text = "ba be. bi bo ba."').replace(
        "runs/demo", str(teachers / "roberta")), names)
    shares = [float(share) for share in capsys.readouterr().out.split()]
    assert len(shares) == 4 and all(0 < share < 1 for share in shares)
    for hidden in ([[1.0, 2.0], [1.0, 2.0]], [[1.0, 0.0], [-1.0, 0.0]]):
        names["show_share"](None, None, torch.tensor([hidden]))
    assert capsys.readouterr().out == "0.00 1.00 "
