"""Causal edits: does changing an entity's activation change one fact about it, and leave the others?

The activation of a base entity ("Paris") is changed, at the entity's token, towards that of a source
entity ("Tokyo"): in a few latents, meta-latents, neurons or principal components, by a difference of
means, or at random. Measured as in RAVEL (Huang et al., 2024): cause, isolation and their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from saekit import settings
from saekit.activations import ActivationStore
from saekit.agreement import check_agreement
from saekit.analysis.meta.sae import MetaSAE
from saekit.cache import cached
from saekit.corpora import separator_of
from saekit.dictionary import Dictionary
from saekit.identity import Identity
from saekit.models import PartialRun, device_of, require_rows, run_to, token_strings
from saekit.results import Result
from saekit.wording import listed

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("entity", "attribute", "answer")
DRAWS = 2000  # of the bootstrap
GAIN = 100.0  # of the meta-direction in the procedure of the authors' code
BASES = ("latents", "meta-latents", "neurons", "principal components")
PATCHING, RANDOM = "activation patching", "random direction"


# ---------------------------------------------------------------------- facts


class Filled(NamedTuple):
    """One template filled with every entity.

    Attributes
    ----------
    tokens : Tensor
        `[entities, ctx]`, the separator first.
    place : int
        Position of the entity's token.
    candidates : list of str
        The answers to choose from, sorted.
    ids : Tensor
        Their tokens.
    right : Tensor
        Place in `candidates` of each entity's answer.
    """

    tokens: Tensor
    place: int
    candidates: list[str]
    ids: Tensor
    right: Tensor


def known_facts(
    model: TransformerBridge,
    facts: pd.DataFrame,
    templates: Mapping[str, str | Sequence[str]],
    *,
    batch_rows: int = 32,
    progress: bool = False,
) -> pd.DataFrame:
    """Measure which facts a model knows: whose answer has the largest logit of all answers of its attribute.

    Parameters
    ----------
    model : TransformerBridge
        The model.
    facts : DataFrame
        One row per fact: `entity`, `attribute`, `answer`. Entities and answers must be one token each,
        after a space.
    templates : mapping of str to str or sequence of str
        For each attribute, prompts with `{entity}` in them that the answer continues. A fact is known if
        the model is right with every one of them.
    batch_rows : int
        Filled per forward pass.
    progress : bool
        Show a progress bar in prompts.

    Returns
    -------
    DataFrame
        The facts, with `n_templates`, `n_right`, `known`, and `margin`: by how much the logit of the answer
        exceeds the largest of the others, the smallest over templates.

    Raises
    ------
    TypeError, ValueError
        If a column or template is missing, an entity or answer is not one token or no text, a fact comes
        twice, or an attribute has a single answer.

    Examples
    --------
    >>> facts = pd.DataFrame({"entity": ["king", "queen"], "attribute": "place", "answer": ["river", "moon"]})
    >>> known = known_facts(model, facts, {"place": "the old {entity} sleeps over the"})
    >>> known.columns.tolist()
    ['entity', 'attribute', 'answer', 'n_templates', 'n_right', 'known', 'margin']
    """
    batch_rows = settings.whole("batch_rows", batch_rows)
    facts = _checked(facts, templates)
    prompts = [
        (attribute, _prompts(model, facts[facts["attribute"] == attribute], attribute, template))
        for attribute in facts["attribute"].unique()
        for template in _several(templates[attribute])
    ]
    found: dict[str, list[Tensor]] = {}
    with tqdm(total=sum(len(each.tokens) for _, each in prompts), disable=not progress, unit="prompt") as bar:
        for attribute, each in prompts:
            logits = []
            for rows in each.tokens.split(batch_rows):
                run = run_to(model, rows, f"blocks.{len(model.blocks) - 1}.hook_resid_post")
                logits.append(_last_logits(run, run.activations, each.ids))
                bar.update(len(rows))
            found.setdefault(attribute, []).append(_margins(torch.cat(logits), each.right))
    parts = []
    for attribute, margins in found.items():
        by_template = torch.stack(margins)
        n_right = (by_template > 0).sum(0).numpy()
        part = facts[facts["attribute"] == attribute]
        parts.append(
            part.assign(
                n_templates=len(margins),
                n_right=n_right,
                known=n_right == len(margins),
                margin=by_template.amin(0).numpy(),
            )
        )
    return pd.concat(parts).sort_index()


def _checked(facts: pd.DataFrame, templates: Mapping[str, str | Sequence[str]]) -> pd.DataFrame:
    """The facts' own columns, each fact once and with a template."""
    if not isinstance(facts, pd.DataFrame) or not set(COLUMNS) <= set(facts.columns):
        raise TypeError(f"facts must be a DataFrame with columns {listed(COLUMNS)}, found {_shown(facts)}.")
    if facts.empty:
        raise ValueError("There are no facts.")
    facts = facts[list(COLUMNS)]
    for name in COLUMNS:
        wrong = facts[[not isinstance(value, str) for value in facts[name]]]
        if len(wrong):
            raise ValueError(
                f"Every {name} of the facts must be text, found {wrong[name].iloc[0]!r} in row "
                f"{wrong.index[0]}."
            )
    twice = facts[facts.duplicated(["entity", "attribute"])]
    if len(twice):
        raise ValueError(f"The {twice['attribute'].iloc[0]} of {twice['entity'].iloc[0]!r} is given twice.")
    for attribute, answers in facts.groupby("attribute", sort=False)["answer"]:
        if attribute not in templates:
            raise ValueError(f"There is no template for the attribute {attribute!r}.")
        if answers.nunique() < 2:
            raise ValueError(f"All entities have the same {attribute}: there is nothing to edit.")
        for template in _several(templates[attribute]):
            if template.count(" {entity}") != 1 or template.count("{") != 1:
                raise ValueError(
                    f"A template must hold {{entity}} once, after a space, found {template!r} ({attribute})."
                )
    return facts


