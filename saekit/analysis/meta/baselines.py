"""Baselines and nulls for the variance of decoder directions that a meta-SAE explains.

The variance of a dictionary's directions that a meta-SAE explains means something only beside the
variance that other dictionaries and encoders explain with as many terms, and beside the variance that
it would explain of rows without structure. The first three dictionaries of the table are those of the
LessWrong post "Showing SAE Latents Are Not Atomic Using Meta-SAEs" (Bussmann, Pearce, Leask et al.,
2024); the others are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor
from tqdm.auto import tqdm

from saekit import settings
from saekit.agreement import check_agreement
from saekit.analysis.meta.sae import MetaSAE, Recipe, explained_variance
from saekit.analysis.nulls import ROW_NULLS, null_rows, random_directions
from saekit.analysis.similarity import cosines
from saekit.cache import cached
from saekit.dictionary import Dictionary
from saekit.files import hash_tensors
from saekit.identity import Identity, distinct_names, require_distinct
from saekit.results import Result
from saekit.sparse import SparseLatents, affine
from saekit.training.config import TrainingConfig
from saekit.training.trainer import train
from saekit.training.variants import BatchTopK
from saekit.training.variants.base import SAE
from saekit.wording import counted

CHUNK_ELEMENTS = 1 << 24  # inner products held at once: 64 MB


# ---------------------------------------------------------------------- the table


@dataclass(frozen=True, eq=False, repr=False)
class MetaBaselines(Result):
    """A meta-SAE beside its baselines and nulls.

    Attributes
    ----------
    meta : Identity
        The meta-SAE.
    terms : int
        Its k. Every baseline has the same, unless the frame gives another number.
    dictionaries : mapping
        `Identity` of each variant that is a dictionary, by its name in the frame.
    frame : DataFrame
        One row per variant, the meta-SAE first:

        - `variant`, the dictionary: the meta-SAE's own, `nearest small latents`,
          `random directions`, `k-means`, `PCA`, a smaller dictionary by name, or a null
        - `encoder`, which finds the coefficients: `own` (trained with the dictionary), `kept` (that
          of the meta-SAE), `refit` (trained for this dictionary), `matching pursuit`,
          `nearest centroid`, `projection`
        - `signed`: whether coefficients may be negative
        - `null`: whether the rows themselves are replaced
        - `dictionary_width`, `terms` (asked for), `n_terms` (used, on average over all rows)
        - `explained_variance` (about the mean row), `explained_variance_uncentred`,
          `explained_variance_held_out` (on the rows that the meta-SAE did not see, nor anything
          else that learns from rows; NaN if there are none)
        - `difference`: `explained_variance` minus the meta-SAE's
        - `note`
    """

    meta: Identity
    terms: int
    dictionaries: dict[str, Identity]
    frame: pd.DataFrame
    _plot: ClassVar[str] = "meta_baselines"

    @property
    def summary(self) -> dict[str, Any]:
        """Which variant explains most with the same number of terms.

        `meta`, `terms`, `explained_variance` of the meta-SAE; the best baseline with non-negative
        coefficients, with signed ones, and of dictionaries no wider than the meta-SAE
        (`best_non_negative`, `best_signed`, `best_no_wider`, and each with `_explained_variance`);
        `n_baselines` at as many terms and `n_beaten` of them; `nulls`, the explained variance of each
        by name. Matching pursuit on the meta-dictionary itself does not count as a baseline:
        `own_pursuit` and `own_pursuit_signed` are its explained variance. Where rows were held out,
        the same for these, under `held_out`.
        """
        result = {"meta": str(self.meta), "terms": self.terms, **self._compare("explained_variance")}
        if self.frame["explained_variance_held_out"].notna().all():
            result["held_out"] = self._compare("explained_variance_held_out")
        return result

    def _compare(self, measure: str) -> dict[str, Any]:
        frame, explained = self.frame, self.frame[measure]
        own, same = frame.iloc[0], frame["variant"] == "meta-SAE"
        pursued, null = same & (frame["encoder"] != "own"), frame["null"]
        baseline = ~same & ~null & (frame["terms"] == self.terms)
        result: dict[str, Any] = {
            "explained_variance": float(own[measure]),
            "own_pursuit": float(explained[pursued & ~frame["signed"]].iloc[0]),
            "own_pursuit_signed": float(explained[pursued & frame["signed"]].iloc[0]),
        }
        for name, among in (
            ("best_non_negative", ~frame["signed"]),
            ("best_signed", frame["signed"]),
            ("best_no_wider", frame["dictionary_width"] <= own["dictionary_width"]),
        ):
            best = frame.loc[explained[baseline & among].idxmax()]
            result[name] = f"{best['variant']}, {best['encoder']}"
            result[f"{name}_explained_variance"] = float(best[measure])
        return result | {
            "n_baselines": int(baseline.sum()),
            "n_beaten": int((explained[baseline] < own[measure]).sum()),
            "nulls": dict(zip(frame["variant"][null], map(float, explained[null]), strict=True)),
        }


@cached
def meta_baselines(
    meta: MetaSAE,
    smaller: Sequence[Dictionary],
    plain: Dictionary | None = None,
    *,
    refit_steps: int | None = None,
    seed: int = 0,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> MetaBaselines:
    """Explained variance of a meta-SAE's rows by other dictionaries and encoders.

    Parameters
    ----------
    meta : MetaSAE
        The meta-SAE. Its `k` is the number of terms for all, its width the number of random
        directions, centroids and principal components.
    smaller : sequence of Dictionary
        Dictionaries on the same activations, narrower than those decomposed.
    plain : Dictionary, optional
        An SAE on the same activations of about the meta-SAE's width.
    refit_steps : int, optional
        Steps to refit an encoder for; by default as many as the meta-SAE was trained for.
    seed : int
        Seed of random directions, k-means, refits and nulls.
    progress : bool
        Show a progress bar in variants.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If there is no smaller dictionary, one does not belong together with those decomposed, is
        among them, is given twice or has fewer latents than terms, or a setting is out of its range.

    Notes
    -----
    Every dictionary adds its terms to an offset: the meta-dictionary to its own bias (also where it
    keeps its encoder but not its directions), all others to the mean of the rows. Matching pursuit
    searches unit directions greedily: the best terms can only do better. Directions of smaller
    dictionaries and random directions never saw the rows; anything that learns from rows (k-means,
    principal components, refits) sees those that the meta-SAE was trained on.

    Examples
    --------
    >>> from saekit.analysis.meta.sae import Recipe, meta_sae
    >>> quick = Recipe("quick", lr=1e-3, steps=20, batch=1.0)
    >>> result = meta_baselines(meta_sae(large, width=6, k=2, recipe=quick), [small])
    >>> result.frame["variant"].unique().tolist()
    ['meta-SAE', 'nearest small latents', 'random directions', 'relu 8 (seed 0)', 'k-means', 'PCA',
     'columns permuted', 'Gaussian']
    """
    seed = settings.whole("seed", seed, at_least=0)
    refit_steps = None if refit_steps is None else settings.whole("refit_steps", refit_steps)
    others = [*smaller, *([] if plain is None else [plain])]
    if not smaller:
        raise ValueError("The baselines need at least one smaller dictionary.")
    check_agreement(dictionaries=[*meta.sources, *others], allow_mismatch=allow_mismatch)
    require_distinct((other.identity for other in others), "The comparison of baselines")
    for other in others:
        if other.identity in meta.bases:
            raise ValueError(f"{other.name} is decomposed by {meta.name}: it would explain itself.")
        if other.width < meta.k:
            raise ValueError(f"{other.name} has {other.width} latents, but {meta.k} terms are needed.")
    if meta.k > meta.dictionary.d_in:
        raise ValueError(f"{meta.k} terms are more than the {meta.dictionary.d_in} principal components.")
    names = distinct_names([other.identity for other in others])
    n_variants = 3 + 2 * 4 + 2 * len(others) + 5 + len(ROW_NULLS)
    with tqdm(total=n_variants, disable=not progress, unit="variant", desc="meta-SAE baselines") as bar:
        table = _Table(meta, refit_steps, seed, bar)
        _fill(table, smaller, dict(zip(names, others, strict=True)), plain)
    frame = pd.DataFrame(table.records)
    frame.insert(
        len(frame.columns) - 1, "difference", frame["explained_variance"] - frame["explained_variance"][0]
    )
    dictionaries = dict(zip(names, (other.identity for other in others), strict=True))
    return MetaBaselines(meta.identity, meta.k, dictionaries, frame)


def _fill(
    table: _Table, smaller: Sequence[Dictionary], others: dict[str, Dictionary], plain: Dictionary | None
) -> None:
    """Add the variants one by one."""
    meta, seed = table.meta, table.seed
    training = meta.rows[~meta.held_out]
    mean = training.mean(0)

    table.add("meta-SAE", meta.width, "own", meta.reconstruct(), meta.decomposition.counts)
    table.pursue("meta-SAE", meta.dictionary.W_dec, meta.dictionary.b_dec)

    small = torch.cat([dictionary.W_dec for dictionary in smaller])
    places = cosines(meta.dictionary.W_dec, small).up[1][:, 0]
    different = counted(len(places.unique()), "different latent")
    note = f"{different} of {counted(len(smaller), 'dictionary', 'dictionaries')}"
    table.replaced("nearest small latents", small[places], mean, note)
    random = random_directions(meta.width, meta.dictionary.d_in, seed=seed)
    table.replaced("random directions", random, mean)

    for name, other in others.items():
        table.pursue(name, other.W_dec, mean, "plain SAE" if other is plain else "")

    centred, n_clusters = (training - mean).numpy(), min(meta.width, len(training))
    start = centred[spread_rows(centred, n_clusters, seed=seed)]
    clusters = KMeans(n_clusters, init=start, n_init=1, random_state=seed).fit(centred)
    centroids = torch.from_numpy(clusters.cluster_centers_)
    assigned = centroids[clusters.predict((meta.rows - mean).numpy())] + mean
    table.add("k-means", len(centroids), "nearest centroid", assigned, terms=1)
    table.pursue("k-means", centroids, mean)

    components = principal_components(training, min(meta.width, meta.dictionary.d_in))
    table.pursue("PCA", components, mean, only_signed=True)
    top = components[: meta.k]
    projected = (meta.rows - mean) @ top.T @ top + mean
    table.add("PCA", len(top), "projection", projected, signed=True, note="the same terms for every row")

    for name in ROW_NULLS:
        table.null(name, null_rows(meta.rows, name, seed=seed))


class _Table:
    """The rows of the table as they are computed."""

    def __init__(self, meta: MetaSAE, refit_steps: int | None, seed: int, bar: tqdm[Any]) -> None:
        recipe = Recipe(**meta.dictionary.info["meta"]["recipe"])
        n_training = int((~meta.held_out).sum())
        self.meta, self.seed, self.bar = meta, seed, bar
        self.config = recipe.config(n_training, width=meta.width, k=meta.k, seed=seed)
        self.refit_steps = refit_steps or self.config.steps
        self.records: list[dict[str, Any]] = []

    def add(
        self,
        variant: str,
        width: int,
        encoder: str,
        reconstruction: Tensor,
        n_terms: Tensor | None = None,
        *,
        terms: int | None = None,
        signed: bool = False,
        rows: Tensor | None = None,
        note: str = "",
    ) -> None:
        """Add a variant by its reconstruction of all rows."""
        rows, held_out = self.meta.rows if rows is None else rows, self.meta.held_out
        terms = self.meta.k if terms is None else terms
        self.records.append(
            {
                "variant": variant,
                "encoder": encoder,
                "signed": signed,
                "null": rows is not self.meta.rows,
                "dictionary_width": width,
                "terms": terms,
                "n_terms": float(terms if n_terms is None else n_terms.double().mean()),
                "explained_variance": explained_variance(rows, reconstruction),
                "explained_variance_uncentred": explained_variance(rows, reconstruction, centred=False),
                "explained_variance_held_out": explained_variance(rows[held_out], reconstruction[held_out])
                if held_out.any()
                else np.nan,
                "note": note,
            }
        )
        self.bar.update()

    def pursue(
        self, variant: str, atoms: Tensor, offset: Tensor, note: str = "", *, only_signed: bool = False
    ) -> None:
        """Matching pursuit on these directions, non-negative and signed."""
        for signed in (True,) if only_signed else (False, True):
            terms = matching_pursuit(self.meta.rows - offset, atoms, self.meta.k, signed=signed)
            reconstruction = terms.matmul(F.normalize(atoms, dim=1)) + offset
            self.add(
                variant,
                len(atoms),
                "matching pursuit",
                reconstruction,
                terms.counts,
                signed=signed,
                note=note,
            )

    def replaced(self, variant: str, directions: Tensor, mean: Tensor, note: str = "") -> None:
        """The meta-SAE with other directions: its encoder kept, refitted, and without an encoder."""
        kept = self.meta.decomposition
        reconstruction = kept.matmul(directions) + self.meta.dictionary.b_dec
        self.add(variant, len(directions), "kept", reconstruction, kept.counts, note=note)
        config = replace(self.config, steps=self.refit_steps)
        refitted = refit_encoder(self.meta.rows[~self.meta.held_out], directions, config)
        latents = refitted.encode_sparse(self.meta.rows)
        steps = f"{self.refit_steps} steps"
        self.add(
            variant,
            len(directions),
            "refit",
            refitted.decode(latents),
            latents.counts,
            note=f"{note}, {steps}" if note else steps,
        )
        self.pursue(variant, directions, mean, note)

    def null(self, variant: str, rows: Tensor) -> None:
        """A meta-SAE of other rows, trained like this one."""
        trained = train(self.config, rows[~self.meta.held_out], progress=False).dictionary
        latents = trained.encode_sparse(rows)
        self.add(variant, trained.width, "own", trained.decode(latents), latents.counts, rows=rows)


# ---------------------------------------------------------------------- matching pursuit


def matching_pursuit(rows: Tensor, atoms: Tensor, terms: int, *, signed: bool) -> SparseLatents:
    """Orthogonal matching pursuit: each row as a sum of a few of the atoms, chosen one by one.

    The next atom is the one with the greatest inner product with the residual (in absolute value, if
    `signed`); the coefficients of all chosen atoms are then those of least squares, or of
    non-negative least squares. Signed, this is `sklearn.linear_model.orthogonal_mp` for many rows at
    a time.

    Parameters
    ----------
    rows : Tensor
        `[n, d]`.
    atoms : Tensor
        Directions, of any norm above zero, `[width, d]`.
    terms : int
        Atoms per row, at most: a row that no further atom helps has fewer.
    signed : bool
        Whether coefficients may be negative.

    Returns
    -------
    SparseLatents
        Coefficients of the atoms at unit norm, `[n]` rows.

    Raises
    ------
    ValueError
        If there are fewer atoms than terms, `d` differs, or a value is not finite.

    Examples
    --------
    >>> rows, atoms = torch.tensor([[3.0, 0.0, 1.0]]), torch.eye(3)
    >>> matching_pursuit(rows, atoms, 2, signed=False).dense()
    tensor([[3., 0., 1.]])
    """
    terms = settings.whole("terms", terms, at_most=len(atoms))
    if rows.shape[1] != atoms.shape[1]:
        raise ValueError(f"The rows have dimension {rows.shape[1]}, the atoms {atoms.shape[1]}.")
    settings.finite("The rows hold", rows)
    settings.finite("The atoms hold", atoms)
    atoms = F.normalize(atoms, dim=1)
    chunk = max(1, CHUNK_ELEMENTS // max(len(atoms), terms * rows.shape[1]))
    return SparseLatents.concatenate([_pursue(part, atoms, terms, signed) for part in rows.split(chunk)])


def _pursue(rows: Tensor, atoms: Tensor, terms: int, signed: bool) -> SparseLatents:
    least = 1e-6 * rows.norm(dim=1)  # an inner product within rounding of zero
    chosen = torch.zeros(len(rows), 0, dtype=torch.long)
    helps = torch.zeros(len(rows), 0, dtype=torch.bool)
    left = rows
    for _ in range(terms):
        products = affine(left, atoms, atoms.new_zeros(len(atoms)))
        score = products.abs_() if signed else products
        score.scatter_(1, chosen, -torch.inf)
        best, atom = score.max(dim=1)
        chosen = torch.cat([chosen, atom[:, None]], 1)
        helps = torch.cat([helps, (best > least)[:, None]], 1)
        found = atoms[chosen].double()
        gram, target = found @ found.mT, (found @ rows.double()[:, :, None])[:, :, 0]
        solve = least_squares if signed else non_negative_least_squares
        coefficients = solve(gram, target, helps)
        left = rows - (coefficients[:, None] @ found)[:, 0].to(rows.dtype)
    chosen, order = chosen.sort(dim=1)
    values = coefficients.gather(1, order).to(rows.dtype)
    used = values != 0
    return SparseLatents(F.pad(used.sum(1).cumsum(0), (1, 0)), chosen[used], values[used], len(atoms))


def least_squares(gram: Tensor, target: Tensor, used: Tensor) -> Tensor:
    """Least squares for many small problems, from normal equations.

    Parameters
    ----------
    gram, target : Tensor
        Inner products of the atoms with each other, `[n, t, t]`, and with the row, `[n, t]`.
    used : Tensor
        Atoms to use, Boolean `[n, t]`; the others' coefficients are 0.

    Returns
    -------
    Tensor
        Coefficients, `[n, t]`.

    Examples
    --------
    >>> gram, target = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]), torch.tensor([[1.0, 1.0]])
    >>> least_squares(gram, target, torch.tensor([[True, False]])).tolist()
    [[1.0, 0.0]]
    >>> least_squares(gram, target, torch.tensor([[True, True]])).numpy().round(2)
    array([[0.67, 0.67]], dtype=float32)
    """
    mask = used.to(gram.dtype)
    gram = gram * mask[:, :, None] * mask[:, None] + torch.diag_embed(1 - mask)
    found: Tensor = torch.linalg.solve(gram, target * mask)
    return found


def non_negative_least_squares(gram: Tensor, target: Tensor, used: Tensor) -> Tensor:
    """Non-negative least squares for many small problems (Lawson and Hanson 1974, chapter 23).

    Parameters and result as for `least_squares`.

    Examples
    --------
    >>> gram, target = torch.eye(2)[None], torch.tensor([[1.0, -1.0]])
    >>> non_negative_least_squares(gram, target, torch.tensor([[True, True]])).abs().tolist()
    [[1.0, 0.0]]
    """
    tolerance = 1e-9 * target.abs().amax(1, keepdim=True)
    found, positive = torch.zeros_like(target), used
    for _ in range(10 * target.shape[1]):  # more than it takes; rounding could make it cycle
        solution = least_squares(gram, target, positive)
        negative = positive & (solution <= 0)
        if negative.any():
            # Go towards the solution until a coefficient would turn negative; those that reach zero
            # leave.
            reach = torch.where(negative, found / (found - solution), torch.inf).nan_to_num(nan=0.0)
            step = reach.amin(1, keepdim=True).clamp(max=1)
            found = found + step * (solution - found)
            positive = positive & ~(negative & (reach <= step))
            found = torch.where(positive, found, 0.0)
            continue
        found = solution
        slope = target - (gram @ found[:, :, None])[:, :, 0]
        slope = torch.where(used & ~positive, slope, -torch.inf)
        helps = (slope > tolerance) & (slope == slope.amax(1, keepdim=True))
        if not helps.any():
            break
        positive = positive | helps
    return found


# ---------------------------------------------------------------------- other encoders


@dataclass(frozen=True)
class _FixedDecoder(BatchTopK):
    """BatchTopK that trains only the encoder, for given directions."""

    directions: Tensor | None = None
    kind: ClassVar[str] = "batchtopk-encoder"

    @property
    def unit_norm(self) -> bool:
        return False  # nothing for the trainer to restore

    def initialise(self, *, width: int, d_in: int, seed: int) -> SAE:
        assert self.directions is not None
        sae = super().initialise(width=width, d_in=d_in, seed=seed)
        own = {"W_enc": self.directions.clone(), "W_dec": self.directions.clone()}
        return _EncoderOnly(**{**vars(sae), **own})

    def describe(self) -> dict[str, Any]:
        assert self.directions is not None
        return super().describe() | {"directions": hash_tensors({"directions": self.directions})}


class _EncoderOnly(SAE):
    """An SAE of which only the encoder is trained."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"W_enc": self.W_enc, "b_enc": self.b_enc}


