"""The run folder: its settings in run.json, and files that are either whole or not there."""
import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import tokenizers
import torch

from minibert.config import RunConfig
from minibert.errors import UserError

try:
    import fcntl
except ImportError:  # on Windows, where nothing notices two processes in one folder
    fcntl = None

ROOT = Path(__file__).resolve().parents[2]
# The code that decides what a run becomes; what only reads finished runs is left out.
CODE_OF_A_RUN = ("train_*.py", "distill.py", "minibert/*.py", "minibert/files/*.py")
NOT_COMPARED = ("out", "device")  # settings that may change while a run is stopped
# All that a run's folder can hold if the run is killed before its run.json is whole.
WRITTEN_FIRST = {".lock", "run.json.part"}


def finished(run: RunConfig, metadata: dict[str, Any]) -> bool:
    """Whether the folder holds this run and it is done, which is then printed.

    Raises UserError when the folder holds another finished run.
    """
    done = (Path(run.out) / "metrics.json").exists()
    if done:
        _check_same_run(run, metadata)
        print(f"{run.out}: finished before; nothing to do", flush=True)
        warn_of_other_code([Path(run.out)])
    return done


def open_run(run: RunConfig, metadata: dict[str, Any]) -> IO:
    """Make the run's folder and its run.json, or check that an existing one is of the same run.

    Returns an open, locked file; while it is open no other process can train there. Ends the
    program when another process has finished this run in the meantime. Raises UserError when one
    is still training there, or when the folder holds something else.
    """
    out = Path(run.out)
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    ours = "run.json" in names or names <= WRITTEN_FIRST
    if not ours or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} exists and is not a run's folder; name another with --out")
    out.mkdir(parents=True, exist_ok=True)
    lock = open(out / ".lock", "w")  # only opened here: closing it would release the lock
    try:
        if fcntl:
            # When a process is killed, the system releases its lock.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either for a lock that is held
        raise UserError(f"another process is training in {out}; wait for it, or name another "
                        "folder with --out") from None
    if finished(run, metadata):  # which nobody can change any more, now that we have the lock
        sys.exit()
    if (out / "run.json").exists():
        _check_same_run(run, metadata)
        warn_of_other_code([out])
    else:
        write_json(out / "run.json", {"settings": dataclasses.asdict(run), **metadata, **machine()})
    return lock


def _check_same_run(run: RunConfig, metadata: dict[str, Any]) -> None:
    """Raise UserError at the first setting in which the folder's run differs from this one."""
    old = read_json(Path(run.out) / "run.json", "is missing; delete its folder and run again")
    new = json.loads(json.dumps({"settings": dataclasses.asdict(run), **metadata}))
    passed_over = {*NOT_COMPARED}
    if "teacher_weights" in old:
        passed_over.add("teacher")  # its weights are known, so that it may lie elsewhere
    for group, values in new.items():
        before = old.get(group)
        if not isinstance(values, dict) or not isinstance(before, dict):
            before, values = {group: before}, {group: values}
        for name, value in values.items():
            if name not in passed_over and before.get(name) != value:
                raise UserError(f"{run.out} holds a run with {name} {before.get(name)!r}, not "
                                f"{value!r}; give it the same settings or another --out")


def code() -> str:
    """A fingerprint of the code that pretrains; an edit of other code does not change any run."""
    digest = hashlib.sha256()
    for file in sorted(file for pattern in CODE_OF_A_RUN for file in ROOT.glob(pattern)):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def warn_of_other_code(folders: list[Path]) -> None:
    """Print how many of these runs were made by code that has changed since."""
    fingerprints = [read_json(folder / "run.json", "is missing; run again").get("code")
                    for folder in folders]
    if changed := sum(fingerprint not in (None, code()) for fingerprint in fingerprints):
        print(f"note: {changed} of {len(folders)} runs ({folders[0]}) were made by code that has "
              "changed since; delete them to make them again", file=sys.stderr)


def machine() -> dict[str, Any]:
    """What a result depends on besides the settings: versions, machine, commit and code."""
    commit = subprocess.run(["git", "rev-parse", "--verify", "-q", "HEAD"], text=True, cwd=ROOT,
                            capture_output=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    info = Path("/proc/cpuinfo")  # on Linux; elsewhere only the processor's kind is known
    model = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    processor = model[1] if model else platform.machine()
    return {"versions": {"python": platform.python_version(), "torch": torch.__version__,
                         "tokenizers": tokenizers.__version__},
            "machine": {"system": platform.platform(), "processor": processor,
                        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu},
            "commit": commit.stdout.strip() or None, "code": code()}


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """Read a JSON file. Raises UserError; of a missing file its message ends with `otherwise`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} {otherwise}") from None
    except ValueError as error:
        raise UserError(f"{path} is broken ({error}); make its folder again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no names with values; make its folder again")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that is never half there."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Write metrics.json, which marks a folder as finished, after all else in it is on the disk."""
    sync(*folder.rglob("*"), folder)
    write_json(folder / "metrics.json", metrics)


def sync(*paths: Path) -> None:
    """Wait until files' contents and folders' lists of names are on the disk.

    The system keeps what is written in memory for a while, and a power cut would lose it.
    """
    for path in paths:
        if path.is_file() or (fcntl and path.is_dir()):  # Windows does not open folders
            number = os.open(path, os.O_RDONLY)
            os.fsync(number)
            os.close(number)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A file next to `path` to write to; it replaces `path` when it is whole and on the disk.

    Afterwards that is on the disk, too: whatever it stands in for may then be deleted.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except RuntimeError as error:  # torch's writer hides the file system's own error
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
    finally:
        temporary.unlink(missing_ok=True)
