"""docs/faq.md: its figures are those that results/ holds."""
import re

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
ANSWERS = re.split(r"^(?=\*\*[^*]+\?\*\* )", PAGE, flags=re.M)[1:]  # each begins with its question
PUBLISHED = "".join((ROOT / "results/cpu" / name).read_text(encoding="utf-8")
                    for name in ("report.md", "models.md"))


@pytest.mark.parametrize("answer", ANSWERS, ids=[answer.split("**")[1] for answer in ANSWERS])
def test_figures_are_published(answer):
    """Catches a loss, a share or a perplexity that no published run has (any more)."""
    for figure in re.findall(r"\b\d\.\d{3}\b|\d+\.\d%", answer):
        assert figure in PUBLISHED, figure
    pairs = re.findall(r"perplexity of (\d+) against (\d+)", PUBLISHED)
    measured = {figure for pair in pairs for figure in pair}
    assert set(re.findall(r"perplexity of (\d+)", answer)) <= measured
