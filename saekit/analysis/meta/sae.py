"""Meta-SAEs: a BatchTopK dictionary on the decoder directions of other dictionaries.

If a latent were atomic its direction would not be a sparse sum of fewer, more general ones; a
meta-SAE looks for these (Leask et al., ICLR 2025, section on meta-SAEs).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from saekit import settings
from saekit.agreement import check_agreement
from saekit.dictionary import Dictionary, origin_of
from saekit.family import Family
from saekit.files import hash_json, hash_tensors, writable_folder, write_tensors
from saekit.folding import with_directions
from saekit.identity import Identity
from saekit.results import Result
from saekit.selection import select_latent
from saekit.sparse import SparseLatents
from saekit.training.config import TrainingConfig
from saekit.training.trainer import train
from saekit.training.variants import BatchTopK

BLOCK = 4096  # rows that are converted to double precision at once

# ---------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Recipe:
    """How to train a meta-SAE, in units that carry over to dictionaries of other widths.

    Parameters
    ----------
    name : str
        For tables.
    lr : float
        Adam's learning rate, constant throughout.
    steps : int
        Optimiser steps. Kept as published at any width: what counts is the number of updates.
    batch : float
        Rows per step: a share of the rows where below 1, else their number (or all, if fewer).
    width : float
        Meta-latents per row, by default.
    aux_coefficient : float
        Weight of the auxiliary loss, see `saekit.training.variants.base.auxiliary_loss`.
    aux_share : float
        Dead meta-latents in it, as a share of the width.
    dead_after : int
        Silent batches after which a meta-latent counts as dead.

    Raises
    ------
    TypeError, ValueError
        If a setting is of another type or out of its range.
    """

    name: str
    lr: float
    steps: int
    batch: float
    width: float = 2304 / 49152
    aux_coefficient: float = 1 / 16
    aux_share: float = 512 / 2304
    dead_after: int = 100

    def __post_init__(self) -> None:
        checked = {
            "lr": settings.real("lr", self.lr, above=0),
            "steps": settings.whole("steps", self.steps),
            "batch": settings.real("batch", self.batch, above=0),
            "width": settings.real("width", self.width, above=0),
            "aux_coefficient": settings.real("aux_coefficient", self.aux_coefficient, at_least=0),
            "aux_share": settings.real("aux_share", self.aux_share, at_least=0, at_most=1),
            "dead_after": settings.whole("dead_after", self.dead_after),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def n_meta_latents(self, n_rows: int) -> int:
        """The default number of meta-latents for this number of rows."""
        return math.ceil(self.width * n_rows)

    def config(self, n_rows: int, *, width: int, k: int, seed: int) -> TrainingConfig:
        """The trainer's config for this number of rows to train on."""
        batch = max(1, round(self.batch * n_rows)) if self.batch < 1 else min(round(self.batch), n_rows)
        variant = BatchTopK(
            k=k,
            aux_coefficient=self.aux_coefficient,
            k_aux=max(1, round(self.aux_share * width)),
            dead_after=self.dead_after * batch,
        )
        return TrainingConfig(
            variant=variant,
            width=width,
            seed=seed,
            steps=self.steps,
            batch_size=batch,
            lr=self.lr,
            warmup=0,
            decay=0.0,
            log_every=self.steps,
        )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("iclr", lr=1e-4, steps=24_000, batch=4096 / 49152),
        Recipe("lesswrong", lr=1e-3, steps=2000, batch=16384 / 49152),
        Recipe("saebench", lr=5e-4, steps=1500, batch=1024, width=0.25),
    )
}
"""The published recipes.

`"iclr"`: the text of Leask et al. (ICLR 2025). `"lesswrong"`: the LessWrong post "Showing SAE Latents
Are Not Atomic Using Meta-SAEs", which preceded it, and its released weights. `"saebench"`: the
`meta_structure` evaluation of SAEBench; its width ratio is 1/4 and not 1/21, so its numbers do not
compare with theirs.

Where a setting is not published, or the trainer does not have it, the nearest one stands in. The
auxiliary loss and `dead_after` are known for `"lesswrong"` alone, and the others take them from it.
Adam averages with rates 0.9 and 0.99 (as `"lesswrong"`; SAEBench has 0.999). SAEBench draws batches
with replacement, the trainer without, epoch by epoch.
"""


