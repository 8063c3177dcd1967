"""Published toys and a published benchmark as worlds, each with the figures it can be compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from saekit.settings import flag, real, whole
from saekit.synthetic.world import World, draw_probabilities, random_stream


def _directions(preset: str, n: int, d_in: int, seed: int) -> Tensor:
    """Random directions of a preset: orthonormal if there is room."""
    rows = torch.randn(n, d_in, generator=random_stream("saekit world", preset, seed, "directions"))
    return torch.linalg.qr(rows.double().T).Q.T.float() if n <= d_in else F.normalize(rows, dim=1)


def toy_superposition(*, planes: int = 4, density: float = 0.05, seed: int = 0) -> World:
    """Five features for every two dimensions, as pentagons: the geometry of toy models of superposition.

    Features are independent and uniform on [0, 1] where they fire.

    Examples
    --------
    >>> toy_superposition(planes=2)
    World(toy_superposition (seed 0), 10 features in 4 dimensions)
    """
    planes, density = whole("planes", planes), real("density", density, at_least=0, at_most=1)
    angle = 2 * math.pi * torch.arange(5) / 5
    pentagon = torch.stack([angle.cos(), angle.sin()], dim=1)
    turned = torch.block_diag(*[pentagon] * planes)
    basis = _directions("toy_superposition", 2 * planes, 2 * planes, seed)
    n = 5 * planes
    half = torch.full((n,), 0.5)
    return World(
        f"toy_superposition (seed {seed})",
        F.normalize(turned @ basis, dim=1),
        torch.full((n,), density),
        mean=half,
        deviation=half / math.sqrt(3),
        noise="uniform",
        labels=[f"pentagon {i // 5}, {i % 5}" for i in range(n)],
        comparable="Elhage et al. (2022): the pentagons that their models arrive at for equal importance and "
        "high sparsity, and the law of their inputs. Not comparable: phase diagrams and losses, since here "
        "the "
        "geometry is given and no toy model is trained.",
    )


def _tree_world(preset: str, tree: Sequence[Any], d_in: int, seed: int, **settings: Any) -> World:
    """A world of trees `(rate, [children], exclusive)`, rates being given the parent, depth first."""
    rates: list[float] = []
    parents: list[int] = []
    groups: list[int] = []
    labels: list[str] = []

    def grow(nodes: Sequence[Any], parent: int, group: int, name: str) -> None:
        for i, (rate, children, exclusive) in enumerate(nodes):
            own = len(rates)
            rates.append(rate * (rates[parent] if parent >= 0 else 1.0))
            parents.append(parent)
            groups.append(group)
            labels.append(f"{name}{i}" if parent < 0 else f"{name}.{i}")
            grow(children, own, own if exclusive else -1, labels[-1])

    grow(tree, -1, -1, "")
    parent, group = torch.tensor(parents), torch.tensor(groups)
    return World(
        f"{preset} (seed {seed})",
        _directions(preset, len(rates), d_in, seed),
        draw_probabilities(torch.tensor(rates, dtype=torch.float64), parent, group),
        parent=parent,
        group=group,
        labels=labels,
        **settings,
    )


def nabeshima_tree(*, d_in: int = 20, deviation: float = 0.0, seed: int = 0) -> World:
    """Nabeshima's tree: three parents with three exclusive children each, and eight features without.

    Parents fire on 0.15 of the samples, a child on 0.2 of its parent's, the others on 0.05. All magnitudes
    are 1; a `deviation` makes them vary.

    Examples
    --------
    >>> world = nabeshima_tree()
    >>> world, world.labels[:3]
    (World(nabeshima_tree (seed 0), 20 features in 20 dimensions), ('0', '0.0', '0.1'))
    """
    family: Any = (0.15, [(0.2, [], False)] * 3, True)
    world = _tree_world(
        "nabeshima_tree",
        [family] * 3 + [(0.05, [], False)] * 8,
        whole("d_in", d_in),
        seed,
        comparable="Nabeshima (2024), Matryoshka SAEs: rates, exclusive children and binary magnitudes are "
        "those "
        "of its tree.json, so whether children's latents absorb their parent can be compared. Not "
        "comparable: "
        "losses, since its directions are another draw.",
    )
    return replace(world, deviation=torch.full((20,), real("deviation", deviation, at_least=0)))


def hedging_tree(*, trees: int = 1, child: float = 0.15, d_in: int = 50, seed: int = 0) -> World:
    """The tree of the feature-hedging paper: a parent at 0.25 and three children at 0.15 of its samples.

    Children are independent given their parent; directions are orthogonal and magnitudes 1. Several trees
    are independent of each other, and `child` is another rate of the children, given their parent.

    Examples
    --------
    >>> hedging_tree()
    World(hedging_tree (seed 0), 4 features in 50 dimensions)
    """
    children: Any = [(real("child", child, at_least=0, at_most=1), [], False)] * 3
    return _tree_world(
        "hedging_tree",
        [(0.25, children, False)] * whole("trees", trees),
        whole("d_in", d_in),
        seed,
        comparable="Chanin et al. (2025), feature hedging: by default, probabilities, dimension and "
        "orthogonal directions are those of its toy tree, so the signs of its cosines can be compared "
        "(hedging adds children to the parent's latent, absorption takes them away). Not comparable: its "
        "hedging rates, which are of language models; more trees, or another rate of the children.",
    )


def shapes_and_colours(
    *,
    shapes: int = 3,
    colours: int = 3,
    objects: float | None = None,
    alone: float = 0.0,
    d_in: int = 20,
    deviation: float = 0.1,
    seed: int = 0,
) -> World:
    """Objects of one shape and one colour: composite directions, `(shape + colour) / sqrt(2)`.

    The composites are the true features, the shapes and colours the `atoms`. By default every sample shows
    exactly one object. Then nothing tells atoms from other directions: any direction may be added to all
    shapes and taken from all colours. With `objects`, objects come independently of each other, that many per
    sample on average; a share `alone` of them is a shape or a colour by itself, and atoms are features too,
    after the composites.

    Examples
    --------
    >>> world = shapes_and_colours()
    >>> world, world.atom_labels
    (World(shapes_and_colours (seed 0), 9 features in 20 dimensions), ('shape 0', 'shape 1', ..., 'colour 2'))
    >>> shapes_and_colours(objects=1.2, alone=0.25)
    World(shapes_and_colours (seed 0), 15 features in 20 dimensions)
    """
    shapes, colours = whole("shapes", shapes, at_least=2), whole("colours", colours, at_least=2)
    alone = real("alone", alone, at_least=0, at_most=1)
    if alone and objects is None:
        raise ValueError("Atoms are alone among objects that come independently: give objects per sample.")
    n, n_atoms = shapes * colours, shapes + colours
    atoms = _directions("shapes_and_colours", n_atoms, whole("d_in", d_in, at_least=n_atoms), seed)
    shape, colour = torch.arange(n) // colours, torch.arange(n) % colours
    directions = F.normalize(atoms[shape] + atoms[shapes + colour], dim=1)
    named = [f"shape {i}" for i in range(shapes)] + [f"colour {i}" for i in range(colours)]
    labels = [f"{named[s]}, {named[shapes + c]}" for s, c in zip(shape, colour, strict=True)]
    rates = torch.ones(n)
    if objects is not None:
        per_sample = real("objects", objects, above=0)
        rates = torch.full((n,), (1 - alone) * per_sample / n)
        if alone:
            directions, labels = torch.cat([directions, atoms]), labels + named
            rates = torch.cat([rates, torch.full((n_atoms,), alone * per_sample / n_atoms)])
    return World(
        f"shapes_and_colours (seed {seed})",
        directions,
        rates,
        group=torch.full((len(rates),), 0 if objects is None else -1),
        deviation=torch.full((len(directions),), real("deviation", deviation, at_least=0)),
        labels=labels,
        atoms=atoms,
        atom_labels=tuple(named),
        comparable="Bussmann et al. (2024), the meta-SAE post: its argument that a small dictionary finds "
        "shapes and colours, a larger one their combinations, and a meta-SAE the shapes and colours again. "
        "Not comparable: any number, since the post has none for this example.",
    )


def synth_sae_bench(
    *,
    features: int = 16_384,
    d_in: int = 768,
    compensate_probabilities: bool = True,
    scale_children_by_parent: bool = True,
    correlation: float = 0.1,
    rank: int = 25,
    steps: int = 100,
    roots: int = 128,
    branching: int = 4,
    depth: int = 3,
    seed: int = 42,
) -> World:
    """The recipe of SynthSAEBench-16k, by default with its constants, at any number of features.

    Zipf-like probabilities from 0.4 to 0.0005 (exponent 0.5), a forest with exclusive siblings over the first
    features, Gaussian copula loadings, mean magnitudes from 5 to 4 with folded-normal deviations, a bias
    of norm
    0.5, and directions after Adam steps towards orthogonality.

    Examples
    --------
    >>> world = synth_sae_bench(features=60, d_in=16, roots=4, depth=2)
    >>> world, int(world.depth.max()), world.labels[4]
    (World(synth_sae_bench (60 features, seed 42), 60 features in 16 dimensions), 2, '4')
    """
    n, d_in = whole("features", features), whole("d_in", d_in)
    rank, roots, depth = whole("rank", rank), whole("roots", roots), whole("depth", depth, at_least=0)
    name = f"synth_sae_bench ({n} features, seed {seed})"

    def normal(what: str, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=random_stream("saekit world", "synth_sae_bench", seed, what))

    zipf = torch.arange(1, n + 1, dtype=torch.float64) ** -0.5
    base = 5e-4 + (0.4 - 5e-4) * (zipf - zipf[-1]) / (zipf[0] - zipf[-1])
    parent = torch.full((n,), -1)
    level, following = range(min(roots, n)), min(roots, n)
    for _ in range(depth):
        children = range(following, min(following + len(level) * branching, n))
        for i in children:
            parent[i] = level[(i - following) // branching]
        level, following = children, children.stop
    drawn = _compensated(base, parent) if flag("compensate_probabilities", compensate_probabilities) else base
    factor = real("correlation", correlation, at_least=0) * normal("factor", n, rank)
    factor *= (math.sqrt(0.99) / factor.norm(dim=1, keepdim=True)).clamp(max=1.0).nan_to_num(1.0)
    return World(
        name,
        orthogonalise(_directions("synth_sae_bench", n, d_in, seed), steps=steps, lr=3e-4),
        drawn,
        parent=parent,
        group=parent.clone(),  # all siblings exclude each other
        mean=torch.linspace(5, 4, n),
        deviation=(0.5 + 0.5 * normal("deviation", n)).abs(),
        scale_by_parent=scale_children_by_parent,
        factor=factor,
        bias=0.5 * F.normalize(normal("bias", d_in), dim=0),
        labels=[str(i) for i in range(n)],
        comparable="Chanin et al. (2026), SynthSAEBench-16k: the recipe and its constants, so that the "
        "order of "
        "kinds and, with enough samples, the size of MCC and F1 at width 4096 can be compared. Not "
        "comparable: "
        "single features, since the published world was drawn on a GPU, which gives another one for the same "
        "seed; scores at other numbers of features; MCC at other widths, whose bound differs.",
    )


def _compensated(base: Tensor, parent: Tensor) -> Tensor:
    """SynthSAEBench's probabilities of drawing: approximate, and capped where no probability would do."""
    above = torch.where(parent >= 0, base[parent], 1.0)
    siblings = torch.zeros_like(base).index_add(0, parent.clamp(min=0), torch.where(parent >= 0, base, 0.0))
    others = torch.where(parent >= 0, siblings[parent] - base, 0.0).clamp(min=0)
    return (base / above * (1 + others / above)).clamp(max=1.0)


def orthogonalise(directions: Tensor, *, steps: int, lr: float) -> Tensor:
    """Take Adam steps on the sum of squared cosines between directions, `[n, d_in]`, and normalise them.

    The loss is that of SynthSAEBench: squared inner products of all ordered pairs, plus `n` times the
    squared deviations of squared norms from 1. The gradient takes `[d_in, d_in]` sums instead of all pairs.

    Examples
    --------
    >>> rows = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    >>> bool((orthogonalise(rows, steps=100, lr=0.01).prod(0).sum()).abs() < 0.01)
    True
    """
    rows = F.normalize(directions.float(), dim=1).clone()
    adam = torch.optim.Adam([rows], lr=lr)
    for _ in range(steps):
        norms = rows.square().sum(1, keepdim=True)
        pairs = rows @ (rows.T @ rows) - norms * rows
        rows.grad = 4 * (pairs + len(rows) * (norms - 1) * rows)
        adam.step()
    return F.normalize(rows.detach(), dim=1)


PRESETS = {
    preset.__name__: preset
    for preset in (toy_superposition, nabeshima_tree, hedging_tree, shapes_and_colours, synth_sae_bench)
}
