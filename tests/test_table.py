"""The four models end to end at toy size, and the table that stands at the end."""
import json
import shutil
import sys

import pytest
from conftest import BUDGET, ROOT, TOY

from minibert.__main__ import main
from minibert.errors import UserError, run_cli
from minibert.files.hub import load_pretrained
from minibert.tools.table import family_table


@pytest.fixture(scope="module")
def family(toy_text, tmp_path_factory):
    """BERT, RoBERTa and a student of each, trained by the scripts as `make all` calls them."""
    folder = tmp_path_factory.mktemp("family")
    rows = "".join(f"{'be' if i % 2 else 'ga'} du\t{'ab'[i % 2]}\n" for i in range(20))
    others = rows.replace("be", "?").replace("ga", "be").replace("?", "ga") * 3
    (folder / "dev.tsv").write_text(f"text\tlabel\n{rows}")
    (folder / "train.tsv").write_text(f"text\tlabel\n{rows}{others}")  # --rows 20 of them
    corpus = ["--corpus", toy_text]
    commands = [["train_bert", *BUDGET, *TOY, *corpus, "--out", folder / "bert"],
                ["train_roberta", *BUDGET, *TOY, *corpus, "--out", folder / "roberta"],
                ["distill", *BUDGET, *corpus, "--teacher", folder / "bert",
                 "--out", folder / "distilbert"],
                ["distill", *BUDGET, *corpus, "--teacher", folder / "roberta", "--init", "random",
                 "--alpha-kl", 0, "--alpha-cos", 0, "--out", folder / "untaught"]]
    commands += [["finetune", command[-1], "--task", "text", "--task-dir", folder, "--rows", 20,
                  "--max-length", 0, "--device", "cpu"] for command in commands]
    for name, *flags in commands:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *map(str, flags)])
            patch.syspath_prepend(str(ROOT))
            __import__(name).main()
    return folder


def test_table_of_the_family(family):
    """Catches a column that is not what the run measured."""
    names = ["bert", "roberta", "distilbert", "untaught"]
    lines = family_table([str(family / name) for name in names]).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:8]]
    assert [row[0] for row in rows[2:]] == [*names, "(majority)", "(bag of words)"]
    assert rows[6] == ["(majority)", *[""] * (len(rows[0]) - 2), "0.500"]
    assert rows[7][-1] == "1.000" and lines[8] == ""
    for name, row in zip(names, rows[2:]):
        metrics = json.loads((family / name / "metrics.json").read_text())
        assert metrics["disk"] == (family / name / "pytorch_model.bin").stat().st_size
        cells = dict(zip(rows[0], row))
        assert cells["MLM loss"] == f"{metrics['full-sentences']['mlm_loss']:.3f}"
        assert int(cells["tokens"].replace(",", "")) == metrics["tokens"]
        model, _ = load_pretrained(family / name)
        assert int(cells["parameters"].replace(",", "")) == sum(
            p.numel() for p in model.parameters())
        assert int(cells["layers"]) == len(model.encoder.layers)
        scored = json.loads((family / name / "tasks" / "text" / "metrics.json").read_text())
        assert cells["text accuracy"] == f"{scored['score']:.3f}"
        assert scored["settings"]["max_length"] == 16 and scored["run"] == str(family / name)


def test_untaught_student_learns_from_hard_labels_alone(family):
    """Catches a "no teacher" student that is taught all the same."""
    lines = [json.loads(line) for line in (family / "untaught" / "log.jsonl").open()]
    losses = [line for line in lines if "loss" in line]
    assert losses and all("kl" not in line for line in losses)
    assert all(line["loss"] == pytest.approx(2 * line["mlm"], rel=1e-6) for line in losses)


def test_other_evaluation_set_is_refused(family, tmp_path):
    """Catches losses side by side that were measured on different targets."""
    shutil.copytree(family / "roberta", tmp_path / "other")
    path = tmp_path / "other" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["full-sentences"]["hash"] = "0" * 16
    path.write_text(json.dumps(metrics))
    with pytest.raises(UserError, match="another set"):
        family_table([str(family / "bert"), str(tmp_path / "other")])


def test_a_classifier_is_no_run(family):
    """Catches a traceback where a folder of finetune's stands among the runs."""
    with pytest.raises(UserError, match="holds a fine-tuned classifier"):
        family_table([str(family / "bert"), str(family / "bert" / "tasks" / "text")])


def test_a_task_done_on_other_rows_is_refused(family, tmp_path):
    """Catches accuracies side by side whose floors are not the same."""
    shutil.copytree(family / "roberta", tmp_path / "other")
    path = tmp_path / "other" / "tasks" / "text" / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps({**metrics, "bag_of_words": 0.6}))
    with pytest.raises(UserError, match="on other rows"):
        family_table([str(family / "bert"), str(tmp_path / "other")])
    shutil.rmtree(tmp_path / "other" / "tasks")
    assert " other |" in family_table([str(family / "bert"), str(tmp_path / "other")])


def test_budget_is_logged(family):
    """Catches arms whose tokens, targets and steps cannot be compared."""
    for name in ("bert", "roberta", "distilbert", "untaught"):
        metrics = json.loads((family / name / "metrics.json").read_text())
        # At 15 %, rounded for each sequence: more would be predictions that nobody counts.
        assert 0.1 < metrics["targets"] / metrics["tokens"] < 0.2
        assert metrics["steps"] == 12


def test_command_line_says_what_is_missing(tmp_path, monkeypatch, capsys):
    """Catches a traceback from `python -m minibert` on a folder that is no run."""
    monkeypatch.setattr(sys, "argv", ["minibert", "table", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        run_cli(main)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(tmp_path) in line
