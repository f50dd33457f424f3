"""Fetch an archive and check it, take members out of it, write files that are never half there."""
import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from tqdm import tqdm

from minibert.errors import UserError

BLOCK = 1 << 16
TIMEOUT = 30.0  # seconds without a byte: a slow server is fine, a silent one is not
HEADERS = {"User-Agent": "minibert"}  # some hosts answer 403 to urllib's own name


def fetch(urls: list[str], sha256: str, size: int, folder: Path, timeout: float = TIMEOUT) -> Path:
    """Return the file in `folder` that is named as the first of `urls`, downloaded unless it is
    there, from the first that gives `size` bytes of this SHA-256; UserError when none does."""
    name = urls[0].rsplit("/", 1)[-1]
    path = folder / name
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return path
    if mirror := os.environ.get("MINIBERT_MIRROR"):
        # A folder becomes a file:// URL, so that it takes the same way and the same checks.
        base = mirror if "://" in mirror else Path(mirror).expanduser().resolve().as_uri()
        urls = [base.rstrip("/") + "/" + name]
    failures = []
    for url in urls:
        try:
            write_aside(path, _download(url, sha256, size, timeout))
            return path
        except UserError as error:
            failures.append(str(error))
    raise UserError(f"cannot get {name}: {'; '.join(failures)}; check the network, or set "
                    f"MINIBERT_MIRROR to a folder or a URL that holds {name}")


def _download(url: str, sha256: str, size: int, timeout: float) -> Iterator[bytes]:
    digest = hashlib.sha256()
    received = 0
    try:  # of the network alone: an error where the blocks are written does not pass through here
        with (urlopen(Request(url, headers=HEADERS), timeout=timeout) as reply,
              tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar):  # terminals only
            while received <= size and (block := reply.read(BLOCK)):
                received += len(block)
                digest.update(block)
                bar.update(len(block))
                yield block
    except (OSError, HTTPException, ValueError) as error:
        raise UserError(f"{url} failed ({error})") from None
    # The end is soon enough to check: `write_aside` renames only after the last block.
    if received != size:
        raise UserError(f"{url} gave {received} bytes where {size} are expected")
    if digest.hexdigest() != sha256:
        raise UserError(f"{url} has SHA-256 {digest.hexdigest()}, expected {sha256}")


def extract(archive: Path, members: list[str], folder: Path) -> list[Path]:
    """Write the `members` of a zip that `fetch` returned under `folder`, and return their paths.

    Its SHA-256 was right, so it is the very file that somebody has looked at: it needs no check of
    names, links or sizes.
    """
    with zipfile.ZipFile(archive) as opened:
        for name in members:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with opened.open(name) as member:
                write_aside(folder / name, iter(lambda: member.read(BLOCK), b""))
    return [folder / name for name in members]


def write_aside(path: Path, blocks: Iterable[bytes]) -> None:
    """Write `blocks` to a `.part` file and rename it to `path` once all of them are there."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # two processes may run at once
    try:
        with part.open("wb") as file:
            file.writelines(blocks)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
