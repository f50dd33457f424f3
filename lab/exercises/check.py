"""Which pieces of lab/exercises/mine.py are done, and what is wrong with the others.

Each piece takes the place of the package's, and the package's tests of its file are run, up to the
first that fails. Then the piece is compared with the planted bugs on a few small inputs, and the
bug that gives the same values is named.
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

from lab.exercises.explained import EXPLAINED
from lab.exercises.pieces import PIECES
from lab.planted_bugs import MUTANTS, ROOT
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
    piece = getattr(module, name)
    return getattr(piece, PIECES[name].method) if PIECES[name].method else piece


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
    given = []
    with in_place(name, written), contextlib.suppress(Exception, SystemExit):
        for value in PIECES[name].tried():
            given.append(value)
    return given


def same(first: Any, second: Any) -> bool:
    """Whether two values are equal but for rounding; a tuple is compared part by part."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.shape == second.shape and torch.allclose(
            first.double(), second.double(), rtol=1e-4, atol=1e-7, equal_nan=True)
    return type(first) is type(second) and first == second


def source(function: FunctionType) -> str:
    """The text of a function and of all functions of its module that it leads to."""
    texts, waiting = {}, [function]
    while waiting:
        current = inspect.unwrap(waiting.pop())
        if current not in texts:
            texts[current] = inspect.getsource(current)
            named = [current.__globals__.get(name) for name in current.__code__.co_names]
            waiting += [value for value in named if inspect.isfunction(inspect.unwrap(value))
                        and value.__module__ == function.__module__]
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
    wrong = {says: values(name, bug) for says, bug in bugs(name).items()}
    return {"": right} | {says: given for says, given in wrong.items()
                          if not all(map(same, given, right))}


def mistake(name: str, given: list[Any]) -> str:
    """The planted bug that gives most of a piece's wrong values, "" if there is none.

    It must not be wrong where the piece is right. So of two mistakes in a piece, one is found.
    """
    agree = {}
    for says, wrong in known(name).items():
        rows = list(zip(given, wrong, known(name)[""]))
        if all(same(bug, right) for value, bug, right in rows if same(value, right)):
            agree[says] = sum(same(value, bug) and not same(value, right)
                              for value, bug, right in rows)
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
            tests = [test for test in session.items if holds(test, name)]
            with in_place(name, written):
                for test in tests:
                    test.config.hook.pytest_runtest_protocol(item=test, nextitem=None)
                    if self.failed:
                        break
            if self.failed:
                self.verdicts[name] = verdict(name, written, *self.failed)
            elif tests:
                self.verdicts[name] = Verdict("done")
        return True

    def pytest_exception_interact(self, node: pytest.Item, call: pytest.CallInfo,
                                  report: pytest.TestReport) -> None:
        self.failed = node, call.excinfo, report.capstdout


def holds(test: pytest.Item, name: str) -> bool:
    """Whether a test is one of a piece's; golden values are the package's own draws."""
    piece = PIECES[name]
    return (test.path.name == piece.tests and "golden" not in test.name
            and (not piece.named or name in inspect.getsource(test.function)))


def verdict(name: str, written: FunctionType, test: pytest.Item, error: pytest.ExceptionInfo,
            printed: str) -> Verdict:
    """What to say about a piece that failed: the mistake, or else what the test is there for."""
    why = " ".join((inspect.getdoc(test.function) or "it has no docstring.").split())
    message = error.exconly().removeprefix("AssertionError:").strip().splitlines()[0]
    message = textwrap.shorten(message, 150).rstrip(".")
    means = f"The first test that fails says why it is there: {why}"
    file = inspect.unwrap(written).__code__.co_filename
    inside = [entry for entry in error.traceback if str(entry.path) == file]
    if inside:
        means = f"{inside[-1].path.name}, line {inside[-1].lineno + 1}, ends with {message}."
    likely = mistake(name, values(name, written))
    return Verdict(
        "wrong", EXPLAINED[likely] if likely else means,
        f"{test.originalname} (tests/{test.path.name}) says why it is there: {why} It fails with "
        f"{message}.", printed)


def judge(answers: dict[str, FunctionType]) -> dict[str, Verdict]:
    """The verdict on each piece."""
    plugin = Judge(answers)
    tests = sorted({str(ROOT / "tests" / PIECES[name].tests) for name in answers})
    shown = io.StringIO()
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # other packages' plugins take seconds
    with contextlib.redirect_stdout(shown), mock.patch.dict(os.environ, alone):
        pytest.main(["--capture=sys", "--tb=native", "-p", "no:cacheprovider", "-p",
                     "no:faulthandler", *tests], plugins=[plugin])
    if len(plugin.verdicts) < len(answers):
        print(shown.getvalue()[-2000:])
        name = next(name for name in answers if name not in plugin.verdicts)
        raise UserError(f"no test in tests/{PIECES[name].tests} has judged {name}; see above why")
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
    blank = {name: Verdict("blank", hint(answer))
             for name, answer in answers.items() if BLANK in inspect.getsource(answer)}
    written = {name: answer for name, answer in answers.items() if name not in blank}
    verdicts = blank | (judge(written) if written else {})
    return {name: verdicts[name] for name in answers}


def report(verdicts: dict[str, Verdict]) -> str:
    """A line for each piece, and a paragraph about the first that is not done."""
    lines = [textwrap.fill(
        f"{name:20}{verdict.state:7}{verdict.means if verdict.state == 'wrong' else ''}", width=90,
        subsequent_indent=27 * " ") for name, verdict in verdicts.items()]
    left = [name for name, verdict in verdicts.items() if verdict.state != "done"]
    if len(verdicts) > 1:
        lines += ["", f"Done: {len(verdicts) - len(left)} of {len(verdicts)} pieces."]
    if left:
        name, first = left[0], verdicts[left[0]]
        text = first.test if first.state == "wrong" else f"It is not written yet. {first.means}"
        lines += ["", textwrap.fill(f"{name}: {text}", 90)]
        if first.printed:
            lines += [f"{name} printed:", first.printed[-1000:].rstrip()]
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
            row = f"{marks} {marks.count('+'):3}  {file}" if marks else done.stderr.strip()[-300:]
        except subprocess.TimeoutExpired:
            row = f"{file} does not end"
        print(row, flush=True)


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
    sys.exit(any(verdict.state != "done" for verdict in verdicts.values()))


if __name__ == "__main__":
    run_cli(main)
