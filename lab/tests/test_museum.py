"""lab/museum.py: its mistakes can be planted, are measured rightly, and become a page."""
import ast
import importlib
import json
import re

import pytest
from conftest import ROOT

from lab import museum


@pytest.mark.parametrize("mistake", museum.MISTAKES, ids=lambda mistake: mistake.id)
def test_a_mistake_is_planted_but_measured_rightly(mistake, tmp_path):
    """A mistake whose line was rewritten would train the right code; one that changed how it is
    itself judged would look better or worse than it is."""
    museum.copy_project(tmp_path, mistake.bug)
    planted = (tmp_path / mistake.bug.file).read_text(encoding="utf-8")
    ast.parse(planted)
    assert planted != (ROOT / mistake.bug.file).read_text(encoding="utf-8")
    for name in ("losses", "masking"):
        copy = (tmp_path / f"minibert/right_{name}.py").read_text(encoding="utf-8")
        assert copy == (ROOT / f"minibert/{name}.py").read_text(encoding="utf-8")
    evaluation = (tmp_path / "minibert/evaluation.py").read_text(encoding="utf-8")
    judges = set(re.findall(r"^from minibert\.(\w+) import", evaluation, re.M))
    assert {"right_losses", "right_masking"} <= judges and not judges & {"losses", "masking"}
    assert all(re.fullmatch(r"[\w-]+/[\w.-]+/(issues|pull)/\d+", source)
               for source in mistake.sources.split())


@pytest.mark.parametrize("script, steps", [("train_bert", 40), ("train_roberta", 40),
                                           ("distill", 20)])
def test_the_scripts_understand_the_flags(script, steps, tmp_path, monkeypatch):
    """A flag that a script does not know any more would end the museum at its first run."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(museum, "corpus_path", lambda name: name)
    name, *flags = museum.command(script, "right", 1, tmp_path, 40)
    run, _ = importlib.import_module(script).read_flags(flags)
    assert (name, run.seed, run.steps) == (f"{script}.py", 1, steps)


@pytest.fixture
def results(tmp_path):
    """What three seeds of every mistake could have found, read from logs of such runs."""
    for mistake in museum.MISTAKES:
        for kind, off in (("right", 0.0), (mistake.id, 0.5)):
            for seed in range(3):
                run = tmp_path / f"{mistake.script}-{kind}-{seed}"
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
    return museum.collect(list(museum.MISTAKES), tmp_path, 40, 3)


def test_the_page_says_what_was_measured(results):
    """A difference of the wrong sign would say that a mistake helps."""
    text = museum.page(results)
    words = " ".join(text.split())
    assert ("The held-out loss is 4.710 with the mistake and 4.210 without it, a difference of "
            "+0.500 [+0.500, +0.500]") in words
    assert "The distance from the teacher is 0.600 with the mistake and 0.100 without" in words
    assert "next sentences is 0.650 with the mistake and 0.700 without it" in words
    assert text.count("\n## ") == len(museum.MISTAKES) + 1 == text.count("\n```diff\n") + 1
    for mistake in museum.MISTAKES:
        assert f"\n- {mistake.bug.before}\n+ " in text
        assert all(f"({museum.THREAD}{source})" in text for source in mistake.sources.split())


def test_the_picture_is_small(results, tmp_path):
    """A picture of megabytes would keep the page from opening on a phone."""
    pytest.importorskip("matplotlib")
    museum.draw(results, tmp_path / "museum.svg")
    assert 10_000 < (tmp_path / "museum.svg").stat().st_size < 150_000


@pytest.mark.promises
def test_the_published_page_is_what_was_measured():
    """A page that was edited by hand would show figures that no run has."""
    results = json.loads((ROOT / "results/museum.json").read_text(encoding="utf-8"))
    assert museum.page(results) == (ROOT / "docs/museum.md").read_text(encoding="utf-8")
