"""Whether a dictionary has one code per token: the encoder's supports against those of sparse solvers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saekit import settings
from saekit.activations import Activations, as_activations
from saekit.agreement import check_agreement
from saekit.analysis.meta.baselines import matching_pursuit, non_negative_least_squares
from saekit.cache import cached
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity
from saekit.moments import Moments, fvu, squared_norms
from saekit.results import Result

CODERS = ("encoder", "encoder, refit", "matching pursuit", "iterative thresholding")
EQUAL = ("latents", "error")


@dataclass(frozen=True, eq=False, repr=False)
class CodeUniqueness(Result):
    """Codes of the same tokens on one dictionary, found by different encoders.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    equal : str
        What the codes of a token have in common: the number of `"latents"` or the `"error"`.
    n_tokens, n_dense : int
        Tokens that were encoded; and left out, since as many latents are active on them as there are
        dimensions, so that their coefficients are not determined.
    frame : DataFrame
        One row per coder: `coder` (`"encoder"`; `"encoder, refit"`, the encoder's support with the
        non-negative coefficients of least squares; `"matching pursuit"`, orthogonal and non-negative;
        `"iterative thresholding"`), `l0`, `fvu` (on these tokens).
    jaccard : DataFrame
        One row per pair of coders: `a`, `b`, `jaccard` (intersection over union of the two supports, mean
        over tokens), `chance` (the same with the second coder's supports of other tokens) and
        `identical` (share of tokens with equal supports).
    """

    dictionary: Identity
    equal: str
    n_tokens: int
    n_dense: int
    frame: pd.DataFrame
    jaccard: pd.DataFrame
    _plot: ClassVar[str] = "code_uniqueness"

    @property
    def summary(self) -> dict[str, Any]:
        """The headline numbers.

        `dictionary`, `equal`, `n_tokens`, `n_dense`; `jaccard` of encoder and matching pursuit and its
        `jaccard_chance`; `l0` and `fvu` by coder.
        """
        pursuit = self.jaccard[(self.jaccard["a"] == CODERS[0]) & (self.jaccard["b"] == CODERS[2])].iloc[0]
        return {
            "dictionary": str(self.dictionary),
            "equal": self.equal,
            "n_tokens": self.n_tokens,
            "n_dense": self.n_dense,
            "jaccard": float(pursuit["jaccard"]),
            "jaccard_chance": float(pursuit["chance"]),
            **{name: self.frame.set_index("coder")[name].to_dict() for name in ("l0", "fvu")},
        }


@cached
def compare_codes(
    dictionary: Dictionary,
    activations: Activations,
    *,
    equal: str = "latents",
    n_tokens: int = 256,
    iterations: int = 200,
    seed: int = 0,
    allow_mismatch: bool = False,
) -> CodeUniqueness:
    """Encode tokens with the encoder, matching pursuit and iterative hard thresholding.

    Coefficients are non-negative, and all coders add the decoder bias. On every token each solver may use as
    many latents as the encoder does there, and uses fewer where least squares sets one to zero; at equal
    error it uses as few as it needs to have no more error than the encoder's support, refit, but at most
    twice as many as the encoder.

    Parameters
    ----------
    dictionary : Dictionary
        Latents must not depend on each other.
    activations : ActivationStore, Tensor or array
        Tokens are drawn at random from these, excluded positions left out.
    equal : {"latents", "error"}
        What the codes of a token are to have in common.
    n_tokens : int
        Tokens to encode; all, if there are fewer.
    iterations : int
        Of hard thresholding, before its coefficients are refit on the support that it has found.
    seed : int
        Seed of the draw.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the dictionary is TopK, every token has as many active latents as dimensions, the inputs do not
        belong together, or a setting is out of range.

    Notes
    -----
    "Which Sparse Code?" (2026, OpenReview JiyytGKbA9) reports a Jaccard index of supports of about 0.43.
    Matching pursuit is orthogonal (Pati et al. 1993); iterative hard thresholding is that of
    Blumensath and Davies (2009), with the inverse of the greatest eigenvalue of the Gram matrix as its step.

    Examples
    --------
    >>> result = compare_codes(small, x, n_tokens=50)
    >>> result.frame["coder"].tolist()
    ['encoder', 'encoder, refit', 'matching pursuit', 'iterative thresholding']
    """
    require_dictionaries(dictionary=dictionary)
    dictionary.require_independent("Comparing codes")
    equal = settings.choice("equal", equal, EQUAL)
    n_tokens, iterations = settings.whole("n_tokens", n_tokens), settings.whole("iterations", iterations)
    seed = settings.whole("seed", seed, at_least=0)
    check_agreement(activations=activations, dictionaries=[dictionary], allow_mismatch=allow_mismatch)
    x = _drawn(as_activations(activations), n_tokens, seed).to(dictionary.W_enc.device)
    sparse = dictionary.encode_sparse(x).counts < dictionary.d_in
    if not sparse.any():
        raise ValueError(
            f"Sparse codes have fewer active latents per token than the {dictionary.d_in} dimensions, but "
            f"{dictionary.name} has at least as many on every token."
        )
    n_dense, x = int((~sparse).sum()), x[sparse]
    codes = encode_by_all(dictionary, x, iterations, equal=equal)
    moments = Moments(dictionary.d_in)
    moments.update(x)
    rows = []
    for coder, code in codes.items():
        error = float(squared_norms(x - dictionary.b_dec - code @ dictionary.W_dec).sum())
        l0 = float((code > 0).sum(1).double().mean())
        rows.append({"coder": coder, "l0": l0, "fvu": fvu(error, moments.total_variance)})
    supports = {coder: code > 0 for coder, code in codes.items()}
    pairs = []
    for a, b in combinations(codes, 2):
        one, other = supports[a], supports[b]
        pairs.append(
            {"a": a, "b": b, "jaccard": float(_jaccard(one, other).mean())}
            | {"chance": float(_jaccard(one, other.roll(1, 0)).mean())}
            | {"identical": float((one == other).all(1).double().mean())}
        )
    frames = pd.DataFrame(rows), pd.DataFrame(pairs)
    return CodeUniqueness(dictionary.identity, equal, len(x), n_dense, *frames)


def encode_by_all(
    dictionary: Dictionary, x: Tensor, iterations: int, *, equal: str = "latents"
) -> dict[str, Tensor]:
    """The code of each row by every coder, `[n, width]`; the encoder's has fewer latents than dimensions.

    Examples
    --------
    >>> {coder: tuple(code.shape) for coder, code in encode_by_all(small, x[:3], 10).items()}
    {'encoder': (3, 8), 'encoder, refit': (3, 8), 'matching pursuit': (3, 8),
     'iterative thresholding': (3, 8)}
    """
    atoms, target = dictionary.W_dec, x - dictionary.b_dec
    encoded = dictionary.encode(x)
    counts = (encoded > 0).sum(1)
    refit = _refit(target, atoms, encoded > 0)

    def pursued(counts: Tensor) -> Tensor:
        code = torch.zeros_like(encoded)
        for count in counts.unique().tolist():
            if count:
                here = counts == count
                code[here] = matching_pursuit(target[here], atoms, count, signed=False).dense()
        return code

    def thresholded(counts: Tensor) -> Tensor:
        return _refit(target, atoms, _thresholded(target, atoms, counts, iterations) > 0)

    if equal == "error":
        most = (2 * counts).clamp(max=min(atoms.shape) - 1)
        found = [_fewest(solve, target, atoms, refit, most) for solve in (pursued, thresholded)]
    else:
        found = [solve(counts) for solve in (pursued, thresholded)]
    return dict(zip(CODERS, (encoded, refit, *found), strict=True))


def _fewest(
    solve: Callable[[Tensor], Tensor], target: Tensor, atoms: Tensor, as_good_as: Tensor, most: Tensor
) -> Tensor:
    """Each row's code with the fewest latents, by bisection, whose error is at most that of another code."""

    def error(code: Tensor) -> Tensor:
        return squared_norms(target - code @ atoms)

    bound = error(as_good_as) * (1 + 1e-5)  # rounding
    low, high = torch.full_like(most, -1), most  # too few, enough
    best = solve(high)
    while (high - low > 1).any():
        middle = torch.where(high - low > 1, (low + high) // 2, high)
        code = solve(middle)
        enough = error(code) <= bound
        best[enough] = code[enough]
        high, low = torch.where(enough, middle, high), torch.where(enough, low, middle)
        low = torch.minimum(low, high - 1)
    return best


def _thresholded(target: Tensor, atoms: Tensor, counts: Tensor, iterations: int) -> Tensor:
    """Non-negative iterative hard thresholding, `[n, width]`, with so many latents per row."""
    code = target.new_zeros(len(target), len(atoms))
    most = int(counts.max())
    if most == 0:
        return code
    step = 1 / torch.linalg.matrix_norm(atoms.double(), 2).square().to(code.dtype)
    kept = torch.arange(most, device=counts.device) < counts[:, None]
    for _ in range(iterations):
        moved = (code + step * (target - code @ atoms) @ atoms.T).clamp(min=0)
        values, places = moved.topk(most, dim=1)
        code = torch.zeros_like(code).scatter_(1, places, values * kept)
    return code


def _refit(target: Tensor, atoms: Tensor, support: Tensor) -> Tensor:
    """Coefficients of non-negative least squares on a support, `[n, width]`."""
    code = target.new_zeros(support.shape)
    counts = support.sum(1)
    most = int(counts.max())
    if most == 0:
        return code
    places = support.to(torch.uint8).topk(most, dim=1).indices
    used = torch.arange(most, device=counts.device) < counts[:, None]
    found = atoms[places].double()
    gram, inner = found @ found.mT, (found @ target.double()[:, :, None])[:, :, 0]
    values = non_negative_least_squares(gram, inner, used).clamp(min=0)
    return code.scatter_(1, places, (values * used).to(code.dtype))


def _jaccard(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of each row; 1 where both are empty, float64 `[n]`."""
    both, either = (a & b).sum(1).double(), (a | b).sum(1).double()
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def _drawn(activations: Any, n: int, seed: int) -> Tensor:
    """Random tokens, in their order, float32 `[n, d_in]`."""
    positions = torch.arange(len(activations)) if isinstance(activations, Tensor) else activations.positions
    order = np.sort(np.random.default_rng(seed).permutation(len(positions))[:n])
    chosen = positions[torch.from_numpy(order)]
    x: Tensor = activations[chosen].float() if isinstance(activations, Tensor) else activations.read(chosen)
    return x
