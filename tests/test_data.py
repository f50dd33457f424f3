"""Text to batches: documents, sentences, segment pairs, full sentences, tensors, order."""
import itertools
import random

import numpy as np
import pytest
import torch

import minibert.data as data_module
from minibert.config import RunConfig
from minibert.data import (Batches, TokenizedCorpus, assemble, full_sentences, make_sequences,
                           segment_pairs, sentences_of, tokenize)
from minibert.errors import UserError
from minibert.masking import DynamicMasker, StaticMasker
from minibert.tokenizer import SpecialIds, train_tokenizer

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)


def make_text(*documents):
    """A corpus of documents given as the lengths of their sentences; token i is 10 + i."""
    sentences, first, end = [], [0], 0
    separators = []
    for lengths in documents:
        for length in lengths:
            sentences.append((end, end + length))
            end += length
        first.append(len(sentences))
        separators.append(end)
        end += 1
    tokens = np.arange(10, 10 + end, dtype=np.uint16)
    tokens[separators] = SPECIAL.sep
    return TokenizedCorpus(tokens, np.array(sentences), np.array(first))


def random_text(seed, longest=12):
    """One to six documents of one to five sentences of up to `longest` tokens."""
    draw = random.Random(seed)
    return make_text(*[[draw.randint(1, longest) for _ in range(draw.randint(1, 5))]
                       for _ in range(draw.randint(1, 6))])


def document_of(text, position):
    """The number of the document in which a token stands."""
    sentence = np.searchsorted(text.sentences[:, 1], position, side="right")
    return int(np.searchsorted(text.first_sentences, sentence, side="right")) - 1


def pairs_of(text, max_tokens, *, seed=0, copies=1, short=0.0):
    """The pairs of several copies, as tuples (a_start, a_end, b_start, b_end, is_random)."""
    return [tuple(pair) for duplicate in range(copies)
            for pair in segment_pairs(text, max_tokens, seed=seed, duplicate=duplicate,
                                      short_seq_prob=short).tolist()]


# Sentences and tokens.


@pytest.mark.parametrize("line, sentences", [
    ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
    ("It costs 3.50 now. It did not.", ["It costs 3.50 now.", "It did not."]),
    ("Birds, e.g. tits. They sing.", ["Birds, e.g. tits.", "They sing."]),
    ("He said so.  \"Never!\" It was 5. 6 more.",
     ["He said so.", "\"Never!\" It was 5.", "6 more."]),
    ("Über. Änderung. Éclair.", ["Über.", "Änderung.", "Éclair."]),
    ("Wait... what? No.", ["Wait... what?", "No."]),
    ("你好。我很好！对吗？是", ["你好。", "我很好！", "对吗？", "是"]),
    ("no end", ["no end"]),
])
def test_sentences(line, sentences):
    """Would catch: a paragraph in one piece, CJK too; a cut in "e.g. x" or 3.50."""
    assert sentences_of([line]) == sentences


@pytest.mark.parametrize("line", ["你好。", "你好。 我很好！", "One. Two."])
def test_no_sentence_is_empty(line):
    """Would catch: an empty or padded sentence after the last full stop of a line."""
    sentences = sentences_of([line])
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)


def test_tokens_are_those_of_the_text_alone():
    """Would catch: a teacher's tokenizer that cuts, fills up or frames each sentence, as its
    file may say; a mark in the text that is taken for a special token; and settings of the
    caller's tokenizer that are changed."""
    tokenizer = train_tokenizer(lambda: ["one two [ mask ] three ."] * 9, "wordpiece", 37)
    read = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    sentences = [read("one two [ mask ] three"), read("one ."), read("two")]
    assert len(sentences[0]) > 3 and len(tokenizer.encode("one").ids) > len(read("one"))
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(3)
    before = tokenizer.to_str()
    [(tokens, lengths)] = tokenize(iter([["one two [MASK] three", "One. Two"]]), tokenizer)
    assert tokens == [*itertools.chain(*sentences), tokenizer.token_to_id("[SEP]")]
    assert lengths == [len(sentence) for sentence in sentences]
    assert tokenizer.to_str() == before


