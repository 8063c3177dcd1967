"""Whether a large dictionary's latents tell a small one something new.

Two answers that are never mixed: `novel_cos`, the best cosine with a small latent is under theta,
and `novel_gain`, inserting the latent into the small dictionary lowers its error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import ActivationStore, batches_of
from saekit.analysis.similarity import BestMatches, best_matches
from saekit.dictionary import Dictionary
from saekit.identity import Identity
from saekit.metrics import Moments, fvu, n_excluded
from saekit.models import logits_with_replacement
from saekit.results import Result
from saekit.sparse import SparseLatents

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HALF_BLOCK = 1024  # positions: the two halves of the tokens alternate in blocks, so both see all sources


# ---------------------------------------------------------------------- one latent at a time


@dataclass(frozen=True, eq=False, repr=False)
class Insertion(Result):
    """What inserting each latent of a large dictionary alone does to a small one.

    Attributes
    ----------
    small, large : Identity
        The dictionaries.
    theta : float
        Cosine under which a latent is `novel_cos`.
    matches : BestMatches
        Best small latent of each large one.
    active : Tensor
        Tokens on which each latent is active, by half of the tokens, int64 `[2, width]`.
    power : Tensor
        Sum over tokens of `f_i^2 ||w_i||^2`, by half, float64 `[2, width]`.
    overlap : Tensor
        Sum over tokens of `f_i <w_i, r>` with the small dictionary's residual `r`, by half,
        float64 `[2, width]`.
    half_tokens : tuple of int
        Tokens of each half.
    n_excluded : int
        Positions left out.
    mse_small, mse_large, fvu_small, fvu_large, l0_small, l0_large : float
        The two dictionaries on these tokens. MSE: squared error summed over dimensions,
        averaged over tokens.
    """

    _plot: ClassVar[str] = "insertion_scatter"

    small: Identity
    large: Identity
    theta: float
    matches: BestMatches
    active: Tensor
    power: Tensor
    overlap: Tensor
    half_tokens: tuple[int, int]
    n_excluded: int
    mse_small: float
    mse_large: float
    fvu_small: float
    fvu_large: float
    l0_small: float
    l0_large: float

    @property
    def n_tokens(self) -> int:
        """Tokens used."""
        return sum(self.half_tokens)

    @property
    def mse_change(self) -> Tensor:
        """MSE with the latent minus MSE without, float64 `[width]`: negative helps."""
        return (self.power - 2 * self.overlap).sum(0) / self.n_tokens

    @property
    def dead(self) -> Tensor:
        """Latents that are active on none of the tokens, Boolean `[width]`."""
        return self.active.sum(0) == 0

    @property
    def novel_cos(self) -> Tensor:
        """Latents whose best cosine is under theta, Boolean `[width]`."""
        return self.matches.cosine < self.theta

    @property
    def novel_gain(self) -> Tensor:
        """Latents whose insertion lowers the MSE, Boolean `[width]`."""
        return self.mse_change < 0

    @property
    def frame(self) -> pd.DataFrame:
        """One row a large latent.

        `latent`, `best_cosine`, `best_match`, `mse_change` (negative helps; 0 if dead),
        `density` (share of tokens active), `dead`, `novel_cos`, `novel_gain`.
        """
        return pd.DataFrame(
            {
                "latent": range(len(self.mse_change)),
                "best_cosine": self.matches.cosine.numpy(),
                "best_match": self.matches.index.numpy(),
                "mse_change": self.mse_change.numpy(),
                "density": self.active.sum(0).numpy() / self.n_tokens,
                "dead": self.dead.numpy(),
                "novel_cos": self.novel_cos.numpy(),
                "novel_gain": self.novel_gain.numpy(),
            }
        )

    def _labelled(self, half: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and `novel_gain` of the latents that are active, on one half or on all tokens."""
        part = slice(None) if half is None else slice(half, half + 1)
        gain = (self.power[part] - 2 * self.overlap[part]).sum(0) < 0
        alive = self.active[part].sum(0) > 0
        return self.matches.cosine[alive].numpy(), gain[alive].numpy()

    def roc(self) -> pd.DataFrame:
        """ROC curve of the cosine as a sign of the gain: `theta`, `fpr`, `tpr`.

        Positive: `novel_gain`; predicted positive: best cosine under `theta`. Dead latents are
        left out.

        Raises
        ------
        ValueError
            If all latents help, or none does.
        """
        return _roc(*self._labelled())

    def at(self, theta: float) -> dict[str, Any]:
        """How well `best cosine < theta` predicts `novel_gain` on the latents that are not dead.

        Returns
        -------
        dict
            `theta`, `n_latents`, `share_novel_cos`, `share_novel_gain` (the base rates),
            `true_positive_rate`, `false_positive_rate`, `accuracy`, `balanced_accuracy`. Rates
            over no latents are NaN.
        """
        return _prediction(theta, *self._labelled())

    @property
    def auc(self) -> float:
        """Area under the ROC curve (see `roc`); NaN if all latents help, or none does."""
        cosine, gain = self._labelled()
        return float(roc_auc_score(gain, -cosine)) if 0 < gain.sum() < len(gain) else float("nan")

    @property
    def best_theta(self) -> dict[str, float]:
        """The theta of greatest balanced accuracy on half of the tokens, judged on the other half.

        Returns
        -------
        dict
            `theta`, `balanced_accuracy_chosen` (on the half that chose it) and
            `balanced_accuracy` (on the other half). NaN if a half has only latents that help,
            or none that does.
        """
        halves = [self._labelled(half) for half in (0, 1)]
        if any(not 0 < gain.sum() < len(gain) for _, gain in halves):
            return dict.fromkeys(("theta", "balanced_accuracy_chosen", "balanced_accuracy"), float("nan"))
        curve = _roc(*halves[0])
        theta = float(curve["theta"][(curve["tpr"] - curve["fpr"]).idxmax()])
        chosen, other = (_prediction(theta, *half)["balanced_accuracy"] for half in halves)
        return {"theta": theta, "balanced_accuracy_chosen": chosen, "balanced_accuracy": other}

    @property
    def summary(self) -> dict[str, Any]:
        """The headline numbers; shares, AUC and accuracies are over latents that are not dead.

        `small`, `large`, `theta`, `n_latents` (not dead), `n_dead`, `n_tokens`, `n_excluded`,
        `auc`, `share_novel_cos`, `share_novel_gain`, `accuracy`, `balanced_accuracy` (at theta),
        `best_theta`, `best_theta_balanced_accuracy` (theta chosen on half of the tokens,
        accuracy on the other half), `median_cosine`, `mse_small`, `mse_large`, `fvu_small`,
        `fvu_large`, `l0_small`, `l0_large`, `same_index_share`, `same_index_chance`.
        """
        at_theta, best = self.at(self.theta), self.best_theta
        shares = ("share_novel_cos", "share_novel_gain", "accuracy", "balanced_accuracy")
        cosine, _ = self._labelled()
        return {
            "small": str(self.small),
            "large": str(self.large),
            "theta": self.theta,
            "n_latents": len(cosine),
            "n_dead": int(self.dead.sum()),
            "n_tokens": self.n_tokens,
            "n_excluded": self.n_excluded,
            "auc": self.auc,
            **{name: at_theta[name] for name in shares},
            "best_theta": best["theta"],
            "best_theta_balanced_accuracy": best["balanced_accuracy"],
            "median_cosine": float(np.median(cosine)) if len(cosine) else float("nan"),
            "mse_small": self.mse_small,
            "mse_large": self.mse_large,
            "fvu_small": self.fvu_small,
            "fvu_large": self.fvu_large,
            "l0_small": self.l0_small,
            "l0_large": self.l0_large,
            "same_index_share": self.matches.same_index_share,
            "same_index_chance": self.matches.chance,
        }


