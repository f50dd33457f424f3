"""lab/museum.py: its mistakes can be planted, are measured rightly, and become a page."""
import argparse
import ast
import importlib
import json
import re

from lab import museum
import pytest
from conftest import ROOT

from minibert.config import DistillConfig, ModelConfig, parse_flags

ARGS = argparse.Namespace(steps=40, shape="", flags="--eval-targets 100", corpus="")


@pytest.mark.parametrize("one", museum.MISTAKES, ids=lambda one: one.id)
def test_a_mistake_is_planted_but_measured_rightly(one, tmp_path):
    """Catches a mistake whose line was rewritten, and one that changes how it is itself judged."""
    museum.copy_project(tmp_path, one.bug)
    planted = (tmp_path / one.bug.file).read_text(encoding="utf-8")
    ast.parse(planted)
    assert planted != (ROOT / one.bug.file).read_text(encoding="utf-8")
    measured = set()
    for name in ("losses", "masking"):
        copy = (tmp_path / f"minibert/right_{name}.py").read_text(encoding="utf-8")
        assert copy == (ROOT / f"minibert/{name}.py").read_text(encoding="utf-8")
    evaluation = (tmp_path / "minibert/evaluation.py").read_text(encoding="utf-8")
    measured |= set(re.findall(r"^from minibert\.(\w+) import", evaluation, re.M))
    assert {"right_losses", "right_masking"} <= measured and not measured & {"losses", "masking"}
    assert all(re.fullmatch(r"[\w-]+/[\w.-]+/(issues|pull)/\d+", source) for source in one.sources)


@pytest.mark.parametrize("script", ["train_bert", "train_roberta", "distill"])
def test_the_scripts_understand_the_flags(script, toy_text, tmp_path, monkeypatch):
    """Catches a flag that a script does not know (any more)."""
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module(script)
    ARGS.corpus = str(toy_text)
    name, *flags = museum.command(script, "right", 1, tmp_path, ARGS)
    other = DistillConfig if script == "distill" else ModelConfig
    run, _ = parse_flags(module.__doc__, module.RECIPE, module.STEPS, other, argv=flags)
    assert (name, run.seed, run.eval_targets) == (f"{script}.py", 1, 100)
    assert run.steps == (20 if script == "distill" else 40) and run.tasks == "none"


@pytest.fixture
def results(tmp_path):
    """What three seeds of every mistake could have found, read from logs of such runs."""
    for one in museum.MISTAKES:
        for kind, off in (("right", 0.0), (one.id, 0.5)):
            for seed in range(3):
                run = tmp_path / f"{one.script}-{kind}-{seed}"
                run.mkdir(exist_ok=True)
                loss = lambda step: 4 + off + 0.01 * seed + 8 / step
                log = [{"step": step, "mlm": loss(step), "nsp": 0.6 - off, **(
                    {} if step % 8 else {"eval": {"mlm_loss": loss(step)}})}
                       for step in range(4, 44, 4)]
                full = {"mlm_loss": loss(40), "unigram_entropy": 6.0, "kl_to_teacher": 0.1 + off}
                pairs = {"nsp_accuracy": 0.7 - off / 10, "nsp_majority": 0.65}
                (run / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
                (run / "metrics.json").write_text(json.dumps(
                    {"full-sentences": full, "segment-pair": pairs, "targets": 15, "tokens": 100}))
    args = argparse.Namespace(steps=40, seeds=3)
    return museum.collect(list(museum.MISTAKES), tmp_path, args)


def test_the_page_says_what_was_found(results):
    """Catches a difference of the wrong sign, and a mistake without its source or its change."""
    text = museum.page(results)
    words = " ".join(text.split())
    assert ("The held-out loss is 4.710 with the mistake and 4.210 without it, a difference of "
            "+0.500 [+0.500, +0.500]") in words
    assert "The distance from the teacher is 0.600 with the mistake and 0.100 without" in words
    assert "next sentences is 0.650 with the mistake and 0.700 without it" in words
    assert text.count("\n## ") == len(museum.MISTAKES) + 1 == text.count("\n```diff\n") + 1
    for one in museum.MISTAKES:
        assert f"\n- {one.bug.before}\n+ " in text
        assert all(f"({museum.THREAD}{source})" in text for source in one.sources)


def test_the_picture_is_small(results, tmp_path):
    """Catches a picture that is larger than a page should load."""
    pytest.importorskip("matplotlib")
    museum.draw(results, tmp_path / "museum.svg")
    assert 10_000 < (tmp_path / "museum.svg").stat().st_size < 150_000


def test_the_published_page_is_what_was_found():
    """Catches a page that was edited by hand, or made by other runs than its figures' file."""
    found = ROOT / "results/museum.json"
    if not found.exists():
        pytest.skip("the museum's runs have not been made yet")
    text = museum.page(json.loads(found.read_text(encoding="utf-8")))
    assert text == (ROOT / "docs/museum.md").read_text(encoding="utf-8")
