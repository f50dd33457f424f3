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


def mask_tokens(input_ids: Tensor, sequence_ids: Tensor, *, seed: int, epoch: int, vocab_size: int,
                mask_id: int, special_ids: Sequence[int], pad_id: int = 0, rate: float = 0.15,
                continues: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the tokens to predict and mask them (Devlin et al. 2018, section 3.1, task 1).

    input_ids: (B, S) int64, left as it is. sequence_ids: (B,) int64, the number of each sequence
    in its corpus. special_ids: never chosen and never drawn as a random word. continues: (V,)
    bool, True for tokens that continue a word; when given, whole words are chosen (BERT's update
    of 2019). Returns inputs (B, S), masked_positions (B, M) ascending, and labels (B, M), the
    masked tokens; a short sequence leaves slots unused at the end: position 0, label IGNORE.

    A sequence of ten tokens, [CLS]=2 and [SEP]=3 at its ends, gives round(0.15 * 10) = 2
    predictions: here 13 is one of the tenth that stays as it is, and 15 becomes [MASK]=4.
    >>> ids = torch.tensor([[2, 11, 12, 13, 14, 15, 16, 17, 18, 3]])
    >>> inputs, masked_positions, labels = mask_tokens(ids, torch.tensor([0]), seed=0, epoch=0,
    ...     vocab_size=20, mask_id=4, special_ids=(0, 1, 2, 3, 4))
    >>> inputs.tolist(), masked_positions.tolist(), labels.tolist()
    ([[2, 11, 12, 13, 14, 4, 16, 17, 18, 3]], [[3, 5]], [[13, 15]])
    """
    S, device = input_ids.shape[1], input_ids.device
    special = torch.tensor(special_ids, device=device)
    position = torch.arange(S, device=device)
    sequence = sequence_ids[:, None]

    # Paper: google-research/bert counts [CLS] and [SEP], rounds half to even, predicts at least 1.
    # Departure: RoBERTa's fairseq rounds at random; a fixed count serves both recipes here.
    predictions_by_length = [0] + [max(1, round(rate * n)) for n in range(1, S + 1)]
    lengths = (input_ids != pad_id).sum(1)
    num_predictions = torch.tensor(predictions_by_length, device=device)[lengths]
    candidates = ~torch.isin(input_ids, special)
    random_key = hash_bits(seed, epoch, "choose", sequence, position)
    if continues is None:
        chosen = _choose_tokens(random_key, candidates, num_predictions)
    else:
        chosen = _choose_words(random_key, candidates, num_predictions, continues[input_ids])

    words = torch.arange(vocab_size, device=device)
    # Departure: BERT's release may draw [PAD] or [MASK] as a random word; here it is a real one.
    words = words[~torch.isin(words, special)]
    random_word = words[hash_bits(seed, epoch, "word", sequence, position) % len(words)]
    # Paper: of ten chosen tokens eight become [MASK], one a random word and one stays as it is.
    draw = hash_bits(seed, epoch, "hide", sequence, position) % 10
    shown = torch.where(draw < 8, mask_id, torch.where(draw == 8, random_word, input_ids))
    inputs = torch.where(chosen, shown, input_ids)

    # The chosen positions of each row, moved to its front; S marks a slot that is not used.
    slots = torch.where(chosen, position, S).sort(dim=1).values[:, :max(1, round(rate * S))]
    masked_positions = slots.where(slots < S, 0)
    labels = input_ids.gather(1, masked_positions).where(slots < S, IGNORE)
    return inputs, masked_positions, labels


@dataclass(frozen=True)
class StaticMasker:
    """BERT's masks: made once, on `masks` duplicates of the text that repeat by turns."""
    masks: int = 10

    def dupe(self, epoch: int) -> int:
        """Which duplicate of the text, with masks of its own, an epoch shows."""
        return epoch % self.masks

    def __call__(self, input_ids: Tensor, sequence_ids: Tensor, *, epoch: int, **settings):
        return mask_tokens(input_ids, sequence_ids, epoch=self.dupe(epoch), **settings)


@dataclass(frozen=True)
class DynamicMasker:
    """RoBERTa's masks: new ones each time a sequence is seen (Liu et al. 2019, section 4.1)."""

    def dupe(self, epoch: int) -> int:
        """Each epoch shows a duplicate of its own."""
        return epoch

    def __call__(self, input_ids: Tensor, sequence_ids: Tensor, *, epoch: int, **settings):
        return mask_tokens(input_ids, sequence_ids, epoch=self.dupe(epoch), **settings)


def _choose_tokens(random_key: Tensor, candidates: Tensor, num_predictions: Tensor) -> Tensor:
    """The num_predictions candidates of each row with the lowest random keys, (B, S) bool."""
    random_key = torch.where(candidates, random_key, 2**32)  # above every hash
    rank = random_key.argsort(dim=1, stable=True).argsort(dim=1)
    return candidates & (rank < num_predictions[:, None])


def _choose_words(random_key: Tensor, candidates: Tensor, num_predictions: Tensor,
                  continues: Tensor) -> Tensor:
    """Whole words in the order of their first token's random key, while they fit; (B, S) bool.

    Paper: google-research/bert skips a word that would exceed num_predictions and tries the next.
    """
    S = random_key.shape[1]
    after_candidate = torch.cat([torch.zeros_like(candidates[:, :1]), candidates[:, :-1]], 1)
    first = candidates & ~(continues & after_candidate)
    word = first.cumsum(1) - 1  # which word a position belongs to; specials are masked out below
    word = torch.where(candidates, word, S - 1)
    size = torch.zeros_like(random_key).scatter_add(1, word, candidates.long())
    word_key = torch.full_like(random_key, 2**32).scatter_reduce(
        1, word, torch.where(first, random_key, 2**32), "amin")
    taken, left = torch.zeros_like(candidates), num_predictions.clone()
    for best_word in word_key.argsort(dim=1, stable=True).T:  # each row's best word, its next
        fits = size.gather(1, best_word[:, None])[:, 0] <= left
        taken.scatter_(1, best_word[:, None], fits[:, None])
        left = left - torch.where(fits, size.gather(1, best_word[:, None])[:, 0], 0)
    return candidates & taken.gather(1, word)
