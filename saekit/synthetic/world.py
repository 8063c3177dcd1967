"""A world: true directions, the law by which they fire, and samples of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saekit.files import hash_json, hash_tensors
from saekit.selection import Latents, select_latents
from saekit.settings import choice, flag, whole
from saekit.sparse import SparseLatents, decode_active

BLOCK = 1024  # samples that are drawn together: each block has a random stream of its own
READABLE = 1 << 15  # samples that estimates are made from, as of a stream
NOISES = ("normal", "uniform")
COPULA_DRAWS = 4096  # of the common factors, over which rates are averaged


@dataclass(frozen=True, eq=False)
class Sample:
    """A sample of a world.

    Attributes
    ----------
    x : Tensor
        Activations, float32 `[n, d_in]`.
    features : SparseLatents
        The true features that fire, with their magnitudes.
    """

    x: Tensor
    features: SparseLatents

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> Sample:
        """Consecutive rows of it."""
        start, stop, _ = rows.indices(len(self))
        old = self.features
        a, b = int(old.offsets[start]), int(old.offsets[stop])
        offsets = old.offsets[start : stop + 1] - a
        features = SparseLatents(offsets, old.indices[a:b], old.values[a:b], old.width)
        return Sample(self.x[start:stop], features)


@dataclass(frozen=True, eq=False)
class World:
    """True directions and the law by which they fire.

    Feature `i` is drawn with `probability[i]`: where a standard normal exceeds its threshold, the normals
    being
    correlated through `factor`. Its magnitude is `relu(mean[i] + deviation[i] * noise)`. A feature then fires
    only if its parent does, and of the features of one `group` that are left, one drawn evenly stays. An
    activation is the sum of magnitudes times directions, plus `bias`.

    Sample number `n` is a function of the world, the stream and `n` alone, however it is read: with a fixed
    thread count on the CPU, to the bit.

    Parameters
    ----------
    name : str
        A name for people, such as `"hedging_tree (seed 0)"`.
    directions : Tensor
        True directions as rows of unit norm, `[n, d_in]`.
    probability : Tensor
        Probability with which each feature is drawn, before hierarchy and groups, `[n]`.
    parent : Tensor, optional
        The feature that each needs, which must come before it, or -1, int64 `[n]`. None need one by default.
    group : Tensor, optional
        Number of the group of which only one can fire, or -1, int64 `[n]`. Its members share their parent.
    mean, deviation : Tensor, optional
        Mean and standard deviation of magnitudes, before rectification, `[n]`: 1 and 0 by default.
    noise : str
        `"normal"` or `"uniform"`, of mean 0 and standard deviation 1.
    scale_by_parent : bool
        Whether a magnitude is multiplied by its parent's, over its parent's mean.
    factor : Tensor, optional
        Loadings on common normal factors, `[n, rank]`, with rows of norm under 1: the Gaussian copula's
        correlation of two features is the product of their rows.
    bias : Tensor, optional
        Added to every activation, `[d_in]`.
    labels : sequence of str
        A name of each feature, for figures.
    atoms : Tensor, optional
        Directions that features are made of, `[n_atoms, d_in]`, where they are composites.
    atom_labels : sequence of str
        Their names.
    comparable : str
        Which published figures this world can and cannot be compared with.

    Raises
    ------
    TypeError, ValueError
        If a tensor has another shape, a probability or norm is out of range, or a parent comes after its
        child.

    Examples
    --------
    >>> world = World("two", torch.eye(2), torch.tensor([0.5, 1.0]))
    >>> sample = world.sample(4)
    >>> sample.x[:, 1], len(sample.features)
    (tensor([1., 1., 1., 1.]), 4)
    >>> bool((world.sample(2, start=2).x == sample.x[2:]).all())
    True
    """

    name: str
    directions: Tensor
    probability: Tensor
    parent: Tensor = None  # type: ignore[assignment]  # filled in when the world is made
    group: Tensor = None  # type: ignore[assignment]  # filled in when the world is made
    mean: Tensor = None  # type: ignore[assignment]  # filled in when the world is made
    deviation: Tensor = None  # type: ignore[assignment]  # filled in when the world is made
    noise: str = "normal"
    scale_by_parent: bool = False
    factor: Tensor = None  # type: ignore[assignment]  # filled in when the world is made
    bias: Tensor = None  # type: ignore[assignment]  # filled in when the world is made
    labels: Sequence[str] = ()
    atoms: Tensor | None = None
    atom_labels: Sequence[str] = ()
    comparable: str = "No published figures."
    _kept: dict[Any, Sample] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.directions.ndim != 2:
            raise ValueError(f"directions must be [n, d_in], found shape {list(self.directions.shape)}.")
        n, d_in = self.directions.shape
        one, none = torch.ones(n), torch.full((n,), -1)
        filled = {
            "probability": (self.probability, (n,), torch.float64, None),
            "parent": (self.parent, (n,), torch.int64, none),
            "group": (self.group, (n,), torch.int64, none),
            "mean": (self.mean, (n,), torch.float32, one),
            "deviation": (self.deviation, (n,), torch.float32, 0 * one),
            "factor": (self.factor, (n, None), torch.float32, torch.zeros(n, 0)),
            "bias": (self.bias, (d_in,), torch.float32, torch.zeros(d_in)),
        }
        for name, (given, shape, dtype, default) in filled.items():
            value = default if given is None else given
            wanted = [value.shape[-1] if size is None else size for size in shape]
            if list(value.shape) != wanted:
                raise ValueError(f"{name} must be of shape {wanted}, found {list(value.shape)}.")
            object.__setattr__(self, name, value.to(dtype))
        object.__setattr__(self, "directions", self.directions.float())
        object.__setattr__(self, "labels", tuple(self.labels) or tuple(f"feature {i}" for i in range(n)))
        choice("noise", self.noise, NOISES)
        flag("scale_by_parent", self.scale_by_parent)
        if not ((self.directions.norm(dim=1) - 1).abs() < 1e-4).all():
            raise ValueError("directions must be rows of unit norm.")
        if not ((self.probability >= 0) & (self.probability <= 1)).all():
            raise ValueError("Probabilities must be from 0 to 1.")
        if not (self.factor.square().sum(1) < 1).all():
            raise ValueError("Rows of factor must have a norm under 1, so that something is left to chance.")
        if not (self.parent < torch.arange(n)).all() or (self.parent < -1).any():
            raise ValueError("A feature's parent must be -1 or come before it.")
        of_group = torch.stack([self.group, self.parent])[:, self.group >= 0].unique(dim=1)
        if len(of_group[0].unique()) < of_group.shape[1] or not (self.group < n).all():
            raise ValueError(
                f"Groups are numbers below {n}, and the features of a group must share their parent."
            )

    def __repr__(self) -> str:
        return f"World({self.name}, {self.n_features} features in {self.d_in} dimensions)"

    # ------------------------------------------------------------------ what it is

    @property
    def n_features(self) -> int:
        """Number of true features."""
        return len(self.directions)

    @property
    def d_in(self) -> int:
        """Dimension of the activations."""
        return self.directions.shape[1]

    @cached_property
    def depth(self) -> Tensor:
        """Number of ancestors of each feature, int64 `[n]`."""
        depth = torch.zeros_like(self.parent)
        for i, parent in enumerate(self.parent.tolist()):
            depth[i] = depth[parent] + 1 if parent >= 0 else 0
        return depth

    @cached_property
    def content_hash(self) -> str:
        """Hash of everything that its samples depend on."""
        names = ("directions", "probability", "parent", "group", "mean", "deviation", "factor", "bias")
        tensors = hash_tensors({name: getattr(self, name) for name in names})
        return hash_json([tensors, self.noise, self.scale_by_parent])

    @property
    def manifest(self) -> dict[str, Any]:
        """What a dictionary trained on it records: the world takes the place of a hook point."""
        return {"hook_point": f"world {self.name} {self.content_hash[:8]}", "d_in": self.d_in}

    def rates(self) -> Tensor:
        """The share of samples on which each feature fires by the law, float64 `[n]`.

        Given the common factors, features are drawn independently, so that the rate is a product along the
        ancestors; one out of a group stays with probability `E[1 / (1 + others)]`, an integral of a
        polynomial. Both are exact; the factors, if there are any, are averaged over 4096 quasi-random draws.
        """
        from scipy.stats import qmc

        chance = self.probability * self._positive
        cut = -torch.special.ndtri(chance)
        if not self.factor.shape[1]:
            return self._fired(chance[None])[0]
        points = qmc.Sobol(self.factor.shape[1], seed=0).random(COPULA_DRAWS)
        draws = torch.special.ndtri(torch.from_numpy(points).clamp(1e-12, 1 - 1e-12))
        left = (1 - self.factor.double().square().sum(1)).sqrt()
        total = torch.zeros_like(chance)
        for some in draws.split(64):
            total += self._fired(torch.special.ndtr((some @ self.factor.double().T - cut) / left)).sum(0)
        return total / COPULA_DRAWS

    @property
    def _positive(self) -> Tensor:
        """Probability that a magnitude is above 0 before rectification, float64 `[n]`."""
        ratio = (self.mean / self.deviation).double()
        if self.noise == "normal":
            return torch.special.ndtr(ratio)
        return (0.5 + ratio / math.sqrt(12)).clamp(0, 1)

    def _fired(self, drawn: Tensor) -> Tensor:
        """Rates `[draws, n]` of features that are drawn independently, with probabilities `[draws, n]`."""
        stays = _stays(drawn, self.group)
        fired = torch.ones_like(drawn)
        for level in range(int(self.depth.max()) + 1):
            here = (self.depth == level).nonzero().flatten()
            above = 1.0 if level == 0 else fired[:, self.parent[here]]
            fired[:, here] = above * drawn[:, here] * stays[:, here]
        return fired

    @property
    def frame(self) -> pd.DataFrame:
        """One row per feature: its label, parent, group, depth, rate, and mean and deviation."""
        columns = {name: getattr(self, name).numpy() for name in ("parent", "group", "depth")}
        rest = {"rate": self.rates().numpy(), "mean": self.mean.numpy(), "deviation": self.deviation.numpy()}
        return pd.DataFrame({"feature": range(self.n_features), "label": self.labels, **columns, **rest})

    # ------------------------------------------------------------------ drawing

    def sample(self, n: int, *, start: int = 0, stream: str = "sample") -> Sample:
        """Samples number `start` to `start + n` of a stream.

        Streams of different names are independent. Training draws from streams of its own, so that these
        samples were never trained on.

        Raises
        ------
        TypeError, ValueError
            If a number is not a whole number or out of range.
        """
        n, start = whole("n", n), whole("start", start, at_least=0)
        first, last = start // BLOCK, (start + n - 1) // BLOCK
        parts = []
        for number in range(first, last + 1):
            begin = number * BLOCK
            parts.append(self._block(stream, number)[max(start - begin, 0) : start + n - begin])
        if len(parts) == 1:
            return parts[0]
        features = SparseLatents.concatenate([part.features for part in parts])
        return Sample(torch.cat([part.x for part in parts]), features)

    @property
    def positions(self) -> Tensor:
        """Numbers of the samples that can be read, int64."""
        return torch.arange(READABLE)

    def read(self, positions: Latents) -> Tensor:
        """Activations of samples by number, float32 `[n, d_in]`.

        Raises
        ------
        TypeError, IndexError, ValueError
            As `saekit.selection.select_latents`.
        """
        positions = select_latents(positions, READABLE, what="positions")
        out = torch.empty(len(positions), self.d_in)
        blocks = positions // BLOCK
        for number in blocks.unique().tolist():
            here = blocks == number
            out[here] = self._block("sample", number).x[positions[here] % BLOCK]
        return out

    def shuffled(self, batch_size: int, *, seed: int, start_step: int = 0) -> Iterator[Tensor]:
        """Endless batches `[batch_size, d_in]` of fresh samples, of a stream of the seed's own."""
        start = start_step * batch_size
        while True:
            yield self.sample(batch_size, start=start, stream=f"training {seed}").x
            start += batch_size

    def _block(self, stream: str, number: int) -> Sample:
        if (stream, number) not in self._kept:
            self._kept.clear()
            self._kept[stream, number] = self._draw(random_stream(self.content_hash, stream, number))
        return self._kept[stream, number]

    @cached_property
    def _law(self) -> tuple[Tensor, Tensor]:
        """Thresholds of the normals, and the standard deviation that the factors leave, `[n]`."""
        left = (1 - self.factor.double().square().sum(1)).sqrt()
        return -torch.special.ndtri(self.probability).float(), left.float()

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> Sample:
        """One block."""
        cut, left = self._law
        h = torch.randn(BLOCK, self.n_features, generator=generator)
        if self.factor.shape[1]:
            h.mul_(left).addmm_(torch.randn(BLOCK, self.factor.shape[1], generator=generator), self.factor.T)
        drawn = h > cut
        n_drawn = int(drawn.count_nonzero())
        if self.noise == "normal":
            noise = torch.randn(n_drawn, generator=generator)
        else:
            noise = (torch.rand(n_drawn, generator=generator) - 0.5) * math.sqrt(12)
        tie = torch.rand(n_drawn, generator=generator, dtype=torch.float64)
        # Most of what is drawn lacks its parent or one of that one's, and is left out at once.
        kept = drawn.clone()
        for level in range(1, int(self.depth.max()) + 1):
            children = (self.depth == level).nonzero().flatten()
            with_parent = kept.index_select(1, self.parent[children]) & drawn.index_select(1, children)
            kept.index_copy_(1, children, with_parent)
        features = SparseLatents.from_mask(kept, h)
        of_drawn = kept[drawn].nonzero().flatten()
        which = features.indices
        values = (self.mean[which] + self.deviation[which] * noise[of_drawn]).relu()
        values = self._obey(features, values, tie[of_drawn])
        features = features.with_values(values).where(values > 0)
        return Sample(decode_active(features.values, self.directions, features) + self.bias, features)

    def _obey(self, drawn: SparseLatents, values: Tensor, tie: Tensor) -> Tensor:
        """Magnitudes with those set to 0 that hierarchy and groups do not let fire."""
        which, rows = drawn.indices, drawn.rows
        parent, group, depth = self.parent[which], self.group[which], self.depth[which]
        key = rows * self.n_features + which  # ascending
        wanted = rows * self.n_features + parent
        place = torch.searchsorted(key, wanted).clamp(max=max(len(key) - 1, 0))
        there = key[place] == wanted
        for level in range(int(self.depth.max()) + 1):
            if level:
                here = (depth == level).nonzero().flatten()
                above = values[place[here]] * there[here]
                scale = above / self.mean[parent[here]] if self.scale_by_parent else (above > 0).float()
                values[here] *= scale
            rivals = ((depth == level) & (group >= 0) & (values > 0)).nonzero().flatten()
            contest = rows[rivals] * self.n_features + group[rivals]
            order = (contest + tie[rivals]).argsort()
            lost = order[1:][contest[order].diff() == 0]
            values[rivals[lost]] = 0.0
        return values


