"""Masks: which tokens are masked, how many, and that only (seed, epoch, sequence) decides it."""
import pytest
import torch
import torch.nn.functional as F

from minibert.masking import (IGNORE, MASKED_OF_TEN, RANDOM_OF_TEN, DynamicMasker, StaticMasker,
                              hash_bits, mask_tokens)
from minibert.tokenizer import continuations, special_ids, train_tokenizer

PAD, UNK, CLS, SEP, MASK = SPECIAL = tuple(range(5))
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


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other))


def chi_square(counts, shares):
    """Pearson's statistic of counts against the shares they should have."""
    expected = [share * sum(counts) for share in shares]
    return sum((count - e) ** 2 / e for count, e in zip(counts, expected) if e)


# Which positions may be predicted, and how many.


def test_special_tokens_are_never_predicted():
    """Would catch: [CLS], [SEP], [PAD] or [UNK] predicted, or changed, in 10,000 draws (trap 5)."""
    ids = make_ids(10_000, 24, padding=5)
    ids[:, 3] = UNK
    inputs, _, labels = mask(ids)
    assert not torch.isin(labels, torch.tensor(SPECIAL)).any()
    is_special = torch.isin(ids, torch.tensor(SPECIAL))
    assert torch.equal(inputs[is_special], ids[is_special])


def test_padding_does_not_count_and_is_not_predicted():
    """Would catch: padding predicted, or counted among the tokens of which 15% are (trap 6)."""
    padded, plain = make_ids(200, 128, padding=108), make_ids(200, 128, padding=108)[:, :20]
    _, positions, labels = mask(padded)
    used = labels != IGNORE
    assert (used.sum(1) == 3).all()  # round(0.15 * 20), and not round(0.15 * 128)
    assert (positions[used] < 20).all()
    assert same((positions[:, :3], labels[:, :3]), mask(plain)[1:])


def test_pad_id_of_roberta():
    """Would catch: padding found by id 0, whatever pad_id says: RoBERTa's <pad> is 1 (trap 6)."""
    ids = make_ids(50, 40, padding=20)
    swapped = torch.where(ids == PAD, 1, ids)
    assert same(mask(ids)[1:], mask(swapped, pad_id=1)[1:])


def test_all_that_is_predicted_has_a_label_and_nothing_else():
    """Would catch: tokens "kept as they are" left out of the loss, the rest in it (trap 7)."""
    ids = make_ids(2000, 64)
    inputs, positions, labels = mask(ids)
    assert labels.shape == (2000, 10) and (labels != IGNORE).all()  # round(0.15 * 64)
    kept = (inputs.gather(1, positions) == labels).float().mean()
    assert abs(kept - SHARES[2]) < 0.01
    others = torch.ones_like(ids, dtype=torch.bool).scatter(1, positions, False)
    assert torch.equal(inputs[others], ids[others])


def test_ignore_is_what_torch_ignores():
    """Would catch: another number than cross_entropy's default: padding is learned (trap 7)."""
    logits, labels = torch.randn(3, VOCAB), torch.tensor([7, IGNORE, IGNORE])
    assert torch.equal(F.cross_entropy(logits, labels), F.cross_entropy(logits[:1], labels[:1]))


@pytest.mark.parametrize("length, count", [
    (3, 1), (4, 1), (10, 2), (16, 2), (24, 4), (30, 4), (50, 8), (70, 10), (128, 19), (512, 77)])
def test_exact_count(length, count):
    """Would catch: 15% drawn for each token, int() for round(), or half rounded up (trap 10)."""
    ids = make_ids(40, length)
    ids[:, 1] = 7
    padded = F.pad(ids, (0, 20), value=PAD)  # here there are more slots than predictions
    for rows in (ids, padded):
        assert ((mask(rows)[2] != IGNORE).sum(1) == count).all()


def test_count_in_rows_of_different_length():
    """Would catch: the count of the padded length or the longest row given to all (trap 10)."""
    ids = torch.cat([make_ids(1, 70, padding) for padding in (0, 40, 60, 66)])
    assert (mask(ids)[2] != IGNORE).sum(1).tolist() == [10, 4, 2, 1]


