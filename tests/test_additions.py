"""A variant, a format, an analysis and a notebook, added with the edits that CONTRIBUTING states."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("saekit", "tests", "docs", "notebooks", "README.md", "CONTRIBUTING.md", "pyproject.toml")
COPIED += ("CITATION.cff", "mkdocs.yml", "Makefile", "CHANGELOG.md", "LICENSE", "figures")
HEAVY = shutil.ignore_patterns("__pycache__", "fixtures", "data", "*.pdf", "*.svg", "*.csv")

# Blocks of the docs are run elsewhere, and of the notebooks only the new one is of interest.
CHECKED = "not block and (not TestNotebook or dummy)"

VARIANT = '''
"""A dummy variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from saekit.sparse import SparseLatents
from saekit.training.variants.base import SAE
from saekit.training.variants.topk import TopK


@dataclass(frozen=True)
class Dummy(TopK):
    """Keeps the largest latents of each token."""

    kind: ClassVar[str] = "dummy"
    label: ClassVar[str] = "Dummy"
    colour: ClassVar[str] = "#123456"

    def select(self, sae: SAE, x: Tensor) -> SparseLatents:
        """The largest of each row."""
        return super().select(sae, x)
'''

FORMAT = '''
"""A dummy format: a file `weights.dummy.safetensors`."""

from __future__ import annotations

from pathlib import Path

from saekit.folding import Unfolded
from saekit.loading.formats.tensor_file import Format, TensorFile


def _recognises(path: Path) -> bool:
    return path.name.endswith(".dummy.safetensors")


def _read(path: Path) -> Unfolded:
    with TensorFile(path) as tensors:
        return Unfolded(
            W_enc=tensors.take("W_enc", "d_in", "d_sae"),
            b_enc=tensors.take("b_enc", "d_sae"),
            W_dec=tensors.take("W_dec", "d_sae", "d_in"),
            b_dec=tensors.take("b_dec", "d_in"),
        )


FORMAT = Format(name="dummy", files="a file *.dummy.safetensors", recognises=_recognises, read=_read)
'''

ANALYSIS = '''
"""A dummy analysis: how many latents there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from saekit.dictionary import Dictionary
from saekit.identity import Identity
from saekit.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class Dummy(Result):
    """What was counted."""

    _plot: ClassVar[str] = "dummy_plot"

    dictionary: Identity
    frame: pd.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """The number of latents."""
        return {"dictionary": str(self.dictionary), "latents": len(self.frame)}


def measure_dummy(dictionary: Dictionary) -> Dummy:
    """Count latents."""
    return Dummy(dictionary.identity, pd.DataFrame({"latent": range(dictionary.width)}))
'''

PLOT = '''
"""A dummy plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.figures import HALF, Plot, house_style, new_figure

if TYPE_CHECKING:
    from saekit.analysis.dummy import Dummy


def dummy_plot(result: Dummy) -> Plot:
    """Latents as a line."""
    with house_style():
        figure = new_figure(HALF, 2)
        figure.subplots().plot(result.frame["latent"])
    return Plot(figure, result.frame, caption="Latents.", alt="A line.")
'''

EXPLORER = '''
"""A dummy explorer."""

from __future__ import annotations

from ipywidgets import widgets

from saekit.analysis.dummy import Dummy
from saekit.widgets.base import Explorer, State


class DummyExplorer(Explorer):
    """Shows the number of latents."""

    def __init__(self, result: Dummy) -> None:
        self.result = result
        super().__init__(State())

    def _build(self) -> list[widgets.Widget]:
        self._text = self._panel()
        return [self._text]

    def _render(self) -> None:
        self._text.value = str(self.result.summary)

    def _parts(self) -> list[str]:
        return [str(self.result.summary)]
