"""WikiText-2 (raw): verified articles of English Wikipedia, the small set, 12 MB of text."""
import tempfile
from collections.abc import Iterator
from pathlib import Path

from download import extract, fetch, write_aside

from minibert.errors import run_cli

# Merity et al. 2016, arXiv:1609.07843. Length and SHA-256 as huggingface/datasets recorded them.
URLS = ["https://wikitext.smerity.com/wikitext-2-raw-v1.zip",
        "https://huggingface.co/datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip"]
SHA256 = "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11"
SIZE = 4_721_645
# The test part stays unread, so that a number on it still means something.
MEMBERS = ["wikitext-2-raw/wiki.train.raw", "wikitext-2-raw/wiki.valid.raw"]


def wikitext(path: Path, urls: list[str], sha256: str, size: int, members: list[str]) -> None:
    """Write the text at `path` from a WikiText archive unless it is there; UserError as `fetch`."""
    if path.exists():
        print(f"{path} is already there; delete it to make it again")
        return
    archive = fetch(urls, sha256, size, path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent) as unpacked:
        write_aside(path, _lines(extract(archive, members, Path(unpacked))))
    print(f"wrote {path} ({path.stat().st_size:,} bytes)")


def _lines(parts: list[Path]) -> Iterator[bytes]:
    between = b""
    for part in parts:
        after_blank = True
        with part.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                line = " ".join(line.split())
                # Sections have more signs, " = = "; a formula may look the same inside a paragraph.
                if after_blank and line.startswith("= ") and line[2] != "=" and line.endswith(" ="):
                    yield between
                    between = b"\n"
                if line:
                    yield f"{line}\n".encode()
                after_blank = not line


if __name__ == "__main__":
    run_cli(lambda: wikitext(Path(__file__).with_suffix(".txt"), URLS, SHA256, SIZE, MEMBERS))
