"""Circuits: the nodes with the greatest effects, and how much of the model's behaviour they carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saekit import settings
from saekit.analysis.effects.metrics import METRICS, MetricFunction, metric_of
from saekit.analysis.effects.nodes import DRAWS, NodeEffects, correlate, measure_node_effects
from saekit.analysis.effects.sites import Nodes, Site, baseline_of, counted_positions, sites_of
from saekit.cache import cached
from saekit.dictionary import Dictionary
from saekit.identity import Identity
from saekit.models import Hook, PartialRun, replacing, run_to
from saekit.prompts import Prompts
from saekit.results import Result
from saekit.selection import Latents, select_latents

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ERRORS = ("nodes", "keep", "remove", "mean")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True, eq=False, repr=False)
class Circuit(Result):
    """The metric with all but the strongest nodes at their baseline, and with only these at it.

    Attributes
    ----------
    dictionaries : tuple of Identity
        The dictionaries.
    prompts, metric, baseline, method : str
        Names of the prompts, the metric, the baseline and the method that ranks nodes.
    errors : str
        What becomes of SAE errors, see `measure_circuit`.
    nodes : DataFrame
        The nodes that can be in the circuit, greatest effect first (`NodeEffects.nodes`).
    frame : DataFrame
        One row per size, from 0 to all nodes: `n_nodes`, `n_latents`, `n_errors` in the circuit; `metric` of
        the circuit alone and `metric_without` it; `faithfulness` and `completeness`, each with the bounds
        (`_low`, `_high`) of a 95% bootstrap interval over prompts; and with random sets
        `random_faithfulness` and `random_completeness`, with theirs.
    model_metric, empty_metric : float
        The metric of the untouched model, and with all nodes at their baseline.
    """

    dictionaries: tuple[Identity, ...]
    prompts: str
    metric: str
    baseline: str
    method: str
    errors: str
    nodes: pd.DataFrame
    frame: pd.DataFrame
    model_metric: float
    empty_metric: float
    _plot: ClassVar[str] = "faithfulness_curves"

    def nodes_for(self, faithfulness: float) -> float:
        """The smallest measured number of nodes from which on the circuit is at least this faithful.

        Infinite if none is, as where errors are removed and latents alone do not suffice.

        Raises
        ------
        TypeError, ValueError
            If it is not a number.
        """
        wanted = settings.real("faithfulness", faithfulness)
        reached = self.frame["faithfulness"].to_numpy() >= wanted
        n = int(np.cumprod(reached[::-1]).sum())  # sizes at the end that all reach it
        return float(self.frame["n_nodes"].iloc[len(reached) - n]) if n else float("inf")

    @property
    def summary(self) -> dict[str, Any]:
        """Names, the metric of the model and without all nodes, and nodes for a faithfulness of 0.8."""
        return {
            "dictionaries": ", ".join(map(str, self.dictionaries)),
            "prompts": self.prompts,
            "metric": self.metric,
            "errors": self.errors,
            "model_metric": self.model_metric,
            "empty_metric": self.empty_metric,
            "nodes_for_0.8": self.nodes_for(0.8),
            "n_nodes": len(self.nodes),
        }


@cached
def measure_circuit(
    model: TransformerBridge,
    dictionaries: Dictionary | Sequence[Dictionary],
    effects: NodeEffects,
    *,
    metric: MetricFunction | None = None,
    method: str = "attribution",
    errors: str = "nodes",
    sizes: Sequence[int] = SIZES,
    random_sets: int = 0,
    batch_rows: int = 32,
    seed: int = 0,
    allow_mismatch: bool = False,
) -> Circuit:
    """Faithfulness and completeness of circuits of increasing size.

    A circuit holds the nodes (latent or error at a position) with the greatest effects averaged over the
    prompts. All other nodes are set to the baseline of the effects. With `m(C)` the metric of the circuit,
    `m(M)` that of the model and `m(0)` that of no node at all, faithfulness is
    `(m(C) - m(0)) / (m(M) - m(0))`; completeness is the same of the model without the circuit, so it is low
    where the circuit leaves nothing out.

    Parameters
    ----------
    model : TransformerBridge
        The model.
    dictionaries : Dictionary or sequence of Dictionary
        Those of the effects, in their order.
    effects : NodeEffects
        Their effects.
    metric : callable, optional
        The metric of the effects, where it was a function of your own.
    method : str
        The effects that rank nodes, measured on all of them.
    errors : {"nodes", "keep", "remove", "mean"}
        SAE errors compete with latents to be in the circuit; or they are no nodes and stay as they are, are
        set to zero, or to their mean at the position over the corrupted prompts (the clean ones without
        such). With `"remove"` and `"mean"` a circuit of all latents is not the model.
    sizes : sequence of int
        Numbers of nodes; 0 and all nodes are added.
    random_sets : int
        Random sets of nodes to set beside each circuit, so many for every prompt, with as many latents and
        as many errors as the circuit has.
    batch_rows : int
        Rows per forward pass.
    seed : int
        Seed of the random sets.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    MismatchError
        If a dictionary is of another model.
    ValueError
        If the dictionaries are not those of the effects, the method was not measured on all nodes, or a
        setting is out of range.

    Notes
    -----
    Marks et al. (2025, arXiv:2403.19647). With several hook points later nodes are computed from what
    earlier ones have become.

    Examples
    --------
    >>> texts, others = ["the king sleeps", "the old queen"], ["the queen sleeps", "the old king"]
    >>> pairs = saekit.Prompts.from_texts(
    ...     model.tokenizer, texts, corrupted=others, answers=[" over"] * 2, wrong=[" runs"] * 2
    ... )
    >>> effects = saekit.measure_node_effects(model, saes[16], pairs, methods=["attribution"])
    >>> circuit = measure_circuit(model, saes[16], effects, sizes=[1, 2])
    >>> circuit.frame["faithfulness"].iloc[[0, -1]].round(3).tolist()
    [0.0, 1.0]
    """
    errors = settings.choice("errors", errors, ERRORS)
    method = settings.choice("method", method, effects.methods)
    batch_rows, seed = settings.whole("batch_rows", batch_rows), settings.whole("seed", seed, at_least=0)
    random_sets = settings.whole("random_sets", random_sets, at_least=0)
    wanted = settings.several(settings.whole)("sizes", sizes)
    sites = sites_of(model, dictionaries, allow_mismatch=allow_mismatch)
    given = tuple(site.dictionary.identity for site in sites)
    if given != effects.dictionaries:
        raise ValueError(
            f"The effects are those of {', '.join(map(str, effects.dictionaries))}, but "
            f"{', '.join(map(str, given))} were given."
        )
    prompts = effects.prompts
    if metric is None and effects.metric not in METRICS:
        raise ValueError(f"Give the metric of the effects, {effects.metric}, as metric=.")
    function = metric_of(metric or effects.metric, prompts, int(model.cfg.d_vocab), differentiable=False)
    nodes = effects.nodes(method)
    if errors != "nodes":
        nodes = nodes[nodes["kind"] == "latent"].reset_index(drop=True)
    sizes = sorted({0, *(size for size in wanted if size < len(nodes)), len(nodes)})

    run = _Circuits(model, sites, effects, errors, batch_rows)

    def values(*inside: Mapping[str, _Mask]) -> np.ndarray:
        """The metric of every prompt with each circuit, `[circuits, n]`; of the model if there is none."""
        every = torch.arange(len(prompts)).repeat(max(len(inside), 1))
        masks = {
            place: _Mask(*map(torch.cat, zip(*(one[place] for one in inside), strict=True)))
            for place in (inside[0] if inside else ())
        }
        found = []
        for at in torch.arange(len(every)).split(batch_rows):
            part = prompts.select(every[at])
            last = part.last if function.at_last else None
            here = {place: _Mask(mask.latents[at], mask.error[at]) for place, mask in masks.items()}
            found.append(function.of(part)(run.logits(every[at], here, last)))
        return torch.cat(found).double().cpu().numpy().reshape(-1, len(prompts))

    drawn = [_shuffled(nodes, len(prompts), seed + draw) for draw in range(random_sets)]
    of_model = values()[0]
    rows: list[dict[str, float]] = []
    empty = np.zeros(0)
    for size in sizes:
        n_errors = int((nodes["kind"].head(size) == "error").sum())
        counts = {"latent": size - n_errors, "error": n_errors}
        at_random = [each[each["place_in_kind"] < each["kind"].map(counts)] for each in drawn]
        circuits = [run.masks(each) for each in (nodes.head(size), *at_random)]
        inside = values(*circuits)
        outside = values(
            *({place: _Mask(~mask.latents, ~mask.error) for place, mask in one.items()} for one in circuits)
        )
        empty = empty if size else inside[0]
        row: dict[str, float] = {"n_nodes": size, "n_latents": counts["latent"], "n_errors": n_errors}
        row |= {"metric": float(inside[0].mean()), "metric_without": float(outside[0].mean())}
        shares = {"faithfulness": inside[0], "completeness": outside[0]}
        if drawn:
            shares |= {"random_faithfulness": inside[1:].mean(0), "random_completeness": outside[1:].mean(0)}
        for name, of_part in shares.items():
            row |= _share(name, of_part - empty, of_model - empty)
        rows.append(row)
    return Circuit(
        dictionaries=given,
        prompts=prompts.name,
        metric=effects.metric,
        baseline=effects.baseline,
        method=method,
        errors=errors,
        nodes=nodes,
        frame=pd.DataFrame(rows),
        model_metric=float(of_model.mean()),
        empty_metric=float(empty.mean()),
    )


def _shuffled(nodes: pd.DataFrame, n_prompts: int, seed: int) -> pd.DataFrame:
    """The nodes in a random order of its own for each prompt, numbered by kind (`place_in_kind`)."""
    random = np.random.default_rng(seed)
    orders = [nodes.iloc[random.permutation(len(nodes))].assign(prompt=prompt) for prompt in range(n_prompts)]
    found = pd.concat(orders, ignore_index=True)
    return found.assign(place_in_kind=found.groupby(["prompt", "kind"]).cumcount())


def _share(name: str, part: np.ndarray, whole: np.ndarray) -> dict[str, float]:
    """A ratio of means over prompts, with its bootstrap interval."""
    drawn = np.random.default_rng(0).integers(len(part), size=(DRAWS, len(part)))
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = np.nanquantile(part[drawn].mean(1) / whole[drawn].mean(1), (0.025, 0.975))
        value = part.mean() / whole.mean()
    return {name: float(value) + 0.0, f"{name}_low": float(low), f"{name}_high": float(high)}


class _Mask(NamedTuple):
    """Which nodes of a place are in a circuit, for each prompt."""

    latents: Tensor  # Boolean `[n, ctx, width]`
    error: Tensor  # Boolean `[n, ctx, 1]`


class _Circuits:
    """The model with some nodes of every hook point at their baseline, from the first hook point on."""

    def __init__(
        self,
        model: TransformerBridge,
        sites: Sequence[Site],
        effects: NodeEffects,
        errors: str,
        batch_rows: int,
    ) -> None:
        self.sites, self.errors, self.rows = sites, errors, batch_rows
        prompts = effects.prompts
        self.counted = counted_positions(prompts, effects.start)
        first = min(site.layer for site in sites)
        # Everything before the first block with a dictionary is computed once.
        before = f"blocks.{first - 1}.hook_resid_post" if first else "blocks.0.hook_resid_pre"
        self.run: PartialRun = run_to(model, prompts.tokens, before)
        self.base: dict[str, Nodes] = {}
        for site in sites:
            clean = site.of(site.run(model, prompts.tokens))
            base = baseline_of(model, site, prompts, clean, effects.baseline, self.counted)
            if errors == "remove":
                base = Nodes(base.latents, torch.zeros_like(base.error))
            elif errors == "mean":
                mean = baseline_of(model, site, prompts, clean, "mean", self.counted)
                base = Nodes(base.latents, mean.error)
            self.base[site.writes] = base

    def masks(self, nodes: pd.DataFrame) -> dict[str, _Mask]:
        """By place, the nodes of a circuit, the same for each prompt unless there is a column `prompt`."""
        found = {}
        for site in self.sites:
            base = self.base[site.writes].latents
            latents = torch.zeros(base.shape, dtype=torch.bool)
            error = torch.zeros(*base.shape[:2], 1, dtype=torch.bool)
            part = nodes[nodes["place"] == site.writes]
            for kind, mask in (("latent", latents), ("error", error)):
                chosen = part[part["kind"] == kind]
                prompts = torch.tensor(chosen["prompt"].to_numpy()) if "prompt" in chosen else slice(None)
                columns = chosen["latent"].clip(lower=0).to_list()
                mask[prompts, chosen["position"].to_list(), columns] = True
            found[site.writes] = _Mask(latents, error)
        return found

    def logits(self, rows: Tensor, inside: Mapping[str, _Mask], last: Tensor | None) -> Tensor:
        """Logits of some prompts, each with its own mask of every place; without masks the model's own."""
        run = self.run.select(rows)
        hooks: list[Hook] = []
        for site in self.sites if inside else ():
            hooks += self._hooks(site, rows, inside[site.writes])
        return run.logits(run.activations, hooks=hooks, last=last)

    def _hooks(self, site: Site, rows: Tensor, inside: _Mask) -> list[Hook]:
        device = site.dictionary.W_dec.device
        base, counted = self.base[site.writes], self.counted[rows, :, None].to(device)
        latents, error = inside.latents.to(device), inside.error.to(device)
        if self.errors == "keep":
            error = torch.ones_like(error)
        elif self.errors in ("remove", "mean"):
            error = torch.zeros_like(error)
        read: list[Tensor] = []

        def replace(x: Tensor) -> Tensor:
            own = site.nodes(read.pop() if read else x, x)
            changed = Nodes(
                torch.where(latents, own.latents, base.latents[rows]),
                torch.where(error, own.error, base.error[rows]),
            )
            return torch.where(counted, site.activations(changed).to(x.dtype), x)

        hooks = [replacing(site.writes, replace)]
        if site.dictionary.transcoder:
            hooks.insert(0, (site.reads, lambda x, **_: read.append(x.flatten(2))))
        return hooks


