"""k-sparse probing: how well a few latents tell the two classes of a set of prompts apart.

The definition is that of sae-probes (Kantamneni et al. 2025): latents at the last token of a prompt,
the k with the greatest difference between the classes, a logistic regression on them, its AUC on other
prompts. Of the benchmarks for SAEs, an audit of 2026 (arXiv 2605.18229) found this one the most
reliable. SCR and TPP, which are built on probes too, failed that audit, so saekit does not have them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from saekit import settings
from saekit.activations import require_finite
from saekit.agreement import check_agreement
from saekit.cache import cached
from saekit.corpora import ProbingSet, separator_of
from saekit.dictionary import Dictionary
from saekit.files import hash_json, read_tensors, writable_folder, write_tensors
from saekit.identity import Identity, distinct_names
from saekit.models import capture, describe_model, resolve_hook_point
from saekit.results import Result

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KS = (1, 2, 5, 16)
INVERSE_PENALTIES = np.logspace(5, -5, 10)  # C, from the weakest penalty to the strongest
TEST_SHARE = 0.4
HELD_OUT, HELD_OUT_SHARE = 100, 0.2  # training rows on which C is chosen: the smaller of the two
FEW, FOLDS = 128, 6  # under so many training rows, C is chosen by cross-validation
EPSILON = 1e-6
ACTIVATIONS = "activations"  # the name of the probes on the activations themselves
ITERATIONS = 1000


# ---------------------------------------------------------------------- activations


@dataclass(frozen=True, eq=False)
class LastTokens:
    """Activations at the last token of every prompt of a probing set.

    Parameters
    ----------
    name : str
        The set.
    x : Tensor
        Raw activations, float32 `[prompts, d_in]`.
    y : Tensor
        Class of each prompt, Boolean `[prompts]`.
    kept_out, leaky : bool
        As for `saekit.corpora.ProbingSet`.
    manifest : mapping
        `model` and `hook_point` that the activations come from, as far as they are known.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or a class has too few prompts to probe.

    Examples
    --------
    >>> LastTokens("first half", torch.eye(40), torch.arange(40) < 20).d_in
    40
    """

    name: str
    x: Tensor
    y: Tensor
    kept_out: bool = False
    leaky: bool = False
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or self.y.shape != self.x.shape[:1] or self.y.dtype != torch.bool:
            raise ValueError(
                f"{self.name} needs activations [prompts, d_in] and one Boolean class each, found "
                f"{list(self.x.shape)} and {self.y.dtype} {list(self.y.shape)}."
            )
        require_finite(self.x, range(len(self.x)), "prompt")
        fewest = min(int(self.y.sum()), int((~self.y).sum()))
        if fewest - _n_test(fewest) < FOLDS:
            raise ValueError(
                f"{self.name} has {fewest} prompts of one class, too few to probe: at least "
                f"{next(n for n in range(99) if n - _n_test(n) >= FOLDS)} are needed."
            )

    @property
    def d_in(self) -> int:
        """Dimension of the activations."""
        return self.x.shape[1]

    @property
    def hook_point(self) -> str | None:
        """Where the activations come from, if known."""
        return self.manifest.get("hook_point")


@torch.no_grad()
def harvest_last_tokens(
    model: TransformerBridge,
    sets: Sequence[ProbingSet],
    hook_point: str = "blocks.12.hook_resid_post",
    *,
    folder: str | Path,
    context_length: int = 128,
    batch_rows: int = 32,
    progress: bool = True,
) -> list[LastTokens]:
    """Run the prompts of probing sets through a model and keep the activations at their last tokens.

    Each prompt begins after a separator, as documents do in the text that SAEs are trained on; of a
    longer one, the last `context_length - 1` tokens are read. Each set is kept in a file of its own, so
    a call that was interrupted continues with the next set.

    Parameters
    ----------
    model : TransformerBridge
        From `saekit.load_model`.
    sets : sequence of ProbingSet
        The sets, such as `saekit.corpora.probing_sets()`.
    hook_point : str
        Where to read.
    folder : str or Path
        Folder of the files; each is named after its set and a hash of everything that it depends on.
    context_length : int
        Tokens of a prompt at most, the separator included.
    batch_rows : int
        Prompts per forward pass.
    progress : bool
        Show a progress bar in prompts.

    Raises
    ------
    ValueError
        If the model has no such hook point or is in training mode, a prompt has no tokens, or a set is
        too small to probe.
    OSError
        If the folder cannot be written to.

    Examples
    --------
    >>> prompts = ["the river runs", "the old king sleeps"] * 20
    >>> water = saekit.corpora.ProbingSet("water", prompts, [True, False] * 20)
    >>> found = saekit.harvest_last_tokens(
    ...     model, [water], "blocks.1.hook_resid_post", folder="probing", progress=False
    ... )
    >>> found[0].x.shape
    torch.Size([40, 16])
    """
    context_length = settings.whole("context_length", context_length, at_least=2)
    batch_rows = settings.whole("batch_rows", batch_rows)
    hook_point, _ = resolve_hook_point(model, hook_point)
    folder = writable_folder(Path(folder))
    manifest = {"model": describe_model(model), "hook_point": hook_point}
    tokens = []
    with tqdm(total=sum(len(s.prompts) for s in sets), disable=not progress, unit="prompt") as bar:
        for one in sets:
            bar.set_postfix_str(one.name)
            key = hash_json([manifest, context_length, list(one.prompts)])
            file = folder / f"{one.name}-{key[:12]}.safetensors"
            if not file.exists():
                x = _last_tokens(model, one, hook_point, context_length, batch_rows)
                write_tensors(file, {"x": x})
            bar.update(len(one.prompts))
            x, y = read_tensors(file)["x"].float(), torch.tensor(one.targets)
            tokens.append(LastTokens(one.name, x, y, one.kept_out, one.leaky, manifest))
    return tokens


def _last_tokens(
    model: TransformerBridge, one: ProbingSet, hook_point: str, context_length: int, batch_rows: int
) -> Tensor:
    """Activations `[prompts, d_in]`. Prompts of like length run together; what follows them is not seen."""
    separator = separator_of(model.tokenizer)
    texts = model.tokenizer(list(one.prompts), add_special_tokens=False, verbose=False)["input_ids"]
    if empty := sum(not ids for ids in texts):
        raise ValueError(f"{empty} prompts of the probing set {one.name} have no tokens.")
    rows = [[separator, *ids[1 - context_length :]] for ids in texts]
    found: Tensor | None = None
    for batch in torch.tensor([len(row) for row in rows]).argsort(stable=True).split(batch_rows):
        chosen = [rows[i] for i in batch.tolist()]
        longest = max(map(len, chosen))
        padded = torch.tensor([row + [separator] * (longest - len(row)) for row in chosen])
        x = capture(model, padded, hook_point)
        last = x[range(len(chosen)), [len(row) - 1 for row in chosen]].cpu()
        found = last.new_empty(len(rows), last.shape[1]) if found is None else found
        found[batch] = last
    assert found is not None
    return found


# ---------------------------------------------------------------------- probes


@dataclass(frozen=True, eq=False, repr=False)
class Probing(Result):
    """How well a few latents of each dictionary tell the classes of each probing set apart.

    Attributes
    ----------
    dictionaries : tuple of Identity
        The dictionaries.
    frame : DataFrame
        One row per dictionary, set and k: `dictionary`; `set`; `kept_out` and `leaky` (of the set); `k`;
        `auc` and `accuracy` on the test prompts; `C` (inverse strength of the penalty) and
        `validation_auc`, by which it was chosen; `latents` (a tuple of the k); `n_train`, `n_test`.
        The probes on the activations themselves, of whose dimensions `k` counts, are the rows of the
        dictionary `"activations"`; with all dimensions they are the dense probe.
    """

    _plot: ClassVar[str] = "probing_curves"

    dictionaries: tuple[Identity, ...]
    frame: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """One row per dictionary, k, and whether the sets were kept out of the training text.

        `auc`, `auc_error` (standard error over sets), `accuracy` and `n_sets`. Leaky sets are left out.
        """
        sound = self.frame[~self.frame["leaky"]]
        groups = sound.groupby(["dictionary", "k", "kept_out"], sort=False)
        return groups.agg(
            auc=("auc", "mean"),
            auc_error=("auc", "sem"),
            accuracy=("accuracy", "mean"),
            n_sets=("auc", "size"),
        ).reset_index()

    def compare(self, reference: str = ACTIVATIONS, *, kept_out: bool | None = None) -> pd.DataFrame:
        """Every dictionary's AUC minus that of another at the same k, paired by set.

        Parameters
        ----------
        reference : str
            The dictionary to subtract, by its name in `frame`.
        kept_out : bool, optional
            Only sets that were kept out of the training text, or (if False) only the others.

        Returns
        -------
        DataFrame
            One row per dictionary and k: `dictionary`, `k`, `difference` (positive is better than the
            reference), `difference_error` (its standard error over sets) and `n_sets`. Leaky sets are
            left out.

        Raises
        ------
        ValueError
            If no dictionary has this name.
        """
        settings.choice("reference", reference, self.frame["dictionary"].unique().tolist())
        sound = self.frame[~self.frame["leaky"]]
        if kept_out is not None:
            sound = sound[sound["kept_out"] == kept_out]
        auc = sound.pivot(index=["set", "k"], columns="dictionary", values="auc")
        paired = auc.sub(auc[reference], axis=0).melt(ignore_index=False, value_name="difference").dropna()
        groups = paired.reset_index().groupby(["dictionary", "k"], sort=False)["difference"]
        return groups.agg(difference="mean", difference_error="sem", n_sets="size").reset_index()

    @property
    def summary(self) -> dict[str, Any]:
        """`n_sets`, `n_kept_out`, `n_leaky`, and by dictionary the mean `auc` of each k over sound sets."""
        sets = self.frame.drop_duplicates("set")
        auc = self.frame[~self.frame["leaky"]].groupby(["dictionary", "k"], sort=False)["auc"].mean()
        return {
            "n_sets": len(sets),
            "n_kept_out": int(sets["kept_out"].sum()),
            "n_leaky": int(sets["leaky"].sum()),
            "auc": {name: part.droplevel(0).to_dict() for name, part in auc.groupby(level=0, sort=False)},
        }


@cached
def probe(
    dictionaries: Dictionary | Sequence[Dictionary] | Mapping[str, Dictionary],
    activations: Sequence[LastTokens],
    *,
    ks: Sequence[int] = KS,
    dense: bool = True,
    seed: int = 0,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Probing:
    """Probe for the class of prompts with the k latents that differ most between the classes.

    Of each set, as many prompts of each class are used; 40% are for testing. On the training prompts,
    latents are divided by their mean where they are active, and the k with the greatest absolute
    difference between the means of the classes are taken. C of an L2-penalised logistic regression
    is chosen by the AUC on the last 100 training prompts (a fifth of them if that is less; by 6-fold
    cross-validation under 128 prompts), and the AUC on the test prompts is reported.

    Novel latents alone are `dictionary.gather(novel)`, a step of a stitched path is
    `stitching.dictionary(step)`, and a baseline is a dictionary too.

    Parameters
    ----------
    dictionaries : Dictionary, or sequence or mapping of them
        A mapping gives their names.
    activations : sequence of LastTokens
        From `harvest_last_tokens`.
    ks : sequence of int
        Numbers of latents; for all of them, the width.
    dense : bool
        Also probe the activations themselves: with k of their dimensions, and with all.
    seed : int
        Seed of the split into training and test prompts, the same for every dictionary.
    progress : bool
        Show a progress bar in probes.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If there is nothing to probe, a k exceeds a width, two sets have one name, or the inputs do not
        belong together.

    Notes
    -----
    The definition is that of sae-probes (Kantamneni et al. 2025), apart from the numbers of prompts.

    Examples
    --------
    >>> y = (x @ small.W_enc[:, 2] + small.b_enc[2]) > 0.3
    >>> result = saekit.probe(small, [saekit.LastTokens("latent 2", x, y)], ks=(1, 2))
    >>> result.frame[["dictionary", "k", "auc", "latents"]].head(1).round(2)
           dictionary  k  auc latents
    0  relu 8 (seed 0)  1  1.0    (2,)
    """
    if isinstance(dictionaries, Dictionary):
        dictionaries = [dictionaries]
    members = list(dictionaries.values() if isinstance(dictionaries, Mapping) else dictionaries)
    sets = list(activations)
    if not sets or not (members or dense):
        raise ValueError("Probing needs at least one set, and a dictionary or dense=True.")
    if len({one.name for one in sets}) < len(sets):
        raise ValueError("Every probing set needs a name of its own.")
    for one in {hash_json(one.manifest): one for one in sets}.values():
        check_agreement(activations=one, dictionaries=members, allow_mismatch=allow_mismatch)
    width = min([one.width for one in members] + [sets[0].d_in] * dense)
    ks = [settings.whole("k", k, at_most=width) for k in ks]
    names = (
        list(dictionaries)
        if isinstance(dictionaries, Mapping)
        else distinct_names(d.identity for d in members)
    )
    rows = []
    with tqdm(total=len(sets) * (len(names) + dense), disable=not progress, unit="probe") as bar:
        for one in sets:
            train, test = split_evenly(one.y, seed=seed)
            about = {"set": one.name, "kept_out": one.kept_out, "leaky": one.leaky}
            features = [(name, d.encode(one.x), ks) for name, d in zip(names, members, strict=True)]
            if dense:
                features.append((ACTIVATIONS, one.x, [*ks, one.d_in]))
            for name, latents, numbers in features:
                found = probe_rows(
                    latents[train], one.y[train], latents[test], one.y[test], numbers, seed=seed
                )
                sizes = {"n_train": len(train), "n_test": len(test)}
                rows += [{"dictionary": name, **about, **row, **sizes} for row in found]
                bar.update()
    return Probing(tuple(one.identity for one in members), pd.DataFrame(rows))


def split_evenly(y: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Training and test prompts, as indices in random order: as many of each class, 40% for testing.

    Examples
    --------
    >>> train, test = split_evenly(torch.arange(30) < 10)
    >>> len(train), len(test)
    (12, 8)
    """
    generator = torch.Generator().manual_seed(settings.whole("seed", seed, at_least=0))
    order = torch.randperm(len(y), generator=generator)
    sides = [order[y[order] == side] for side in (False, True)]
    fewest = min(map(len, sides))
    n_test = _n_test(fewest)
    train = torch.cat([side[n_test:fewest] for side in sides])
    test = torch.cat([side[:n_test] for side in sides])
    return (
        train[torch.randperm(len(train), generator=generator)],
        test[torch.randperm(len(test), generator=generator)],
    )


