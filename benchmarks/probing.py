"""Whether saekit's probes score what sae-probes' own code scores, on the same SAE, prompts and split.

    python benchmarks/probing.py
    python benchmarks/probing.py --sets 117_us_state_FL 96_spam_is --kind batchtopk --width 576

Every prompt of a set is run through the embedded model once. sae-probes reads the activations from the
file in which it would have kept its own, splits them, encodes them with the SAE (a bundled dictionary; it
asks of an SAE only `encode`) and fits its probes; saekit fits its own on the same rows. The script fails
where two AUCs differ by more than `TOLERANCE`, or the latents do.

sae-probes imports SAELens and XGBoost, of which these probes use nothing: where they are not installed,
empty modules stand in for them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pandas as pd
import torch

import saekit
from saekit.analysis.probing import KS, harvest_last_tokens, probe_rows
from saekit.corpora import probing_sets
from saekit.files import home
from saekit.series.embedded import HOOK_POINT
from saekit.series.probing_grid import DTYPE

TOLERANCE = 0.005
MODEL = "embedded"  # a name for the files of sae-probes
SEED = 42  # sae-probes' own


def main() -> None:
    """Probe with both, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", default=["117_us_state_FL", "119_us_state_TX"])
    parser.add_argument("--kind", default="relu")
    parser.add_argument("--width", type=int, default=1152)
    options = parser.parse_args()
    for name, needed in (("sae_lens", "SAE"), ("xgboost", "XGBClassifier")):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = ModuleType(name)
            setattr(sys.modules[name], needed, object)
    import transformer_lens

    vars(transformer_lens).setdefault("HookedTransformer", object)  # which TransformerLens 4 has no more
    dictionary = saekit.load_family(options.kind)[options.width]
    sets = probing_sets(options.sets, rows=None)
    tokens = harvest_last_tokens(saekit.load_model(dtype=DTYPE), sets, HOOK_POINT, folder=home() / "probing")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for one in tokens:
            theirs = of_sae_probes(dictionary, one, Path(folder))
            ours = of_saekit(dictionary, one, Path(folder))
            for their, our in zip(theirs, ours, strict=True):
                rows.append(
                    {"set": one.name, "k": our["k"], "saekit": our["auc"], "sae-probes": their["test_auc"]}
                    | {"same latents": set(their["indices"]) == set(our["latents"])}
                )
    table = pd.DataFrame(rows)
    table["difference"] = table["saekit"] - table["sae-probes"]
    print(f"{dictionary.name}, prompts: {[len(one.y) for one in tokens]}")
    print(table.round(4).to_string(index=False))
    assert (table["difference"].abs() <= TOLERANCE).all()
    assert table["same latents"].all()


def of_sae_probes(dictionary: saekit.Dictionary, one: saekit.LastTokens, folder: Path) -> list[dict]:
    """The metrics that sae-probes writes, one per k."""
    from sae_probes.run_sae_evals import get_save_metrics_path, run_sae_eval

    file = folder / f"model_activations_{MODEL}" / f"{one.name}_{HOOK_POINT}.pt"
    file.parent.mkdir(exist_ok=True)
    torch.save(one.x, file)
    names = {"dataset": one.name, "hook_name": HOOK_POINT, "reg_type": "l2", "model_name": MODEL}
    run_sae_eval(
        dictionary,
        setting="normal",
        model_cache_path=folder,
        device="cpu",
        ks=list(KS),
        results_path=folder,
        seed=SEED,
        **names,
    )
    return json.loads(Path(get_save_metrics_path(sae_results_path=folder, **names)).read_text())


def of_saekit(dictionary: saekit.Dictionary, one: saekit.LastTokens, folder: Path) -> list[dict]:
    """The same of saekit, on the rows that sae-probes chose for training and for testing."""
    from sae_probes.generate_sae_activations import generate_sae_activations_normal

    x_train, x_test, y_train, y_test = generate_sae_activations_normal(
        dictionary, one.name, HOOK_POINT, MODEL, "cpu", folder, seed=SEED
    )
    return probe_rows(x_train, y_train.bool(), x_test, y_test.bool(), KS, seed=SEED)


if __name__ == "__main__":
    main()
