"""The table of finished runs: by hand first, then of four models that the scripts make."""
import json
import shutil
import sys

import pytest
from conftest import BUDGET, ROOT, TOY

from minibert.__main__ import main
from minibert.errors import UserError, run_cli
from minibert.files.hub import load_pretrained
from minibert.tools.table import family_table


def write_run(folder, loss, scores, **floors):
    """A finished run's metrics, and those of its tasks in folders of their own."""
    held_out = {"mlm_loss": loss, "accuracy": 0.25, "targets": 1000, "unigram_entropy": 6.5,
                "hash": "abc"}
    metrics = {"full-sentences": held_out, "segment-pair": held_out | {"mlm_loss": loss + 0.5},
               "parameters": 1500, "layers": 2, "steps": 10, "tokens": 2000, "seconds": 7.4}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    for name, score in scores.items():
        (folder / "tasks" / name).mkdir(parents=True)
        (folder / "tasks" / name / "metrics.json").write_text(json.dumps(
            {"task": "text", "metric": "accuracy", "score": score, "dev_rows": 8, "majority": 0.5,
             **floors}))
    return str(folder)


def cells_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")]
            for line in table.splitlines() if line.startswith("|")]


def test_two_runs_by_hand(tmp_path):
    """A value under another's heading, or in another run's row, would be published as it stands;
    a run that has not done a task has an empty cell, and a killed fine-tuning is no task."""
    both = write_run(tmp_path / "both", 4.25, {"halves": 0.75, "mine": 0.625, "text.part": 1.0})
    neither = write_run(tmp_path / "neither", 5.5, {})
    table = family_table([neither, both])
    assert cells_of(table) == [
        ["run", "parameters", "layers", "steps", "tokens", "MLM loss", "accuracy", "loss in pairs",
         "seconds", "halves accuracy", "mine accuracy"],
        ["-" * (len(cell) - 1) + ":" for cell in table.splitlines()[1].strip("|").split("|")],
        ["neither", "1,500", "2", "10", "2,000", "5.500", "25.0%", "6.000", "7", "", ""],
        ["both", "1,500", "2", "10", "2,000", "4.250", "25.0%", "4.750", "7", "0.750", "0.625"],
        ["(majority)", *[""] * 8, "0.500", "0.500"]]
    assert len({len(line) for line in table.splitlines()[:5]}) == 1
    assert "1,000" in table.splitlines()[-1] and "6.500" in table.splitlines()[-1]


def test_what_cannot_be_compared_is_refused(tmp_path):
    """Losses on other targets, or scores on other rows, must not stand side by side."""
    first = write_run(tmp_path / "first", 4.0, {"text": 0.75}, bag_of_words=0.7)
    rows = write_run(tmp_path / "rows", 4.0, {"text": 0.75}, bag_of_words=0.6)
    with pytest.raises(UserError, match="rows was scored in text accuracy on other rows"):
        family_table([first, rows])
    targets = tmp_path / "rows" / "metrics.json"
    targets.write_text(targets.read_text().replace("abc", "def"))
    with pytest.raises(UserError, match=r"another set \(def\)"):
        family_table([first, rows])
    with pytest.raises(UserError, match="holds a fine-tuned classifier"):
        family_table([first, f"{first}/tasks/text"])


def test_command_line_says_what_is_missing(tmp_path, monkeypatch, capsys):
    """A folder that is no run would end in a traceback."""
    monkeypatch.setattr(sys, "argv", ["minibert", "table", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        run_cli(main)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(tmp_path) in line


# ---- end to end


@pytest.fixture(scope="module")
def family(toy_text, tmp_path_factory):
    """BERT, RoBERTa and a student of each, trained and fine-tuned as `make models` does."""
    folder = tmp_path_factory.mktemp("family")
    rows = "".join(f"{'be' if i % 2 else 'ga'} du\t{'ab'[i % 2]}\n" for i in range(20))
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text(f"text\tlabel\n{rows}")
    flags = [*BUDGET, "--corpus", toy_text]
    commands = [["train_bert", *flags, *TOY, "--out", folder / "bert"],
                ["train_roberta", *flags, *TOY, "--out", folder / "roberta"],
                ["distill", *flags, "--teacher", folder / "bert", "--out", folder / "distilbert"],
                ["distill", *flags, "--teacher", folder / "roberta", "--init", "random",
                 "--alpha-kl", 0, "--alpha-cos", 0, "--out", folder / "untaught"]]
    commands += [["finetune", command[-1], "--task", "text", "--task-dir", folder, "--device",
                  "cpu"] for command in commands]
    for name, *words in commands:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *map(str, words)])
            patch.syspath_prepend(str(ROOT))
            __import__(name).main()
    return folder


def test_table_of_the_family(family, tmp_path):
    """What the scripts write and what the table reads must go together, for all kinds of model."""
    names = ["bert", "roberta", "distilbert", "untaught"]
    headings, _, *rows = cells_of(family_table([str(family / name) for name in names]))
    assert [row[0] for row in rows] == [*names, "(majority)", "(bag of words)"]
    for name, row in zip(names, rows):
        cells, metrics = dict(zip(headings, row)), json.loads(
            (family / name / "metrics.json").read_text())
        assert metrics["disk"] == (family / name / "pytorch_model.bin").stat().st_size
        assert cells["MLM loss"] == f"{metrics['full-sentences']['mlm_loss']:.3f}"
        model, _ = load_pretrained(family / name)
        assert int(cells["parameters"].replace(",", "")) == sum(
            weight.numel() for weight in model.parameters())
        scored = json.loads((family / name / "tasks" / "text" / "metrics.json").read_text())
        assert cells["text accuracy"] == f"{scored['score']:.3f}"
        assert scored["settings"]["max_length"] == 16 and scored["run"] == str(family / name)
    shutil.copytree(family / "bert", tmp_path / "moved")  # results/ has runs without their weights
    (tmp_path / "moved" / "pytorch_model.bin").unlink()
    assert cells_of(family_table([str(tmp_path / "moved")]))[2][1:] == rows[0][1:]


def test_untaught_student_learns_from_hard_labels_alone(family):
    """A "no teacher" arm that was taught all the same would make every teacher look useless."""
    lines = [json.loads(line) for line in (family / "untaught" / "log.jsonl").open()]
    losses = [line for line in lines if "loss" in line]
    assert losses and all("kl" not in line for line in losses)
    assert all(line["loss"] == pytest.approx(2 * line["mlm"], rel=1e-6) for line in losses)


def test_budget_is_counted(family):
    """Arms whose tokens, targets and steps are not counted cannot be compared."""
    for name in ("bert", "roberta", "distilbert", "untaught"):
        metrics = json.loads((family / name / "metrics.json").read_text())
        # At 15 %, rounded for each sequence: more would be predictions that nobody counts.
        assert 0.1 < metrics["targets"] / metrics["tokens"] < 0.2
        assert metrics["steps"] == 12
