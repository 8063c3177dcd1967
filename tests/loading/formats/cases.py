"""The recorded cases that `benchmarks/fixtures.py` made with the libraries themselves."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file

from saekit.convert import as_jumprelu
from saekit.dictionary import Dictionary
from saekit.loading.names import load_sae, open_sae

FIXTURES = Path(__file__).parent / "fixtures"
WEIGHTS = (
    "sae_weights.safetensors",
    "ae.pt",
    "sae.safetensors",
    "params.npz",
    "params.safetensors",
    "sae.pt",
    "SAE.pt",
)


@dataclass(frozen=True)
class Case:
    """Files of one SAE, and what its library computed with them."""

    name: str
    load: str
    refused: bool
    root: Path = FIXTURES

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path:
        """The files as the library saved them."""
        return self.root / self.name

    @property
    def source(self) -> Path:
        """What a reader is given."""
        return self.folder / self.load

    @property
    def weights(self) -> Path:
        """The file of tensors."""
        if self.source.is_file():
            return self.source
        return next(path for name in WEIGHTS if (path := self.source / name).is_file())

    @property
    def config(self) -> Path | None:
        """The file of settings, if the format has one."""
        folders = (self.weights.parent, self.weights.parent.parent)
        names = ("cfg.json", "config.json", "Config.json", f"{self.weights.stem}_cfg.json")
        found = (path for folder in folders for name in names if (path := folder / name).is_file())
        return next(found, None)

    def expected(self) -> dict:
        """`x`, and the library's own `latents`, `x_hat` and `decoder_norm`."""
        return load_file(self.folder / "expected.safetensors")

    def copy(self, folder: Path) -> "Case":
        """The same case elsewhere."""
        shutil.copytree(self.folder, folder / self.name)
        return replace(self, root=folder)


LISTED = json.loads((FIXTURES / "cases.json").read_text())
ALL = [Case(name, entry["load"], entry["refused"]) for name, entry in LISTED.items()]
# Of older versions of the libraries, as benchmarks/fixtures_older.py records them.
OLDER = [
    Case(name, entry["load"], entry["refused"])
    for name, entry in json.loads((FIXTURES / "older.json").read_text()).items()
]
CASES = [case for case in ALL if not case.refused]
REFUSED = [case for case in ALL if case.refused]


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
