"""Yours to write: fifteen pieces of the package, in the order of docs/lesson.md.

    make exercise                     says which pieces are done, and what comes next
    make exercise PIECE=mlm_loss      does one of them, and says more

Write a piece in place of its `raise NotImplementedError`. The package's own tests are then run with
yours in the package's place, while all other pieces stay the package's. So call another piece by
its whole name, such as minibert.student.layer_map or minibert.model.MaskedLM. Where a class stands
below, only its method is yours: `self` has what the package's __init__ gave it, and a helper of
your own belongs outside of the class.

B batch, S sequence, H hidden, A heads, D head size (H = A * D), V vocabulary, M positions that are
read or predicted. All answers are in the package: look last.
"""
# ruff: noqa: F401 (you will need most of these)
import dataclasses
import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import minibert.data
import minibert.masking
import minibert.model
import minibert.student
from minibert.config import DistillConfig, ModelConfig, RunConfig
from minibert.errors import UserError
from minibert.hashing import hash_bits
from minibert.masking import IGNORE
from minibert.model import ACTIVATIONS, MaskedLMOutput, gather
from minibert.tokenizer import SpecialIds

# ---- the model: minibert/model.py


def readable_attention(query, key, value, attn_mask=None, dropout_p=0.0):
    """Mix the values by how well their keys answer each query: softmax(q k / sqrt(D)) v.

    query: (B, A, M, D). key, value: (B, A, S, D). attn_mask: added to the scores, which are
    (B, A, M, S). dropout_p: the share of the weights that is dropped. Returns (B, A, M, D).

    One query and two keys with D = 4: the scores are 4 / 2 and 0 / 2, and softmax([2, 0]) is
    [0.88, 0.12]. So the query receives 0.88 of the first value.
    >>> query, key = torch.tensor([[2.0, 0, 0, 0]]), torch.tensor([[2.0, 0, 0, 0], [0, 2, 0, 0]])
    >>> value = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1]])
    >>> readable_attention(query, key, value)
    tensor([[0.8808, 0.0000, 0.0000, 0.1192]])

    Hint: compare every query with every key, which is a matrix product with key.transpose(-1, -2).
    Divide by the square root of D, add the mask if there is one, take the softmax over the keys,
    drop some of the weights, and multiply by the values. Four lines are enough.
    """
    raise NotImplementedError


class Embeddings:

    def forward(self, input_ids, token_type_ids=None):
        """Word + position + token type, then LayerNorm and dropout.

        input_ids, token_type_ids: (B, S) int64. Returns (B, S, H). self has the tables word,
        position and, where config.type_vocab_size is not 0, token_type; norm; dropout; config.

        BERT counts places from 0. RoBERTa counts tokens from pad + 1, and all padding reads the
        row `pad` of the table. Where pad is 1, these are the positions of both:
            <s>  a  b  </s>  <pad>  <pad>
             0   1  2   3      4      5      config.model_type is "bert" or "distilbert"
             2   3  4   5      1      1      config.model_type is "roberta"

        Hint: for RoBERTa, (input_ids != self.config.pad_token_id).long() is 1 where a token stands.
        Its cumsum(1) counts the tokens; think what to multiply it by, and what to add, to give
        padding the row of padding. Where no token types are given, all of them are 0, and so they
        are where the table has one row only, as RoBERTa's.
        """
        raise NotImplementedError


class Block:

    def forward(self, hidden, attention_bias, positions=None):
        """Self-attention, then a feed-forward network; each is added to its input and normalised.

        hidden: (B, S, H). attention_bias: added to the scores, for self.attention. positions:
        (B, M), where the result is read; None means everywhere. Returns (B, S, H) or (B, M, H).
        self.attention(query_states, hidden, attention_bias) gives what the tokens of query_states
        receive from those of hidden. self has attention_norm, intermediate, activation, output,
        output_norm and dropout, too.

        If the attention and the network gave nothing but zeros, the block would return
        output_norm(attention_norm(hidden)), since each sublayer adds to what came in. With S = 9
        and positions of shape (2, 3), hidden (2, 9, H) becomes (2, 3, H).

        Hint: normalise after the sum (post-norm), and drop before it. With `positions`, only the
        queries are fewer, gather(hidden, positions); keys and values still come from all of hidden.
        """
        raise NotImplementedError


