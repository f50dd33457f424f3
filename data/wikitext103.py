"""WikiText-103 (raw): verified articles of English Wikipedia, the large set, 540 MB of text."""
from pathlib import Path

from wikitext2 import wikitext

from minibert.errors import run_cli

# Merity et al. 2016, arXiv:1609.07843. Length and SHA-256 as huggingface/datasets recorded them.
URLS = ["https://wikitext.smerity.com/wikitext-103-raw-v1.zip",
        "https://huggingface.co/datasets/mattdangerw/wikitext-103-raw/resolve/main/"
        "wikitext-103-raw-v1.zip"]
SHA256 = "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794"
SIZE = 191_984_949
MEMBERS = ["wikitext-103-raw/wiki.train.raw", "wikitext-103-raw/wiki.valid.raw"]

if __name__ == "__main__":
    run_cli(lambda: wikitext(Path(__file__).with_suffix(".txt"), URLS, SHA256, SIZE, MEMBERS))