def test_first_tokens_are_whole_documents():
    """Would catch: a document cut in two, or a drawn part that a larger one does not contain."""
    text = make_text([10], [20, 9], [60], [5])  # 11, 30, 61 and 6 tokens with their [SEP]
    assert [text.first_tokens(count).num_documents for count in (1, 10, 11, 40, 41, 101, 108)] == [
        1, 1, 2, 2, 3, 3, 4]
    for count in (1, 11, 41, 108):
        part = text.first_tokens(count)
        assert part.first_sentences.tolist() == text.first_sentences.tolist()[
            :part.num_documents + 1]
        # Cropped whole: no sentence or token of other documents, and the last one's [SEP].
        assert len(part.sentences) == part.first_sentences[-1]
        assert len(part.tokens) == part.sentences[-1, 1] + 1


@pytest.mark.parametrize("input_format", ["segment-pair", "full-sentences", "doc-sentences"])
def test_first_tokens_are_all_that_sequences_see(input_format):
    """Would catch: a random B, or any block, from the documents that were left out."""
    text = make_text(*[[4, 4, 4]] * 20)
    part = text.first_tokens(128)
    spans = make_sequences(part, input_format, 16, seed=0, duplicate=0, short_seq_prob=0.1)
    assert part.num_documents == 10 and spans.max() == part.sentences[-1, 1]


# Segment pairs.


def test_label_0_is_a_pair_that_goes_on():
    """Would catch: NSP's labels the wrong way round: 0 is "B follows A", 1 is random."""
    text = make_text([5, 5], [5, 5])
    pairs = pairs_of(text, 10, copies=40)
    follows = [pair for pair in pairs if pair[4] == 0]
    assert set(follows) == {(0, 5, 5, 10, 0), (11, 16, 16, 21, 0)}
    assert all(pair[2] != pair[1] for pair in pairs if pair[4] == 1)


def test_true_pairs_are_contiguous():
    """Would catch: a gap, an overlap or the end of a document between A and a true B."""
    text = make_text(*[[3] * 7] * 10)
    for a_start, a_end, b_start, b_end, is_random in pairs_of(text, 12, copies=5):
        if not is_random:
            assert a_start < a_end == b_start < b_end
            assert document_of(text, a_start) == document_of(text, b_end - 1)


def test_random_b_is_from_another_document():
    """Would catch: a "random" B that is the real continuation or of the same document."""
    text = make_text([4, 4, 4], [4], [4, 4, 4, 4], [4, 4])
    seen = set()
    for a_start, _, b_start, b_end, is_random in pairs_of(text, 12, copies=200):
        if is_random:
            a, b = document_of(text, a_start), document_of(text, b_start)
            assert a != b and document_of(text, b_end - 1) == b
            seen.add((a, b))
    assert seen == set(itertools.permutations(range(4), 2))  # every document meets every other


def test_random_b_starts_anywhere_and_fills_the_room():
    """Would catch: a random B that always opens its document, or of one sentence only."""
    text = make_text([10], [1] * 30)
    randoms = [pair for pair in pairs_of(text, 20, copies=300) if pair[0] == 0]
    assert {pair[2] for pair in randoms} == set(range(11, 41))
    for _, _, b_start, b_end, is_random in randoms:
        assert is_random == 1 and b_end == min(b_start + 10, 41)


def test_text_of_one_document():
    """Would catch: with one document, real continuations labelled as random."""
    with pytest.raises(UserError, match="two documents"):
        segment_pairs(make_text([5, 5, 5]), 10, seed=0, duplicate=0)
    with pytest.raises(UserError, match="two documents"):
        segment_pairs(make_text([5, 5], [5, 5]).first_tokens(1), 10, seed=0, duplicate=0)


def test_chunk_of_one_sentence_gets_a_random_b():
    """Would catch: an empty B, or one taken from the next document, labelled 0."""
    pairs = pairs_of(make_text(*[[6]] * 10), 12, copies=5)
    assert len(pairs) == 50 and all(pair[4] == 1 and pair[3] > pair[2] for pair in pairs)


def test_both_labels_are_frequent():
    """Would catch: all pairs of one label; the two are not half and half exactly."""
    pairs = pairs_of(make_text(*[[4] * 30] * 20), 24, copies=3)
    assert 0.45 < sum(pair[4] for pair in pairs) / len(pairs) < 0.6