class MaskedLM:

    def forward(self, input_ids, *, attention_mask=None, token_type_ids=None, positions=None):
        """Encode, then guess the masked words and, for BERT, whether B is random.

        input_ids, token_type_ids: (B, S) int64. attention_mask: (B, S), 1 = token, 0 = padding.
        positions: (B, M), where words are guessed; None means at all S. Returns
        MaskedLMOutput(mlm_logits, nsp_logits, hidden); nsp_logits is None where
        config.next_sentence is False. self has encoder, transform, transform_norm, decoder_bias
        and, with next_sentence, pooler and nsp_head.

        With V = 50, B = 2, S = 9 and M = 3 the three are (2, 3, 50), (2, 2) and (2, 3, H); without
        positions they are (2, 9, 50), (2, 2) and (2, 9, H).

        Hint: self.encoder(input_ids, attention_mask=..., token_type_ids=..., positions=...) gives
        the hidden states at `positions`. The NSP head reads [CLS], at position 0, so ask for that
        as well (F.pad(positions, (1, 0))) and take it out of `hidden` again: its logits are
        nsp_head(tanh(pooler(...))). A guess is transform, ACTIVATIONS[self.config.hidden_act] (but
        F.gelu in a "roberta"), transform_norm, and then the product with the table of words
        itself, self.encoder.embeddings.word.weight (V, H), and decoder_bias: F.linear does both.
        """
        raise NotImplementedError


# ---- what is hidden: minibert/masking.py


def mask_tokens(input_ids, sequence_ids, *, seed, epoch, vocab_size, mask_id, special_ids, pad_id=0,
                rate=0.15):
    """Choose 15 % of the tokens; of those, 80 % become [MASK], 10 % random words, 10 % stay.

    input_ids: (B, S) int64; do not change them. sequence_ids: (B,), the number of each sequence in
    its corpus. special_ids: never chosen, and never drawn as a random word.
    A row with n tokens, which are all that are not pad_id, has max(1, round(rate * n)) predictions.
    Returns inputs (B, S); masked_positions (B, M), ascending, with M = max(1, round(rate * S)); and
    labels (B, M), the tokens that stood there. Unused slots come last, with position 0 and IGNORE.

    Ten tokens, with [CLS]=2 and [SEP]=3 at the ends, give round(0.15 * 10) = 2 predictions. Here 13
    is one of the tenth that stays as it is, and 15 becomes [MASK]=4. (You may draw other ones.)
    >>> ids = torch.tensor([[2, 11, 12, 13, 14, 15, 16, 17, 18, 3]])
    >>> inputs, masked_positions, labels = mask_tokens(ids, torch.tensor([0]), seed=0, epoch=0,
    ...     vocab_size=20, mask_id=4, special_ids=(0, 1, 2, 3, 4))
    >>> inputs.tolist(), masked_positions.tolist(), labels.tolist()
    ([[2, 11, 12, 13, 14, 4, 16, 17, 18, 3]], [[3, 5]], [[13, 15]])

    Hint: give every position a random key, hash_bits(seed, epoch, "choose", sequence, position),
    where sequence is (B, 1) and position (S,), and choose those with the lowest keys, never a
    special token. A second key ("hide"), modulo 10, decides what becomes of each: below 8 [MASK],
    8 a random word, which a third key draws, and 9 as it is.
    """
    raise NotImplementedError


class StaticMasker:

    def duplicate_of(self, epoch):
        """Which of the self.masks duplicates of the text, each with its own masks, an epoch shows.

        epoch: int. Returns an int from 0 to self.masks - 1, which takes the epoch's place when the
        masks are drawn.
        >>> masker = StaticMasker(SpecialIds(0, 1, 2, 3, 4), vocab_size=20, seed=0, masks=3)
        >>> [masker.duplicate_of(epoch) for epoch in range(7)]
        [0, 1, 2, 0, 1, 2, 0]

        Hint: BERT's masks are made once, and then they repeat by turns. One operator is enough.
        """
        raise NotImplementedError


class DynamicMasker:

    def duplicate_of(self, epoch):
        """The same question for RoBERTa, which draws new masks whenever it sees a sequence.

        >>> masker = DynamicMasker(SpecialIds(0, 1, 2, 3, 4), vocab_size=20, seed=0)
        >>> [masker.duplicate_of(epoch) for epoch in range(4)]
        [0, 1, 2, 3]

        Hint: no mask ever comes back, so every epoch shows a duplicate of its own.
        """
        raise NotImplementedError


