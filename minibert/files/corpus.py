"""Corpora: `--corpus NAME|PATH` becomes a tokenizer and arrays of tokens on disk, once."""
import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from minibert.config import RunConfig
from minibert.data import SENTENCE_END, TokenizedCorpus, sentences_of, tokenize
from minibert.errors import UserError
from minibert.files.run_folder import sync
from minibert.hashing import hash_bits
from minibert.tokenizer import load_tokenizer, train_tokenizer

DATA = Path(__file__).resolve().parents[2] / "data"
OPENERS = {".txt": open, ".gz": gzip.open, ".xz": lzma.open}
HELD_OUT = 0.08  # share of the documents that no run trains on
SPLITS = ("held-out", "train")
VOCABULARY_TEXT = 20_000_000  # characters of text, at most, that a vocabulary is learned from


def prepare(corpus: str, kind: str = "", vocab_size: int = 0,
            tokenizer: Tokenizer | None = None
            ) -> tuple[Tokenizer, TokenizedCorpus, TokenizedCorpus, str]:
    """Return a corpus's tokenizer, its training and its held-out text, and its fingerprint.

    corpus: the name of a script in data/, or a path. tokenizer: None trains one of this kind and
    size on the training text. What was prepared before is read again, unless the text or the
    tokenizer has changed. Raises UserError when there is no such text, or too little of it.
    """
    path = corpus_path(corpus)
    # An earlier byte-level BPE put a space before each sentence; this one does not.
    trained = f"{kind} {vocab_size}{' unprefixed' * (kind == 'bpe')}"
    fingerprint = _fingerprint(path, tokenizer.to_str() if tokenizer else trained)
    prepared = Path(os.environ.get("MINIBERT_PREPARED", DATA / "prepared"))
    folder = prepared / f"{path.name.split('.')[0]}-{fingerprint[:12]}"
    if not _is_whole(folder):
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
        temporary.mkdir(parents=True)
        try:
            _prepare(path, temporary, kind, vocab_size, tokenizer)
            sync(*temporary.iterdir(), temporary)
            if not _is_whole(folder):  # something is missing there, or another version made it
                shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # unless another run was faster: its arrays are the same
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return (load_tokenizer(folder / "tokenizer.json"), load_corpus(folder, "train"),
            load_corpus(folder, "held-out"), fingerprint)


def _is_whole(folder: Path) -> bool:
    arrays = [f"{split}.{name}.npy" for split in SPLITS for name in TokenizedCorpus._fields]
    return all((folder / name).exists() for name in ["tokenizer.json", *arrays])


def _prepare(path: Path, folder: Path, kind: str, vocab_size: int,
             tokenizer: Tokenizer | None) -> None:
    sizes = [sum(map(len, document)) for document in read_documents(path)]
    count = len(sizes)
    if count < 4:
        raise UserError(f"{path} holds {count} documents; at least 4 are needed, some of them to "
                        "evaluate on: name more text, with a blank line between documents")
    order, held_out = document_order(count), held_out_documents(count)
    if tokenizer is None:
        in_order = [number for number in order.tolist() if number not in held_out]
        before = accumulate((sizes[number] for number in in_order), initial=0)
        sample = {number for number, read in zip(in_order, before) if read < VOCABULARY_TEXT}
        sentences = lambda: (sentence for number, document in enumerate(read_documents(path))
                             if number in sample for sentence in sentences_of(document))
        tokenizer = train_tokenizer(sentences, kind, vocab_size)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    _write_arrays(tokenize(read_documents(path), tokenizer), folder, order, len(held_out),
                  np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32)


def _write_arrays(documents: Iterator[tuple[list[int], list[int]]], folder: Path,
                  order: np.ndarray, held_out: int, dtype: type) -> None:
    """Write what `tokenize` yields as two corpora: "held-out", the first of `order`, and "train".

    order: (documents,) int64, a permutation. held_out: how many of it are held out.
    """
    tokens, lengths = [], []  # by document: its tokens, and how many are in each sentence
    for ids, sentences in documents:
        tokens.append(np.array(ids, dtype))
        lengths.append(np.array(sentences, np.int64))
    for split, chosen in zip(SPLITS, (order[:held_out], order[held_out:])):
        chosen = [document for document in chosen if len(lengths[document])]
        if not chosen:
            raise UserError("too few documents hold any text; add some, with a blank line between")
        counts = np.array([len(lengths[document]) for document in chosen])
        own = np.concatenate([lengths[document] for document in chosen])
        ends = own.cumsum() + np.arange(len(chosen)).repeat(counts)  # a [SEP] after each document
        arrays = TokenizedCorpus(
            tokens=np.concatenate([tokens[document] for document in chosen]),
            sentences=np.stack([ends - own, ends], 1),
            first_sentences=np.append(0, counts.cumsum()))
        for name, array in arrays._asdict().items():
            np.save(folder / f"{split}.{name}.npy", array)