# ---------------------------------------------------------------------- result


@dataclass(frozen=True, eq=False, repr=False)
class MetaSAE(Result):
    """A meta-SAE with the dictionaries that it decomposes.

    Attributes
    ----------
    dictionary : Dictionary
        The meta-dictionary: decoder directions in, their reconstructions out. Its latents are the
        meta-latents, with the threshold that training saved.
    sources : tuple of Dictionary
        The base dictionaries, whose latents it decomposes.
    held_out : Tensor
        Rows that were left out of training, Boolean `[n_rows]`.
    """

    dictionary: Dictionary
    sources: tuple[Dictionary, ...]
    held_out: Tensor

    # ------------------------------------------------------------------ what it is

    @cached_property
    def bases(self) -> tuple[Identity, ...]:
        """The base dictionaries' identities, as they were when this was made."""
        return tuple(source.identity for source in self.sources)

    @cached_property
    def identity(self) -> Identity:
        """The meta-dictionary's identity when this was made, under this meta-SAE's name."""
        return replace(self.dictionary.identity, name=self.name)

    def __post_init__(self) -> None:
        _ = self.bases, self.identity  # kept from now on, so that a later change of tensors shows

    def _require_unchanged(self) -> None:
        self.identity.require(self.dictionary.identity, "The meta-dictionary")
        for identity, source in zip(self.bases, self.sources, strict=True):
            identity.require(source.identity, "A base of the meta-SAE")

    def source(self, base: int = -1) -> Dictionary:
        """The base dictionary at a place in `bases`; the last by default.

        Raises
        ------
        TypeError, IndexError
            If there is no such base.
        ValueError
            If the tensors of a base, or of the meta-dictionary, have changed since this was made.
        """
        place = self.place(base)
        self._require_unchanged()
        return self.sources[place]

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the base dictionaries."""
        return tuple(source.width for source in self.sources)

    @property
    def width(self) -> int:
        """Number of meta-latents."""
        return self.dictionary.width

    @property
    def k(self) -> int:
        """Meta-latents per row in training, on average over a batch."""
        return int(self.dictionary.info["training"]["variant"]["k"])

    @property
    def seed(self) -> int:
        """Seed of the initialisation, the order of rows and the choice of held-out rows."""
        return int(self.dictionary.info["seed"])

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        return str(self.dictionary.info["meta"]["recipe"]["name"])

    @property
    def name(self) -> str:
        """A short name for tables and legends, such as `"meta 216 (k 4) of relu 4608 (seed 0)"`."""
        first, last = self.sources[0].name, self.sources[-1].name
        of = first if len(self.sources) == 1 else f"{first} to {last}"
        return f"meta {self.width} (k {self.k}) of {of}"

    def __repr__(self) -> str:
        return f"MetaSAE({self.name}, recipe={self.recipe!r})"

    # ------------------------------------------------------------------ rows

    @cached_property
    def rows(self) -> Tensor:
        """Decoder directions of the bases, one after the other, unit norm, `[n_rows, d_in]`."""
        self._require_unchanged()
        return _rows(self.sources)

    @cached_property
    def base(self) -> Tensor:
        """Place in `bases` of each row's dictionary, int64 `[n_rows]`."""
        return torch.arange(len(self.widths)).repeat_interleave(torch.tensor(self.widths))

    @cached_property
    def latent(self) -> Tensor:
        """Each row's latent in its dictionary, int64 `[n_rows]`."""
        return torch.cat([torch.arange(width) for width in self.widths])

    @cached_property
    def decomposition(self) -> SparseLatents:
        """Active meta-latents of every row, at the saved threshold: `[n_rows]` rows."""
        self._require_unchanged()
        return self.dictionary.encode_sparse(self.rows)

    def reconstruct(self) -> Tensor:
        """Every row rebuilt from its meta-latents, `[n_rows, d_in]`."""
        self._require_unchanged()
        return self.dictionary.decode(self.decomposition)

    def rebuilt(self, base: int = -1) -> Dictionary:
        """A base dictionary whose decoder rows are their reconstructions, its encoder unchanged.

        The reconstructions' norms are folded into encoder and threshold, as in every `Dictionary`:
        the same latents are active, with activations rescaled.

        Raises
        ------
        IndexError
            If there is no such base.
        """
        place = self.place(base)
        source = self.source(place)
        rows = self.reconstruct()[self.base == place]
        return with_directions(source, rows, kind=f"rebuilt {source.kind}")

    # ------------------------------------------------------------------ numbers

    @property
    def frame(self) -> pd.DataFrame:
        """One row per meta-latent.

        `meta_latent`, `n_latents` (base latents that it is active on) and `share` of all rows,
        `mean_activation` (over these) and `max_activation` (0 where it is dead), `dead`.
        """
        latents = self.decomposition
        n_latents = torch.bincount(latents.indices, minlength=self.width)
        total = torch.zeros(self.width, dtype=torch.float64).index_add_(
            0, latents.indices, latents.values.double()
        )
        greatest = torch.zeros(self.width).scatter_reduce(0, latents.indices, latents.values, "amax")
        return pd.DataFrame(
            {
                "meta_latent": range(self.width),
                "n_latents": n_latents.numpy(),
                "share": n_latents.numpy() / len(self.rows),
                "mean_activation": (total / n_latents.clamp(min=1)).numpy(),
                "max_activation": greatest.numpy(),
                "dead": (n_latents == 0).numpy(),
            }
        )

    @property
    def summary(self) -> dict[str, Any]:
        """The headline numbers.

        `explained_variance` (about the mean row, over all rows, as published),
        `explained_variance_uncentred`, `explained_variance_held_out` (about their own mean; NaN
        if no rows were held out), `mse` (summed over dimensions, averaged over rows), `l0` (active
        meta-latents per row at the saved threshold) and `l0_held_out`, `dead_fraction` (meta-latents
        active on no row), `max_share` (of rows, for the most frequent meta-latent), with `name`,
        `width`, `k`, `recipe`, `seed` and `n_rows`.
        """
        reconstruction, counts = self.reconstruct(), self.decomposition.counts.double()
        held_out = self.held_out
        n_latents = torch.bincount(self.decomposition.indices, minlength=self.width)
        some = bool(held_out.any())
        return {
            "name": self.name,
            "width": self.width,
            "k": self.k,
            "recipe": self.recipe,
            "seed": self.seed,
            "n_rows": len(self.rows),
            "explained_variance": explained_variance(self.rows, reconstruction),
            "explained_variance_uncentred": explained_variance(self.rows, reconstruction, centred=False),
            "explained_variance_held_out": explained_variance(self.rows[held_out], reconstruction[held_out])
            if some
            else math.nan,
            "mse": float((self.rows - reconstruction).double().square().sum(1).mean()),
            "l0": float(counts.mean()),
            "l0_held_out": float(counts[held_out].mean()) if some else math.nan,
            "dead_fraction": float((n_latents == 0).double().mean()),
            "max_share": float(n_latents.max()) / len(self.rows),
        }

    # ------------------------------------------------------------------ looking up

    def of(self, latent: int, base: int = -1) -> pd.DataFrame:
        """A base latent's decomposition: `meta_latent`, `activation`, greatest first.

        Parameters
        ----------
        latent : int
            Number of a latent of the base dictionary.
        base : int
            Place of the dictionary in `bases`; the last by default.

        Raises
        ------
        TypeError, IndexError
            If there is no such base or latent.
        """
        place = self.place(base)
        latent = select_latent(latent, self.widths[place])
        row = sum(self.widths[:place]) + latent
        start, end = self.decomposition.offsets[row : row + 2].tolist()
        frame = pd.DataFrame(
            {
                "meta_latent": self.decomposition.indices[start:end].numpy(),
                "activation": self.decomposition.values[start:end].numpy(),
            }
        )
        return frame.sort_values("activation", ascending=False, kind="stable", ignore_index=True)

    def members(self, meta_latent: int, n: int = 10, base: int | None = None) -> pd.DataFrame:
        """The base latents that a meta-latent is most active on, greatest first.

        Parameters
        ----------
        meta_latent : int
            The meta-latent.
        n : int
            Greatest number of latents.
        base : int, optional
            Place in `bases` of the only dictionary to look in.

        Returns
        -------
        DataFrame
            `base` (place in `bases`), `width` (of that dictionary), `latent`, `activation`.

        Raises
        ------
        TypeError, IndexError
            If there is no such meta-latent or base.
        """
        meta_latent = select_latent(meta_latent, self.width, what="meta-latent")
        n, place = settings.whole("n", n), None if base is None else self.place(base)
        by_meta_latent = self._by_meta_latent
        start, end = by_meta_latent.offsets[meta_latent : meta_latent + 2].tolist()
        rows = by_meta_latent.indices[start:end]
        frame = pd.DataFrame(
            {
                "base": self.base[rows].numpy(),
                "width": torch.tensor(self.widths)[self.base[rows]].numpy(),
                "latent": self.latent[rows].numpy(),
                "activation": by_meta_latent.values[start:end].numpy(),
            }
        )
        if place is not None:
            frame = frame[frame["base"] == place]
        return frame.sort_values("activation", ascending=False, kind="stable", ignore_index=True).head(n)

    @cached_property
    def _by_meta_latent(self) -> SparseLatents:
        return self.decomposition.transpose()

    def place(self, base: int) -> int:
        """A place in `bases`, given from the front (0 is the first) or the back (-1 is the last).

        Raises
        ------
        TypeError, IndexError
            If there is no such base.
        """
        base = settings.whole("base", base, at_least=None)
        if not -len(self.sources) <= base < len(self.sources):
            raise IndexError(f"{self.name} has no base {base}; it has {len(self.sources)}.")
        return base % len(self.sources)

    # ------------------------------------------------------------------ files

    def save(self, folder: str | Path) -> Path:
        """Write the meta-dictionary and the choice of held-out rows; the bases are only named."""
        folder = Path(folder)
        write_tensors(folder / "held_out.safetensors", {"held_out": self.held_out})
        return self.dictionary.save(folder)

    @classmethod
    def load(cls, folder: str | Path, source: Dictionary | Family | Sequence[Dictionary]) -> MetaSAE:
        """Read a saved meta-SAE, given the dictionaries that it was trained on.

        Raises
        ------
        FileNotFoundError
            If the folder holds no meta-SAE.
        ValueError
            If a file is damaged, or the meta-SAE was trained on other dictionaries.
        """
        folder, sources = Path(folder), _sources(source)
        dictionary, file = Dictionary.load(folder), folder / "held_out.safetensors"
        if "meta" not in dictionary.info or not file.exists():
            raise FileNotFoundError(f"{folder} holds {dictionary.name}, which is not a meta-SAE.")
        try:
            held_out = load_file(file)["held_out"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{file} is damaged: {error}.") from error
        if hash_tensors({"held_out": held_out}) != dictionary.info["meta"]["held_out"]:
            raise ValueError(f"{file} is damaged: it does not match the hash in dictionary.json.")
        here, there = _hashes(sources), dictionary.info["meta"]["sources"]
        if here != there:
            raise ValueError(
                f"{folder} holds a meta-SAE of other dictionaries than {', '.join(s.name for s in sources)}."
            )
        return cls(dictionary, sources, held_out)


def explained_variance(rows: Tensor, reconstruction: Tensor, *, centred: bool = True) -> float:
    """Share of the rows' variance that a reconstruction explains, in float64.

    `1 - sum ||w - w_hat||^2 / sum ||w - m||^2`, where `m` is the mean of these rows, or 0 if
    not `centred`.

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite, or the rows do not vary.

    Examples
    --------
    >>> rows = torch.tensor([[1.0], [3.0]])
    >>> explained_variance(rows, rows), explained_variance(rows, torch.tensor([[2.0], [2.0]]))
    (1.0, 0.0)
    """
    if rows.shape != reconstruction.shape:
        raise ValueError(
            f"The reconstruction must be {list(rows.shape)} as the rows, found {list(reconstruction.shape)}."
        )
    mean = rows.mean(0, dtype=torch.float64) if centred else 0.0
    total = error = 0.0
    for part, made in zip(rows.split(BLOCK), reconstruction.split(BLOCK), strict=True):
        total += float((part.double() - mean).square().sum())
        error += float((part.double() - made.double()).square().sum())
    if not math.isfinite(total + error):
        raise ValueError("Explained variance is not defined: rows or reconstruction are not finite.")
    if not total > 0:
        raise ValueError("Explained variance is not defined: the rows do not vary.")
    return 1 - error / total


# ---------------------------------------------------------------------- training


def meta_sae(
    source: Dictionary | Family | Sequence[Dictionary],
    *,
    width: int | None = None,
    k: int = 4,
    recipe: str | Recipe = "lesswrong",
    seed: int = 0,
    held_out_share: float = 0.0,
    folder: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
    allow_mismatch: bool = False,
) -> MetaSAE:
    """Train a meta-SAE: a BatchTopK dictionary on decoder directions.

    Parameters
    ----------
    source : Dictionary, Family or sequence of Dictionary
        The dictionaries whose decoder directions to decompose; of a family, the lowest seed of each width.
    width : int, optional
        Number of meta-latents; by default the recipe's share of the rows (1/21 as published).
    k : int
        Meta-latents per row, on average over a batch.
    recipe : str or Recipe
        One of `RECIPES`, or a recipe of your own.
    seed : int
        Seed of the initialisation, the order of rows and the choice of held-out rows.
    held_out_share : float
        Share of rows to leave out of training, at random. Those of a family have near copies at
        other widths, which are not left out with them.
    folder : path, optional
        Folder that keeps meta-SAEs, each in its own subfolder: one trained before on the same
        dictionaries with the same settings is read instead of trained again, and an interrupted
        training run resumes from its checkpoint.
    device : str or torch.device
        Where to train.
    progress : bool
        Show the trainer's progress bar (its tokens are rows here).
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    TypeError, ValueError
        If a setting is out of its range, the dictionaries do not belong together, or there are
        none.
    OSError
        If nothing can be written to the folder; raised before training.

    Notes
    -----
    Leask et al. (ICLR 2025), section on meta-SAEs; `RECIPES` lists the published settings.
    `Dictionary` and trainer are those of any SAE. The trainer centres the rows and scales them by
    some factor s, which the published recipes do not. Adam does not see the scale of a gradient, so
    weights take the same steps; biases, which are in the units of the rows, take steps s times
    smaller than they would, and do not need larger ones, since the mean that the decoder's bias would
    have to learn is subtracted beforehand. Unlike the published one, the encoder has a bias.

    Examples
    --------
    >>> quick = Recipe("quick", lr=1e-3, steps=20, batch=1.0, width=0.5)
    >>> meta_sae(dictionary, k=2, recipe=quick).name
    'meta 4 (k 2) of relu 8 (seed 0)'
    """
    recipe, seed = _recipe(recipe), settings.whole("seed", seed, at_least=0)
    width = None if width is None else settings.whole("width", width)
    k = settings.whole("k", k)
    held_out_share = settings.real("held_out_share", held_out_share, at_least=0)
    if held_out_share >= 1:
        raise ValueError(f"held_out_share must be at least 0 and below 1, found {held_out_share:g}.")
    device = settings.device(device)
    sources = _sources(source)
    check_agreement(dictionaries=sources, allow_mismatch=allow_mismatch)
    rows = _rows(sources)
    held_out = _held_out(len(rows), held_out_share, seed)
    width = recipe.n_meta_latents(len(rows)) if width is None else width
    if k > width:
        raise ValueError(f"k must be at most the width {width}, found {k}.")
    config = recipe.config(int((~held_out).sum()), width=width, k=k, seed=seed)
    meta = {
        "recipe": asdict(recipe),
        "sources": _hashes(sources),
        "held_out": hash_tensors({"held_out": held_out}),
    }
    kept = checkpoint = None
    if folder is not None:
        identity = hash_json([meta, config.describe()])[:12]
        kept = Path(folder) / f"{recipe.name}-{width}-k{k}-seed{seed}-{identity}"
        if (kept / "dictionary.json").exists():
            return MetaSAE.load(kept, sources)
        checkpoint = writable_folder(kept) / "checkpoint.safetensors"
    trained = train(
        config, rows[~held_out], device=device, checkpoint=checkpoint, progress=progress
    ).dictionary
    origin = origin_of(*(source.info for source in sources))
    dictionary = replace(trained, info={**trained.info, **origin, "kind": "meta", "meta": meta})
    result = MetaSAE(dictionary, sources, held_out)
    if kept is not None and checkpoint is not None:
        result.save(kept)
        for file in kept.glob(f"{checkpoint.stem}.*"):
            file.unlink()
    return result


@dataclass(frozen=True, eq=False, repr=False)
class MetaSweep(Result):
    """Meta-SAEs of several widths and sparsities.

    Attributes
    ----------
    bases : tuple of Identity
        The base dictionaries.
    frame : DataFrame
        One row per meta-SAE with its summary, ordered by width and then by k.
    """

    bases: tuple[Identity, ...]
    frame: pd.DataFrame
    _plot: ClassVar[str] = "meta_sweep"

    @property
    def summary(self) -> dict[str, Any]:
        """`n_meta_saes`, and of the one that explains most `width`, `k`, `explained_variance`."""
        best = self.frame.loc[self.frame["explained_variance"].idxmax()]
        return {
            "n_meta_saes": len(self.frame),
            "width": int(best["width"]),
            "k": int(best["k"]),
            "explained_variance": float(best["explained_variance"]),
        }


def meta_sweep(
    source: Dictionary | Family | Sequence[Dictionary],
    widths: Iterable[int],
    ks: Iterable[int],
    *,
    progress: bool = False,
    **options: Any,
) -> MetaSweep:
    """Meta-SAEs of several widths and sparsities.

    Parameters
    ----------
    source : Dictionary, Family or sequence of Dictionary
        As for `meta_sae`.
    widths, ks : iterable of int
        Every width is trained with every k.
    progress : bool
        Show a progress bar in meta-SAEs.
    **options
        Options of `meta_sae`: recipe, seed, held_out_share, folder, device, allow_mismatch.

    Raises
    ------
    TypeError, ValueError, OSError
        As `meta_sae`; also if there are no widths or no ks, or a k is greater than a width. Raised
        before any training.

    Examples
    --------
    >>> quick = Recipe("quick", lr=1e-3, steps=10, batch=1.0)
    >>> meta_sweep(dictionary, [4, 6], [1, 2], recipe=quick).frame[["width", "k"]]
       width  k
    0      4  1
    1      4  2
    2      6  1
    3      6  2
    """
    ks = [settings.whole("k", k) for k in ks]
    grid = [(settings.whole("width", width), k) for width in widths for k in ks]
    if not grid:
        raise ValueError("A sweep needs at least one width and one k.")
    for width, k in grid:
        if k > width:
            raise ValueError(f"k must be at most the width {width}, found {k}.")
    sources = _sources(source)
    if options.get("folder") is not None:
        writable_folder(options["folder"])
    summaries = [
        meta_sae(sources, width=width, k=k, **options).summary
        for width, k in tqdm(grid, disable=not progress, unit="meta-SAE", desc="sweep")
    ]
    return MetaSweep(tuple(source.identity for source in sources), pd.DataFrame(summaries))


def _recipe(recipe: str | Recipe) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    return RECIPES[settings.choice("recipe", recipe, RECIPES)]


def _sources(source: Dictionary | Family | Sequence[Dictionary]) -> tuple[Dictionary, ...]:
    """The dictionaries to decompose: of a family, the lowest seed of each width."""
    if isinstance(source, Dictionary):
        return (source,)
    sources = tuple(source[w] for w in source.widths) if isinstance(source, Family) else tuple(source)
    if not sources:
        raise ValueError("A meta-SAE needs at least one dictionary.")
    return sources


def _rows(sources: Iterable[Dictionary]) -> Tensor:
    return torch.cat([source.W_dec.cpu() for source in sources])


def _hashes(sources: Iterable[Dictionary]) -> list[str]:
    return [source.content_hash for source in sources]


def _held_out(n_rows: int, share: float, seed: int) -> Tensor:
    """A random share of the rows, Boolean `[n_rows]`."""
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    held_out = torch.zeros(n_rows, dtype=torch.bool)
    held_out[order[: round(share * n_rows)]] = True
    return held_out
