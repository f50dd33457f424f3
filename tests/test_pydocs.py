"""The embedded corpus, harvested from a small made-up standard library and package."""
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO / "data"))
import pydocs  # noqa: E402

LONG = "This sentence is here so that a small module has two hundred characters " * 3
A = "".join(f"{LONG}and it belongs to number {word}.\n\n" for word in ("one", "two"))
FILES = {
    "stdlib/bee.py": f'"""{LONG}bee."""',
    "stdlib/zebra.py": f'"""{LONG}zebra."""',
    "stdlib/test/test_zebra.py": f'"""{LONG}test."""',
    "stdlib/site-packages/other.py": f'"""{LONG}other."""',
    "stdlib/broken.py": f'"""{LONG}broken."""\nprint "two"',
    "stdlib/null.py": f'"""{LONG}null."""\n\0',
    "stdlib/short.py": '"""Only one small paragraph, which is not enough for a document."""',
    "package/__init__.py": f'"""{LONG}root."""',
    "package/tests.py": f'"""{LONG}no test folder."""',
    "package/sub/b.py": f'"""{LONG}zebra.\n\n{LONG}new."""',
    "package/sub/a.py": f'"""{A}{A}"""',
    "package/sub/deep.py": f'"""{LONG}deep."""\nif 1:\n  0\n' + "elif 2:\n  0\n" * 1100,
}


@pytest.fixture
def roots(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content.encode())
    return {"stdlib": tmp_path / "stdlib", "package": tmp_path / "package"}


def harvest_one(tmp_path, source):
    """The paragraphs of one module; a long last one lets the module pass the minimum."""
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "m.py").write_bytes(f'{source}\nclass Last:\n    "{LONG}end."\n'.encode())
    [(package, module, text)] = pydocs.harvest({"p": tmp_path / "p"})
    assert (package, module) == ("p", "p.m") and text.endswith(f"{LONG}end.")
    return text.split("\n")[:-1]


def test_documents_are_modules_in_order(roots):
    """Would catch: the order of the file system, wrong dotted names, test folders or installed
    packages counted as the standard library, a file that does not parse ending the harvest."""
    documents = pydocs.harvest(roots)
    assert [(package, module) for package, module, _ in documents] == [
        ("stdlib", "bee"), ("package", "package"), ("package", "package.sub.a"),
        ("package", "package.sub.b"), ("package", "package.tests")]
    assert documents[2][2] == A.strip().replace("\n\n", "\n")


def test_copies_are_removed_over_the_whole_corpus(roots):
    """Would catch: copies sought in one file only, or not there, or the last one kept."""
    texts = {module: text for _, module, text in pydocs.harvest(roots)}
    assert texts["package.sub.a"] == A.strip().replace("\n\n", "\n")
    assert texts["package.sub.b"] == f"{LONG}zebra.\n{LONG}new."
    assert "zebra" not in texts  # all of it stood in package.sub.b


def test_document_minimum(tmp_path):
    """Would catch: 199 characters kept, or 200 dropped."""
    text = ("word " * 50)[:198] + "e"
    for name, docstring in (("a", text), ("b", text + "s")):
        (tmp_path / f"{name}.py").write_text(f'"{docstring}"')
    assert [module for _, module, _ in pydocs.harvest({"p": tmp_path})] == ["p.b"]


@pytest.mark.parametrize("paragraph, kept", [
    ("six words are enough for this", True),
    ("five words are not enough", False),
    ("this paragraph shows how >>> is used in it", False),
    ("this paragraph has a rule --- in the middle", False),
    ("this paragraph ends before a listing of code::", False),
    ("letters ab cd ef gh ij kl mn op qr 12345 6", True),  # 36 of 42 are letters and spaces
    ("letters ab cd ef gh ij kl mn op qr 1234567", False),  # 34 of 42
    ("\u03bc\u03b7\u03bd\u03b9\u03bd \u03b1\u03b5\u03b9\u03b4\u03b5 is Greek to me here", True),
    ("half a surrogate pair \\ud800 has no form in a file", False),
])
def test_paragraph_rules(tmp_path, paragraph, kept):
    """Would catch: a rule left out, off by one, or counting ASCII letters only."""
    assert harvest_one(tmp_path, f'"""{paragraph}"""') == ([paragraph] if kept else [])


