"""Small changes to every line of a file, made by a program, so that nobody chooses them.

A change swaps an operator for its neighbour, moves a constant, drops an argument, exchanges two
things, turns a condition round, or leaves a statement out. tests/mutants.py plants them.
"""
import ast
import contextlib
import re
from collections.abc import Iterator
from os.path import commonprefix
from typing import NamedTuple

# The operators that ast names, as they are written, and what takes their place.
OPERATORS = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "*"), ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.BitXor: ("^", "|"),
    ast.RShift: (">>", "<<"), ast.LShift: ("<<", ">>"),
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"), ast.Or: ("or", "and"),
}
ORDERED = {ast.Sub: "-", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
           ast.MatMult: "@"}
SIGNS = {ast.USub: "-", ast.Invert: "~", ast.Not: "not "}


class Change(NamedTuple):
    """One change of a file; `before` and `after` are the lines that differ, without indentation."""
    line: int
    before: str
    after: str
    text: str  # the file with the change


def changes(text: str) -> list[Change]:
    """Every change of a Python file that this program can make, each once, in the file's order."""
    found = {text: None}
    for start, end, new in sorted(_edits(text)):
        changed = (text.encode()[:start] + new.encode() + text.encode()[end:]).decode()
        with contextlib.suppress(SyntaxError):  # where half of a pair of brackets was left
            ast.parse(changed)
            found.setdefault(changed, Change(*_difference(text, changed), changed))
    return list(found.values())[1:]


def _difference(text: str, changed: str) -> tuple[int, str, str]:
    """The number of the first line that differs, and the lines that do, before and after."""
    one, two = text.splitlines(), changed.splitlines()
    above = len(commonprefix([one, two]))
    below = len(commonprefix([one[above:][::-1], two[above:][::-1]]))
    lines = [" ".join(re.sub("  # .*", "", line).strip()  # a comment may change without harm
                      for line in all_lines[above:len(all_lines) - below])
             for all_lines in (one, two)]
    return above + 1, *lines


def _edits(text: str) -> Iterator[tuple[int, int, str]]:
    """Where a change begins and ends in the bytes of a file, and what takes that place."""
    lines, source = text.encode().splitlines(keepends=True), text.encode()
    starts = [sum(map(len, lines[:number])) for number in range(len(lines))]

    def begin(node):
        return starts[node.lineno - 1] + node.col_offset

    def end(node):
        return starts[node.end_lineno - 1] + node.end_col_offset

    def written(node):
        return source[begin(node):end(node)].decode()

    def operator(left, kind, right):
        """The change of an operator between two nodes; there may be brackets around it, too."""
        old, new = OPERATORS[kind]
        gap = source[end(left):begin(right)].decode()
        return end(left), begin(right), gap.replace(old, new, 1)

    def exchange(one, two):
        return begin(one), end(two), (
            written(two) + source[end(one):begin(two)].decode() + written(one))

    def exchange_operands(node, sign):
        at = source.index(sign.encode(), end(node.left))
        left, right = source[begin(node):at], source[at + len(sign):end(node)]
        return begin(node), end(node), f"{right.decode().strip()} {sign} {left.decode().strip()}"

    for node in _worth_a_change(ast.parse(text)):
        if isinstance(node, ast.BinOp):
            if type(node.op) in OPERATORS:
                yield operator(node.left, type(node.op), node.right)
            if type(node.op) in ORDERED:  # a - b is not b - a
                yield exchange_operands(node, ORDERED[type(node.op)])
        elif isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
            yield operator(node.target, type(node.op), node.value)
        elif isinstance(node, ast.Compare):
            for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators):
                yield operator(left, type(op), right)
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:]):
                yield operator(left, type(node.op), right)
        elif isinstance(node, ast.UnaryOp):
            yield begin(node), begin(node) + len(SIGNS[type(node.op)]), ""
        elif isinstance(node, ast.Constant) and node.value is not None:
            yield begin(node), end(node), _other_constant(node.value)
        elif isinstance(node, ast.IfExp):
            yield exchange(node.body, node.orelse)
        elif isinstance(node, ast.Tuple | ast.List):
            for one, two in zip(node.elts, node.elts[1:]):
                yield exchange(one, two)
        elif isinstance(node, ast.Call):
            given = sorted([*node.args, *node.keywords], key=begin)
            for number, one in enumerate(given):
                if number + 1 < len(given):
                    yield begin(one), begin(given[number + 1]), ""
                elif number:
                    yield end(given[number - 1]), end(one), ""
                else:
                    yield begin(one), end(one), ""
            for one, two in zip(node.args, node.args[1:]):
                yield exchange(one, two)
        if isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Compare):
            yield begin(node.test), end(node.test), f"not ({written(node.test)})"
        sets_an_attribute = isinstance(node, ast.Assign) and isinstance(
            node.targets[0], ast.Attribute)
        if sets_an_attribute or isinstance(node, ast.Expr | ast.AugAssign | ast.Raise):
            yield begin(node), end(node), "pass"


def _other_constant(value: object) -> str:
    if isinstance(value, bool):
        return repr(not value)
    if isinstance(value, str):
        return repr(value + "?")
    return repr(value + 1 if isinstance(value, int) else 2 * value or 1.0)


def _worth_a_change(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but imports, docstrings, types, decorators, and the texts of messages."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr):
        return
    yield node
    if isinstance(node, ast.Raise):
        return
    for field, children in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in children if isinstance(children, list) else [children]:
            is_text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if isinstance(child, ast.AST) and not is_text:
                yield from _worth_a_change(child)