def _n_test(fewest: int) -> int:
    """Test prompts of each class, if the rarer one has so many prompts."""
    return round(TEST_SHARE * fewest)


def probe_rows(
    latents: Tensor, y: Tensor, test_latents: Tensor, test_y: Tensor, ks: Sequence[int], *, seed: int = 0
) -> list[dict[str, Any]]:
    """Fit and score the probes of one dictionary on one set, see `probe`.

    Parameters
    ----------
    latents, test_latents : Tensor
        `[prompts, width]` of the training and test prompts.
    y, test_y : Tensor
        Their classes, Boolean `[prompts]`.
    ks : sequence of int
        Numbers of latents.
    seed : int
        Seed of the folds, where C is chosen by cross-validation.

    Returns
    -------
    list of dict
        One row per k: `k`, `auc`, `accuracy`, `C`, `validation_auc` and `latents`.

    Examples
    --------
    >>> y = torch.arange(40) % 2 == 0
    >>> latents = torch.stack([torch.rand(40), y.float()], dim=1)
    >>> [(row["auc"], row["latents"]) for row in probe_rows(latents, y, latents, y, [1])]
    [(1.0, (1,))]
    """
    from sklearn.metrics import roc_auc_score

    order = _by_difference(latents, y)
    truth, test_truth = y.numpy(), test_y.numpy()
    rows = []
    for k in ks:
        chosen = order[:k]
        x, test_x = (part[:, chosen].double().numpy() for part in (latents, test_latents))
        C, validation_auc = _choose_C(x, truth, seed)
        likely = _fitted(x, truth, C).predict_proba(test_x)[:, 1]
        row = {"k": k, "auc": float(roc_auc_score(test_truth, likely))}
        row |= {"accuracy": float(((likely > 0.5) == test_truth).mean()), "C": C}
        rows.append(row | {"validation_auc": validation_auc, "latents": tuple(chosen.tolist())})
    return rows


