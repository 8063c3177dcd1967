"""Maps of activations between layers and models, and dictionaries carried through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from saekit import settings
from saekit.activations import Activations, ActivationStore, as_activations
from saekit.agreement import check_agreement
from saekit.cache import cached
from saekit.dictionary import ORIGIN, Dictionary, require_dictionaries
from saekit.folding import Unfolded
from saekit.identity import Identity
from saekit.models import device_of, require_rows, run_to
from saekit.moments import Moments, fvu, ratio_of_totals, squared_norms
from saekit.results import Result
from saekit.selection import Latents, select_latents

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BATCH = 4096  # tokens at a time
RANKS = (1, 4, 16, 64)
AFFINE, MEAN, IDENTITY, RANDOM = "affine", "mean", "identity", "random orthogonal"
PSEUDOINVERSE, FITTED = "pseudoinverse", "fitted"  # ways back to the source
MEASURES = ("fvu", "fvu_error", "ce_degradation", "ce_degradation_error")


# ---------------------------------------------------------------------- one map


@dataclass(frozen=True, eq=False, repr=False)
class ActivationMap(Result):
    """An affine map of activations: `y = x @ weight + bias`.

    Attributes
    ----------
    name : str
        `"affine"`, `"rank 4"`, `"random orthogonal"`, ...
    weight : Tensor
        float64 `[d_source, d_target]`.
    bias : Tensor
        float64 `[d_target]`.
    n_tokens : int
        Tokens that it was fitted on.
    source, target : mapping
        Where the activations are from, as far as it is recorded (`saekit.dictionary.ORIGIN`).
    """

    name: str
    weight: Tensor
    bias: Tensor
    n_tokens: int
    source: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Tensor:
        """Activations `[..., d_source]` mapped to `[..., d_target]`, in their dtype.

        Raises
        ------
        ValueError
            If `x` has another dimension.
        """
        if x.shape[-1] != len(self.weight):
            raise ValueError(
                f"The {self.name} map takes activations of dimension {len(self.weight)}, found shape "
                f"{list(x.shape)}."
            )
        return x @ self.weight.to(x) + self.bias.to(x)

    @property
    def inverse(self) -> ActivationMap:
        """The way back by the Moore-Penrose pseudoinverse: `x = (y - bias) @ pinv(weight)`.

        Exact for a map of full row rank; else it gives the shortest of the activations that fit best.
        """
        weight = torch.linalg.pinv(self.weight)
        bias = -self.bias @ weight
        return ActivationMap(f"{self.name}, back", weight, bias, self.n_tokens, self.target, self.source)

    @property
    def summary(self) -> dict[str, Any]:
        """`name`, `d_source`, `d_target`, `rank`, `n_tokens`, and the hook points `source` and `target`."""
        return {
            "name": self.name,
            "d_source": self.weight.shape[0],
            "d_target": self.weight.shape[1],
            "rank": int(torch.linalg.matrix_rank(self.weight)),
            "n_tokens": self.n_tokens,
            "source": self.source.get("hook_point"),
            "target": self.target.get("hook_point"),
        }


def fit_map(
    source: Activations,
    target: Activations,
    *,
    rank: int | None = None,
    positions: Latents | None = None,
) -> ActivationMap:
    """The least-squares affine map from one set of activations to another of the same tokens.

    Parameters
    ----------
    source, target : ActivationStore, Tensor or array
        Activations of the same tokens, such as those of two layers, or of two models with one tokenizer;
        dimensions may differ. Positions that either store excludes are left out.
    rank : int, optional
        Greatest rank of the map (reduced-rank regression); 0 maps everything to the mean, and the default
        sets no limit.
    positions : tensor, array, Series, slice or list, optional
        Fit on these positions (rows of a tensor) only.

    Raises
    ------
    ValueError
        If the tokens differ, there are no more of them than dimensions, a value is not finite, or the rank is
        out of range.

    Notes
    -----
    With centred sums `C_xx` and `C_xy` in float64, the weight is `pinv(C_xx) @ C_xy`. For rank `k` it is
    multiplied by `V @ V.T`, with `V` the `k` leading eigenvectors of `weight.T @ C_xx @ weight`: the closed
    form of reduced-rank regression (Izenman 1975). Lenc and Vedaldi (2015) stitch networks by such a
    map, trained on the task's loss; Chen et al. (2025, arXiv:2506.06609) transfer SAEs through one.

    Examples
    --------
    >>> turn = torch.linalg.qr(torch.rand(6, 6)).Q
    >>> found = fit_map(x, x @ turn + 1)
    >>> (found(x) - (x @ turn + 1)).abs().max() < 1e-4
    tensor(True)
    >>> fit_map(x, x @ turn, rank=2).summary["rank"]
    2
    """
    pair = _Pair(source, target)
    sums = pair.sums(pair.positions if positions is None else pair.selected(positions))
    if rank is not None:
        rank = settings.whole("rank", rank, at_least=0, at_most=min(sums.xy.shape))
    return sums.fitted(rank)


def random_map(
    source: Activations, target: Activations, *, positions: Latents | None = None, seed: int = 0
) -> ActivationMap:
    """A null for maps: a random rotation of the centred activations, times the factor that fits best.

    Between spaces of different dimension the matrix has orthonormal rows or columns. Only the factor and the
    means are fitted.

    Parameters
    ----------
    source, target, positions
        As `fit_map`.
    seed : int
        Seed of the rotation.

    Raises
    ------
    ValueError
        As `fit_map`.

    Examples
    --------
    >>> null = random_map(x, x)
    >>> turn = null.weight @ null.weight.T
    >>> torch.allclose(turn, turn[0, 0] * torch.eye(6, dtype=turn.dtype))
    True
    """
    seed = settings.whole("seed", seed, at_least=0)
    pair = _Pair(source, target)
    return pair.sums(pair.positions if positions is None else pair.selected(positions)).random(seed)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over pairs of activations, from which every map is computed."""

    n: int
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor  # of products of deviations from the means, `[d_source, d_source]`
    xy: Tensor
    source: Mapping[str, Any]
    target: Mapping[str, Any]

    def map(self, name: str, weight: Tensor) -> ActivationMap:
        bias = self.mean_y - self.mean_x @ weight
        return ActivationMap(name, weight, bias, self.n, self.source, self.target)

    def fitted(self, rank: int | None = None) -> ActivationMap:
        weight = torch.linalg.pinv(self.xx, hermitian=True) @ self.xy
        if rank is None:
            return self.map(AFFINE, weight)
        axes = torch.linalg.eigh(weight.T @ self.xx @ weight).eigenvectors
        leading = axes[:, axes.shape[1] - rank :]
        return self.map(f"rank {rank}" if rank else MEAN, weight @ leading @ leading.T)

    def random(self, seed: int) -> ActivationMap:
        d_source, d_target = self.xy.shape
        size = max(d_source, d_target)
        generator = torch.Generator().manual_seed(seed)
        turn = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
        turn = turn[:d_source, :d_target]
        factor = (turn * self.xy).sum() / (turn * (self.xx @ turn)).sum()
        return self.map(RANDOM, factor * turn)


