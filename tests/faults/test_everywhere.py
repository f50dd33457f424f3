"""`make faults`: the same run under other locales, time zones, hash seeds, threads and folders."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import BUDGET, ROOT, TOY, log, weights

PLACES = {
    "an ASCII locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "another time zone": {"TZ": "Pacific/Kiritimati"},
    "one hash seed": {"PYTHONHASHSEED": "1"},
    "another hash seed": {"PYTHONHASHSEED": "2"},
    "a folder with spaces and accents": {},
    "another working directory": {},
    "two threads": {"OMP_NUM_THREADS": "2"},
}


@pytest.fixture(scope="module")
def text(toy_text, tmp_path_factory):
    """Words that a wrong encoding would spoil."""
    path = tmp_path_factory.mktemp("everywhere") / "text.txt"
    path.write_text(toy_text.read_text(encoding="utf-8").replace("ba", "\u00e9t\u00e9 \u4e2d"),
                    encoding="utf-8")
    return path


def train(script, text, folder, environment, *flags, cwd=ROOT):
    """A run and its prepared text in `folder`: its log, metrics and weights without seconds."""
    command = [sys.executable, str(ROOT / f"{script}.py"), *BUDGET, *TOY, "--corpus", str(text),
               "--out", str(folder / "run"), *flags]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8",
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                               "MINIBERT_PREPARED": str(folder / "prepared"), **environment})
    assert done.returncode == 0, done.stderr
    out = folder / "run" if cwd == ROOT else Path(cwd) / folder / "run"
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    metrics.pop("seconds", None)
    return log(out), metrics, weights(out)


@pytest.fixture(scope="module")
def here(text, tmp_path_factory):
    """The run, by script, under no special circumstances."""
    return {script: train(script, text, tmp_path_factory.mktemp("here"), {})
            for script in ("train_bert", "train_roberta")}


@pytest.mark.parametrize("script", ["train_bert", "train_roberta"])
@pytest.mark.parametrize("place", PLACES)
def test_same_answer(place, script, here, text, tmp_path):
    """Catches a file opened in the locale's encoding, a set whose order becomes an order of text,
    a path that is split at a space: the run is the same bit for bit, its text prepared anew."""
    folder, cwd = tmp_path, ROOT
    if "accents" in place:
        folder = tmp_path / "m\u00e9s dades \u00e7a"
        folder.mkdir()
        text = shutil.copy(text, folder / "t\u00e8xt \u4e2d.txt")
    if "directory" in place:
        folder, cwd = Path("."), tmp_path
        text = os.path.relpath(text, tmp_path)
    logged, metrics, moved = train(script, text, folder, PLACES[place], cwd=cwd)
    same_log, same_metrics, same_weights = here[script]
    if place == "two threads":  # sums in another order
        loss = lambda found: found["full-sentences"]["mlm_loss"]
        assert loss(metrics) == pytest.approx(loss(same_metrics), rel=1e-4)
        for name, value in same_weights.items():
            torch.testing.assert_close(moved[name], value, rtol=1e-3, atol=1e-5)
        return
    assert logged == same_log and metrics == same_metrics
    assert all(torch.equal(moved[name], value) for name, value in same_weights.items())