@pytest.mark.parametrize("seed", range(20))
def test_every_sentence_is_seen(seed):
    """Would catch: sentences after a random B that are not put back and get lost."""
    text = random_text(seed)
    if len(text.first_sentences) < 3:
        text = make_text([3, 4, 5, 6], [7, 2])
    seen = set()
    for a_start, a_end, b_start, b_end, is_random in pairs_of(text, 1000):
        seen |= {*range(a_start, a_end)} | (set() if is_random else {*range(b_start, b_end)})
    assert seen == {p for start, end in text.sentences.tolist() for p in range(start, end)}


def test_every_sentence_is_seen_in_chunks():
    """Would catch: sentences lost at the end of a chunk in mid-document."""
    text = make_text(*[[2] * 23] * 6)
    for duplicate in range(10):
        seen = set()
        for a_start, a_end, b_start, b_end, is_random in segment_pairs(
                text, 8, seed=0, duplicate=duplicate, short_seq_prob=0).tolist():
            seen |= {*range(a_start, a_end)} | (set() if is_random else {*range(b_start, b_end)})
        assert len(seen) == 2 * 23 * 6


def test_true_pairs_are_not_put_back():
    """Would catch: a true B used again as the next A: the text would be seen twice."""
    text = make_text(*[[2] * 12] * 6)
    for one, two in itertools.pairwise(pairs_of(text, 8, copies=3)):
        if document_of(text, one[0]) == document_of(text, two[0]) and two[0] > one[0]:
            assert two[0] == (one[1] if one[4] else one[3])


@pytest.mark.parametrize("seed", range(10))
def test_pairs_fit(seed):
    """Would catch: sequences longer than --seq-length, or an A or B of no tokens."""
    text = make_text(*[[random.Random(seed).randint(1, 40) for _ in range(5)] for _ in range(5)])
    for short in (0.0, 1.0):
        spans = make_sequences(text, "segment-pair", 24, seed=seed, duplicate=0,
                               short_seq_prob=short)
        a, b = spans[:, 1] - spans[:, 0], spans[:, 3] - spans[:, 2]
        assert (a + b + 3 <= 24).all() and (a > 0).all() and (b > 0).all()


