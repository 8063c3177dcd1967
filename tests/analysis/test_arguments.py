"""Arguments that are no dictionary are refused by name, before any work."""

import pytest
import torch
from dictionaries import make

import saekit
from saekit.analysis import nearest
from saekit.family import Family

SAE = make(d_in=16)
X = torch.randn(20, 16)
CALLS = {
    "best_matches": (lambda bad: saekit.best_matches(bad, SAE), "small"),
    "measure_splitting": (lambda bad: saekit.measure_splitting(SAE, bad), "large"),
    "measure_specificity": (lambda bad: saekit.measure_specificity(bad, SAE, X), "small"),
    "insertion": (lambda bad: saekit.insertion(SAE, bad, X), "large"),
    "stitch": (lambda bad: saekit.stitch(SAE, bad, X), "large"),
    "pair_statistics": (lambda bad: saekit.pair_statistics(bad, SAE, X), "small"),
    "match_latents": (lambda bad: saekit.match_latents(SAE, bad), "b"),
    "measure_uniqueness": (lambda bad: saekit.measure_uniqueness(SAE, bad), "dictionary 1"),
    "measure_overshoot": (lambda bad: saekit.measure_overshoot(SAE, bad, X), "after"),
    "insert_latents": (lambda bad: saekit.insert_latents(SAE, bad), "more"),
    "nearest": (lambda bad: nearest(bad, SAE), "dictionary"),
    "matched_l0": (lambda bad: saekit.matched_l0(bad, X, 3), "dictionary"),
    "evaluate": (lambda bad: saekit.evaluate(bad, X), "dictionary"),
    "collect": (lambda bad: saekit.collect(bad, X), "dictionary"),
    "logit_table": (lambda bad: saekit.logit_table(bad, X.T, list(map(str, range(20)))), "dictionary"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_dictionary_is_refused_by_its_name(name):
    call, argument = CALLS[name]
    missing = Family([SAE]).second_seed(40)
    for bad, found in (
        (missing, "NoneType; family.second_seed"),
        ("relu/576-seed0", "str; load it with saekit.load_sae"),
        (torch.nn.Linear(2, 2), "Linear"),
    ):
        with pytest.raises(TypeError, match=f"^{argument} must be a Dictionary, found {found}"):
            call(bad)


def test_a_wrong_unembedding_or_vocabulary_is_named(model):
    sae = make(d_in=16)
    with pytest.raises(TypeError, match=r"unembedding must be a tensor \[16, vocab\].*found int"):
        saekit.logit_table(sae, 5, model)
    with pytest.raises(TypeError, match="vocabulary"):
        saekit.logit_table(sae, torch.randn(16, 5), model, n=2)