def test_rate():
    """Would catch: 0.15 written into the code, --mask-rate without effect (trap 10)."""
    ids = make_ids(20, 100)
    assert ((mask(ids, rate=0.4)[2] != IGNORE).sum(1) == 40).all()
    assert ((mask(ids, rate=1.0)[2] != IGNORE).sum(1) == 97).all()  # all but three specials


def test_one_candidate_is_predicted():
    """Would catch: a short sequence without a prediction: its loss would be 0/0 (trap 10)."""
    inputs, positions, labels = mask(torch.tensor([[CLS, 9, SEP]] * 50))
    assert positions.tolist() == [[1]] * 50 and labels.tolist() == [[9]] * 50


def test_rows_without_candidates():
    """Would catch: a row of padding or of specials only with a prediction, or an error (trap 6)."""
    ids = torch.tensor([[PAD] * 14, [CLS, SEP] * 7, [CLS, 8, SEP] + [PAD] * 11])
    inputs, positions, labels = mask(ids)
    assert torch.equal(inputs[:2], ids[:2])
    assert positions.tolist() == [[0, 0], [0, 0], [1, 0]]
    assert labels.tolist() == [[IGNORE, IGNORE], [IGNORE, IGNORE], [8, IGNORE]]


def test_positions_ascend_and_unused_slots_come_last():
    """Would catch: unsorted positions; unused slots in front, elsewhere or with a label (trap 7)"""
    ids = torch.cat([make_ids(200, 64, padding) for padding in (0, 10, 30, 50, 61)])
    _, positions, labels = mask(ids)
    for where, words in zip(positions.tolist(), labels.tolist()):
        count = sum(word != IGNORE for word in words)
        assert where[:count] == sorted(set(where[:count])) and 0 not in where[:count]
        assert where[count:] == [0] * (10 - count) and words[count:] == [IGNORE] * (10 - count)


def test_every_position_is_chosen_equally_often():
    """Would catch: early positions preferred, or the same ones in every row (trap 10)."""
    ids = make_ids(20_000, 20)
    _, positions, _ = mask(ids)
    counts = positions.flatten().bincount(minlength=20).tolist()
    places = [p for p in range(20) if p not in (0, 10, 19)]
    assert counts[0] == counts[10] == counts[19] == 0
    assert chi_square([counts[p] for p in places], [1 / 17] * 17) < 39  # p = 0.001


# What becomes of the chosen tokens.


def test_shares_of_mask_random_and_kept():
    """Would catch: a tenth of the last fifth instead of half of it: 80/2/18 (trap 8)."""
    ids = torch.full((10_000, 64), 7)
    ids[:, 0], ids[:, -1] = CLS, SEP
    inputs, positions, _ = mask(ids, vocab_size=1000)
    shown = inputs.gather(1, positions)
    counts = [int((shown == MASK).sum()), int(((shown != MASK) & (shown != 7)).sum()),
              int((shown == 7).sum())]
    assert sum(counts) == 100_000
    assert chi_square(counts, SHARES) < 13.8  # p = 0.001


def test_what_happens_does_not_depend_on_where():
    """Would catch: one hash for two draws, so that the choice decides what is shown (trap 8)."""
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
    """Would catch: [PAD] or [MASK] drawn as a random word, or a real word never drawn (trap 9)."""
    special_ids, word = (0, 1, 2, 3, 29), 15  # as in RoBERTa, the last id is <mask>
    ids = torch.full((40_000, 34), word)
    ids[:, 0], ids[:, -1] = 2, 3
    inputs, positions, _ = mask(ids, vocab_size=30, mask_id=29, special_ids=special_ids)
    counts = inputs.gather(1, positions).flatten().bincount(minlength=30)
    assert counts[[0, 1, 2, 3]].tolist() == [0] * 4
    words = [n for n in range(4, 29) if n != word]
    assert chi_square(counts[words].tolist(), [1 / 24] * 24) < 49.7  # p = 0.001


def test_labels_are_the_original_tokens():
    """Would catch: inputs and labels from two different draws (trap 14)."""
    ids = make_ids(1000, 60, padding=7)
    inputs, positions, labels = mask(ids)
    used = labels != IGNORE
    assert torch.equal(labels[used], ids.gather(1, positions)[used])
    rows, columns = (inputs != ids).nonzero(as_tuple=True)  # every changed token is predicted
    assert (positions[rows] == columns[:, None]).any(1).all()


