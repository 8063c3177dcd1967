"""Effects on the language model: ablation fingerprints of matched latents, and substitution in loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from saekit import settings
from saekit.activations import ActivationStore
from saekit.agreement import check_agreement
from saekit.analysis.uniqueness.matching import STATUSES, Matching
from saekit.analysis.uniqueness.substitution import check_pair, equal_density
from saekit.cache import cached
from saekit.dictionary import Dictionary
from saekit.identity import Identity
from saekit.models import device_of, require_rows, run_to
from saekit.passes import Batch, one_pass
from saekit.results import Result

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False, repr=False)
class Effects(Result):
    """What ablating or replacing single latents does to the language model, beside their matches.

    Attributes
    ----------
    a, b : Identity
        The dictionaries.
    theta : float
        Cosine from which two matched latents count as the same one.
    n_rows : int
        Rows of tokens on which each latent, and each control, is active.
    frame : DataFrame
        One row per sampled pair: `latent`, `match`, `control` (a random latent of `b` of about the match's
        density), `matched_cosine`, `status`, `n_targets`; Pearson correlations over targets of the changes
        in loss from ablating the latent with those from ablating the match (`correlation`) or the
        control (`correlation_control`; 0 where one changes nothing); `ablated`, `substituted` and
        `substituted_control`: mean absolute change in loss, in nats per target, with the latent taken out,
        or with the match or control in its place.
    """

    a: Identity
    b: Identity
    theta: float
    n_rows: int
    frame: pd.DataFrame
    _plot: ClassVar[str] = "fingerprints"

    @property
    def by_status(self) -> pd.DataFrame:
        """Sampled pairs at theta or more, and the others.

        Returns
        -------
        DataFrame
            `status` (`"shared"` or `"lacking"`), `n_latents`; `correlation` and
            `correlation_control` (medians); `quality` and `quality_control`: share of the absolute change
            in loss from ablation that the substitutes avoid.
        """
        rows = []
        shared = self.frame["status"] == STATUSES[0]
        for status, part in ((STATUSES[0], self.frame[shared]), ("lacking", self.frame[~shared])):
            if part.empty:
                continue
            row: dict[str, Any] = {"status": status, "n_latents": len(part)}
            row |= {name: part[name].median() for name in ("correlation", "correlation_control")}
            for name, column in (("quality", "substituted"), ("quality_control", "substituted_control")):
                row[name] = 1 - part[column].sum() / part["ablated"].sum()
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def summary(self) -> dict[str, Any]:
        """`a`, `b`, `theta`, `n_rows`, and `by_status` as `correlation_shared` and so on."""
        numbers = {
            f"{name}_{row['status']}": row[name]
            for row in self.by_status.to_dict("records")
            for name in row.keys() - {"status"}
        }
        return {"a": str(self.a), "b": str(self.b), "theta": self.theta, "n_rows": self.n_rows} | numbers


@cached
def measure_effects(
    model: TransformerBridge,
    a: Dictionary,
    b: Dictionary,
    matching: Matching,
    store: ActivationStore,
    *,
    n_latents: int = 12,
    n_rows: int = 1,
    batch_rows: int = 16,
    seed: int = 0,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Effects:
    """Ablate and replace a sample of latents in the language model, and compare what that changes.

    The error of reconstruction stays: the model's own activations are changed by the latents'
    contributions alone, at positions that are not excluded.

    Parameters
    ----------
    model : TransformerBridge
        The language model that the store was harvested from.
    a, b : Dictionary
        Latents of both must not depend on each other.
    matching : Matching
        Of these two, measured with activations.
    store : ActivationStore
        Held-out tokens.
    n_latents : int
        Pairs to sample among those at theta or more, and as many among the others; all, if there are fewer.
    n_rows : int
        Rows of tokens to draw among those on which the latent is active, and as many among those on
        which its control is.
    batch_rows : int
        Rows per forward pass.
    seed : int
        Seed of sample, controls and rows.
    progress : bool
        Show a progress bar in rows.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    MismatchError
        If model, store and dictionaries do not belong together.
    ValueError
        If a dictionary is TopK, the matching is of other dictionaries or has no densities, no pair fires
        in the store, or a setting is out of range.

    Notes
    -----
    Ablation fingerprints and substitution are those of "Benchmarking Cross-Seed Feature
    Correspondence" (2026). Changes in loss before a latent's first activation are exactly 0.

    Examples
    --------
    >>> a, b = saes.get(16, 0), saes.get(16, 1)
    >>> matching = saekit.match_latents(a, b, activations=harvested)
    >>> measure_effects(model, a, b, matching, harvested, n_latents=2).frame.columns.tolist()
    ['latent', 'match', 'control', 'matched_cosine', 'status', 'n_targets', 'correlation',
     'correlation_control', 'ablated', 'substituted', 'substituted_control']
    """
    whole = settings.whole
    n_latents, n_rows = whole("n_latents", n_latents), whole("n_rows", n_rows)
    batch_rows, seed = whole("batch_rows", batch_rows), whole("seed", seed, at_least=0)
    check_pair(a, b, matching, "Comparing effects")
    check_agreement(model=model, activations=store, dictionaries=[a, b], allow_mismatch=allow_mismatch)
    require_rows(model, store.tokens)
    frame = _sampled(matching, n_latents, seed)
    where = _Rows(a, frame["latent"], store), _Rows(b, frame["control"], store)
    one_pass(store, *where, dictionaries=[a, b], purpose="rows", allow_mismatch=allow_mismatch)
    active = [part.active for part in where]
    fires = np.all([part.any(1) for part in active], axis=0)
    if not fires.any():
        raise ValueError("No sampled pair fires in the store, so no effect can be compared.")
    frame, random, jobs = frame[fires].reset_index(drop=True), np.random.default_rng(seed), []
    for pair, rows in enumerate(zip(*(part[fires] for part in active), strict=True)):
        jobs += [(pair, row) for part in rows for row in random.permutation(np.flatnonzero(part))[:n_rows]]
    changes = _changes(model, a, b, frame, store, jobs, batch_rows, progress)
    measured = pd.DataFrame(
        {
            "n_targets": len(found["own"]),
            "correlation": _correlation(found["own"], found["match"]),
            "correlation_control": _correlation(found["own"], found["control"]),
            "ablated": float(found["own"].abs().mean()),
            "substituted": float(found["own to match"].abs().mean()),
            "substituted_control": float(found["own to control"].abs().mean()),
        }
        for found in changes
    )
    return Effects(a.identity, b.identity, matching.theta, n_rows, frame.join(measured))


def _sampled(matching: Matching, n_latents: int, seed: int) -> pd.DataFrame:
    """Pairs of living latents, as many at theta or more as under it, with their controls."""
    pairs = matching.pairs.assign(control=equal_density(matching, seed))
    alive = matching.frame_b["density"].to_numpy()[pairs["match"]] > 0
    pairs = pairs[alive & (pairs["density"] > 0)]
    if pairs.empty:
        raise ValueError("No matched pair fires in the store, so no effect can be compared.")
    shared = pairs["status"] == STATUSES[0]
    random = np.random.default_rng(seed)
    parts = [
        part.iloc[np.sort(random.permutation(len(part))[:n_latents])]
        for part in (pairs[shared], pairs[~shared])
    ]
    columns = ["latent", "match", "control", "matched_cosine", "status"]
    return pd.concat(parts)[columns].reset_index(drop=True)


class _Rows:
    """The rows of a store on which some latents are active, Boolean `[latents, rows]`, as part of a pass."""

    def __init__(self, dictionary: Dictionary, latents: pd.Series, store: ActivationStore) -> None:
        self.dictionary, self.latents = dictionary, torch.from_numpy(latents.to_numpy(copy=True))
        self._length = store.context_length
        self._any = torch.zeros(dictionary.width, store.n_rows, dtype=torch.bool)

    def __call__(self, batch: Batch) -> None:
        latents = batch.latents(self.dictionary)
        rows = batch.positions.to(latents.indices.device)[latents.rows] // self._length
        self._any[latents.indices.cpu(), rows.cpu()] = True

    @property
    def active(self) -> np.ndarray:
        return self._any[self.latents].numpy()


def _changes(
    model: TransformerBridge,
    a: Dictionary,
    b: Dictionary,
    frame: pd.DataFrame,
    store: ActivationStore,
    jobs: list[tuple[int, int]],
    batch_rows: int,
    progress: bool,
) -> list[dict[str, Tensor]]:
    """Change in loss at each target of the rows of each pair, float64, by what was changed.

    `"own"`, `"match"` and `"control"` are ablated; `"own to match"` and `"own to control"` replaced.
    """
    device = device_of(model)
    a, b = a.to(device), b.to(device)
    found: list[dict[str, list[Tensor]]] = [{} for _ in range(len(frame))]
    with tqdm(total=len(jobs), disable=not progress, unit="row", desc="effects") as bar:
        for start in range(0, len(jobs), batch_rows):
            pairs, rows = (torch.tensor(each) for each in zip(*jobs[start : start + batch_rows], strict=True))
            run = run_to(model, store.tokens[rows], store.hook_point)
            kept = (~store.excluded[rows]).to(device)
            x = run.activations.float()
            own, match, control = (
                _contributions(
                    dictionary, x, torch.from_numpy(frame[column].to_numpy(copy=True))[pairs], kept
                )
                for dictionary, column in ((a, "latent"), (b, "match"), (b, "control"))
            )
            before = run.losses(run.activations).double()
            targets = ~store.special[rows, 1:]
            for name, change in {
                "own": -own,
                "match": -match,
                "control": -control,
                "own to match": match - own,
                "own to control": control - own,
            }.items():
                losses = (run.losses((x + change).to(run.activations.dtype)).double() - before).cpu()
                for pair, row, wanted in zip(pairs.tolist(), losses, targets, strict=True):
                    found[pair].setdefault(name, []).append(row[wanted])
            bar.update(len(rows))
    return [{name: torch.cat(parts) for name, parts in pair.items()} for pair in found]


def _contributions(dictionary: Dictionary, x: Tensor, latents: Tensor, kept: Tensor) -> Tensor:
    """What one latent per row adds to the reconstruction where positions count, `[rows, ctx, d_in]`."""
    latents = latents.to(x.device)
    encoder, decoder = dictionary.W_enc.T[latents], dictionary.W_dec[latents]
    h = (x @ encoder[:, :, None])[:, :, 0] + dictionary.b_enc[latents][:, None]
    active = (h > dictionary.threshold[latents][:, None]) & kept
    return (h * active)[:, :, None] * decoder[:, None]


def _correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's; 0 where either is constant."""
    one, other = one - one.mean(), other - other.mean()
    norm = one.norm() * other.norm()
    return float(one @ other / norm) if norm > 0 else 0.0
