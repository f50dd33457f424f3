"""Blanks filled from the terminal, one model or several side by side."""
import dataclasses

import numpy as np
import pytest
import torch

from minibert import MaskedLM, ModelConfig, load_pretrained, save_pretrained
from minibert.data import TokenizedCorpus
from minibert.errors import UserError
from minibert.tokenizer import train_tokenizer
from minibert.tools.fill_mask import BAR, blanks, fill_mask

WORDS = "ba be bi bo bu da de di do du"
CONFIG = ModelConfig(vocab_size=24, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                     intermediate_size=32, max_position_embeddings=16)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two models: one that all but knows the answer is "b", one that has no idea."""
    tokenizer = train_tokenizer(lambda: [WORDS] * 3, "wordpiece", 24)
    folder = tmp_path_factory.mktemp("runs")
    for name, certainty in (("knows", 6.0), ("guesses", 0.0)):
        model = MaskedLM(CONFIG)
        with torch.no_grad():
            model.encoder.embeddings.word.weight.zero_()
            model.decoder_bias[tokenizer.token_to_id("b")] = certainty
        save_pretrained(model, tokenizer, folder / name)
    return [str(folder / "knows"), str(folder / "guesses")]


def test_probabilities_and_bars(runs):
    """Catches another position's words, logits shown as probabilities, models mixed up."""
    lines = fill_mask(runs, "ba [MASK] di", top=3).splitlines()
    assert lines[0] == "ba [MASK] di" and lines[2].split() == ["knows", "guesses"]
    assert len(lines) == 3 + 3
    share = torch.tensor([6.0] + [0.0] * 23).softmax(0)[0].item()
    word, bar, percent, _, other = lines[3].split()
    assert word == "b" and percent == f"{share:.1%}" and other == f"{1 / 24:.1%}"
    assert bar == "#" * round(BAR * share)


def test_each_blank_has_its_table(runs):
    """Catches a second blank that is left out."""
    assert fill_mask(runs, "[MASK] be [MASK]", top=1).count("knows") == 2
    assert fill_mask(runs[:1], "<mask> be", top=1).count("knows") == 1  # RoBERTa's way to write it


def test_words_are_those_at_the_blank(tmp_path):
    """Catches the words of [CLS], or of the other blank."""
    tokenizer = train_tokenizer(lambda: [WORDS] * 3, "wordpiece", 24)
    model = MaskedLM(dataclasses.replace(CONFIG, initializer_range=0.5)).eval()
    save_pretrained(model, tokenizer, tmp_path)
    ids = tokenizer.encode("ba [MASK] di du [MASK]").ids
    logits = model(torch.tensor([ids])).mlm_logits[0]
    expected = [tokenizer.id_to_token(int(logits[at].argmax())) for at in range(len(ids))
                if ids[at] == 4]
    lines = fill_mask([str(tmp_path)], "ba [MASK] di du [MASK]", top=1).splitlines()
    assert [lines[3].split()[0], lines[6].split()[0]] == expected
    assert expected[0] != expected[1]


def test_text_without_a_blank(runs):
    """Catches an empty answer where the user forgot the blank."""
    with pytest.raises(UserError, match=r"no \[MASK\] in 'ba be'"):
        fill_mask(runs, "ba be")


def test_text_that_is_too_long(runs):
    """Catches a traceback from the position table."""
    with pytest.raises(UserError, match="more than this model's 16 positions"):
        fill_mask(runs, "ba [MASK] " * 20)


def test_text_is_not_cut(runs, tmp_path):
    """Catches a tokenizer that cuts the text, and the blank with it, as its folder says."""
    model, tokenizer = load_pretrained(runs[0])
    tokenizer.enable_truncation(4)
    save_pretrained(model, tokenizer, tmp_path)
    assert fill_mask([str(tmp_path)], "ba be bi bo [MASK]", top=1).count("#") > 0


