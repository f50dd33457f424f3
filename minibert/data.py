"""From documents to batches: sentences, tokens on disk, sequences, tensors.

A sequence is two spans of one long array of tokens: segments A and B of a pair, or, with B empty,
a block of full sentences. So every input format ends in the same five numbers a sequence, and one
function, `assemble`, makes tensors of them.
B batch, S sequence, N sequences, T tokens of a text.
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
from minibert.masking import hash_bits
from minibert.tokenizer import SpecialIds, special_ids

# After . ! or ? and a space, unless a small letter follows ("e.g. so"); after 。！？ always.
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\sa-z])|(?<=[。！？])\s*(?=\S)")


class TokenizedCorpus(NamedTuple):
    """Documents as tokens, end to end, with one [SEP] after each document."""
    tokens: np.ndarray  # (T,) uint16 or uint32
    bounds: np.ndarray  # (sentences, 2) int64: where each starts and ends in tokens
    documents: np.ndarray  # (documents + 1,) int64: the first sentence of each, and the end

    def fraction(self, share: float) -> "TokenizedCorpus":
        """The first documents, as many as hold this share of the tokens."""
        ends = self.bounds[self.documents[1:] - 1, 1]
        count = 1 + int(np.searchsorted(ends, share * ends[-1]))
        documents = self.documents[:count + 1]
        bounds = self.bounds[:documents[-1]]
        return TokenizedCorpus(self.tokens[:bounds[-1, 1] + 1], bounds, documents)


class Batch(NamedTuple):
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
    """Each document's tokens, one [SEP] at their end, and how many of them each sentence has.

    documents: their lines.

    >>> from tokenizers import models, pre_tokenizers
    >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "rains", "so"]
    >>> reader = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}))
    >>> reader.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> list(tokenize(iter([["it rains", "so"], ["so it rains"]]), reader))
    [([5, 6, 7, 3], [2, 1]), ([7, 5, 6, 3], [3])]
    """
    sep = special_ids(tokenizer).sep
    tokenizer = Tokenizer.from_str(tokenizer.to_str())  # a copy, to change how it reads
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text: brackets and a word
    while chunk := [sentences_of(document) for document in islice(documents, 500)]:
        flat = [sentence for document in chunk for sentence in document]
        encoded = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
        for document in chunk:
            sentences = [found.ids for found in islice(encoded, len(document)) if found.ids]
            tokens = [id for sentence in sentences for id in sentence]
            yield [*tokens, sep], [len(sentence) for sentence in sentences]


def segment_pairs(corpus: TokenizedCorpus, max_tokens: int, *, seed: int, dupe: int,
                  short_seq_prob: float = 0.1) -> np.ndarray:
    """BERT's pairs: A, and a B that follows it or is from another document, half the time each.

    A chunk of one sentence has nothing to follow, so its B is always random: in sequences of 32
    tokens two pairs of three are. Cutting A and a B that follows may leave a gap between them.
    max_tokens: of A and B together. dupe: which of the duplicates of the text this is; splits and
    random segments are drawn anew in each. Returns (N, 5) int64: start and end of A, start and
    end of B, and 0 = B follows A, 1 = B is random.
    Paper: Devlin et al. 2018, appendix A.2; google-research/bert, create_pretraining_data.py.

    Two documents of three and two sentences, two tokens each (token 6 is the [SEP] in between):
    >>> bounds = np.array([[0, 2], [2, 4], [4, 6], [7, 9], [9, 11]])
    >>> corpus = TokenizedCorpus(np.arange(12), bounds, np.array([0, 3, 5]))
    >>> segment_pairs(corpus, 6, seed=1, dupe=0, short_seq_prob=0).tolist()
    [[0, 4, 4, 6, 0], [7, 9, 0, 4, 1], [9, 11, 2, 6, 1]]

    The first pair goes on in its document. The second has a random B, so its own second sentence
    goes back, and becomes the A of the third.
    """
    bounds, documents = corpus.bounds.tolist(), corpus.documents.tolist()
    last_document = len(documents) - 2
    if last_document < 1:
        raise UserError("segment pairs need at least two documents: the random B comes from "
                        "another one; put a blank line between documents, or use more of the text")
    pairs = []
    for document, (i, end) in enumerate(zip(documents, documents[1:])):
        draw = random.Random(f"{seed} pairs {dupe} {document}")
        # google-research/bert: some sequences are shorter, so that short inputs are no surprise.
        short = draw.random() < short_seq_prob
        target = draw.randint(2, max_tokens) if short else max_tokens
        start, length = i, 0  # the chunk in hand: sentences start..i
        while i < end:
            length += bounds[i][1] - bounds[i][0]
            i += 1
            if i < end and length < target:
                continue
            split = start + (draw.randint(1, i - start - 1) if i - start > 1 else 1)
            a = bounds[start][0], bounds[split - 1][1]
            is_random = i - start == 1 or draw.random() < 0.5
            if is_random:
                other = draw.randint(0, last_document - 1)
                other += other >= document  # any document but this one
                first = last = draw.randint(documents[other], documents[other + 1] - 1)
                while (bounds[last][1] - bounds[first][0] < target - (a[1] - a[0])
                       and last + 1 < documents[other + 1]):
                    last += 1
                b = bounds[first][0], bounds[last][1]
                i = split  # what was not used goes back into the next chunk
            else:
                b = bounds[split][0], bounds[i - 1][1]
            pairs.append((*_truncate(*a, *b, max_tokens, draw), int(is_random)))
            start, length = i, 0
    return np.array(pairs, dtype=np.int64)


def _truncate(a_start: int, a_end: int, b_start: int, b_end: int, max_tokens: int,
              draw: random.Random) -> tuple[int, int, int, int]:
    """Shorten the longer side, token by token from a random end, until both fit."""
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

    cross_documents: FULL-SENTENCES, which go on into the next document after an extra [SEP];
    False is DOC-SENTENCES. Returns (N, 5) int64 as `segment_pairs` does, B empty.
    Departure: a sentence longer than a block is cut into pieces; the paper does not say.

    Documents of three and two sentences, two tokens each, and a [SEP] (token 6) in between:
    >>> bounds = np.array([[0, 2], [2, 4], [4, 6], [7, 9], [9, 11]])
    >>> corpus = TokenizedCorpus(np.arange(12), bounds, np.array([0, 3, 5]))
    >>> full_sentences(corpus, 5).tolist()  # the second holds 4, 5, [SEP], 7, 8
    [[0, 4, 0, 0, 0], [4, 9, 0, 0, 0], [9, 11, 0, 0, 0]]
    >>> full_sentences(corpus, 5, cross_documents=False).tolist()
    [[0, 4, 0, 0, 0], [4, 6, 0, 0, 0], [7, 11, 0, 0, 0]]
    """
    bounds, blocks = corpus.bounds.tolist(), []
    documents = corpus.documents.tolist()
    block_start = block_end = bounds[0][0]
    for first, end in zip(documents, documents[1:]):
        for i in range(first, end):
            start, stop = bounds[i]
            new_document = i == first and not cross_documents
            if new_document or stop - block_start > max_tokens:
                blocks.append((block_start, block_end))
                block_start = start
            while stop - block_start > max_tokens:
                blocks.append((block_start, block_start + max_tokens))
                block_start += max_tokens
            block_end = stop
    blocks.append((block_start, block_end))
    spans = np.zeros((len(blocks), 5), dtype=np.int64)
    spans[:, :2] = blocks
    return spans[spans[:, 1] > spans[:, 0]]  # some were closed before they held anything