# ---- from text to sequences: minibert/data.py


def full_sentences(corpus, max_tokens, *, cross_documents=True):
    """RoBERTa's blocks: full sentences in order, as many as fit into max_tokens.

    corpus: a TokenizedCorpus; its `sentences` (sentences, 2) say where each starts and ends in the
    tokens, its `first_sentences` which is the first of each document, and the end. cross_documents:
    whether a block goes on into the next document. The [SEP] between two documents is one token of
    the text, which is in no sentence. Returns (N, 5) int64: start and end of each block, and 0, 0,
    0 for the B that it does not have.

    Documents of three and two sentences, two tokens each, and a [SEP] (token 6) in between:
    >>> sentences = np.array([[0, 2], [2, 4], [4, 6], [7, 9], [9, 11]])
    >>> corpus = minibert.data.TokenizedCorpus(np.arange(12), sentences, np.array([0, 3, 5]))
    >>> full_sentences(corpus, 5).tolist()  # the second block holds 4, 5, [SEP], 7, 8
    [[0, 4, 0, 0, 0], [4, 9, 0, 0, 0], [9, 11, 0, 0, 0]]
    >>> full_sentences(corpus, 5, cross_documents=False).tolist()
    [[0, 4, 0, 0, 0], [4, 6, 0, 0, 0], [7, 11, 0, 0, 0]]

    Hint: keep the start of the block that is open. If a sentence ends more than max_tokens after
    it, close the block before that sentence and open the next one there. A sentence that is longer
    than a block is cut into pieces of max_tokens. No block is empty.
    """
    raise NotImplementedError


def segment_pairs(corpus, max_tokens, *, seed, duplicate, short_seq_prob=0.1):
    """BERT's pairs: A, and a B that either follows it or is from another document.

    corpus: as above. max_tokens: of A and B together. duplicate: which duplicate of the text this
    is; the same one always has the same pairs. short_seq_prob: the share of documents whose
    target is not max_tokens, but drawn from 2 to max_tokens. Returns (N, 5) int64: start and end of
    A, start and end of B, and 0 = B follows A, 1 = B is random. Raises UserError with the words
    "two documents" where there is only one.

    Two documents of three and two sentences, two tokens each (token 6 is the [SEP] in between). In
    the second pair B is random; so the sentence after its A goes back, and is the A of the third.
    >>> sentences = np.array([[0, 2], [2, 4], [4, 6], [7, 9], [9, 11]])
    >>> corpus = minibert.data.TokenizedCorpus(np.arange(12), sentences, np.array([0, 3, 5]))
    >>> segment_pairs(corpus, 6, seed=1, duplicate=0, short_seq_prob=0).tolist()
    [[0, 4, 4, 6, 0], [7, 9, 0, 4, 1], [9, 11, 2, 6, 1]]

    Hint: draw with random.Random(f"{seed} pairs {duplicate} {document}"), one for each document.
    Collect its sentences until they reach the target, let A be a random number of them (at least
    one, and not all if there are two), and let a coin decide whether B is the rest or random; a
    chunk of one sentence has no rest. minibert.data._random_segment and _truncate, which is called
    last, can be yours later.
    """
    raise NotImplementedError


# ---- what is learned: minibert/losses.py


def mlm_loss(logits, labels, denominator=None):
    """Cross-entropy of the masked tokens, in nats per prediction.

    logits: (..., V). labels: (...) int64, IGNORE where nothing is predicted. denominator: an int or
    a tensor; by default the number of predictions. Returns a scalar in float32 or wider, which is 0
    when nothing is predicted.

    One prediction with two equal chances costs log 2, and the ignored slot does not count. As one
    of the four predictions of a whole batch, it adds a quarter of that.
    >>> logits, labels = torch.zeros(2, 2), torch.tensor([1, IGNORE])
    >>> mlm_loss(logits, labels), mlm_loss(logits, labels, denominator=4)
    (tensor(0.6931), tensor(0.1733))

    Hint: F.cross_entropy(..., ignore_index=IGNORE, reduction="none") gives the loss of each slot.
    Sum them, and divide by the denominator, but never by 0. Make the logits float32 first: bfloat16
    has three digits.
    """
    raise NotImplementedError


