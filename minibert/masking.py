"""Which tokens are masked, and what the model sees in their place.

A mask is a pure function of (seed, epoch, sequence, position). Nothing in this file keeps a state,
so a mask does not depend on the batch size, the order, the device or a resume.
B batch, S sequence, M masked positions.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from minibert.data import Batch
from minibert.hashing import hash_bits
from minibert.tokenizer import SpecialIds

IGNORE = -100  # the label of a slot without a prediction; the value is torch's own convention

# What becomes of ten chosen tokens: eight turn into [MASK], one into a random word, and the last
# stays as it is. Texts of later tasks hold no [MASK], so a model that only ever had to answer
# there would learn little about words that it can see. As any word in sight may be wrong, or be
# asked for, the model has to understand them all.
# Paper: Devlin et al. 2018, section 3.1, task 1, and appendix C.2, which tries other shares.
MASKED_OF_TEN = 8
RANDOM_OF_TEN = 1


def mask_tokens(input_ids: Tensor, sequence_ids: Tensor, *, seed: int, epoch: int, vocab_size: int,
                mask_id: int, special_ids: Sequence[int], pad_id: int = 0, rate: float = 0.15
                ) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the tokens to predict and mask them (Devlin et al. 2018, section 3.1, task 1).

    input_ids: (B, S) int64; they are not changed. sequence_ids: (B,) int64, the number of each
    sequence in its corpus. special_ids: tokens that are never chosen and never drawn as a random
    word. rate: the share of tokens to predict.
    Returns inputs (B, S); masked_positions (B, M), ascending; and labels (B, M), the tokens that
    stood there. A short sequence leaves slots unused at its end, with position 0 and label IGNORE.

    A sequence of ten tokens, with [CLS]=2 and [SEP]=3 at its ends, gives round(0.15 * 10) = 2
    predictions. Here 13 is one of the tenth that stays as it is, and 15 becomes [MASK]=4.
    >>> ids = torch.tensor([[2, 11, 12, 13, 14, 15, 16, 17, 18, 3]])
    >>> inputs, masked_positions, labels = mask_tokens(ids, torch.tensor([0]), seed=0, epoch=0,
    ...     vocab_size=20, mask_id=4, special_ids=(0, 1, 2, 3, 4))
    >>> inputs.tolist(), masked_positions.tolist(), labels.tolist()
    ([[2, 11, 12, 13, 14, 4, 16, 17, 18, 3]], [[3, 5]], [[13, 15]])
    """
    S, device = input_ids.shape[1], input_ids.device
    special, words, predictions_by_length = _tables(tuple(special_ids), vocab_size, rate, S, device)
    candidates = ~torch.isin(input_ids, special)
    sequence = sequence_ids[:, None]  # (B, 1), which with the position
    position = torch.arange(S, device=device)  # (S,) gives each token a key of its own
    num_predictions = predictions_by_length[(input_ids != pad_id).sum(1)]  # (B,)
    random_key = hash_bits(seed, epoch, "choose", sequence, position)
    # Departure: no special token is ever predicted. BERT's release may choose [UNK], and RoBERTa's
    # fairseq also <s> and </s>.
    chosen = _choose_tokens(random_key, candidates, num_predictions)

    random_word = words[hash_bits(seed, epoch, "word", sequence, position) % len(words)]
    one_of_ten = hash_bits(seed, epoch, "hide", sequence, position) % 10
    shown = torch.where(one_of_ten < MASKED_OF_TEN + RANDOM_OF_TEN, random_word, input_ids)
    shown = torch.where(one_of_ten < MASKED_OF_TEN, mask_id, shown)
    inputs = torch.where(chosen, shown, input_ids)

    # The model reads its predictions at M slots, so the chosen positions move to the front of
    # their row. S, which is not a position, sorts last and marks the slots that stay unused. With
    # S = 6 and M = 3, where positions 3 and 5 are chosen:
    #   where chosen, else S    [S, S, S, 3, S, 5]
    #   sorted                  [3, 5, S, S, S, S]
    #   the first M             [3, 5, S]
    M = max(1, round(rate * S))
    slots = torch.where(chosen, position, S).sort(dim=1).values[:, :M]
    used = slots < S
    masked_positions = slots.where(used, 0)
    labels = input_ids.gather(1, masked_positions).where(used, IGNORE)
    return inputs, masked_positions, labels