def test_both_ends_are_cut():
    """Would catch: tokens cut from one end only, so that others are never seen."""
    text = make_text([30, 30], [30, 30])
    for side in (0, 2):
        starts = [(pair[side] - pair[side] // 61) % 30 for pair in pairs_of(text, 30, copies=100)]
        cut_in_front = np.array(starts)  # of the fifteen tokens that each side loses
        assert cut_in_front.min() < 5 and cut_in_front.max() > 10
        assert 7 < cut_in_front.mean() < 8


def test_the_longer_side_is_cut():
    """Would catch: the shorter side cut, or both alike, until little of it is left."""
    pairs = pairs_of(make_text([5, 50], [5, 50]), 20, copies=40)
    lengths = {(a_end - a_start, b_end - b_start) for a_start, a_end, b_start, b_end, _ in pairs}
    assert lengths == {(5, 15), (15, 5), (10, 10)}


def test_a_tie_cuts_b():
    """Would catch: the other side cut when both are equally long, unlike BERT's code."""
    pairs = pairs_of(make_text([10, 10], [10, 10]), 19, copies=20)
    assert {(a_end - a_start, b_end - b_start) for a_start, a_end, b_start, b_end, _ in pairs} == {
        (10, 9)}


@pytest.mark.parametrize("short, low, high", [(0.0, 0, 0), (0.1, 0.06, 0.12), (1.0, 0.85, 0.93)])
def test_share_of_short_sequences(short, low, high):
    """Would catch: --short-seq-prob without effect, or all sequences short."""
    text = make_text(*[[1] * 30] * 1000)
    starts = set(text.sentences[text.first_sentences[:-1], 0].tolist())
    lengths = [pair[3] - pair[0] for pair in pairs_of(text, 10, short=short)
               if pair[0] in starts and pair[4] == 0]
    assert low <= sum(length < 10 for length in lengths) / len(lengths) <= high  # 8/9 of `short`
    assert set(lengths) <= set(range(2, 11)) and min(lengths) == (2 if short else 10)


def test_a_tenth_is_short_unless_told_otherwise():
    """Would catch: another default than BERT's."""
    text = make_text(*[[1] * 30] * 100)
    assert np.array_equal(segment_pairs(text, 10, seed=0, duplicate=0),
                          segment_pairs(text, 10, seed=0, duplicate=0, short_seq_prob=0.1))


def test_pairs_of_a_seed_and_a_copy():
    """Would catch: copies that are all alike, or pairs that differ when made again."""
    text = make_text(*[[3] * 20] * 5)
    make = lambda seed, duplicate: segment_pairs(text, 12, seed=seed, duplicate=duplicate).tolist()
    assert make(0, 0) == make(0, 0)
    random.seed(3)
    assert make(1, 2) == make(1, 2)
    assert len({str(make(seed, duplicate)) for seed in range(3) for duplicate in range(3)}) == 9


# Full sentences.


def test_full_crosses_documents_with_a_separator_and_doc_does_not():
    """Would catch: FULL that joins documents unmarked, DOC that joins them at all."""
    text = make_text([3, 3], [3, 3])  # [SEP] is token 6 of the text
    full = make_sequences(text, "full-sentences", 15, seed=0, duplicate=0, short_seq_prob=0)
    assert full.tolist() == [[0, 13, 0, 0, 0]]
    doc = make_sequences(text, "doc-sentences", 15, seed=0, duplicate=0, short_seq_prob=0)
    assert doc.tolist() == [[0, 6, 0, 0, 0], [7, 13, 0, 0, 0]]
    batch = assemble(torch.from_numpy(text.tokens.astype(int)), torch.tensor(full),
                     torch.tensor([0]), 0, 15, SPECIAL)
    assert (batch.input_ids[0] == SPECIAL.sep).nonzero().flatten().tolist() == [7, 14]


def test_separator_counts_as_a_token():
    """Would catch: a block that is one too long where the [SEP] between documents is."""
    text = make_text([3, 3], [3, 3])
    assert full_sentences(text, 9)[:, :2].tolist() == [[0, 6], [7, 13]]
    assert full_sentences(text, 10)[:, :2].tolist() == [[0, 10], [10, 13]]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("cross", [True, False])
def test_blocks_hold_every_token_once(cross, seed):
    """Would catch: tokens lost or doubled, blocks too long, DOC over two documents."""
    text, most = random_text(seed), 4 + seed % 12  # some sentences are longer than a block
    blocks = full_sentences(text, most, cross_documents=cross)
    assert (blocks[:, 2:] == 0).all()
    seen = []
    for start, end in blocks[:, :2].tolist():
        assert 0 < end - start <= most
        seen += [p for p in range(start, end) if text.tokens[p] != SPECIAL.sep]
        assert cross or document_of(text, start) == document_of(text, end - 1)
        assert SPECIAL.sep not in text.tokens[[start, end - 1]]  # none where none is needed
    assert seen == [p for start, end in text.sentences.tolist() for p in range(start, end)]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("cross", [True, False])
def test_blocks_are_full_sentences_and_as_many_as_fit(cross, seed):
    """Would catch: a sentence cut that would have fitted a block, or room left empty."""
    text, most = random_text(seed), 12 + seed % 10  # no sentence is longer than a block
    blocks = full_sentences(text, most, cross_documents=cross)[:, :2].tolist()
    starts, ends = text.sentences.T.tolist()
    for (start, end), following in itertools.zip_longest(blocks, blocks[1:]):
        assert start in starts and end in ends
        if following and (cross or document_of(text, start) == document_of(text, following[0])):
            assert ends[starts.index(following[0])] - start > most


def test_long_sentence_is_cut_into_pieces():
    """Would catch: the rest of a sentence longer than a block lost, or an error."""
    text = make_text([3, 25, 4], [2])
    assert full_sentences(text, 10)[:, :2].tolist() == [
        [0, 3], [3, 13], [13, 23], [23, 32], [33, 35]]
    assert full_sentences(make_text([10, 10]), 10)[:, :2].tolist() == [[0, 10], [10, 20]]


def test_sequences_are_drawn_as_they_are_told():
    """Would catch: a setting of the pairs that is not passed on."""
    text = make_text(*[[3] * 20] * 5)
    settings = dict(seed=5, duplicate=2, short_seq_prob=0.9)
    assert np.array_equal(make_sequences(text, "segment-pair", 16, **settings),
                          segment_pairs(text, 13, **settings))


@pytest.mark.parametrize("input_format, longest", [
    ("segment-pair", 13), ("full-sentences", 14), ("doc-sentences", 14)])
def test_sequences_use_the_whole_length(input_format, longest):
    """Would catch: room for three specials where two are needed, or two."""
    text = make_text(*[[1] * 40] * 4)
    spans = make_sequences(text, input_format, 16, seed=0, duplicate=0, short_seq_prob=0)
    assert (spans[:, 1] - spans[:, 0] + spans[:, 3] - spans[:, 2]).max() == longest


# Tensors.


def plain_sequence(tokens, span, length):
    """One sequence in plain Python: ids, attention mask and token types."""
    a_start, a_end, b_start, b_end, _ = span
    ids = [SPECIAL.cls, *tokens[a_start:a_end], SPECIAL.sep]
    types = [0] * len(ids)
    if b_end > b_start:
        ids += [*tokens[b_start:b_end], SPECIAL.sep]
        types += [1] * (b_end - b_start + 1)
    padding = length - len(ids)
    return ids + [SPECIAL.pad] * padding, [1] * len(ids) + [0] * padding, types + [0] * padding


def test_assemble_against_plain_python():
    """Would catch: off by one at [SEP], wrong token types, types on padding."""
    draw = random.Random(0)
    tokens = [draw.randint(5, 99) for _ in range(60)]
    spans = []
    for _ in range(300):
        a_length, b_length = draw.randint(1, 8), draw.randint(0, 5)
        a, b = draw.randint(0, 60 - a_length), draw.randint(0, 60 - b_length)
        spans.append([a, a + a_length, b, b + b_length, draw.randint(0, 1)])
    sequence_ids = torch.arange(300) + 2**33
    batch = assemble(torch.tensor(tokens), torch.tensor(spans), sequence_ids, 7, 16, SPECIAL)
    for row, span in enumerate(spans):
        ids, mask, types = plain_sequence(tokens, span, 16)
        assert batch.input_ids[row].tolist() == ids
        assert batch.attention_mask[row].tolist() == mask
        assert batch.token_type_ids[row].tolist() == types
    assert batch.is_random_next.tolist() == [span[4] for span in spans]
    assert torch.equal(batch.sequence_ids, sequence_ids) and batch.epoch == 7
    assert {tensor.dtype for tensor in batch[:5]} == {torch.int64}


# Batches.


DYNAMIC = DynamicMasker(SPECIAL, vocab_size=99, seed=0)


def make_batches(text, masker=DYNAMIC, batch_size=4, **changes):
    run = RunConfig(out="run", steps=1, seq_length=16, batch_size=batch_size, **changes)
    return Batches(text, run, SPECIAL, "cpu", masker.duplicate_of)


def take(batches, epochs):
    """The batches of the first so many epochs, as a list for each."""
    found = [[] for _ in range(epochs)]
    while batches.cursor[0] < epochs:
        batch = next(batches)
        found[batch.epoch].append(batch)
    return found


def order_of(batches):
    """The numbers of the sequences of some batches."""
    return torch.cat([batch.sequence_ids for batch in batches]).tolist()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one[:5], other[:5])) and one.epoch == other.epoch


