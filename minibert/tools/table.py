"""`python -m minibert info` and `table`: what a run is, and runs side by side."""
import json
from pathlib import Path
from typing import Any

from minibert.errors import UserError
from minibert.files.run_folder import read_json

# (heading, how to get it from a run's metrics, how to write it)
COLUMNS = (
    ("parameters", lambda m: m["parameters"], "{:,}"),
    ("layers", lambda m: m["layers"], "{}"),
    ("steps", lambda m: m["steps"], "{:,}"),
    ("tokens", lambda m: m["tokens"], "{:,}"),
    ("MLM loss", lambda m: m["full-sentences"]["mlm_loss"], "{:.3f}"),
    ("below unigram", lambda m: m["full-sentences"]["unigram_entropy"]
     - m["full-sentences"]["mlm_loss"], "{:.3f}"),
    ("accuracy", lambda m: m["full-sentences"]["accuracy"], "{:.1%}"),
    ("loss in pairs", lambda m: m["segment-pair"]["mlm_loss"], "{:.3f}"),
    ("seconds", lambda m: m["seconds"], "{:.0f}"),
)
FLOORS = {"(majority)": "majority", "(bag of words)": "bag_of_words", "(word overlap)": "overlap",
          "(pairs of words)": "bigrams"}


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
        found = metrics["full-sentences"]
        first = first or found
        if found["hash"] != first["hash"]:
            raise UserError(f"{folder} was evaluated on another set ({found['hash']}) than "
                            f"{folders[0]} ({first['hash']}); compare runs of the same corpus, "
                            "tokenizer, sequence length and masking code")
        done = {f"{name} {task['metric']}": task for name, task in metrics.get("tasks", {}).items()}
        for name, task in done.items():
            floors = {floor: task.get(floor) for floor in (*FLOORS.values(), "dev_rows")}
            if floors != tasks.setdefault(name, floors):
                raise UserError(f"{folder} was scored in {name} on other rows than the runs before "
                                "it; compare runs with the same --task-rows")
        rows.append({"run": Path(folder).name,
                     **{heading: form.format(get(metrics)) for heading, get, form in COLUMNS},
                     **{name: f"{task['score']:.3f}" for name, task in done.items()}})
    for name, floor in FLOORS.items():
        rows.append({"run": name, **{task: f"{floors[floor]:.3f}" for task, floors in tasks.items()
                                     if floors[floor] is not None}})
    headings = ["run", *(heading for heading, _, _ in COLUMNS), *tasks]
    cells = [headings, *([row.get(heading, "") for heading in headings] for row in rows
                         if len(row) > 1)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0])]
                               + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])])
             + " |" for row in cells]
    rule = "|" + "|".join(["-" * (widths[0] + 2)] + ["-" * (w + 1) + ":" for w in widths[1:]]) + "|"
    note = (f"Loss in nats per masked token, on the same {first['targets']:,} targets "
            f"(set {first['hash']}) of documents that no run trained on. A model that ignores its "
            f"input gets the unigram entropy of those targets, {first['unigram_entropy']:.3f}, at "
            "best.")
    return "\n".join([lines[0], rule, *lines[1:], "", note])


def info(folder: str) -> str:
    """A run's settings, model and machine, and its results or how far it has come."""
    out = Path(folder)
    metadata = read_json(out / "run.json", "is missing; name a run folder")
    lines = []
    for group, values in metadata.items():
        if isinstance(values, dict):
            lines.append(f"{group}:")
            lines += [f"  {name}: {value}" for name, value in values.items()]
        else:
            lines.append(f"{group}: {values}")
    if (out / "metrics.json").exists():
        lines += ["", family_table([folder])]
    else:
        log = out / "log.jsonl"
        done = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()
                if line.endswith("}")] if log.exists() else []
        step = done[-1]["step"] if done else 0
        lines += ["", f"not finished: step {step} of {metadata['settings']['steps']}; run the same "
                      "command again to continue"]
    return "\n".join(lines)
