"""Masks: which tokens are masked, how many, and that only (seed, epoch, sequence) decides it."""
import pytest
import torch
import torch.nn.functional as F

from minibert.data import Batch
from minibert.masking import (IGNORE, MASKED_OF_TEN, RANDOM_OF_TEN, DynamicMasker, StaticMasker,
                              mask_tokens)
from minibert.tokenizer import SpecialIds

PAD, UNK, CLS, SEP, MASK = SPECIAL = SpecialIds(*range(5))
VOCAB = 50
# Of the chosen tokens: [MASK], a random word, and as it was.
SHARES = [MASKED_OF_TEN / 10, RANDOM_OF_TEN / 10, (10 - MASKED_OF_TEN - RANDOM_OF_TEN) / 10]
SETTINGS = dict(seed=0, vocab_size=VOCAB, mask_id=MASK, special_ids=SPECIAL)  # padding is 0


def make_ids(rows, length, padding=0):
    """Rows of [CLS] words [SEP] words [SEP] and padding; the same at every call."""
    ids = torch.randint(5, VOCAB, (rows, length), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = CLS
    ids[:, length // 2] = SEP
    ids[:, length - padding - 1] = SEP
    ids[:, length - padding:] = PAD
    return ids


def mask(ids, sequence_ids=None, epoch=0, **changes):
    """`mask_tokens` with this file's settings; the rows are numbers 0, 1, 2 ... if not told."""
    sequence_ids = torch.arange(len(ids)) if sequence_ids is None else torch.tensor(sequence_ids)
    return mask_tokens(ids, sequence_ids, epoch=epoch, **{**SETTINGS, **changes})


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second))


def chi_square(counts, shares):
    """Pearson's statistic of counts against the shares they should have."""
    expected = [share * sum(counts) for share in shares]
    return sum((count - e) ** 2 / e for count, e in zip(counts, expected) if e)


# By hand.


def test_one_candidate_is_predicted():
    """Would catch: a short sequence without a prediction: its loss would be 0/0."""
    inputs, positions, labels = mask(torch.tensor([[CLS, 9, SEP]] * 50))
    assert positions.tolist() == [[1]] * 50 and labels.tolist() == [[9]] * 50


def test_golden_values():
    """Would catch: a changed random stream, by which no old run could be repeated."""
    assert (MASKED_OF_TEN, RANDOM_OF_TEN) == (8, 1)  # and one of ten stays as it is
    ids = torch.arange(10, 30).repeat(2, 1)
    ids[:, 0], ids[:, -1], ids[1, 12:] = CLS, SEP, PAD
    inputs, positions, labels = mask(ids, [5, 2**31 + 5], epoch=2, seed=1)
    assert positions.tolist() == [[6, 10, 13], [2, 7, 0]]
    assert labels.tolist() == [[16, 20, 23], [12, 17, IGNORE]]
    # [MASK] [MASK] kept, and [MASK] and a random word; the unused slot reads [CLS].
    assert inputs.gather(1, positions).tolist() == [[MASK, MASK, 23], [MASK, 32, CLS]]


# Which positions may be predicted, and how many.


def test_special_tokens_are_never_predicted():
    """Would catch: [CLS], [SEP], [PAD] or [UNK] predicted, or changed, in 10,000 draws."""
    ids = make_ids(10_000, 24, padding=5)
    ids[:, 3] = UNK
    inputs, _, labels = mask(ids)
    assert not torch.isin(labels, torch.tensor(SPECIAL)).any()
    is_special = torch.isin(ids, torch.tensor(SPECIAL))
    assert torch.equal(inputs[is_special], ids[is_special])


def test_padding_does_not_count_and_is_not_predicted():
    """Would catch: padding predicted, or counted among the tokens of which 15% are."""
    padded, plain = make_ids(200, 128, padding=108), make_ids(200, 128, padding=108)[:, :20]
    _, positions, labels = mask(padded)
    used = labels != IGNORE
    assert (used.sum(1) == 3).all()  # round(0.15 * 20), and not round(0.15 * 128)
    assert (positions[used] < 20).all()
    assert same((positions[:, :3], labels[:, :3]), mask(plain)[1:])


