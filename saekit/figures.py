"""House style, and figures that can be cited: the same bytes on every run, with their numbers.

A figure is saved with the data it shows (CSV), a record of its inputs (JSON) and the files that a
paper needs (PDF, LaTeX). Nothing written depends on the clock, on paths or on the user's matplotlib
settings.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from saekit.colours import META, PINK
from saekit.files import write_bytes, write_json
from saekit.identity import Identity, distinct_names
from saekit.source import code_hash, modules_behind
from saekit.training.variants import VARIANTS

FORMAT = "saekit-figure-1"
SUFFIXES = ("pdf", "svg", "png", "csv", "tex")  # beside the JSON, which is written last
VERSIONED = ("matplotlib", "numpy", "pandas", "scipy", "seaborn", "torch", "transformer-lens")

FULL, HALF = 5.5, 2.7  # inches: the text width of ICLR and NeurIPS, and half of it

STYLE = mpl.rc_params_from_file(Path(__file__).with_name("paper.mplstyle"), use_default_template=False)

# PDF and SVG would otherwise carry the time of day; each format takes only its own keys.
_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Creator": "saekit"},
    "svg": {"Date": None, "Creator": "saekit"},
    "png": {"Software": None},
}


def width_colours(widths: Sequence[int]) -> dict[int, str]:
    """One colour per width, from light (narrow) to dark (wide).

    Examples
    --------
    >>> narrow, wide = width_colours([576, 1152]).values()
    >>> narrow == wide
    False
    """
    return dict(zip(sorted(widths), sns.color_palette("crest", len(widths)).as_hex(), strict=True))


@dataclass(frozen=True)
class KindStyle:
    """The look of a kind of dictionary in figures, captions and tables.

    Attributes
    ----------
    label : str
        Its name for people.
    colour, marker, line : str
        For matplotlib.
    """

    label: str
    colour: str
    marker: str
    line: str


# Kinds that analyses make from trained dictionaries.
_MADE = {
    "meta": KindStyle("meta-SAE", META, "h", "-"),
    "stitched": KindStyle("stitched", "#882255", "P", "--"),
    "frankenstein": KindStyle("Frankenstein", "#666666", "*", "--"),
    "unknown": KindStyle("SAE", PINK, "X", "-."),
}
_SPARE = {
    "colour": ("#aa4499", "#44aa99", "#d1495b", "#5b7f95", "#c2a14d", "#7a5195", "#3f8f5a", "#b35900"),
    "marker": ("<", ">", "8", "d", "H"),
    "line": ("-.", ":", "--"),
}


def kind_style(kind: str) -> KindStyle:
    """Label, colour, marker and line of a kind of dictionary.

    A trained kind brings its own (`saekit.training.variants`). One that is registered nowhere keeps
    its name and gets a colour, marker and line by a hash of it: always the same ones, with a colour
    that no other kind has claimed.

    Examples
    --------
    >>> kind_style("relu").label
    'ReLU'
    """
    if kind in VARIANTS:
        variant = VARIANTS[kind]
        return KindStyle(variant.label, variant.colour, variant.marker, variant.line)
    if kind in _MADE:
        return _MADE[kind]
    taken = {variant.colour for variant in VARIANTS.values()} | {style.colour for style in _MADE.values()}
    number = int.from_bytes(hashlib.sha256(kind.encode()).digest()[:8])
    chosen = {}
    for what, options in _SPARE.items():
        free = [option for option in options if option not in taken]
        number, place = divmod(number, len(free))
        chosen[what] = free[place]
    return KindStyle(kind, **chosen)


def project_root() -> Path:
    """The folder with saekit's `pyproject.toml` above the working directory, else that directory.

    Examples
    --------
    >>> project_root() == Path.cwd()
    True
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").exists() and (folder / "saekit").is_dir():
            return folder
    return here