def test_input_is_left_as_it_is():
    """Would catch: masking in place, so that each epoch hides more of the text (trap 15)."""
    ids = make_ids(50, 40)
    before, sequence_ids = ids.clone(), torch.arange(50)
    mask_tokens(ids, sequence_ids, epoch=0, **SETTINGS)
    mask_tokens(ids, sequence_ids, epoch=0, **SETTINGS, continues=torch.arange(VOCAB) > 25)
    assert torch.equal(ids, before) and torch.equal(sequence_ids, torch.arange(50))


# The same or new masks.


def test_dynamic_masks_are_all_different():
    """Would catch: "dynamic" masks that are made once and repeat (trap 11)."""
    ids, sequence_ids = make_ids(8, 60), torch.arange(8)
    seen = [DynamicMasker()(ids, sequence_ids, epoch=epoch, **SETTINGS) for epoch in range(30)]
    for row in range(8):
        assert len({tuple(positions[row].tolist()) for _, positions, _ in seen}) == 30
    again = DynamicMasker()(ids, sequence_ids, epoch=3, **SETTINGS)  # a replay, as after a resume
    assert same(again, seen[3])


@pytest.mark.parametrize("k", [1, 4, 10])
def test_static_masks_repeat(k):
    """Would catch: "static" masks drawn anew, fewer or more than k, or another period (trap 13)."""
    ids, sequence_ids, masker = make_ids(4, 60), torch.arange(4), StaticMasker(k)
    seen = [masker(ids, sequence_ids, epoch=epoch, **SETTINGS) for epoch in range(3 * k)]
    for epoch in range(2 * k):
        assert same(seen[epoch], seen[epoch + k])
    for row in range(4):
        assert len({tuple(inputs[row].tolist()) for inputs, _, _ in seen}) == k


def test_copies_that_the_pairs_follow():
    """Would catch: static masks on pairs that change, dynamic ones on fixed pairs (trap 13)."""
    assert [StaticMasker(3).dupe(epoch) for epoch in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [DynamicMasker().dupe(epoch) for epoch in range(4)] == [0, 1, 2, 3]
    assert StaticMasker().masks == 10


def test_mask_does_not_depend_on_the_batch():
    """Would catch: one stream of random numbers for a batch, a worker or a process (trap 12)."""
    ids = make_ids(32, 40)
    whole = mask(ids)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)  # what torch's own generator did before is of no importance
    assert same(mask(ids[order], order.tolist()), [part[order] for part in whole])
    for row in range(32):
        assert same(mask(ids[row:row + 1], [row]), [part[row:row + 1] for part in whole])


def test_mask_does_not_depend_on_the_padded_length():
    """Would catch: numbers counted through the batch, so that padding shifts them (trap 12)."""
    ids = make_ids(32, 40)
    wider = F.pad(ids, (0, 24), value=PAD)
    (inputs, positions, labels), (wide, where, words) = mask(ids), mask(wider)
    assert torch.equal(wide[:, :40], inputs)
    assert torch.equal(where[:, :6], positions) and torch.equal(words[:, :6], labels)


def test_seed_epoch_and_index_matter():
    """Would catch: a key left out: all rows, epochs or seeds alike (trap 11, trap 12)."""
    row = make_ids(1, 60)
    seen = {tuple(mask(row, [sequence_ids], epoch, seed=seed)[1][0].tolist())
            for seed in range(5) for epoch in range(5) for sequence_ids in range(5)}
    assert len(seen) == 125
    kinds = {tuple((mask(row, [sequence_ids], epoch, seed=seed, rate=1.0)[0] == MASK)[0].tolist())
             for seed in range(5) for epoch in range(5) for sequence_ids in range(5)}
    assert len(kinds) == 125  # at rate 1 all are chosen: here the draw of what to show must differ


def test_random_words_are_drawn_anew():
    """Would catch: one random word at a position in all rows, epochs or runs (trap 11, trap 12)."""
    row = torch.full((1, 3000), 7)
    first = mask(row, [0], rate=1.0, vocab_size=1000)[0]
    for changes in (dict(sequence_ids=[1]), dict(epoch=1), dict(seed=1)):
        other = mask(row, **{"sequence_ids": [0], "rate": 1.0, "vocab_size": 1000, **changes})[0]
        both = (first > 7) & (other > 7)  # about thirty random words at the same positions
        assert both.sum() > 10 and (first[both] != other[both]).float().mean() > 0.9


