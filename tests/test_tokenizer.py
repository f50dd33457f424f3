"""WordPiece and byte-level BPE: their vocabularies, special tokens and pairs."""
import pytest
import torch
from tokenizers import Tokenizer

from minibert.errors import UserError
from minibert.tokenizer import (BYTE_BPE, WORDPIECE, continuations, load_tokenizer, special_ids,
                                train_tokenizer)

SIZES = {"wordpiece": 70, "bpe": 280}
KINDS = list(SIZES)
WORDS = "amber birch cedar daisy ember fern grove hazel ivory jade kelp lilac".split()
TEXT = [f"{word} grows near the northern harbour wall" for word in WORDS]


@pytest.mark.parametrize("kind, names, pair, types", [
    ("wordpiece", WORDPIECE, "[CLS] A [SEP] B [SEP]", [0, 0, 0, 1, 1]),
    ("bpe", BYTE_BPE, "<s> A </s> </s> B </s>", [0, 0, 0, 0, 0, 0])])
def test_pairs_of_the_tokenizer(kind, names, pair, types):
    """Would catch: RoBERTa's pairs with one </s>, or BERT's without token types."""
    tokenizer = train_tokenizer(lambda: ["a b c d"] * 4, kind, 9 if kind == "wordpiece" else 264)
    encoding = tokenizer.encode("a", "b")
    shown = [token.replace("Ġ", "").replace("a", "A").replace("b", "B") if token not in names
             else token for token in encoding.tokens]
    assert " ".join(shown) == pair
    assert encoding.type_ids == types
    assert tokenizer.encode("a").tokens[0] == names[2]
    assert tokenizer.encode("a").tokens[2:] == [names[3]]


@pytest.mark.parametrize("kind", KINDS)
def test_trained_twice_is_the_same(kind):
    """Would catch: ids in random order, so that no other machine can repeat a run."""
    first, second = (train_tokenizer(lambda: TEXT, kind, SIZES[kind]) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert first.to_str() == second.to_str()


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


@pytest.mark.parametrize("kind", KINDS)
def test_specials(tmp_path, kind):
    """Would catch: the roles of the special tokens mixed up, before or after a file."""
    tokenizer = train_tokenizer(lambda: TEXT, kind, SIZES[kind])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for reader in (tokenizer, load_tokenizer(tmp_path / "tokenizer.json")):
        special = special_ids(reader)
        names = [reader.id_to_token(id) for id in special]
        assert names == list(WORDPIECE if kind == "wordpiece" else BYTE_BPE)
        assert special._fields == ("pad", "unk", "cls", "sep", "mask")
        assert reader.decode(list(special)) == ""


def test_tokenizer_without_a_special_token():
    """Would catch: a missing [MASK] that becomes id None, or 0, deep in a run."""
    broken = train_tokenizer(lambda: TEXT, "wordpiece", 70).to_str().replace("[MASK]", "[HIDE]")
    with pytest.raises(UserError, match="special tokens"):
        special_ids(Tokenizer.from_str(broken))


@pytest.mark.parametrize("kind", KINDS)
def test_continuations(kind):
    """Would catch: Ġ read like ##, although it starts a word and ## continues one."""
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
    end in another token than "wall." in training."""
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
