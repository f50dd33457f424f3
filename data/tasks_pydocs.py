"""Three tasks made of pydocs: a text's library, a sentence's word order, and its two halves."""
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, zip_longest
from pathlib import Path

from download import write_aside

from minibert.data import sentences_of
from minibert.errors import run_cli
from minibert.files.corpus import held_out_documents, corpus_path
from minibert.masking import hash_bits

MIN_DOCUMENTS = 100  # of a library that is a class: fewer leave too little to be held out
ROWS = {"train": 500, "dev": 200}  # at most, of each library
CHOICES = 1000  # rows of word-order and of halves, one of a sentence
WORDS = range(8, 31)  # in a sentence: a shorter one says too little, a longer one is cut off

Document = tuple[str, list[str]]  # its package, and its paragraphs in a drawn order


def documents(text: str, origins: str) -> list[Document]:
    """Return the pages of pydocs.txt and pydocs.tsv, the paragraphs of each in a drawn order."""
    found = []
    for number, (page, origin) in enumerate(zip(text.strip().split("\n\n"), origins.splitlines())):
        paragraphs = page.split("\n")
        order = sorted(range(len(paragraphs)), key=lambda i: hash_bits("paragraphs", number, i))
        found.append((origin.split("\t")[0], [paragraphs[i] for i in order]))
    return found


def in_turns(pages: Iterable[list]) -> list:
    """Return every page's first item, then every page's second, and so on.

    A first part of this list has as many pages as it can, so a long page does not fill a task.
    >>> in_turns([["a", "b"], ["c"], ["d", "e"]])
    ['a', 'c', 'd', 'b', 'e']
    """
    rounds = zip_longest(*pages)  # pages that have ended give None
    return [item for item in chain.from_iterable(rounds) if item is not None]


def libraries(pages: list[Document], rows: int, classes: set[str]) -> Iterator[str]:
    """Yield rows of label and text: which library does this paragraph come from?

    >>> pages = [("a", ["one", "two"]), ("b", ["three"]), ("a", ["four"]), ("c", ["five"])]
    >>> list(libraries(pages, 2, {"a", "b"}))
    ['label\\ttext', 'a\\tone', 'b\\tthree', 'a\\tfour']
    """
    yield "label\ttext"
    found = {name: in_turns(paragraphs for package, paragraphs in pages if package == name)
             for name in sorted(classes)}
    yield from (f"{name}\t{theirs[row]}" for row in range(rows) for name, theirs in found.items()
                if row < len(theirs))


def sentences(pages: list[Document]) -> list[tuple[str, list[str]]]:
    """Return (package, words) of the pages' sentences of a fitting length, pages in turns."""
    return in_turns(
        [(package, words) for sentence in sentences_of(paragraphs)
         if len(words := sentence.split()) in WORDS]
        for package, paragraphs in pages)


def bigrams(pages: list[Document]) -> Callable[[list[str]], float]:
    """Return a function from words to their log-likelihood by pairs of neighbouring words alone.

    The pairs are counted in the pages; one that was never seen gets a share of its second word's
    own frequency. Source: "stupid backoff", Brants et al. 2007, section 4.
    """
    words, pairs = Counter(), Counter()
    for text in chain.from_iterable(paragraphs for _, paragraphs in pages):
        read = text.lower().split()
        words.update(read)
        pairs.update(zip(read, read[1:]))
    unseen = 0.4 / sum(words.values())

    def likelihood(read: list[str]) -> float:
        read = [word.lower() for word in read]
        return sum(math.log(pairs[a, b] / words[a] if pairs[a, b] else unseen * (words[b] + 1))
                   for a, b in zip(read, read[1:]))
    return likelihood


