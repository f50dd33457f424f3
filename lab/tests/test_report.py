"""What a reader sees: the one table, the report, its figures, and what they say of a verdict."""
import dataclasses
import json
import sys

import pytest
from conftest import ROOT

from lab import report as report_module
from lab.__main__ import main
from lab.claims import CLAIMS, KL_TO_TEACHER, MORE_SEEDS, TASKS, Arm, Claim, Contrast, arms_of
from lab.judge import Effect, Finding, Verdict
from lab.report import (agreement, claims_table, findings, in_sentences, in_short, in_words,
                        models_table, readme_table, report, task_scores)
from minibert.errors import UserError

A, B = Arm("a"), Arm("b")


def effect(verdict=Verdict("holds"), question="better", measure="full-sentences.mlm_loss", **more):
    return Effect(Contrast(A, B, question, measure=measure), verdict, **{**dict(
        gains=[0.6, 0.8], gain=0.7, low=0.6, high=0.8, means=(3.0, 3.7)), **more})


def finding(verdict=Verdict("holds"), **more):
    return Finding(Claim("x", "", (), "", ""), verdict, [effect(verdict, **more)])


# ---- words

@pytest.mark.parametrize("verdict, question, expected", [
    (Verdict("holds"), "better", "yes"), (Verdict("holds", early=True), "better", "yes, early"),
    (Verdict("contradicted", early=True), "better", "no, early"),
    (Verdict("no difference", "±0.05", True), "better", "not reproduced here"),
    (Verdict("no difference", "±0.05"), "no worse", "yes"),
    (Verdict("inconclusive", early=True), "better", "not decided"),
    (Verdict("inconclusive", "on the plateau: a, which holds"), "better", "not decided"),
    (Verdict("refused", "mixed holds"), "better", "not decided"),
    (Verdict("mixed", "1 of 2 hold, 1 inconclusive"), "better", "in part")])
def test_agreement_goes_by_the_kind(verdict, question, expected):
    """Catches a word that is read out of a reason, and "no difference" as a failure of "no worse".
    """
    judged = finding(verdict, question=question)
    assert agreement(judged) == expected
    reversed = dataclasses.replace(judged, reversed=[KL_TO_TEACHER])
    assert agreement(reversed) == "not reproduced here"


def test_effects_in_words():
    """Catches a share of one called points, nats of a distance called a perplexity, the difference
    of two perplexities for their ratio's, and half of an interval called the whole."""
    points = finding(measure=TASKS, gain=0.07, low=0.05, high=0.09, means=(0.25, 0.18))
    distance = finding(measure=KL_TO_TEACHER)
    assert in_short(finding(), {}) == "20 against 40 (+0.70 ± 0.10)"  # e to the 3.0 and the 3.7
    assert in_short(points, {}) == "+7.0 ± 2 points"
    assert in_short(distance, {}) == "+0.70 ± 0.1 nats"
    assert in_short(finding(gains=[]), {}) == "not comparable"
    assert in_words(effect()) == "+0.700 nats [+0.600, +0.800], a perplexity of 20 against 40"
    assert in_words(points.effects[0]).startswith("+7.0 points [+5.0, +9.0], 25.0 against 18.0 ")
    assert "3.000 against 3.700 nats away" in in_words(distance.effects[0])
    assert in_words(effect(gains=[])) == "not compared"
    kept = dataclasses.replace(finding(), retained={"x": [0.5, 0.6], "mean": [0.9, 1.0]})
    assert in_short(kept, {}) == "95%"


# ---- what is published

@pytest.fixture(scope="module", params=["cpu", "h100"])
def published(request):
    folder = ROOT / "results" / request.param
    return folder, json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.mark.promises
def test_report_is_of_the_published_results(published):
    """Catches a report of other runs or of other rules, and a figure that is missing."""
    folder, results = published
    drawn = [judged.claim.id for judged in findings(results) if judged.effects]
    drawn += ["verdicts", "curves"]
    assert (folder / "report.md").read_text(encoding="utf-8") == report(results, drawn)
    assert all((folder / f"{name}.png").exists() for name in drawn)


def test_published_results_hold_measurements_only(published):
    """Catches an arm that stands twice or lacks what doctor reads, and a sentence that is stored.
    """
    _, results = published
    stored = json.dumps({**results, "exact": {}})  # which has a kind of verdict each
    for judged in findings(results):
        assert f'"{judged.verdict}' not in stored and judged.claim.says not in stored
    for name, arm in results["arms"].items():
        assert {"command", "script", "corpus", "settings"} <= arm.keys(), name
        assert arm["settings"]["steps"] == arm["steps"]
        for key in ("tokens", "seconds", "full-sentences", "train_loss", "tasks", "curve"):
            assert len(arm[key]) in (3, 5), (name, key)