@dataclass(frozen=True)
class StaticMasker:
    """BERT's masks: made once, for `masks` duplicates of the text, which then take turns.

    With two masks, a sequence looks the same in every other epoch (_ is a [MASK]):

        epoch 0   the _ sat on the mat        epoch 1   the cat sat _ the mat
        epoch 2   the _ sat on the mat        epoch 3   the cat sat _ the mat

    special, vocab_size: of the tokenizer. seed: decides the masks. rate: the share of tokens to
    predict. masks: `dupe_factor` in google-research/bert, which is 10.

    >>> masker = StaticMasker(SpecialIds(0, 1, 2, 3, 4), vocab_size=20, seed=0, masks=2)
    >>> [masker.duplicate_of(epoch) for epoch in (0, 1, 2, 3)]
    [0, 1, 0, 1]
    """
    special: SpecialIds
    vocab_size: int
    seed: int
    rate: float = 0.15
    masks: int = 10

    def duplicate_of(self, epoch: int) -> int:
        """The duplicate of the text, with masks and pairs of its own, that an epoch shows."""
        # Departure: BERT shuffles the sequences of all duplicates together; here an epoch shows one
        # duplicate after the other, so that no sequence comes back before all others were seen.
        return epoch % self.masks

    def __call__(self, batch: Batch) -> Batch:
        """The batch with masked input_ids, and with its masked_positions and labels."""
        return _mask_batch(batch, self, self.duplicate_of(batch.epoch))


@dataclass(frozen=True)
class DynamicMasker:
    """RoBERTa's masks: new ones whenever a sequence is seen (Liu et al. 2019, section 4.1).

        epoch 0   the _ sat on the mat        epoch 1   the cat sat _ the mat
        epoch 2   _ cat sat on the mat        epoch 3   the cat sat on the _

    special, vocab_size: of the tokenizer. seed: decides the masks. rate: the share of tokens to
    predict.

    >>> masker = DynamicMasker(SpecialIds(0, 1, 2, 3, 4), vocab_size=20, seed=0)
    >>> [masker.duplicate_of(epoch) for epoch in (0, 1, 2, 3)]
    [0, 1, 2, 3]
    """
    special: SpecialIds
    vocab_size: int
    seed: int
    rate: float = 0.15

    def duplicate_of(self, epoch: int) -> int:
        """Every epoch shows a duplicate of its own."""
        return epoch

    def __call__(self, batch: Batch) -> Batch:
        """The batch with masked input_ids, and with its masked_positions and labels."""
        return _mask_batch(batch, self, self.duplicate_of(batch.epoch))


def _mask_batch(batch: Batch, masker: StaticMasker | DynamicMasker, duplicate: int) -> Batch:
    special = masker.special
    inputs, masked_positions, labels = mask_tokens(
        batch.input_ids, batch.sequence_ids, seed=masker.seed, epoch=duplicate,
        vocab_size=masker.vocab_size, mask_id=special.mask, special_ids=tuple(special),
        pad_id=special.pad, rate=masker.rate)
    return batch._replace(input_ids=inputs, masked_positions=masked_positions, labels=labels)


def _choose_tokens(random_key: Tensor, candidates: Tensor, num_predictions: Tensor) -> Tensor:
    """The num_predictions candidates of each row with the lowest random keys, (B, S) bool."""
    random_key = torch.where(candidates, random_key, 2**32)  # higher than any hash: comes last
    # The argsort of an argsort is the rank: keys [90, 20, 50] have the order [1, 2, 0] and so the
    # ranks [2, 0, 1].
    rank = random_key.argsort(dim=1, stable=True).argsort(dim=1)
    return candidates & (rank < num_predictions[:, None])


@lru_cache(maxsize=32)
def _tables(special_ids: tuple[int, ...], vocab_size: int, rate: float, S: int,
            device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The special tokens, all other tokens, and the count of predictions in each length up to S.

    They are made once and kept: what comes from a list has to be copied to the device, and a GPU
    would be waited for in every step.
    """
    # Departure: BERT's release may draw [PAD] or [MASK] as a random word; here it is a real one.
    special, words = torch.tensor(special_ids), torch.arange(vocab_size)
    words = words[~torch.isin(words, special)]
    # Why 15 %: a sequence teaches only where it is predicted, so a low rate wastes most of each
    # step; but what is masked is lost as context, so a high rate leaves too little to predict from.
    # Paper: google-research/bert counts [CLS] and [SEP], rounds half to even, predicts at least 1.
    # Departure: RoBERTa's fairseq rounds at random; a fixed count serves both recipes here.
    predictions = torch.tensor([0] + [max(1, round(rate * n)) for n in range(1, S + 1)])
    return special.to(device), words.to(device), predictions.to(device)