def insertion(
    small: Dictionary,
    large: Dictionary,
    activations: ActivationStore | Tensor,
    *,
    theta: float = 0.7,
    batch_size: int = 4096,
    progress: bool = False,
) -> Insertion:
    """Change in MSE when each latent of `large` alone is added to the reconstruction of `small`.

    One pass for all latents: with the residual `r = x - x_hat` of the small dictionary,
    inserting latent i changes the squared error by exactly `f_i^2 ||w_i||^2 - 2 f_i <w_i, r>`,
    and only tokens on which it is active count. Sums are float64.

    The seed null is the same call with two seeds of one width.

    Parameters
    ----------
    small, large : Dictionary
        Latents of both must not depend on each other.
    activations : ActivationStore or Tensor
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    theta : float
        Cosine under which a latent is `novel_cos`.
    batch_size : int
        Tokens at a time; the result does not depend on it beyond rounding.
    progress : bool
        Show a progress bar in tokens.

    Raises
    ------
    ValueError
        If a dictionary is TopK, `d_in` does not fit, or there are no tokens.

    Notes
    -----
    Leask et al. (ICLR 2025), section on SAE stitching, Eq. 5: the large dictionary's latents are
    added to the whole reconstruction of the small one, which keeps its own decoder bias.
    """
    for dictionary in (small, large):
        dictionary.require_independent("Inserting latents")
    active = torch.zeros(2, large.width, dtype=torch.long)
    power, overlap = torch.zeros(2, 2, large.width, dtype=torch.float64)
    squared_norms = large.W_dec.double().square().sum(1).cpu()
    half_tokens = torch.zeros(2, dtype=torch.long)
    moments = Moments(small.d_in)
    errors = {"small": 0.0, "large": 0.0}
    small_active = 0
    with torch.no_grad(), tqdm(disable=not progress, unit="token", desc="insertion") as bar:
        for positions, x in batches_of(activations, batch_size, device=large.W_enc.device):
            small_latents, latents = small.encode_sparse(x), large.encode_sparse(x)
            residual = x - small.decode(small_latents)
            inner = latents.inner_products(residual, large.W_dec)

            half = positions.to(x.device) // HALF_BLOCK % 2
            half_tokens += torch.bincount(half, minlength=2).cpu()
            group = half[latents.rows] * large.width + latents.indices
            values = latents.values.double()
            active += _by_group(group, None, active)
            power += _by_group(group, values.square(), power)
            overlap += _by_group(group, values * inner.double(), overlap)

            moments.update(x)
            small_active += len(small_latents.values)
            errors["small"] += float(residual.double().square().sum())
            errors["large"] += float((x - large.decode(latents)).double().square().sum())
            bar.update(len(x))
    if moments.n == 0:
        raise ValueError("There are no activations to insert latents on: every position is excluded.")
    return Insertion(
        small=small.identity,
        large=large.identity,
        theta=theta,
        matches=_on_cpu(best_matches(large, small)),
        active=active,
        power=power * squared_norms,
        overlap=overlap,
        half_tokens=(int(half_tokens[0]), int(half_tokens[1])),
        n_excluded=n_excluded(activations),
        mse_small=errors["small"] / moments.n,
        mse_large=errors["large"] / moments.n,
        fvu_small=fvu(errors["small"], moments.total_variance),
        fvu_large=fvu(errors["large"], moments.total_variance),
        l0_small=small_active / moments.n,
        l0_large=int(active.sum()) / moments.n,
    )


