"""The canonicity report: is a family unique, complete and atomic? One page, with its data.

The page contains its figures and needs neither a network nor scripts. The numbers behind each figure
and table are in files beside it.
"""

# ruff: noqa: RUF001 - typographic characters are meant: people read this text

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm

from saekit import plots
from saekit.activations import ActivationStore
from saekit.agreement import check_agreement
from saekit.analysis import (
    FamilyUniqueness,
    GroupInsertion,
    Insertion,
    SplittingTree,
    family_similarity,
    insertion,
    match_latents,
    meta_sae,
    splitting_tree,
    stitch,
)
from saekit.analysis.edits import Edits
from saekit.analysis.effects.circuits import CircuitComparison
from saekit.analysis.effects.nodes import NodeEffects
from saekit.analysis.meta.baselines import MetaBaselines, meta_baselines
from saekit.analysis.meta.sae import RECIPES, Recipe
from saekit.analysis.novelty import GroupInsertionPass, InsertionPass
from saekit.analysis.probing import Probing
from saekit.analysis.stitching.path import Stitching, StitchingPass
from saekit.analysis.uniqueness.families import FamilyUniquenessPass
from saekit.baselines import compare_with_baselines
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.family import Comparison, Family
from saekit.figures import Plot, kind_style
from saekit.files import writable_folder
from saekit.metrics import CEDegradation, Evaluation, EvaluationPass, ce_degradation, evaluate
from saekit.passes import one_pass
from saekit.plots.probing import MARKERS
from saekit.provenance import provenance_of
from saekit.report.causal import Causes
from saekit.report.page import Section, Table, write_page
from saekit.settings import choice, cosine, whole
from saekit.wording import grouped, listed, number, share, span

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CE_ROWS = 16  # rows of the store that cross-entropy is measured on
HELD_OUT_SHARE = 0.1  # of decoder directions, which the meta-SAE does not see


