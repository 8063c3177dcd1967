"""Whether a loaded SAE is the one that was published: its recorded numbers beside measured ones."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pandas as pd

from saekit.activations import Activations, as_activations
from saekit.agreement import SIZES, compare_records, shown
from saekit.dictionary import Dictionary
from saekit.metrics import evaluate
from saekit.results import Result
from saekit.settings import real
from saekit.warn import warn

L0_TOLERANCE = 0.3  # relative, since texts and excluded positions differ
EXPLAINED_VARIANCE_TOLERANCE = 0.05


@dataclass(frozen=True, eq=False, repr=False)
class Check(Result):
    """The recorded properties of a dictionary beside those found on some activations.

    Attributes
    ----------
    frame : DataFrame
        By `what` (`l0`, `explained_variance`, `hook_point`, and `model_weights` or `model` and
        `model_revision`, and `weight_processing`): `recorded`, `found`, `agrees`. Only properties
        that are recorded on both sides have a row.
    fvu, l0, dead_fraction : float
        Fraction of variance unexplained, mean number of active latents and share of latents that never
        were, whether or not anything about them is recorded.
    n_tokens, n_excluded : int
        Positions evaluated and left out.
    """

    frame: pd.DataFrame
    fvu: float
    l0: float
    dead_fraction: float
    n_tokens: int
    n_excluded: int

    @property
    def failure(self) -> str:
        """Why it does not reconstruct these activations at all; empty if it does."""
        if self.l0 == 0:
            return f"no latent is active on any of {self.n_tokens:,} tokens"
        if self.fvu >= 1:
            return f"it explains no more than the mean of the activations does (FVU {self.fvu:.3g})"
        return ""

    @property
    def summary(self) -> dict[str, Any]:
        """`agrees`, `n_recorded`, `fvu`, `l0`, `dead_fraction`, `n_tokens`, `n_excluded`.

        It agrees if everything recorded does and it reconstructs something (`failure` is empty).
        """
        return {
            "agrees": bool(self.frame["agrees"].all()) and not self.failure,
            "n_recorded": len(self.frame),
            "fvu": self.fvu,
            "l0": self.l0,
            "dead_fraction": self.dead_fraction,
            "n_tokens": self.n_tokens,
            "n_excluded": self.n_excluded,
        }


def check_sae(
    dictionary: Dictionary,
    activations: Activations,
    *,
    l0_tolerance: float = L0_TOLERANCE,
    explained_variance_tolerance: float = EXPLAINED_VARIANCE_TOLERANCE,
) -> Check:
    """Compare a dictionary with its record, and warn where they disagree.

    A tensor in the wrong orientation, a forgotten bias, a model whose weights were processed in
    another way: each shows up in L0 or in explained variance (`1 - FVU`) long before it shows up in a
    figure.

    Parameters
    ----------
    dictionary : Dictionary
        Its record is `info["expected_l0"]` and `info["expected_explained_variance"]`, and with a
        store as `activations` also everything that `saekit.agreement` compares.
    activations : ActivationStore, Tensor or array
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    l0_tolerance : float
        Largest relative difference of L0 that counts as agreement.
    explained_variance_tolerance : float
        Largest absolute difference of explained variance that counts as agreement.

    Warns
    -----
    UserWarning
        One sentence for each disagreement, and one if no latent is ever active or FVU is 1 or more.

    Raises
    ------
    ValueError
        If nothing that could be compared is recorded.

    Examples
    --------
    >>> eye = torch.eye(6)[:4]
    >>> sae = saekit.Dictionary.from_weights(eye, eye, d_in=6, info={"expected_l0": 0.7})
    >>> saekit.check_sae(sae, x).frame
          recorded  found  agrees
    what
    l0         0.7  0.685    True
    """
    l0_tolerance = real("l0_tolerance", l0_tolerance, at_least=0)
    explained_variance_tolerance = real(
        "explained_variance_tolerance", explained_variance_tolerance, at_least=0
    )
    info = dictionary.info
    rows: list[tuple[str, Any, Any, bool]] = []
    activations = as_activations(activations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what disagrees is reported below, row by row
        measured = evaluate(dictionary, activations, allow_mismatch=True)
    if (l0 := info.get("expected_l0")) is not None:
        rows.append(("l0", l0, measured.l0, abs(measured.l0 - l0) <= l0_tolerance * l0))
    if (share := info.get("expected_explained_variance")) is not None:
        explained = 1 - measured.fvu
        agrees = abs(explained - share) <= explained_variance_tolerance
        rows.append(("explained_variance", share, explained, agrees))
    for what, recorded, found in compare_records(dictionary, activations):
        if what not in SIZES and recorded is not None and found is not None:
            rows.append((what.replace(" ", "_"), shown(recorded), shown(found), recorded == found))
    if not rows:
        known = ", ".join(sorted(info)) or "nothing"
        raise ValueError(
            f"{dictionary.name} records nothing that it could be checked against: its info should hold "
            f"expected_l0 or expected_explained_variance, and holds {known}."
        )
    for what, recorded, found, agrees in rows:
        if not agrees:
            warn(
                f"{dictionary.name}: {what} is recorded as {_rounded(recorded)}, but here it is "
                f"{_rounded(found)}.",
            )
    frame = pd.DataFrame(rows, columns=["what", "recorded", "found", "agrees"]).set_index("what")
    check = Check(
        frame=frame,
        fvu=measured.fvu,
        l0=measured.l0,
        dead_fraction=measured.dead_fraction,
        n_tokens=measured.n_tokens,
        n_excluded=measured.n_excluded,
    )
    if check.failure:
        warn(f"{dictionary.name}: {check.failure}.")
    return check


def _rounded(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)