# ------------------------------------------------------------------------------ dictionaries side by side


@dataclass(frozen=True, eq=False, repr=False)
class CircuitComparison(Result):
    """The same circuit through several dictionaries of one hook point.

    Attributes
    ----------
    prompts, metric, baseline, method : str
        As in `Circuit`.
    target : float
        The faithfulness to reach.
    dictionaries : tuple of Identity
        The dictionaries.
    circuits : mapping
        A `Circuit` by name of the dictionary and treatment of errors.
    frame : DataFrame
        One row per dictionary: `name`, `width`, `active` (latents that differ from their baseline, per
        prompt and position), `n_nodes`; `error_effect` and `latent_effect`, the sums over nodes as shares of
        their total, and `error_share` of the absolute effects, each averaged over prompts; for each
        treatment of errors `nodes_` and `latents_` needed to reach the target (infinite where it is
        not reached), the `faithfulness_` of all nodes, and with random sets `random_`, the faithfulness
        of as many random nodes as reach the target.
    effects : mapping
        The `NodeEffects` by name of the dictionary.
    """

    prompts: str
    metric: str
    baseline: str
    method: str
    target: float
    dictionaries: tuple[Identity, ...]
    circuits: dict[tuple[str, str], Circuit]
    frame: pd.DataFrame
    effects: dict[str, NodeEffects]
    _plot: ClassVar[str] = "circuits_by_dictionary"

    @property
    def summary(self) -> dict[str, Any]:
        """Names, and by dictionary the nodes that reach the target and the share of errors."""
        table = self.frame.set_index("name")
        first = next(column for column in table if str(column).startswith("nodes_"))
        return {
            "prompts": self.prompts,
            "metric": self.metric,
            "target": self.target,
            str(first): table[first].to_dict(),
            "error_share": table["error_share"].to_dict(),
        }


