"""Effects of latents and SAE errors on a metric: exact, and four ways to estimate them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from saekit import settings
from saekit.analysis.effects.metrics import Metric, MetricFunction, metric_of, require_finite
from saekit.analysis.effects.relevance import relevance_hooks
from saekit.analysis.effects.sites import (
    BASELINES,
    Nodes,
    Site,
    baseline_of,
    counted_positions,
    require_prompts,
    sites_of,
)
from saekit.cache import cached
from saekit.dictionary import Dictionary
from saekit.identity import Identity
from saekit.models import Hook, PartialRun
from saekit.prompts import Prompts
from saekit.results import Result

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

METHODS = ("exact", "attribution", "integrated", "relp")
KINDS = ("latent", "error")
RULES = {"midpoint": 0.5, "left": 0.0, "right": 1.0}  # where in each step the gradient is taken
DRAWS = 1000  # of the bootstrap over prompts


@dataclass(frozen=True, eq=False, repr=False)
class NodeEffects(Result):
    """The effect on a metric of setting single nodes to their baseline.

    An effect is the metric with the node at its baseline minus the metric of the clean prompt, so a node that
    supports the metric has a negative one. A node is a latent at a position of a prompt, or the error there.

    Attributes
    ----------
    dictionaries : tuple of Identity
        The dictionaries.
    places : tuple of str
        The hook point that each explains.
    prompts : Prompts
        The prompts.
    metric, baseline : str
        Name of the metric; `"patch"`, `"mean"` or `"zero"`.
    methods : tuple of str
        The methods measured.
    integration : mapping
        `steps`, `rule` and end points (`start`, `end`) of integrated gradients.
    start : int
        First position whose nodes count.
    frame : DataFrame
        One row per node that differs from its baseline: `place`, `prompt`, `position`, `kind`
        (`"latent"` or `"error"`), `latent` (-1 for errors), `activation` and `baseline` (for errors
        their norms), and one column per method; `exact` is NaN for nodes outside the sample.
    totals : DataFrame
        One row per place and prompt: `clean`, the metric, and `total`, its change with all nodes of the
        place at their baseline.
    """

    dictionaries: tuple[Identity, ...]
    places: tuple[str, ...]
    prompts: Prompts
    metric: str
    baseline: str
    methods: tuple[str, ...]
    integration: dict[str, Any]
    start: int
    frame: pd.DataFrame
    totals: pd.DataFrame
    _plot: ClassVar[str] = "effects_agreement"

    def nodes(self, method: str = "attribution") -> pd.DataFrame:
        """Nodes by position, their effects averaged over prompts, greatest first.

        Positions are counted from the start, so prompts of one template belong together. A prompt in which a
        node does not differ from its baseline counts as 0.

        Parameters
        ----------
        method : str
            One of the methods measured on all nodes.

        Returns
        -------
        DataFrame
            `place`, `position`, `kind`, `latent`, `effect` and `n_prompts`.

        Raises
        ------
        ValueError
            If the method was not measured, or on a sample only.
        """
        method = settings.choice("method", method, self.methods)
        if self.frame[method].isna().any():
            raise ValueError(f"The {method} effects are those of a sample: average those of another method.")
        keys = ["place", "position", "kind", "latent"]
        found = self.frame.groupby(keys, sort=False)[method].agg(["sum", "count"]).reset_index()
        found["effect"] = found.pop("sum") / len(self.prompts)
        found["n_prompts"] = found.pop("count")
        order = np.lexsort((found["latent"], found["position"], -found["effect"].abs()))
        return found.iloc[order].reset_index(drop=True)

    @property
    def agreement(self) -> pd.DataFrame:
        """How each method agrees with the exact effects, over the nodes of the sample.

        Returns
        -------
        DataFrame
            One row per place, kind of node and method: `place`, `kind`, `method`, `n_nodes`,
            `correlation` (Pearson's) with `low` and `high`, the 95% interval of a bootstrap over prompts,
            `rank_correlation` (Spearman's) and `slope` of the method's effects on the exact ones.
        """
        rows = []
        exact = self.frame[self.frame["exact"].notna()] if "exact" in self.methods else self.frame[:0]
        for place in self.places:
            for kind in KINDS:
                part = exact[(exact["place"] == place) & (exact["kind"] == kind)]
                for method in self.methods:
                    if method == "exact" or len(part) < 2:
                        continue
                    x, y = part["exact"].to_numpy(), part[method].to_numpy()
                    correlation, low, high = correlate(x, y, part["prompt"].to_numpy())
                    rows.append(
                        {
                            "place": place,
                            "kind": kind,
                            "method": method,
                            "n_nodes": len(part),
                            "correlation": correlation,
                            "low": low,
                            "high": high,
                            "rank_correlation": part["exact"].corr(part[method], method="spearman"),
                            "slope": float(x @ y / (x @ x)) if x.any() else np.nan,
                        }
                    )
        return pd.DataFrame(rows)

    @property
    def by_kind(self) -> pd.DataFrame:
        """Sums over nodes by place and kind, averaged over prompts, next to the total effect.

        Returns
        -------
        DataFrame
            `place`, `kind`, `nodes` (per prompt), for every method measured on all nodes the mean
            sum of effects, and `total`, the mean change with all nodes of the place at their baseline.
        """
        whole = [method for method in self.methods if not self.frame[method].isna().any()]
        grouped = self.frame.groupby(["place", "kind"], sort=False)
        table = grouped[whole].sum() / len(self.prompts)
        table.insert(0, "nodes", grouped.size() / len(self.prompts))
        return table.join(self.totals.groupby("place")["total"].mean(), on="place").reset_index()

    @property
    def summary(self) -> dict[str, Any]:
        """Names, counts, the mean metric and total effect, and correlations of latents by method."""
        agreement = self.agreement
        if len(agreement):
            latents = agreement[agreement["kind"] == "latent"]
            correlations = {
                f"{place}: {method}": value
                for place, method, value in latents[["place", "method", "correlation"]].itertuples(
                    index=False
                )
            }
        else:
            correlations = {}
        return {
            "dictionaries": ", ".join(map(str, self.dictionaries)),
            "prompts": self.prompts.name,
            "metric": self.metric,
            "baseline": self.baseline,
            "n_prompts": len(self.prompts),
            "n_nodes": len(self.frame),
            "clean": float(self.totals["clean"].mean()),
            "correlation": correlations,
        }


@cached
def measure_node_effects(
    model: TransformerBridge,
    dictionaries: Dictionary | Sequence[Dictionary],
    prompts: Prompts,
    *,
    metric: str | MetricFunction = "logit_difference",
    baseline: str = "patch",
    methods: Sequence[str] = METHODS,
    n_exact: int | None = 400,
    steps: int = 10,
    rule: str = "midpoint",
    start: int = 1,
    batch_rows: int = 32,
    seed: int = 0,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> NodeEffects:
    """Measure what every latent and the SAE error do to a metric, at each position of each prompt.

    The model's own activations are changed by single nodes alone, so the error of reconstruction stays unless
    it is the node. All methods estimate one number: the change of the metric when the node is set to its
    baseline and everything after it is computed again.

    - `"exact"` does that, batched over nodes, for a random sample of them.
    - `"attribution"` multiplies the change of the node with the gradient at the clean prompt.
    - `"integrated"` multiplies it with the mean gradient along the straight line from the clean activations
      to those with all nodes of the hook point at their baseline, in `steps` equal steps, at the middle of
      each. Summed over the nodes of a hook point this tends to the total effect.
    - `"relp"` multiplies it with the coefficients of layer-wise relevance propagation
      (`saekit.analysis.effects.relevance`).

    Parameters
    ----------
    model : TransformerBridge
        The model.
    dictionaries : Dictionary or sequence of Dictionary
        Each at its own hook point. Those of one are set while the others follow the model.
    prompts : Prompts
        Single or in pairs.
    metric : {"logit_difference", "log_probability", "loss"} or callable
        See `saekit.analysis.effects.metrics`. A function of your own takes logits `[n, ctx, vocab]`
        and the prompts, and returns one number per prompt.
    baseline : {"patch", "mean", "zero"}
        What a node is set to: its value on the corrupted prompt, its mean at that position over the
        corrupted prompts (over the clean ones, if there are none), or zero. Nodes that do not differ
        from it have no effect and no row.
    methods : sequence of str
        Any of these four.
    n_exact : int or None
        Latents in the sample of exact effects, and errors in it, per hook point; None measures all.
    steps : int
        Steps of integrated gradients.
    rule : {"midpoint", "left", "right"}
        Where in each step the gradient is taken. Marks et al.'s code takes 10 steps with `"left"`, from the
        clean prompt towards a baseline that it never reaches.
    start : int
        First position whose nodes count. The first token of a text has activations unlike all others,
        on which dictionaries are not trained.
    batch_rows : int
        Rows per forward or backward pass.
    seed : int
        Seed of the sample.
    progress : bool
        Show a progress bar in exact nodes.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    MismatchError
        If a dictionary is of another model.
    TypeError, ValueError
        If the metric does not give one number per prompt, prompts lack what metric or baseline need, a
        dictionary has no place in the model, or a setting is out of range.

    Notes
    -----
    Marks et al. (2025, arXiv:2403.19647) for effects, error nodes and integrated gradients; Jafari et al.
    (2025, arXiv:2508.21258) for RelP.

    Examples
    --------
    >>> texts, others = ["the king sleeps", "the old queen"], ["the queen sleeps", "the old king"]
    >>> pairs = saekit.Prompts.from_texts(
    ...     model.tokenizer, texts, corrupted=others, answers=[" over"] * 2, wrong=[" runs"] * 2
    ... )
    >>> effects = measure_node_effects(model, saes[16], pairs)
    >>> effects.agreement["method"].unique().tolist()
    ['attribution', 'integrated', 'relp']
    """
    whole = settings.whole
    baseline = settings.choice("baseline", baseline, BASELINES)
    rule = settings.choice("rule", rule, RULES)
    methods = tuple(settings.choice("methods", method, METHODS) for method in methods)
    methods = tuple(method for method in METHODS if method in methods)
    if not methods:
        raise ValueError(f"methods must name at least one of {', '.join(map(repr, METHODS))}.")
    n_exact, steps = settings.optional(whole)("n_exact", n_exact), whole("steps", steps)
    start, seed = whole("start", start, at_least=0), whole("seed", seed, at_least=0)
    batch_rows = whole("batch_rows", batch_rows)
    require_prompts(model, prompts, baseline)
    counted = counted_positions(prompts, start)
    if not counted.any():
        raise ValueError(f"start={start} leaves no position of the prompts, which have {prompts}.")
    differentiable = methods != ("exact",)
    function = metric_of(metric, prompts, int(model.cfg.d_vocab), differentiable=differentiable)
    sites = sites_of(model, dictionaries, allow_mismatch=allow_mismatch)
    hooks = relevance_hooks(model) if "relp" in methods else []

    random, frames, totals = np.random.default_rng(seed), [], []
    for site in sites:
        measured = _Measured(model, site, prompts, function, baseline, counted, batch_rows)
        nodes = measured.estimates(methods, steps, rule, hooks)
        if "exact" in methods:
            sample = _sample(nodes["kind"], n_exact, random)
            nodes.insert(nodes.columns.get_loc("baseline") + 1, "exact", np.nan)
            nodes.loc[sample, "exact"] = measured.exact(nodes.iloc[sample], progress=progress)
        frames.append(nodes)
        totals.append(measured.totals())
    return NodeEffects(
        dictionaries=tuple(site.dictionary.identity for site in sites),
        places=tuple(site.writes for site in sites),
        prompts=prompts,
        metric=function.name,
        baseline=baseline,
        methods=methods,
        integration={"steps": steps, "rule": rule, "start": "clean", "end": baseline},
        start=start,
        frame=pd.concat(frames, ignore_index=True),
        totals=pd.concat(totals, ignore_index=True),
    )


class _Measured:
    """The prompts at one hook point: run once, from where the metric is computed with changed activations."""

    def __init__(
        self,
        model: TransformerBridge,
        site: Site,
        prompts: Prompts,
        metric: Metric,
        baseline: str,
        counted: Tensor,
        batch_rows: int,
    ) -> None:
        self.site, self.prompts, self.metric, self.rows = site, prompts, metric, batch_rows
        self.run = site.run(model, prompts.tokens)
        device = self.run.activations.device
        self.values = require_finite(metric, self._values(self.run.activations, torch.arange(len(prompts))))
        clean = site.of(self.run)
        base = baseline_of(model, site, prompts, clean, baseline, counted)
        keep = ~counted.to(device)[:, :, None]
        self.clean = clean
        self.base = Nodes(
            torch.where(keep, clean.latents, base.latents), torch.where(keep, clean.error, base.error)
        )

    def _values(self, activations: Tensor, which: Tensor) -> Tensor:
        """The metric of some prompts with these activations, float64 `[n]` on the CPU."""
        values = [
            self.metric.of(self.prompts.select(rows))(
                self.run.select(rows).logits(part, last=self._last(rows))
            )
            for rows, part in zip(which.split(self.rows), activations.split(self.rows), strict=True)
        ]
        return torch.cat(values).double().cpu()

    def _last(self, rows: Tensor) -> Tensor | None:
        return self.prompts.last[rows] if self.metric.at_last else None

    def _gradient(self, activations: Tensor, hooks: Sequence[Hook] = ()) -> Tensor:
        """Gradient of the metric by the activations of all prompts."""
        parts = []
        for rows in torch.arange(len(self.prompts)).split(self.rows):
            run: PartialRun = self.run.select(rows)
            function = self.metric.of(self.prompts.select(rows))
            parts.append(run.gradient(activations[rows], function, hooks=hooks, last=self._last(rows))[1])
        return torch.cat(parts).to(self.site.dictionary.W_dec.dtype)

    def estimates(self, methods: Sequence[str], steps: int, rule: str, hooks: Sequence[Hook]) -> pd.DataFrame:
        """The nodes that differ from their baseline, with every effect but the exact one."""
        x = self.run.activations.to(self.clean.error.dtype)
        latents, error = self.base.latents - self.clean.latents, self.base.error - self.clean.error
        gradients: dict[str, Tensor] = {}
        if "attribution" in methods:
            gradients["attribution"] = self._gradient(x)
        if "integrated" in methods:
            change = latents @ self.site.dictionary.W_dec + error
            along = [(step + RULES[rule]) / steps for step in range(steps)]
            gradients["integrated"] = sum(self._gradient(x + a * change) for a in along) / steps  # type: ignore[assignment]
        if "relp" in methods:
            gradients["relp"] = self._gradient(x, hooks)

        where = latents.nonzero(as_tuple=True)
        wrong = error.any(2).nonzero(as_tuple=True)
        norms = [part.norm(dim=2)[wrong] for part in (self.clean.error, self.base.error)]

        def column(of_latents: Tensor, of_errors: Tensor) -> np.ndarray:
            return torch.cat([of_latents, of_errors]).double().cpu().numpy()

        minus = torch.full_like(wrong[0], -1)
        table: dict[str, Any] = {
            "place": self.site.writes,
            "prompt": torch.cat([where[0], wrong[0]]).cpu().numpy(),
            "position": torch.cat([where[1], wrong[1]]).cpu().numpy(),
            "kind": np.repeat(KINDS, (len(where[0]), len(wrong[0]))),
            "latent": torch.cat([where[2], minus]).cpu().numpy(),
            "activation": column(self.clean.latents[where], norms[0]),
            "baseline": column(self.base.latents[where], norms[1]),
        }
        for method, gradient in gradients.items():
            by_latent = latents * (gradient @ self.site.dictionary.W_dec.T)
            table[method] = column(by_latent[where], (error * gradient).sum(2)[wrong])
        return pd.DataFrame(table)

    def exact(self, nodes: pd.DataFrame, *, progress: bool) -> np.ndarray:
        """The effects of some nodes, each by a forward pass with it alone at its baseline."""
        prompts, positions, latents = (
            torch.from_numpy(nodes[name].to_numpy(copy=True)) for name in ("prompt", "position", "latent")
        )
        found = []
        with tqdm(total=len(nodes), disable=not progress, unit="node", desc="exact effects") as bar:
            for part in torch.arange(len(nodes)).split(self.rows):
                p, t, i = prompts[part], positions[part], latents[part]
                latent = p, t, i.clamp(min=0)
                amount = self.base.latents[latent] - self.clean.latents[latent]
                change = amount[:, None] * self.site.dictionary.W_dec[latent[2]]
                error = self.base.error[p, t] - self.clean.error[p, t]
                x = self.run.activations[p].to(change.dtype)
                at = torch.arange(len(part), device=x.device)
                x[at, t] += torch.where(i.to(x.device)[:, None] < 0, error, change)
                found.append(self._values(x, p) - self.values[p])
                bar.update(len(part))
        return torch.cat(found).numpy() if found else np.zeros(0)

    def totals(self) -> pd.DataFrame:
        """The clean metric of every prompt, and its change with all nodes at their baseline."""
        every = torch.arange(len(self.prompts))
        changed = self._values(self.site.activations(self.base), every)
        return pd.DataFrame(
            {
                "place": self.site.writes,
                "prompt": every.numpy(),
                "clean": self.values.numpy(),
                "total": (changed - self.values).numpy(),
            }
        )


def _sample(kind: pd.Series, n: int | None, random: np.random.Generator) -> np.ndarray:
    """Rows of the nodes to measure exactly: at most n of either kind."""
    chosen = []
    for one in KINDS:
        rows = np.flatnonzero(kind == one)
        chosen.append(rows if n is None else np.sort(random.permutation(rows)[:n]))
    return np.concatenate(chosen)


def correlate(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> tuple[float, float, float]:
    """Pearson's correlation, with the 95% interval of a bootstrap over groups of pairs, such as prompts.

    Parameters
    ----------
    x, y : ndarray
        `[n]`.
    group : ndarray
        The group of each, `[n]`: groups are drawn whole, since the pairs of one belong together.

    Returns
    -------
    tuple of float
        Correlation, lower and upper bound; NaN where x or y is constant.

    Examples
    --------
    >>> x = np.arange(6.0)
    >>> correlate(x, 2 * x, np.array([0, 0, 1, 1, 2, 2]))[0]
    1.0
    """
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan, np.nan, np.nan
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    members, place = np.unique(group, return_inverse=True)
    sums = np.zeros((len(members), 6))
    np.add.at(sums, place, np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1))
    random = np.random.default_rng(0)
    drawn = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=DRAWS)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = _pearson(drawn @ sums)
    low, high = np.nanquantile(correlations, (0.025, 0.975))
    return round(float(_pearson(sums.sum(0))), 12), float(low), float(high)


def _pearson(sums: np.ndarray) -> np.ndarray:
    """From counts and sums of x, y, xx, yy, xy."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    result: np.ndarray = (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))
    return result
