"""The four losses: each against plain numpy, and what must not change them."""
import numpy as np
import pytest
import torch

from minibert.losses import cosine_loss, mlm_loss, nsp_loss, soft_target_loss
from minibert.masking import IGNORE


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def log_softmax(logits):
    """In numpy and float64, on the last dimension."""
    logits = logits.detach().double().numpy()
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def gradient(loss, at):
    """The gradient of loss(x) at a copy of `at`."""
    x = at.detach().clone().requires_grad_()
    loss(x).backward()
    return x.grad


# Three rows with 1, 3 and 0 of the four slots to predict; 0 is a token like any other.
LABELS = torch.tensor([[5, IGNORE, IGNORE, IGNORE], [2, IGNORE, 0, 7],
                       [IGNORE, IGNORE, IGNORE, IGNORE]])
LOGITS = draw(3, 4, 9)


# Masked language model

def test_two_guesses_by_hand():
    """Would catch: another logarithm than the natural one, a sum for the mean, the wrong words.
    The right words have shares of a half and a quarter, so the loss is (ln 2 + ln 4) / 2."""
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]]))
    labels = torch.tensor([[0, 2, IGNORE]])
    assert mlm_loss(logits, labels).item() == pytest.approx(1.5 * np.log(2))


def test_mlm_loss_is_the_mean_over_predictions():
    """Would catch: slots without a prediction that count; token 0 taken for "ignore"."""
    log_p = log_softmax(LOGITS)
    expected = -(log_p[0, 0, 5] + log_p[1, 0, 2] + log_p[1, 2, 0] + log_p[1, 3, 7]) / 4
    assert mlm_loss(LOGITS, LABELS).item() == pytest.approx(expected, rel=1e-6)


def test_ignored_slots_change_nothing():
    """Would catch: a loss or a gradient that reads logits where nothing is predicted."""
    ignored = LABELS == IGNORE
    other = LOGITS + 100 * ignored[:, :, None] * draw(3, 4, 9, seed=1)
    assert mlm_loss(other, LABELS) == mlm_loss(LOGITS, LABELS)
    one, two = (gradient(lambda x: mlm_loss(x, LABELS), logits) for logits in (LOGITS, other))
    assert torch.equal(one, two)
    assert (one[ignored] == 0).all() and (one[~ignored] != 0).all()


def test_no_predictions_are_a_loss_of_zero():
    """Would catch: 0 / 0, a loss and gradients of NaN from a batch with no predictions."""
    nothing, hidden = torch.full((3, 4), IGNORE), draw(3, 4, 6)
    none = torch.zeros(3, 4, dtype=torch.bool)
    for loss, at in ((lambda x: mlm_loss(x, nothing), LOGITS),
                     (lambda x: mlm_loss(x, nothing, denominator=0), LOGITS),
                     (lambda x: soft_target_loss(x, LOGITS + 1, 2.0, none), draw(3, 4, 9, seed=1)),
                     (lambda x: cosine_loss(x, hidden, none), draw(3, 4, 6, seed=1))):
        assert loss(at) == 0
        assert (gradient(loss, at) == 0).all()


# Next sentence prediction

def test_nsp_label_1_is_the_random_sentence():
    """Would catch: the opposite convention; here column 0 is "B follows", column 1 "random"."""
    follows, random = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    assert nsp_loss(follows, torch.tensor([0])) < 0.01 < 8 < nsp_loss(follows, torch.tensor([1]))
    assert nsp_loss(random, torch.tensor([1])) < 0.01 < 8 < nsp_loss(random, torch.tensor([0]))


def test_nsp_loss_is_the_mean_over_pairs():
    """Would catch: a second softmax inside the loss, a sum instead of the mean."""
    logits, labels = draw(3, 2), torch.tensor([0, 1, 1])
    log_p = log_softmax(logits)
    expected = -(log_p[0, 0] + log_p[1, 1] + log_p[2, 1]) / 3
    assert nsp_loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)
    assert nsp_loss(logits, labels, denominator=6).item() == pytest.approx(expected / 2, rel=1e-6)


