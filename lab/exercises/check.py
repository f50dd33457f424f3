"""Which pieces of lab/exercises/mine.py are done, and what is wrong with the others.

Each piece takes the place of the package's, and the package's tests are run, up to the first that
fails. Then the piece is compared with the planted bugs on a few small inputs,
and the bug that gives the same values is named.
"""
import argparse
import contextlib
import functools
import importlib
import inspect
import io
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from lab.planted_bugs import MUTANTS, ROOT

from lab.exercises.explained import EXPLAINED
from lab.exercises.pieces import PIECES
from minibert.errors import UserError, run_cli

MINE = ROOT / "lab" / "exercises" / "mine.py"
BLANK = "raise NotImplementedError"


def load(file: Path, name: str = "mine", code: str | None = None) -> ModuleType:
    """A module that nobody can import, of a file or of other code that could stand there."""
    module = ModuleType(name)
    module.__file__ = str(file)
    code = file.read_text(encoding="utf-8") if code is None else code
    exec(compile(code, str(file), "exec"), vars(module))
    return module


def part(module: ModuleType, name: str) -> FunctionType:
    """The function of a module that a piece consists of."""
    found = getattr(module, name)
    return getattr(found, PIECES[name].method) if PIECES[name].method else found


def package(name: str) -> ModuleType:
    return importlib.import_module(f"minibert.{PIECES[name].module}")


@contextlib.contextmanager
def in_place(name: str, written: FunctionType) -> Iterator[None]:
    """Put a function into the package's place, also where it was imported by name."""
    theirs, method = part(package(name), name), PIECES[name].method
    if method:
        places = [getattr(package(name), name)]
    else:
        places = [module for module in sys.modules.values()
                  if getattr(module, "__dict__", {}).get(name) is theirs]
    for place in places:
        setattr(place, method or name, written)
    try:
        yield
    finally:
        for place in places:
            setattr(place, method or name, theirs)


# ---- what a piece is like


def values(name: str, written: FunctionType) -> list[Any]:
    """What a piece gives for the small inputs of its try, up to an error."""
    found = []
    with in_place(name, written), contextlib.suppress(Exception, SystemExit):
        for value in PIECES[name].tried():
            found.append(value)
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal but for rounding; a tuple is compared part by part."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.allclose(
            one.double(), other.double(), rtol=1e-4, atol=1e-7, equal_nan=True)
    return type(one) is type(other) and one == other


def source(function: FunctionType) -> str:
    """The text of a function and of all functions of its module that it leads to."""
    texts, waiting = {}, [function]
    while waiting:
        one = inspect.unwrap(waiting.pop())
        if one not in texts:
            texts[one] = inspect.getsource(one)
            called = [one.__globals__.get(name) for name in one.__code__.co_names]
            waiting += [other for other in called if inspect.isfunction(inspect.unwrap(other))
                        and other.__module__ == function.__module__]
    return "".join(texts.values())


@functools.lru_cache
def bugs(name: str) -> dict[str, FunctionType]:
    """The package's own piece with each bug that is planted in it, by what the bug is called."""
    file = ROOT / "minibert" / f"{PIECES[name].module}.py"
    code, own = file.read_text(encoding="utf-8"), source(part(package(name), name))
    return {bug.says: part(load(file, package(name).__name__, code.replace(bug.before, bug.after)),
                           name)
            for bug in MUTANTS if ROOT / bug.file == file and bug.before in own}


@functools.lru_cache
def known(name: str) -> dict[str, list[Any]]:
    """What the piece gives with each planted bug, and with none (""), where a try can tell."""
    right = values(name, part(package(name), name))
    found = {says: values(name, bug) for says, bug in bugs(name).items()}
    return {"": right} | {says: given for says, given in found.items()
                          if not all(map(same, given, right))}


def mistake(name: str, found: list[Any]) -> str:
    """The planted bug that gives most of a piece's wrong values, "" if there is none.

    It must not be wrong where the piece is right. So of two mistakes in a piece, one is found.
    """
    agree = {}
    for says, given in known(name).items():
        rows = list(zip(found, given, known(name)[""]))
        if all(same(bug, right) for one, bug, right in rows if same(one, right)):
            agree[says] = sum(same(one, bug) and not same(one, right) for one, bug, right in rows)
    return max(agree, key=agree.get)


# ---- what the tests say


class Verdict(NamedTuple):
    state: str  # "done", "wrong" or "blank"
    means: str = ""  # what is wrong, in a sentence
    test: str = ""  # where it was noticed
    printed: str = ""  # by the piece, while it was tested


class Judge:
    """A plugin for pytest: runs the tests of each piece with the piece in the package's place."""

    def __init__(self, answers: dict[str, FunctionType]):
        self.answers, self.verdicts, self.failed = answers, {}, None

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for name, written in self.answers.items():
            self.failed = None
            with in_place(name, written):
                for test in (test for test in session.items if holds(test, name)):
                    test.config.hook.pytest_runtest_protocol(item=test, nextitem=None)
                    if self.failed:
                        break
            self.verdicts[name] = Verdict("done")
            if self.failed:
                self.verdicts[name] = verdict(name, written, *self.failed)
        return True

    def pytest_exception_interact(self, node: pytest.Item, call: pytest.CallInfo,
                                  report: pytest.TestReport) -> None:
        self.failed = node, call.excinfo, report.capstdout


def holds(test: pytest.Item, name: str) -> bool:
    """Whether a test is one of a piece's; golden values are the package's own draws."""
    piece = PIECES[name]
    return (test.path.name == piece.tests and "golden" not in test.name
            and any(word in test.name for word in piece.words.split() or [""]))


