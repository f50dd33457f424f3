"""Distillation: what the teacher is asked, and which runs are taken for one another.

What a step makes of the teacher's answers is in test_scripts.py.
"""
import dataclasses
import importlib
from types import SimpleNamespace

import pytest
from conftest import BUDGET, ROOT, log

from minibert.errors import UserError
from minibert.files.hub import load_pretrained, save_pretrained
from minibert.model import MaskedLM


@pytest.fixture
def run(toy_text, teachers, tmp_path, run_script, monkeypatch, float64):
    """A function that runs distill.py with some flags: its teacher, and what that was asked.

    A step reads at most 8 sequences at a time, and an evaluation more.
    """
    monkeypatch.syspath_prepend(str(ROOT))
    script = importlib.import_module("distill")

    def run(*flags):
        seen = SimpleNamespace(answers=[])

        def load(folder):
            seen.teacher, tokenizer = load_pretrained(folder)
            seen.teacher.register_forward_hook(lambda module, inputs, output: (
                seen.answers.append(output) if len(output.mlm_logits) <= 8 else None))
            return seen.teacher, tokenizer

        with monkeypatch.context() as patch:
            patch.setattr(script, "load_pretrained", load)
            run_script("distill", *BUDGET, "--steps", 2, "--corpus", toy_text, "--log-every", 1,
                       "--teacher", teachers / "bert", "--out", tmp_path / "run", *flags)
        return seen
    return run


def test_teacher_does_not_learn(run):
    """Would catch: a teacher for which gradients are computed, though nobody needs them."""
    seen = run()
    assert len(seen.answers) == 2  # one for each step
    assert not any(answer.mlm_logits.requires_grad for answer in seen.answers)


def test_without_soft_targets_the_teacher_is_not_asked(run, tmp_path):
    """Would catch: a baseline arm that pays for a teacher it does not use."""
    assert run("--alpha-kl", 0, "--alpha-cos", 0).answers == []
    assert "kl" not in log(tmp_path / "run")[0]


def test_slices_change_no_loss(run, teachers, tmp_path, monkeypatch):
    """Would catch: rows left out, or doubled, where soft targets at all positions are in slices."""
    teacher, tokenizer = load_pretrained(teachers / "bert")
    config = dataclasses.replace(teacher.config, hidden_dropout_prob=0.0,  # which slices would draw
                                 attention_probs_dropout_prob=0.0)  # in another order
    save_pretrained(MaskedLM(config), tokenizer, tmp_path / "teacher")
    flags = ["--distill-positions", "all", "--teacher", tmp_path / "teacher"]
    run(*flags)
    monkeypatch.setattr("minibert.evaluation.MOST_LOGITS", 3 * 16 * config.vocab_size)
    seen = run(*flags, "--gradient-accumulation-steps", 2, "--out", tmp_path / "sliced")
    assert len(seen.answers) == 8  # two steps of two parts, each of three rows and one
    whole, sliced = log(tmp_path / "run")[0], log(tmp_path / "sliced")[0]
    for term in ("loss", "mlm", "kl", "cos", "grad_norm"):
        assert sliced[term] == pytest.approx(whole[term], rel=1e-9), term


def test_a_finished_run_of_other_settings_is_refused(run):
    """Would catch: an arm with other weights that is taken for the one in its folder."""
    run()
    with pytest.raises(UserError, match="alpha_kl"):
        run("--alpha-kl", "0")


def test_a_finished_run_on_another_text_is_refused(run, toy_text, tmp_path):
    """Would catch: a student of the text as it was, taken for one of the text as it is."""
    text = tmp_path / "text.txt"
    text.write_text(toy_text.read_text())
    run("--corpus", text)
    text.write_text(toy_text.read_text() + "\n\nmore.\n")
    with pytest.raises(UserError, match="corpus_fingerprint"):
        run("--corpus", text)
