"""Prepared corpora and their tokenizers: what is trained on, held out, read again or refused."""
import gzip
import hashlib
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from minibert.data import sentences_of as cut
from minibert.errors import UserError
from minibert.files import corpus
from minibert.files.corpus import describe, prepare, read_documents
from minibert.tokenizer import (BYTE_BPE, WORDPIECE, continuations, load_tokenizer, special_ids,
                                train_tokenizer)

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
                 for start, end in text.bounds]
    return [sentences[first:end] for first, end in zip(text.documents, text.documents[1:])]


# Training and held-out text.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count, held_out_count", [(4, 2), (12, 2), (50, 4)])
def test_held_out_documents_are_not_trained_on(tmp_path, kind, count, held_out_count):
    """Would catch: a document in both parts, or in none, or a part of one in each (trap 41)."""
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
    """Would catch: bounds shifted by the separators, or tokens in no sentence (trap 38)."""
    path = write_text(tmp_path / "a.txt", make_documents(12))
    tokenizer, *texts, _ = prepare(path, kind, SIZES[kind])
    for text in texts:
        ends = text.bounds[text.documents[1:] - 1, 1]
        assert (text.tokens[ends] == special_ids(tokenizer).sep).all()
        starts = np.append(text.bounds[:, 0], len(text.tokens))
        gaps = starts[1:] - text.bounds[:, 1]
        assert starts[0] == 0 and np.flatnonzero(gaps).tolist() == (text.documents[1:] - 1).tolist()
        assert gaps.sum() == len(text.documents) - 1 and text.tokens.dtype == np.uint16


def test_tokenizer_is_trained_on_training_documents_only(tmp_path):
    """Would catch: a vocabulary with the words of the held-out text in it (trap 41)."""
    own = [chr(ord("一") + n) for n in range(24)]  # each document has a character of its own
    path = write_text(tmp_path / "a.txt", [["the northern wall", sign * 3] for sign in own])
    tokenizer, text, held_out, _ = prepare(path, "wordpiece", 45)
    unknown = special_ids(tokenizer).unk
    assert len(set(own) & set(tokenizer.get_vocab())) == 22
    assert (text.tokens != unknown).all()
    assert (held_out.tokens == unknown).sum() == 2 * 3


def test_a_large_text_gives_a_sample_for_the_vocabulary(tmp_path, monkeypatch):
    """Would catch: hours of counting words, a sample of the first documents of the file, and one
    that takes in held-out text (trap 41)."""
    monkeypatch.setattr(corpus, "VOCABULARY_TEXT", 9 * len("the northern wall" + 3 * "一"))
    own = [chr(ord("一") + n) for n in range(24)]
    path = write_text(tmp_path / "a.txt", [["the northern wall", sign * 3] for sign in own])
    tokenizer, text, held_out, _ = prepare(path, "wordpiece", 32)
    known = [sign for sign in own if sign in tokenizer.get_vocab()]
    assert len(known) == 9 and known not in (own[:9], own[-9:])
    unknown = np.flatnonzero(text.tokens == special_ids(tokenizer).unk)
    assert len(unknown) == 3 * (22 - 9) and unknown[0] > text.bounds[2 * 9 - 1, 1]
    assert (held_out.tokens == special_ids(tokenizer).unk).sum() == 2 * 3