def compare(
    result: Insertion, null_small: Insertion | None = None, null_large: Insertion | None = None
) -> pd.DataFrame:
    """An insertion's numbers beside those between seeds, never subtracted.

    Parameters
    ----------
    result : Insertion
        Between two widths.
    null_small, null_large : Insertion, optional
        Between two seeds of the small and of the large width.

    Returns
    -------
    DataFrame
        Indexed by measure (the keys of `Insertion.summary`), with columns `widths`,
        `null_small` and `null_large`; a column without a second seed says `"no second seed"`.
    """
    columns = {"widths": result, "null_small": null_small, "null_large": null_large}
    measures = list(result.summary)
    return pd.DataFrame(
        {
            name: pd.Series(
                ["no second seed"] * len(measures) if found is None else list(found.summary.values()),
                index=pd.Index(measures, name="measure"),
                dtype=object,
            )
            for name, found in columns.items()
        }
    )


def _by_group(group: Tensor, weights: Tensor | None, like: Tensor) -> Tensor:
    """Sum of `weights` (or count) over the entries of each group, in the shape of `like`."""
    return torch.bincount(group, weights, minlength=like.numel()).view_as(like).cpu()


def _on_cpu(matches: BestMatches) -> BestMatches:
    return replace(matches, cosine=matches.cosine.cpu(), index=matches.index.cpu())


