"""Tasks with labels, such as GLUE's, and the fine-tuning of an encoder on them.

The scripts, `tools/` and `claims/` may import it; it imports the package's own level and `files/`.
"""