def test_a_table_takes_claims_that_come_and_go(published, monkeypatch):
    """Catches a table that breaks, or is silent, when the claims are others than when they ran."""
    _, results = published
    own = Claim("own", "one's own", (Contrast(Arm("RoBERTa"), Arm("BERT"), "better"),), "nobody",
                "")
    lacks = dataclasses.replace(own, id="lacks", contrasts=(Contrast(A, B, "better"),))
    small = dataclasses.replace(lacks, id="small")
    monkeypatch.setattr(report_module, "CLAIMS", (own, lacks, small))
    results = {**results, "exact": {}, "refused": {"small": "the corpus is short"}}
    rows = [row.split(" | ") for row in claims_table(results).splitlines()[2:]]
    assert [row[0] for row in rows] == ["| own", "| small"]
    assert rows[0][1] == "one's own" and rows[0][3] == "nobody"
    assert rows[1][2] == "not comparable" and rows[1][5] == "refused: the corpus is short |"
    assert "own" not in readme_table(results)
    assert "**refused: the corpus is short**\n" in report(results, [])


def test_rows_end_with_what_holds(published):
    """Catches a verdict of another claim in a row, which the README's table and the full one share
    cell by cell."""
    _, results = published
    full = [row.strip("| ").split(" | ") for row in claims_table(results).splitlines()[2:]]
    short = claims_table(results, readme=True).splitlines()[2:]
    assert [row.strip("| ").split(" | ") for row in short] == [row[1:-1] for row in full]
    assert [(row[0], row[-1]) for row in full] == [
        (judged.claim.id, str(judged.verdict)) for judged in findings(results)]


def test_report_again(published, tmp_path, monkeypatch, capsys):
    """Catches a report that cannot be written again from results.json alone, one that hides what
    was not asked for, and a traceback where matplotlib or the folder is missing."""
    _, results = published
    folder = tmp_path / "results" / "toy"
    folder.mkdir(parents=True)
    asked = {**results, "left_out": [*results["left_out"], "stack"]}
    (folder / "results.json").write_text(json.dumps(asked))
    monkeypatch.setattr("lab.__main__.ROOT", tmp_path)
    monkeypatch.setitem(sys.modules, "lab.figures", None)
    monkeypatch.setattr(sys, "argv", ["lab", "report", "toy"])
    main()
    written = (folder / "report.md").read_text(encoding="utf-8")
    assert "python -m lab report toy" in capsys.readouterr().out and ".png)" not in written
    assert "stack.\n" in written and "## stack" not in written
    assert json.loads((folder / "results.json").read_text()) == asked
    monkeypatch.setattr(sys, "argv", ["lab", "report", "toyy"])
    with pytest.raises(UserError, match="results.json is missing; make it with compare"):
        main()


# ---- tables of the report

def arm(scores):
    its = {"metric": "accuracy", "majority": 0.5, "bag_of_words": 0.7}
    return {"layers": 2, "parameters": 1000, "disk": 4_000_000,
            "full-sentences": [{"mlm_loss": 4.0}, {"mlm_loss": 5.0}],
            "tasks": [{"sst2": {**its, "score": score}} for score in scores] or [{}, {}]}


def test_the_family_in_one_table():
    """Catches a model's figure in another's row, a median or a sum for the mean of the seeds, and a
    report that stops where a text of one's own has no tasks."""
    timed = {"latency_ms": {"big": 2.0, "small": 1.0},
             "encoder_parameters": {"big": 800, "small": 500}}
    lines = models_table({"big": arm([0.9, 0.7]), "small": arm([0.8, 0.7])}, timed).splitlines()
    assert lines[2:] == ["| big | 2 | 1,000 | 800 | 4.0 | 2.00 | 4.500 | 0.800 |",
                         "| small | 2 | 1,000 | 500 | 4.0 | 1.00 | 4.500 | 0.750 |"]
    assert task_scores({"big": arm([]), "small": arm([])}) == {}
    assert models_table({"big": arm([])}, timed).splitlines()[-1].endswith("| 4.500 |")
    scores = task_scores({"big": arm([0.9, 0.7]), "other": arm([])})
    assert scores["big"] == {"sst2, accuracy": [0.9, 0.7]}
    assert scores["(word overlap)"] == {"sst2, accuracy": []}


