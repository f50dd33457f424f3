"""From documents to batches: sentences, tokens on disk, sequences, tensors.

A sequence is made of two spans of one long array of tokens: segments A and B of a pair, or a block
of full sentences as A, with an empty B. So every input format ends in the same five numbers for
each sequence, and one function, `assemble`, makes tensors of them.
B batch, S sequence, N sequences, T tokens of a corpus.
"""
import random
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from minibert.config import RunConfig
from minibert.errors import UserError
from minibert.hashing import hash_bits
from minibert.tokenizer import SpecialIds, special_ids

# A sentence ends after . ! or ? and a space, unless a small letter follows ("e.g. so"), and always
# after the Chinese and Japanese 。！？.
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\sa-z])|(?<=[。！？])\s*(?=\S)")


class TokenizedCorpus(NamedTuple):
    """Documents as tokens, end to end, with one [SEP] after each document."""
    tokens: np.ndarray  # (T,) uint16 or uint32
    sentences: np.ndarray  # (sentences, 2) int64: where each starts and ends in tokens
    first_sentences: np.ndarray  # (documents + 1,) int64: the first sentence of each, and the end

    @property
    def num_documents(self) -> int:
        return len(self.first_sentences) - 1

    def first_tokens(self, count: int) -> "TokenizedCorpus":
        """The first documents, as many as hold this many tokens."""
        ends = self.sentences[self.first_sentences[1:] - 1, 1]  # of each document
        documents = 1 + int(np.searchsorted(ends, count / len(self.tokens) * ends[-1]))
        first_sentences = self.first_sentences[:documents + 1]
        sentences = self.sentences[:first_sentences[-1]]
        return TokenizedCorpus(self.tokens[:sentences[-1, 1] + 1], sentences, first_sentences)


class Batch(NamedTuple):
    """Sequences of equal length; what is masked in them is filled in by a masker."""
    input_ids: Tensor  # (B, S) int64
    attention_mask: Tensor  # (B, S) int64, 1 = token, 0 = padding
    token_type_ids: Tensor  # (B, S) int64, 1 = segment B and its [SEP]
    is_random_next: Tensor  # (B,) int64, 0 = B follows A, 1 = B is random
    sequence_ids: Tensor  # (B,) int64, the sequences' numbers, by which masks are drawn
    epoch: int
    masked_positions: Tensor | None = None  # (B, M) int64, where the masked tokens are
    labels: Tensor | None = None  # (B, M) int64, what they were, or IGNORE


def sentences_of(document: list[str]) -> list[str]:
    """The lines of a document, cut where a sentence seems to end.

    >>> sentences_of(["It is. Is it? e.g. so", "and on"])
    ['It is.', 'Is it? e.g. so', 'and on']
    """
    return [sentence for line in document for sentence in SENTENCE_END.split(line)]


