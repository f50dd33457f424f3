"""`make faults`: blocks that a real compiler compiles, where there is one; a minute or two."""
import os
import shutil

import pytest
import torch
from conftest import BUDGET, TOY, assert_one_error_line, log, start_script, weights

from minibert.files.hub import load_pretrained
from minibert.training import Training

NO_DROPOUT = ["--hidden-dropout-prob", "0"]


@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler")
def test_compiled_run_is_like_a_plain_one(toy_text, tmp_path, run_script, monkeypatch):
    """Catches compiled blocks whose weights have other names, in the checkpoint or in the folder,
    or that move otherwise."""
    monkeypatch.setattr(Training, "finish", lambda *_: None)  # which removes the checkpoint
    flags = [*BUDGET, *TOY, *NO_DROPOUT, "--corpus", toy_text]
    runs = tmp_path / "plain", tmp_path / "compiled"
    for folder, more in zip(runs, ([], ["--compile"])):
        run_script("train_bert", *flags, "--out", folder, *more)
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in runs]
    for plain, compiled in (map(weights, runs), (state["model"] for state in states)):
        assert plain.keys() == compiled.keys()
        for name in plain:
            torch.testing.assert_close(compiled[name], plain[name], atol=1e-5, rtol=0)
    plain, compiled = ([line["loss"] for line in log(folder) if "loss" in line] for folder in runs)
    assert compiled == pytest.approx(plain, abs=1e-5) and len(plain) == 4
    ids = torch.arange(5, 15)[None]
    plain, compiled = (load_pretrained(folder)[0](ids).mlm_logits for folder in runs)
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=0)


def test_no_compiler_is_one_line(toy_text, tmp_path):
    """Catches a traceback where a compiler is missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", str(tmp_path / "no-compiler"))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
        process = start_script("train_bert", *BUDGET, *TOY, "--corpus", toy_text, "--compile",
                               "--out", tmp_path / "run")
    assert_one_error_line(process, "--compile", "leave it out")
    assert not os.path.exists(tmp_path / "run")
