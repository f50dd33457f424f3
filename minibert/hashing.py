"""Where every random draw comes from: a hash of what it is for, and no state.

A generator with a state gives its numbers in turn, so one more draw somewhere changes all that
come after it. A hash of (seed, what it is for, epoch, index) does not: masks, pairs and orders stay
the same whatever the batch size, the device, the number of processes or a resume.
"""
import zlib

from torch import Tensor


def hash_bits(*keys: "int | str | Tensor") -> "int | Tensor":
    """Mix keys into uniform integers in [0, 2**32); tensors broadcast, and order matters.

    This is a counter-based random generator: the same keys give the same number on every device,
    whatever was drawn before. The steps and constants are "lowbias32" (C. Wellons, Hash
    Prospector, 2018). Integers wrap in torch as in C, and only the lower 32 bits are kept.

    >>> hash_bits(0, "order", 1), hash_bits(0, "order", 2), hash_bits(1, "order", 1)
    (1344938168, 3107064683, 1316649778)
    """
    state: int | Tensor = 0
    for key in keys:
        key = zlib.crc32(key.encode()) if isinstance(key, str) else key
        state = ((state ^ key) + 0x9E3779B9) & 0xFFFFFFFF
        state = ((state ^ (state >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        state = ((state ^ (state >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        state = state ^ (state >> 16)
    return state
