"""What several test files share: a toy text, and the scripts run in this process or in another."""
import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minibert.config import ModelConfig
from minibert.files.corpus import prepare
from minibert.files.hub import save_pretrained
from minibert.model import MaskedLM

ROOT = Path(__file__).resolve().parent.parent
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what repeats bit for bit on a CPU does not on a GPU
torch.set_num_threads(1)  # bit for bit, and the same sums on every machine

# The smallest model that still has every part, and dropout, which a resume must repeat.
TOY = ["--vocab-size", "70", "--hidden-size", "16", "--num-attention-heads", "2",
       "--num-hidden-layers", "2", "--intermediate-size", "32", "--hidden-dropout-prob", "0.1"]
BUDGET = ["--device", "cpu", "--preset", "tiny", "--steps", "12", "--batch-size", "8",
          "--seq-length", "16", "--eval-targets", "100", "--log-every", "3", "--eval-every", "6",
          "--checkpoint-every", "4"]


@pytest.fixture(scope="session")
def toy_text(tmp_path_factory):
    """Forty documents of made-up sentences in which neighbours tell about each other."""
    words = [first + second for first in "bdgklmnprt" for second in ("a", "e", "i", "o", "u")]
    draw = random.Random(0)
    documents = []
    for _ in range(40):
        lines = []
        for _ in range(draw.randint(4, 9)):
            start = draw.randrange(len(words))
            step = draw.choice((1, 2, 3))
            lines.append(" ".join(words[(start + step * i) % len(words)]
                                  for i in range(draw.randint(4, 9))) + ".")
        documents.append("\n".join(lines))
    path = tmp_path_factory.mktemp("text") / "toy.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session", autouse=True)
def prepared_aside(tmp_path_factory):
    """Prepared corpora of tests go to a folder of their own, in this process and in others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIBERT_PREPARED", str(tmp_path_factory.mktemp("prepared")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def teachers(toy_text, tmp_path_factory):
    """A folder with a `bert` and a `roberta` of four layers, in float64, and with dropout."""
    folder = tmp_path_factory.mktemp("teachers")
    tokenizer, *_ = prepare(str(toy_text), "wordpiece", 70)
    for name, family in (("bert", {}), ("roberta", dict(next_sentence=False, type_vocab_size=1))):
        teacher = MaskedLM(ModelConfig(
            model_type=name, **family, vocab_size=70, hidden_size=8, num_attention_heads=2,
            num_hidden_layers=4, intermediate_size=12, max_position_embeddings=25,
            initializer_range=0.3, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2))
        save_pretrained(teacher.double(), tokenizer, folder / name)
    return folder


@pytest.fixture
def float64():
    """New models have fifteen digits, so that two ways to compute a number can be told apart."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def run_script(monkeypatch):
    """Run a script's main() in this process: run_script("train_bert", "--out", ...)."""
    def run(name, *flags):
        monkeypatch.syspath_prepend(str(ROOT))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
        importlib.import_module(name).main()
    return run


def start_script(name, *flags):
    """Start a script as a process of its own, as a user does."""
    return subprocess.Popen([sys.executable, str(ROOT / f"{name}.py"), *map(str, flags)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})


def assert_one_error_line(process, *parts):
    """The contract of bad input: exit code 2, one line that says what is wrong, no traceback."""
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 2, stderr
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    for part in parts:
        assert part in lines[0], stderr


def finish(process):
    """What a process prints, which has to end well."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def weights(folder):
    """The weights of a finished run, by name."""
    return torch.load(Path(folder) / "pytorch_model.bin", weights_only=True)


def log(folder):
    """The log without what a clock says."""
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_run(first, second):
    """Both runs have the same log and the same weights, to the last bit."""
    assert log(first) == log(second)
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