def _roc(cosine: np.ndarray, gain: np.ndarray) -> pd.DataFrame:
    if not 0 < gain.sum() < len(gain):
        raise ValueError(
            f"A ROC curve needs latents that help and latents that do not: {int(gain.sum())} of "
            f"{len(gain)} help."
        )
    fpr, tpr, score = roc_curve(gain, -cosine, drop_intermediate=False)
    # A latent is predicted novel if its cosine is at most -score, which is below the next float.
    theta = np.nextafter(-score.astype(np.float32), np.float32(np.inf))
    return pd.DataFrame({"theta": theta, "fpr": fpr, "tpr": tpr})


def _prediction(theta: float, cosine: np.ndarray, gain: np.ndarray) -> dict[str, Any]:
    novel = cosine < theta

    def share(condition: np.ndarray) -> float:
        return float(condition.mean()) if len(condition) else float("nan")

    true_positive, false_positive = share(novel[gain]), share(novel[~gain])
    return {
        "theta": theta,
        "n_latents": len(gain),
        "share_novel_cos": share(novel),
        "share_novel_gain": share(gain),
        "true_positive_rate": true_positive,
        "false_positive_rate": false_positive,
        "accuracy": share(novel == gain),
        "balanced_accuracy": (true_positive + 1 - false_positive) / 2,
    }


# ---------------------------------------------------------------------- groups of latents


@dataclass(frozen=True, eq=False, repr=False)
class GroupInsertion(Result):
    """What inserting whole groups of latents does to a small dictionary.

    Attributes
    ----------
    small, large : Identity
        The dictionaries.
    frame : DataFrame
        One row a dictionary: `group`, `n_latents` (inserted, not dead), `mse`, `fvu`, `l0`,
        `mse_change` (against the small dictionary), `sum_of_single_changes` (of inserting each
        latent alone), `additivity` (their ratio: the real change as a share of that sum; 1 if
        gains add up). The groups are `"small"` (nothing inserted), `"novel_cos"`,
        `"reconstruction_cos"` (all others by cosine), `"novel_gain"`, `"not novel_gain"`,
        `"all"` and, for comparison, the `"large"` dictionary itself; the last has no single
        changes.
    n_tokens, n_excluded : int
        Tokens used and positions left out.
    """

    small: Identity
    large: Identity
    frame: pd.DataFrame
    n_tokens: int
    n_excluded: int

    @property
    def summary(self) -> dict[str, Any]:
        """`small`, `large`, `n_tokens`, `n_excluded`, and FVU and L0 by group."""
        frame = self.frame.set_index("group")
        return {
            "small": str(self.small),
            "large": str(self.large),
            "n_tokens": self.n_tokens,
            "n_excluded": self.n_excluded,
            "fvu": {str(group): float(value) for group, value in frame["fvu"].items()},
            "l0": {str(group): float(value) for group, value in frame["l0"].items()},
        }