# The random numbers.


def test_hash_of_numbers_and_tensors_agree():
    """Would catch: an overflow in one of the forms, and so other masks elsewhere (trap 12)."""
    numbers = [0, 1, 2, 1000, 2**31 - 1, 2**31, 2**31 + 5, 2**32 - 1, 2**40 + 3, 2**62 + 9]
    rows, columns = torch.tensor(numbers)[:, None], torch.arange(4)
    found = hash_bits(7, "choose", rows, columns)
    assert found.tolist() == [[hash_bits(7, "choose", n, p) for p in range(4)] for n in numbers]
    assert found.min() >= 0 and found.max() < 2**32
    assert len(set(found.flatten().tolist())) == 40


def test_large_indices():
    """Would catch: the index cut to 32 bits with a sign, so that large corpora repeat masks."""
    row = make_ids(1, 60)
    numbers = [0, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1]
    masks = [mask(row, [number]) for number in numbers]
    assert len({tuple(positions[0].tolist()) for _, positions, _ in masks}) == 5
    assert all(len(positions.unique()) == 9 for _, positions, _ in masks)


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
@pytest.mark.parametrize("varied", [0, 1, 2, 3])
def test_hash_is_uniform(shift, varied):
    """Would catch: consecutive seeds, epochs, indices or positions that give related numbers."""
    keys = [3, 5, 7, 11]
    keys[varied] = torch.arange(65_536)
    counts = ((hash_bits(*keys) >> shift) & 255).bincount(minlength=256).tolist()
    assert chi_square(counts, [1 / 256] * 256) < 341  # p = 0.0003


def test_every_key_of_the_hash_changes_half_of_the_bits():
    """Would catch: a key that is ignored, or mixed in so weakly that masks are alike (trap 12)."""
    keys = [0, 0, "choose", 0, 0]
    changed = [1, 1, "hide", 1, 1]
    for place in range(5):
        other = [*keys[:place], changed[place], *keys[place + 1:]]
        ends = torch.arange(2000)
        bits = (hash_bits(*keys, ends) ^ hash_bits(*other, ends))[:, None] >> torch.arange(32)
        assert 0.48 < (bits & 1).float().mean() < 0.52


def test_order_of_the_keys_counts():
    """Would catch: keys added up, so that epoch 1 of row 2 is epoch 2 of row 1 (trap 12)."""
    assert hash_bits(1, 2) != hash_bits(2, 1)
    assert hash_bits("a", 1) != hash_bits(1, "a")
    assert hash_bits(0, 0) != hash_bits(0)


def test_golden_values():
    """Would catch: a changed random stream, by which no old run could be repeated (trap 12)."""
    assert (MASKED_OF_TEN, RANDOM_OF_TEN) == (8, 1)  # and one of ten stays as it is
    ids = torch.arange(10, 30).repeat(2, 1)
    ids[:, 0], ids[:, -1], ids[1, 12:] = CLS, SEP, PAD
    inputs, positions, labels = mask(ids, [5, 2**31 + 5], epoch=2, seed=1)
    assert positions.tolist() == [[6, 10, 13], [2, 7, 0]]
    assert labels.tolist() == [[16, 20, 23], [12, 17, IGNORE]]
    # [MASK] [MASK] kept, and [MASK] and a random word; the unused slot reads [CLS].
    assert inputs.gather(1, positions).tolist() == [[MASK, MASK, 23], [MASK, 32, CLS]]


# Whole words.


def words_of(row, continues):
    """The words of a row, each as a list of its positions."""
    words = []
    for position, token in enumerate(row):
        if token in SPECIAL:
            continue
        if continues[token] and words and words[-1][-1] == position - 1:
            words[-1].append(position)
        else:
            words.append([position])
    return words