def refit_encoder(rows: Tensor, directions: Tensor, config: TrainingConfig) -> Dictionary:
    """A BatchTopK encoder for given directions, trained by the trainer of any SAE.

    The decoder and its bias, the mean of the rows, stay as they are; the encoder is initialised with
    the directions.

    Parameters
    ----------
    rows : Tensor
        Rows to train on, `[n, d_in]`.
    directions : Tensor
        Directions of unit norm, `[width, d_in]`.
    config : TrainingConfig
        Settings of a BatchTopK SAE, apart from the decoder.

    Examples
    --------
    >>> config = saekit.TrainingConfig(saekit.BatchTopK(k=2), width=6, steps=20, batch_size=12)
    >>> refitted = refit_encoder(large.W_dec, torch.eye(6), config)
    >>> torch.equal(refitted.W_dec, torch.eye(6))
    True
    """
    variant = config.variant
    assert isinstance(variant, BatchTopK)
    fixed = _FixedDecoder(**vars(variant), directions=directions)
    return train(replace(config, variant=fixed), rows, progress=False).dictionary


def principal_components(rows: Tensor, n: int) -> Tensor:
    """The first `n` principal components of rows `[n_rows, d]`, as unit rows `[n, d]`.

    Examples
    --------
    >>> principal_components(torch.tensor([[0.0, 2.0], [0.0, 4.0]]), 1).abs()
    tensor([[0., 1.]])
    """
    centred = (rows - rows.mean(0)).double()
    axes: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors
    return axes.flip(1)[:, :n].T.to(rows.dtype)


