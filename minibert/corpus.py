"""Prepared corpora: `--corpus NAME|PATH` becomes a tokenizer and token arrays on disk, once."""
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from minibert.data import (SENTENCE_END, Text, load_text, read_documents, text_files,
                           tokenize)
from minibert.errors import UserError
from minibert.masking import hash_bits
from minibert.tokenizer import load_tokenizer, train_tokenizer

DATA = Path(__file__).resolve().parent.parent / "data"
HELD_OUT = 0.08  # share of the documents that no run trains on


def prepare(corpus: str, kind: str, vocab_size: int, tokenizer: Tokenizer | None = None
            ) -> tuple[Tokenizer, Text, Text, str]:
    """The corpus as the tokenizer, the training text, the held-out text and a fingerprint.

    corpus: the name of a script in data/, or a path. tokenizer: None trains one of this kind and
    size on the training text. What was prepared before is read, as long as neither text nor
    tokenizer changed. Raises UserError when there is no such text, or too little of it.
    """
    path = _find(corpus)
    fingerprint = _fingerprint(path, tokenizer.to_str() if tokenizer else f"{kind} {vocab_size}")
    prepared = Path(os.environ.get("MINIBERT_PREPARED", DATA / "prepared"))
    folder = prepared / f"{path.name.split('.')[0]}-{fingerprint[:12]}"
    if not folder.exists():
        aside = folder.with_name(f"{folder.name}.{os.getpid()}")
        aside.mkdir(parents=True)
        try:
            _prepare(path, aside, kind, vocab_size, tokenizer)
            aside.rename(folder)
        except OSError:
            if not folder.exists():  # another run was faster; its arrays are the same
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return (load_tokenizer(folder / "tokenizer.json"), load_text(folder, "train"),
            load_text(folder, "held-out"), fingerprint)


def _prepare(path: Path, folder: Path, kind: str, vocab_size: int,
             tokenizer: Tokenizer | None) -> None:
    count = sum(1 for _ in read_documents(path))
    if count < 4:
        raise UserError(f"{path} holds {count} documents; at least 4 are needed, some of them to "
                        "evaluate on: put a blank line between documents")
    # One draw gives the split and a shuffled order, in which any first part is a fair sample.
    order = np.array(sorted(range(count), key=lambda number: hash_bits("documents", number)))
    held_out = max(2, round(HELD_OUT * count))
    if tokenizer is None:
        training = set(order[held_out:].tolist())
        sentences = lambda: (sentence for number, document in enumerate(read_documents(path))
                             if number in training for sentence in document)
        tokenizer = train_tokenizer(sentences, kind, vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenize(read_documents(path), tokenizer, folder, order, held_out)


def _find(corpus: str) -> Path:
    """The file or folder of a corpus; a name's script in data/ makes it where it is not there."""
    script = DATA / f"{corpus}.py"
    path = Path(corpus)
    if corpus.isidentifier() and script.exists() and not path.exists():
        path = DATA / f"{corpus}.txt"
        if not path.exists():
            paths = os.pathsep.join([str(DATA.parent), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run([sys.executable, script], env={**os.environ, "PYTHONPATH": paths})
            if done.returncode:  # the script has said why
                sys.exit(done.returncode)
    if not corpus or not path.exists():
        names = ", ".join(sorted({file.stem for file in DATA.glob("*.py")} - {"download"}))
        raise UserError(f"there is no corpus {corpus!r}: no such path, and the names are {names}")
    if not text_files(path):
        raise UserError(f"{path} holds no .txt, .gz or .xz file; name a folder that does")
    return path


def _fingerprint(path: Path, tokenizer: str) -> str:
    """SHA-256 of all that the arrays depend on: settings, and every byte of the text."""
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
    """Prepare a corpus and say in one line what it holds."""
    _, text, held_out, fingerprint = prepare(corpus, kind, vocab_size)
    return (f"{corpus}: {len(text.documents) - 1:,} documents, {len(text.bounds):,} sentences, "
            f"{len(text.tokens):,} tokens to train on; {len(held_out.documents) - 1:,} documents, "
            f"{len(held_out.tokens):,} tokens held out; fingerprint {fingerprint[:12]}")