def figures_folder() -> Path:
    """Where figures are saved: the folder that `SAEKIT_FIGURES` names, else the project's `figures/`.

    Examples
    --------
    >>> figures_folder().name
    'figures'
    """
    return Path(os.environ.get("SAEKIT_FIGURES") or project_root() / "figures").expanduser()


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the style of every figure here, whatever the user's matplotlib settings are.

    Examples
    --------
    >>> with house_style():
    ...     figure = new_figure(3.0, 2.0)
    ...     axes = figure.add_subplot()
    """
    with matplotlib.style.context("default"), mpl.rc_context(STYLE):
        yield


def new_figure(width: float = FULL, height: float = 2.2) -> Figure:
    """Make an empty figure of this size in inches, outside pyplot; call inside `house_style`.

    Examples
    --------
    >>> with house_style():
    ...     figure = new_figure(3.0, 2.0)
    >>> figure.get_size_inches()
    array([3., 2.])
    """
    return Figure(figsize=(width, height), layout="constrained")


@dataclass(frozen=True, eq=False)
class Plot:
    """A figure with the numbers that it shows.

    Attributes
    ----------
    figure : Figure
        The figure, in house style.
    data : DataFrame
        Exactly the plotted numbers.
    caption : str
        For a paper; its first sentence is the title.
    alt : str
        Alternative text for a reader who cannot see the figure.
    made_from : mapping
        The dictionaries that the results are about, as JSON values (see `describe`).
    settings : mapping
        Parameters of the results that decide the numbers, such as theta.
    modules : tuple of str
        Modules that drew it; the one that makes this plot if left out.
    """

    figure: Figure
    data: pd.DataFrame
    caption: str
    alt: str
    made_from: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.modules:
            maker = sys._getframe(2).f_globals.get("__name__", "")  # around this method and `__init__`
            object.__setattr__(self, "modules", (maker,))
        # Place everything once: constrained layout would move things by rounding on each later draw.
        with house_style():
            self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    def save(
        self,
        name: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        folder: str | Path | None = None,
    ) -> list[Path]:
        """Write the bundle of files (see `save_figure`) and return their paths.

        Parameters
        ----------
        name : str
            File name without suffix, and LaTeX label.
        inputs, settings : mapping, optional
            Further inputs and settings (see `saekit.provenance_of`): added to those that the results
            name, and replacing entries of the same name.
        folder : str or Path, optional
            Where the files go; `figures_folder()` if left out.
        """
        return save_figure(
            self.figure,
            name,
            data=self.data,
            caption=self.caption,
            alt=self.alt,
            inputs={**self.made_from, **(inputs or {})},
            settings={**self.settings, **(settings or {})},
            modules=self.modules,
            folder=figures_folder() if folder is None else folder,
        )

    def __repr__(self) -> str:
        return f"Plot({self.caption.partition('. ')[0].rstrip('.')}; {len(self.data)} rows)"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        width, height = self.figure.get_size_inches()
        data = {"image/png": render(self.figure, "png", dpi=200), "text/plain": repr(self)}
        return data, {"image/png": {"width": round(width * 120), "height": round(height * 120)}}


def describe(*identities: Identity) -> dict[str, dict[str, Any]]:
    """What a figure records about the dictionaries of its results, as JSON values.

    Examples
    --------
    >>> record = describe(small.identity)
    >>> list(record), list(record["relu 8 (seed 0)"])
    (['relu 8 (seed 0)'], ['what', 'hook_point', 'hash'])
    """
    return {
        name: {"what": str(identity), "hook_point": identity.hook_point, "hash": identity.hash}
        for name, identity in zip(distinct_names(identities), identities, strict=True)
    }


def render(figure: Figure, kind: str, *, dpi: int = 300) -> bytes:
    """Return the figure as PDF, SVG or PNG: the same bytes on every call.

    Examples
    --------
    >>> with house_style():
    ...     figure = new_figure(3.0, 2.0)
    ...     line = figure.add_subplot().plot([0, 1])
    >>> render(figure, "png")[1:4]
    b'PNG'
    """
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=_METADATA[kind])
    return buffer.getvalue()


def save_figure(
    figure: Figure,
    name: str,
    *,
    data: pd.DataFrame,
    caption: str,
    alt: str,
    inputs: Mapping[str, Any],
    settings: Mapping[str, Any],
    folder: str | Path,
    modules: Sequence[str] = (),
) -> list[Path]:
    """Write a figure that can be cited: `name.{pdf,svg,png,csv,tex,json}`.

    Parameters
    ----------
    figure : Figure
        Drawn under `house_style`.
    name : str
        File name without suffix and the LaTeX label: letters, digits, `-` and `_`.
    data : DataFrame
        Exactly the plotted numbers. An index that has a name, or is not a plain count, becomes columns.
    caption, alt : str
        Plain text. The first sentence of the caption is the title.
    inputs : mapping
        The inputs of the figure (names and hashes; see `saekit.provenance_of`), as JSON values.
    settings : mapping
        Parameters that decide the numbers (theta, tokens, seeds), as JSON values.
    folder : str or Path
        Where the files go.
    modules : sequence of str
        Modules that drew it. The JSON has those of saekit, with a hash of their code and of all that they
        import (see `saekit.source.modules_behind`); for a figure drawn elsewhere, that of the house style.

    Returns
    -------
    list of Path
        The files, each written whole or not at all, the JSON last.

    Raises
    ------
    ValueError
        If the name is not usable, the data are empty or all missing, or caption or alt is blank.
    TypeError
        If inputs or settings hold a value that JSON cannot.

    Examples
    --------
    >>> with house_style():
    ...     figure = new_figure(3.0, 2.0)
    ...     line = figure.add_subplot().plot([0, 1])
    >>> data = pd.DataFrame({"y": [0, 1]})
    >>> text = {"caption": "A line. From 0 to 1.", "alt": "A line."}
    >>> files = save_figure(figure, "line", data=data, **text, inputs={}, settings={}, folder=".")
    >>> [file.name for file in files]
    ['line.pdf', 'line.svg', 'line.png', 'line.csv', 'line.tex', 'line.json']
    """
    check_name(name)
    for what, text in (("caption", caption), ("alt text", alt)):
        if not text.strip():
            raise ValueError(f"Figure {name} needs a {what}.")
    table = _as_table(data)
    if table.empty:
        raise ValueError(f"Figure {name} has no data: its table has shape {list(table.shape)}.")
    numbers = table.select_dtypes("number")
    if numbers.empty or numbers.isna().all(axis=None):
        raise ValueError(f"Figure {name} has no numbers to show: every value in its table is missing.")

    width, height = (float(side) for side in figure.get_size_inches())
    drawn_by = [name for name in modules if name.startswith(f"{__package__}.")] or [__name__]
    files = {kind: render(figure, kind) for kind in ("pdf", "svg", "png")}
    files["csv"] = table.to_csv(index=False, float_format="%.9g", lineterminator="\n").encode()
    files["tex"] = _tex(name, caption, alt, width).encode()
    manifest = {
        "format": FORMAT,
        "name": name,
        "caption": caption,
        "alt": alt,
        "size_in": [width, height],
        "settings": _json(settings, f"The settings of figure {name}"),
        "inputs": _json(inputs, f"The inputs of figure {name}"),
        "modules": drawn_by,
        "source": code_hash(modules_behind(drawn_by)),
        "versions": package_versions(),
        "files": {f"{name}.{suffix}": hashlib.sha256(files[suffix]).hexdigest() for suffix in SUFFIXES},
    }
    folder = Path(folder)
    paths = [folder / f"{name}.{suffix}" for suffix in (*SUFFIXES, "json")]
    for path, suffix in zip(paths, SUFFIXES, strict=False):
        write_bytes(path, files[suffix])
    write_json(paths[-1], manifest)
    return paths


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on.

    Examples
    --------
    >>> sorted(package_versions())[:3]
    ['matplotlib', 'numpy', 'pandas']
    """
    return {"python": platform.python_version(), **{package: version(package) for package in VERSIONED}}