def write_report(
    family: Family,
    store: ActivationStore,
    *,
    folder: str | Path,
    model: TransformerBridge | None = None,
    theta: float = 0.7,
    k: int = 4,
    recipe: str | Recipe = "lesswrong",
    baselines: Sequence[Dictionary] = (),
    probing: Probing | None = None,
    effects: Sequence[NodeEffects] = (),
    circuits: Sequence[CircuitComparison] = (),
    edits: Sequence[Edits] = (),
    allow_mismatch: bool = False,
    progress: bool = False,
) -> Path:
    """Measure whether the latents of a family are unique, complete and atomic; write one page.

    Parameters
    ----------
    family : Family
        A family of at least two widths, whose latents do not depend on each other. Further seeds give
        the nulls; the page states where there are none.
    store : ActivationStore
        Held-out tokens at the family's hook point.
    folder : str or Path
        For `index.html`, `report.json` (headline numbers, settings and provenance) and one CSV per
        figure and table. The same inputs give the same bytes.
    model : TransformerBridge, optional
        The language model that the store was harvested from, to measure CE degradation too.
    theta : float
        Cosine from which two latents count as the same one.
    k : int
        Meta-latents per decoder direction.
    recipe : str or Recipe
        How the meta-SAE is trained (`saekit.analysis.meta.sae.RECIPES`).
    baselines : sequence of Dictionary
        Dictionaries that learnt nothing (`saekit.baselines`), each of a width of the family, to set beside
        its dictionary of that width.
    probing : Probing, optional
        Probes of the family's dictionaries, from `saekit.probe`.
    effects : sequence of NodeEffects
        What nodes of its dictionaries do to a metric, from `saekit.measure_node_effects`.
    circuits : sequence of CircuitComparison
        Circuits through its dictionaries, one per task, from `saekit.compare_circuits`; `random_sets` sets
        random nodes beside them.
    edits : sequence of Edits
        Edits of facts by its latents, from `saekit.measure_edits`.
    allow_mismatch : bool
        Warn instead of raising where model, store and family contradict each other.
    progress : bool
        Show progress bars, over the sections of the page and within each analysis.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    MismatchError
        If model, store and family do not belong together (`saekit.agreement`).
    ValueError
        If the family has fewer than two widths, or latents that depend on each other (TopK: see
        `saekit.as_jumprelu`), a baseline has none of its widths, none of its dictionaries was probed,
        effects, circuits or edits are of others, or a setting is out of range.
    TypeError
        If `family` is not a `Family`, or a result is of another analysis.
    OSError
        If nothing can be written to the folder.

    Notes
    -----
    Leask et al. (ICLR 2025): a canonical set of units is unique, complete and atomic. Each section
    gives its numbers beside their nulls. All input is checked before any work starts.
    """
    if not isinstance(family, Family):
        raise TypeError(f"family must be a Family, found {type(family).__name__}: use saekit.load_family.")
    if len(family.widths) < 2:
        raise ValueError(f"A report needs a family of at least two widths, found {family.widths}.")
    theta = cosine("theta", theta)
    chosen = recipe if isinstance(recipe, Recipe) else RECIPES[choice("recipe", recipe, RECIPES)]
    if not isinstance(baselines, list | tuple):
        raise TypeError(f"baselines must be a list of dictionaries, found {type(baselines).__name__}.")
    require_dictionaries(**{f"baselines[{place}]": one for place, one in enumerate(baselines)})
    for one in baselines:
        if one.width not in family.widths:
            raise ValueError(
                f"A baseline needs a width of the family, {listed(family.widths)}; "
                f"{one.name} has {one.width}."
            )
    probed = _probed(probing, family) if probing is not None else []
    causes = Causes(effects, circuits, edits)
    causes.require(family)
    dictionaries = [*family, *baselines]
    for one in dictionaries:
        one.require_independent("A report")
    check_agreement(model=model, activations=store, dictionaries=dictionaries, allow_mismatch=allow_mismatch)
    k = whole("k", k, at_most=family[family.widths[0]].d_out)
    n_meta = chosen.n_meta_latents(family.widths[-1])
    if k > n_meta:
        raise ValueError(
            f"k must be at most the number of meta-latents, found {k}: the recipe {chosen.name} gives the "
            f"{family.widths[-1]} directions of the widest dictionary {n_meta}."
        )
    writable_folder(folder)
    options: dict[str, Any] = {"progress": progress, "allow_mismatch": allow_mismatch}
    found = _over_the_store(family, store, theta, **options)
    analyses: list[Callable[[], Section]] = [
        lambda: _measured(family, store, model, found.evaluations, **options),
        lambda: _unique(found.uniqueness),
        lambda: _complete(family, theta, found, **options),
        lambda: _atomic(family, k, chosen, **options),
    ]
    if baselines:
        analyses.append(lambda: _beside_baselines(family, baselines, store, theta))
    if probing is not None:
        analyses.append(lambda: _downstream(probing, probed))
    if effects or circuits or edits:
        analyses.append(causes.section)
    bar = tqdm(analyses, disable=not progress, unit="section", desc="report")
    sections = [analysis() for analysis in bar]
    kind = kind_style(family.kind).label
    return write_page(
        folder,
        sections,
        title=f"Are the latents of the {kind} family unique, complete and atomic?",
        subtitle="Canonicity report. Each number is given beside its null: the same number between two seeds "
        "of one width, or on directions without structure.",
        settings={
            "theta": theta,
            "k": k,
            "recipe": chosen.name,
            "held_out_share": HELD_OUT_SHARE,
            "ce_rows": 0 if model is None else CE_ROWS,
        },
        inputs=provenance_of(
            store=store, family=family, **{f"baseline {i}": one for i, one in enumerate(baselines)}
        ),
    )


# ---------------------------------------------------------------------- what needs the store


@dataclass(frozen=True, eq=False)
class _Found:
    """What is measured over the store: by member of the family, or by comparison."""

    evaluations: list[Evaluation]
    uniqueness: FamilyUniqueness
    inserted: dict[str, Insertion]
    stitched: dict[str, Stitching]
    groups: dict[str, GroupInsertion]


