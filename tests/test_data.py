"""Text to batches: documents, sentences, segment pairs, full sentences, tensors, order."""
import gzip
import itertools
import lzma
import random
import re

import numpy as np
import pytest
import torch

from minibert.config import RunConfig
from minibert.data import (Batches, TokenizedCorpus, assemble, full_sentences, make_sequences,
                           segment_pairs, sentences_of, tokenize)
from minibert.errors import UserError
from minibert.files.corpus import read_documents
from minibert.masking import DynamicMasker, StaticMasker
from minibert.tokenizer import SpecialIds, train_tokenizer

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)


def make_text(*documents):
    """A corpus of documents given as the lengths of their sentences; token i is 10 + i."""
    bounds, first, end = [], [0], 0
    separators = []
    for lengths in documents:
        for length in lengths:
            bounds.append((end, end + length))
            end += length
        first.append(len(bounds))
        separators.append(end)
        end += 1
    tokens = np.arange(10, 10 + end, dtype=np.uint16)
    tokens[separators] = SPECIAL.sep
    return TokenizedCorpus(tokens, np.array(bounds), np.array(first))


def random_text(seed, longest=12):
    """One to six documents of one to five sentences of up to `longest` tokens."""
    draw = random.Random(seed)
    return make_text(*[[draw.randint(1, longest) for _ in range(draw.randint(1, 5))]
                       for _ in range(draw.randint(1, 6))])


def document_of(text, position):
    """The number of the document in which a token stands."""
    sentence = np.searchsorted(text.bounds[:, 1], position, side="right")
    return int(np.searchsorted(text.documents, sentence, side="right")) - 1


def pairs_of(text, max_tokens, *, seed=0, copies=1, short=0.0):
    """The pairs of several copies, as tuples (a_start, a_end, b_start, b_end, is_random)."""
    return [tuple(pair) for dupe in range(copies)
            for pair in segment_pairs(text, max_tokens, seed=seed, dupe=dupe,
                                      short_seq_prob=short).tolist()]


# Documents and sentences.


def test_blank_lines_separate_documents(tmp_path):
    """Would catch: blank lines that make empty documents, or spaces that join two (trap 2)."""
    file = tmp_path / "a.txt"
    file.write_text("\n \n one\ntwo\n\n\n \t \nthree  \n\n")
    assert list(read_documents(file)) == [["one", "two"], ["three"]]


@pytest.mark.parametrize("content", ["", "\n\n", " \n\t\n  ", "\ufeff\n"])
def test_text_without_text(tmp_path, content):
    """Would catch: an empty document out of an empty file or one of white space."""
    file = tmp_path / "a.txt"
    file.write_text(content, encoding="utf-8")
    assert list(read_documents(file)) == []


def test_last_document_without_a_line_end(tmp_path):
    """Would catch: the last document lost when no blank line follows it."""
    file = tmp_path / "a.txt"
    file.write_text("one\n\ntwo")
    assert list(read_documents(file)) == [["one"], ["two"]]


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    """Would catch: an invisible character in the first word; "\\r" taken for a word (trap 2)."""
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
    assert list(read_documents(file)) == [["one", "two"], ["three"]]


@pytest.mark.parametrize("name, opener", [("a.txt", open), ("a.gz", gzip.open),
                                          ("a.txt.gz", gzip.open), ("a.xz", lzma.open)])
