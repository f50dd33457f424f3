"""The fixed held-out set that all runs are measured on, their scores, and the baselines.

N sequences, M masked positions, S sequence.
"""
import hashlib

import tokenizers
import torch
from torch import Tensor

from minibert.config import RunConfig
from minibert.data import Batch, TokenizedCorpus, assemble, make_sequences
from minibert.losses import mlm_loss, soft_target_loss
from minibert.hashing import hash_bits
from minibert.masking import IGNORE, DynamicMasker
from minibert.model import MaskedLM
from minibert.tokenizer import special_ids


MASKED_AT_A_TIME = 1024  # held-out sequences: a long text has far more than are needed
MOST_LOGITS = 2**28  # at a time: a gigabyte in float32, and losses need several times as much


def rows_at_a_time(vocab_size: int, positions: int) -> int:
    """How many sequences may be read at once, where each gives logits at so many positions."""
    return max(1, MOST_LOGITS // (vocab_size * positions))


def evaluation_set(held_out: TokenizedCorpus, input_format: str, run: RunConfig,
                   tokenizer: tokenizers.Tokenizer, device: str) -> Batch:
    """The fixed, masked held-out sequences: the same for all runs of one length on a corpus.

    They do not depend on the run's seed, mask rate or masker. There are as many as hold
    run.eval_targets targets, or all of them where the text has fewer.
    """
    special = special_ids(tokenizer)
    masker = DynamicMasker(special, tokenizer.get_vocab_size(), seed=0)
    spans = torch.from_numpy(make_sequences(held_out, input_format, run.seq_length, seed=0,
                                            duplicate=0, short_seq_prob=0.0))
    order = hash_bits("evaluation", torch.arange(len(spans))).argsort()
    tokens, pieces, num_targets = torch.from_numpy(held_out.tokens.astype("int32")), [], 0
    for rows in order.split(MASKED_AT_A_TIME):
        pieces.append(masker(assemble(tokens, spans[rows], rows, 0, run.seq_length, special)))
        num_targets += int((pieces[-1].labels != IGNORE).sum())
        if num_targets >= run.eval_targets:
            break
    targets = torch.cat([(piece.labels != IGNORE).sum(1) for piece in pieces])
    enough = int((targets.cumsum(0) < run.eval_targets).sum()) + 1
    return Batch._make(torch.cat(values)[:enough].to(device) if isinstance(values[0], Tensor)
                       else values[0] for values in zip(*pieces))


@torch.no_grad()
def evaluate(model: MaskedLM, batch: Batch, batch_size: int = 256,
             teacher: MaskedLM | None = None) -> dict:
    """The loss in nats per target, the accuracy, and the entropy of the targets of a fixed set.

    unigram_entropy: the lowest loss of a predictor that ignores its input. (One that looks only at
    the token in each target's own place does a little better, because some are not shown as
    [MASK].) With a teacher there are also KL(teacher || model) in nats per target, and the share
    of targets for which both have the same first choice; for a model with an NSP head, on pairs,
    also `nsp_scores`.
    """
    labels = batch.labels
    batch_size = min(batch_size, rows_at_a_time(model.config.vocab_size, labels.shape[1]))
    was_training = model.training
    model.eval()
    loss, correct, kl, agreeing = 0.0, 0, 0.0, 0
    nsp_guesses = []
    for rows in torch.arange(len(labels), device=labels.device).split(batch_size):
        inputs = dict(input_ids=batch.input_ids[rows], positions=batch.masked_positions[rows],
                      attention_mask=batch.attention_mask[rows],
                      token_type_ids=batch.token_type_ids[rows])
        output = model(**inputs)
        valid = labels[rows] != IGNORE
        guesses = output.mlm_logits.argmax(-1)
        loss += mlm_loss(output.mlm_logits, labels[rows], denominator=1).item()
        correct += (guesses == labels[rows]).sum().item()
        if output.nsp_logits is not None:
            nsp_guesses.append(output.nsp_logits.argmax(-1))
        if teacher is not None:
            teacher_logits = teacher(**inputs).mlm_logits
            kl += soft_target_loss(output.mlm_logits, teacher_logits, 1.0, valid,
                                   denominator=1).item()
            agreeing += ((guesses == teacher_logits.argmax(-1)) & valid).sum().item()
    targets = labels[labels != IGNORE].cpu()
    frequency = targets.bincount().double() / len(targets)
    entropy = -torch.special.xlogy(frequency, frequency).sum().item()
    digest = hashlib.sha256(b"".join(
        tensor.cpu().numpy().tobytes()
        for tensor in (batch.input_ids, batch.masked_positions, labels)))
    result = {"mlm_loss": loss / len(targets), "accuracy": correct / len(targets),
              "targets": len(targets), "unigram_entropy": entropy,
              "hash": digest.hexdigest()[:16]}
    if teacher is not None:
        result |= {"kl_to_teacher": kl / len(targets), "agreement": agreeing / len(targets)}
    if nsp_guesses and len(batch.is_random_next.unique()) == 2:  # there are pairs of both kinds
        result |= nsp_scores(model, batch, torch.cat(nsp_guesses), batch_size)
    model.train(was_training)
    return result


def nsp_scores(model: MaskedLM, batch: Batch, guesses: Tensor, batch_size: int) -> dict[str, float]:
    """Accuracy of next sentence prediction, and three figures that tell what it is worth.

    guesses: (N,) 0/1. nsp_majority is the accuracy of always giving the more frequent answer.
    nsp_length is that of the best rule which knows only the pair's length, chosen on this very
    set; random pairs differ in length. sentence_order is the accuracy on true pairs and on the
    same pairs with A and B swapped: the topic tells nothing there, and chance is one half (Lan et
    al. 2019, arXiv:1909.11942, section 3.1).
    """
    random, length, guesses = (values.cpu() for values in (  # Apple's GPUs have no float64
        batch.is_random_next.bool(), batch.attention_mask.sum(1), guesses))
    # "Pairs of this length or more are random", for each length; the opposite rule has the rest.
    by_length = torch.stack([((length >= least) == random).double().mean()
                             for least in length.unique()])
    swapped = []
    for rows in (~random).nonzero()[:, 0].split(batch_size):
        ids, types = swap_segments(batch.input_ids[rows], batch.attention_mask[rows],
                                   batch.token_type_ids[rows])
        swapped.append(model(ids, attention_mask=batch.attention_mask[rows], token_type_ids=types,
                             positions=ids.new_zeros(len(ids), 1)).nsp_logits.argmax(-1))
    in_order = (guesses[~random] == 0).double().mean()
    return {"nsp_accuracy": (guesses == random).double().mean().item(),
            "nsp_majority": max(random.double().mean().item(), (~random).double().mean().item()),
            "nsp_length": max(by_length.max().item(), 1 - by_length.min().item()),
            "sentence_order": (in_order + torch.cat(swapped).cpu().double().mean()).item() / 2}


def swap_segments(input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
                  ) -> tuple[Tensor, Tensor]:
    """The same pairs with B before A, as input_ids and token_type_ids; all (N, S) int64.

    >>> ids = torch.tensor([[2, 7, 8, 3, 9, 3, 0]])  # [CLS] A [SEP] B [SEP] and padding
    >>> mask, types = (ids > 0).long(), torch.tensor([[0, 0, 0, 0, 1, 1, 0]])
    >>> [tensor.tolist() for tensor in swap_segments(ids, mask, types)]
    [[[2, 9, 3, 7, 8, 3, 0]], [[0, 0, 0, 1, 1, 1, 0]]]
    """
    b = token_type_ids.sum(1, keepdim=True)  # B and its [SEP]
    a = attention_mask.sum(1, keepdim=True) - b - 1  # A and its [SEP]
    # Position p of the result copies position `source` of the input:
    #   p         0     1 ... b      b+1 ... a+b    a+b+1 ...
    #   result  [CLS]   B [SEP]      A [SEP]        [PAD]
    #   source    0     a+1 ... a+b    1 ... a      a+b+1 ...
    p = torch.arange(input_ids.shape[1], device=input_ids.device)
    now_b, now_a = (p >= 1) & (p <= b), (p > b) & (p <= a + b)
    source = torch.where(now_b, p + a, p)
    source = torch.where(now_a, p - b, source)
    return input_ids.gather(1, source), now_a.long()
