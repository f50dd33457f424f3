"""What is read from and written to disk: prepared corpora, run folders, Hugging Face folders.

Everybody may import it; it imports the package's own level only.
"""