def word_order(pages: list[Document], number: int, likelihood: Callable) -> Iterator[str]:
    """Yield rows of two texts and a slice: a sentence, and the same with two neighbours exchanged.

    Of all exchanges it is the one that `likelihood`, which knows pairs of neighbouring words, finds
    the most tempting. So neither counting words nor counting pairs of them is of any use. The
    slice says which words are scored: the exchanged ones and one on each side. The first and the
    last word stay, because a capital letter or a full stop inside a sentence would give it away.
    >>> pages = [("p", ["A cat that sat on the mat purred."])]
    >>> list(word_order(pages, 1, lambda words: words.index("on")))[1]
    'A cat that sat on the mat purred.\\tA cat that sat the on mat purred.\\t3:7'
    """
    yield "right\twrong\tscored"
    for _, words in sentences(pages)[:number]:
        exchanged = {i: [*words[:i], words[i + 1], words[i], *words[i + 2:]]
                     for i in range(1, len(words) - 2) if words[i].lower() != words[i + 1].lower()}
        if exchanged:
            i = max(exchanged, key=lambda i: likelihood(exchanged[i]))
            yield f"{' '.join(words)}\t{' '.join(exchanged[i])}\t{i - 1}:{i + 3}"


def halves(pages: list[Document], number: int) -> Iterator[str]:
    """Yield rows of two texts and a slice: a sentence, and its second half behind another's first.

    The other first half is of the same package, so the topic does not give the answer away. The
    slice says which words are scored, counted from the end: the second half, which is the same in
    both, so what differs is how well it follows from the first.
    >>> pages = [("p", ["a b c d e f g h"]), ("p", ["i j k l m n o p"]), ("q", ["alone " * 8])]
    >>> list(halves(pages, 3))[1:]
    ['a b c d e f g h\\ti j k l e f g h\\t-4:', 'i j k l m n o p\\ta b c d m n o p\\t-4:']
    """
    yield "right\twrong\tscored"
    packages: dict[str, list[list[str]]] = defaultdict(list)
    for package, words in sentences(pages)[:number]:
        packages[package].append(words)
    for found in packages.values():
        for words, other in zip(found, found[1:] + found[:1]):
            second = words[len(words) // 2:]
            wrong = other[:len(other) // 2] + second
            if wrong != words:  # a package may have a single sentence
                yield f"{' '.join(words)}\t{' '.join(wrong)}\t{-len(second)}:"


def bigram_score(rows: list[str], likelihood: Callable) -> float:
    """Return how often `likelihood` finds the right text likelier; a tie counts half.

    rows: as `halves` yields them, of which it reads what is scored and the word before it.
    >>> bigram_score(["a b c\\tc b c\\t-2:"], lambda words: words.count("a"))
    1.0
    """
    won = 0.0
    for right, wrong, scored in (row.split("\t") for row in rows):
        first, last = (int(part) if part else None for part in scored.split(":"))
        better, worse = (likelihood(text.split()[first - 1:last]) for text in (right, wrong))
        won += (better > worse) + 0.5 * (better == worse)
    return won / len(rows)


def main() -> None:
    """Write the three tasks; no run trains on the documents of a dev.tsv."""
    text = corpus_path("pydocs")
    pages = documents(text.read_text(encoding="utf-8"),
                      text.with_suffix(".tsv").read_text(encoding="utf-8"))
    held_out = held_out_documents(len(pages))
    parts = {"train": [page for number, page in enumerate(pages) if number not in held_out],
             "dev": [page for number, page in enumerate(pages) if number in held_out]}
    packages = [package for package, _ in pages]
    classes = {name for name in packages if packages.count(name) >= MIN_DOCUMENTS}
    tasks = text.parent / "tasks"
    likelihood = bigrams(parts["train"])
    for name, rows in (("word-order", [*word_order(parts["dev"], CHOICES, likelihood)]),
                       ("halves", [*halves(parts["dev"], CHOICES)])):
        floor = {"bigrams": bigram_score(rows[1:], likelihood)}
        _write(tasks / name / "floors.json", [json.dumps(floor)])
        _write(tasks / name / "dev.tsv", rows)
    for part in ("dev", "train"):  # in this order: whoever finds train.tsv finds both
        _write(tasks / "library" / f"{part}.tsv", libraries(parts[part], ROWS[part], classes))


def _write(path: Path, rows: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, (f"{row}\n".encode() for row in rows))


if __name__ == "__main__":
    run_cli(main)
