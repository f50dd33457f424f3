"""Which tokens are masked: a pure function of (seed, epoch, sequence index, position).

Nothing here has state, so a mask does not depend on batch size, order, device or resume.
B batch, S sequence, M masked positions, V vocabulary.
"""
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -100  # the label of a slot that holds no prediction; torch's own convention


def hash_bits(*keys: "int | str | Tensor") -> "int | Tensor":
    """Mix keys into uniform integers in [0, 2**32); tensors broadcast, order counts.

    A counter-based random generator: asking for the same keys gives the same number, on every
    device, with no state in between. The mixing steps and constants are "lowbias32" (C. Wellons,
    Hash Prospector, 2018). Integers wrap in torch as in C; the masks keep the lower 32 bits.

    >>> hash_bits(0, "order", 1), hash_bits(0, "order", 2), hash_bits(1, "order", 1)
    (1344938168, 3107064683, 1316649778)
    """
    state: int | Tensor = 0
    for key in keys:
        key = zlib.crc32(key.encode()) if isinstance(key, str) else key
        state = ((state ^ key) + 0x9E3779B9) & 0xFFFFFFFF
        state = ((state ^ (state >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        state = ((state ^ (state >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        state = state ^ (state >> 16)
    return state


def mask_tokens(input_ids: Tensor, index: Tensor, *, seed: int, epoch: int, vocab_size: int,
                mask_id: int, special_ids: Sequence[int], pad_id: int = 0, rate: float = 0.15,
                continues: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the tokens to predict and mask them (Devlin et al. 2018, section 3.1, task 1).

    input_ids: (B, S) int64, left as it is. index: (B,) int64, the number of each sequence in its
    corpus. special_ids: never chosen and never drawn as a random word. continues: (V,) bool, True
    for tokens that continue a word; when given, whole words are chosen (BERT's update of 2019).
    Returns inputs (B, S), positions (B, M) ascending, and labels (B, M), the masked tokens; a
    short sequence leaves slots unused at the end: position 0, label IGNORE.

    A sequence of ten tokens, [CLS]=2 and [SEP]=3 at its ends, gives round(0.15 * 10) = 2
    predictions: here 13 is one of the tenth that stays as it is, and 15 becomes [MASK]=4.
    >>> ids = torch.tensor([[2, 11, 12, 13, 14, 15, 16, 17, 18, 3]])
    >>> inputs, positions, labels = mask_tokens(ids, torch.tensor([0]), seed=0, epoch=0,
    ...     vocab_size=20, mask_id=4, special_ids=(0, 1, 2, 3, 4))
    >>> inputs.tolist(), positions.tolist(), labels.tolist()
    ([[2, 11, 12, 13, 14, 4, 16, 17, 18, 3]], [[3, 5]], [[13, 15]])
    """
    S, device = input_ids.shape[1], input_ids.device
    special = torch.tensor(special_ids, device=device)
    position = torch.arange(S, device=device)
    row = index[:, None]

    # Paper: google-research/bert counts [CLS] and [SEP], rounds half to even, predicts at least 1.
    # Departure: RoBERTa's fairseq rounds at random; a fixed count serves both recipes here.
    quota = torch.tensor([0] + [max(1, round(rate * n)) for n in range(1, S + 1)], device=device)
    number = quota[(input_ids != pad_id).sum(1)]
    candidate = ~torch.isin(input_ids, special)
    score = hash_bits(seed, epoch, "choose", row, position)
    if continues is None:
        chosen = _best(score, candidate, number)
    else:
        chosen = _best_words(score, candidate, number, continues[input_ids])

    words = torch.arange(vocab_size, device=device)
    # Departure: BERT's release may draw [PAD] or [MASK] as a random word; here it is a real one.
    words = words[~torch.isin(words, special)]
    random_word = words[hash_bits(seed, epoch, "word", row, position) % len(words)]
    # Paper: of ten chosen tokens eight become [MASK], one a random word and one stays as it is.
    draw = hash_bits(seed, epoch, "hide", row, position) % 10
    shown = torch.where(draw < 8, mask_id, torch.where(draw == 8, random_word, input_ids))
    inputs = torch.where(chosen, shown, input_ids)

    # The chosen positions of each row, moved to its front; S marks a slot that is not used.
    slots = torch.where(chosen, position, S).sort(dim=1).values[:, :max(1, round(rate * S))]
    positions = slots.where(slots < S, 0)
    labels = input_ids.gather(1, positions).where(slots < S, IGNORE)
    return inputs, positions, labels


@dataclass(frozen=True)
class StaticMasker:
    """BERT's masks: made once, `masks` copies of the text, each seen again and again."""
    masks: int = 10

    def copy(self, epoch: int) -> int:
        """Which copy of the text, with masks of its own, an epoch shows."""
        return epoch % self.masks

    def __call__(self, input_ids: Tensor, index: Tensor, *, epoch: int, **settings):
        return mask_tokens(input_ids, index, epoch=self.copy(epoch), **settings)


@dataclass(frozen=True)
class DynamicMasker:
    """RoBERTa's masks: new ones each time a sequence is seen (Liu et al. 2019, section 4.1)."""

    def copy(self, epoch: int) -> int:
        """Each epoch shows a copy of its own."""
        return epoch

    def __call__(self, input_ids: Tensor, index: Tensor, *, epoch: int, **settings):
        return mask_tokens(input_ids, index, epoch=self.copy(epoch), **settings)


def _best(score: Tensor, candidate: Tensor, number: Tensor) -> Tensor:
    """The `number` candidates of each row with the lowest scores, (B, S) bool."""
    score = torch.where(candidate, score, 2**32)  # above every hash
    rank = score.argsort(dim=1, stable=True).argsort(dim=1)
    return candidate & (rank < number[:, None])


def _best_words(score: Tensor, candidate: Tensor, number: Tensor, continues: Tensor) -> Tensor:
    """Whole words in the order of their first token's score, while they fit; (B, S) bool.

    Paper: google-research/bert skips a word that would exceed the number and tries the next.
    """
    S = score.shape[1]
    after_candidate = torch.cat([torch.zeros_like(candidate[:, :1]), candidate[:, :-1]], 1)
    first = candidate & ~(continues & after_candidate)
    word = first.cumsum(1) - 1  # which word a position belongs to; specials are masked out below
    word = torch.where(candidate, word, S - 1)
    size = torch.zeros_like(score).scatter_add(1, word, candidate.long())
    word_score = torch.full_like(score, 2**32).scatter_reduce(
        1, word, torch.where(first, score, 2**32), "amin")
    taken, left = torch.zeros_like(candidate), number.clone()
    for word_number in word_score.argsort(dim=1, stable=True).T:  # each row's best word, its next
        fits = size.gather(1, word_number[:, None])[:, 0] <= left
        taken.scatter_(1, word_number[:, None], fits[:, None])
        left = left - torch.where(fits, size.gather(1, word_number[:, None])[:, 0], 0)
    return candidate & taken.gather(1, word)
