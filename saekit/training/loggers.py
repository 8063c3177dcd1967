"""Where the rows of a training log go: a file, TensorBoard, Weights & Biases, or a class of your own."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from saekit.files import write_bytes

Row = Mapping[str, float]


class Logger(Protocol):
    """The interface of `train(loggers=...)`. Rows are those of `TrainingResult.log`.

    A row may come a second time after a run was killed, since it resumes from its last checkpoint.
    """

    def begin(self, name: str, settings: Mapping[str, Any], rows: Sequence[Row]) -> None:
        """A run begins, or resumes after these rows; `settings` are those of the config."""

    def log(self, row: Row) -> None:
        """There is a new row."""

    def end(self) -> None:
        """The run ended, was interrupted, or failed."""


class CSVLogger:
    """Write the log as a CSV file, row by row as it comes.

    A run that resumes from a checkpoint begins with the rows of that checkpoint, so the file is the
    same whether or not the run was interrupted.

    Parameters
    ----------
    path : path
        The file; it is replaced.

    Examples
    --------
    >>> config = saekit.TrainingConfig(saekit.TopK(k=1), width=8, steps=20, batch_size=64, log_every=10)
    >>> result = saekit.train(config, x, loggers=[CSVLogger("log.csv")], progress=False)
    >>> pd.read_csv("log.csv")["step"].tolist()
    [10, 20]
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._written = False

    def begin(self, name: str, settings: Mapping[str, Any], rows: Sequence[Row]) -> None:  # noqa: ARG002 (as in the base)
        """Write the rows so far."""
        lines = [_line(rows[0]), *(_line(row.values()) for row in rows)] if rows else []
        write_bytes(self.path, "".join(lines).encode())
        self._written = bool(rows)

    def log(self, row: Row) -> None:
        """Add a line."""
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(("" if self._written else _line(row)) + _line(row.values()))
        self._written = True

    def end(self) -> None:
        """Do nothing: every row is on disk."""


def _line(values: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


class TensorBoardLogger:
    """Write the log for TensorBoard, one scalar per column.

    Parameters
    ----------
    folder : path
        Folder of the event files. Rows that a resumed run repeats replace the earlier ones.

    Raises
    ------
    ImportError
        If `tensorboard` is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoardLogger needs tensorboard: pip install tensorboard.") from error
        self.folder = Path(folder)
        self._writer_class: Any = SummaryWriter
        self._writer: Any = None

    def begin(self, name: str, settings: Mapping[str, Any], rows: Sequence[Row]) -> None:
        """Open the folder, and drop the rows that an interrupted run wrote after its last checkpoint."""
        purged = int(rows[-1]["step"]) + 1 if rows else 0
        self._writer = self._writer_class(str(self.folder), purge_step=purged)
        self._writer.add_text("settings", f"{name}: {dict(settings)}", purged)

    def log(self, row: Row) -> None:
        """Add every column but the step."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))

    def end(self) -> None:
        """Close the folder."""
        self._writer.close()


class WandbLogger:
    """Send the log to Weights & Biases.

    Parameters
    ----------
    project : str
        The project; the run is named after the dictionary.
    **options
        Further arguments of `wandb.init`. With `id=` and `resume="allow"`, a run resumed from a
        checkpoint stays one run there too.

    Raises
    ------
    ImportError
        If `wandb` is not installed.
    """

    def __init__(self, project: str, **options: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("WandbLogger needs wandb: pip install wandb.") from error
        self._wandb = wandb
        self._options = {"project": project, **options}
        self._run: Any = None

    def begin(self, name: str, settings: Mapping[str, Any], rows: Sequence[Row]) -> None:  # noqa: ARG002 (as in the base)
        """Start the run."""
        self._run = self._wandb.init(**{"name": name, "config": dict(settings), **self._options})

    def log(self, row: Row) -> None:
        """Send every column but the step."""
        self._run.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))

    def end(self) -> None:
        """Finish the run."""
        self._run.finish()