def group_insertion(
    small: Dictionary,
    large: Dictionary,
    insertion: Insertion,
    activations: ActivationStore | Tensor,
    *,
    batch_size: int = 4096,
    progress: bool = False,
) -> GroupInsertion:
    """MSE, FVU and L0 after inserting all novel latents, all others, or all, by both labels.

    Parameters
    ----------
    small, large : Dictionary
        The dictionaries that `insertion` compared.
    insertion : Insertion
        Says which latents are novel, and what each does alone.
    activations : ActivationStore or Tensor
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    batch_size : int
        Tokens at a time.
    progress : bool
        Show a progress bar in tokens.

    Raises
    ------
    ValueError
        If a dictionary is TopK or is not the one that `insertion` compared, or there are no
        tokens.

    Notes
    -----
    Leask et al. (ICLR 2025), section on SAE stitching: inserting the novel latents improves the
    reconstruction, inserting the reconstruction latents harms it. The decoder bias is the small
    dictionary's (Eq. 5).
    """
    _check_same(small, large, insertion)
    alive = ~insertion.dead
    novel_cos, novel_gain = alive & insertion.novel_cos, alive & insertion.novel_gain
    groups = {
        "small": torch.zeros_like(alive),
        "novel_cos": novel_cos,
        "reconstruction_cos": alive & ~novel_cos,
        "novel_gain": novel_gain,
        "not novel_gain": alive & ~novel_gain,
        "all": alive,
    }
    errors = dict.fromkeys([*groups, "large"], 0.0)
    small_active, large_active = 0, torch.zeros(large.width, dtype=torch.long)
    moments = Moments(small.d_in)
    with torch.no_grad(), tqdm(disable=not progress, unit="token", desc="group insertion") as bar:
        for _, x in batches_of(activations, batch_size, device=large.W_enc.device):
            small_latents, latents = small.encode_sparse(x), large.encode_sparse(x)
            residual = x - small.decode(small_latents)
            everything = latents.matmul(large.W_dec)
            added = {"small": torch.zeros_like(everything), "all": everything}
            for name, others, mask in (
                ("novel_cos", "reconstruction_cos", novel_cos),
                ("novel_gain", "not novel_gain", novel_gain),
            ):
                values = latents.values * mask.to(latents.indices.device)[latents.indices]
                part = SparseLatents(latents.offsets, latents.indices, values, large.width)
                added[name] = part.matmul(large.W_dec)
                added[others] = everything - added[name]
            for name, addition in added.items():
                errors[name] += float((residual - addition).double().square().sum())
            errors["large"] += float((x - everything - large.b_dec).double().square().sum())
            small_active += len(small_latents.values)
            large_active += torch.bincount(latents.indices, minlength=large.width).cpu()
            moments.update(x)
            bar.update(len(x))
    if moments.n == 0:
        raise ValueError("There are no activations to insert latents on: every position is excluded.")
    changes = insertion.mse_change
    rows = []
    for name, error in errors.items():
        change = (error - errors["small"]) / moments.n
        inserted = groups.get(name, alive)
        single = float("nan") if name == "large" else float(changes[inserted].sum())
        active = int(large_active[inserted].sum()) + (0 if name == "large" else small_active)
        rows.append(
            {
                "group": name,
                "n_latents": int(inserted.sum()),
                "mse": error / moments.n,
                "fvu": fvu(error, moments.total_variance),
                "l0": active / moments.n,
                "mse_change": change,
                "sum_of_single_changes": single,
                "additivity": change / single if single else float("nan"),
            }
        )
    return GroupInsertion(
        small.identity, large.identity, pd.DataFrame(rows), moments.n, n_excluded(activations)
    )


def _check_same(small: Dictionary, large: Dictionary, insertion: Insertion) -> None:
    for dictionary in (small, large):
        dictionary.require_independent("Inserting latents")
    insertion.small.require(small.identity, "The insertion's small dictionary")
    insertion.large.require(large.identity, "The insertion's large dictionary")


# ---------------------------------------------------------------------- cross-entropy