def test_byte_level_blanks(tmp_path):
    """Catches the space before a blank that becomes a token of its own, which no text has, and
    pieces of words that are called words."""
    words = "alpha beta gamma delta sigma omega kappa theta".split()
    tokenizer = train_tokenizer(lambda: [" " + " ".join(words)] * 9, "bpe", 290)
    encoded = tokenizer.encode("alpha <mask> gamma<mask>", add_special_tokens=False)
    assert encoded.ids.count(tokenizer.token_to_id("<mask>")) == 2
    assert tokenizer.token_to_id("Ġ") not in encoded.ids
    save_pretrained(MaskedLM(dataclasses.replace(CONFIG, vocab_size=290)), tokenizer, tmp_path)
    shown = fill_mask([str(tmp_path)], "alpha [MASK] gamma", top=290).splitlines()
    names = [line.split()[0] for line in shown[3:] if line.split()]
    assert "##a" in names and "<mask>" in names and "al" in names
    assert not any("Ġ" in name for name in names)


def test_bytes_that_look_alike(tmp_path):
    """Catches the share of another byte: several pieces of characters are all written ##�."""
    tokenizer = train_tokenizer(lambda: [WORDS] * 9, "bpe", 264)
    piece = tokenizer.token_to_id("Ä")  # the first byte of some letters, and no letter by itself
    model = MaskedLM(dataclasses.replace(CONFIG, vocab_size=264))
    with torch.no_grad():
        model.encoder.embeddings.word.weight.zero_()
        model.decoder_bias[piece] = 7.0
    save_pretrained(model, tokenizer, tmp_path)
    share = model.decoder_bias.softmax(0)[piece].item()
    line = fill_mask([str(tmp_path)], "ba [MASK]", top=1).splitlines()[3]
    assert line.split()[0] == "##�" and line.endswith(f"{share:.1%}")


@pytest.mark.parametrize("kind, size", [("wordpiece", 73), ("bpe", 311)])
def test_blanks_are_whole_words_of_held_out_sentences(kind, size):
    """Catches a blank for a piece of a word, a sentence cut short, or other ones each time."""
    words = "alpha beta gamma delta sigma omega kappa theta rho lambda zeta eta iota mu".split()
    tokenizer = train_tokenizer(lambda: [" ".join(words)] * 9, kind, size)
    # In the middle of the last two are ##t and alpha, of alpha ##t ##h.
    sentences = [" ".join(words), " ".join(words[:5]), " ".join(words[::-1]),
                 " ".join([*words[:5], "alphath", *words[3:7]]),
                 " ".join([*words[:6], "alphath", *words[3:7]])]
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in sentences]
    ends = np.cumsum([len(one) for one in ids])
    bounds = np.stack([ends - [len(one) for one in ids], ends], 1)
    text = TokenizedCorpus(np.concatenate(ids), bounds, np.array([0, 5]))
    found = blanks(text, tokenizer)
    assert sorted(blank.replace("[MASK]", word) for blank, word in found) == sorted(
        [sentences[0], sentences[2]])
    assert found == blanks(text, tokenizer) and len(blanks(text, tokenizer, count=1)) == 1
    assert {word for _, word in found} <= set(words)


def test_blanks_are_no_pieces_of_byte_level_words():
    """Catches a piece without its ## taken for a word: "kappa" of "qqkappa" in byte-level BPE."""
    words = [f"{letter}{letter}kappa" for letter in "bcdfgh"] + ["iota", "zeta", "rho"] * 3
    tokenizer = train_tokenizer(lambda: [" ".join(words)] * 9, "bpe", 270)
    sentence = " ".join(["rho iota zeta rho iota zeta", "qqkappa", "rho iota zeta rho"])
    encoded = tokenizer.encode(sentence, add_special_tokens=False)
    middle = encoded.tokens.index("kappa")
    text = lambda ids: TokenizedCorpus(np.array(ids), np.array([[0, len(ids)]]),
                                       np.array([0, 1]))
    inside = encoded.ids[middle - 7:middle + 7]
    assert inside[len(inside) // 2] == encoded.ids[middle]
    assert blanks(text(inside), tokenizer) == []