def _stays(drawn: Tensor, group: Tensor) -> Tensor:
    """`E[1 / (1 + others)]` of each feature, others of its group being drawn too, `[draws, n]`."""
    stays = torch.ones_like(drawn)
    members = [(group == g).nonzero().flatten() for g in group[group >= 0].unique()]
    for size in sorted({len(m) for m in members}):
        at = torch.stack([m for m in members if len(m) == size])  # [groups, size]
        nodes, weights = np.polynomial.legendre.leggauss(size // 2 + 1)
        t = torch.from_numpy(nodes + 1).to(drawn) / 2
        missing = 1 - drawn[:, at, None] * (
            1 - t
        )  # [draws, groups, size, nodes], above 0 inside the interval
        others = missing.prod(2, keepdim=True) / missing
        stays[:, at] = others @ (torch.from_numpy(weights).to(drawn) / 2)
    return stays


def draw_probabilities(rates: Tensor, parent: Tensor, group: Tensor) -> Tensor:
    """The probabilities of drawing features at which they fire at given rates, without correlations.

    Parameters
    ----------
    rates : Tensor
        Share of samples on which each feature shall fire, `[n]`.
    parent, group : Tensor
        As for `World`.

    Returns
    -------
    Tensor
        Float64 `[n]`.

    Raises
    ------
    ValueError
        If a feature shall fire more often than its parent, or a group more often than one of it can.

    Examples
    --------
    >>> rates, none = torch.tensor([0.5, 0.1]), torch.tensor([-1, -1])
    >>> draw_probabilities(rates, parent=torch.tensor([-1, 0]), group=none)  # a child, given its parent
    tensor([0.5000, 0.2000], dtype=torch.float64)
    """
    wanted = rates.double() / torch.where(parent >= 0, rates.double()[parent], 1.0)
    in_group = torch.zeros_like(wanted).index_add(0, group.clamp(min=0), torch.where(group >= 0, wanted, 0.0))
    total = torch.where(group >= 0, in_group[group], wanted)
    if (total > 1 + 1e-9).any():
        i = int(total.argmax())
        raise ValueError(
            f"Feature {i} shall fire on {float(rates[i]):.3g} of the samples, but with those that exclude it "
            f"it would need {float(total[i]):.3g} of the samples on which its parent fires."
        )
    drawn = wanted.clone()
    for _ in range(500):
        drawn = (wanted / _stays(drawn[None], group)[0]).clamp(max=1.0)
    return drawn


def random_stream(*names: Any) -> torch.Generator:
    """The random stream of a name."""
    return torch.Generator().manual_seed(int(hash_json(list(names))[:15], 16))