def _over_the_store(family: Family, store: ActivationStore, theta: float, **options: Any) -> _Found:
    """Everything that needs tokens, in two passes over the store: groups need to know what helps alone."""
    allow = {"allow_mismatch": options["allow_mismatch"]}
    comparisons = family.comparisons()
    evaluations = [EvaluationPass(member, store) for member in family]
    uniqueness = FamilyUniquenessPass(family, theta=theta, **options)
    insertions = {c.label: InsertionPass(c.small, c.large, theta=theta, **allow) for c in comparisons}
    paths = {c.label: StitchingPass(c.small, c.large, store, theta=theta, **allow) for c in comparisons}
    together: dict[str, Any] = {"dictionaries": list(family), "purpose": "the report", **options}
    tokens = one_pass(store, *evaluations, uniqueness, *insertions.values(), *paths.values(), **together)
    inserted = {name: part.finished(tokens) for name, part in insertions.items()}
    groups = {
        c.label: GroupInsertionPass(c.small, c.large, inserted[c.label], **allow)
        for c in comparisons
        if not c.null
    }
    again = one_pass(store, *groups.values(), **together)
    return _Found(
        [part.finished(tokens) for part in evaluations],
        uniqueness.finished(tokens),
        inserted,
        {name: part.finished(tokens) for name, part in paths.items()},
        {name: part.finished(again) for name, part in groups.items()},
    )


# ---------------------------------------------------------------------- sections


def _measured(
    family: Family,
    store: ActivationStore,
    model: TransformerBridge | None,
    evaluations: Sequence[Evaluation],
    **options: Any,
) -> Section:
    frame = pd.DataFrame([evaluation.summary for evaluation in evaluations])
    shown = {"dictionary": "dictionary", "l0": "L0", "fvu": "FVU", "dead_fraction": "dead"}
    ce: CEDegradation | None = None
    if model is not None:
        ce = ce_degradation(model, list(family), store, max_rows=CE_ROWS, everywhere=False, **options)
        frame = frame.assign(ce_degradation=ce.frame["ce_degradation"].to_numpy())
        shown["ce_degradation"] = "CE degradation"
    n_tokens, n_excluded = evaluations[0].n_tokens, evaluations[0].n_excluded
    caption = "FVU is the fraction of variance that a dictionary leaves unexplained, L0 its mean number of "
    caption += "active latents per token. Dead latents are active on none of these tokens."
    if ce is not None:
        caption += (
            f" CE degradation, in nats per token, is measured on {ce.n_targets:,} targets; cross-entropy is "
            f"{number(ce.ce_original)} without a dictionary and {number(ce.ce_zero_ablation)} with "
            "activations set to zero."
        )
    widths = listed(family.widths)
    model_name = store.model_name or "an unnamed model"
    return Section(
        title="Measurements",
        question="Which dictionaries, on which tokens?",
        says=f"{len(family)} {kind_style(family.kind).label} dictionaries of widths {widths} at "
        f"{family.hook_point or 'an unknown hook point'} of {model_name}, on {n_tokens:,} "
        f"{_which(family, store)}; {n_excluded:,} "
        f"positions are excluded ({grouped(store.manifest['exclusion']['rule'])}).",
        parts=[Table("dictionaries", caption, frame, shown)],
        numbers={"dictionaries": frame.to_dict("records"), "n_tokens": n_tokens, "n_excluded": n_excluded},
    )


def _which(family: Family, store: ActivationStore) -> str:
    """Whether the tokens are those that dictionaries were trained on, as far as these record it."""
    records = [member.info.get("training") for member in family]
    trained = sum(isinstance(r, Mapping) and r.get("activations") == store.content_hash for r in records)
    return f"tokens that {trained} of them were trained on" if trained else "held-out tokens"


def _unique(result: FamilyUniqueness) -> Section:
    measured = result.table[result.table["null"] == ""]
    seeds = measured[measured["seeds"] & (measured["note"] == "")]
    over_seeds = result.over_seeds
    parts: list[Table | tuple[str, Plot]] = [
        ("unique_cosines", plots.uniqueness_distributions(result)),
        ("unique_over_theta", plots.unmatched_curve([result])),
    ]
    if len(seeds):
        parts.append(("unique_recurrence", plots.recurrence(list(result.seeds.values()))))
        parts.append(("unique_by_density", plots.uniqueness_by_density([result])))
    parts.append(_unique_table(result))
    if len(seeds):
        parts.append(_seeds_table(result))
    return Section(
        title="Unique",
        question="Does another training run find the same latents?",
        says=_unique_sentence(result, seeds, measured[~measured["seeds"]]),
        parts=parts,
        numbers=result.summary,
        value="–" if seeds.empty else share(over_seeds["share_shared"].iloc[-1]),
        unit="no width has a second seed"
        if seeds.empty
        else f"of the latents of width {over_seeds['width'].iloc[-1]} are found again by another seed "
        f"(without structure: {share(_greatest_null(result, seeds[-1:]))})",
    )