@pytest.mark.parametrize("rows, size", [(30, 4), (28, 4), (30, 30), (30, 7)])
def test_sequences_come_once_an_epoch(rows, size):
    """Would catch: a sequence twice in an epoch, batches left out, or a small one at the end."""
    batches = make_batches(make_text(*[[9]] * rows), batch_size=size, input_format="doc-sentences")
    for epoch in take(batches, 3):
        order = order_of(epoch)
        assert len(epoch) == rows // size
        assert all(len(batch.sequence_ids) == size for batch in epoch)
        assert len(set(order)) == len(order) and set(order) <= set(range(rows))


def test_index_is_the_number_of_the_sequence():
    """Would catch: numbers counted by place in the batch, so that masks follow it."""
    text = make_text(*[[9]] * 30)
    for batch in take(make_batches(text, input_format="doc-sentences"), 1)[0]:
        first = text.tokens[text.sentences[batch.sequence_ids, 0]]
        assert batch.input_ids[:, 1].tolist() == first.tolist()


def test_order_differs_between_epochs_and_seeds():
    """Would catch: one order for all epochs or seeds, or the order of the text."""
    text = make_text(*[[9]] * 28)
    orders = [order_of(epoch) for seed in (0, 1)
              for epoch in take(make_batches(text, seed=seed, input_format="doc-sentences"), 3)]
    assert len({str(order) for order in orders + [list(range(28))]}) == 7
    again = take(make_batches(text, seed=1, input_format="doc-sentences"), 3)
    assert [order_of(epoch) for epoch in again] == orders[3:]