def load_corpus(folder: Path, split: str) -> TokenizedCorpus:
    """The "train" or "held-out" split that `_write_arrays` wrote; its arrays stay on disk."""
    return TokenizedCorpus(*(np.load(folder / f"{split}.{name}.npy", mmap_mode="r")
                             for name in TokenizedCorpus._fields))


def training_part(corpus: TokenizedCorpus, run: RunConfig) -> TokenizedCorpus:
    """Return the part of the text that a run trains on: its first --data-tokens, or all of it.

    Raises UserError when the text does not hold as many tokens.
    """
    if run.data_tokens > len(corpus.tokens):
        raise UserError(f"--data-tokens {run.data_tokens} is more than the {len(corpus.tokens)} "
                        "tokens that the text has; ask for less, or use more text")
    return corpus.first_tokens(run.data_tokens) if run.data_tokens else corpus


def document_order(count: int) -> np.ndarray:
    """A shuffled order of documents, (count,) int64: any first part of it is a fair sample."""
    return np.array(sorted(range(count), key=lambda number: hash_bits("documents", number)))


def held_out_documents(count: int) -> set[int]:
    """The numbers of the documents that no run trains on: the first in `document_order`."""
    return set(document_order(count)[:max(2, round(HELD_OUT * count))].tolist())


def corpus_path(corpus: str) -> Path:
    """The file or folder of a corpus; where it is missing, its script in data/ makes it.

    Raises UserError when there is no such text.
    """
    names = {file.stem for file in DATA.glob("*.py")
             if file.stem != "download" and not file.stem.startswith("tasks_")}
    path, made = Path(corpus), DATA / f"{corpus}.txt"
    if not path.exists():
        if corpus in names and not made.exists():
            run_data_script(corpus)
        path = made if made.exists() else path
    if not corpus or not path.exists():
        raise UserError(f"there is no corpus {corpus!r}: no such path, and the names are "
                        f"{', '.join(sorted(names))}")
    if not text_files(path):
        raise UserError(f"{path} does not hold a .txt, .gz or .xz file; name a folder that does")
    return path


def text_files(path: Path) -> list[Path]:
    """The file itself, or a folder's .txt, .gz and .xz files, sorted by name."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in OPENERS and file.is_file())


def read_documents(path: Path) -> Iterator[list[str]]:
    """The documents of a text file or of a folder of them, each as a list of its lines.

    A blank line ends a document. Raises UserError when a file is no text, not UTF-8 or cut short.
    """
    for file in text_files(path):
        document: list[str] = []
        try:
            with OPENERS.get(file.suffix, open)(file, "rt", encoding="utf-8-sig") as lines:
                for line in lines:
                    if "\0" in line:
                        raise UserError(f"{file} holds a NUL, as a binary file or UTF-16 does; "
                                        "remove it, or convert the file to UTF-8")
                    if line := line.strip():
                        document.append(line)
                    elif document:
                        yield document
                        document = []
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 ({error.reason}); convert it first") from None
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise UserError(f"{file} cannot be unpacked ({error}); copy it again") from None
        if document:
            yield document


def run_data_script(name: str, *arguments: str) -> None:
    """Run data/`name`.py in a process of its own; if it fails, it says why and this one ends."""
    paths = os.pathsep.join([str(DATA.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, DATA / f"{name}.py", *arguments],
                          env={**os.environ, "PYTHONPATH": paths})
    if done.returncode:
        sys.exit(done.returncode)


def _fingerprint(path: Path, tokenizer: str) -> str:
    """SHA-256 of everything that the arrays depend on: settings, and every byte of the text."""
    settings = f"{tokenizer} {HELD_OUT} {SENTENCE_END.pattern}"
    digest = hashlib.sha256(settings.encode())
    for file in text_files(path):
        content = hashlib.sha256()
        with open(file, "rb") as blocks:
            while block := blocks.read(2**20):
                content.update(block)
        digest.update(content.digest())
    return digest.hexdigest()


def describe(corpus: str, kind: str, vocab_size: int) -> str:
    """Prepare a corpus and describe in one line what it holds."""
    _, text, held_out, fingerprint = prepare(corpus, kind, vocab_size)
    return (f"{corpus}: {text.num_documents:,} documents, {len(text.sentences):,} sentences, "
            f"{len(text.tokens):,} tokens to train on; {held_out.num_documents:,} documents, "
            f"{len(held_out.tokens):,} tokens held out; fingerprint {fingerprint[:12]}")