def _greatest_null(result: FamilyUniqueness, measured: pd.DataFrame) -> float:
    """The greatest share that these comparisons reach without structure."""
    nulls = result.table[result.table["null"] != ""]
    return float(nulls.loc[nulls["comparison"].isin(measured["comparison"]), "share_shared"].max())


def _unique_table(result: FamilyUniqueness) -> Table:
    frame = result.table
    second = frame["null"].where(frame["null"] != "", frame["note"])
    return Table(
        "unique",
        "One-to-one matching of the latents of two dictionaries that maximises the sum of their decoder "
        "cosines. Mutual: each is the other’s best match. Encoder too: matching by encoder directions gives "
        "the same pair, with both cosines at least θ. Correlation: between the activations of matched "
        "latents. In a null, the second dictionary is replaced by directions without structure.",
        frame.assign(second=second),
        {
            "comparison": "comparison",
            "second": "null",
            "mean_matched_cosine": "cosine",
            "mean_best_cosine": "best cosine",
            "share_shared": f"≥ {result.theta:g}",
            "share_mutual": "mutual",
            "share_shared_both": "encoder too",
            "mean_correlation": "correlation",
        },
    )


def _seeds_table(result: FamilyUniqueness) -> Table:
    return Table(
        "unique_seeds",
        "All seeds of a width together: PW-MCC, the mean cosine of the one-to-one matching over all pairs of "
        "seeds (absolute: the one that maximises absolute cosines); latents that recur in every other seed "
        f"and in none, at θ = {result.theta:g}; and what differed between the runs, as far as they record "
        "it. Runs that share initialisation or data order agree more than independent ones do.",
        result.over_seeds,
        {
            "width": "width",
            "n_seeds": "seeds",
            "pw_mcc_signed": "PW-MCC",
            "pw_mcc_absolute": "absolute",
            "share_always": "recur in all",
            "share_never": "in none",
            "differ": "differ in",
        },
    )


def _unique_sentence(result: FamilyUniqueness, seeds: pd.DataFrame, widths: pd.DataFrame) -> str:
    kept, null_kept = span(widths["share_shared"]), share(_greatest_null(result, widths))
    if seeds.empty:
        return (
            "No width has a second seed, so this family cannot show whether another run finds the same "
            f"latents. The next width finds {kept} of them again (decoder cosine of a one-to-one match at "
            f"least {result.theta:g}; without structure at most {null_kept})."
        )
    parts = []
    for row in result.over_seeds.itertuples():
        part = f"{share(row.share_shared)} of the latents of width {row.width}"
        if row.n_seeds > 2:
            part += f" (mean over the pairs of {row.n_seeds} seeds; {share(row.share_always)} recur in all)"
        parts.append(part)
    found = listed(parts)
    return (
        f"Another seed finds {found} again (decoder cosine of a one-to-one match at least {result.theta:g}; "
        f"without structure at most {share(_greatest_null(result, seeds))}); the next width finds {kept} "
        f"(without structure at most {null_kept})."
    )