# ---------------------------------------------------------------------- helpers


def check_name(name: str) -> None:
    """Refuse a name that is no file name or LaTeX label everywhere.

    Raises
    ------
    ValueError
        If it holds anything but letters, digits, `-` and `_`.

    Examples
    --------
    >>> check_name("02_max_cosine")
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"A figure's name may contain letters, digits, - and _; found {name!r}.")


def _as_table(data: pd.DataFrame) -> pd.DataFrame:
    """Turn an index that carries information into columns."""
    only_counts = data.index.nlevels == 1 and data.index.name is None and data.index.dtype.kind in "iu"
    return data if only_counts else data.reset_index()


def _json(value: Any, what: str) -> Any:
    """Check that the value is JSON data; numpy's numbers become plain ones."""

    def plain(item: Any) -> Any:
        if isinstance(item, np.generic):
            return item.item()
        raise TypeError(f"{what} must be JSON values, found {type(item).__name__}.")

    try:
        return json.loads(json.dumps(value, default=plain, allow_nan=False))
    except ValueError as error:
        raise ValueError(f"{what} must be finite JSON values: {error}.") from error


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "<": "$<$",
    ">": "$>$",
    "θ": r"$\theta$",
    "Δ": r"$\Delta$",
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "\u00d7": r"$\times$",
    "±": r"$\pm$",
    "\u2212": "$-$",
    "\u2013": "--",
    "“": "``",
    "”": "''",
    '"': "''",
    "…": r"\ldots{}",
    "·": r"$\cdot$",
}


def latex(text: str) -> str:
    r"""Plain text as LaTeX: special characters escaped, on one line.

    Examples
    --------
    >>> print(latex("50% at θ = 0.7"))
    50\% at $\theta$ = 0.7
    """
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _tex(name: str, caption: str, alt: str, width: float) -> str:
    comment = " ".join(alt.split())
    return (
        f"% Alt text: {comment}\n"
        "\\begin{figure}[t]\n"
        "  \\centering\n"
        f"  \\includegraphics[width={width:g}in]{{{name}.pdf}}\n"
        f"  \\caption{{{latex(caption)}}}\n"
        f"  \\label{{fig:{name}}}\n"
        "\\end{figure}\n"
    )