'''

CHECK = """
import torch, saekit
from saekit.series.reproduce import notebooks
from safetensors.torch import save_file

x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
config = saekit.TrainingConfig(saekit.Dummy(k=2), width=16, steps=20, batch_size=64, log_every=20)
trained = saekit.train(config, x, progress=False).dictionary
assert trained.kind == "dummy" and trained.k == 2
assert saekit.figures.kind_style("dummy").colour == "#123456"

eye = torch.eye(4)
save_file({"W_enc": eye, "b_enc": torch.zeros(4), "W_dec": eye.clone(), "b_dec": torch.zeros(4)},
          "sae.dummy.safetensors")
loaded = saekit.load_sae("sae.dummy.safetensors")
assert loaded.info["format"] == "dummy" and loaded.width == 4

result = saekit.measure_dummy(loaded)
assert result.summary["latents"] == 4
assert "dummy.pdf" in {path.name for path in result.plot().save("dummy", folder="figures")}
assert "latents" in saekit.DummyExplorer(result).static()
assert notebooks()[-1].stem.endswith("_dummy")
"""


class Copy:
    """A copy of the repository, and which of its files an addition edits."""

    def __init__(self, folder):
        self.folder, self.edited = folder, set()
        for name in COPIED:
            source, target = ROOT / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target, ignore=HEAVY) if source.is_dir() else shutil.copy(source, target)
        (folder / "saekit/series/data").symlink_to(ROOT / "saekit/series/data")

    def new(self, name, text):
        assert not (self.folder / name).exists()
        (self.folder / name).write_text(text.lstrip("\n"))

    def edit(self, name, pattern, replacement):
        """Replace the first match in a file that is there already."""
        path = self.folder / name
        text, n = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.MULTILINE)
        assert n == 1, (name, pattern)
        path.write_text(text)
        self.edited.add(name)


def add_variant(copy):
    copy.new("saekit/training/variants/dummy.py", VARIANT)
    init = "saekit/training/variants/__init__.py"
    copy.edit(
        init,
        r"^(from saekit\.training\.variants\.gated)",
        r"from saekit.training.variants.dummy import Dummy\n\1",
    )
    copy.edit(init, r"^(VARIANTS = Variants\(.*)\)", r"\1, Dummy)")
    copy.edit(init, r'"Gated", "JumpReLU"', '"Dummy", "Gated", "JumpReLU"')
    copy.edit("saekit/__init__.py", r'"Gated", "JumpReLU"', '"Dummy", "Gated", "JumpReLU"')
    copy.edit("saekit/__init__.py", r"^(Checks           )", r"                 Dummy\n\1")

    reference = "tests/training/variants/test_variant_common.py"
    copy.edit(reference, r'^    if kind == "topk":', '    if kind in ("topk", "dummy"):')
    copy.edit(reference, r'^        if kind == "topk"$', '        if kind in ("topk", "dummy")')


def add_format(copy):
    copy.new("saekit/loading/formats/dummy.py", FORMAT)
    init = "saekit/loading/formats/__init__.py"
    copy.edit(init, r"^(    gemma_scope,)", r"    dummy,\n\1")
    copy.edit(init, r"^(    gemma_scope\.FORMAT,)", r"    dummy.FORMAT,\n\1")
    copy.edit("docs/formats.md", r"^(\| sparsify \|)", r"| dummy | everything |\n\1")


def add_analysis(copy):
    copy.new("saekit/analysis/dummy.py", ANALYSIS)
    copy.new("saekit/plots/dummy.py", PLOT)
    copy.new("saekit/widgets/dummy_explorer.py", EXPLORER)
    for room, module, name in [
        ("analysis", "dummy", "measure_dummy"),
        ("plots", "dummy", "dummy_plot"),
        ("widgets", "dummy_explorer", "DummyExplorer"),
    ]:
        init = f"saekit/{room}/__init__.py"
        copy.edit(init, rf"^(from saekit\.{room}\.)", rf"from saekit.{room}.{module} import {name}\n\1")
        copy.edit(init, r"^__all__ = \[", f'__all__ = [\n    "{name}",')
    copy.edit("saekit/__init__.py", r'"adjacency_overlap",', '"adjacency_overlap",\n        "measure_dummy",')
    copy.edit("saekit/__init__.py", r'"LatentExplorer",', '"LatentExplorer",\n        "DummyExplorer",')
    copy.edit(
        "saekit/__init__.py",
        r"^Uniqueness       ",
        "Uniqueness       measure_dummy, DummyExplorer,\n                 ",
    )
    copy.edit("docs/api.md", r"^(::: saekit\.analysis\.nulls)", r"::: saekit.analysis.dummy\n\n\1")


def add_notebook(copy):
    series = sorted((copy.folder / "notebooks").glob("[0-9]*.ipynb"))
    number = f"{len(series):02d}"
    notebook = json.loads(series[-1].read_text())  # one that ran, since none runs here
    copy.new(f"notebooks/{number}_dummy.ipynb", json.dumps(notebook))
    copy.edit(
        "README.md",
        r"^(\| Would another)",
        rf"| What? | | | | [{number}](notebooks/{number}_dummy.ipynb) |\n\1",
    )


ADDITIONS = {"variant": add_variant, "format": add_format, "analysis": add_analysis, "notebook": add_notebook}


def stated(addition):
    """How many files CONTRIBUTING says that an addition edits."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return int(re.search(rf"^### An? {addition}\n\nEdits (\d+) files?\.", text, re.MULTILINE)[1])


@pytest.mark.slow
def test_additions_edit_the_files_that_contributing_states(tmp_path):
    copy = Copy(tmp_path)
    for addition, add in ADDITIONS.items():
        copy.edited.clear()
        add(copy)
        assert len(copy.edited) == stated(addition), (addition, sorted(copy.edited))
        recipe = (ROOT / "CONTRIBUTING.md").read_text().split(f" {addition}\n\nEdits")[1].split("###")[0]
        assert all(f"`{name}`" in recipe for name in copy.edited), addition
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "SAEKIT_HOME": str(tmp_path / "home")}
    checks = [
        "tests/test_layers.py",
        "tests/test_package.py",
        "tests/test_notebooks.py",
        "tests/test_results.py",
    ]
    checks += ["tests/training/variants/test_variant_common.py", "tests/test_docs.py"]
    commands = [
        [sys.executable, "-c", CHECK],
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *checks, "-k", CHECKED],
        [sys.executable, "-m", "ruff", "check", "--quiet", "--ignore", "I001,RUF022,E501", "saekit"],
    ]
    for command in commands:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