def test_packed_files(tmp_path, name, opener):
    """Would catch: a packed file read as it is."""
    with opener(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write("größer 大\n\nzwei\n")
    assert list(read_documents(tmp_path / name)) == [["größer 大"], ["zwei"]]


def test_any_file_that_is_named_is_text(tmp_path):
    """Would catch: a file of another ending refused, although it was named itself."""
    (tmp_path / "corpus.md").write_text("one\n")
    assert list(read_documents(tmp_path / "corpus.md")) == [["one"]]


def test_folder_is_read_in_order(tmp_path):
    """Would catch: the order of the disk, another one on each machine; other files read as text."""
    for name in ("c.txt", "a/z.txt", "b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with gzip.open(tmp_path / "a.gz", "wt") as file:
        file.write("packed")
    (tmp_path / "notes.md").write_text("no")
    (tmp_path / "image.png").write_bytes(b"\xff\xd8")
    assert list(read_documents(tmp_path)) == [["a/z.txt"], ["packed"], ["b.txt"], ["c.txt"]]


def test_files_of_a_folder_do_not_run_together(tmp_path):
    """Would catch: the last document of a file joined with the first of the next (trap 2)."""
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_text("two\n")
    assert list(read_documents(tmp_path)) == [["one"], ["two"]]


def test_folder_with_the_name_of_a_file(tmp_path):
    """Would catch: a folder called old.txt opened as if it were a file."""
    (tmp_path / "old.txt").mkdir()
    (tmp_path / "old.txt" / "a.txt").write_text("one\n")
    assert list(read_documents(tmp_path)) == [["one"]]


@pytest.mark.parametrize("before", [3, 20_000])
def test_file_that_is_not_utf8(tmp_path, before):
    """Would catch: a traceback, or an error that does not name the file or the right byte."""
    file = tmp_path / "latin1.txt"
    file.write_bytes(b"a" * before + b"\xe9\n")
    with pytest.raises(UserError, match="latin1.txt") as caught:
        list(read_documents(file))
    named = re.search(r"byte (\d+)", str(caught.value))
    assert named is None or int(named[1]) == before


def cut(packed):
    return packed[:len(packed) // 2]


def damaged(packed):
    middle = len(packed) // 2
    return packed[:middle] + b"\xff" * 40 + packed[middle + 40:]


def no_archive(packed):
    return b"this is text\n" * 20


@pytest.mark.parametrize("harm", [cut, damaged, no_archive])
@pytest.mark.parametrize("name, pack", [("a.gz", gzip.compress), ("a.xz", lzma.compress)])
def test_broken_archive(tmp_path, name, pack, harm):
    """Would catch: a traceback when a download broke off; half of a corpus taken for all."""
    draw = random.Random(0)
    text = " ".join(str(draw.random()) for _ in range(5000)).encode()
    (tmp_path / name).write_bytes(harm(pack(text)))
    with pytest.raises(UserError, match=name):
        list(read_documents(tmp_path / name))


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
def test_sentences(tmp_path, line, sentences):
    """Would catch: a paragraph in one piece, CJK too; a cut in "e.g. x" or 3.50 (trap 2)."""
    file = tmp_path / "a.txt"
    file.write_text(line + "\n", encoding="utf-8")
    assert [sentences_of(document) for document in read_documents(file)] == [sentences]


@pytest.mark.parametrize("line", ["你好。", "你好。 我很好！ ", "One. Two. "])
def test_no_sentence_is_empty(tmp_path, line):
    """Would catch: an empty or padded sentence after the last full stop of a line (trap 2)."""
    file = tmp_path / "a.txt"
    file.write_text(line + "\n", encoding="utf-8")
    [sentences] = map(sentences_of, read_documents(file))
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)


# Text.


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


def test_fraction_is_by_tokens_and_nested():
    """Would catch: a share of the documents, which differ in size, or a drawn, not nested part."""
    text = make_text([10], [20, 9], [60], [5])  # ends at 10, 40, 101 and 107
    assert [len(text.fraction(share).documents) - 1
            for share in (0.01, 10 / 107, 0.1, 40 / 107, 0.4, 0.94, 0.99, 1.0)] == [
        1, 1, 2, 2, 3, 3, 4, 4]
    for share in (0.01, 0.1, 0.4, 1.0):
        part = text.fraction(share)
        assert part.documents.tolist() == text.documents.tolist()[:len(part.documents)]
        # Cropped whole: no sentence or token of other documents, and the last one's [SEP].
        assert len(part.bounds) == part.documents[-1]
        assert len(part.tokens) == part.bounds[-1, 1] + 1


@pytest.mark.parametrize("input_format", ["segment-pair", "full-sentences", "doc-sentences"])
def test_fraction_is_all_that_sequences_see(input_format):
    """Would catch: a random B, or any block, from the documents that were left out."""
    text = make_text(*[[4, 4, 4]] * 20)
    part = text.fraction(0.5)
    end = text.bounds[part.documents[-1] - 1, 1]
    spans = make_sequences(part, input_format, 16, seed=0, dupe=0, short_seq_prob=0.1)
    assert 0 < end < text.bounds[-1, 1] and spans.max() == end


# Segment pairs.


def test_label_0_is_a_pair_that_goes_on():
    """Would catch: NSP's labels the wrong way round: 0 is "B follows A", 1 is random (trap 1)."""
    text = make_text([5, 5], [5, 5])
    pairs = pairs_of(text, 10, copies=40)
    follows = [pair for pair in pairs if pair[4] == 0]
    assert set(follows) == {(0, 5, 5, 10, 0), (11, 16, 16, 21, 0)}
    assert all(pair[2] != pair[1] for pair in pairs if pair[4] == 1)


def test_true_pairs_are_contiguous():
    """Would catch: a gap, an overlap or the end of a document between A and a true B (trap 1)."""
    text = make_text(*[[3] * 7] * 10)
    for a_start, a_end, b_start, b_end, is_random in pairs_of(text, 12, copies=5):
        if not is_random:
            assert a_start < a_end == b_start < b_end
            assert document_of(text, a_start) == document_of(text, b_end - 1)


def test_random_b_is_from_another_document():
    """Would catch: a "random" B that is the real continuation or of the same document (trap 2)."""
    text = make_text([4, 4, 4], [4], [4, 4, 4, 4], [4, 4])
    seen = set()
    for a_start, _, b_start, b_end, is_random in pairs_of(text, 12, copies=200):
        if is_random:
            a, b = document_of(text, a_start), document_of(text, b_start)
            assert a != b and document_of(text, b_end - 1) == b
            seen.add((a, b))
    assert seen == set(itertools.permutations(range(4), 2))  # every document meets every other


def test_random_b_starts_anywhere_and_fills_the_room():
    """Would catch: a random B that always opens its document, or of one sentence only (trap 2)."""
    text = make_text([10], [1] * 30)
    randoms = [pair for pair in pairs_of(text, 20, copies=300) if pair[0] == 0]
    assert {pair[2] for pair in randoms} == set(range(11, 41))
    for _, _, b_start, b_end, is_random in randoms:
        assert is_random == 1 and b_end == min(b_start + 10, 41)


def test_text_of_one_document():
    """Would catch: with one document, real continuations labelled as random (trap 2)."""
    with pytest.raises(UserError, match="two documents"):
        segment_pairs(make_text([5, 5, 5]), 10, seed=0, dupe=0)
    with pytest.raises(UserError, match="two documents"):
        segment_pairs(make_text([5, 5], [5, 5]).fraction(0.1), 10, seed=0, dupe=0)


def test_chunk_of_one_sentence_gets_a_random_b():
    """Would catch: an empty B, or one taken from the next document, labelled 0 (trap 2)."""
    pairs = pairs_of(make_text(*[[6]] * 10), 12, copies=5)
    assert len(pairs) == 50 and all(pair[4] == 1 and pair[3] > pair[2] for pair in pairs)


def test_both_labels_are_frequent():
    """Would catch: all pairs of one label; the two are not half and half exactly (trap 2)."""
    pairs = pairs_of(make_text(*[[4] * 30] * 20), 24, copies=3)
    assert 0.45 < sum(pair[4] for pair in pairs) / len(pairs) < 0.6


@pytest.mark.parametrize("seed", range(20))
def test_every_sentence_is_seen(seed):
    """Would catch: sentences after a random B that are not put back and get lost (trap 3)."""
    text = random_text(seed)
    if len(text.documents) < 3:
        text = make_text([3, 4, 5, 6], [7, 2])
    seen = set()
    for a_start, a_end, b_start, b_end, is_random in pairs_of(text, 1000):
        seen |= {*range(a_start, a_end)} | (set() if is_random else {*range(b_start, b_end)})
    assert seen == {p for start, end in text.bounds.tolist() for p in range(start, end)}


def test_every_sentence_is_seen_in_chunks():
    """Would catch: sentences lost at the end of a chunk in mid-document (trap 3)."""
    text = make_text(*[[2] * 23] * 6)
    for dupe in range(10):
        seen = set()
        for a_start, a_end, b_start, b_end, is_random in segment_pairs(
                text, 8, seed=0, dupe=dupe, short_seq_prob=0).tolist():
            seen |= {*range(a_start, a_end)} | (set() if is_random else {*range(b_start, b_end)})
        assert len(seen) == 2 * 23 * 6


def test_true_pairs_are_not_put_back():
    """Would catch: a true B used again as the next A: the text would be seen twice (trap 3)."""
    text = make_text(*[[2] * 12] * 6)
    for one, two in itertools.pairwise(pairs_of(text, 8, copies=3)):
        if document_of(text, one[0]) == document_of(text, two[0]) and two[0] > one[0]:
            assert two[0] == (one[1] if one[4] else one[3])


@pytest.mark.parametrize("seed", range(10))
def test_pairs_fit(seed):
    """Would catch: sequences longer than --seq-length, or an A or B of no tokens (trap 4)."""
    text = make_text(*[[random.Random(seed).randint(1, 40) for _ in range(5)] for _ in range(5)])
    for short in (0.0, 1.0):
        spans = make_sequences(text, "segment-pair", 24, seed=seed, dupe=0, short_seq_prob=short)
        a, b = spans[:, 1] - spans[:, 0], spans[:, 3] - spans[:, 2]
        assert (a + b + 3 <= 24).all() and (a > 0).all() and (b > 0).all()


def test_both_ends_are_cut():
    """Would catch: tokens cut from one end only, so that others are never seen (trap 4)."""
    text = make_text([30, 30], [30, 30])
    for side in (0, 2):
        starts = [(pair[side] - pair[side] // 61) % 30 for pair in pairs_of(text, 30, copies=100)]
        cut_in_front = np.array(starts)  # of the fifteen tokens that each side loses
        assert cut_in_front.min() < 5 and cut_in_front.max() > 10
        assert 7 < cut_in_front.mean() < 8


def test_the_longer_side_is_cut():
    """Would catch: the shorter side cut, or both alike, until little of it is left (trap 4)."""
    pairs = pairs_of(make_text([5, 50], [5, 50]), 20, copies=40)
    lengths = {(a_end - a_start, b_end - b_start) for a_start, a_end, b_start, b_end, _ in pairs}
    assert lengths == {(5, 15), (15, 5), (10, 10)}


def test_a_tie_cuts_b():
    """Would catch: the other side cut when both are equally long, unlike BERT's code (trap 4)."""
    pairs = pairs_of(make_text([10, 10], [10, 10]), 19, copies=20)
    assert {(a_end - a_start, b_end - b_start) for a_start, a_end, b_start, b_end, _ in pairs} == {
        (10, 9)}


@pytest.mark.parametrize("short, low, high", [(0.0, 0, 0), (0.1, 0.06, 0.12), (1.0, 0.85, 0.93)])
def test_share_of_short_sequences(short, low, high):
    """Would catch: --short-seq-prob without effect, or all sequences short."""
    text = make_text(*[[1] * 30] * 1000)
    starts = set(text.bounds[text.documents[:-1], 0].tolist())
    lengths = [pair[3] - pair[0] for pair in pairs_of(text, 10, short=short)
               if pair[0] in starts and pair[4] == 0]
    assert low <= sum(length < 10 for length in lengths) / len(lengths) <= high  # 8/9 of `short`
    assert set(lengths) <= set(range(2, 11)) and min(lengths) == (2 if short else 10)


def test_a_tenth_is_short_unless_told_otherwise():
    """Would catch: another default than BERT's."""
    text = make_text(*[[1] * 30] * 100)
    assert np.array_equal(segment_pairs(text, 10, seed=0, dupe=0),
                          segment_pairs(text, 10, seed=0, dupe=0, short_seq_prob=0.1))


def test_pairs_of_a_seed_and_a_copy():
    """Would catch: copies that are all alike, or pairs that differ when made again (trap 11)."""
    text = make_text(*[[3] * 20] * 5)
    make = lambda seed, dupe: segment_pairs(text, 12, seed=seed, dupe=dupe).tolist()
    assert make(0, 0) == make(0, 0)
    random.seed(3)
    assert make(1, 2) == make(1, 2)
    assert len({str(make(seed, dupe)) for seed in range(3) for dupe in range(3)}) == 9


# Full sentences.


def test_full_crosses_documents_with_a_separator_and_doc_does_not():
    """Would catch: FULL that joins documents unmarked, DOC that joins them at all (trap 38)."""
    text = make_text([3, 3], [3, 3])  # [SEP] is token 6 of the text
    full = make_sequences(text, "full-sentences", 15, seed=0, dupe=0, short_seq_prob=0)
    assert full.tolist() == [[0, 13, 0, 0, 0]]
    doc = make_sequences(text, "doc-sentences", 15, seed=0, dupe=0, short_seq_prob=0)
    assert doc.tolist() == [[0, 6, 0, 0, 0], [7, 13, 0, 0, 0]]
    batch = assemble(torch.from_numpy(text.tokens.astype(int)), torch.tensor(full),
                     torch.tensor([0]), 0, 15, SPECIAL)
    assert (batch.input_ids[0] == SPECIAL.sep).nonzero().flatten().tolist() == [7, 14]


def test_separator_counts_as_a_token():
    """Would catch: a block that is one too long where the [SEP] between documents is (trap 38)."""
    text = make_text([3, 3], [3, 3])
    assert full_sentences(text, 9)[:, :2].tolist() == [[0, 6], [7, 13]]
    assert full_sentences(text, 10)[:, :2].tolist() == [[0, 10], [10, 13]]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("cross", [True, False])
def test_blocks_hold_every_token_once(cross, seed):
    """Would catch: tokens lost or doubled, blocks too long, DOC over two documents (trap 38)."""
    text, most = random_text(seed), 4 + seed % 12  # some sentences are longer than a block
    blocks = full_sentences(text, most, cross_documents=cross)
    assert (blocks[:, 2:] == 0).all()
    seen = []
    for start, end in blocks[:, :2].tolist():
        assert 0 < end - start <= most
        seen += [p for p in range(start, end) if text.tokens[p] != SPECIAL.sep]
        assert cross or document_of(text, start) == document_of(text, end - 1)
        assert SPECIAL.sep not in text.tokens[[start, end - 1]]  # none where none is needed
    assert seen == [p for start, end in text.bounds.tolist() for p in range(start, end)]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("cross", [True, False])
def test_blocks_are_full_sentences_and_as_many_as_fit(cross, seed):
    """Would catch: a sentence cut that would have fitted a block, or room left empty (trap 38)."""
    text, most = random_text(seed), 12 + seed % 10  # no sentence is longer than a block
    blocks = full_sentences(text, most, cross_documents=cross)[:, :2].tolist()
    starts, ends = text.bounds.T.tolist()
    for (start, end), following in itertools.zip_longest(blocks, blocks[1:]):
        assert start in starts and end in ends
        if following and (cross or document_of(text, start) == document_of(text, following[0])):
            assert ends[starts.index(following[0])] - start > most


def test_long_sentence_is_cut_into_pieces():
    """Would catch: the rest of a sentence longer than a block lost, or an error (trap 38)."""
    text = make_text([3, 25, 4], [2])
    assert full_sentences(text, 10)[:, :2].tolist() == [
        [0, 3], [3, 13], [13, 23], [23, 32], [33, 35]]
    assert full_sentences(make_text([10, 10]), 10)[:, :2].tolist() == [[0, 10], [10, 20]]


def test_sequences_are_drawn_as_they_are_told():
    """Would catch: a setting of the pairs that is not passed on."""
    text = make_text(*[[3] * 20] * 5)
    settings = dict(seed=5, dupe=2, short_seq_prob=0.9)
    assert np.array_equal(make_sequences(text, "segment-pair", 16, **settings),
                          segment_pairs(text, 13, **settings))


@pytest.mark.parametrize("input_format, longest", [
    ("segment-pair", 13), ("full-sentences", 14), ("doc-sentences", 14)])
def test_sequences_use_the_whole_length(input_format, longest):
    """Would catch: room for three specials where two are needed, or two (trap 4, trap 38)."""
    text = make_text(*[[1] * 40] * 4)
    spans = make_sequences(text, input_format, 16, seed=0, dupe=0, short_seq_prob=0)
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
    """Would catch: off by one at [SEP], wrong token types, types on padding (trap 1)."""
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


def make_batches(text, masker=DynamicMasker(), batch_size=4, **changes):
    run = RunConfig(out="run", steps=1, seq_length=16, batch_size=batch_size, **changes)
    return Batches(text, run, SPECIAL, "cpu", masker.dupe)


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
    """Would catch: numbers counted by place in the batch, so that masks follow it (trap 12)."""
    text = make_text(*[[9]] * 30)
    for batch in take(make_batches(text, input_format="doc-sentences"), 1)[0]:
        first = text.tokens[text.bounds[batch.sequence_ids, 0]]
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


def test_static_masks_lie_on_static_pairs():
    """Would catch: static pairs redrawn each epoch, dynamic ones not (trap 11, trap 13)."""
    text = make_text(*[[4] * 12] * 8)

    def pairs(masker):
        for epoch in take(make_batches(text, masker, input_format="segment-pair"), 4):
            yield {row.item(): tuple(ids.tolist())
                   for batch in epoch for row, ids in zip(batch.sequence_ids, batch.input_ids)}

    def agree(one, other):
        return all(other.get(number, ids) == ids for number, ids in one.items())

    static, dynamic = list(pairs(StaticMasker(2))), list(pairs(DynamicMasker()))
    assert agree(static[0], static[2]) and agree(static[1], static[3])
    assert not agree(static[0], static[1])
    assert not any(agree(one, other) for one, other in itertools.combinations(dynamic, 2))


def test_too_little_text_for_a_batch():
    """Would catch: an endless loop, or an empty batch, when the text has less than one batch."""
    text = make_text(*[[9]] * 3)
    with pytest.raises(UserError, match="3 sequences"):
        next(make_batches(text, input_format="doc-sentences"))


def test_batches_leave_the_text_as_it_is():
    """Would catch: masks or padding written into the text that every epoch reads (trap 15)."""
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