def test_pad_id_of_roberta():
    """Would catch: padding found by id 0, whatever pad_id says: RoBERTa's <pad> is 1."""
    ids = make_ids(50, 40, padding=20)
    swapped = torch.where(ids == PAD, 1, ids)
    assert same(mask(ids)[1:], mask(swapped, pad_id=1)[1:])


def test_all_that_is_predicted_has_a_label_and_nothing_else():
    """Would catch: tokens "kept as they are" left out of the loss, the rest in it."""
    ids = make_ids(2000, 64)
    inputs, positions, labels = mask(ids)
    assert labels.shape == (2000, 10) and (labels != IGNORE).all()  # round(0.15 * 64)
    kept = (inputs.gather(1, positions) == labels).float().mean()
    assert abs(kept - SHARES[2]) < 0.01
    others = torch.ones_like(ids, dtype=torch.bool).scatter(1, positions, False)
    assert torch.equal(inputs[others], ids[others])


def test_ignore_is_what_torch_ignores():
    """Would catch: another number than cross_entropy's default: padding is learned."""
    logits, labels = torch.randn(3, VOCAB), torch.tensor([7, IGNORE, IGNORE])
    assert torch.equal(F.cross_entropy(logits, labels), F.cross_entropy(logits[:1], labels[:1]))


@pytest.mark.parametrize("length, count", [
    (3, 1), (4, 1), (10, 2), (16, 2), (24, 4), (30, 4), (50, 8), (70, 10), (128, 19), (512, 77)])
def test_exact_count(length, count):
    """Would catch: 15% drawn for each token, int() for round(), or half rounded up."""
    ids = make_ids(40, length)
    ids[:, 1] = 7
    padded = F.pad(ids, (0, 20), value=PAD)  # here there are more slots than predictions
    for rows in (ids, padded):
        assert ((mask(rows)[2] != IGNORE).sum(1) == count).all()


def test_count_in_rows_of_different_length():
    """Would catch: the count of the padded length or the longest row given to all."""
    ids = torch.cat([make_ids(1, 70, padding) for padding in (0, 40, 60, 66)])
    assert (mask(ids)[2] != IGNORE).sum(1).tolist() == [10, 4, 2, 1]


def test_rate():
    """Would catch: 0.15 written into the code, --mask-rate without effect."""
    ids = make_ids(20, 100)
    assert ((mask(ids, rate=0.4)[2] != IGNORE).sum(1) == 40).all()
    assert ((mask(ids, rate=1.0)[2] != IGNORE).sum(1) == 97).all()  # all but three specials


def test_rows_without_candidates():
    """Would catch: a row of padding or of specials only with a prediction, or an error."""
    ids = torch.tensor([[PAD] * 14, [CLS, SEP] * 7, [CLS, 8, SEP] + [PAD] * 11])
    inputs, positions, labels = mask(ids)
    assert torch.equal(inputs[:2], ids[:2])
    assert positions.tolist() == [[0, 0], [0, 0], [1, 0]]
    assert labels.tolist() == [[IGNORE, IGNORE], [IGNORE, IGNORE], [8, IGNORE]]


def test_positions_ascend_and_unused_slots_come_last():
    """Would catch: unsorted positions; unused slots in front, elsewhere or with a label"""
    ids = torch.cat([make_ids(200, 64, padding) for padding in (0, 10, 30, 50, 61)])
    _, positions, labels = mask(ids)
    for where, words in zip(positions.tolist(), labels.tolist()):
        count = sum(word != IGNORE for word in words)
        assert where[:count] == sorted(set(where[:count])) and 0 not in where[:count]
        assert where[count:] == [0] * (10 - count) and words[count:] == [IGNORE] * (10 - count)


def test_every_position_is_chosen_equally_often():
    """Would catch: early positions preferred, or the same ones in every row."""
    ids = make_ids(20_000, 20)
    _, positions, _ = mask(ids)
    counts = positions.flatten().bincount(minlength=20).tolist()
    places = [p for p in range(20) if p not in (0, 10, 19)]
    assert counts[0] == counts[10] == counts[19] == 0
    assert chi_square([counts[p] for p in places], [1 / 17] * 17) < 39  # p = 0.001


# What becomes of the chosen tokens.


