"""Is a loaded SAE what it was published as? Its recorded numbers beside measured ones."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from saekit.activations import ActivationStore
from saekit.dictionary import Dictionary
from saekit.metrics import evaluate

L0_TOLERANCE = 0.3  # relative: texts differ, and so do the positions that are left out
EXPLAINED_VARIANCE_TOLERANCE = 0.05


@dataclass(frozen=True)
class Check:
    """What is recorded of a dictionary beside what it does on some activations.

    Attributes
    ----------
    frame : DataFrame
        By `what` (`l0`, `explained_variance`, `hook_point`, `model`, `model_processing`):
        `recorded`, `found`, `agrees`. Nothing that is not recorded has a row.
    n_tokens, n_excluded : int
        Positions evaluated and left out.
    """

    frame: pd.DataFrame
    n_tokens: int
    n_excluded: int

    @property
    def summary(self) -> dict[str, Any]:
        """`agrees` (in everything recorded), `n_recorded`, `n_tokens`, `n_excluded`."""
        return {
            "agrees": bool(self.frame["agrees"].all()),
            "n_recorded": len(self.frame),
            "n_tokens": self.n_tokens,
            "n_excluded": self.n_excluded,
        }


def check_sae(
    dictionary: Dictionary,
    activations: ActivationStore | Tensor,
    *,
    l0_tolerance: float = L0_TOLERANCE,
    explained_variance_tolerance: float = EXPLAINED_VARIANCE_TOLERANCE,
) -> Check:
    """Compare a dictionary with what is recorded of it, and warn where they disagree.

    A tensor in the wrong orientation, a forgotten bias, a model whose weights were processed in
    another way: each shows in L0 or in explained variance (`1 - FVU`) long before it shows in a
    figure.

    Parameters
    ----------
    dictionary : Dictionary
        Recorded are `info["expected_l0"]` and `info["expected_explained_variance"]`, and with a store
        as `activations` also `hook_point`, `model` and `model_processing`.
    activations : ActivationStore or Tensor
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    l0_tolerance : float
        Largest relative difference of L0 that agrees.
    explained_variance_tolerance : float
        Largest absolute difference of explained variance that agrees.

    Warns
    -----
    UserWarning
        One sentence for each disagreement.

    Raises
    ------
    ValueError
        If nothing that could be compared is recorded.
    """
    info = dictionary.info
    rows: list[tuple[str, Any, Any, bool]] = []
    measured = evaluate(dictionary, activations)
    if (l0 := info.get("expected_l0")) is not None:
        rows.append(("l0", l0, measured.l0, abs(measured.l0 - l0) <= l0_tolerance * l0))
    if (share := info.get("expected_explained_variance")) is not None:
        explained = 1 - measured.fvu
        agrees = abs(explained - share) <= explained_variance_tolerance
        rows.append(("explained_variance", share, explained, agrees))
    if isinstance(activations, ActivationStore):
        model = activations.manifest["model"]
        for what, found in (
            ("hook_point", activations.hook_point),
            ("model", model["name"]),
            ("model_processing", model["processing"]),
        ):
            recorded = info.get(what)
            if isinstance(recorded, dict):  # flags that are not named are off
                recorded = dict.fromkeys(found, False) | recorded
            if recorded is not None:
                # A local folder of a model is called by its own name, without the organisation.
                own = (str(name).rpartition("/")[2] for name in (recorded, found))
                same = recorded == found or (what == "model" and next(own) == next(own))
                rows.append((what, recorded, found, same))
    if not rows:
        known = ", ".join(sorted(info)) or "nothing"
        raise ValueError(
            f"Nothing is recorded of {dictionary.name} that it could be checked against: expected "
            f"expected_l0 or expected_explained_variance in its info, found {known}."
        )
    for what, recorded, found, agrees in rows:
        if not agrees:
            warnings.warn(
                f"{dictionary.name}: {what} is recorded as {_say(recorded)}, but here it is {_say(found)}.",
                stacklevel=2,
            )
    frame = pd.DataFrame(rows, columns=["what", "recorded", "found", "agrees"]).set_index("what")
    return Check(frame=frame, n_tokens=measured.n_tokens, n_excluded=measured.n_excluded)


def _say(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)