def _by_difference(latents: Tensor, y: Tensor) -> Tensor:
    """Latents by the absolute difference between the classes' means, in units of their mean where active."""
    unit = latents.abs().sum(0) / ((latents != 0).sum(0) + EPSILON) + EPSILON
    scaled = latents / unit
    return (scaled[y].mean(0) - scaled[~y].mean(0)).abs().argsort(descending=True, stable=True)


def _choose_C(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float]:
    """The inverse penalty of greatest AUC on held-out training rows, and that AUC."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    n = len(x)
    if n < FEW:
        folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y))
    else:
        cut = n - min(int(HELD_OUT_SHARE * n), HELD_OUT)
        folds = [(np.arange(cut), np.arange(cut, n))]
    scores = [
        np.mean(
            [
                roc_auc_score(y[out], _fitted(x[fit], y[fit], C).predict_proba(x[out])[:, 1])
                for fit, out in folds
            ]
        )
        for C in INVERSE_PENALTIES
    ]
    best = int(np.argmax(scores))
    return float(INVERSE_PENALTIES[best]), float(scores[best])


def _fitted(x: np.ndarray, y: np.ndarray, C: float) -> Any:
    """A logistic regression; with the weakest penalties it may stop before it has converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=C, max_iter=ITERATIONS).fit(x, y)