def test_whole_words_or_nothing():
    """Would catch: half a word hidden, too many tokens, stopping at a large word (trap 42)."""
    ids, continues = make_ids(1000, 40, padding=6), torch.arange(VOCAB) >= 25
    _, positions, labels = mask(ids, continues=continues)
    for row, where, label in zip(ids.tolist(), positions.tolist(), labels.tolist()):
        chosen = {p for p, word in zip(where, label) if word != IGNORE}
        left_out = []
        for word in words_of(row, continues):
            assert chosen >= set(word) or not chosen & set(word)
            left_out += [] if chosen >= set(word) else [len(word)]
        assert len(chosen) <= 5  # round(0.15 * 34)
        assert all(size > 5 - len(chosen) for size in left_out)  # none of them would have fitted


def test_word_that_would_overflow_is_skipped():
    """Would catch: a word with more pieces than the count, predicted or the last (trap 42)."""
    ids = torch.tensor([[CLS, *range(10, 20), 40, 41, 42, 43, 44, 45, *range(5, 17), SEP]] * 500)
    _, positions, labels = mask(ids, continues=torch.arange(VOCAB) > 40)
    assert (labels != IGNORE).all() and labels.shape == (500, 4)  # round(0.15 * 30)
    assert not torch.isin(labels, torch.arange(40, 46)).any()


def test_words_end_at_special_tokens():
    """Would catch: a word that goes on over [SEP], or from [CLS], and hides a special (trap 42)."""
    ids = torch.tensor([[CLS, 41, 42, SEP, 43, 44, SEP]] * 200)
    _, positions, _ = mask(ids, continues=torch.arange(VOCAB) > 40, rate=0.3)  # 2 predictions
    assert {tuple(row) for row in positions.tolist()} == {(1, 2), (4, 5)}


def test_words_of_one_piece_are_chosen_like_tokens():
    """Would catch: another draw or another count than without whole words (trap 42)."""
    ids = make_ids(200, 50, padding=5)
    for rows in (ids, ids[:, 1:25]):  # the second have no special token
        assert same(mask(rows, continues=torch.zeros(VOCAB, dtype=torch.bool)), mask(rows))


def test_every_word_is_chosen_equally_often():
    """Would catch: words preferred for their place or for one lucky piece of many (trap 42)."""
    ids = torch.tensor([[CLS] + [10, 41] * 12 + [SEP]] * 6000)
    _, positions, labels = mask(ids, continues=torch.arange(VOCAB) > 40)
    assert (labels != IGNORE).all()  # round(0.15 * 26) = 4: two words of two
    counts = positions[:, ::2].flatten().bincount(minlength=25)[1::2].tolist()
    assert chi_square(counts, [1 / 12] * 12) < 31.3  # p = 0.001
    mixed = torch.tensor([[CLS] + [10] * 9 + [10, 41, 41] + [10] * 9 + [SEP]] * 6000)
    found = mask(mixed, continues=torch.arange(VOCAB) > 40)[2]
    assert 0.044 < (found == 41).any(1).float().mean() < 0.062  # 1/19: it fits if it is the first


@pytest.mark.parametrize("kind, vocab_size", [("wordpiece", 70), ("bpe", 290)])
def test_whole_words_of_both_tokenizers(kind, vocab_size):
    """Would catch: byte-level BPE's marks, which start a word, read like WordPiece's (trap 42)."""
    sentence = "an unbelievably long afternoon passed over the unremarkable northern harbour town"
    tokenizer = train_tokenizer(lambda: [sentence] * 3, kind, vocab_size)
    encoding, special = tokenizer.encode(sentence), special_ids(tokenizer)
    ids = torch.tensor([encoding.ids] * 300)
    assert len(encoding.ids) > 3 + len(sentence.split())  # there are words of several pieces
    _, positions, labels = mask_tokens(
        ids, torch.arange(300), seed=0, epoch=0, vocab_size=vocab_size, mask_id=special.mask,
        special_ids=tuple(special), pad_id=special.pad, rate=0.4,
        continues=continuations(tokenizer))
    pieces = {word: encoding.word_ids.count(word) for word in set(encoding.word_ids) - {None}}
    seen = set()
    for where, label in zip(positions.tolist(), labels.tolist()):
        hidden = [encoding.word_ids[p] for p, id in zip(where, label) if id != IGNORE]
        assert hidden and all(hidden.count(word) == pieces[word] for word in hidden)
        seen |= set(hidden)
    assert len(seen) > 8