@dataclass(frozen=True, eq=False, repr=False)
class CEInsertion(Result):
    """What inserting single latents does to the language model's cross-entropy.

    Attributes
    ----------
    small, large : Identity
        The dictionaries.
    frame : DataFrame
        One row a sampled latent: `latent`, `sample` (`"helps"` or `"hurts"`, by MSE), `best_cosine`,
        `mse_change`, `density`, `n_rows_active` (rows of the store on which it is active),
        `n_rows` (rows run), `ce_change_active` (mean over the targets of the rows run),
        `ce_change` (mean over all targets of the store: rows on which the latent is silent
        cannot change, and the rows run stand evenly for the others) and `ce_change_error` (its
        standard error: the rows run are a random sample). Nats a token, with the latent minus
        without: negative helps.
    n_targets : int
        Targets of the store that are not special tokens.
    """

    _plot: ClassVar[str] = "ce_insertion_scatter"

    small: Identity
    large: Identity
    frame: pd.DataFrame
    n_targets: int

    @property
    def summary(self) -> dict[str, Any]:
        """How far the change in CE agrees with the change in MSE and with the cosine.

        `small`, `large`, `n_latents`, `n_targets`, `sign_agreement` (share of latents whose two
        changes have the same sign), `n_clear` (latents whose CE change is more than two standard
        errors from 0), `sign_agreement_clear` (among these), `spearman_mse` (CE change with MSE
        change) and `spearman_cosine` (CE change with best cosine).
        """
        frame = self.frame
        agreement = np.sign(frame["ce_change"]) == np.sign(frame["mse_change"])
        clear = frame["ce_change"].abs() > 2 * frame["ce_change_error"]
        return {
            "small": str(self.small),
            "large": str(self.large),
            "n_latents": len(frame),
            "n_targets": self.n_targets,
            "sign_agreement": float(agreement.mean()),
            "n_clear": int(clear.sum()),
            "sign_agreement_clear": float(agreement[clear].mean()) if clear.any() else float("nan"),
            "spearman_mse": float(spearmanr(frame["ce_change"], frame["mse_change"]).statistic),
            "spearman_cosine": float(spearmanr(frame["ce_change"], frame["best_cosine"]).statistic),
        }


