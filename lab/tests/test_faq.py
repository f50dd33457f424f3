"""docs/faq.md: ten questions or more, where they were asked, and figures that results/ holds.

Whether its commands and links are sound, lab/tests/test_promises.py tells.
"""
import re

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
ANSWERS = re.split(r"^(?=\*\*[^*]+\?\*\* )", PAGE, flags=re.M)[1:]  # each begins with its question
TITLES = [answer.split("**")[1] for answer in ANSWERS]
PUBLISHED = "".join((ROOT / "results/cpu" / name).read_text(encoding="utf-8")
                    for name in ("report.md", "models.md"))


def test_there_are_ten_questions():
    """Catches a question that stands there twice, or is answered no more."""
    assert len(set(TITLES)) == len(TITLES) >= 10


@pytest.mark.parametrize("answer", ANSWERS, ids=TITLES)
def test_an_answer_is_short_and_says_where_it_was_asked(answer):
    """Catches a question without its thread or its command, and an answer that grows."""
    assert len(answer.split("\nAsked in")[0].split("\n\n")[0].split()) <= 120
    assert re.search(r"\(https://github\.com/[\w-]+/[\w.-]+/issues/\d+\)", answer)
    assert re.search(r"^python ", answer, re.M)


@pytest.mark.parametrize("answer", ANSWERS, ids=TITLES)
def test_figures_are_published(answer):
    """Catches a loss, a share or a perplexity that no published run has (any more)."""
    for figure in re.findall(r"\b\d\.\d{3}\b|\d+\.\d%", answer):
        assert figure in PUBLISHED, figure
    pairs = re.findall(r"perplexity of (\d+) against (\d+)", PUBLISHED)
    found = {figure for pair in pairs for figure in pair}
    assert set(re.findall(r"perplexity of (\d+)", answer)) <= found