def tokenize(documents: Iterator[list[str]], tokenizer: Tokenizer
             ) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens of each document, with one [SEP] at their end, and the length of each sentence.

    documents: each as a list of its lines.

    >>> from tokenizers import models, pre_tokenizers
    >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "rains", "so"]
    >>> reader = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}))
    >>> reader.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> list(tokenize(iter([["it rains", "so"], ["so it rains"]]), reader))
    [([5, 6, 7, 3], [2, 1]), ([7, 5, 6, 3], [3])]
    """
    sep = special_ids(tokenizer).sep
    tokenizer = Tokenizer.from_str(tokenizer.to_str())  # a copy, because its settings change here
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is read as brackets and a word
    while chunk := [sentences_of(document) for document in islice(documents, 500)]:
        flat = [sentence for document in chunk for sentence in document]
        # Departure: each sentence is read by itself, as a line is by RoBERTa's fairseq, so that
        # byte-level BPE does not see the space between two sentences of a line.
        encoded = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
        for document in chunk:
            sentences = [part.ids for part in islice(encoded, len(document)) if part.ids]
            tokens = [id for sentence in sentences for id in sentence]
            yield [*tokens, sep], [len(sentence) for sentence in sentences]


def segment_pairs(corpus: TokenizedCorpus, max_tokens: int, *, seed: int, duplicate: int,
                  short_seq_prob: float = 0.1) -> np.ndarray:
    """BERT's pairs: A, and a B that either follows it or is from another document.

    max_tokens: of A and B together. duplicate: which duplicate of the text this is; where A
    ends and which B is random are drawn anew in each. short_seq_prob: the share of documents that
    are cut into shorter pairs. Returns (N, 5) int64: start and end of A, start and end of B, and
    0 = B follows A, 1 = B is random. Raises UserError when there is only one document.
    Paper: Devlin et al. 2018, appendix A.2; google-research/bert, create_pretraining_data.py.

    Half of the B's are random, so that neither answer is right more often and only reading helps.
    But a chunk of one sentence has nothing left to follow it, so its B is always random: in
    sequences of 32 tokens, two pairs of three are.

    Two documents of three and two sentences, two tokens each (token 6 is the [SEP] in between):
    >>> sentences = np.array([[0, 2], [2, 4], [4, 6], [7, 9], [9, 11]])
    >>> corpus = TokenizedCorpus(np.arange(12), sentences, np.array([0, 3, 5]))
    >>> segment_pairs(corpus, 6, seed=1, duplicate=0, short_seq_prob=0).tolist()
    [[0, 4, 4, 6, 0], [7, 9, 0, 4, 1], [9, 11, 2, 6, 1]]

    In the first pair, B goes on where A ends. The second has a random B, so the sentence that
    could have followed its A goes back, and becomes the A of the third.
    """
    sentences, documents = corpus.sentences.tolist(), corpus.first_sentences.tolist()
    if corpus.num_documents < 2:
        raise UserError("segment pairs need at least two documents: the random B comes from "
                        "another one; put a blank line between documents, or use more of the text")
    pairs = []
    for document, (first, end) in enumerate(zip(documents, documents[1:])):
        draw = random.Random(f"{seed} pairs {duplicate} {document}")
        # google-research/bert: some pairs are shorter, because later tasks have short inputs, too.
        short = draw.random() < short_seq_prob
        target = draw.randint(2, max_tokens) if short else max_tokens
        start = first
        while start < end:
            # A chunk is sentences start..stop. A takes those before `split`, B may take the others.
            stop, length = start, 0
            while stop < end and length < target:
                length += sentences[stop][1] - sentences[stop][0]
                stop += 1
            split = start + (draw.randint(1, stop - start - 1) if stop - start > 1 else 1)
            a = sentences[start][0], sentences[split - 1][1]
            is_random = stop - start == 1 or draw.random() < 0.5
            if is_random:
                room = target - (a[1] - a[0])
                b = _random_segment(sentences, documents, document, room, draw)
                start = split  # the rest of the chunk goes back: else no pair would ever show it
            else:
                b = sentences[split][0], sentences[stop - 1][1]
                start = stop
            pairs.append((*_truncate(*a, *b, max_tokens, draw), int(is_random)))
    return np.array(pairs, dtype=np.int64)


def _random_segment(sentences: list[list[int]], documents: list[int], document: int, room: int,
                    draw: random.Random) -> tuple[int, int]:
    """Sentences from a random place in any document but this one, until they fill the room."""
    # Departure: BERT's release draws up to ten times to find another document, and takes this one
    # after all where it finds none.
    number = draw.randint(0, len(documents) - 3)
    if number >= document:
        number += 1
    end = documents[number + 1]
    first = draw.randint(documents[number], end - 1)
    stop = first + 1
    while stop < end and sentences[stop - 1][1] - sentences[first][0] < room:
        stop += 1
    return sentences[first][0], sentences[stop - 1][1]


def _truncate(a_start: int, a_end: int, b_start: int, b_end: int, max_tokens: int,
              draw: random.Random) -> tuple[int, int, int, int]:
    """Shorten the longer segment, token by token from a random end, until both fit.

    google-research/bert does so, so that neither end is always the one that is missing. Between A
    and a B that follows it, there may then be a gap.
    """
    while (a_end - a_start) + (b_end - b_start) > max_tokens:
        front = draw.random() < 0.5
        if a_end - a_start > b_end - b_start:
            a_start, a_end = a_start + front, a_end - (not front)
        else:
            b_start, b_end = b_start + front, b_end - (not front)
    return a_start, a_end, b_start, b_end


def full_sentences(corpus: TokenizedCorpus, max_tokens: int, *, cross_documents: bool = True
                   ) -> np.ndarray:
    """RoBERTa's blocks: full sentences in order, as many as fit (Liu et al. 2019, section 4.2).

    cross_documents: True is FULL-SENTENCES, where a block goes on into the next document after an
    extra [SEP]; False is DOC-SENTENCES, where it ends with its document. Returns (N, 5) int64, as
    `segment_pairs` does, with an empty B.
    Departure: a sentence longer than a block is cut into pieces; the paper does not say.

    Documents of three and two sentences, two tokens each, and a [SEP] (token 6) in between:
    >>> sentences = np.array([[0, 2], [2, 4], [4, 6], [7, 9], [9, 11]])
    >>> corpus = TokenizedCorpus(np.arange(12), sentences, np.array([0, 3, 5]))
    >>> full_sentences(corpus, 5).tolist()  # the second block holds 4, 5, [SEP], 7, 8
    [[0, 4, 0, 0, 0], [4, 9, 0, 0, 0], [9, 11, 0, 0, 0]]
    >>> full_sentences(corpus, 5, cross_documents=False).tolist()
    [[0, 4, 0, 0, 0], [4, 6, 0, 0, 0], [7, 11, 0, 0, 0]]
    """
    sentences, documents = corpus.sentences.tolist(), corpus.first_sentences.tolist()
    blocks = []
    block_start = block_end = sentences[0][0]
    for first, end in zip(documents, documents[1:]):
        for i in range(first, end):
            start, stop = sentences[i]
            new_document = i == first and not cross_documents
            if new_document or stop - block_start > max_tokens:
                blocks.append((block_start, block_end))
                block_start = start
            while stop - block_start > max_tokens:
                blocks.append((block_start, block_start + max_tokens))
                block_start += max_tokens
            block_end = stop
    blocks.append((block_start, block_end))
    spans = np.pad(np.array(blocks, dtype=np.int64), ((0, 0), (0, 3)))  # with an empty B
    return spans[spans[:, 1] > spans[:, 0]]  # some blocks were closed before they held anything


def make_sequences(corpus: TokenizedCorpus, input_format: str, seq_length: int, *, seed: int,
                   duplicate: int, short_seq_prob: float) -> np.ndarray:
    """The sequences of one pass over the corpus, (N, 5) int64: see `segment_pairs`."""
    if input_format == "segment-pair":  # [CLS] A [SEP] B [SEP] has three special tokens,
        return segment_pairs(corpus, seq_length - 3, seed=seed, duplicate=duplicate,
                             short_seq_prob=short_seq_prob)
    # and [CLS] A [SEP] has two.
    return full_sentences(corpus, seq_length - 2, cross_documents=input_format == "full-sentences")


def assemble(tokens: Tensor, spans: Tensor, sequence_ids: Tensor, epoch: int, seq_length: int,
             special: SpecialIds) -> Batch:
    """Sequences `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, padded to seq_length.

    tokens: (T,) integer. spans: (B, 5) int64. sequence_ids: (B,) int64. Returns a Batch.

    >>> spans = torch.tensor([[0, 2, 4, 5, 1], [1, 4, 0, 0, 0]])
    >>> batch = assemble(torch.tensor([11, 12, 13, 14, 15]), spans, torch.tensor([0, 1]), 0, 7,
    ...                  SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4))
    >>> batch.input_ids.tolist()
    [[2, 11, 12, 3, 15, 3, 0], [2, 12, 13, 14, 3, 0, 0]]
    >>> batch.token_type_ids.tolist()
    [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0]]
    """
    a_start, a_end, b_start, b_end, is_random = spans[:, :, None].unbind(1)  # (B, 1) each
    a, b = a_end - a_start, b_end - b_start  # lengths
    length = torch.where(b > 0, a + b + 3, a + 2)
    # Each position p either copies a token of A or of B, or holds a special one:
    #   p         0     1 ... a   a+1    a+2 ... a+1+b   a+2+b   length ...
    #           [CLS]   A ... A  [SEP]    B  ...   B     [SEP]   [PAD] ...
    p = torch.arange(seq_length, device=tokens.device)  # (S,)
    in_a = (p >= 1) & (p < a + 1)
    in_b = (p >= a + 2) & (p < a + 2 + b)
    source = torch.where(in_a, a_start + p - 1, 0)
    source = torch.where(in_b, b_start + p - (a + 2), source)
    ids = torch.where(in_a | in_b, tokens[source].long(), special.sep)
    ids = torch.where(p == 0, special.cls, ids)
    ids = torch.where(p < length, ids, special.pad)
    attention_mask = (p < length).long()
    token_type_ids = ((p >= a + 2) & (p < length)).long()
    return Batch(ids, attention_mask, token_type_ids, is_random[:, 0], sequence_ids, epoch)


class Batches:
    """Batches without end, epoch after epoch; `cursor` is all that a resume needs to know."""

    def __init__(self, corpus: TokenizedCorpus, run: RunConfig, special: SpecialIds, device: str,
                 duplicate_of: Callable[[int], int]):
        """duplicate_of: the masker's rule for which duplicate of the text an epoch shows. Pairs are
        drawn by it, too, so that static masks lie on static pairs, as in BERT's `dupe_factor`."""
        self.corpus, self.run, self.device = corpus, run, device
        self.special, self.duplicate_of = special, duplicate_of
        self.tokens = torch.from_numpy(corpus.tokens.astype(np.int32)).to(device)
        self.cursor = (0, 0)  # the epoch, and how many of its batches are done
        self._start_epoch(0)

    def __next__(self) -> Batch:
        epoch, done = self.cursor
        if epoch != self.started_epoch:
            self._start_epoch(epoch)
        B = self.run.batch_size
        sequence_ids = self.order[done * B:(done + 1) * B]
        # Sequences that would not fill a last batch are left out; each epoch leaves out others.
        is_last = (done + 2) * B > len(self.order)
        self.cursor = (epoch + 1, 0) if is_last else (epoch, done + 1)
        return assemble(self.tokens, self.spans[sequence_ids], sequence_ids, epoch,
                        self.run.seq_length, self.special)

    def _start_epoch(self, epoch: int) -> None:
        run = self.run
        # Pairs are drawn anew, but blocks of sentences are the same in every epoch: they are kept,
        # because a GPU would stand still while they are made.
        if epoch == 0 or run.input_format == "segment-pair":
            spans = make_sequences(self.corpus, run.input_format, run.seq_length, seed=run.seed,
                                   duplicate=self.duplicate_of(epoch),
                                   short_seq_prob=run.short_seq_prob)
            if len(spans) < run.batch_size:
                raise UserError(f"the text gives {len(spans)} sequences, fewer than one batch of "
                                f"{run.batch_size}; use more text or a smaller --batch-size")
            self.spans = torch.from_numpy(spans).to(self.device)
        sequence_ids = torch.arange(len(self.spans), device=self.device)
        self.order = hash_bits(run.seed, "order", epoch, sequence_ids).argsort(stable=True)
        self.started_epoch = epoch