def verdict(name: str, written: FunctionType, test: pytest.Item, error: pytest.ExceptionInfo,
            printed: str) -> Verdict:
    """What to say about a piece that failed: the mistake, or else what the test is there for."""
    catches = re.sub(r"^(Would catch[^:]*:|Catches) *| *\(trap [^)]*\)", "",
                     " ".join(inspect.getdoc(test.function).split())).rstrip(".")
    said = error.exconly().removeprefix("AssertionError:").strip().splitlines()[0]
    said = textwrap.shorten(said, 150).rstrip(".")
    means = f"The first test that fails is there to notice: {catches}."
    file = inspect.unwrap(written).__code__.co_filename
    inside = [one for one in error.traceback if str(one.path) == file]
    if inside:
        means = f"{inside[-1].path.name}, line {inside[-1].lineno + 1}, ends with {said}."
    likely = mistake(name, values(name, written))
    return Verdict(
        "wrong", EXPLAINED[likely] if likely else means,
        f"{test.originalname} (tests/{test.path.name}) is there to notice: {catches}. It fails "
        f"with {said}.", printed)


def judge(answers: dict[str, FunctionType]) -> dict[str, Verdict]:
    """The verdict on each piece."""
    plugin = Judge(answers)
    tests = sorted({str(ROOT / "tests" / PIECES[name].tests) for name in answers})
    said = io.StringIO()
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # other packages' plugins take seconds
    with contextlib.redirect_stdout(said), mock.patch.dict(os.environ, alone):
        pytest.main(["--capture=sys", "--tb=native", "-p", "no:cacheprovider", "-p",
                     "no:faulthandler", *tests], plugins=[plugin])
    if len(plugin.verdicts) < len(answers):
        print(said.getvalue()[-2000:])
        name = next(name for name in answers if name not in plugin.verdicts)
        raise UserError(f"the tests stopped before {name} was judged; see above why")
    return plugin.verdicts


# ---- the command


def read_answers(file: Path) -> dict[str, FunctionType]:
    """The pieces of a file like mine.py. Raises UserError where it cannot be read."""
    try:
        module = load(file.resolve())
        return {name: part(module, name) for name in PIECES}
    except Exception as error:
        line = getattr(error, "lineno", None)  # of a SyntaxError
        raise UserError(f"{file}{f', line {line}' if line else ''}: {getattr(error, 'msg', error)};"
                        " mend it, and leave every stub where it is") from None


def hint(stub: FunctionType) -> str:
    """The hint at the end of a stub's docstring."""
    _, begins, says = (stub.__doc__ or "").partition("Hint:")
    return " ".join([begins, *says.split()])


def check(answers: dict[str, FunctionType]) -> dict[str, Verdict]:
    """The verdict on each piece, which is a hint for one that is not written yet."""
    blank = {name: Verdict("blank", hint(one))
             for name, one in answers.items() if BLANK in inspect.getsource(one)}
    written = {name: one for name, one in answers.items() if name not in blank}
    verdicts = blank | (judge(written) if written else {})
    return {name: verdicts[name] for name in answers}


def report(verdicts: dict[str, Verdict]) -> str:
    """A line for each piece, and a paragraph about the first that is not done."""
    lines = [textwrap.fill(f"{name:20}{one.state:7}{one.means if one.state == 'wrong' else ''}",
                           width=90, subsequent_indent=27 * " ") for name, one in verdicts.items()]
    left = [name for name, one in verdicts.items() if one.state != "done"]
    if len(verdicts) > 1:
        lines += ["", f"Done: {len(verdicts) - len(left)} of {len(verdicts)} pieces."]
    if left:
        name, one = left[0], verdicts[left[0]]
        said = one.test if one.state == "wrong" else f"It is not written yet. {one.means}"
        lines += ["", textwrap.fill(f"{name}: {said}", 90)]
        if one.printed:
            lines += [f"{name} printed:", one.printed[-1000:].rstrip()]
    return "\n".join(lines)


def grade(files: list[Path]) -> None:
    """Print a row for each file, with a mark for each piece. A file that hangs has ten minutes."""
    print("\n".join(f"{number:3}  {name}" for number, name in enumerate(PIECES, 1)))
    print("+ done, - wrong, . blank")
    for file in files:
        command = [sys.executable, "-m", "lab.exercises.check", "--mine", str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            states = re.findall(r"^\w+ +(done|wrong|blank)\b", done.stdout, re.M)
            marks = "".join(dict(done="+", wrong="-", blank=".")[state] for state in states)
            said = f"{marks} {marks.count('+'):3}  {file}" if marks else done.stderr.strip()[-300:]
        except subprocess.TimeoutExpired:
            said = f"{file} does not end"
        print(said, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("piece", nargs="?", default="", help="one of the pieces; by default all")
    parser.add_argument("--mine", nargs="+", type=Path, default=[MINE],
                        help="another file like mine.py; of several files, a table is made")
    args = parser.parse_args()
    if args.piece not in ("", *PIECES):
        raise UserError(f"there is no piece {args.piece!r}; take one of {', '.join(PIECES)}")
    if len(args.mine) > 1:
        return grade(args.mine)
    answers = read_answers(args.mine[0])
    verdicts = check({args.piece: answers[args.piece]} if args.piece else answers)
    print(report(verdicts))
    sys.exit(any(one.state != "done" for one in verdicts.values()))


if __name__ == "__main__":
    run_cli(main)