def _shown(value: Any) -> str:
    return listed(value.columns) if isinstance(value, pd.DataFrame) else type(value).__name__


def _several(templates: str | Sequence[str]) -> Sequence[str]:
    return [templates] if isinstance(templates, str) else templates


def _prompts(model: TransformerBridge, facts: pd.DataFrame, attribute: str, template: str) -> Filled:
    tokenizer = model.tokenizer
    entities = [_token(tokenizer, "entity", name) for name in facts["entity"]]
    candidates = sorted(facts["answer"].unique())
    ids = torch.tensor([_token(tokenizer, f"{attribute} (answer)", name) for name in candidates])
    rows = [
        [separator_of(tokenizer), *tokenizer.encode(template.format(entity=name), add_special_tokens=False)]
        for name in facts["entity"]
    ]
    # The entity's token comes after the separator and the text before it.
    place = 1 + len(tokenizer.encode(template.split(" {entity}")[0], add_special_tokens=False))
    rest = {(*row[:place], *row[place + 1 :]) for row in rows}
    if len(rest) > 1 or [row[place] for row in rows] != entities:
        raise ValueError(
            f"The prompts of {template!r} must differ in the entity's token alone, but this tokenizer merges "
            "it with the text around it."
        )
    tokens = torch.tensor(rows)
    require_rows(model, tokens)
    right = torch.tensor([candidates.index(answer) for answer in facts["answer"]])
    return Filled(tokens, place, candidates, ids, right)


def _token(tokenizer: PreTrainedTokenizerBase, what: str, text: str) -> int:
    """The one token of a word after a space."""
    ids = tokenizer.encode(f" {text}", add_special_tokens=False)
    if len(ids) != 1:
        pieces = ", ".join(map(repr, token_strings(tokenizer, ids)))
        raise ValueError(
            f"The {what} {text!r} is {len(ids)} tokens ({pieces}) for this tokenizer: "
            "only names of one token can be used."
        )
    return int(ids[0])


