"""A plugin of pytest's: one function of mine.py takes the place of the package's, in all tests."""
import importlib
import os

from exercises import mine

PIECES = {"readable_attention": "model", "soft_target_loss": "losses", "mask_tokens": "masking",
          "segment_pairs": "data"}

piece = os.environ["PIECE"]
if piece not in PIECES:
    raise SystemExit(f"error: there is no exercise {piece!r}; they are {', '.join(PIECES)}")
setattr(importlib.import_module(f"minibert.{PIECES[piece]}"), piece, getattr(mine, piece))
