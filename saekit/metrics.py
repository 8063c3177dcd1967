"""How well a dictionary reconstructs, and what that costs the model: one definition per number, streamed.

All sums are float64. Excluded positions (special tokens, first positions, massive norms) do not enter
`evaluate`; in `ce_degradation` the original activation passes through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import Activations, ActivationStore, as_activations
from saekit.agreement import check_agreement
from saekit.cache import cached
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity
from saekit.models import device_of, require_rows, run_to
from saekit.moments import ROWS, fvu, ratio_of_totals, squared_norms
from saekit.passes import Batch, Tokens, one_pass
from saekit.results import Result
from saekit.settings import whole

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# From inputs and the activations to be replaced (the same, except for transcoders) to other ones.
Replace: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Result):
    """A dictionary's reconstruction of a set of activations.

    Attributes
    ----------
    fvu : float
        Fraction of variance unexplained (see `fvu`).
    mse : float
        Squared error summed over dimensions, averaged over tokens.
    l0 : float
        Mean number of active latents per token.
    density : Tensor
        Share of tokens on which each latent is active, float64 `[width]`.
    n_tokens, n_excluded : int
        Positions evaluated and left out.
    dictionary : Identity
        Identity of the dictionary.
    reconstruction_bias : float
        `E[|z|^2] / E[<z, x - b_dec>]` of the latents' contribution `z = x_hat - b_dec`: under 1 if it is too
        small, so that scaling it up by the inverse lowers the error (shrinkage); 1 if no factor helps
        (Rajamanoharan et al. 2024, arXiv:2404.16014, there with `x_hat` in place of `z`).
    row_errors, row_tokens : Tensor
        Squared error (float64) and tokens (int64) of each row of the store, `[rows]`: the units over
        which comparisons have error bars. Every activation of a plain tensor is a row.
    """

    fvu: float
    mse: float
    l0: float
    density: Tensor
    n_tokens: int
    n_excluded: int
    dictionary: Identity
    reconstruction_bias: float
    row_errors: Tensor
    row_tokens: Tensor
    _plot: ClassVar[str] = "density_histogram"

    @property
    def dead_fraction(self) -> float:
        """Share of latents that are active on none of the tokens."""
        return float((self.density == 0).double().mean())

    @property
    def frame(self) -> pd.DataFrame:
        """One row per latent: `latent`, `density`, `dead`."""
        density = self.density.numpy()
        return pd.DataFrame({"latent": range(len(density)), "density": density, "dead": density == 0})

    @property
    def summary(self) -> dict[str, Any]:
        """The headline numbers."""
        return {
            "dictionary": str(self.dictionary),
            "fvu": self.fvu,
            "mse": self.mse,
            "l0": self.l0,
            "dead_fraction": self.dead_fraction,
            "reconstruction_bias": self.reconstruction_bias,
            "n_tokens": self.n_tokens,
            "n_excluded": self.n_excluded,
        }


@cached
def evaluate(
    dictionary: Dictionary,
    activations: Activations,
    *,
    batch_size: int = 4096,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Evaluation:
    """FVU, MSE, L0 and density of every latent, in one pass.

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary to evaluate.
    activations : ActivationStore, Tensor or array
        A store (its excluded positions are left out and counted) or raw activations
        `[n, d_in]`.
    batch_size : int
        Tokens at a time; the result does not depend on it beyond rounding.
    progress : bool
        Show a progress bar in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the inputs do not belong together, an activation is not finite, or there are no tokens.

    Examples
    --------
    >>> result = saekit.evaluate(small, x)
    >>> round(result.l0, 3), tuple(result.density.shape)
    (1.795, (8,))
    """
    adding = EvaluationPass(dictionary, activations)
    tokens = one_pass(
        activations,
        adding,
        dictionaries=[dictionary],
        purpose="evaluation",
        batch_size=batch_size,
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    return adding.finished(tokens)


class EvaluationPass:
    """`evaluate` as a part of a pass that others share."""

    def __init__(self, dictionary: Dictionary, activations: Activations) -> None:
        require_dictionaries(dictionary=dictionary)
        self.dictionary = dictionary
        activations = as_activations(activations)
        n_rows, self._length = (
            (len(activations), 1)
            if isinstance(activations, Tensor)
            else (activations.n_rows, activations.context_length)
        )
        self._active = torch.zeros(dictionary.width, dtype=torch.long)
        self._row_errors = torch.zeros(n_rows, dtype=torch.float64)
        self._row_tokens = torch.zeros(n_rows, dtype=torch.long)
        self._size = self._along = 0.0

    def __call__(self, batch: Batch) -> None:
        """Add a batch."""
        dictionary = self.dictionary
        scale = dictionary.row_scale(batch.x)
        empty = dictionary.b_dec if scale is None else dictionary.b_dec * scale.factor + scale.centre
        residual, target = batch.residual(dictionary), batch.target - empty
        rows = batch.positions // self._length
        self._row_errors.index_add_(0, rows, squared_norms(residual).cpu())
        self._row_tokens += torch.bincount(rows, minlength=len(self._row_tokens))
        for left, all_of_it in zip(residual.split(ROWS), target.double().split(ROWS), strict=True):
            added = all_of_it - left  # the contribution of the latents
            self._size += float(added.square().sum())
            self._along += float((added * all_of_it).sum())
        latents = batch.latents(dictionary)
        self._active += torch.bincount(latents.indices, minlength=dictionary.width).cpu()

    def finished(self, tokens: Tokens) -> Evaluation:
        """The evaluation, once the pass is over."""
        squared_error = float(self._row_errors.sum())
        return Evaluation(
            fvu=fvu(squared_error, tokens.total_variance),
            mse=squared_error / tokens.n_tokens,
            l0=float(self._active.sum()) / tokens.n_tokens,
            density=self._active.double() / tokens.n_tokens,
            n_tokens=tokens.n_tokens,
            n_excluded=tokens.n_excluded,
            dictionary=self.dictionary.identity,
            reconstruction_bias=self._size / self._along if self._along else float("nan"),
            row_errors=self._row_errors,
            row_tokens=self._row_tokens,
        )


@dataclass(frozen=True, eq=False, repr=False)
class CEDegradation(Result):
    """The cost to the language model of replacing activations by reconstructions.

    Attributes
    ----------
    dictionaries : tuple of Identity
        The dictionaries, in the order of the frame.
    frame : DataFrame
        One row per dictionary: `dictionary`, `width`, `ce` (nats per token), `ce_degradation` (with
        the reconstruction minus without: positive is worse) and `ce_degradation_error` (its standard
        error over rows of tokens), `loss_recovered_zero` and `loss_recovered_mean` (share of what zero
        and mean ablation lose), and `ce_degradation_everywhere`, with excluded positions replaced too
        (NaN if that was not run).
    ce_original, ce_zero_ablation, ce_mean_ablation : float
        Cross-entropy of the untouched model and of the two ablations, in nats per token.
    n_targets : int
        Predicted tokens averaged over: those that are not special.
    n_passed_through : int
        Excluded positions, where the original activation stays.
    row_changes : Tensor
        Change in cross-entropy summed over the targets of each row of tokens, float64
        `[dictionaries, rows]`.
    row_targets : Tensor
        Targets of each row, int64 `[rows]`.
    """

    dictionaries: tuple[Identity, ...]
    frame: pd.DataFrame
    ce_original: float
    ce_zero_ablation: float
    ce_mean_ablation: float
    n_targets: int
    n_passed_through: int
    row_changes: Tensor
    row_targets: Tensor

    def compare(self, reference: int = 0) -> pd.DataFrame:
        """Every dictionary's CE degradation minus the reference's, paired by row of tokens.

        All dictionaries run on the same rows, so the difference between two of them is far more
        certain than either number alone.

        Parameters
        ----------
        reference : int
            Place of the dictionary to subtract.

        Returns
        -------
        DataFrame
            One row per dictionary: `dictionary`, `difference` (nats per token: positive is worse than
            the reference) and `difference_error` (its standard error over rows).
        """
        found = [
            ratio_of_totals(row - self.row_changes[reference], self.row_targets) for row in self.row_changes
        ]
        difference, error = zip(*found, strict=True)
        return pd.DataFrame(
            {"dictionary": self.frame["dictionary"], "difference": difference, "difference_error": error}
        )

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers that all dictionaries share, and each `ce_degradation` by name, in nats per token.

        Where several have the same name, their places follow it, such as `"relu 64 [0]"`.
        """
        names = list(self.frame["dictionary"])
        keys = [f"{name} [{i}]" if names.count(name) > 1 else name for i, name in enumerate(names)]
        return {
            "ce_degradation": dict(zip(keys, map(float, self.frame["ce_degradation"]), strict=True)),
            "ce_original": self.ce_original,
            "ce_zero_ablation": self.ce_zero_ablation,
            "ce_mean_ablation": self.ce_mean_ablation,
            "n_targets": self.n_targets,
            "n_passed_through": self.n_passed_through,
        }