def compare_circuits(
    model: TransformerBridge,
    dictionaries: Mapping[str, Dictionary],
    prompts: Prompts,
    *,
    metric: str | MetricFunction = "logit_difference",
    baseline: str = "patch",
    method: str = "attribution",
    errors: Sequence[str] = ("nodes", "mean"),
    sizes: Sequence[int] = SIZES,
    random_sets: int = 0,
    target: float = 0.8,
    steps: int = 10,
    batch_rows: int = 32,
    seed: int = 0,
    allow_mismatch: bool = False,
) -> CircuitComparison:
    """How sparse the circuit of a task is in several dictionaries, and how much their errors carry.

    For dictionaries of several widths, or the steps of a stitching curve (`Stitching.dictionary`).

    Parameters
    ----------
    model : TransformerBridge
        The model.
    dictionaries : mapping of str to Dictionary
        By name, each measured alone at its hook point.
    prompts, metric, baseline, method
        As for `measure_node_effects`, with one method.
    errors : sequence of str
        Treatments of errors, as for `measure_circuit`.
    sizes : sequence of int
        Sizes of the circuits.
    random_sets : int
        Random sets of nodes beside each circuit, as for `measure_circuit`.
    target : float
        The faithfulness to reach.
    steps : int
        Steps of integrated gradients, with that method.
    batch_rows : int
        Rows per forward or backward pass.
    seed : int
        Seed of the random sets.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    MismatchError, TypeError, ValueError
        As `measure_node_effects` and `measure_circuit`; ValueError also without a dictionary or a treatment
        of errors.

    Examples
    --------
    >>> texts, others = ["the king sleeps", "the old queen"], ["the queen sleeps", "the old king"]
    >>> pairs = saekit.Prompts.from_texts(
    ...     model.tokenizer, texts, corrupted=others, answers=[" over"] * 2, wrong=[" runs"] * 2
    ... )
    >>> compared = compare_circuits(model, {"small": saes[16], "large": saes[32]}, pairs, sizes=[1, 4])
    >>> compared.frame["name"].tolist()
    ['small', 'large']
    """
    if not dictionaries:
        raise ValueError("compare_circuits needs at least one dictionary, found none.")
    target = settings.real("target", target)
    errors = [settings.choice("errors", one, ERRORS) for one in errors]
    if not errors:
        raise ValueError(f"errors must name at least one of {', '.join(map(repr, ERRORS))}.")
    if method == "exact":
        raise ValueError('Circuits are compared by an estimate on all nodes: method="exact" is of a sample.')
    rows: list[dict[str, Any]] = []
    circuits: dict[tuple[str, str], Circuit] = {}
    measured: dict[str, NodeEffects] = {}
    for name, dictionary in dictionaries.items():
        effects = measure_node_effects(
            model,
            dictionary,
            prompts,
            metric=metric,
            baseline=baseline,
            methods=[method],
            steps=steps,
            batch_rows=batch_rows,
            allow_mismatch=allow_mismatch,
        )
        measured[name] = effects
        of_latents = effects.frame["kind"] == "latent"
        values = effects.frame[method].to_numpy()
        positions = int(counted_positions(prompts, effects.start).sum())
        row: dict[str, Any] = {
            "name": name,
            "width": dictionary.width,
            "active": of_latents.sum() / positions,
            "n_nodes": len(effects.nodes(method)),
            "latent_effect": values[of_latents].sum() / values.sum(),
            "error_effect": values[~of_latents].sum() / values.sum(),
            "error_share": np.abs(values[~of_latents]).sum() / np.abs(values).sum(),
        }
        for treatment in errors:
            circuit = measure_circuit(
                model,
                dictionary,
                effects,
                metric=metric if callable(metric) else None,
                method=method,
                errors=treatment,
                sizes=sizes,
                random_sets=random_sets,
                batch_rows=batch_rows,
                seed=seed,
                allow_mismatch=allow_mismatch,
            )
            circuits[name, treatment] = circuit
            needed = circuit.nodes_for(target)
            at = circuit.frame[circuit.frame["n_nodes"] == needed]
            row[f"nodes_{treatment}"] = needed
            row[f"latents_{treatment}"] = float(at["n_latents"].iloc[0]) if len(at) else np.inf
            row[f"faithfulness_{treatment}"] = circuit.frame["faithfulness"].iloc[-1]
            if random_sets:
                row[f"random_{treatment}"] = at["random_faithfulness"].iloc[0] if len(at) else np.nan
        rows.append(row)
    return CircuitComparison(
        prompts=prompts.name,
        metric=effects.metric,
        baseline=effects.baseline,
        method=method,
        target=target,
        dictionaries=tuple(one.dictionaries[0] for one in measured.values()),
        circuits=circuits,
        frame=pd.DataFrame(rows),
        effects=measured,
    )