def _last_logits(run: PartialRun, activations: Tensor, ids: Tensor) -> Tensor:
    """Logits of some tokens at the last position, `[rows, ids]`."""
    last = torch.full((len(activations),), activations.shape[1] - 1)
    return run.logits(activations, last=last)[:, ids].float().cpu()


def _margins(logits: Tensor, right: Tensor) -> Tensor:
    """By how much the right candidate's logit exceeds the largest of the others, `[rows]`."""
    own = logits.gather(1, right[:, None])
    return (own[:, 0] - logits.scatter(1, right[:, None], -torch.inf).amax(1)).double()


# ---------------------------------------------------------------------- result


@dataclass(frozen=True, eq=False, repr=False)
class Edits(Result):
    """Edits of facts by every method, with what they cause, what they leave, and what they damage.

    Attributes
    ----------
    dictionary : Identity
        The dictionary whose latents were swapped.
    meta : Identity or None
        The meta-SAE whose meta-latents were.
    facts : DataFrame
        The facts of the entities (`entity`, `attribute`, `answer`).
    frame : DataFrame
        One row per edit and question: `base`, `source`, `attribute` (edited), `method`, `n` (components
        swapped at most), `norm` (of the change), `asked` (attribute), `answer`, `wanted` (the source's answer
        where `asked` is the edited attribute, otherwise the base's), `reached`.
    damage : DataFrame
        One row per method and row of unrelated text: `method`, `n`, `row`, `loss` (increase in nats per token
        where the change of one edit is added at every position).
    candidates : mapping of str to list of str
        The answers of each attribute.
    before : mapping of str to Tensor
        For each attribute, probabilities of its candidates for each entity of `entities`, without an edit.
    after : mapping of str to Tensor
        For each attribute asked, those with the edit, one row per row of `frame` where it is asked.
    seed : int
        Of pairs, random directions and bootstrap.
    """

    dictionary: Identity
    meta: Identity | None
    facts: pd.DataFrame
    frame: pd.DataFrame
    damage: pd.DataFrame
    candidates: Mapping[str, list[str]]
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    seed: int
    _plot: ClassVar[str] = "edits_by_method"

    @property
    def entities(self) -> list[str]:
        """The entities, in the order of `before`."""
        return list(self.facts["entity"].unique())

    @property
    def table(self) -> pd.DataFrame:
        """What each method reaches, with 95% bootstrap intervals over pairs and over rows of text.

        Returns
        -------
        DataFrame
            `method`, `n`; `cause` (share of edits after which the edited attribute is the source's),
            `isolation` (share of other attributes that stay the base's), `disentangle` (their mean),
            `damage` (increase in loss on unrelated text, nats per token), each with `_low` and `_high`;
            `norm` (mean size of the change).
        """
        goals = self.frame.assign(goal=np.where(self._caused, "cause", "isolation"))
        by_pair = goals.pivot_table(
            "reached", ["method", "n"], ["goal", "base", "source"], aggfunc="mean", sort=False
        )
        cause = by_pair["cause"]
        isolation = by_pair["isolation"][cause.columns]
        measured = {"cause": cause, "isolation": isolation, "disentangle": (cause + isolation) / 2}
        measured["damage"] = self.damage.pivot_table("loss", ["method", "n"], "row", sort=False)
        table = pd.DataFrame(index=by_pair.index)
        for name, values in measured.items():
            random = np.random.default_rng(self.seed)  # the same draws for every measure
            drawn = random.integers(values.shape[1], size=(DRAWS, values.shape[1]))
            values = values.loc[table.index].to_numpy(float)
            means = values[:, drawn].mean(2)
            table[name] = values.mean(1)
            table[f"{name}_low"], table[f"{name}_high"] = np.quantile(means, [0.025, 0.975], axis=1)
        table["norm"] = self.frame.groupby(["method", "n"])["norm"].mean()
        return table.reset_index()

    @property
    def _caused(self) -> pd.Series:
        return self.frame["asked"] == self.frame["attribute"]

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `meta`, `n_entities`, `n_pairs`, and `disentangle` by method and components."""
        table = self.table
        names = [f"{row.method} {row.n}" for row in table.itertuples()]
        return {
            "dictionary": str(self.dictionary),
            "meta": None if self.meta is None else str(self.meta),
            "n_entities": len(self.entities),
            "n_pairs": len(self.frame[["base", "source"]].drop_duplicates()),
            "disentangle": dict(zip(names, map(float, table["disentangle"]), strict=True)),
        }


# ---------------------------------------------------------------------- the edits


class _Edit(NamedTuple):
    """A change of the base's activation."""

    base: int
    source: int
    attribute: str
    method: str
    n: int
    change: Tensor  # [d_in]


