"""k-sparse probing of every bundled dictionary, on the 113 sets of sae-probes.

`saekit probing` harvests the last tokens of the prompts, under `saekit.files.home()`, probes every
dictionary, and writes the table into the package. Both parts resume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd
import torch
from tqdm.auto import tqdm

from saekit.activations import ActivationStore
from saekit.analysis.probing import ACTIVATIONS, KS, LastTokens, Probing, harvest_last_tokens, probe
from saekit.analysis.similarity import best_matches
from saekit.analysis.stitching.path import stitch
from saekit.baselines import random_at_equal_l0
from saekit.corpora import KEPT_FOR_PROBING, LEAKY, probing_sets
from saekit.dictionary import Dictionary
from saekit.files import hash_json, home, writable_folder, write_bytes
from saekit.loading.names import BUNDLED, load_family
from saekit.models import load_model
from saekit.series.embedded import HOOK_POINT, embedded_store

KINDS = ("relu", "batchtopk")
PAIR = (1152, 2304)  # of which novel and reconstruction latents, and stitched steps, are probed
THETA = 0.7
DTYPE = torch.bfloat16  # of the model, as for the text that the dictionaries are trained on


def harvested(
    names: Iterable[str] | None = None, *, kept_out: bool = False, progress: bool = True
) -> list[LastTokens]:
    """Last tokens of probing sets at the hook point of the bundled dictionaries.

    Parameters
    ----------
    names : iterable of str, optional
        Names of sets; all 113 if left out.
    kept_out : bool
        Only the sets that were kept out of the training text.
    progress : bool
        Show a progress bar in prompts.
    """
    sets = probing_sets(KEPT_FOR_PROBING if kept_out else names)
    return harvest_last_tokens(
        load_model(dtype=DTYPE), sets, HOOK_POINT, folder=home() / "probing", progress=progress
    )


def probed(store: ActivationStore) -> Iterator[tuple[str, Dictionary]]:
    """Every dictionary of the grid with its name.

    All members of the bundled families; of one pair of each, novel and reconstruction latents alone and the
    stitched dictionary after each phase; and random directions as dense as the latents of one.
    """
    for kind in KINDS:
        family = load_family(kind)
        for member in family:
            yield member.name, member
        small, large = (family[width] for width in PAIR)
        novel = best_matches(small, large).cosine < THETA
        yield f"{kind} {PAIR[1]}, novel latents", large.gather(novel)
        yield f"{kind} {PAIR[1]}, reconstruction latents", large.gather(~novel)
        stitching = stitch(small, large, store, theta=THETA)
        for row in stitching.phases.itertuples():
            if row.phase != "bias":
                yield f"{kind} stitched, after {row.phase}", stitching.dictionary(row.last_step)
        yield f"{kind} {PAIR[0]}, random at equal L0", random_at_equal_l0(small, store)


def write_probing(names: Iterable[str] | None = None, *, progress: bool = True) -> pd.DataFrame:
    """Probe every dictionary of the grid, and write the table into the package.

    Parameters
    ----------
    names : iterable of str, optional
        Names of sets; all 113 if left out.
    progress : bool
        Show progress bars.

    Returns
    -------
    DataFrame
        One row per dictionary, set and k: `dictionary`, `set`, `k`, `auc` and `latent`, the first of the k.
    """
    writable_folder(BUNDLED)
    sets = harvested(names, progress=progress)
    store = embedded_store("held-out", progress=progress)
    tables = [_rows(ACTIVATIONS, None, sets)]
    for name, dictionary in tqdm(probed(store), disable=not progress, unit="dictionary"):
        tables.append(_rows(name, dictionary, sets))
    table = pd.concat(tables, ignore_index=True)
    write_bytes(BUNDLED / "probing.csv", table.to_csv(index=False).encode())
    return table


def _rows(name: str, dictionary: Dictionary | None, sets: list[LastTokens]) -> pd.DataFrame:
    """Rows of one dictionary, or of the activations: those that an earlier run kept, and the missing ones."""
    identity = "" if dictionary is None else dictionary.content_hash
    model = hash_json([sets[0].manifest, KS, identity])
    file = home() / "probing" / "probed" / f"{model[:16]}.csv"
    kept = pd.read_csv(file, float_precision="round_trip") if file.exists() else None
    known = set() if kept is None else set(kept["set"])
    missing = [one for one in sets if one.name not in known]
    if missing:
        found = probe(
            {} if dictionary is None else {name: dictionary}, missing, ks=KS, dense=dictionary is None
        )
        rows = found.frame.assign(latent=found.frame["latents"].str[0])[["set", "k", "auc", "latent"]]
        kept = pd.concat([kept, rows], ignore_index=True).astype({"k": int, "latent": int})
        write_bytes(file, kept.to_csv(index=False).encode())
    assert kept is not None  # there is at least one set
    kept = kept[kept["set"].isin([one.name for one in sets])].round({"auc": 4})
    return kept.assign(dictionary=name)[["dictionary", "set", "k", "auc", "latent"]]


def as_result(table: pd.DataFrame) -> Probing:
    """The table of the package as a result, to summarise and draw like any other.

    Of the latents of a probe it has the first alone, and no accuracies.
    """
    known = table.assign(
        latents=[(latent,) for latent in table["latent"]],
        kept_out=table["set"].isin(KEPT_FOR_PROBING),
        leaky=table["set"].isin(LEAKY),
        accuracy=float("nan"),
    )
    return Probing((), known)
