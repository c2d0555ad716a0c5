"""Executes docs/confirm_load.ipynb and compares it with the outputs that are committed in it.

    python notebook.py NOTEBOOK           fails when a cell fails, or shows another output
    python notebook.py NOTEBOOK --write   writes the new outputs to the file

The database is the one that ETL_DATABASE_URL names. Cells with the tag `same` must show the same text each time; the others
the same kinds of output, since a run's number differs.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config


def shown(cell: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """What a cell shows: the kind of each output, and its text where the text must be the same."""
    same = "same" in cell.metadata.get("tags", [])
    outputs = []
    for output in cell.outputs:
        data = output.get("data", {})
        kind = "image" if "image/png" in data else "table" if "text/html" in data else output.output_type
        outputs.append((kind, (output.get("text") or data.get("text/plain", "")) if same else ""))
    return outputs


def execute(notebook: nbformat.NotebookNode) -> None:
    # A socket in a private folder instead of a port that every user of this machine could connect to.
    settings = Config({"ConnectionFileMixin": {"transport": "ipc"}})
    NotebookClient(notebook, kernel_name="python3", timeout=120, record_timing=False, config=settings).execute()


def main() -> None:
    path, write = Path(sys.argv[1]), sys.argv[2:] == ["--write"]
    committed = nbformat.read(path, nbformat.NO_CONVERT)
    nbformat.validate(committed)
    notebook = nbformat.from_dict(committed)
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    before = [shown(cell) for cell in cells]
    with tempfile.TemporaryDirectory() as home:
        # Neither reads nor changes the user's configuration.
        for name in ("HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR"):
            os.environ[name] = home
        os.environ["PLOOMBER_STATS_ENABLED"] = "false"
        # Otherwise the first cell on a slow machine prints that it searches for fonts.
        subprocess.run([sys.executable, "-c", "import matplotlib.pyplot"], check=True, stdout=subprocess.DEVNULL)
        try:
            execute(notebook)
        except CellExecutionError as error:
            sys.exit(f"notebook.py: a cell of {path.name} fails:\n{error}")
    if write:
        nbformat.write(notebook, path)
        return
    after = [shown(cell) for cell in notebook.cells if cell.cell_type == "code"]
    for cell, was, now in zip(cells, before, after):
        if was != now:
            sys.exit(f"notebook.py: this cell of {path.name} shows\n{now}\nand the committed file has\n{was}\n\n{cell.source}")
    kinds = [kind for outputs in after for kind, _ in outputs]
    if kinds.count("image") < 2 or kinds.count("table") < 2:
        sys.exit(f"notebook.py: {path.name} shows too little: {kinds}")
    print(f"notebook.py: {path.name} shows the committed output: {len(kinds)} outputs of {len(cells)} cells, {kinds.count('image')} plots")


if __name__ == "__main__":
    main()
