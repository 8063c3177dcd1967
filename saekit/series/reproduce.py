"""Run the notebook series from top to bottom and keep its results."""

from __future__ import annotations

import ast
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from saekit.cache import forget_old
from saekit.figures import figures_folder, project_root
from saekit.files import hash_json, read_json, source_hash, write_bytes, write_json
from saekit.gallery import write_index
from saekit.loading.names import open_sae
from saekit.series.embedded import embedded_store
from saekit.series.profiles import DEFAULT, Profile, Series
from saekit.workers import in_processes

CELL_TIMEOUT = 900  # seconds
LANES = 2  # notebooks at a time: each holds a model and a store
EMBEDDED = "embedded"  # tag of cells that apply only to the embedded default


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
        The lines that cells tagged `headline` printed.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell raises; the file is left as it was.
    """
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    _execute(notebook, path, timeout=CELL_TIMEOUT)
    return [_printed(cell) for cell in notebook.cells if "headline" in _tags(cell)]


def _execute(
    notebook: Any, path: Path, *, timeout: int | None, environment: Mapping[str, str] | None = None
) -> None:
    """Run a notebook's cells in the folder of `path`, and write it there."""
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    client = NotebookClient(
        notebook,
        # Every kernel warns of sockets in plain text otherwise.
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    # Explorers leave their static form, since a page that runs nothing cannot show them.
    static = {"SAEKIT_STATIC": "1", "SAEKIT_STRICT": "1", "TQDM_DISABLE": "1"}
    # Every cell runs; what an analysis returned before for the same inputs and code is read again.
    client.execute(env={**os.environ, **static, "SAEKIT_CACHE": "1", **(environment or {})})
    write_bytes(path, (nbformat.writes(notebook).rstrip() + "\n").encode())


def _printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream").rstrip()


def _tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def reproduce(*, progress: bool = True) -> str:
    """Harvest the held-out activations, run every notebook, and index the figures.

    Two notebooks run at a time, since much of what they do keeps one core busy.

    Returns
    -------
    str
        The headline numbers of each notebook, as a table to print.
    """
    forget_old()
    embedded_store("held-out", progress=progress)
    paths = notebooks()
    printed = [""] * len(paths)
    with tqdm(total=len(paths), disable=not progress, unit="notebook") as bar:

        def keep(position: int, headline: str) -> None:
            printed[position] = headline
            bar.set_postfix_str(paths[position].stem)
            bar.update()

        in_processes(
            _headline,
            [(path,) for path in paths],
            names=[f"notebook {path.stem}" for path in paths],
            workers=LANES,
            threads=max(1, (os.cpu_count() or 1) // LANES),
            on_end=keep,
        )
    write_index(figures_folder())
    return "\n\n".join(printed)


def _headline(path: Path) -> str:
    start = time.monotonic()
    printed = run_notebook(path)
    return "\n".join([f"{path.stem} ({time.monotonic() - start:.0f} s)", *printed])


# ------------------------------------------------------------------------------ other profiles


def reproduce_profile(profile: Profile, folder: str | Path, *, progress: bool = True) -> pd.DataFrame:
    """Run the series on another model and other families, and check their published numbers.

    First every published SAE is loaded and compared with its record, and unpublished ones are
    trained; then the notebooks run; then the rest is checked. Results of the same notebook, profile
    and version of saekit that are already there are kept.

    Parameters
    ----------
    profile : Profile
        The profile to run on.
    folder : path
        Executed notebooks go to `notebooks`, figures to `figures`, and the checks to `checks.csv`.
    progress : bool
        Show progress bars.

    Returns
    -------
    DataFrame
        The checks: `what`, `paper`, `low`, `high`, `found`, `holds`, `source`.

    Raises
    ------
    FileNotFoundError
        If the series lacks a notebook of the profile, or there is no such model or SAE.
    ValueError
        If a notebook lacks a parameter of the profile, the profile's checks are wrong, or the folder
        is the project's own.
    nbclient.exceptions.CellExecutionError
        If a cell raises; earlier results are kept.
    """
    from saekit.series.published_numbers import expectations, measured, recorded

    asked = expectations(profile)  # now, so that a mistake is found before the notebooks run
    prepared = {name: prepared_notebook(name, profile) for name in profile.notebooks}
    folder, series = Path(folder).resolve(), Series(profile, progress=progress)
    if folder == project_root().resolve():
        raise ValueError(f"{folder} holds the series itself: give a separate folder for executed notebooks.")
    environment = {"SAEKIT_PROFILE": str(profile.file), "SAEKIT_FIGURES": str(folder / "figures")}

    def check_recorded(file: Path) -> None:
        write_bytes(file, recorded(series).to_csv(index=False).encode())
        for kind in profile.families:
            series.family(kind)
        if asked is not None:
            open_sae(profile.local(asked[0].released))  # downloads happen before the notebooks run

    def check(file: Path) -> None:
        write_index(folder / "figures")
        checks = pd.concat([pd.read_csv(folder / "recorded.csv"), measured(series)])
        write_bytes(file, checks.to_csv(index=False).encode())

    def run(file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        _execute(prepared[file.stem], file, timeout=None, environment=environment)

    stages: dict[str, Callable[[Path], None]] = {"recorded.csv": check_recorded}
    stages |= {f"notebooks/{name}.ipynb": run for name in prepared} | {"checks.csv": check}
    identity = [read_json(profile.file), source_hash()]
    done = read_json(folder / "done.json") if (folder / "done.json").exists() else {}
    bar = tqdm(stages.items(), unit="stage", disable=not progress)
    for name, stage in bar:
        bar.set_postfix_str(name)
        made_of = hash_json([*identity, prepared.get(Path(name).stem)])
        if done.get(name) != made_of or not (folder / name).exists():
            stage(folder / name)
            done[name] = made_of
            write_json(folder / "done.json", done)
    return pd.read_csv(folder / "checks.csv")


def prepared_notebook(name: str, profile: Profile) -> Any:
    """A notebook of the series as a profile runs it.

    The profile's parameters are set in a cell after that of the parameters, tagged
    `injected-parameters`; cells tagged `embedded` are left out, and all outputs.

    Raises
    ------
    FileNotFoundError
        If there is no such notebook.
    ValueError
        If it has no such parameter, or runs on the embedded default alone: then its cell of parameters is
        tagged `embedded`.
    """
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell

    path = next((path for path in notebooks() if path.stem == name), None)
    if path is None:
        series = ", ".join(path.stem for path in notebooks())
        raise FileNotFoundError(f"{profile.file}: there is no notebook {name}; there are {series}.")
    notebook = nbformat.read(path, as_version=4)
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in _tags(cell))
    values, known = profile.notebooks[name], _assigned(notebook.cells[place].source)
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(
            f"{profile.file}: {name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}."
        )
    if profile.file != DEFAULT:
        if EMBEDDED in _tags(notebook.cells[place]):
            raise ValueError(
                f"{profile.file}: {name} runs on the embedded default alone: it reads dictionaries by name."
            )
        injected = [new_markdown_cell(_note(profile), id="profile")]
        if values:
            source = "\n".join(f"{parameter} = {value!r}" for parameter, value in values.items())
            tags = {"tags": ["injected-parameters"]}
            injected.insert(0, new_code_cell(source, id="injected-parameters", metadata=tags))
        notebook.cells[place + 1 : place + 1] = injected
        notebook.cells = [cell for cell in notebook.cells if EMBEDDED not in _tags(cell)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def _note(profile: Profile) -> str:
    """A note for readers of a notebook that does not run on the embedded default."""
    trained = [
        f"{kind} {settings['width']} (seed {settings.get('seed', 0)})"
        for kind, plan in profile.families.items()
        for settings in plan.train
    ]
    note = (
        f"Run with the profile `{profile.name}`. The text describes the embedded default; its claims are "
        "printed below as true or false for this run."
    )
    if trained:
        note += (
            f" Trained here, since they are not published: {', '.join(trained)}. Beside a published SAE, "
            "such a second seed is a null that includes trainer and text, not only the seed."
        )
    return note


def _assigned(source: str) -> list[str]:
    """Names that a cell of assignments sets."""
    assignments = (each for each in ast.parse(source).body if isinstance(each, ast.Assign))
    targets = (target for each in assignments for target in each.targets)
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
