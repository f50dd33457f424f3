"""Do the jobs of a plan side by side, each in a process of one thread."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lab.plan import Job
from minibert.errors import UserError
from minibert.files.run_folder import ROOT


def run_all(jobs: list[Job], at_once: int) -> None:
    """Do what is not done, so many jobs at once, the longest first; print how much time is left.

    A job goes on where it was stopped, and its output is in a file beside its folder. The last
    words of one that fails are printed at once; the others are done all the same, but for those
    that need it. Then UserError is raised.
    """
    left = sorted((job for job in jobs if not job.done), key=lambda job: -job.sequences)
    running: dict[Job, tuple[subprocess.Popen, float]] = {}  # with the time when it began
    failed: dict[Job, str] = {}
    spent = read = 0.0  # seconds and sequences of the jobs that are done
    print(f"{len(left)} of {len(jobs)} runs to do, {at_once} at a time", flush=True)
    # As Ctrl-C does: by default SIGTERM would end this process and leave the jobs alone.
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        while True:
            ready = [job for job in left if not job.before or job.before.done]
            for job in ready[:at_once - len(running)]:
                left.remove(job)
                running[job] = start(job), time.monotonic()
            if not running:
                break
            time.sleep(0.2)
            for job, (process, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[job]
                if process.returncode or not job.done:
                    last = output(job).read_text(encoding="utf-8").strip().splitlines()[-1:]
                    failed[job] = (f"{job} ({output(job)}) ended with {process.returncode}: "
                                   f"{' '.join(last).removeprefix('error: ')}")
                    print(failed[job], flush=True)
                    continue
                spent, read = spent + time.monotonic() - began, read + job.sequences
                minutes = seconds_left(spent / max(1, read), left, running, at_once) / 60
                print(f"{sum(job.done for job in jobs)} of {len(jobs)} runs done, about "
                      f"{minutes:.0f} min left: {job}", flush=True)
    finally:
        # `make` passes the signal on that it gets itself, so a second one may come; the jobs must
        # be told to stop all the same.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for process, _ in running.values():  # they save before they stop
            process.send_signal(signal.SIGTERM)
        for process, _ in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, previous)
    if failed:
        first, *others = failed.values()
        raise UserError(first + f"; {len(others)} more failed, as said above" * bool(others)
                        + f"; {len(left)} wait for one that failed" * bool(left))


def start(job: Job) -> subprocess.Popen:
    """Start a job as a process of one thread that writes lines, no bars, to its `output`."""
    output(job).parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MINIBERT_PLAIN": "1", "PYTHONPATH":
                   os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with open(output(job), "w", encoding="utf-8") as log:
        return subprocess.Popen([sys.executable, ROOT / job.command[0], *job.command[1:]],
                                env=environment, stdout=log, stderr=log)


def output(job: Job) -> Path:
    """Return the file that has what a job prints."""
    return job.out.with_suffix(".txt")


def seconds_left(pace: float, left: list[Job], running: dict[Job, tuple[subprocess.Popen, float]],
                 at_once: int) -> float:
    """Return about how many seconds the jobs will take that wait or run.

    pace: seconds of a sequence, as in the jobs that are done. running: with the times when they
    began.
    """
    todo = pace * sum(job.sequences for job in [*left, *running])
    begun = sum(time.monotonic() - began for _, began in running.values())
    return max(0.0, todo - begun) / at_once