def test_both_nsp_classes_teach():
    """Would catch: ignore_index=0, the MLM's padding, at work in NSP: one class never learns."""
    found = gradient(lambda x: nsp_loss(x, torch.tensor([0, 1, 0, 1])), draw(4, 2))
    assert (found != 0).all()
    assert (found[[0, 2], 0] < 0).all() and (found[[1, 3], 1] < 0).all()  # the right one goes up


# Soft targets

TEACHER = draw(3, 4, 9, seed=2)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_soft_targets_are_kl_of_student_from_teacher(temperature):
    """Would catch: the arguments swapped; T squared missing."""
    student, teacher = log_softmax(LOGITS / temperature), log_softmax(TEACHER / temperature)
    expected = temperature**2 * (np.exp(teacher) * (teacher - student)).sum(-1).mean()
    swapped = temperature**2 * (np.exp(student) * (student - teacher)).sum(-1).mean()
    found = soft_target_loss(LOGITS, TEACHER, temperature).item()
    assert found == pytest.approx(expected, rel=1e-5)
    assert abs(found - swapped) > 0.01  # KL is not symmetric: the test can tell


def test_soft_target_loss_is_a_mean_over_positions():
    """Would catch: `batchmean` of three dimensions, which grows with the length."""
    loss = soft_target_loss(LOGITS, TEACHER, 2.0)
    assert torch.allclose(soft_target_loss(LOGITS.flatten(0, 1), TEACHER.flatten(0, 1), 2.0), loss)
    double = LOGITS.repeat(1, 2, 1), TEACHER.repeat(1, 2, 1)
    assert torch.allclose(soft_target_loss(*double, 2.0), loss)
    valid = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]]).bool().expand(3, 8)
    padded = [torch.cat([logits, draw(3, 4, 9, seed=3 + i)], 1)
              for i, logits in enumerate((LOGITS, TEACHER))]
    assert torch.allclose(soft_target_loss(*padded, 2.0, valid), loss)


def test_soft_targets_match_logits_at_high_temperature():
    """Would catch: T or T squared missing. The limit is half the squared difference."""
    difference = LOGITS - TEACHER
    # Hinton et al. 2015, section 2.1: (z - v) / N, here for logits that need not have mean zero.
    limit = (difference - difference.mean(-1, keepdim=True)) / 9 / 12  # 9 tokens, 12 positions
    found = gradient(lambda x: soft_target_loss(x, TEACHER, 1000.0), LOGITS)
    torch.testing.assert_close(found, limit, rtol=0, atol=0.01 * limit.abs().max().item())
    far = gradient(lambda x: soft_target_loss(x, TEACHER, 2.0), LOGITS)
    assert (far - limit).abs().max() > 0.1 * limit.abs().max()  # it is a limit: not so at 2


def test_equal_models_have_no_soft_target_or_cosine_loss():
    """Would catch: a student like its teacher that is still pulled somewhere."""
    hidden = draw(3, 4, 6)
    assert soft_target_loss(LOGITS, LOGITS, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert cosine_loss(hidden, hidden).item() == pytest.approx(0, abs=1e-6)
    kl = gradient(lambda x: soft_target_loss(x, LOGITS, 2.0), LOGITS)
    cosine = gradient(lambda x: cosine_loss(x, hidden), hidden)
    assert kl.abs().max() < 1e-6 and cosine.abs().max() < 1e-6


def test_kl_is_cross_entropy_less_the_teachers_entropy():
    """Would catch: an entropy with the wrong sign; the paper's L_ce differs by this constant."""
    student, teacher = log_softmax(LOGITS), log_softmax(TEACHER)
    cross_entropy = -(np.exp(teacher) * student).sum(-1).mean()
    entropy = -(np.exp(teacher) * teacher).sum(-1).mean()
    found = soft_target_loss(LOGITS, TEACHER, 1.0).item()
    assert found == pytest.approx(cross_entropy - entropy, rel=1e-5)


# Cosine

def test_cosine_loss_is_one_less_the_cosine():
    """Would catch: the wrong dimension, a sign; a loss that reads lengths and not directions."""
    a, b = draw(3, 4, 6), draw(3, 4, 6, seed=1)
    x, y = a.double().numpy(), b.double().numpy()
    cosine = (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    assert cosine_loss(a, b).item() == pytest.approx((1 - cosine).mean(), rel=1e-5)
    assert cosine_loss(a, -a).item() == pytest.approx(2)
    assert torch.allclose(cosine_loss(3 * a, b), cosine_loss(a, b))


# What all of them share: `real`, `count` and float32

def test_valid_picks_the_positions():
    """Would catch: a mean that counts the positions left out, or a mask the wrong way round."""
    valid = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]).bool()
    a, b = draw(3, 4, 6), draw(3, 4, 6, seed=1)
    assert torch.allclose(soft_target_loss(LOGITS, TEACHER, 2.0, valid),
                          soft_target_loss(LOGITS[valid], TEACHER[valid], 2.0))
    assert torch.allclose(cosine_loss(a, b, valid), cosine_loss(a[valid], b[valid]))


