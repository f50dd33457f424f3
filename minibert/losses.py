"""The four losses of the three recipes, each a mean whose denominator is in plain sight.

A batch may be cut into micro-batches. Each of them divides by the predictions (or sequences) of the
whole batch, which is the `denominator`, so that their losses add up to the loss of the whole.
B batch, M masked positions, H hidden, V vocabulary; "..." stands for any number of dimensions.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from minibert.masking import IGNORE


def mlm_loss(logits: Tensor, labels: Tensor, denominator: int | Tensor | None = None) -> Tensor:
    """Cross-entropy of the masked tokens, in nats per prediction (Devlin et al. 2018, 3.1).

    logits: (..., V). labels: (...) int64, IGNORE where nothing is predicted. denominator: by
    default the number of predictions. Returns a scalar, which is 0 when nothing is predicted.
    """
    losses = F.cross_entropy(_to_float32(logits.flatten(0, -2)), labels.flatten(),
                             ignore_index=IGNORE, reduction="none")
    return _mean(losses, labels.flatten() != IGNORE, denominator)


def nsp_loss(logits: Tensor, is_random_next: Tensor,
             denominator: int | Tensor | None = None) -> Tensor:
    """Cross-entropy of "does B follow A?", in nats per pair (Devlin et al. 2018, 3.1, task 2).

    logits: (B, 2). is_random_next: (B,) int64, 0 = B follows A, 1 = B is random. denominator: by
    default the number of pairs. Returns a scalar.
    """
    losses = F.cross_entropy(_to_float32(logits), is_random_next, reduction="none")
    return _mean(losses, None, denominator)


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float,
                     valid: Tensor | None = None,
                     denominator: int | Tensor | None = None) -> Tensor:
    """T² KL(teacher || student) of distributions softened by T, in nats per position.

    logits: (..., V). valid: (...) bool, the positions that count; by default all of them.
    denominator: by default the number of valid positions. Returns a scalar in float32 or wider,
    which is 0 when no position counts.

    Why a temperature: a trained teacher is so sure of its first choice that the other words get
    next to nothing. T > 1 raises their shares, and they say which words are alike.
    Why T²: the gradient of the KL for a student's logit is (q - p) / T, and the two softened shares
    q and p approach each other as 1/T themselves. So it shrinks as 1/T². The factor T² makes up
    for that, and the balance with the hard labels stays about the same when T changes.
    Paper: Hinton et al. 2015, section 2. (DistilBERT's paper writes the cross-entropy, which is
    this KL plus the teacher's entropy, a constant: the gradients are the same.)
    """
    student = F.log_softmax(_to_float32(student_logits) / temperature, dim=-1)
    teacher = F.log_softmax(_to_float32(teacher_logits) / temperature, dim=-1)
    # torch takes the distribution to be learned second: this is KL(teacher || student).
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * _mean(divergence, valid, denominator)


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor, valid: Tensor | None = None,
                denominator: int | Tensor | None = None) -> Tensor:
    """1 - cosine of the last hidden states, per position (Sanh et al. 2019, section 3).

    hidden: (..., H), both of the same H. valid: (...) bool, the positions that count; by default
    all of them. denominator: by default their number. Returns a scalar.
    """
    distance = 1 - F.cosine_similarity(_to_float32(student_hidden), _to_float32(teacher_hidden),
                                       dim=-1)
    return _mean(distance, valid, denominator)


def _mean(values: Tensor, valid: Tensor | None, denominator: int | Tensor | None) -> Tensor:
    if valid is None:
        valid = torch.ones_like(values, dtype=torch.bool)
    if denominator is None:
        denominator = valid.sum()
    # A number made on the device; a GPU would be waited for if it were copied there.
    denominator = values.new_ones(()) * denominator
    return values.masked_fill(~valid, 0).sum() / denominator.clamp(min=1)


def _to_float32(values: Tensor) -> Tensor:
    """bfloat16 keeps three digits, too few for the logarithms and sums of a loss."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
