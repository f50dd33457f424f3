"""WordPiece (BERT) or byte-level BPE (RoBERTa), trained with the `tokenizers` library."""
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import AddedToken, Tokenizer

from minibert.errors import UserError

# The five special tokens: BERT's names, and RoBERTa's names for the same roles.
WORDPIECE = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BYTE_BPE = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
# The time to learn from a word grows with the square of its length, so longer ones are cut: a text
# may well hold a megabyte without a space.
LONG_WORD = re.compile(r"\S{1000}")


class SpecialIds(NamedTuple):
    """The ids of the special tokens."""
    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


def train_tokenizer(texts: Callable[[], Iterable[str]], kind: str, vocab_size: int) -> Tokenizer:
    """Learn a vocabulary from text; the same text always gives the same vocabulary.

    texts: gives the sentences or paragraphs, whenever it is called. kind: "wordpiece", in lower
    case as bert-base-uncased, or "bpe". Returns a tokenizer of exactly vocab_size entries. Raises
    UserError when the text has too few different words for that many, or needs more.
    """
    cut = lambda: (LONG_WORD.sub(r"\g<0> ", text) for text in texts())
    if kind == "wordpiece":
        # The library numbers the ##characters in an order that changes from run to run, and of two
        # equally good merges it takes the one with the lower number. So the characters are
        # collected first, and then given in sorted order.
        found = _train_wordpiece(cut(), list(WORDPIECE), vocab_size=0).get_vocab()
        characters = sorted(token for token in found if token.startswith("##"))
        trained = _train_wordpiece(cut(), [*WORDPIECE, *characters], vocab_size)
        tokenizer = _wordpiece(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
        tokenizer.add_special_tokens(list(WORDPIECE))
        first, last, pair = "[CLS]", "[SEP]", "$A [SEP] $B:1 [SEP]:1"
    else:
        tokenizer = Tokenizer(models.BPE())
        # A space before the text would be put after each <mask>, too: "the <mask>." would end in
        # "Ġ." instead of ".".
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        # The space before <mask> belongs to the word that it stands for, as in RoBERTa.
        mask = AddedToken("<mask>", lstrip=True, normalized=False, special=True)
        tokenizer.train_from_iterator(cut(), trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[*BYTE_BPE[:-1], mask], show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
        first, last, pair = "<s>", "</s>", "$A </s> </s> $B </s>"
    size = tokenizer.get_vocab_size()
    if size > vocab_size:
        raise UserError(f"--vocab-size {vocab_size} has no room for the {size} characters and "
                        f"special tokens of this text; use --vocab-size {size} or more")
    if size < vocab_size:
        raise UserError(f"the text supports a vocabulary of only {size} entries; "
                        f"use --vocab-size {size} or less, or more text")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} {pair}",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (first, last)])
    return tokenizer


def _wordpiece(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _train_wordpiece(texts: Iterable[str], first: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = _wordpiece(models.WordPiece(unk_token="[UNK]"))
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=first, show_progress=False))
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`. Raises UserError when it is missing or broken."""
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; name the folder of a finished run") from None
    except Exception as error:  # the library raises no narrower class
        raise UserError(f"{path} is not a tokenizer ({error}); copy it again") from None


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """The special tokens' ids, by BERT's or RoBERTa's names. Raises UserError if one is missing."""
    for names in (WORDPIECE, BYTE_BPE):
        ids = [tokenizer.token_to_id(name) for name in names]
        if None not in ids:
            return SpecialIds(*ids)
    raise UserError("the tokenizer lacks one of the special tokens "
                    f"{' '.join(WORDPIECE)} (or {' '.join(BYTE_BPE)}); use another tokenizer")


def continuations(tokenizer: Tokenizer) -> torch.Tensor:
    """Which tokens continue a word, (V,) bool.

    WordPiece marks these with ##; byte-level BPE marks the others, which start one, with Ġ, except
    for the first word of a sentence, which has no space before it.
    """
    wordpiece = isinstance(tokenizer.model, models.WordPiece)
    result = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.bool)
    for token, id in tokenizer.get_vocab().items():
        result[id] = token.startswith("##") if wordpiece else not token.startswith("Ġ")
    result[list(special_ids(tokenizer))] = False
    return result