def _complete(family: Family, theta: float, found: _Found, **options: Any) -> Section:
    comparisons = family.comparisons()
    pairs, nulls = ([c.label for c in comparisons if c.null == null] for null in (False, True))
    allow = {"allow_mismatch": options["allow_mismatch"]}
    similarity = family_similarity(family, theta=theta, **allow)
    tree = splitting_tree(family, theta=theta, **allow)
    inserted, stitched, groups = found.inserted, found.stitched, found.groups
    parts: list[Table | tuple[str, Plot]] = [
        ("complete_similarity", plots.max_cosine_distribution(similarity)),
        ("complete_splitting", plots.splitting_flow(tree)),
        _splitting_table(tree, theta),
    ]
    curves = [[inserted[name] for name in names if _has_roc(inserted[name])] for names in (pairs, nulls)]
    if curves[0]:
        parts.append(("complete_roc", plots.roc(*curves)))
    parts.append(_insertion_table(inserted))
    parts += [
        ("complete_groups", plots.group_insertion_bars(list(groups.values()))),
        *(
            (
                f"complete_stitching_{c.small_width}_{c.large_width}",
                plots.stitching_curve(stitched[c.label], _null_of(stitched, c)),
            )
            for c in comparisons
            if not c.null
        ),
        _stitching_table(stitched),
    ]
    summaries = {name: result.summary for name, result in inserted.items()}
    paths = {name: result.summary for name, result in stitched.items()}
    numbers = pd.DataFrame(
        {
            "novel": similarity.table.set_index("comparison")["share_under_theta"].dropna(),
            "helps": pd.Series({name: summary["share_novel_gain"] for name, summary in summaries.items()}),
            "lowering": pd.Series({name: summary["share_lowering"] for name, summary in paths.items()}),
        }
    )
    across, between = numbers.loc[[*pairs]], numbers.loc[[*nulls]]
    novel, helps, lowering = (f"{span(across[name])}{_beside(between[name])}" for name in numbers)
    last = [c for c in comparisons if not c.null][-1]
    return Section(
        title="Complete",
        question="Does a wider dictionary find what a narrower one lacks?",
        says=f"From each width to the next, {novel} of the wider dictionary’s latents resemble no latent of "
        f"the narrower one, {helps} lower its error when inserted alone, and {lowering} of the stitching "
        "steps lower the error.",
        parts=parts,
        numbers={
            "splitting": tree.summary,
            "insertion": summaries,
            "groups": {name: group.summary for name, group in groups.items()},
            "stitching": paths,
        },
        value=share(across["novel"].iloc[-1]),
        unit=f"of the latents of width {last.large_width} resemble none of width {last.small_width}"
        + (f" ({between.index[-1]}: {share(between['novel'].iloc[-1])})" if len(between) else ""),
    )


def _has_roc(result: Insertion) -> bool:
    return not result.without_auc


def _null_of(stitched: Mapping[str, Stitching], pair: Comparison) -> Stitching | None:
    """Between two seeds of the small width, or else of the large one."""
    labels = {c.small_width: c.label for c in reversed(pair.family.comparisons(null=True))}
    return next((stitched[labels[w]] for w in (pair.small_width, pair.large_width) if w in labels), None)


def _splitting_table(tree: SplittingTree, theta: float) -> Table:
    frame = tree.table.pivot(index=["small_width", "pair"], columns="measure", values="share")
    frame = frame.reset_index("small_width", drop=True).rename_axis("comparison").reset_index()
    nulls = [
        {"comparison": f"{width}, other seed"}
        | {measure: null.summary[f"share_{measure}"] for measure in frame.columns[1:]}
        for width, nulls_of_width in tree.nulls.items()
        for null in nulls_of_width[:1]
    ]
    names = ("split", "identical", "refined", "lost", "novel")
    return Table(
        "splitting",
        f"Fate of latents from one width to the next at θ = {theta:g}, beside two seeds of one width. Split, "
        "identical, refined and lost are shares of the latents of the narrower dictionary; novel is a share "
        "of those of the wider one.",
        pd.concat([frame, pd.DataFrame(nulls)], ignore_index=True)[["comparison", *names]],
        {name: name for name in ("comparison", *names)},
    )


def _insertion_table(inserted: Mapping[str, Insertion]) -> Table:
    frame = pd.DataFrame([{"comparison": name} | result.summary for name, result in inserted.items()])
    return Table(
        "insertion",
        "Each latent of the second dictionary inserted alone into the first: it is novel if its best cosine "
        "is under θ, and it helps if it lowers the error. AUC: how well the cosine predicts which latents "
        "help. Dead latents are left out."
        + "".join(
            f" {name} has no AUC: {result.without_auc}."
            for name, result in inserted.items()
            if result.without_auc
        ),
        frame,
        {
            "comparison": "comparison",
            "n_latents": "latents",
            "share_novel_cos": "novel",
            "share_novel_gain": "help",
            "auc": "AUC",
            "balanced_accuracy": "balanced accuracy",
            "fvu_small": "FVU of the first",
            "fvu_large": "FVU of the second",
        },
    )


