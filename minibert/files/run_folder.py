"""The run folder: settings in run.json, and files that are whole or not there at all."""
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
except ImportError:  # not on Windows, where two processes in one folder go unnoticed
    fcntl = None

ROOT = Path(__file__).resolve().parents[2]
TRAINS = ("*.py", "minibert/*.py", "minibert/files/*.py", "minibert/tasks/*.py")  # code of a run
NOT_COMPARED = ("out", "device")  # settings in which a run may differ from when it was started


def finished(run: RunConfig, metadata: dict[str, Any]) -> bool:
    """Whether the run folder holds this very run, done; says so. Raises UserError if another's."""
    done = (Path(run.out) / "metrics.json").exists()
    if done:
        _compare(run, metadata)
        print(f"{run.out}: finished before; nothing to do", flush=True)
        warn_of_other_code([Path(run.out)])
    return done


def open_run(run: RunConfig, metadata: dict[str, Any]) -> IO:
    """Make the run folder with its run.json, or check that the one there is of the same run.

    Returns an open file, locked: as long as it is open no other process can train there. Raises
    UserError where one does.
    """
    out = Path(run.out)
    if (out / "run.json").exists():
        _compare(run, metadata)
        warn_of_other_code([out])
    else:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is there and is no run folder; name another with --out")
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "run.json", {"settings": dataclasses.asdict(run), **metadata, **machine()})
    lock = open(out / ".lock", "w")  # a file that nobody else opens: closing it gives up the lock
    try:
        if fcntl:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a killed process gives it back
    except (BlockingIOError, PermissionError):  # what POSIX allows to be said of a held lock
        raise UserError(f"another process is training in {out}; wait for it, or name another "
                        "folder with --out") from None
    return lock


def _compare(run: RunConfig, metadata: dict[str, Any]) -> None:
    path = Path(run.out) / "run.json"
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete the folder to start anew") \
            from None
    here = json.loads(json.dumps({"settings": dataclasses.asdict(run), **metadata}))
    for group, values in here.items():
        before = there.get(group)
        if not isinstance(values, dict) or not isinstance(before, dict):
            before, values = {group: before}, {group: values}
        for name, value in values.items():
            if name not in NOT_COMPARED and before.get(name) != value:
                raise UserError(f"{run.out} holds a run with {name} {before.get(name)!r}, not "
                                f"{value!r}; give it the same settings or another --out")


def code() -> str:
    """A fingerprint of the code that trains: the scripts and the rooms that they import.

    An edit in `tools/` or `claims/`, which only read finished runs, changes no run.
    """
    digest = hashlib.sha256()
    for file in sorted(file for pattern in TRAINS for file in ROOT.glob(pattern)):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def warn_of_other_code(folders: list[Path]) -> None:
    """Say how many of these runs were made by other code than that which is here now."""
    made = [json.loads((folder / "run.json").read_text(encoding="utf-8")).get("code")
            for folder in folders]
    if others := sum(one not in (None, code()) for one in made):
        print(f"note: {others} of {len(folders)} runs there ({folders[0]}) were made by other code "
              "than what is here now; delete them to make them again", file=sys.stderr)


def machine() -> dict[str, Any]:
    """What a result depends on besides its settings: versions, machine, commit and code."""
    commit = subprocess.run(["git", "rev-parse", "--verify", "-q", "HEAD"], text=True, cwd=ROOT,
                            capture_output=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    info = Path("/proc/cpuinfo")  # Linux; elsewhere the kind of processor has to do
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    processor = found[1] if found else platform.machine()
    return {"versions": {"python": platform.python_version(), "torch": torch.__version__,
                         "tokenizers": tokenizers.__version__},
            "machine": {"system": platform.platform(), "processor": processor,
                        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu},
            "commit": commit.stdout.strip() or None, "code": code()}


def write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A file to write next to `path`, which takes its place only when it is whole and on disk."""
    temporary = path.with_name(path.name + ".part")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except RuntimeError as error:  # torch's writer hides what the file system said
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
    finally:
        temporary.unlink(missing_ok=True)