def test_left_out_sequences_change():
    """Would catch: the same sequences left out of every epoch's last batch, never to be seen."""
    epochs = take(make_batches(make_text(*[[9]] * 7), input_format="doc-sentences"), 12)
    assert {number for epoch in epochs for number in order_of(epoch)} == set(range(7))


@pytest.mark.parametrize("input_format", ["segment-pair", "full-sentences", "doc-sentences"])
def test_restart_goes_on_where_it_was(input_format):
    """Would catch: a resumed run that sees the epoch's first batches again, or another order."""
    text = make_text(*[[4] * 8] * 8)
    batches = make_batches(text, input_format=input_format)
    cursors, seen = [], []
    for _ in range(25):
        cursors.append(batches.cursor)
        seen.append(next(batches))
    assert seen[-1].epoch >= 2
    for place in range(25):
        resumed = make_batches(text, input_format=input_format)
        resumed.cursor = cursors[place]
        assert all(same(next(resumed), batch) for batch in seen[place:])


@pytest.mark.parametrize("input_format, made", [("full-sentences", 1), ("segment-pair", 3)])
def test_what_does_not_change_is_made_once(input_format, made, monkeypatch):
    """Would catch: blocks of sentences made again in each epoch, while a GPU stands still."""
    make, calls = data_module.make_sequences, []
    monkeypatch.setattr(data_module, "make_sequences", lambda *given, **named: (
        calls.append(named["duplicate"]), make(*given, **named))[1])
    epochs = take(make_batches(make_text(*[[4] * 8] * 8), input_format=input_format), 3)
    assert calls == [0, 1, 2][:made]
    assert order_of(epochs[0]) != order_of(epochs[1]) != order_of(epochs[2])


def test_static_masks_lie_on_static_pairs():
    """Would catch: static pairs redrawn each epoch, dynamic ones not."""
    text = make_text(*[[4] * 12] * 8)

    def pairs(masker):
        for epoch in take(make_batches(text, masker, input_format="segment-pair"), 4):
            yield {row.item(): tuple(ids.tolist())
                   for batch in epoch for row, ids in zip(batch.sequence_ids, batch.input_ids)}

    def agree(one, other):
        return all(other.get(number, ids) == ids for number, ids in one.items())

    static = list(pairs(StaticMasker(SPECIAL, vocab_size=99, seed=0, masks=2)))
    dynamic = list(pairs(DYNAMIC))
    assert agree(static[0], static[2]) and agree(static[1], static[3])
    assert not agree(static[0], static[1])
    assert not any(agree(one, other) for one, other in itertools.combinations(dynamic, 2))


def test_too_little_text_for_a_batch():
    """Would catch: an endless loop, or an empty batch, when the text has less than one batch."""
    text = make_text(*[[9]] * 3)
    with pytest.raises(UserError, match="3 sequences"):
        next(make_batches(text, input_format="doc-sentences"))


def test_batches_leave_the_text_as_it_is():
    """Would catch: masks or padding written into the text that every epoch reads."""
    text = make_text(*[[5, 5, 5]] * 10)
    before = [array.copy() for array in text]
    for array in text:
        array.setflags(write=False)  # as it is when it lies on disk
    batches = make_batches(text, input_format="segment-pair")
    held = batches.tokens.clone()
    for _ in range(20):
        batch = next(batches)
        batch.input_ids.fill_(SPECIAL.mask)
        batch.attention_mask.fill_(0)
    assert all(np.array_equal(a, b) for a, b in zip(text, before))
    assert torch.equal(batches.tokens, held)