def test_shares_of_mask_random_and_kept():
    """Would catch: a tenth of the last fifth instead of half of it: 80/2/18."""
    ids = torch.full((10_000, 64), 7)
    ids[:, 0], ids[:, -1] = CLS, SEP
    inputs, positions, _ = mask(ids, vocab_size=1000)
    shown = inputs.gather(1, positions)
    counts = [int((shown == MASK).sum()), int(((shown != MASK) & (shown != 7)).sum()),
              int((shown == 7).sum())]
    assert sum(counts) == 100_000
    assert chi_square(counts, SHARES) < 13.8  # p = 0.001


def test_what_happens_does_not_depend_on_where():
    """Would catch: one hash for two draws, so that the choice decides what is shown."""
    ids = torch.full((20_000, 34), 7)
    ids[:, 0], ids[:, -1] = CLS, SEP
    inputs, positions, _ = mask(ids, vocab_size=1000)  # 5 predictions in a row
    kind = torch.where(inputs == MASK, 0, torch.where(inputs == 7, 2, 1)).gather(1, positions)
    for slots in (positions < 17, positions >= 17, positions % 2 == 0):
        counts = kind[slots].bincount(minlength=3).tolist()
        assert chi_square(counts, SHARES) < 13.8
    pairs = (kind[:, :-1] * 3 + kind[:, 1:]).flatten().bincount(minlength=9).tolist()
    shares = [a * b for a in SHARES for b in SHARES]
    assert chi_square(pairs, shares) < 26.1  # neighbours do not influence each other; p = 0.001


def test_random_words_are_real_words_equally_often():
    """Would catch: [PAD] or [MASK] drawn as a random word, or a real word never drawn."""
    special_ids, word = (0, 1, 2, 3, 29), 15  # as in RoBERTa, the last id is <mask>
    ids = torch.full((40_000, 34), word)
    ids[:, 0], ids[:, -1] = 2, 3
    inputs, positions, _ = mask(ids, vocab_size=30, mask_id=29, special_ids=special_ids)
    counts = inputs.gather(1, positions).flatten().bincount(minlength=30)
    assert counts[[0, 1, 2, 3]].tolist() == [0] * 4
    words = [n for n in range(4, 29) if n != word]
    assert chi_square(counts[words].tolist(), [1 / 24] * 24) < 49.7  # p = 0.001


def test_labels_are_the_original_tokens():
    """Would catch: inputs and labels from two different draws."""
    ids = make_ids(1000, 60, padding=7)
    inputs, positions, labels = mask(ids)
    used = labels != IGNORE
    assert torch.equal(labels[used], ids.gather(1, positions)[used])
    rows, columns = (inputs != ids).nonzero(as_tuple=True)  # every changed token is predicted
    assert (positions[rows] == columns[:, None]).any(1).all()


def test_input_is_left_as_it_is():
    """Would catch: masking in place, so that each epoch hides more of the text."""
    ids = make_ids(50, 40)
    before, sequence_ids = ids.clone(), torch.arange(50)
    mask_tokens(ids, sequence_ids, epoch=0, **SETTINGS)
    assert torch.equal(ids, before) and torch.equal(sequence_ids, torch.arange(50))


# The same or new masks.


def batch_of(ids, epoch=0):
    """A batch of these tokens, which are sequences 0, 1, 2 ... in an epoch."""
    return Batch(ids, (ids != PAD).long(), torch.zeros_like(ids), torch.zeros(len(ids)),
                 torch.arange(len(ids)), epoch)


@pytest.mark.parametrize("masker", [StaticMasker(SPECIAL, VOCAB, seed=3, rate=0.3, masks=2),
                                    DynamicMasker(SPECIAL, VOCAB, seed=3, rate=0.3)])
def test_a_masker_holds_the_settings_of_mask_tokens(masker):
    """Would catch: a seed, a rate or an epoch that a masker does not pass on, or a batch that
    loses what is not masked."""
    batch = batch_of(make_ids(8, 60, padding=5), epoch=3)
    masked = masker(batch)
    duplicate = 1 if isinstance(masker, StaticMasker) else 3
    assert same((masked.input_ids, masked.masked_positions, masked.labels),
                mask(batch.input_ids, epoch=duplicate, seed=3, rate=0.3))
    for name in ("attention_mask", "token_type_ids", "is_random_next", "sequence_ids", "epoch"):
        assert getattr(masked, name) is getattr(batch, name)


