"""GLUE tasks by download, as their authors lay them out: data/tasks/SST-2/train.tsv, dev.tsv."""
import sys
from pathlib import Path

from download import extract, fetch, write_aside

from minibert.errors import UserError, run_cli

GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
# Wang et al. 2018, arXiv:1804.07461. URL, length and SHA-256 as huggingface/datasets recorded them.
ARCHIVES = {
    "SST-2": (GLUE + "SST-2.zip", 7_439_277,
              "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa"),
    "CoLA": (GLUE + "CoLA.zip", 376_971,
             "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff"),
    "RTE": (GLUE + "RTE.zip", 697_150,
            "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee"),
}
# MRPC is no archive: its training rows, and which of them are GLUE's dev part.
MRPC = (SENTEVAL + "msr_paraphrase_train.txt", 1_047_044,
        "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89")
MRPC_DEV = (GLUE + "mrpc_dev_ids.tsv", 6_222,
            "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7")


def download(name: str, folder: Path) -> None:
    """Write `folder`/`name`/{train,dev}.tsv; UserError for an unknown name and as `fetch`."""
    if name not in (*ARCHIVES, "MRPC"):
        raise UserError(f"{name!r} is no task here; use {', '.join(ARCHIVES)} or MRPC")
    (folder / name).mkdir(parents=True, exist_ok=True)
    if name == "MRPC":
        rows, ids = (fetch([url], sha256, size, folder).read_text(encoding="utf-8")
                     for url, size, sha256 in (MRPC, MRPC_DEV))
        for part, text in zip(("dev", "train"), split_mrpc(rows, ids)):
            write_aside(folder / name / f"{part}.tsv", [text.encode()])
    else:
        url, size, sha256 = ARCHIVES[name]
        extract(fetch([url], sha256, size, folder), [f"{name}/dev.tsv", f"{name}/train.tsv"],
                folder)


def split_mrpc(rows: str, ids: str) -> tuple[str, str]:
    """MRPC's rows as GLUE's dev.tsv and train.tsv, both with the header.

    rows: lines of label, two ids and two sentences after a header. ids: the pairs of ids of dev.
    >>> split_mrpc("Quality\\tid1\\n1\\t7\\t8\\tone\\ttwo\\n0\\t7\\t9\\ta\\tb\\n", "7\\t9\\n")
    ('Quality\\tid1\\n0\\t7\\t9\\ta\\tb\\n', 'Quality\\tid1\\n1\\t7\\t8\\tone\\ttwo\\n')
    """
    header, *rows = rows.splitlines()
    dev = {tuple(line.split("\t")) for line in ids.splitlines()}
    in_dev = [tuple(row.split("\t")[1:3]) in dev for row in rows]
    parts = ([row for row, is_dev in zip(rows, in_dev) if is_dev == wanted]
             for wanted in (True, False))
    return tuple("\n".join([header, *part]) + "\n" for part in parts)


if __name__ == "__main__":
    run_cli(lambda: [download(name, Path(__file__).parent / "tasks") for name in sys.argv[1:]])