def make_sequences(corpus: TokenizedCorpus, input_format: str, seq_length: int, *, seed: int,
                   dupe: int, short_seq_prob: float) -> np.ndarray:
    """The sequences of one pass over the text, (N, 5): see `segment_pairs`."""
    if input_format == "segment-pair":  # [CLS] A [SEP] B [SEP]
        return segment_pairs(corpus, seq_length - 3, seed=seed, dupe=dupe,
                             short_seq_prob=short_seq_prob)
    return full_sentences(corpus, seq_length - 2,  # [CLS] A [SEP]
                          cross_documents=input_format == "full-sentences")


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
    p = torch.arange(seq_length, device=tokens.device)  # (S,)
    length = torch.where(b > 0, a + b + 3, a + 2)
    in_a, in_b = (p >= 1) & (p <= a), (p >= a + 2) & (p < a + 2 + b)
    source = torch.where(in_a, a_start + p - 1, torch.where(in_b, b_start + p - a - 2, 0))
    ids = torch.where(in_a | in_b, tokens[source].long(), special.sep)
    ids = torch.where(p == 0, special.cls, torch.where(p < length, ids, special.pad))
    return Batch(ids, (p < length).long(), ((p >= a + 2) & (p < length)).long(), is_random[:, 0],
                 sequence_ids, epoch)


class Batches:
    """Batches without end, epoch after epoch; `cursor` is all there is to save for a resume."""

    def __init__(self, corpus: TokenizedCorpus, run: RunConfig, special: SpecialIds, device: str,
                 dupe: Callable[[int], int]):
        """dupe: the masker's rule, which duplicate of the text an epoch shows. Pairs are drawn by
        it, too, so that static masks lie on static pairs, as in BERT's `dupe_factor`."""
        self.corpus, self.run, self.special, self.dupe = corpus, run, special, dupe
        self.device = device
        self.tokens = torch.from_numpy(corpus.tokens.astype(np.int32)).to(device)
        self.cursor = (0, 0)  # epoch, batches of it that are done
        self._start(0)

    def __next__(self) -> Batch:
        epoch, done = self.cursor
        B = self.run.batch_size
        if self.ready != epoch:
            self._start(epoch)
        # A last, smaller batch is left out; in the next epoch's order it is another one.
        rows = self.order[done * B:(done + 1) * B]
        last = (done + 2) * B > len(self.order)
        self.cursor = (epoch + 1, 0) if last else (epoch, done + 1)
        return assemble(self.tokens, self.spans[rows], rows, epoch, self.run.seq_length,
                        self.special)

    def _start(self, epoch: int) -> None:
        run = self.run
        spans = make_sequences(self.corpus, run.input_format, run.seq_length, seed=run.seed,
                               dupe=self.dupe(epoch), short_seq_prob=run.short_seq_prob)
        if len(spans) < run.batch_size:
            raise UserError(f"the text gives {len(spans)} sequences, fewer than one batch of "
                            f"{run.batch_size}; use more text or a smaller --batch-size")
        self.spans = torch.from_numpy(spans).to(self.device)
        sequence_ids = torch.arange(len(spans), device=self.device)
        self.order = hash_bits(run.seed, "order", epoch, sequence_ids).argsort(stable=True)
        self.ready = epoch
