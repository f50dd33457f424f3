"""The fixed held-out set that every run is measured on, the scores, and the baselines beside them.

N sequences, M masked positions, S sequence.
"""
import hashlib

import tokenizers
import torch
from torch import Tensor

from minibert.config import RunConfig
from minibert.data import Batch, TokenizedCorpus, assemble, make_sequences
from minibert.losses import mlm_loss, soft_target_loss
from minibert.masking import IGNORE, hash_bits, mask_tokens
from minibert.model import MaskedLM
from minibert.tokenizer import special_ids


def evaluation_set(held_out: TokenizedCorpus, input_format: str, run: RunConfig,
                   tokenizer: tokenizers.Tokenizer, device: str) -> Batch:
    """The fixed, masked held-out sequences: the same for every run on a corpus, whatever its seed.

    As many sequences as hold run.eval_targets targets, or all there are.
    """
    special = special_ids(tokenizer)
    spans = torch.from_numpy(make_sequences(held_out, input_format, run.seq_length, seed=0, dupe=0,
                                            short_seq_prob=0.0))
    order = hash_bits("evaluation", torch.arange(len(spans))).argsort()
    batch = assemble(torch.from_numpy(held_out.tokens.astype("int32")), spans[order], order, 0,
                     run.seq_length, special)
    inputs, masked_positions, labels = mask_tokens(
        batch.input_ids, order, seed=0, epoch=0, vocab_size=tokenizer.get_vocab_size(),
        mask_id=special.mask, special_ids=tuple(special), pad_id=special.pad)
    enough = int(((labels != IGNORE).sum(1).cumsum(0) < run.eval_targets).sum()) + 1
    batch = batch._replace(input_ids=inputs, masked_positions=masked_positions, labels=labels)
    return Batch._make(value[:enough].to(device) if isinstance(value, Tensor) else value
                       for value in batch)


@torch.no_grad()
def evaluate(model: MaskedLM, batch: Batch, batch_size: int = 256,
             teacher: MaskedLM | None = None) -> dict:
    """Loss in nats per target and accuracy on a fixed set, beside the entropy of its targets.

    unigram_entropy: the lowest loss of a predictor that ignores its input. (One that looks at the
    token in each target's own place does a little better: some are not shown as [MASK].) With a
    teacher also KL(teacher || model) in nats per target, and how often both find the same word
    likeliest. For a model with an NSP head on pairs, `nsp_scores`.
    """
    labels = batch.labels
    was_training = model.training
    model.eval()
    loss, correct, kl, agreeing, nsp_guesses = 0.0, 0, 0.0, 0, []
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
    share = targets.bincount().double() / len(targets)
    digest = hashlib.sha256(b"".join(
        tensor.cpu().numpy().tobytes()
        for tensor in (batch.input_ids, batch.masked_positions, labels)))
    result = {"mlm_loss": loss / len(targets), "accuracy": correct / len(targets),
              "targets": len(targets), "unigram_entropy": -torch.special.xlogy(share, share).sum()
              .item(), "hash": digest.hexdigest()[:16]}
    if teacher is not None:
        result |= {"kl_to_teacher": kl / len(targets), "agreement": agreeing / len(targets)}
    if nsp_guesses and batch.is_random_next.any():
        result |= nsp_scores(model, batch, torch.cat(nsp_guesses), batch_size)
    model.train(was_training)
    return result


def nsp_scores(model: MaskedLM, batch: Batch, guesses: Tensor, batch_size: int) -> dict[str, float]:
    """Accuracy of next sentence prediction, and three figures that say what it is worth.

    guesses: (N,) 0/1. nsp_majority: always the more frequent answer. nsp_length: the best rule
    that knows the pair's length alone, chosen on this very set; random pairs differ in length.
    sentence_order: true pairs against the same with A and B swapped, where topic tells nothing;
    half is chance (Lan et al. 2019, arXiv:1909.11942, section 3.1).
    """
    random, length = batch.is_random_next.bool(), batch.attention_mask.sum(1)
    shares = torch.stack([((length >= cut) == random).double().mean() for cut in length.unique()])
    swapped = []
    for rows in (~random).nonzero()[:, 0].split(batch_size):
        ids, types = swap_segments(batch.input_ids[rows], batch.attention_mask[rows],
                                   batch.token_type_ids[rows])
        swapped.append(model(ids, attention_mask=batch.attention_mask[rows], token_type_ids=types,
                             positions=ids.new_zeros(len(ids), 1)).nsp_logits.argmax(-1))
    in_order = (guesses[~random] == 0).double().mean()
    return {"nsp_accuracy": (guesses == random).double().mean().item(),
            "nsp_majority": max(random.double().mean().item(), (~random).double().mean().item()),
            "nsp_length": max(shares.max().item(), 1 - shares.min().item()),
            "sentence_order": (in_order + torch.cat(swapped).double().mean()).item() / 2}


def swap_segments(input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
                  ) -> tuple[Tensor, Tensor]:
    """Pairs with B before A, as input_ids and token_type_ids; all (N, S) int64.

    >>> ids = torch.tensor([[2, 7, 8, 3, 9, 3, 0]])  # [CLS] A [SEP] B [SEP] and padding
    >>> mask, types = (ids > 0).long(), torch.tensor([[0, 0, 0, 0, 1, 1, 0]])
    >>> [tensor.tolist() for tensor in swap_segments(ids, mask, types)]
    [[[2, 9, 3, 7, 8, 3, 0]], [[0, 0, 0, 1, 1, 1, 0]]]
    """
    b = token_type_ids.sum(1, keepdim=True)  # B and its [SEP]
    a = attention_mask.sum(1, keepdim=True) - b - 1  # A and its [SEP]
    p = torch.arange(input_ids.shape[1], device=input_ids.device)
    source = torch.where((p >= 1) & (p <= b), p + a, torch.where((p > b) & (p <= a + b), p - b, p))
    return input_ids.gather(1, source), ((p > b) & (p <= a + b)).long()