def spread_rows(rows: np.ndarray, n: int, *, seed: int) -> np.ndarray:
    """Rows to start k-means from: greedy k-means++ (Arthur and Vassilvitskii 2007).

    The choice is that of `sklearn.cluster.kmeans_plusplus`, which converts single-precision rows to
    double precision anew for every centre; here they are converted once.

    Parameters
    ----------
    rows : array
        Single precision, `[n_rows, d]`.
    n : int
        Rows to choose.
    seed : int
        Seed of the choice.

    Returns
    -------
    array
        Indices, `[n]`.

    Examples
    --------
    >>> len(spread_rows(x.numpy(), 3, seed=0))
    3
    """
    random = np.random.RandomState(seed)
    wide = torch.from_numpy(rows - rows.mean(axis=0)).double()
    norms = wide.square().sum(1)

    def distances(chosen: np.ndarray) -> np.ndarray:
        """Squared distances of some rows from all, `[chosen, n_rows]`."""
        found = norms[chosen, None] - 2 * wide[chosen] @ wide.T + norms
        return found.clamp(min=0).float().numpy()

    uniform = np.ones(len(rows), dtype=np.float32)
    first = random.choice(len(rows), p=uniform / uniform.sum())
    centres, nearest = [first], distances(np.array([first]))
    for _ in range(1, n):
        # Several candidates are drawn by squared distance, and the one that lowers the sum most is kept.
        drawn = random.uniform(size=2 + int(np.log(n))) * (nearest @ uniform)
        found = np.searchsorted(np.cumsum(nearest.ravel(), dtype=np.float64), drawn)
        candidates = np.minimum(found, len(rows) - 1)
        nearer = np.minimum(nearest, distances(candidates))
        best = int((nearer @ uniform).argmin())
        nearest = nearer[best : best + 1]
        centres.append(candidates[best])
    return np.array(centres)
