"""The embedded default: one model, one corpus, two stores of activations, and their families.

Everything is made once, under `saekit.files.home()`, and found again by the settings that made it.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from saekit import corpora
from saekit.activations import ActivationStore, harvest
from saekit.corpora import TokenRows, embedded_corpus, pack, split
from saekit.dictionary import Dictionary
from saekit.families import Family
from saekit.files import hash_file, hash_json, home, read_json, write_bytes
from saekit.models import load_model
from saekit.training import TrainingConfig, train
from saekit.variants import BatchTopK, ReLU

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HOOK_POINT = "blocks.12.hook_resid_post"
CONTEXT_LENGTH = 128
TARGET_L0 = 36.0
K = 32
LEARNING_RATE = 2e-3  # at width 1152
MEMBERS = {
    "relu": ((576, 0), (1152, 0), (1152, 1), (2304, 0), (4608, 0)),
    "batchtopk": ((1152, 0), (2304, 0)),
}


@dataclass(frozen=True)
class Profile:
    """How much is harvested and trained. The held-out tokens are the same in every profile.

    Attributes
    ----------
    name : str
        `"default"`, whose outputs are committed, or `"test"`, which `make test` runs.
    train_tokens : int
        Positions harvested for training.
    held_out_tokens : int
        Positions harvested for evaluation, from documents that training never sees.
    steps : int
        Training steps of every dictionary, of `batch_size` tokens.
    """

    name: str
    train_tokens: int
    held_out_tokens: int
    steps: int
    batch_size: int = 512

    @property
    def figures_folder(self) -> Path:
        """Where notebooks write figures: the project's `figures/` in the default profile only."""
        if self.name == "default":
            return project_root() / "figures"
        return home() / f"figures-{self.name}"


PROFILES = {
    "default": Profile("default", train_tokens=2_000_000, held_out_tokens=100_000, steps=7_000),
    "test": Profile("test", train_tokens=250_000, held_out_tokens=100_000, steps=2_500),
}


def current_profile() -> Profile:
    """The profile that `SAEKIT_PROFILE` names, `"default"` if it is not set.

    Raises
    ------
    ValueError
        If there is no such profile.
    """
    name = os.environ.get("SAEKIT_PROFILE", "default")
    if name not in PROFILES:
        raise ValueError(f"SAEKIT_PROFILE must be one of {', '.join(PROFILES)}, found {name!r}.")
    return PROFILES[name]


