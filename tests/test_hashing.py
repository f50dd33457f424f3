"""Random numbers: the same keys give the same number, and any other key another one."""
import pytest
import torch

from minibert.hashing import hash_bits


def test_a_number_that_never_changes():
    """Would catch: a changed random stream, by which no old run could be repeated."""
    assert hash_bits(0, "order", 1) == 1344938168


def chi_square(counts):
    """Pearson's statistic of counts that should be equal."""
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def test_hash_of_numbers_and_tensors_agree():
    """Would catch: an overflow in one of the forms, and so other masks elsewhere."""
    numbers = [0, 1, 2, 1000, 2**31 - 1, 2**31, 2**31 + 5, 2**32 - 1, 2**40 + 3, 2**62 + 9]
    rows, columns = torch.tensor(numbers)[:, None], torch.arange(4)
    values = hash_bits(7, "choose", rows, columns)
    assert values.tolist() == [[hash_bits(7, "choose", n, p) for p in range(4)] for n in numbers]
    assert values.min() >= 0 and values.max() < 2**32
    assert len(set(values.flatten().tolist())) == 40


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
@pytest.mark.parametrize("varied", [0, 1, 2, 3])
def test_hash_is_uniform(shift, varied):
    """Would catch: consecutive seeds, epochs, indices or positions that give related numbers."""
    keys = [3, 5, 7, 11]
    keys[varied] = torch.arange(65_536)
    counts = ((hash_bits(*keys) >> shift) & 255).bincount(minlength=256).tolist()
    assert chi_square(counts) < 341  # p = 0.0003


def test_every_key_of_the_hash_changes_half_of_the_bits():
    """Would catch: a key that is ignored, or mixed in so weakly that masks are alike."""
    keys = [0, 0, "choose", 0, 0]
    changed = [1, 1, "hide", 1, 1]
    for place in range(5):
        other = [*keys[:place], changed[place], *keys[place + 1:]]
        ends = torch.arange(2000)
        bits = (hash_bits(*keys, ends) ^ hash_bits(*other, ends))[:, None] >> torch.arange(32)
        assert 0.48 < (bits & 1).float().mean() < 0.52


def test_order_of_the_keys_counts():
    """Would catch: keys added up, so that epoch 1 of row 2 is epoch 2 of row 1."""
    assert hash_bits(1, 2) != hash_bits(2, 1)
    assert hash_bits("a", 1) != hash_bits(1, "a")
    assert hash_bits(0, 0) != hash_bits(0)
