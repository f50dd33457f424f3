"""The program that changes every line, and the list of its changes that make no difference."""
import pytest
from mechanical import changes
from mutants import EVERY_LINE, ROOT, equivalent

pytestmark = pytest.mark.promises
EXAMPLE = '''"""A docstring, and not code."""
import os


def area(width: "a type, not code", height=2.0):
    if width < 0 or not height:
        raise ValueError(f"{width} is no width")
    size = (width - 1) / height  # a comment
    print("of", size, end="", flush=True)
    return size if width else 0, -1
'''
CHANGED = '''
def area(width: "a type, not code", height=4.0):
if width <= 0 or not height:
if width < 1 or not height:
if width < 0 and not height:
if width < 0 or height:
if not (width < 0 or not height):
pass
size = (width + 1) / height
size = (1 - width) / height
size = (width - 2) / height
size = (width - 1) * height
size = height / (width - 1)
pass
print(size, end="", flush=True)
print(size, "of", end="", flush=True)
print('of?', size, end="", flush=True)
print("of", end="", flush=True)
print("of", size, flush=True)
print("of", size, end='?', flush=True)
print("of", size, end="")
print("of", size, end="", flush=False)
return 0 if width else size, -1
return -1, size if width else 0
return size if width else 1, -1
return size if width else 0, 1
return size if width else 0, -2
'''


def test_every_kind_of_change_is_made():
    """Catches a kind of change that is left out, made twice, or made where it means nothing."""
    found = changes(EXAMPLE)
    assert sorted(change.after for change in found) == sorted(CHANGED.strip().splitlines())
    for change in found:
        assert change.before in EXAMPLE and change.text.count("\n") == EXAMPLE.count("\n")
        assert EXAMPLE.splitlines()[change.line - 1].strip().startswith(change.before)


def test_explained_changes_are_still_made():
    """Catches an explanation of a line that was rewritten: look at the new line's changes, too."""
    made = {(file, change.before, change.after) for file in EVERY_LINE
            for change in changes((ROOT / file).read_text(encoding="utf-8"))}
    assert not set(equivalent()) - made
    assert all(why.endswith(".") for why in equivalent().values())