@pytest.mark.parametrize("denominator", [8, torch.tensor(8)], ids=["int", "tensor"])
def test_denominator_is_that_of_the_whole_batch(denominator):
    """Would catch: a `denominator` that is not read, or is multiplied with the own number."""
    valid = LABELS != IGNORE  # four places
    hidden = draw(3, 4, 6), draw(3, 4, 6, seed=1)
    for loss in (lambda **given: mlm_loss(LOGITS, LABELS, **given),
                 lambda **given: soft_target_loss(LOGITS, TEACHER, 2.0, valid, **given),
                 lambda **given: cosine_loss(*hidden, valid, **given)):
        assert torch.allclose(loss(denominator=denominator), loss() / 2)


def in_micro_batches(loss, at, rows, denominator):
    """Value and gradient of the loss of three rows, one micro-batch after the other."""
    x = at.clone().requires_grad_()
    total = sum(loss(x[row:row + 1], row, denominator) for row in rows)
    total.backward()
    return total, x.grad


def test_micro_batches_add_up_to_the_whole():
    """Would catch: the mean of the micro-batches' means, whose counts differ."""
    valid = LABELS != IGNORE  # 1, 3 and 0 in the three rows
    hidden = draw(3, 4, 6, seed=1)
    cut = lambda tensor, row: tensor if row is None else tensor[row:row + 1]
    losses = {
        "mlm": (LOGITS, lambda x, row, denominator: mlm_loss(x, cut(LABELS, row), denominator)),
        "kl": (LOGITS, lambda x, row, denominator: soft_target_loss(
            x, cut(TEACHER, row), 2.0, cut(valid, row), denominator)),
        "cos": (draw(3, 4, 6), lambda x, row, denominator: cosine_loss(
            x, cut(hidden, row), cut(valid, row), denominator)),
    }
    for name, (at, loss) in losses.items():
        whole = loss(at, None, None)
        whole_gradient = gradient(lambda x: loss(x, None, None), at)
        value, found = in_micro_batches(loss, at, range(3), valid.sum())
        torch.testing.assert_close(value, whole)
        torch.testing.assert_close(found, whole_gradient)
        means, wrong = in_micro_batches(loss, at, range(2), None)  # each by its own count
        assert not torch.allclose(means / 2, whole, rtol=0.01), name
        assert not torch.allclose(wrong / 2, whole_gradient, rtol=0.01), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_float32(dtype):
    """Would catch: a softmax, a KL or a mean in 8 bits of precision, under autocast."""
    logits, teacher, pairs = LOGITS.to(dtype), TEACHER.to(dtype), draw(3, 2).to(dtype)
    a, b = draw(3, 4, 6).to(dtype), draw(3, 4, 6, seed=1).to(dtype)
    follows = torch.tensor([0, 1, 1])
    for half, full in (
            (mlm_loss(logits, LABELS), mlm_loss(logits.float(), LABELS)),
            (nsp_loss(pairs, follows), nsp_loss(pairs.float(), follows)),
            (soft_target_loss(logits, teacher, 2.0),
             soft_target_loss(logits.float(), teacher.float(), 2.0)),
            (cosine_loss(a, b), cosine_loss(a.float(), b.float()))):
        assert half.dtype == torch.float32 and torch.equal(half, full)
