"""A plugin for pytest: one function of mine.py takes the place of the package's, in all tests."""
import importlib
import inspect
import os
import textwrap

from exercises import mine

# For each piece, the module that it belongs to and a hint for whoever has not begun.
PIECES = {
    "readable_attention": (
        "model", "Four lines are enough: compare every query with every key (a matrix product with "
        "key.transpose(-1, -2)), divide by the square root of D, add the mask if there is one, and "
        "mix the values by the softmax of that. Dropout belongs between softmax and mix."),
    "soft_target_loss": (
        "losses", "Divide both sets of logits by the temperature and take log_softmax of each. The "
        "divergence of one position is the sum over the vocabulary of p (log p - log q), where p "
        "is the teacher's distribution. Then take the mean over the positions, times T²."),
    "mask_tokens": (
        "masking", "Give every position a random key, hash_bits(seed, epoch, \"choose\", sequence, "
        "position), and choose the positions with the lowest keys, never a special token. A second "
        "key, modulo 10, decides what becomes of each: below 8 [MASK], 8 a random word, 9 as it "
        "is."),
    "segment_pairs": (
        "data", "Collect sentences of one document until they fill a sequence, cut them at a "
        "random place, and let a coin decide whether B is the rest or comes from another document. "
        "In the second case the rest goes back, to begin the next pair."),
}

piece = os.environ["PIECE"]
if piece not in PIECES:
    raise SystemExit(f"error: there is no exercise {piece!r}; choose one of {', '.join(PIECES)}")
module, hint = PIECES[piece]
written = getattr(mine, piece)
if "raise NotImplementedError" in inspect.getsource(written):
    said = f"{piece} is still blank in tests/exercises/mine.py. Hint: {hint}"
    raise SystemExit(textwrap.fill(said, width=80))
setattr(importlib.import_module(f"minibert.{module}"), piece, written)