def ce_insertion(
    model: TransformerBridge,
    small: Dictionary,
    large: Dictionary,
    insertion: Insertion,
    store: ActivationStore,
    *,
    n_latents: int = 20,
    rows_per_latent: int = 4,
    seed: int = 0,
    batch_rows: int = 16,
    progress: bool = False,
) -> CEInsertion:
    """Change in next-token cross-entropy when a latent alone is inserted, by real forward passes.

    The activation is replaced by the small dictionary's reconstruction, with and without the
    latent. At excluded positions the original activation passes through; the average is over
    positions whose target is not a special token.

    Parameters
    ----------
    model : TransformerBridge
        The language model that the store was harvested from.
    small, large : Dictionary
        The dictionaries that `insertion` compared.
    insertion : Insertion
        Says which latents help and which hurt by MSE.
    store : ActivationStore
        The tokens to run.
    n_latents : int
        Latents to sample, half from those that help and half from those that hurt, as far as
        there are as many.
    rows_per_latent : int
        Rows to run for each, sampled from those on which it is active.
    seed : int
        Of the samples of latents and rows.
    batch_rows : int
        Rows a forward pass.
    progress : bool
        Show a progress bar in rows.

    Raises
    ------
    ValueError
        If a dictionary is TopK or is not the one that `insertion` compared, or no sampled latent
        is active on the store.

    Notes
    -----
    Leask et al. (ICLR 2025), section on SAE stitching, in cross-entropy. A row here is one
    context window of the store.
    """
    _check_same(small, large, insertion)
    random = np.random.default_rng(seed)
    sample = _stratified(insertion, n_latents, random)
    chosen = large.gather(sample["latent"].tolist())
    targets = ~store.special[:, 1:]
    n_targets = int(targets.sum())

    rows_active = _rows_active(chosen, store)
    jobs = []  # (place in the sample, row of the store)
    for place, candidates in enumerate(rows_active):
        picked = random.permutation(len(candidates))[:rows_per_latent]
        jobs += [(place, int(row)) for row in np.sort(candidates[picked])]
    if not jobs:
        raise ValueError("None of the sampled latents is active on the store.")

    def row_losses(rows: Tensor, places: Tensor | None) -> Tensor:
        """CE summed over each row's targets, with latent `places[b]` inserted in row `b`."""
        tokens, excluded = store.tokens[rows], store.excluded[rows]

        def replace(x: Tensor) -> Tensor:
            flat = x.float().flatten(0, 1)
            replaced = small.reconstruct(flat).view_as(x)
            if places is not None:
                latents = chosen.encode(flat).unflatten(0, x.shape[:2])
                values = latents.gather(2, places[:, None, None].expand(-1, x.shape[1], 1))
                replaced = replaced + values * chosen.W_dec[places][:, None, :]
            return torch.where(excluded[:, :, None], x, replaced.to(x.dtype))

        logits = logits_with_replacement(model, tokens, store.hook_point, replace)
        loss = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), tokens[:, 1:], reduction="none")
        return (loss.double() * targets[rows]).sum(1)

    places, rows = (torch.tensor(column) for column in zip(*jobs, strict=True))
    distinct, where = rows.unique(return_inverse=True)
    with torch.no_grad(), tqdm(total=len(distinct) + len(rows), disable=not progress, unit="row") as bar:

        def run(rows: Tensor, places: Tensor | None) -> Tensor:
            losses = []
            for part in torch.arange(len(rows)).split(batch_rows):
                losses.append(row_losses(rows[part], None if places is None else places[part]))
                bar.update(len(part))
            return torch.cat(losses)

        without = run(distinct, None)
        change = run(rows, places) - without[where]

    n_active = np.array([len(candidates) for candidates in rows_active])
    by_latent = [change[places == place].numpy() for place in range(len(sample))]
    n_rows = np.array([len(changes) for changes in by_latent])
    n_run = torch.bincount(places, targets.sum(1)[rows].double(), minlength=len(sample)).numpy()
    total = np.array([changes.sum() for changes in by_latent])
    frame = sample.assign(
        n_rows_active=n_active,
        n_rows=n_rows,
        ce_change_active=_ratio(total, n_run),
        ce_change=np.where(n_active > 0, _ratio(total, n_rows), 0.0) * n_active / n_targets,
        ce_change_error=[
            _standard_error_of_total(changes, int(n)) / n_targets
            for changes, n in zip(by_latent, n_active, strict=True)
        ],
    )
    return CEInsertion(small.identity, large.identity, frame, n_targets)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def _standard_error_of_total(sample: np.ndarray, n: int) -> float:
    """Standard error of `n * sample.mean()`, a total over `n` rows sampled without replacement."""
    if len(sample) == n:
        return 0.0
    if len(sample) < 2:
        return float("nan")
    return float(n * sample.std(ddof=1) * np.sqrt((1 - len(sample) / n) / len(sample)))


def _stratified(insertion: Insertion, n_latents: int, random: np.random.Generator) -> pd.DataFrame:
    """A random sample of latents that are not dead, half that help and half that hurt."""
    frame = insertion.frame.query("not dead")
    helps, hurts = frame[frame["novel_gain"]], frame[~frame["novel_gain"]]
    n_helps = min(len(helps), max(n_latents // 2, n_latents - len(hurts)))
    parts = []
    for name, part, n in (("helps", helps, n_helps), ("hurts", hurts, n_latents - n_helps)):
        picked = np.sort(random.permutation(len(part))[:n])
        parts.append(part.iloc[picked].assign(sample=name))
    columns = ["latent", "sample", "best_cosine", "mse_change", "density"]
    return pd.concat(parts, ignore_index=True)[columns]


def _rows_active(dictionary: Dictionary, store: ActivationStore) -> list[np.ndarray]:
    """For each latent, the rows of the store with a used position on which it is active."""
    active = torch.zeros(dictionary.width, store.n_rows, dtype=torch.bool)
    for positions, x in batches_of(store, device=dictionary.W_enc.device):
        latents = dictionary.encode_sparse(x)
        active[latents.indices.cpu(), positions[latents.rows.cpu()] // store.context_length] = True
    return [row.nonzero()[:, 0].numpy() for row in active]
