"""Tasks such as GLUE's, the classifier that learns them, and choices that need no training.

finetune.py and `tools/` import it; it imports the package's own level and `files/`.
"""