def soft_target_loss(student_logits, teacher_logits, temperature, valid=None, denominator=None):
    """T² KL(teacher || student) of distributions softened by T, in nats per position.

    logits: (..., V). valid: (...) bool, the positions that count; by default all of them.
    denominator: by default the number of those. Returns a scalar in float32 or wider, which is 0
    when no position counts.

    A teacher of 3/4 and 1/4 and a student of two halves: 3/4 log 3/2 + 1/4 log 1/2.
    >>> teacher, student = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    >>> soft_target_loss(student, teacher, 1.0), soft_target_loss(student, teacher, 2.0)
    (tensor(0.1308), tensor(0.1454))

    Hint: divide both sets of logits by T and take log_softmax of each. The divergence of one
    position is the sum over the vocabulary of p (log p - log q), where p is the teacher's. Then
    take the mean over the positions that count, times T².
    """
    raise NotImplementedError


# ---- the student: minibert/student.py


def layer_map(teacher_layers, student_layers):
    """The teacher's layers that a student starts from, evenly spaced from the first to the last.

    Returns a list of student_layers numbers. A single layer is the first.
    >>> layer_map(12, 6), layer_map(8, 4), layer_map(4, 2), layer_map(4, 1)
    ([0, 2, 4, 7, 9, 11], [0, 2, 5, 7], [0, 3], [0])

    Hint: n points have n - 1 gaps between them, and the points span teacher_layers - 1. Round.
    """
    raise NotImplementedError


def make_student(teacher, distill, seed):
    """A model as wide as its teacher with fewer layers, and which layers it starts from.

    teacher: a MaskedLM. distill: a DistillConfig; its student_layers (0 means half of the
    teacher's) and init ("teacher" or "random") are read. Returns (student, list of layers), which
    is empty for "random". The student has no NSP head. That of a BERT is a "distilbert", with
    type_vocab_size 0. Raises UserError naming --student-layers where the depth is not between 1 and
    the teacher's, and --layer-norm-eps where a BERT's is not 1e-12.

    >>> teacher = minibert.model.MaskedLM(ModelConfig(vocab_size=20, hidden_size=8,
    ...     num_hidden_layers=4, num_attention_heads=2, intermediate_size=8,
    ...     max_position_embeddings=8))
    >>> student, layers = make_student(teacher, DistillConfig(teacher="-"), seed=0)
    >>> layers, student.config.model_type, len(student.encoder.layers)
    ([0, 3], 'distilbert', 2)

    Hint: dataclasses.replace(teacher.config, ...) gives the student's config,
    minibert.model.MaskedLM(config, seed) a new model, load_state_dict(..., strict=False) what both
    have, and then each layer gets the weights of its own. BERT adds the token type of segment A,
    row 0, to every token of a single text. The student has no such table: where could it keep that
    row?
    """
    raise NotImplementedError


# ---- the optimizer: minibert/training.py


def optimizer_groups(model, weight_decay):
    """Each parameter in one of two groups, with weight decay or without, as torch.optim takes them.

    Biases and LayerNorms are not decayed. Returns [dict(params=[...], weight_decay=weight_decay),
    dict(params=[...], weight_decay=0.0)].

    A Linear has a matrix and a bias, a LayerNorm a scale and a shift:
    >>> model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer_groups(model, 0.01)]
    [(1, 0.01), (3, 0.0)]

    Hint: a LayerNorm can have any name, so find it by its type among model.modules(), and its
    parameters by id(). A bias is found by the end of its name.
    """
    raise NotImplementedError


def learning_rate(step, run):
    """The rate rises linearly from 0 to its peak during the warm-up, then falls linearly to 0.

    step: int from 0 to run.steps. run: a RunConfig; run.learning_rate is the peak, and run.warmup
    the share of run.steps that the rise takes: at least one step, and none only if it is 0.
    >>> run = RunConfig(out="-", steps=6, warmup=1 / 3, learning_rate=1.0)
    >>> [learning_rate(step, run) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]

    Hint: there are two straight lines. The second begins at the peak, where the first one ends, and
    has run.steps less the steps of the warm-up to fall.
    """
    raise NotImplementedError
