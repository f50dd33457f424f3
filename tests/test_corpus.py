"""Corpora: which documents are read, trained on, held out, prepared again or refused."""
import gzip
import hashlib
import itertools
import lzma
import random
import re
from pathlib import Path

import numpy as np
import pytest

from minibert.data import sentences_of as cut
from minibert.errors import UserError
from minibert.files import corpus
from minibert.files.corpus import describe, prepare, read_documents
from minibert.tokenizer import BYTE_BPE, WORDPIECE, special_ids, train_tokenizer

SIZES = {"wordpiece": 70, "bpe": 280}
KINDS = list(SIZES)
WORDS = "amber birch cedar daisy ember fern grove hazel ivory jade kelp lilac".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXT = [f"{word} grows near the northern harbour wall" for word in WORDS]


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    """A data/ of each test's own, so that nothing is written into the real one."""
    monkeypatch.setattr(corpus, "DATA", tmp_path / "data")
    monkeypatch.setenv("MINIBERT_PREPARED", str(tmp_path / "data" / "prepared"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def write_text(path, documents):
    """A text file of documents, each a list of sentences."""
    path.write_text("\n\n".join("\n".join(document) for document in documents), encoding="utf-8")
    return str(path)


def make_documents(count):
    """`count` documents of three sentences, no two alike; each has all letters, so none is new."""
    names = [f"{one} and {two}" for one in WORDS for two in WORDS]
    return [[f"the {names[n]} grow here", f"{' '.join(LETTERS)} a{LETTERS}",
             f"so do {WORDS[n % 12]} vines"] for n in range(count)]


def sentences_of(text, tokenizer):
    """The documents of a corpus, decoded."""
    sentences = [tokenizer.decode(text.tokens[start:end].tolist()).strip()
                 for start, end in text.sentences]
    first = text.first_sentences
    return [sentences[start:end] for start, end in zip(first, first[1:])]


# The documents of a file or folder.


def test_blank_lines_separate_documents(tmp_path):
    """Would catch: blank lines that make empty documents, or spaces that join two."""
    file = tmp_path / "a.txt"
    file.write_text("\n \n one\ntwo\n\n\n \t \nthree  \n\n")
    assert list(read_documents(file)) == [["one", "two"], ["three"]]


@pytest.mark.parametrize("content", ["", "\n\n", " \n\t\n  ", "\ufeff\n"])
def test_text_without_text(tmp_path, content):
    """Would catch: an empty document out of an empty file or one of white space."""
    file = tmp_path / "a.txt"
    file.write_text(content, encoding="utf-8")
    assert list(read_documents(file)) == []


def test_last_document_without_a_line_end(tmp_path):
    """Would catch: the last document lost when no blank line follows it."""
    file = tmp_path / "a.txt"
    file.write_text("one\n\ntwo")
    assert list(read_documents(file)) == [["one"], ["two"]]


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    """Would catch: an invisible character in the first word; "\\r" taken for a word."""
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
    assert list(read_documents(file)) == [["one", "two"], ["three"]]


@pytest.mark.parametrize("name, opener", [("a.txt", open), ("a.gz", gzip.open),
                                          ("a.txt.gz", gzip.open), ("a.xz", lzma.open)])
def test_packed_files(tmp_path, name, opener):
    """Would catch: a packed file read as it is."""
    with opener(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write("größer 大\n\nzwei\n")
    assert list(read_documents(tmp_path / name)) == [["größer 大"], ["zwei"]]


def test_any_file_that_is_named_is_text(tmp_path):
    """Would catch: a file of another ending refused, although it was named itself."""
    (tmp_path / "corpus.md").write_text("one\n")
    assert list(read_documents(tmp_path / "corpus.md")) == [["one"]]


def test_folder_is_read_in_order(tmp_path):
    """Would catch: the order of the disk, another one on each machine; other files read as text."""
    for name in ("c.txt", "a/z.txt", "b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with gzip.open(tmp_path / "a.gz", "wt") as file:
        file.write("packed")
    (tmp_path / "notes.md").write_text("no")
    (tmp_path / "image.png").write_bytes(b"\xff\xd8")
    assert list(read_documents(tmp_path)) == [["a/z.txt"], ["packed"], ["b.txt"], ["c.txt"]]


def test_files_of_a_folder_do_not_run_together(tmp_path):
    """Would catch: the last document of a file joined with the first of the next."""
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_text("two\n")
    assert list(read_documents(tmp_path)) == [["one"], ["two"]]


def test_folder_with_the_name_of_a_file(tmp_path):
    """Would catch: a folder called old.txt opened as if it were a file."""
    (tmp_path / "old.txt").mkdir()
    (tmp_path / "old.txt" / "a.txt").write_text("one\n")
    assert list(read_documents(tmp_path)) == [["one"]]


@pytest.mark.parametrize("before", [3, 20_000])
def test_file_that_is_not_utf8(tmp_path, before):
    """Would catch: a traceback, or an error that does not name the file or the right byte."""
    file = tmp_path / "latin1.txt"
    file.write_bytes(b"a" * before + b"\xe9\n")
    with pytest.raises(UserError, match="latin1.txt") as caught:
        list(read_documents(file))
    named = re.search(r"byte (\d+)", str(caught.value))
    assert named is None or int(named[1]) == before


def cut_short(packed):
    return packed[:len(packed) // 2]


def damaged(packed):
    middle = len(packed) // 2
    return packed[:middle] + b"\xff" * 40 + packed[middle + 40:]


def no_archive(packed):
    return b"this is text\n" * 20


@pytest.mark.parametrize("harm", [cut_short, damaged, no_archive])
@pytest.mark.parametrize("name, pack", [("a.gz", gzip.compress), ("a.xz", lzma.compress)])
def test_broken_archive(tmp_path, name, pack, harm):
    """Would catch: a traceback when a download broke off; half of a corpus taken for all."""
    draw = random.Random(0)
    text = " ".join(str(draw.random()) for _ in range(5000)).encode()
    (tmp_path / name).write_bytes(harm(pack(text)))
    with pytest.raises(UserError, match=name):
        list(read_documents(tmp_path / name))


# Training and held-out text.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count, held_out_count", [(4, 2), (12, 2), (50, 4)])
def test_held_out_documents_are_not_trained_on(tmp_path, kind, count, held_out_count):
    """Would catch: a document in both parts, or in none, or a part of one in each."""
    documents = make_documents(count)
    tokenizer, text, held_out, _ = prepare(write_text(tmp_path / "a.txt", documents), kind,
                                           SIZES[kind])
    train, rest = sentences_of(text, tokenizer), sentences_of(held_out, tokenizer)
    assert len(rest) == held_out_count
    assert sorted(train + rest) == sorted(documents)


def test_held_out_documents_are_drawn(tmp_path):
    """Would catch: the last documents held out, which differ from the first, or file order kept."""
    documents = make_documents(50)
    tokenizer, text, held_out, _ = prepare(write_text(tmp_path / "a.txt", documents), "bpe", 280)
    train, rest = sentences_of(text, tokenizer), sentences_of(held_out, tokenizer)
    assert sorted(rest) not in (sorted(documents[:4]), sorted(documents[-4:]))
    in_order = [document for document in documents if document in train]
    assert train not in (in_order, in_order[::-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_separator_after_each_document(tmp_path, kind):
    """Would catch: bounds shifted by the separators, or tokens in no sentence."""
    path = write_text(tmp_path / "a.txt", make_documents(12))
    tokenizer, *texts, _ = prepare(path, kind, SIZES[kind])
    for text in texts:
        ends = text.sentences[text.first_sentences[1:] - 1, 1]
        assert (text.tokens[ends] == special_ids(tokenizer).sep).all()
        starts = np.append(text.sentences[:, 0], len(text.tokens))
        gaps = starts[1:] - text.sentences[:, 1]
        last_sentences = text.first_sentences[1:] - 1
        assert starts[0] == 0 and np.flatnonzero(gaps).tolist() == last_sentences.tolist()
        assert gaps.sum() == text.num_documents and text.tokens.dtype == np.uint16


def test_tokenizer_is_trained_on_training_documents_only(tmp_path):
    """Would catch: a vocabulary with the words of the held-out text in it."""
    own = [chr(ord("一") + n) for n in range(24)]  # each document has a character of its own
    path = write_text(tmp_path / "a.txt", [["the northern wall", sign * 3] for sign in own])
    tokenizer, text, held_out, _ = prepare(path, "wordpiece", 45)
    unknown = special_ids(tokenizer).unk
    assert len(set(own) & set(tokenizer.get_vocab())) == 22
    assert (text.tokens != unknown).all()
    assert (held_out.tokens == unknown).sum() == 2 * 3


def test_a_large_text_gives_a_sample_for_the_vocabulary(tmp_path, monkeypatch):
    """Would catch: hours of counting words, a sample of the first documents of the file, and one
    that takes in held-out text."""
    monkeypatch.setattr(corpus, "VOCABULARY_TEXT", 9 * len("the northern wall" + 3 * "一"))
    own = [chr(ord("一") + n) for n in range(24)]
    path = write_text(tmp_path / "a.txt", [["the northern wall", sign * 3] for sign in own])
    tokenizer, text, held_out, _ = prepare(path, "wordpiece", 32)
    known = [sign for sign in own if sign in tokenizer.get_vocab()]
    assert len(known) == 9 and known not in (own[:9], own[-9:])
    unknown = np.flatnonzero(text.tokens == special_ids(tokenizer).unk)
    assert len(unknown) == 3 * (22 - 9) and unknown[0] > text.sentences[2 * 9 - 1, 1]
    assert (held_out.tokens == special_ids(tokenizer).unk).sum() == 2 * 3


def test_names_of_special_tokens_in_a_text(tmp_path):
    """Would catch: "[MASK]" or "</s>" written in a text read as the special token."""
    for kind, names in (("wordpiece", WORDPIECE), ("bpe", BYTE_BPE)):
        documents = [[f"{name} is a name, and so is x{name}y", *TEXT] for name in names * 2]
        path = write_text(tmp_path / f"{kind}.txt", documents)
        tokenizer, *texts, _ = prepare(path, kind, SIZES[kind])
        for text in texts:
            found = np.isin(text.tokens, list(special_ids(tokenizer)))
            ends = text.sentences[text.first_sentences[1:] - 1, 1]
            assert np.flatnonzero(found).tolist() == ends.tolist()
        given = prepare(path, "", 0, tokenizer)[1]  # the same with a tokenizer that was loaded
        assert np.array_equal(given.tokens, prepare(path, kind, SIZES[kind])[1].tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_without_tokens_are_left_out(tmp_path, kind):
    """Would catch: documents of no sentence, on which the next step stumbles."""
    documents = make_documents(12) + [["\u200b"], ["\x01"]]
    path = write_text(tmp_path / "a.txt", documents)
    _, text, held_out, _ = prepare(path, kind, SIZES[kind])
    for part in (text, held_out):
        assert (np.diff(part.first_sentences) > 0).all() and (np.diff(part.sentences) > 0).all()


def test_padding_and_truncation_of_a_given_tokenizer(tmp_path):
    """Would catch: its padding or cut done to each sentence, or taken from the caller."""
    path = write_text(tmp_path / "a.txt", make_documents(12))
    tokenizer = train_tokenizer(lambda: TEXT, "bpe", 280)
    plain = prepare(path, "", 0, tokenizer)[1]
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>")
    tokenizer.enable_truncation(8)
    assert np.array_equal(prepare(path, "", 0, tokenizer)[1].tokens, plain.tokens)
    assert tokenizer.padding and tokenizer.truncation and not tokenizer.encode_special_tokens


# Prepared once, and again when something changed.


def test_prepared_once(tmp_path, monkeypatch, data_folder):
    """Would catch: minutes of work repeated at every start, or other tokens at the second one."""
    path = write_text(tmp_path / "a.txt", make_documents(12))
    first = prepare(path, "bpe", 280)
    monkeypatch.setattr(corpus, "_prepare", None)  # a call would be an error
    second = prepare(path, "bpe", 280)
    assert first[0].to_str() == second[0].to_str() and first[3] == second[3]
    for one, two in zip(first[1] + first[2], second[1] + second[2]):
        assert np.array_equal(one, two)
    assert len(list((data_folder / "prepared").iterdir())) == 1


def test_prepared_anew_where_an_array_is_missing(tmp_path, data_folder):
    """Would catch: a folder of an older version, or one that somebody tidied up, which is never
    mended."""
    path = write_text(tmp_path / "a.txt", make_documents(8))
    before = prepare(path, "wordpiece", 70)
    [lost] = data_folder.glob("prepared/*/train.sentences.npy")
    lost.unlink()
    after = prepare(path, "wordpiece", 70)
    assert after[3] == before[3] and np.array_equal(after[1].sentences, before[1].sentences)


def test_prepared_anew_when_something_changed(tmp_path):
    """Would catch: the tokens of an older text, vocabulary or tokenizer used as if it were this."""
    draw = random.Random(0)  # words of random letters, so that both kinds can have 280 entries
    documents = [[*document, "".join(draw.sample(LETTERS, 26))] for document in make_documents(12)]
    path, seen = tmp_path / "a.txt", []

    def again(kind="bpe", vocab_size=280, tokenizer=None):
        seen.append(prepare(str(path), kind, vocab_size, tokenizer))

    write_text(path, documents)
    again()
    again(vocab_size=290)
    again(kind="wordpiece")
    again(tokenizer=train_tokenizer(lambda: TEXT, "bpe", 280))
    again(tokenizer=train_tokenizer(lambda: TEXT[:6], "bpe", 280))
    path.write_text(path.read_text().replace("amber", "zebra"))  # as long as before
    again()
    assert len({fingerprint for *_, fingerprint in seen}) == 6
    assert [found[0].get_vocab_size() for found in seen] == [280, 290, 280, 280, 280, 280]
    for old, new in itertools.combinations(seen, 2):
        assert not np.array_equal(old[1].tokens, new[1].tokens)


def test_change_in_a_folder_is_seen(tmp_path):
    """Would catch: a file added to a folder, or changed, passed over; a folder read as a file."""
    folder = tmp_path / "folder"
    (folder / "old.txt").mkdir(parents=True)
    write_text(folder / "a.txt", make_documents(12))
    prints = [prepare(str(folder), "bpe", 280)[3]]
    write_text(folder / "b.txt", make_documents(1))
    prints.append(prepare(str(folder), "bpe", 280)[3])
    write_text(folder / "b.txt", make_documents(2))
    prints.append(prepare(str(folder), "bpe", 280)[3])
    (folder / "notes.md").write_text("not read")
    prints.append(prepare(str(folder), "bpe", 280)[3])
    assert len(set(prints[:3])) == 3 and prints[3] == prints[2]


def test_fingerprint_is_that_of_the_content(tmp_path):
    """Would catch: a fingerprint of path, date or Python version: two machines cannot compare."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_text(tmp_path / name / "c.txt", make_documents(12))
    one, two = (prepare(str(tmp_path / name / "c.txt"), "bpe", 280) for name in ("a", "b"))
    content = hashlib.sha256((tmp_path / "a" / "c.txt").read_bytes()).digest()
    settings = f"bpe 280 unprefixed {corpus.HELD_OUT} {corpus.SENTENCE_END.pattern}"
    assert one[3] == two[3] == hashlib.sha256(settings.encode() + content).hexdigest()


def test_where_it_is_kept(tmp_path, data_folder, monkeypatch):
    """Would catch: MINIBERT_PREPARED passed over, or needed where it is not set."""
    path = write_text(tmp_path / "a.txt", make_documents(12))
    monkeypatch.setenv("MINIBERT_PREPARED", str(tmp_path / "elsewhere"))
    prepare(path, "bpe", 280)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1
    assert list(data_folder.iterdir()) == []
    monkeypatch.delenv("MINIBERT_PREPARED")
    prepare(path, "bpe", 280)
    assert len(list((data_folder / "prepared").iterdir())) == 1


def test_failed_preparation_leaves_nothing(tmp_path, data_folder, monkeypatch):
    """Would catch: half-written arrays that the next start takes for finished ones."""
    path = write_text(tmp_path / "a.txt", make_documents(12))
    with pytest.raises(UserError):
        prepare(path, "bpe", 5000)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "tokenize", stop)  # the tokenizer is written, the tokens are not
        with pytest.raises(KeyboardInterrupt):
            prepare(path, "bpe", 280)
    assert list((data_folder / "prepared").iterdir()) == []
    assert len(prepare(path, "bpe", 280)[1].tokens) > 0


def test_two_runs_prepare_at_once(tmp_path, data_folder, monkeypatch):
    """Would catch: the slower of two runs ending in an error, or leaving its folder behind."""
    path = write_text(tmp_path / "a.txt", make_documents(12))
    real = corpus._prepare

    def slow(path, folder, *rest):
        real(path, folder, *rest)
        monkeypatch.setattr(corpus.os, "getpid", lambda: 0)  # the other run, which is faster
        monkeypatch.setattr(corpus, "_prepare", real)
        prepare(str(path), "bpe", 280)

    monkeypatch.setattr(corpus, "_prepare", slow)
    assert len(prepare(path, "bpe", 280)[1].tokens) > 0
    assert len(list((data_folder / "prepared").iterdir())) == 1


@pytest.mark.parametrize("name", ["mein größer Text é.txt", "a.b.txt", "日本.txt", "noending"])
def test_names_with_spaces_and_accents(tmp_path, name):
    """Would catch: a path that is split at a space or cannot be made a folder's name."""
    write_text(tmp_path / name, make_documents(12))
    assert len(prepare(str(tmp_path / name), "bpe", 280)[1].first_sentences) == 11


def test_packed_text_is_the_same_text(tmp_path):
    """Would catch: a .gz tokenized as it is, without unpacking."""
    path = write_text(tmp_path / "a.txt", make_documents(12))
    (tmp_path / "a.gz").write_bytes(gzip.compress(Path(path).read_bytes()))
    plain, packed = prepare(path, "bpe", 280)[1], prepare(str(tmp_path / "a.gz"), "bpe", 280)[1]
    assert np.array_equal(plain.tokens, packed.tokens)


def test_describe(tmp_path):
    """Would catch: numbers of the wrong part of the text in the line that a learner reads."""
    path = write_text(tmp_path / "a.txt", make_documents(12))
    _, text, held_out, fingerprint = prepare(path, "bpe", 280)
    assert describe(path, "bpe", 280) == (
        f"{path}: 10 documents, 30 sentences, {len(text.tokens)} tokens to train on; "
        f"2 documents, {len(held_out.tokens)} tokens held out; fingerprint {fingerprint[:12]}")


# Names and what goes wrong.

MAKES_TEXT = """from pathlib import Path
import beside_data  # what stands beside data/ can be imported, as minibert can
text = "\\n\\n".join(f"this is document {n}" for n in range(12))
assert not Path(__file__).with_suffix(".txt").exists()
Path(__file__).with_suffix(".txt").write_text(text)
"""


def test_name_of_a_script(data_folder):
    """Would catch: a script that cannot import minibert, is not run, or runs at every start."""
    (data_folder.parent / "beside_data.py").write_text("")
    (data_folder / "mine.py").write_text(MAKES_TEXT)
    assert len(prepare("mine", "bpe", 270)[1].first_sentences) == 11
    assert len(prepare("mine", "bpe", 265)[1].first_sentences) == 11


def test_script_that_fails(data_folder):
    """Would catch: a second message after the script's own, or success reported (exit code)."""
    (data_folder / "mine.py").write_text("import sys; sys.exit(7)")
    with pytest.raises(SystemExit) as caught:
        prepare("mine", "bpe", 280)
    assert caught.value.code == 7
    assert not (data_folder / "prepared").exists()


def test_script_that_makes_nothing(data_folder):
    """Would catch: a traceback when a script ends well but wrote no text."""
    (data_folder / "mine.py").write_text("")
    with pytest.raises(UserError, match="mine"):
        prepare("mine", "bpe", 280)


def test_path_goes_before_a_name(tmp_path, data_folder, monkeypatch):
    """Would catch: a learner's own folder passed over for a script of the same name."""
    (data_folder / "mine.py").write_text("import sys; sys.exit(7)")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    write_text(tmp_path / "mine" / "a.txt", make_documents(12))
    assert len(prepare("mine", "bpe", 280)[1].first_sentences) == 11


@pytest.mark.parametrize("name", ["nothing", "no/such/file.txt", "no such name", "download"])
def test_unknown_corpus(data_folder, name):
    """Would catch: a traceback, or an error that does not say which names there are."""
    (data_folder / "mine.py").write_text("")
    (data_folder / "download.py").write_text("")  # what the scripts share; it is no corpus
    write_text(data_folder / "alone.txt", make_documents(9))  # a text without a script
    assert corpus.corpus_path("alone") == data_folder / "alone.txt"
    with pytest.raises(UserError, match=f"'{name}'.* mine") as caught:
        prepare(name, "bpe", 280)
    assert str(caught.value).count("download") == (name == "download")


def test_folder_without_text(tmp_path):
    """Would catch: an error about too few documents where the files have other endings."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(UserError, match="empty does not hold a .txt"):
        prepare(str(tmp_path / "empty"), "bpe", 280)


@pytest.mark.parametrize("content, count", [("", 0), ("\n \n", 0), ("a\nb\nc\nd\ne", 1),
                                            ("a\n\nb\n\nc", 3)])
def test_too_few_documents(tmp_path, content, count):
    """Would catch: no held-out text, or pairs from one document only."""
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(UserError, match=f"a.txt holds {count} documents; at least 4"):
        prepare(str(tmp_path / "a.txt"), "bpe", 280)


@pytest.mark.parametrize("content", [b"ba\0be\n", "ba be\n".encode("utf-16-le"), bytes(99)])
def test_files_that_are_no_text(tmp_path, content):
    """Would catch: NULs that WordPiece drops without a word, and advice about blank lines for a
    file that has no lines."""
    (tmp_path / "a.txt").write_bytes(b"\n\n".join([content] * 9))
    with pytest.raises(UserError, match="a.txt holds a NUL, as a binary file or UTF-16 does"):
        prepare(str(tmp_path / "a.txt"), "wordpiece", 280)


def test_sentences_on_disk_are_those_of_the_text(tmp_path):
    """Would catch: sentences joined or cut between the reader and the arrays."""
    (tmp_path / "a.txt").write_text("One is here. Two is there!\nthree\n\n" * 8)
    tokenizer, text, _, _ = prepare(str(tmp_path / "a.txt"), "bpe", 270)
    assert sentences_of(text, tokenizer) == [
        cut(document) for document in read_documents(tmp_path / "a.txt")][:6]