def test_paragraphs_are_joined_and_in_file_order(tmp_path):
    """Would catch: `ast.walk`, which goes level by level; lines left apart; definitions inside
    other statements or functions missed; text that is no docstring taken."""
    source = '''"""The first paragraph of the module
    goes on in a second line.
    \t
    The second paragraph of it stands alone.
    """
"This string is not a docstring of anything at all."
if True:
    class One:
        """The class is the third one in order."""
        async def method(self):
            r"""The method is the fourth one in order."""
            def inner():
                """The function inside is the fifth in order."""
    try:
        pass
    except ValueError:
        def handler():
            """The handler is the sixth one in order."""
    else:
        def other():
            """The other branch is the seventh in order."""
    finally:
        match 1:
            case 1:
                def case():
                    """The case at the end is the eighth in order."""
'''
    assert harvest_one(tmp_path, source) == [
        "The first paragraph of the module goes on in a second line.",
        "The second paragraph of it stands alone.",
        "The class is the third one in order.",
        "The method is the fourth one in order.",
        "The function inside is the fifth in order.",
        "The handler is the sixth one in order.",
        "The other branch is the seventh in order.",
        "The case at the end is the eighth in order."]


def test_invalid_escapes_are_silent(tmp_path):
    """Would catch: a hundred warnings about other people's code on the learner's screen."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        harvest_one(tmp_path, '"""Old code writes escapes like \\d in its docstrings."""')
    assert caught == []


def run_main(monkeypatch, roots, folder):
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(pydocs, "__file__", str(folder / "pydocs.py"))
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(roots["stdlib"]))
    monkeypatch.setattr(pydocs, "PACKAGES", ["package", "no_such_package"])
    monkeypatch.setattr(pydocs, "version", lambda name: "1.2")
    monkeypatch.syspath_prepend(str(roots["package"].parent))
    pydocs.main()


def test_text_and_origins_agree(roots, tmp_path, monkeypatch, capsys):
    """Would catch: documents run together, a line of the tsv too many, a missing package that ends
    the harvest, a package that is imported, finished work done again."""
    (roots["package"] / "sub" / "c.py").write_text(f'"""{LONG}\u00e9."""\nraise SystemExit')
    run_main(monkeypatch, roots, tmp_path / "out")
    text = (tmp_path / "out" / "pydocs.txt").read_bytes().decode()
    documents = text.removesuffix("\n").split("\n\n")
    origins = (tmp_path / "out" / "pydocs.tsv").read_text().splitlines()
    assert origins == ["stdlib\tbee", "package\tpackage", "package\tpackage.sub.a",
                       "package\tpackage.sub.b", "package\tpackage.sub.c",
                       "package\tpackage.tests"]
    assert [document.split()[-1] for document in documents] == [
        "bee.", "root.", "two.", "new.", "\u00e9.", "folder."]
    said = capsys.readouterr().out
    assert "no_such_package is not installed" in said and "package 1.2" in said
    assert f"6 documents, {len(text):,} characters" in said
    assert pydocs.hashlib.sha256(text.encode()).hexdigest() in said
    (tmp_path / "out" / "pydocs.txt").write_text("mine")
    run_main(monkeypatch, roots, tmp_path / "out")
    assert (tmp_path / "out" / "pydocs.txt").read_text() == "mine"
    assert "already there" in capsys.readouterr().out


def test_text_never_stands_without_its_origins(roots, tmp_path, monkeypatch):
    """Would catch: a run killed between the two files, the text being what counts as finished."""
    def fail(path, blocks):
        raise OSError(f"disk full at {path.name}")

    monkeypatch.setattr(pydocs, "write_aside", fail)
    with pytest.raises(OSError, match="pydocs.tsv"):
        run_main(monkeypatch, roots, tmp_path / "out")


def test_same_text_whatever_the_hash_seed_and_locale(roots, tmp_path):
    """Would catch: the order of a set, or a file read in the locale's encoding."""
    for script in (REPO / "data").glob("*.py"):
        shutil.copy(script, tmp_path)
    # Only what the script needs of the package: the real one takes seconds to import torch.
    (tmp_path / "minibert").mkdir()
    (tmp_path / "minibert" / "__init__.py").touch()
    shutil.copy(REPO / "minibert" / "errors.py", tmp_path / "minibert")
    (roots["package"] / "sub" / "d.py").write_bytes(f'"""{A}{LONG}\u00e9t\u00e9."""'.encode())
    folders = ", ".join(f"{name!r}: pydocs.Path({str(path)!r})" for name, path in roots.items())
    code = f"import pydocs; print(ascii(pydocs.harvest({{{folders}}})))"
    outputs = []
    for seed, locale in (("1", "C"), ("2", "C.UTF-8")):
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": seed,
                                    "LC_ALL": locale, "PYTHONUTF8": "0"}
        outputs.append(subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True,
                                      env=environment, capture_output=True, text=True).stdout)
    assert outputs[0] == outputs[1] and "\\xe9t\\xe9" in outputs[0]