@cached
def measure_edits(
    model: TransformerBridge,
    dictionary: Dictionary,
    facts: pd.DataFrame,
    templates: Mapping[str, str],
    store: ActivationStore,
    *,
    meta: MetaSAE | None = None,
    sizes: Sequence[int] = (4, 32),
    n_pairs: int = 12,
    n_text: int = 4,
    batch_rows: int = 32,
    seed: int = 0,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Edits:
    """Edit one fact about an entity by every method, and ask for it and for the others.

    Parameters
    ----------
    model : TransformerBridge
        The language model.
    dictionary : Dictionary
        A dictionary at the store's hook point, where the activations are changed.
    facts : DataFrame
        `entity`, `attribute`, `answer`: every attribute of every entity, all known by the model
        (`known_facts`).
    templates : mapping of str to str
        A prompt with `{entity}` for each attribute.
    store : ActivationStore
        Unrelated held-out text, on which damage is measured; it names the hook point.
    meta : MetaSAE, optional
        A meta-SAE of the dictionary, whose meta-latents are edited too.
    sizes : sequence of int
        Numbers of latents, meta-latents, neurons and principal components to swap.
    n_pairs : int
        Pairs of base and source to draw among those that differ in every attribute; all, if there are fewer.
    n_text : int
        Rows of text for damage, spread evenly over the store; each gets the change of one edit.
    batch_rows : int
        Filled per forward pass.
    seed : int
        Seed of pairs, random directions and bootstrap.
    progress : bool
        Show a progress bar in questions.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    MismatchError
        If model, store and dictionary do not belong together.
    TypeError, ValueError
        If a fact cannot be used (`known_facts`), an entity lacks an attribute or the model does not know it,
        no two entities differ in every attribute, the dictionary is a transcoder, the meta-SAE is of other
        dictionaries, or a setting is out of range.

    Notes
    -----
    An activation is a sum of components: latents times decoder rows plus the error; neurons; principal
    components of the entities' activations; or meta-latents, weighted by the latents that they are part of.
    An edit gives `n` components the source's values and leaves the rest, the error included, as it is. The
    `n` are those whose mean differs most between the entities with the source's answer and those with the
    base's. `"all latents"` swaps all of them, and `"activation patching"` the error too. The `"difference of
    means"` is between these two groups of entities. `"random direction"` has the norm of the change by
    as many latents, or of patching. `"reconstruction"` replaces the activation by its reconstruction, without
    an edit.

    The procedure of the post on meta-SAEs changes one decoder row, that of the base's entity latent (of
    largest activation relative to its sum over all entities, plus 1): it takes out the meta-latents that the
    source's entity latent lacks, adds those that only the latter has, and renormalises
    (`"meta-latents, as in the post"`). Its code instead adds and subtracts 100 times these directions, and
    gives the latent its greatest activation (`"meta-latents, as in the code"`). Both keep the error here,
    since the reconstruction alone changes answers. The post chooses the meta-latents by the outcome, over all
    subsets; here no choice sees an outcome.

    Examples
    --------
    >>> edits = measure_edits(model, sae, facts, templates, harvested)  # doctest: +SKIP
    """
    sizes = settings.several(settings.whole)("sizes", sizes)
    n_pairs, n_text = settings.whole("n_pairs", n_pairs), settings.whole("n_text", n_text)
    batch_rows, seed = settings.whole("batch_rows", batch_rows), settings.whole("seed", seed, at_least=0)
    check_agreement(model=model, activations=store, dictionaries=[dictionary], allow_mismatch=allow_mismatch)
    if dictionary.transcoder or store.target is not None:
        raise ValueError("Edits change the activations that a dictionary reads: a transcoder writes others.")
    part = None if meta is None else _part_of(meta, dictionary)
    facts = _complete(facts, templates)
    attributes = list(facts["attribute"].unique())
    prompts = {
        name: _prompts(model, facts[facts["attribute"] == name], name, templates[name]) for name in attributes
    }
    pairs = _pairs(prompts, n_pairs, seed)

    device = device_of(model)
    dictionary = dictionary.to(device)
    questions = {name: _Question(model, each, store.hook_point, batch_rows) for name, each in prompts.items()}
    _require_known(facts, questions)
    rows: list[pd.DataFrame] = []
    after: dict[str, Tensor] = {}
    applied: list[_Edit] = []
    for asked, question in tqdm(questions.items(), disable=not progress, unit="question"):
        edits = _edits(question, dictionary, part, prompts, pairs, sizes, seed)
        after[asked] = question.ask(edits)
        rows.append(_answers(asked, question.prompts, edits, after[asked], facts))
        applied += [edit for edit in edits if edit.attribute == asked]
    before = {name: question.before for name, question in questions.items()}
    return Edits(
        dictionary.identity,
        None if meta is None else meta.identity,
        facts,
        pd.concat(rows, ignore_index=True),
        _damage(model, store, applied, n_text),
        {name: each.candidates for name, each in prompts.items()},
        before,
        after,
        seed,
    )


def _complete(facts: pd.DataFrame, templates: Mapping[str, str]) -> pd.DataFrame:
    """Facts sorted alike for every attribute, each of which every entity has."""
    facts = _checked(facts, templates).reset_index(drop=True)
    attributes = facts["attribute"].unique()
    if len(attributes) < 2:
        raise ValueError(f"Isolation needs a second attribute, found {attributes[0]!r} alone.")
    for name in attributes:
        if not isinstance(templates[name], str):
            raise TypeError(f"templates must hold one prompt per attribute, found {templates[name]!r}.")
    for entity, known in facts.groupby("entity", sort=False)["attribute"]:
        missing = [name for name in attributes if name not in set(known)]
        if missing:
            raise ValueError(
                f"The {listed(missing)} of {entity!r} is missing: give every entity's attributes."
            )
    order = facts["entity"].map({name: i for i, name in enumerate(facts["entity"].unique())})
    return facts.assign(order=order).sort_values("order", kind="stable").drop(columns="order")


def _part_of(meta: MetaSAE, dictionary: Dictionary) -> tuple[Tensor, Tensor, Tensor]:
    """Meta-latents of every latent `[width, n_meta]`, their directions, and the bias of the meta-SAE."""
    places = [place for place, base in enumerate(meta.bases) if base == dictionary.identity]
    if not places:
        raise ValueError(
            f"{meta.name} takes apart {listed(base.described for base in meta.bases)}, not "
            f"{dictionary.identity.described}: give a meta-SAE of this dictionary."
        )
    start = sum(meta.widths[: places[0]])
    shares = meta.decomposition.slice(start, start + dictionary.width).dense()
    return shares, meta.dictionary.W_dec, meta.dictionary.b_dec


def _pairs(prompts: Mapping[str, Filled], n_pairs: int, seed: int) -> list[tuple[int, int]]:
    """Some of the pairs of entities that differ in every attribute."""
    right = torch.stack([each.right for each in prompts.values()], 1)
    differ = [
        (base, source)
        for base, source in permutations(range(len(right)), 2)
        if bool((right[base] != right[source]).all())
    ]
    if not differ:
        raise ValueError("No two entities differ in every attribute, so nothing tells cause from isolation.")
    random = np.random.default_rng(seed)
    return [differ[i] for i in random.permutation(len(differ))[:n_pairs]]


class _Question:
    """One attribute's prompts, run as far as the hook point once."""

    def __init__(self, model: TransformerBridge, prompts: Filled, hook_point: str, batch_rows: int) -> None:
        self.prompts, self._batch_rows = prompts, batch_rows
        self.run = run_to(model, prompts.tokens, hook_point)
        self.x = self.run.activations[:, prompts.place].float()
        self.logits = self._logits(torch.arange(len(self.x)), torch.zeros_like(self.x))
        self.before = self.logits.softmax(1)

    def ask(self, edits: Sequence[_Edit]) -> Tensor:
        """Probabilities of the candidates after each edit, `[edits, candidates]`."""
        # Some methods do the same whichever attribute is edited: the model runs once for equal changes.
        keys = torch.stack([torch.cat([edit.change, edit.change.new_tensor([edit.base])]) for edit in edits])
        distinct, which = torch.unique(keys, dim=0, return_inverse=True)
        return self._logits(distinct[:, -1].long(), distinct[:, :-1]).softmax(1)[which.cpu()]

    def _logits(self, bases: Tensor, changes: Tensor) -> Tensor:
        found = []
        for rows, change in zip(bases.split(self._batch_rows), changes.split(self._batch_rows), strict=True):
            run = self.run.select(rows)
            activations = run.activations.clone()
            activations[:, self.prompts.place] = (self.x[rows] + change).to(activations.dtype)
            found.append(_last_logits(run, activations, self.prompts.ids))
        return torch.cat(found)


def _require_known(facts: pd.DataFrame, questions: Mapping[str, _Question]) -> None:
    entities = facts["entity"].unique()
    for attribute, question in questions.items():
        unknown = (_margins(question.logits, question.prompts.right) <= 0).nonzero()[:, 0].tolist()
        if unknown:
            some = ", ".join(str(entities[i]) for i in unknown[:6]) + (" ..." if len(unknown) > 6 else "")
            raise ValueError(
                f"The model does not know the {attribute} of {some}: give only entities that it knows "
                "(saekit.known_facts)."
            )


def _edits(
    question: _Question,
    dictionary: Dictionary,
    part: tuple[Tensor, Tensor, Tensor] | None,
    prompts: Mapping[str, Filled],
    pairs: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    seed: int,
) -> list[_Edit]:
    """Every edit, as a change of the base's activation in the prompts of one question."""
    x = question.x
    scale = dictionary.row_scale(x)
    latents = dictionary.encode(x) * (1 if scale is None else scale.factor)
    error = x - dictionary.reconstruct(x)
    centred = (x - x.mean(0)).double()
    axes = torch.linalg.svd(centred, full_matrices=False).Vh.to(x)
    bases = {
        "latents": (latents, dictionary.W_dec),
        "neurons": (x, torch.eye(x.shape[1], device=x.device)),
        "principal components": (x @ axes.T, axes),
    }
    if part is not None:
        shares, directions, bias = (tensor.to(x) for tensor in part)
        bases["meta-latents"] = (latents @ shares, directions)
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(len(pairs), len(prompts), x.shape[1], generator=generator)
    random = F.normalize(random, dim=2).to(x)
    edits = []
    for number, (base, source) in enumerate(pairs):
        for place, (attribute, each) in enumerate(prompts.items()):
            right = each.right.to(x.device)
            with_base, with_source = right == right[base], right == right[source]
            whole = x[source] - x[base]
            changes: dict[tuple[str, int], Tensor] = {
                (PATCHING, len(whole)): whole,
                ("all latents", dictionary.width): (latents[source] - latents[base]) @ dictionary.W_dec,
                ("reconstruction", 0): -error[base],
                ("difference of means", 1): x[with_source].mean(0) - x[with_base].mean(0),
            }
            for name in (name for name in BASES if name in bases):
                values, directions_of = bases[name]
                differing = (values[with_source].mean(0) - values[with_base].mean(0)).abs()
                order = differing.argsort(descending=True, stable=True)
                for n in sizes:
                    chosen = order[:n]
                    swapped = values[source, chosen] - values[base, chosen]
                    changes[name, n] = swapped @ directions_of[chosen]
            if part is not None:
                changes |= _row_edits(latents, base, source, dictionary.W_dec, shares, directions, bias)
            like = {n: changes["latents", n].norm() for n in sizes} | {len(whole): whole.norm()}
            changes |= {(RANDOM, n): norm * random[number, place] for n, norm in like.items()}
            edits += [
                _Edit(base, source, attribute, method, n, change) for (method, n), change in changes.items()
            ]
    return edits


def _row_edits(
    latents: Tensor,
    base: int,
    source: int,
    rows: Tensor,
    shares: Tensor,
    directions: Tensor,
    bias: Tensor,
) -> dict[tuple[str, int], Tensor]:
    """Changes by an entity latent's decoder row with meta-latents removed and added."""
    own, other = (int((latents[i] / (latents.sum(0) + 1)).argmax()) for i in (base, source))
    removed = (shares[own] > 0) & (shares[other] == 0)
    added = (shares[other] > 0) & (shares[own] == 0)
    kept = torch.where(removed, 0, shares[own]) + torch.where(added, shares[other], 0)
    post = F.normalize(kept @ directions + bias, dim=0)
    code = F.normalize(rows[own] + GAIN * (directions[added].sum(0) - directions[removed].sum(0)), dim=0)
    activation, greatest = latents[base, own], latents[:, own].max()
    return {
        ("meta-latents, as in the post", 1): activation * (post - rows[own]),
        ("meta-latents, as in the code", 1): greatest * code - activation * rows[own],
    }


def _answers(
    asked: str,
    question: Filled,
    edits: Sequence[_Edit],
    probabilities: Tensor,
    facts: pd.DataFrame,
) -> pd.DataFrame:
    """What the model answers to one question after each edit."""
    entities, names = facts["entity"].unique(), question.candidates
    rows = []
    for edit, best in zip(edits, probabilities.argmax(1).tolist(), strict=True):
        wanted = names[int(question.right[edit.source if edit.attribute == asked else edit.base])]
        row = {"base": entities[edit.base], "source": entities[edit.source], "attribute": edit.attribute}
        row |= {"method": edit.method, "n": edit.n, "norm": float(edit.change.norm()), "asked": asked}
        rows.append(row | {"answer": names[best], "wanted": wanted, "reached": names[best] == wanted})
    return pd.DataFrame(rows)


def _damage(
    model: TransformerBridge, store: ActivationStore, edits: Sequence[_Edit], n_text: int
) -> pd.DataFrame:
    """Increase in loss of rows of text, each with one edit's change added wherever positions count."""
    rows = torch.linspace(0, store.n_rows - 1, min(n_text, store.n_rows)).round().long().unique()
    require_rows(model, store.tokens)
    by_method: dict[tuple[str, int], list[_Edit]] = {}
    for edit in edits:
        by_method.setdefault((edit.method, edit.n), []).append(edit)
    run = run_to(model, store.tokens[rows], store.hook_point)
    kept = (~store.excluded[rows, :, None]).to(run.activations.device)
    targets = ~store.special[rows, 1:]

    def loss(activations: Tensor) -> Tensor:
        losses = run.losses(activations.to(run.activations.dtype)).double().cpu()
        return torch.where(targets, losses, 0).sum(1) / targets.sum(1)

    original = loss(run.activations)
    found = []
    for (method, n), same in by_method.items():
        # Spread over the pairs and attributes, alike for every method.
        places = np.linspace(0, len(same) - 1, len(rows)).round().astype(int)
        change = torch.stack([same[place].change for place in places])
        more = loss(run.activations.float() + change[:, None] * kept) - original
        found.append(pd.DataFrame({"method": method, "n": n, "row": rows.numpy(), "loss": more.numpy()}))
    return pd.concat(found, ignore_index=True)