def _stitching_table(stitched: Mapping[str, Stitching]) -> Table:
    frame = pd.concat(
        [result.phases.assign(comparison=name) for name, result in stitched.items()], ignore_index=True
    )
    return Table(
        "stitching",
        "The phases of stitching: novel latents are inserted, groups of similar latents swapped, latents "
        "without a counterpart removed, and the decoder bias exchanged. Lowering: share of steps that lower "
        "the error.",
        frame[["comparison", *frame.columns.drop("comparison")]],
        {
            "comparison": "comparison",
            "phase": "phase",
            "n_inserted": "inserted",
            "n_removed": "removed",
            "fvu_before": "FVU before",
            "fvu": "FVU after",
            "l0": "L0 after",
            "share_lowering": "lowering",
        },
    )


def _atomic(family: Family, k: int, recipe: Recipe, **options: Any) -> Section:
    *smaller, widest = (family[width] for width in family.widths)
    meta = meta_sae(widest, k=k, recipe=recipe, held_out_share=HELD_OUT_SHARE, **options)
    result = meta_baselines(meta, smaller, **options)
    summary = result.summary
    baselines = Table(
        "baselines",
        "Explained variance of the decoder directions of the widest dictionary: by the meta-SAE, by other "
        "directions in its place and by matching pursuit on other dictionaries; and by the meta-SAE on rows "
        "without structure (nulls).",
        result.frame,
        {
            "variant": "dictionary",
            "encoder": "encoder",
            "signed": "signed",
            "dictionary_width": "directions",
            "n_terms": "terms",
            "explained_variance": "explained variance",
            "explained_variance_held_out": "on held-out rows",
            "note": "",
        },
    )
    return Section(
        title="Atomic",
        question="Are decoder directions sums of fewer, more general ones?",
        says=_atomic_sentence(result, meta.width),
        parts=[("atomic_baselines", plots.meta_baselines(result)), baselines],
        numbers={"meta": meta.summary, "baselines": summary},
        value=share(summary["explained_variance"]),
        unit=f"of the variance of {widest.width} directions is explained by {meta.width} meta-latents "
        f"(without structure: {share(max(summary['nulls'].values()))})",
    )


def _atomic_sentence(result: MetaBaselines, width: int) -> str:
    summary = result.summary
    own, nulls = summary["explained_variance"], summary["nulls"]
    held_out = summary["held_out"]["explained_variance"]
    null = max(nulls, key=nulls.__getitem__)
    than = "more than" if own > nulls[null] else "no more than"
    return (
        f"With {summary['terms']} of {width} meta-latents per direction, the meta-SAE explains {share(own)} "
        f"of the variance of the widest dictionary’s decoder directions ({share(held_out)} on held-out "
        f"directions), {than} it explains of rows without structure ({null}: {share(nulls[null])}). Of "
        f"{summary['n_baselines']} baselines, {summary['n_beaten']} explain less; the best, "
        f"{summary['best_signed']}, explains {share(summary['best_signed_explained_variance'])}."
    )


BASELINE_HEADLINES = {  # heading, and 1 where more is better, -1 where less is
    "l0": ("L0", 0),
    "fvu": ("FVU", -1),
    "share_novel_gain": ("lower the error alone", 1),
    "auc": ("AUC of the cosine", 1),
    "share_lowering": ("steps lowering the error", 1),
    "share_shared": ("found in another run", 1),
}


