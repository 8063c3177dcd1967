"""Run the notebook series from top to bottom and keep what it produced."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from saekit.embedded import embedded_store, figures_folder, project_root
from saekit.figures import write_index
from saekit.files import write_bytes

CELL_TIMEOUT = 900  # seconds


def notebooks() -> list[Path]:
    """The numbered series, in order.

    Raises
    ------
    FileNotFoundError
        If there is no series below the project's root.
    """
    found = sorted((project_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(
            f"No notebooks below {project_root()}: run this command in a checkout of saekit."
        )
    return found


def run_notebook(path: Path) -> list[str]:
    """Execute a notebook in place, as a reader would see it on a page that runs nothing.

    Parameters
    ----------
    path : Path
        The notebook; its outputs are replaced when every cell has run.

    Returns
    -------
    list of str
        What the cells tagged `headline` printed.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell raises; the file is left as it was.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    # Explorers leave their static form, since a page that runs nothing cannot show them.
    client.execute(env={**os.environ, "SAEKIT_STATIC": "1", "SAEKIT_STRICT": "1", "TQDM_DISABLE": "1"})
    write_bytes(path, (nbformat.writes(notebook).rstrip() + "\n").encode())
    return [_printed(cell) for cell in notebook.cells if "headline" in cell.metadata.get("tags", [])]


def _printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream").rstrip()


def reproduce(*, progress: bool = True) -> str:
    """Harvest the held-out activations, run every notebook, and index the figures.

    Returns
    -------
    str
        The headline numbers of each notebook, as a table to print.
    """
    embedded_store("held-out", progress=progress)
    headlines = []
    for path in notebooks():
        start = time.monotonic()
        printed = run_notebook(path)
        headlines += [f"{path.stem} ({time.monotonic() - start:.0f} s)", *printed, ""]
    write_index(figures_folder())
    return "\n".join(headlines).rstrip()
