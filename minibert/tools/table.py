"""`python -m minibert table`: runs side by side."""
from pathlib import Path
from typing import Any

from minibert.errors import UserError
from minibert.files.run_folder import read_json
from minibert.tasks.tasks import FLOORS

COLUMNS = {  # of a run's metrics
    "parameters": lambda m: f"{m['parameters']:,}",
    "layers": lambda m: f"{m['layers']}",
    "steps": lambda m: f"{m['steps']:,}",
    "tokens": lambda m: f"{m['tokens']:,}",
    "MLM loss": lambda m: f"{m['full-sentences']['mlm_loss']:.3f}",
    "accuracy": lambda m: f"{m['full-sentences']['accuracy']:.1%}",
    "loss in pairs": lambda m: f"{m['segment-pair']['mlm_loss']:.3f}",
    "seconds": lambda m: f"{m['seconds']:.0f}",
}


def family_table(folders: list[str]) -> str:
    """Finished runs as a Markdown table, one in a line, and below them the tasks' baselines.

    Raises UserError when a run is not finished or was evaluated on another set than the first.
    """
    first: dict[str, Any] = {}
    tasks: dict[str, dict] = {}
    rows: list[dict[str, str]] = []  # heading -> cell
    for folder in folders:
        metrics = read_json(Path(folder) / "metrics.json",
                            "is missing; name the folder of a finished run")
        if "full-sentences" not in metrics:
            raise UserError(f"{folder} holds a fine-tuned classifier; name pretraining runs")
        scores = metrics["full-sentences"]
        first = first or scores
        if scores["hash"] != first["hash"]:
            raise UserError(f"{folder} was evaluated on another set ({scores['hash']}) than "
                            f"{folders[0]} ({first['hash']}); compare runs of the same corpus, "
                            "tokenizer, sequence length and masking code")
        row = {"run": Path(folder).name, **{name: of(metrics) for name, of in COLUMNS.items()}}
        for path in sorted(Path(folder).glob("tasks/*/metrics.json")):
            if path.parent.suffix == ".part":  # a fine-tuning was killed here
                continue
            task = read_json(path, "is missing")
            name = f"{path.parent.name} {task['metric']}"
            floors = {floor: task.get(floor) for floor in (*FLOORS, "dev_rows")}
            if floors != tasks.setdefault(name, floors):
                raise UserError(f"{folder} was scored in {name} on other rows than the runs before "
                                "it; give finetune.py the same --rows and --task-dir")
            row[name] = f"{task['score']:.3f}"
        rows.append(row)
    for floor, name in FLOORS.items():
        known = {task: f"{floors[floor]:.3f}" for task, floors in tasks.items()
                 if floors[floor] is not None}
        rows += [{"run": f"({name})", **known}] if known else []
    headings = ["run", *COLUMNS, *tasks]
    cells = [headings, *([row.get(heading, "") for heading in headings] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(map(str.rjust, row, widths)) + " |" for row in cells]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    note = (f"Loss in nats per masked token, on the same {first['targets']:,} targets "
            f"(set {first['hash']}) of documents that no run trained on. A model that ignores its "
            f"input gets the unigram entropy of those targets, {first['unigram_entropy']:.3f}, at "
            "best.")
    return "\n".join([lines[0], rule, *lines[1:], "", note])


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