def test_dynamic_masks_are_all_different():
    """Would catch: "dynamic" masks that are made once and repeat."""
    ids, masker = make_ids(8, 60), DynamicMasker(SPECIAL, VOCAB, seed=0)
    seen = [masker(batch_of(ids, epoch)) for epoch in range(30)]
    for row in range(8):
        assert len({tuple(batch.masked_positions[row].tolist()) for batch in seen}) == 30
    again = masker(batch_of(ids, 3))  # a replay, as after a resume
    assert torch.equal(again.input_ids, seen[3].input_ids)


@pytest.mark.parametrize("masks", [1, 4, 10])
def test_static_masks_repeat(masks):
    """Would catch: "static" masks drawn anew, too few or too many, or with another period."""
    ids, masker = make_ids(4, 60), StaticMasker(SPECIAL, VOCAB, seed=0, masks=masks)
    seen = [masker(batch_of(ids, epoch)).input_ids for epoch in range(3 * masks)]
    for epoch in range(2 * masks):
        assert torch.equal(seen[epoch], seen[epoch + masks])
    for row in range(4):
        assert len({tuple(inputs[row].tolist()) for inputs in seen}) == masks


def test_duplicates_that_the_pairs_follow():
    """Would catch: static masks on pairs that change, dynamic ones on fixed pairs."""
    static, dynamic = (kind(SPECIAL, VOCAB, seed=0) for kind in (StaticMasker, DynamicMasker))
    assert [static.duplicate_of(epoch) for epoch in (0, 1, 9, 10, 11)] == [0, 1, 9, 0, 1]
    assert [dynamic.duplicate_of(epoch) for epoch in (0, 1, 9, 10, 11)] == [0, 1, 9, 10, 11]


def test_mask_does_not_depend_on_the_batch():
    """Would catch: one stream of random numbers for a batch, a worker or a process."""
    ids = make_ids(32, 40)
    whole = mask(ids)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)  # what torch's own generator did before is of no importance
    assert same(mask(ids[order], order.tolist()), [part[order] for part in whole])
    for row in range(32):
        assert same(mask(ids[row:row + 1], [row]), [part[row:row + 1] for part in whole])


def test_mask_does_not_depend_on_the_padded_length():
    """Would catch: numbers counted through the batch, so that padding shifts them."""
    ids = make_ids(32, 40)
    wider = F.pad(ids, (0, 24), value=PAD)
    (inputs, positions, labels), (wide, where, words) = mask(ids), mask(wider)
    assert torch.equal(wide[:, :40], inputs)
    assert torch.equal(where[:, :6], positions) and torch.equal(words[:, :6], labels)


def test_seed_epoch_and_index_matter():
    """Would catch: a key left out: all rows, epochs or seeds alike."""
    row = make_ids(1, 60)
    seen = {tuple(mask(row, [sequence_ids], epoch, seed=seed)[1][0].tolist())
            for seed in range(5) for epoch in range(5) for sequence_ids in range(5)}
    assert len(seen) == 125
    kinds = {tuple((mask(row, [sequence_ids], epoch, seed=seed, rate=1.0)[0] == MASK)[0].tolist())
             for seed in range(5) for epoch in range(5) for sequence_ids in range(5)}
    assert len(kinds) == 125  # at rate 1 all are chosen: here the draw of what to show must differ


def test_random_words_are_drawn_anew():
    """Would catch: one random word at a position in all rows, epochs or runs."""
    row = torch.full((1, 3000), 7)
    first = mask(row, [0], rate=1.0, vocab_size=1000)[0]
    for changes in (dict(sequence_ids=[1]), dict(epoch=1), dict(seed=1)):
        other = mask(row, **{"sequence_ids": [0], "rate": 1.0, "vocab_size": 1000, **changes})[0]
        both = (first > 7) & (other > 7)  # about thirty random words at the same positions
        assert both.sum() > 10 and (first[both] != other[both]).float().mean() > 0.9


def test_large_indices():
    """Would catch: the index cut to 32 bits with a sign, so that large corpora repeat masks."""
    row = make_ids(1, 60)
    numbers = [0, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1]
    masks = [mask(row, [number]) for number in numbers]
    assert len({tuple(positions[0].tolist()) for _, positions, _ in masks}) == 5
    assert all(len(positions.unique()) == 9 for _, positions, _ in masks)