@cached
def ce_degradation(
    model: TransformerBridge,
    dictionaries: Dictionary | Sequence[Dictionary],
    store: ActivationStore,
    *,
    max_rows: int = 64,
    batch_rows: int = 16,
    everywhere: bool = True,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> CEDegradation:
    """Increase in cross-entropy when activations are replaced by their reconstruction.

    The original activation passes through at excluded positions; the average is over positions
    whose target is not a special token (Leask et al., ICLR 2025, glossary: CE degradation).

    Parameters
    ----------
    model : TransformerBridge
        The language model that the store was harvested from.
    dictionaries : Dictionary or sequence of Dictionary
        Their reconstructions replace the activations; ablations are run once for all.
    store : ActivationStore
        Held-out tokens, and the mean that mean ablation inserts.
    max_rows : int
        Rows of tokens to run, spread evenly over the store.
    batch_rows : int
        Rows per forward pass.
    everywhere : bool
        Also run the model with excluded positions replaced, which doubles the time.
    progress : bool
        Show a progress bar in rows.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    MismatchError
        If model, store and dictionaries do not belong together (`saekit.agreement`).
    ValueError
        If the store holds no tokens, the model is in training mode, or a setting is out of range.

    Examples
    --------
    >>> result = saekit.ce_degradation(model, [saes[16], saes[32]], harvested, max_rows=4)
    >>> result.frame.columns.tolist()
    ['dictionary', 'width', 'ce', 'ce_degradation', 'ce_degradation_error', 'loss_recovered_zero',
     'loss_recovered_mean', 'ce_degradation_everywhere']
    """
    max_rows, batch_rows = whole("max_rows", max_rows), whole("batch_rows", batch_rows)
    members = list(dictionaries) if isinstance(dictionaries, Iterable) else [dictionaries]
    check_agreement(model=model, activations=store, dictionaries=members, allow_mismatch=allow_mismatch)
    require_rows(model, store.tokens)
    rows = torch.linspace(0, store.n_rows - 1, min(max_rows, store.n_rows)).round().long().unique()

    def reconstruct(dictionary: Dictionary) -> Replace:
        return lambda x, y: dictionary.reconstruct(x.flatten(0, 1)).view_as(y)

    by_row = _ablations(model, store, rows, batch_rows, progress=progress)
    by_row |= _row_losses(
        model,
        store,
        rows,
        {str(i): reconstruct(member) for i, member in enumerate(members)},
        batch_rows,
        everywhere=everywhere,
        progress=progress,
    )
    targets, excluded = ~store.special[rows, 1:], store.excluded[rows]
    ce = {name: float(row.sum()) / int(targets.sum()) for name, row in by_row.items()}
    changes = torch.stack([by_row[str(i)] - by_row["original"] for i in range(len(members))])
    row_targets = targets.sum(1)
    frame = pd.DataFrame(
        {
            "dictionary": member.name,
            "width": member.width,
            "ce": ce[str(i)],
            "ce_degradation": ce[str(i)] - ce["original"],
            "ce_degradation_error": ratio_of_totals(changes[i], row_targets)[1],
            "loss_recovered_zero": (ce["zero"] - ce[str(i)]) / (ce["zero"] - ce["original"]),
            "loss_recovered_mean": (ce["mean"] - ce[str(i)]) / (ce["mean"] - ce["original"]),
            "ce_degradation_everywhere": ce.get(f"{i} everywhere", float("nan")) - ce["original"],
        }
        for i, member in enumerate(members)
    )
    return CEDegradation(
        tuple(member.identity for member in members),
        frame,
        ce["original"],
        ce["zero"],
        ce["mean"],
        int(targets.sum()),
        int(excluded.sum()),
        changes,
        row_targets,
    )


@cached
def _ablations(
    model: TransformerBridge, store: ActivationStore, rows: Tensor, batch_rows: int, *, progress: bool
) -> dict[str, Tensor]:
    """Losses of rows without a dictionary: of the model as it is, and of zero and mean ablation."""
    mean = one_pass(store, purpose="mean ablation").moments.mean.float().to(device_of(model))
    replacements: dict[str, Replace] = {
        "original": lambda _, y: y,
        "zero": lambda _, y: torch.zeros_like(y),
        "mean": lambda _, y: mean.expand_as(y),
    }
    return _row_losses(model, store, rows, replacements, batch_rows, everywhere=False, progress=progress)


@torch.no_grad()
def _row_losses(
    model: TransformerBridge,
    store: ActivationStore,
    rows: Tensor,
    replacements: Mapping[str, Replace],
    batch_rows: int,
    *,
    everywhere: bool,
    progress: bool,
) -> dict[str, Tensor]:
    """Loss summed over the targets of each row, float64 `[rows]`, with the activations replaced.

    `everywhere` adds, as `"name everywhere"`, those with excluded positions replaced too.
    """
    losses: dict[str, list[Tensor]] = {}
    device = device_of(model)
    total = len(replacements) * (1 + everywhere) * len(rows)
    with tqdm(total=total, disable=not progress, unit="row") as bar:
        for part in rows.split(batch_rows):
            kept, targets = store.excluded[part, :, None].to(device), ~store.special[part, 1:].to(device)
            if store.target is None:
                run = run_to(model, store.tokens[part], store.hook_point)
            else:
                run = run_to(model, store.tokens[part], store.target, inputs=store.hook_point)
            y = run.activations.float()
            x = y if run.inputs is None else run.inputs.float()
            for name, replace in replacements.items():
                replaced = replace(x, y).to(run.activations.dtype)
                given = {name: torch.where(kept, run.activations, replaced)}
                if everywhere:
                    given[f"{name} everywhere"] = replaced
                for key, activations in given.items():
                    loss = run.losses(activations).double() * targets
                    losses.setdefault(key, []).append(loss.sum(1).cpu())
                    bar.update(len(part))
    return {name: torch.cat(parts) for name, parts in losses.items()}
