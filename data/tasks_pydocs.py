"""Two tasks made of pydocs: which library a paragraph is from, and are two of the same page."""
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from download import write_aside

from minibert.errors import run_cli
from minibert.files.corpus import held_out_documents, corpus_path
from minibert.masking import hash_bits

MIN_DOCUMENTS = 100  # of a library that is a class: fewer leave too little to be held out
ROWS = {"train": 500, "dev": 200}  # at most, of each library
PAIRS = {"train": 1, "dev": 4}  # at most, of each page; a row each, and one that is no pair

Document = tuple[str, list[str]]  # its package, and its paragraphs in a drawn order


def documents(text: str, origins: str) -> list[Document]:
    """pydocs.txt and pydocs.tsv as documents; each one's paragraphs in an order of their own."""
    found = []
    for number, (page, origin) in enumerate(zip(text.strip().split("\n\n"), origins.splitlines())):
        paragraphs = page.split("\n")
        order = sorted(range(len(paragraphs)), key=lambda i: hash_bits("paragraphs", number, i))
        found.append((origin.split("\t")[0], [paragraphs[i] for i in order]))
    return found


def libraries(pages: list[Document], rows: int, classes: set[str]) -> Iterator[str]:
    """Rows of label and text: every page's first paragraph before any's second, libraries in turn.

    >>> pages = [("a", ["one", "two"]), ("b", ["three"]), ("a", ["four"]), ("c", ["five"])]
    >>> list(libraries(pages, 2, {"a", "b"}))
    ['label\\ttext', 'a\\tone', 'b\\tthree', 'a\\tfour']
    """
    yield "label\ttext"
    found = {}
    for name in sorted(classes):
        theirs = [paragraphs for package, paragraphs in pages if package == name]
        deepest = max(map(len, theirs), default=0)
        found[name] = [page[i] for i in range(deepest) for page in theirs if i < len(page)]
    yield from (f"{name}\t{theirs[row]}" for row in range(rows) for name, theirs in found.items()
                if row < len(theirs))


def same_page(pages: list[Document], pairs: int) -> Iterator[str]:
    """Rows of label and two texts: of one page ("same"), or of two of one package ("other").

    Every paragraph stands in one row of each label and on the same side, so that neither text
    alone tells anything; and the package does not, either.
    >>> pages = [("p", ["a", "b"]), ("p", ["c", "d", "e"]), ("q", ["f", "g"])]
    >>> list(same_page(pages, 1))[1:]
    ['same\\ta\\tb', 'other\\ta\\td', 'same\\tc\\td', 'other\\tc\\tb']
    """
    yield "label\ttext_a\ttext_b"
    packages: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for number, (package, page) in enumerate(pages):
        packages[package] += [(number, page[2 * i], page[2 * i + 1])
                              for i in range(min(pairs, len(page) // 2))]
    for found in packages.values():
        # A page has at most `pairs` neighbours in this list: so far on, there is another page.
        others = found[pairs:] + found[:pairs]
        if any(one[0] == other[0] for one, other in zip(found, others)):
            continue  # a package of so few pages that the last meet the first
        for (_, a, b), (_, _, other) in zip(found, others):
            yield from (f"same\t{a}\t{b}", f"other\t{a}\t{other}")


def main() -> None:
    """Write data/tasks/{library,same-page}/{train,dev}.tsv, dev from documents never trained on."""
    text = corpus_path("pydocs")
    pages = documents(text.read_text(encoding="utf-8"),
                      text.with_suffix(".tsv").read_text(encoding="utf-8"))
    held_out = held_out_documents(len(pages))
    parts = {"train": [page for number, page in enumerate(pages) if number not in held_out],
             "dev": [page for number, page in enumerate(pages) if number in held_out]}
    packages = [package for package, _ in pages]
    classes = {name for name in packages if packages.count(name) >= MIN_DOCUMENTS}
    for part in ("dev", "train"):  # in this order: whoever finds train.tsv finds both
        for name, rows in (("library", libraries(parts[part], ROWS[part], classes)),
                           ("same-page", same_page(parts[part], PAIRS[part]))):
            _write(text.parent / "tasks" / name / f"{part}.tsv", rows)


def _write(path: Path, rows: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, (f"{row}\n".encode() for row in rows))


if __name__ == "__main__":
    run_cli(main)