def test_names_of_special_tokens_in_a_text(tmp_path):
    """Would catch: "[MASK]" or "</s>" written in a text read as the special token (trap 15)."""
    for kind, names in (("wordpiece", WORDPIECE), ("bpe", BYTE_BPE)):
        documents = [[f"{name} is a name, and so is x{name}y", *TEXT] for name in names * 2]
        path = write_text(tmp_path / f"{kind}.txt", documents)
        tokenizer, *texts, _ = prepare(path, kind, SIZES[kind])
        for text in texts:
            found = np.isin(text.tokens, list(special_ids(tokenizer)))
            ends = text.bounds[text.documents[1:] - 1, 1]
            assert np.flatnonzero(found).tolist() == ends.tolist()
        given = prepare(path, "", 0, tokenizer)[1]  # the same with a tokenizer that was loaded
        assert np.array_equal(given.tokens, prepare(path, kind, SIZES[kind])[1].tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_without_tokens_are_left_out(tmp_path, kind):
    """Would catch: documents of no sentence, on which the next step stumbles (trap 2)."""
    documents = make_documents(12) + [["\u200b"], ["\x01"]]
    path = write_text(tmp_path / "a.txt", documents)
    _, text, held_out, _ = prepare(path, kind, SIZES[kind])
    for part in (text, held_out):
        assert (np.diff(part.documents) > 0).all() and (np.diff(part.bounds) > 0).all()


def test_padding_and_truncation_of_a_given_tokenizer(tmp_path):
    """Would catch: its padding or cut done to each sentence, or taken from the caller (trap 6)."""
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
    assert len(prepare(str(tmp_path / name), "bpe", 280)[1].documents) == 11


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
    assert len(prepare("mine", "bpe", 270)[1].documents) == 11
    assert len(prepare("mine", "bpe", 265)[1].documents) == 11


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
    assert len(prepare("mine", "bpe", 280)[1].documents) == 11


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
    """Would catch: no held-out text, or pairs from one document only (trap 2, trap 41)."""
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


# Tokenizers.


@pytest.mark.parametrize("kind", KINDS)
def test_trained_twice_is_the_same(kind):
    """Would catch: ids in random order, so that no other machine can repeat a run (trap 12)."""
    one, two = (train_tokenizer(lambda: TEXT, kind, SIZES[kind]) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()
    assert one.to_str() == two.to_str()


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_has_the_size_that_was_asked_for(kind):
    """Would catch: another size than the model's table has rows, or ids with gaps."""
    vocabulary = train_tokenizer(lambda: TEXT, kind, SIZES[kind]).get_vocab()
    assert sorted(vocabulary.values()) == list(range(SIZES[kind]))
    names = WORDPIECE if kind == "wordpiece" else BYTE_BPE
    assert [vocabulary[name] for name in names] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_that_does_not_fit(kind):
    """Would catch: an error that does not name the size that would do, or a wrong one."""
    for wrong in (20, 5000):
        with pytest.raises(UserError) as caught:
            train_tokenizer(lambda: TEXT, kind, wrong)
        size = int(str(caught.value).split("use --vocab-size ")[1].split()[0])
        assert size != wrong
        assert train_tokenizer(lambda: TEXT, kind, size).get_vocab_size() == size


@pytest.mark.parametrize("kind, names, pair, types", [
    ("wordpiece", WORDPIECE, "[CLS] A [SEP] B [SEP]", [0, 0, 0, 1, 1]),
    ("bpe", BYTE_BPE, "<s> A </s> </s> B </s>", [0, 0, 0, 0, 0, 0])])
def test_pairs_of_the_tokenizer(kind, names, pair, types):
    """Would catch: RoBERTa's pairs with one </s>, or BERT's without token types (trap 1)."""
    tokenizer = train_tokenizer(lambda: ["a b c d"] * 4, kind, 9 if kind == "wordpiece" else 264)
    encoding = tokenizer.encode("a", "b")
    shown = [token.replace("Ġ", "").replace("a", "A").replace("b", "B") if token not in names
             else token for token in encoding.tokens]
    assert " ".join(shown) == pair
    assert encoding.type_ids == types
    assert tokenizer.encode("a").tokens[0] == names[2]
    assert tokenizer.encode("a").tokens[2:] == [names[3]]


@pytest.mark.parametrize("kind", KINDS)
def test_specials(tmp_path, kind):
    """Would catch: the roles of the special tokens mixed up, before or after a file (trap 5)."""
    tokenizer = train_tokenizer(lambda: TEXT, kind, SIZES[kind])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for found in (tokenizer, load_tokenizer(tmp_path / "tokenizer.json")):
        special = special_ids(found)
        names = [found.id_to_token(id) for id in special]
        assert names == list(WORDPIECE if kind == "wordpiece" else BYTE_BPE)
        assert special._fields == ("pad", "unk", "cls", "sep", "mask")
        assert found.decode(list(special)) == ""


def test_tokenizer_without_a_special_token():
    """Would catch: a missing [MASK] that becomes id None, or 0, deep in a run (trap 9)."""
    broken = train_tokenizer(lambda: TEXT, "wordpiece", 70).to_str().replace("[MASK]", "[HIDE]")
    with pytest.raises(UserError, match="special tokens"):
        special_ids(Tokenizer.from_str(broken))


@pytest.mark.parametrize("kind", KINDS)
def test_continuations(kind):
    """Would catch: Ġ read like ##, although it starts a word and ## continues one (trap 42)."""
    tokenizer = train_tokenizer(lambda: TEXT, kind, SIZES[kind])
    continues = continuations(tokenizer)
    assert continues.shape == (SIZES[kind],) and continues.dtype == torch.bool
    assert not continues[list(special_ids(tokenizer))].any()
    # In byte-level BPE a space tells that a word starts, and a sentence does not begin with one.
    encoding = tokenizer.encode(f" {TEXT[0]}", add_special_tokens=False)
    first = [one != two for one, two in zip([None, *encoding.word_ids], encoding.word_ids)]
    assert (~continues[encoding.ids]).tolist() == first
    assert 0 < sum(first) < len(first)


def test_wordpiece_is_uncased_and_bpe_is_not():
    """Would catch: capitals and accents told apart by BERT, or lost by RoBERTa; bytes unknown."""
    wordpiece = train_tokenizer(lambda: [*TEXT, "cafe"], "wordpiece", 70)
    assert wordpiece.encode("Café HARBOUR").ids == wordpiece.encode("cafe harbour").ids
    bpe = train_tokenizer(lambda: TEXT, "bpe", 280)
    assert bpe.decode(bpe.encode("Café 日本 🙂").ids) == "Café 日本 🙂"
    assert special_ids(bpe).unk not in bpe.encode("日本 🙂").ids


def test_no_space_is_made_up():
    """Would catch: a space that the text does not have, before it or after <mask>: "<mask>." would
    end in another token than "wall." in training (trap 42)."""
    bpe = train_tokenizer(lambda: TEXT, "bpe", 280)
    for text in ("harbour <mask>.", "harbour<mask>, wall", "<mask>s <mask> <mask>."):
        assert bpe.decode(bpe.encode(text).ids, skip_special_tokens=False) == (
            f"<s>{text.replace(' <mask>', '<mask>')}</s>")


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": 3}', "\xff\xfe"])
def test_broken_tokenizer_file(tmp_path, content):
    """Would catch: a traceback out of the library that does not name the file."""
    (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="tokenizer.json is not a tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_missing_tokenizer_file(tmp_path):
    """Would catch: a traceback where the folder of a run was mistyped."""
    with pytest.raises(UserError, match="tokenizer.json is missing"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_sentences_on_disk_are_those_of_the_text(tmp_path):
    """Would catch: sentences joined or cut between the reader and the arrays (trap 3)."""
    (tmp_path / "a.txt").write_text("One is here. Two is there!\nthree\n\n" * 8)
    tokenizer, text, _, _ = prepare(str(tmp_path / "a.txt"), "bpe", 270)
    assert sentences_of(text, tokenizer) == [
        cut(document) for document in read_documents(tmp_path / "a.txt")][:6]
