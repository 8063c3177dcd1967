"""Classic methods of scikit-learn as baselines: sparse coding, independent and principal components."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from saekit.settings import choice, real, whole

CLASSICS = ("dictionary_learning", "minibatch_dictionary_learning", "fastica", "pca")


def classic_directions(x: Tensor, width: int, method: str, *, seed: int = 0, penalty: float = 0.1) -> Tensor:
    """Directions that a classic method of scikit-learn finds in activations, as rows of unit norm.

    Parameters
    ----------
    x : Tensor
        Activations, `[n, d_in]`.
    width : int
        Number of directions; PCA and FastICA give at most `d_in`.
    method : str
        One of `CLASSICS`. Dictionary learning alternates lasso codes, at least 0, with least squares,
        which is the
        sparse coding of Olshausen and Field (1996) with a Laplacian prior.
    seed : int
        Seed of the method.
    penalty : float
        The codes' L1 penalty, on activations scaled to norm 1 on average.

    Returns
    -------
    Tensor
        Float32 `[width, d_in]`, for `saekit.measure_recovery`. Directions of PCA and FastICA have no sign.

    Raises
    ------
    TypeError, ValueError
        If a setting is wrong, or a method cannot give so many directions.

    Examples
    --------
    >>> from saekit.synthetic import classic_directions, hedging_tree
    >>> classic_directions(hedging_tree().sample(200).x, 4, "pca").shape
    torch.Size([4, 50])
    """
    from sklearn import decomposition

    method, width = choice("method", method, CLASSICS), whole("width", width)
    if method in ("pca", "fastica") and width > min(x.shape):
        raise ValueError(
            f"{method} gives at most {min(x.shape)} directions of these activations, not {width}."
        )
    scaled = (x.double() / x.double().norm(dim=1).mean()).numpy()
    lasso = {"alpha": real("penalty", penalty, at_least=0), "positive_code": True, "random_state": seed}
    coding = {"transform_algorithm": "lasso_cd", "fit_algorithm": "cd", **lasso}
    model = {
        "pca": lambda: decomposition.PCA(width, svd_solver="full"),
        "fastica": lambda: decomposition.FastICA(width, random_state=seed, max_iter=1000),
        "dictionary_learning": lambda: decomposition.DictionaryLearning(width, max_iter=100, **coding),
        "minibatch_dictionary_learning": lambda: decomposition.MiniBatchDictionaryLearning(width, **coding),
    }[method]()
    model.fit(scaled)
    rows = model.mixing_.T if method == "fastica" else model.components_
    return F.normalize(torch.from_numpy(np.ascontiguousarray(rows)).float(), dim=1)
