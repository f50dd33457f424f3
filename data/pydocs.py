"""pydocs: English prose from the docstrings of Python and of packages that come with torch."""
import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from platform import python_version

from download import write_aside

from minibert.errors import run_cli

# pip and setuptools are left out: their versions differ between machines that agree on the rest.
PACKAGES = ["torch", "sympy", "networkx", "numpy", "huggingface_hub", "mpmath", "fsspec",
            "tokenizers", "jinja2", "tqdm"]
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
MIN_WORDS = 6  # of a paragraph
MIN_PROSE = 0.85  # share of letters and spaces in a paragraph; signatures and tables have less
MIN_CHARACTERS = 200  # of a document


def harvest(roots: dict[str, Path], each: Callable = map) -> list[tuple[str, str, str]]:
    """Return (package, module, text) of the modules under `roots` (package -> its folder) that
    hold enough prose, in order of name; files that do not parse are left out. each: `map`, or one
    that shares the files out among processes."""
    files = []
    for package, folder in roots.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if SKIPPED_FOLDERS.isdisjoint(parts[:-1]):
                names = parts if package == "stdlib" else (package, *parts)
                files.append((".".join(names).removesuffix(".__init__"), package, path))
    seen = set()  # over the whole corpus: packages copy from one another
    documents = []
    files.sort()
    for (module, package, _), found in zip(files, each(_paragraphs, [file[2] for file in files])):
        new = [text for text in dict.fromkeys(found) if text not in seen]
        seen.update(new)
        text = "\n".join(new)
        if len(text) >= MIN_CHARACTERS:
            documents.append((package, module, text))
    return documents


def _paragraphs(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old code has invalid escapes in its strings
            docstrings = list(_docstrings(ast.parse(path.read_bytes())))
    except (SyntaxError, ValueError, RecursionError):
        return []
    paragraphs = []
    for block in re.split(r"\n\s*\n", "\n\n".join(docstrings)):
        words = block.split()
        paragraph = " ".join(words)
        prose = sum(map(str.isalpha, paragraph)) + paragraph.count(" ")
        code = any(mark in paragraph for mark in (">>>", "---", "::"))
        # Half of a surrogate pair has no UTF-8 form; it and its like are not printable.
        if (len(words) >= MIN_WORDS and prose >= MIN_PROSE * len(paragraph) and not code
                and paragraph.isprintable()):
            paragraphs.append(paragraph)
    return paragraphs


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield ast.get_docstring(node, clean=False) or ""
    # Only blocks of statements hold definitions; `ast.walk` takes twice as long, in another order.
    for block in ("body", "handlers", "cases", "orelse", "finalbody"):
        for statement in getattr(node, block, []):
            yield from _docstrings(statement)


def main() -> None:
    """Write `pydocs.txt` and, one line a document, `pydocs.tsv`: its package and its module."""
    path = Path(__file__).with_suffix(".txt")
    if path.exists():
        print(f"{path} is already there; delete it to make it again")
        return
    roots = {"stdlib": Path(sysconfig.get_path("stdlib"))}
    versions = [f"python {python_version()}"]
    for package in PACKAGES:
        if spec := find_spec(package):
            roots[package] = Path(spec.submodule_search_locations[0])
            versions.append(f"{package} {version(package)}")
        else:
            print(f"{package} is not installed; going on without it")
    with ProcessPoolExecutor() as pool:
        documents = harvest(roots, partial(pool.map, chunksize=32))
    text = ("\n\n".join(text for _, _, text in documents) + "\n").encode()
    origins = [f"{package}\t{module}\n".encode() for package, module, _ in documents]
    write_aside(path.with_suffix(".tsv"), origins)  # first: whoever finds the text finds this too
    write_aside(path, [text])
    print(f"wrote {path}: {len(documents):,} documents, {len(text.decode()):,} characters")
    print(f"SHA-256 {hashlib.sha256(text).hexdigest()}, from {', '.join(versions)}")


if __name__ == "__main__":
    run_cli(main)