@pytest.mark.parametrize("more, says", [(0.9, "nearly done"), (1.1, "not done")])
def test_a_report_says_whether_the_teacher_was_done(more, says, published):
    """Catches a share of the gap that is asked for at another end."""
    _, results = published
    judged = next(judged for judged in findings(results) if judged.claim.trained_on)
    changed = dataclasses.replace(judged, trained_on=(more, 2.0))
    assert f"The teacher was {says}" in "".join(report_module._section(changed, drawn=False))
    assert "closes" in in_sentences(changed, results)


# ---- figures

def made_up(arm, seed):
    """Measurements of a run that nobody trained: its own loss, and one that memorises."""
    loss = 4 + len(arm.name) / 50 + 0.01 * seed * len(arm.flags)
    loss, training = (12.7, 0.3) if "one static" in arm.name else (loss, loss - 0.1)
    held_out = {"mlm_loss": loss, "unigram_entropy": 6.1, "kl_to_teacher": loss / 9, "hash": "a"}
    nsp = {"nsp_accuracy": 0.9, "nsp_majority": 0.5, "nsp_length": 0.5}
    task = {"score": 0.9 - loss / 20, "majority": 0.2, "metric": "accuracy"}
    return {"full-sentences": held_out, "segment-pair": {**held_out, **nsp}, "tokens": 1e6,
            "train_loss": training, "last_fifth": 0.2, "tasks": {"a": task} if arm.tasks else {}}


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The figures of the whole table of claims, by name, with all of their texts laid out."""
    pytest.importorskip("matplotlib")
    from lab import figures

    shown, save = {}, figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: (
        save(figure, path), shown.update({path.stem: figure})))
    arms = {}
    for arm in {arm for claim in CLAIMS for arm in arms_of(claim)}:
        runs = [made_up(arm, seed) for seed in range(5 if arm in MORE_SEEDS else 3)]
        arms[arm.name] = {key: [run[key] for run in runs] for key in runs[0]}
    lines = {"mlm": 8.0}, {"eval": {"mlm_loss": 5.0, "unigram_entropy": 6.1}}
    log = [{"arm": arm, "seed": 0, "step": 1, **line} for arm in figures.CURVES for line in lines]
    judged = findings({"arms": arms, "exact": {}, "refused": {}, "left_out": []})
    refused = dataclasses.replace(judged[0].effects[0], gains=[], verdict=Verdict("refused", "x"))
    judged[0].effects[0] = refused  # is drawn, too, without gains
    assert figures.draw_all(judged, log, tmp_path) == list(shown)
    return shown


def test_figures_can_be_read(drawn):
    """Catches texts that overlap, are cut off at the edge or are too small, with the names and the
    number of contrasts that are published."""
    from matplotlib.text import Text

    assert drawn.keys() == {*(claim.id for claim in CLAIMS), "verdicts", "curves"}
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        hidden = {tick.label1 for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
                  for tick in axis.get_major_ticks()
                  if not min(axis.get_view_interval()) <= tick.get_loc() <= max(
                      axis.get_view_interval())}
        texts = [(text, text.get_window_extent()) for text in figure.findobj(Text)
                 if text.get_visible() and text.get_text().strip() and text not in hidden]
        for number, (text, place) in enumerate(texts):
            assert text.get_fontsize() >= 9, (name, text)
            assert -1 <= place.x0 and place.x1 <= figure.bbox.x1 + 1, (name, text)
            assert -1 <= place.y0 and place.y1 <= figure.bbox.y1 + 1, (name, text)
            for earlier, its_place in texts[:number]:
                assert not place.padded(-1).overlaps(its_place.padded(-1)), (name, text, earlier)


def test_figures_keep_nats_and_points_apart(drawn):
    """Catches an axis with two units, and one on which +0.4 and +1.4 look alike."""
    for claim in CLAIMS:
        gains = [axes for axes in drawn[claim.id].axes if axes.get_xlabel().startswith("gain")]
        tasks = [contrast.measure == TASKS for contrast in claim.contrasts]
        units = ["points" if "points" in axes.get_xlabel() else "nats" for axes in gains]
        assert units == ["nats"] * (not all(tasks)) + ["points"] * any(tasks)
        assert [len(axes.get_yticks()) for axes in gains] == [
            tasks.count(unit == "points") for unit in units]
        assert all(axes.get_xscale() == "linear" for axes in gains)
    assert drawn["masking"].axes[1].get_xlim()[1] < 2.5  # a gain that runs off is an arrowhead
