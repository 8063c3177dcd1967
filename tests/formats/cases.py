"""The recorded cases that `benchmarks/fixtures.py` made with the libraries themselves."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file

from saekit.analysis import as_jumprelu
from saekit.dictionary import Dictionary
from saekit.formats import load_sae, open_sae

FIXTURES = Path(__file__).parent / "fixtures"


@dataclass(frozen=True)
class Case:
    """Files of one SAE, and what its library computed with them."""

    name: str
    library: str
    refused: str | None
    _source: str
    _weights: str
    _config: str | None
    root: Path = FIXTURES

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path:
        """The files as the library saved them."""
        return self.root / self.name / "sae"

    @property
    def source(self) -> Path:
        """What a reader is given."""
        return self.folder / self._source

    @property
    def weights(self) -> Path:
        """The file of tensors."""
        return self.folder / self._weights

    @property
    def config(self) -> Path | None:
        """The file of settings, if the format has one."""
        return None if self._config is None else self.folder / self._config

    def expected(self) -> dict:
        """`x`, and the library's own `latents`, `x_hat` and `decoder_norm`."""
        return load_file(self.root / self.name / "expected.safetensors")

    def copy(self, folder: Path) -> "Case":
        """The same case elsewhere."""
        shutil.copytree(self.root / self.name, folder / self.name)
        return replace(self, root=folder)


INDEX = json.loads((FIXTURES / "index.json").read_text())
ALL = [Case(e["case"], e["library"], e["refused"], e["source"], e["weights"], e["config"]) for e in INDEX]
CASES = [case for case in ALL if case.refused is None]
REFUSED = [case for case in ALL if case.refused is not None]


def named(name: str) -> Case:
    """The case of this name."""
    return next(case for case in ALL if case.name == name)


def load(case: Case) -> Dictionary:
    """The case as a dictionary; a BatchTopK SAE without a threshold gets one from the case's activations."""
    if open_sae(case.source).batch_k is None:
        return load_sae(case.source)
    x = case.expected()["x"]
    sae = open_sae(case.source)
    return as_jumprelu(sae, x, constant_scale=False, batch_size=len(x)).dictionary
