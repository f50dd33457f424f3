"""`make notebook`: run the code cells of docs/lesson.ipynb in their order, without Jupyter.

With MINIBERT_TOY set to the path of a small text, the budgets are toys and it takes some seconds.
"""
import json
import time
from pathlib import Path

LESSON = Path(__file__).resolve().parent.parent / "docs" / "lesson.ipynb"


def cells(kind: str) -> list[str]:
    """The notebook's cells of one kind, "code" or "markdown", as text."""
    notebook = json.loads(LESSON.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def main() -> None:
    names = {"__name__": "__main__"}  # what one cell defines, the next ones see
    for number, source in enumerate(cells("code"), 1):
        print(f"\n--- code cell {number}", flush=True)
        exec(compile(source, f"code cell {number}", "exec"), names)
    print(f"\nall cells took {time.perf_counter() - START:.0f} seconds, "
          f"{time.process_time():.0f} of them on a processor")


START = time.perf_counter()
if __name__ == "__main__":
    main()