def project_root() -> Path:
    """The folder with saekit's `pyproject.toml` above the working directory, else that directory."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").exists() and (folder / "saekit").is_dir():
            return folder
    return here


def embedded_rows(model: TransformerBridge, *, part: str, n_tokens: int) -> TokenRows:
    """Token rows of the embedded corpus.

    Parameters
    ----------
    model : TransformerBridge
        Its tokenizer packs the text.
    part : {"train", "held-out"}
        Which side of the split by documents.
    n_tokens : int
        Positions wanted.

    Raises
    ------
    ValueError
        If `part` is neither.
    """
    if part not in ("train", "held-out"):
        raise ValueError(f'part must be "train" or "held-out", found {part!r}.')
    train_documents, held_out_documents = split(embedded_corpus())
    documents = train_documents if part == "train" else held_out_documents
    return pack(
        documents,
        model.tokenizer,
        context_length=CONTEXT_LENGTH,
        n_tokens=n_tokens,
        name=f"embedded corpus, {part} documents",
    )


def embedded_store(
    part: str,
    *,
    n_tokens: int | None = None,
    dtype: torch.dtype | None = None,
    model: TransformerBridge | None = None,
    progress: bool = True,
) -> ActivationStore:
    """Activations of the embedded model on the embedded corpus, harvested on the first call.

    Parameters
    ----------
    part : {"train", "held-out"}
        Which side of the split by documents.
    n_tokens : int, optional
        Positions; the profile's number if left out.
    dtype : torch.dtype, optional
        Precision of the model and of the store; bfloat16 for training and float32 for held-out
        tokens if left out.
    model : TransformerBridge, optional
        The embedded model in that precision, if it is loaded already.
    progress : bool
        Show progress in tokens.

    Returns
    -------
    ActivationStore
        At `blocks.12.hook_resid_post`, in rows of 128 positions.
    """
    if dtype is None:
        dtype = torch.bfloat16 if part == "train" else torch.float32
    if n_tokens is None:
        profile = current_profile()
        n_tokens = profile.train_tokens if part == "train" else profile.held_out_tokens
    path = _store_folder(part, n_tokens, dtype)
    if (path / "manifest.json").exists() and read_json(path / "manifest.json")["complete"]:
        return ActivationStore.open(path, hook_point=HOOK_POINT)
    if model is None:
        model = load_model(dtype=dtype)
    rows = embedded_rows(model, part=part, n_tokens=n_tokens)
    return harvest(model, rows, HOOK_POINT, path=path, dtype=dtype, progress=progress)


def _store_folder(part: str, n_tokens: int, dtype: torch.dtype) -> Path:
    # The corpus is what its code makes of the packages: other code, another store.
    name = f"{part}-{n_tokens}-{str(dtype).removeprefix('torch.')}-{hash_file(corpora.__file__)[:8]}"
    return home() / "stores" / name


def embedded_configs(kind: str) -> list[TrainingConfig]:
    """The training settings of an embedded family in the current profile.

    Raises
    ------
    ValueError
        If there is no embedded family of this kind.
    """
    if kind not in MEMBERS:
        raise ValueError(f"There is no embedded family {kind!r}; there are {', '.join(MEMBERS)}.")
    profile = current_profile()
    variant = ReLU(target_l0=TARGET_L0) if kind == "relu" else BatchTopK(k=K)
    return [
        TrainingConfig(
            variant=variant,
            width=width,
            seed=seed,
            steps=profile.steps,
            batch_size=profile.batch_size,
            # Wider dictionaries need smaller steps: the square-root rule of Gao et al. (2024).
            lr=LEARNING_RATE * math.sqrt(1152 / width),
        )
        for width, seed in MEMBERS[kind]
    ]


def train_embedded_families(*, progress: bool = True) -> None:
    """Train what is missing of the embedded families, resuming where a run was stopped.

    Dictionaries are trained side by side, one thread each: this is faster than one after the
    other on all cores, and gives the same bits however many cores there are.
    """
    jobs = [
        (config, folder)
        for kind in MEMBERS
        for config, folder in zip(embedded_configs(kind), _member_folders(kind), strict=True)
        if not (folder / "dictionary.json").exists()
    ]
    if not jobs:
        return
    paths = (
        embedded_store("train", progress=progress).path,
        embedded_store("held-out", progress=progress).path,
    )
    jobs.sort(key=lambda job: -job[0].width)  # the longest first
    workers = ProcessPoolExecutor(
        min(len(jobs), os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn")
    )
    total = sum(config.steps * config.batch_size for config, _ in jobs)
    with (
        workers,
        tqdm(total=total, disable=not progress, unit="token", unit_scale=True, desc="training") as bar,
    ):
        waiting = {workers.submit(_train_member, config, folder, *paths): config for config, folder in jobs}
        for done in as_completed(waiting):
            bar.set_postfix_str(done.result())
            bar.update(waiting[done].steps * waiting[done].batch_size)


def _train_member(config: TrainingConfig, folder: Path, train_path: Path, held_out_path: Path) -> str:
    """Train one dictionary in this process and save it; its name."""
    torch.set_num_threads(1)
    checkpoint = folder / "checkpoint.safetensors"
    result = train(
        config,
        ActivationStore.open(train_path),
        held_out=ActivationStore.open(held_out_path),
        checkpoint=checkpoint,
        progress=False,
    )
    write_bytes(folder / "log.csv", result.log.to_csv(index=False).encode())
    result.dictionary.save(folder)
    checkpoint.unlink()
    return result.dictionary.name


def load_family(source: str | Path) -> Family:
    """A family of dictionaries.

    Parameters
    ----------
    source : str or Path
        `"relu"` or `"batchtopk"` for the embedded ones, else a folder of dictionaries that
        `Family.save` wrote.

    Raises
    ------
    FileNotFoundError
        If the embedded family has not been trained yet, or the folder holds no dictionaries.
    """
    if str(source) not in MEMBERS:
        return Family.load(source)
    folders = _member_folders(str(source))
    if any(not (folder / "dictionary.json").exists() for folder in folders):
        raise FileNotFoundError(
            f"The embedded {source} family has not been trained on this machine: run `saekit prepare`."
        )
    return Family(Dictionary.load(folder) for folder in folders)


def _member_folders(kind: str) -> list[Path]:
    profile = current_profile()
    data = _store_folder("train", profile.train_tokens, torch.bfloat16).name
    return [
        home() / "families" / kind / f"{c.width}-seed{c.seed}-{hash_json([c.describe(), data])[:12]}"
        for c in embedded_configs(kind)
    ]


def prepare(*, progress: bool = True) -> None:
    """Make what the notebooks read: the held-out store and the embedded families."""
    embedded_store("held-out", progress=progress)
    train_embedded_families(progress=progress)