class _Pair:
    """Two sets of activations of the same tokens."""

    def __init__(self, source: Activations, target: Activations) -> None:
        self.source, self.target = as_activations(source), as_activations(target)
        stores = [side for side in (self.source, self.target) if isinstance(side, ActivationStore)]
        if len(stores) == 1:
            raise ValueError("Source and target must both be stores, or both tensors, found one of each.")
        if not stores:
            sizes = [len(side) for side in (self.source, self.target) if isinstance(side, Tensor)]
            if sizes[0] != sizes[1]:
                raise ValueError(f"Source and target must be of the same tokens, found {sizes} rows.")
            self.positions = torch.arange(sizes[0])
            return
        one, other = stores
        for store in stores:
            if store.target is not None:
                raise ValueError(
                    f"{store.path.name} holds inputs and targets: a map is between plain stores."
                )
        if one.tokens.shape != other.tokens.shape or not one.tokens.equal(other.tokens):
            raise ValueError(
                f"The stores {one.path.name} and {other.path.name} must hold the same tokens: harvest both "
                "from the same rows."
            )
        self.positions = (one.excluded | other.excluded).flatten().logical_not().nonzero()[:, 0]

    def selected(self, positions: Latents) -> Tensor:
        """Of these positions, those that neither side excludes."""
        n = len(self.source) if isinstance(self.source, Tensor) else self.source.n_tokens
        chosen = select_latents(positions, n, what="positions")
        return chosen[torch.isin(chosen, self.positions)]

    def read(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides at some positions, finite."""
        x, y = (
            side.read(positions) if isinstance(side, ActivationStore) else _real(side[positions])
            for side in self.sides
        )
        settings.finite("The source holds", x)
        settings.finite("The target holds", y)
        return x, y

    def sums(self, positions: Tensor) -> _Sums:
        d_source, d_target = self.d_source, self.d_target
        n = len(positions)
        if n <= d_source + 1:
            raise ValueError(
                f"A map from {d_source} dimensions needs more than {d_source + 1} tokens, found {n}."
            )
        first = self.read(positions[:BATCH])
        shift = [part.double().mean(0) for part in first]  # near the means, so that nothing cancels
        totals = [torch.zeros(d, dtype=torch.float64) for d in (d_source, d_target)]
        xx = torch.zeros(d_source, d_source, dtype=torch.float64)
        xy = torch.zeros(d_source, d_target, dtype=torch.float64)
        for batch in positions.split(BATCH):
            x, y = (part.double() - centre for part, centre in zip(self.read(batch), shift, strict=True))
            xx += x.T @ x
            xy += x.T @ y
            totals[0] += x.sum(0)
            totals[1] += y.sum(0)
        xx -= torch.outer(totals[0], totals[0]) / n
        xy -= torch.outer(totals[0], totals[1]) / n
        mean_x, mean_y = (centre + total / n for centre, total in zip(shift, totals, strict=True))
        return _Sums(n, mean_x, mean_y, xx, xy, _origin(self.source), _origin(self.target))

    @property
    def sides(self) -> tuple[ActivationStore | Tensor, ActivationStore | Tensor]:
        return self.source, self.target

    def split(self, held_out: float) -> tuple[Tensor, Tensor]:
        """Rows to fit on, and rows without any of their documents to measure on."""
        if isinstance(self.source, Tensor):
            n = len(self.source)
            edge = n - round(n * held_out)
            return torch.arange(edge), torch.arange(edge, n)
        n, document = self.source.n_rows, self.source.document
        edge = n - round(n * held_out)
        apart = ~torch.isin(document[edge:], document[:edge].unique()) | (document[edge:] < 0)
        return torch.arange(edge), edge + apart.all(dim=1).nonzero()[:, 0]

    def within(self, rows: Tensor) -> Tensor:
        """The used positions of some rows."""
        return self.positions[torch.isin(self.positions // self.length, rows)]

    @property
    def length(self) -> int:
        """Positions per row; each token of a tensor is a row of its own."""
        return 1 if isinstance(self.source, Tensor) else self.source.context_length

    @property
    def d_source(self) -> int:
        return _dimensions(self.source)

    @property
    def d_target(self) -> int:
        return _dimensions(self.target)


def _dimensions(activations: ActivationStore | Tensor) -> int:
    return activations.shape[1] if isinstance(activations, Tensor) else activations.d_in


def _real(x: Tensor) -> Tensor:
    """Activations in float64 as they are, all others in float32."""
    return x if x.dtype == torch.float64 else x.float()


def _origin(activations: ActivationStore | Tensor) -> dict[str, Any]:
    """Where activations come from, in the words of a dictionary's record."""
    if isinstance(activations, Tensor):
        return {}
    model = activations.manifest.get("model") or {}
    found = {"model": model.get("name"), "hook_point": activations.hook_point}
    found |= {f"model_{name}": model.get(name) for name in ("weights", "revision", "processing")}
    return {name: value for name, value in found.items() if value is not None}


# ---------------------------------------------------------------------- dictionaries through a map


def carry_dictionary(
    dictionary: Dictionary, forward: ActivationMap, back: ActivationMap | None = None
) -> Dictionary:
    """The dictionary at the other end of a map.

    Activations `y` there are taken back to the source, encoded, and the reconstruction is taken forward.
    With `x = y @ B + c` the way back and `y = x @ A + b` the way forward, the carried dictionary has

    - `W_enc' = B @ W_enc` and `b_enc' = b_enc + c @ W_enc`,
    - `W_dec' = W_dec @ A` and `b_dec' = b_dec @ A + b`,

    and the same thresholds; the norms of its decoder rows are folded, as for every dictionary.

    Parameters
    ----------
    dictionary : Dictionary
        At the source of `forward`.
    forward : ActivationMap
        From the dictionary's activations to those of the result.
    back : ActivationMap, optional
        A map fitted the other way. The pseudoinverse of `forward` if left out, which is the inverse of a
        rotation, but enlarges noise where `forward` shrinks a direction.

    Raises
    ------
    ValueError
        If a map has other dimensions, or the dictionary normalises every row or is a transcoder.

    Examples
    --------
    >>> turn = torch.linalg.qr(torch.rand(6, 6)).Q
    >>> carried = carry_dictionary(small, fit_map(x, x @ turn))
    >>> torch.allclose(carried.encode(x @ turn), small.encode(x), atol=1e-4)
    True
    """
    require_dictionaries(dictionary=dictionary)
    if dictionary.transcoder or dictionary.normalization is not None:
        why = "predicts another activation" if dictionary.transcoder else "normalises every row"
        raise ValueError(f"{dictionary.name} {why}, so it cannot be carried through an affine map.")
    back = forward.inverse if back is None else back
    d_source, d_target = forward.weight.shape
    if dictionary.d_in != d_source or back.weight.shape != (d_target, d_source):
        raise ValueError(
            f"Carrying {dictionary.name} (d_in {dictionary.d_in}) needs a map from {dictionary.d_in} "
            f"dimensions and one back, found {list(forward.weight.shape)} and {list(back.weight.shape)}."
        )
    wide: dict[str, Any] = {name: tensor.double().cpu() for name, tensor in dictionary.tensors().items()}
    wide["b_enc"] = wide["b_enc"] + back.bias @ wide["W_enc"]
    wide["W_enc"] = back.weight @ wide["W_enc"]
    wide["b_dec"] = wide["b_dec"] @ forward.weight + forward.bias
    wide["W_dec"] = wide["W_dec"] @ forward.weight
    kept = {name: value for name, value in dictionary.info.items() if name not in ORIGIN}
    carried = {"from": dictionary.content_hash, "forward": forward.name, "back": back.name}
    info = {**kept, **forward.target, "carried": carried}
    folded = Unfolded(**wide, k=dictionary.k, info=info).fold(dtype=dictionary.W_enc.dtype)
    return folded.to(dictionary.W_enc.device)


# ---------------------------------------------------------------------- what maps are worth


@dataclass(frozen=True, eq=False, repr=False)
class Maps(Result):
    """What maps of activations, and a dictionary carried through them, are worth on held-out tokens.

    Attributes
    ----------
    maps : dict
        The maps by name: `"affine"`, `"rank k"`, `"random orthogonal"`, `"mean"`, and `"identity"` where the
        dimensions are equal.
    frame : DataFrame
        One row per map: `map`, `rank`, `fvu` of the target's activations, `ce_degradation` (nats per token,
        with mapped activations in place of the target's; NaN without a model), and `fvu_error` and
        `ce_degradation_error`, their standard errors over held-out rows (tokens of a tensor).
    carried : DataFrame
        One row per map and way `back`: `map`, `back`, `l0`, and these four. The row `"native"` is the
        target's own dictionary. Empty without a dictionary.
    dictionary : Identity or None
        The dictionary that was carried.
    n_fitted, n_held_out : int
        Tokens.
    """

    maps: dict[str, ActivationMap]
    frame: pd.DataFrame
    carried: pd.DataFrame
    dictionary: Identity | None
    n_fitted: int
    n_held_out: int
    _plot: ClassVar[str] = "map_bars"

    @property
    def summary(self) -> dict[str, Any]:
        """`source` and `target` hook points, `n_fitted`, `n_held_out`, `fvu` and `ce_degradation` by map."""
        affine, by_map = self.maps[AFFINE], self.frame.set_index("map")
        return {
            "source": affine.source.get("hook_point"),
            "target": affine.target.get("hook_point"),
            "n_fitted": self.n_fitted,
            "n_held_out": self.n_held_out,
            "fvu": by_map["fvu"].to_dict(),
            "ce_degradation": by_map["ce_degradation"].to_dict(),
        }


@cached
@torch.no_grad()
def measure_maps(
    source: Activations,
    target: Activations,
    dictionary: Dictionary | None = None,
    *,
    native: Dictionary | None = None,
    model: TransformerBridge | None = None,
    ranks: Sequence[int] = RANKS,
    held_out: float = 0.3,
    max_rows: int = 32,
    batch_rows: int = 16,
    seed: int = 0,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Maps:
    """Fit maps on some tokens; measure them, and a dictionary carried through them, on the others.

    The affine map is compared with maps of lower rank, the mean alone, a random rotation and, between spaces
    of one dimension, no map at all.

    Parameters
    ----------
    source, target : ActivationStore, Tensor or array
        Activations of the same tokens, see `fit_map`.
    dictionary : Dictionary, optional
        A dictionary at the source, to be carried.
    native : Dictionary, optional
        A dictionary at the target, to compare with.
    model : TransformerBridge, optional
        The model of the target, for CE degradation.
    ranks : sequence of int
        Ranks of further maps.
    held_out : float
        Share of the rows, the last ones, to measure on. Rows with a document that was fitted on are left out.
    max_rows, batch_rows : int
        Held-out rows to run the model on, spread evenly, and rows per forward pass.
    seed : int
        Seed of the random rotation.
    progress : bool
        Show a progress bar in rows.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the tokens differ, too few are left on either side, or a setting is out of range.
    MismatchError
        If a dictionary or the model do not belong to their side.

    Notes
    -----
    After Lenc and Vedaldi (2015) and Chen et al. (2025, arXiv:2506.06609). An affine map has `d ** 2`
    parameters and can fit few tokens without generalising, so it is measured on tokens of other documents.
    Excluded positions are left out of FVU and keep their original activation in the model.

    Examples
    --------
    >>> later = x @ torch.rand(6, 5) + 0.01 * torch.randn(200, 5)
    >>> result = measure_maps(x, later, small, ranks=[1])
    >>> result.frame["map"].tolist()
    ['affine', 'rank 1', 'mean', 'random orthogonal']
    >>> result.carried.columns.tolist()
    ['map', 'back', 'l0', 'fvu', 'fvu_error', 'ce_degradation', 'ce_degradation_error']
    """
    pair = _Pair(source, target)
    ranks = [settings.whole("ranks", rank) for rank in ranks]
    held_out = settings.real("held_out", held_out, above=0, at_most=0.9)
    max_rows, batch_rows = (
        settings.whole(name, n) for name, n in (("max_rows", max_rows), ("batch_rows", batch_rows))
    )
    seed = settings.whole("seed", seed, at_least=0)
    given = [[d for d in (side,) if d is not None] for side in (dictionary, native)]
    check_agreement(activations=source, dictionaries=given[0], allow_mismatch=allow_mismatch)
    check_agreement(model=model, activations=target, dictionaries=given[1], allow_mismatch=allow_mismatch)
    if model is not None:
        if not isinstance(pair.target, ActivationStore):
            raise ValueError("CE degradation needs stores with tokens: harvest them, or leave the model out.")
        require_rows(model, pair.target.tokens)
    fit_rows, test_rows = pair.split(held_out)
    fit_on, test_on = pair.within(fit_rows), pair.within(test_rows)
    if len(test_on) < 2:
        raise ValueError(
            f"At least 2 tokens must be held out, found {len(test_on)}: documents are longer than the "
            f"{held_out:g} of the rows that are held out."
        )
    sums = pair.sums(fit_on)
    d_source, d_target = sums.xy.shape
    if ranks and max(ranks) > min(d_source, d_target):
        raise ValueError(f"ranks must be at most {min(d_source, d_target)}, found {max(ranks)}.")
    found = [sums.fitted(), *(sums.fitted(rank) for rank in ranks), sums.fitted(0), sums.random(seed)]
    if d_source == d_target:
        eye = torch.eye(d_source, dtype=torch.float64)
        found.append(ActivationMap(IDENTITY, eye, 0 * eye[0], 0, sums.source, sums.target))
    maps = {each.name: each for each in found}

    carried: dict[tuple[str, str], Dictionary] = {}
    if dictionary is not None:
        for name, each in maps.items():
            if name != MEAN:
                carried[name, PSEUDOINVERSE] = carry_dictionary(dictionary, each)
        back = _Pair(target, source).sums(fit_on).fitted()
        carried[AFFINE, FITTED] = carry_dictionary(dictionary, maps[AFFINE], back)
    if native is not None:
        carried["native", ""] = native

    def mapped(each: ActivationMap) -> Replacement:
        return lambda x, _: each(x)

    def rebuilt(each: Dictionary) -> Replacement:
        return lambda _, y: each.reconstruct(y.flatten(0, -2)).view_as(y)

    replacements: dict[Any, Replacement] = {name: mapped(each) for name, each in maps.items()}
    replacements |= {key: rebuilt(each) for key, each in carried.items()}
    fvus, l0 = _errors(pair, test_on, replacements, carried)
    changes: dict[Any, tuple[float, float]] = dict.fromkeys(replacements, (float("nan"), float("nan")))
    if model is not None:
        chosen = test_rows[
            torch.linspace(0, len(test_rows) - 1, min(max_rows, len(test_rows))).round().long()
        ]
        changes = _ce_changes(model, pair, chosen.unique(), replacements, batch_rows, progress=progress)
    rank_of = {f"rank {rank}": rank for rank in ranks} | {MEAN: 0}
    measured = {key: dict(zip(MEASURES, (*fvus[key], *changes[key]), strict=True)) for key in replacements}
    frame = pd.DataFrame(
        {"map": name, "rank": rank_of.get(name, min(d_source, d_target)), **measured[name]} for name in maps
    )
    table = pd.DataFrame(
        [{"map": key[0], "back": key[1], "l0": l0[key], **measured[key]} for key in carried],
        columns=["map", "back", "l0", *MEASURES],
    )
    identity = None if dictionary is None else dictionary.identity
    return Maps(maps, frame, table, identity, sums.n, len(test_on))


Replacement = Callable[[Tensor, Tensor], Tensor]  # of source and target activations: other target ones


def _errors(
    pair: _Pair,
    positions: Tensor,
    replacements: Mapping[Any, Replacement],
    dictionaries: Mapping[Any, Dictionary],
) -> tuple[dict[Any, tuple[float, float]], dict[Any, float]]:
    """FVU of each replacement with its standard error over rows, and L0 of each dictionary."""
    moments = Moments(pair.d_target)
    for batch in positions.split(BATCH):
        moments.update(pair.read(batch)[1])
    rows, row_of = (positions // pair.length).unique(return_inverse=True)
    deviations = torch.zeros(len(rows), dtype=torch.float64)
    errors = {key: torch.zeros_like(deviations) for key in replacements}
    active = dict.fromkeys(dictionaries, 0)
    for batch, row in zip(positions.split(BATCH), row_of.split(BATCH), strict=True):
        x, y = pair.read(batch)
        deviations.index_add_(0, row, squared_norms(y.double() - moments.mean))
        for key, replace in replacements.items():
            errors[key].index_add_(0, row, squared_norms(y.double() - replace(x, y).double()))
        for key, dictionary in dictionaries.items():
            active[key] += len(dictionary.encode_sparse(y).values)
    found = {
        key: (fvu(float(e.sum()), moments.total_variance), ratio_of_totals(e, deviations)[1])
        for key, e in errors.items()
    }
    return found, {key: n / len(positions) for key, n in active.items()}


def _ce_changes(
    model: TransformerBridge,
    pair: _Pair,
    rows: Tensor,
    replacements: Mapping[Any, Replacement],
    batch_rows: int,
    *,
    progress: bool,
) -> dict[Any, tuple[float, float]]:
    """CE degradation of each replacement over some rows of the stores, and its standard error over rows."""
    source, target = pair.sides
    assert isinstance(source, ActivationStore)  # checked by the caller
    assert isinstance(target, ActivationStore)
    device = device_of(model)
    losses: dict[Any, list[Tensor]] = {key: [] for key in replacements}
    total = len(rows) * (1 + len(replacements))
    with tqdm(total=total, disable=not progress, unit="row", desc="maps") as bar:
        for part in rows.split(batch_rows):
            run = run_to(model, target.tokens[part], target.hook_point)
            y = run.activations.float()
            x = torch.cat([source.rows(row, row + 1) for row in part.tolist()]).to(device)
            kept = (source.excluded | target.excluded)[part, :, None].to(device)
            targets = ~target.special[part, 1:].to(device)
            original = run.losses(run.activations).double()
            bar.update(len(part))
            for key, replace in replacements.items():
                replaced = torch.where(kept, run.activations, replace(x, y).to(run.activations.dtype))
                change = (run.losses(replaced).double() - original) * targets
                losses[key].append(change.sum(1).cpu())
                bar.update(len(part))
    n_targets = (~target.special[rows, 1:]).sum(1)
    return {key: ratio_of_totals(torch.cat(parts), n_targets) for key, parts in losses.items()}