@dataclass(frozen=True, eq=False, repr=False)
class ErrorCarriers(Result):
    """Whether a wider dictionary's novel latents do what a narrower one leaves to its error node.

    Attributes
    ----------
    small, large : Identity
        The dictionaries.
    prompts, metric, method : str
        Names of prompts, metric and method.
    n_novel : int
        Novel latents of the large dictionary.
    frame : DataFrame
        One row per prompt and position: the effects of `error_small`, `error_large`, and the sums
        over `latents_small`, `novel` and `reconstruction` latents of the large one.
    """

    small: Identity
    large: Identity
    prompts: str
    metric: str
    method: str
    n_novel: int
    frame: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """Correlations over prompts and positions with the effect of the small dictionary's error.

        Returns
        -------
        DataFrame
            One row per part of the large dictionary (`novel`, `reconstruction`, `error_large`):
            `correlation` with the 95% bootstrap interval over prompts (`low`, `high`), `slope` of the part on
            the small error, and `size`, the mean absolute effect of the part over that of the small error.
        """
        rows, x = [], self.frame["error_small"].to_numpy()
        for part in ("novel", "reconstruction", "error_large"):
            y = self.frame[part].to_numpy()
            correlation, low, high = correlate(x, y, self.frame["prompt"].to_numpy())
            rows.append(
                {
                    "part": part,
                    "correlation": correlation,
                    "low": low,
                    "high": high,
                    "slope": float(x @ y / (x @ x)),
                    "size": float(np.abs(y).mean() / np.abs(x).mean()),
                }
            )
        return pd.DataFrame(rows).set_index("part")

    @property
    def summary(self) -> dict[str, Any]:
        """Names, `n_novel`, and the correlations of novel and reconstruction latents with the small error."""
        correlation = self.table["correlation"]
        return {
            "small": str(self.small),
            "large": str(self.large),
            "prompts": self.prompts,
            "n_novel": self.n_novel,
            "correlation_novel": float(correlation["novel"]),
            "correlation_reconstruction": float(correlation["reconstruction"]),
        }


