"""The four losses of the three recipes, each a mean whose denominator is in plain sight.

A batch may be cut into micro-batches: each divides by the predictions (or sequences) of the whole
batch, the `denominator`, so that the micro-batches add up to the loss of the whole.
B batch, M masked positions, H hidden, V vocabulary; "..." is any number of dims.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from minibert.masking import IGNORE


def mlm_loss(logits: Tensor, labels: Tensor, denominator: int | Tensor | None = None) -> Tensor:
    """Cross-entropy of the masked tokens, nats per predicted token (Devlin et al. 2018, 3.1).

    logits: (..., V). labels: (...) int64, IGNORE where nothing is predicted. Returns a scalar;
    0 when nothing is predicted.
    """
    losses = F.cross_entropy(_to_float32(logits.flatten(0, -2)), labels.flatten(),
                             ignore_index=IGNORE, reduction="none")
    return _mean(losses, labels.flatten() != IGNORE, denominator)


def nsp_loss(logits: Tensor, is_random_next: Tensor,
             denominator: int | Tensor | None = None) -> Tensor:
    """Cross-entropy of "does B follow A?", nats per pair (Devlin et al. 2018, 3.1, task 2).

    logits: (B, 2). is_random_next: (B,) int64, 0 = B follows A, 1 = B is random. Returns a scalar.
    """
    losses = F.cross_entropy(_to_float32(logits), is_random_next, reduction="none")
    return _mean(losses, None, denominator)


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float,
                     valid: Tensor | None = None,
                     denominator: int | Tensor | None = None) -> Tensor:
    """T² KL(teacher || student) of distributions softened by T, nats per position.

    logits: (..., V). valid: (...) bool, the positions that count, by default all. Returns a scalar
    in float32 at least, 0 where no position counts.
    Paper: Hinton et al. 2015, section 2: soft gradients shrink as 1/T², so T² keeps the balance
    with the hard labels when T changes. (KL is the cross-entropy of DistilBERT's paper less the
    teacher's entropy, a constant.)
    """
    student = F.log_softmax(_to_float32(student_logits) / temperature, dim=-1)
    teacher = F.log_softmax(_to_float32(teacher_logits) / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * _mean(divergence, valid, denominator)


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor, valid: Tensor | None = None,
                denominator: int | Tensor | None = None) -> Tensor:
    """1 - cos of the last hidden states, per position (Sanh et al. 2019, section 3).

    hidden: (..., H), the same H. valid: (...) bool, the positions that count, by default all.
    Returns a scalar.
    """
    distance = 1 - F.cosine_similarity(_to_float32(student_hidden), _to_float32(teacher_hidden),
                                       dim=-1)
    return _mean(distance, valid, denominator)


def _mean(values: Tensor, valid: Tensor | None, denominator: int | Tensor | None) -> Tensor:
    if valid is None:
        valid = torch.ones_like(values, dtype=torch.bool)
    if denominator is None:
        denominator = valid.sum()
    denominator = torch.as_tensor(denominator, device=values.device)
    return values.masked_fill(~valid, 0).sum() / denominator.clamp(min=1)


def _to_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))  # bfloat16 too