def _beside_baselines(
    family: Family, baselines: Sequence[Dictionary], store: ActivationStore, theta: float
) -> Section:
    frame = pd.concat(
        [
            compare_with_baselines(
                family[width],
                [one for one in baselines if one.width == width],
                partial(_headlines, family, store, theta),
            )
            for width in sorted({one.width for one in baselines})
        ],
        ignore_index=True,
    )
    shown = {name: label for name, (label, _) in BASELINE_HEADLINES.items() if name in frame}
    first = ~frame.duplicated("width")  # the trained dictionary of each width
    exceeded = [
        label
        for name, label in shown.items()
        for sign in [BASELINE_HEADLINES[name][1]]
        if any(
            (sign * part[name][1:] > sign * part[name].iloc[0]).any() for _, part in frame.groupby("width")
        )
    ]
    rest = [label for name, label in shown.items() if label not in exceeded and BASELINE_HEADLINES[name][1]]
    says = f"{_count(len(frame) - first.sum())} stand beside the dictionaries of width "
    says += f"{listed(frame.loc[first, 'width'])}. "
    says += f"At least one does better in: {listed(exceeded)}. " if exceeded else ""
    says += f"None does better in: {listed(rest)}." if rest else ""
    caption = (
        "Each dictionary, and below it its baselines. Latents that lower the error of the next narrower "
        "dictionary when inserted alone, how well the cosine predicts which (no AUC where none or all do), "
        "and steps of stitching that lower it; latents found in another seed or else in the next width. "
        "What depends on the encoder or on the set of directions alone is the same for a permuted decoder."
    )
    return Section(
        title="Baselines",
        question="Would a dictionary that learnt nothing have scored as well?",
        says=says.strip(),
        parts=[Table("beside_baselines", caption, frame, {"dictionary": "dictionary", **shown})],
        numbers={"dictionaries": frame.to_dict("records")},
    )


def _count(n: int) -> str:
    return "One baseline" if n == 1 else f"{n} baselines"


def _headlines(family: Family, store: ActivationStore, theta: float, sae: Dictionary) -> dict[str, Any]:
    """What the baselines of a width are compared in."""
    found = {name: evaluate(sae, store).summary[name] for name in ("l0", "fvu")}
    place = family.widths.index(sae.width)
    if place:
        small = family[family.widths[place - 1]]
        summary = insertion(small, sae, store, theta=theta).summary
        found |= {name: summary[name] for name in ("share_novel_gain", "auc")}
        found["share_lowering"] = stitch(small, sae, store, theta=theta).summary["share_lowering"]
    other = family.second_seed(sae.width)
    if other is None and place + 1 < len(family.widths):
        other = family[family.widths[place + 1]]
    if other is not None:
        found["share_shared"] = match_latents(sae, other, theta=theta).summary["share_shared"]
    return found


def _probed(probing: Probing, family: Family) -> list[str]:
    """Names of the family's dictionaries that were probed, one seed of each width."""
    if not isinstance(probing, Probing):
        raise TypeError(f"probing must be a Probing, found {type(probing).__name__}: see saekit.probe.")
    known = set(probing.frame["dictionary"])
    names = [family[width].name for width in family.widths if family[width].name in known]
    if not names:
        raise ValueError(
            f"None of the dictionaries of {family} was probed; the probes are of {listed(sorted(known))}."
        )
    return names


def _downstream(probing: Probing, names: list[str]) -> Section:
    table = probing.table
    others = [name for name in table["dictionary"].unique() if name not in names]
    curves = plots.probing_curves(probing, [*names, *others][: len(MARKERS)])
    k = int(table["k"].min())
    origin = bool(table["kept_out"].any())
    at = table[(table["k"] == k) & (table["kept_out"] == origin)].set_index("dictionary")["auc"]
    where = "sets kept out of the training text" if origin else "the sets"
    each = listed([f"{number(at[name])} ({name})" for name in [names[-1], *others[:3]]])
    return Section(
        title="Probing",
        question="Do a few latents tell the classes of prompts apart?",
        says=f"With {k} latent{'s' * (k > 1)}, the mean AUC on {where} is {each}.",
        parts=[
            ("probing", curves),
            Table(
                "probing_table",
                "k-sparse probing (Kantamneni et al. 2025): mean AUC over sets, with its standard error. "
                "Rows named “activations” are probes on dimensions of the activations instead. Sets whose "
                "labels leak are left out.",
                table.assign(sets=table["kept_out"].map({True: "kept out", False: "others"})),
                {
                    "dictionary": "dictionary",
                    "sets": "sets",
                    "k": "k",
                    "auc": "AUC",
                    "auc_error": "error",
                    "n_sets": "number of sets",
                },
            ),
        ],
        numbers=probing.summary,
    )


def _beside(nulls: Sequence[float] | pd.Series) -> str:
    return f" (between two seeds: {span(nulls)})" if len(nulls) else " (no second seed to compare with)"