_COMPARED = ("tokens", "corrupted", "answers", "wrong")


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def compare_errors(
    small: NodeEffects, large: NodeEffects, novel: Latents, *, method: str = "attribution"
) -> ErrorCarriers:
    """Set the effects of novel latents beside those of the error that the small dictionary leaves.

    Parameters
    ----------
    small, large : NodeEffects
        Of one dictionary each, at one hook point, on the same prompts and with the same metric and baseline.
    novel : latents
        The novel latents of the large dictionary, as indices or a mask.
    method : str
        The effects to compare, measured on all nodes.

    Raises
    ------
    ValueError
        If the two do not belong together, or a latent does not exist.

    Examples
    --------
    >>> texts, others = ["the king sleeps", "the old queen"], ["the queen sleeps", "the old king"]
    >>> pairs = saekit.Prompts.from_texts(
    ...     model.tokenizer, texts, corrupted=others, answers=[" over"] * 2, wrong=[" runs"] * 2
    ... )
    >>> both = [saekit.measure_node_effects(model, saes[w], pairs, methods=["attribution"]) for w in (16, 32)]
    >>> novel = saekit.best_matches(saes[16], saes[32]).cosine < 0.7
    >>> compare_errors(*both, novel).table.index.tolist()
    ['novel', 'reconstruction', 'error_large']
    """
    for one in (small, large):
        settings.choice("method", method, one.methods)
        if len(one.dictionaries) != 1:
            raise ValueError(f"compare_errors takes effects of one dictionary each, found {len(one.places)}.")
        one.nodes(method)  # refuses effects of a sample
    for what in ("places", "metric", "baseline", "start"):
        here, there = getattr(small, what), getattr(large, what)
        if here != there:
            raise ValueError(f"The effects have different {what}: {here} and {there}.")
    if not all(_same(getattr(small.prompts, what), getattr(large.prompts, what)) for what in _COMPARED):
        raise ValueError(f"The effects are on different prompts: {small.prompts} and {large.prompts}.")
    chosen = select_latents(novel, large.dictionaries[0].width)
    is_novel = large.frame["latent"].isin(chosen.tolist())
    latents = large.frame["kind"] == "latent"
    parts = {
        "error_small": small.frame[small.frame["kind"] == "error"],
        "latents_small": small.frame[small.frame["kind"] == "latent"],
        "error_large": large.frame[~latents],
        "novel": large.frame[latents & is_novel],
        "reconstruction": large.frame[latents & ~is_novel],
    }
    keys = ["prompt", "position"]
    frame = pd.DataFrame({name: part.groupby(keys)[method].sum() for name, part in parts.items()})
    return ErrorCarriers(
        small=small.dictionaries[0],
        large=large.dictionaries[0],
        prompts=small.prompts.name,
        metric=small.metric,
        method=method,
        n_novel=len(chosen),
        frame=frame.fillna(0.0).sort_index().reset_index(),
    )
