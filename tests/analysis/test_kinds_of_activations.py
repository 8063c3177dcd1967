"""Every analysis that needs no language model takes activations of any kind, to the same numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dictionaries import make

import saekit
from saekit.activations import ActivationStore
from saekit.analysis.novelty import group_insertion
from saekit.analysis.specificity import measure_specificity
from saekit.analysis.stitching.controls import matched_curve, matched_l0
from saekit.analysis.stitching.groups import insert_latents
from saekit.analysis.stitching.overshoot import measure_overshoot
from saekit.family import Family

HOOK_POINT = "elsewhere"
X = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))


def dictionary(width, seed=0):
    made = make(width=width, seed=seed).to(dtype=torch.float32)
    return replace(made, info=made.info | {"hook_point": HOOK_POINT})


small, large = dictionary(16), dictionary(40)
other = dictionary(16, seed=1)
family = Family([small, large])
inserted = insert_latents(small, large.gather(range(5)))


def stitching(x):
    return saekit.stitch(small, large, x)


ANALYSES = {
    "evaluate": lambda x: saekit.evaluate(large, x).summary,
    "collect": lambda x: saekit.collect(large, x).values.tolist(),
    "insertion": lambda x: saekit.insertion(small, large, x).summary,
    "group_insertion": lambda x: group_insertion(small, large, saekit.insertion(small, large, X), x).summary,
    "measure_uniqueness": lambda x: saekit.measure_uniqueness(small, other, activations=x).summary,
    "measure_specificity": lambda x: measure_specificity(small, large, x).summary,
    "measure_overshoot": lambda x: measure_overshoot(small, inserted, x),
    "stitch": lambda x: stitching(x).summary,
    "matched_l0": lambda x: matched_l0(large, x, 3.0).summary,
    "matched_curve": lambda x: matched_curve(stitching(X), x, n_points=2).frame.to_dict(),
    "build_frankenstein": lambda x: saekit.build_frankenstein(family, x).frame.to_dict(),
    "as_jumprelu": lambda x: saekit.as_jumprelu(replace(large, k=3), x).dictionary.threshold.tolist(),
    "check_sae": lambda x: saekit.check_sae(
        replace(large, info=large.info | {"expected_l0": saekit.evaluate(large, X).l0}), x
    ).frame.loc[["l0"]].to_dict(),
    "train": lambda x: saekit.train(
        saekit.TrainingConfig(saekit.TopK(k=3), width=16, steps=3, batch_size=32, warmup=1), x, progress=False
    ).dictionary.W_dec.tolist(),
}  # fmt: skip


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    np.save(folder / "x.npy", X.numpy())
    return {
        "array": X.numpy(),
        "memory-mapped": np.load(folder / "x.npy", mmap_mode="r"),
        "with gradient": X.clone().requires_grad_(),
        "float64": X.double(),
        "store": ActivationStore.from_array(folder / "store", X, hook_point=HOOK_POINT),
    }


@pytest.mark.parametrize("name", ANALYSES)
def test_the_kind_of_activations_does_not_matter(name, kinds):
    expected = ANALYSES[name](X)
    for kind, x in kinds.items():
        if (name, kind) != ("train", "store"):  # a store is shuffled in another order
            assert repr(ANALYSES[name](x)) == repr(expected), kind


@pytest.mark.parametrize("name", ANALYSES)
def test_activations_that_are_not_finite_are_refused(name):
    x = X.clone()
    x[7, 3] = float("nan")
    with pytest.raises(ValueError, match=r"not finite"):
        ANALYSES[name](x)
