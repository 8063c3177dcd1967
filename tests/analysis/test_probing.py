"""k-sparse probing against brute force, and the activations that it is done on."""

import numpy as np
import pandas as pd
import pytest
import torch
from dictionaries import make
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import saekit
from saekit.analysis import probing
from saekit.analysis.probing import LastTokens, harvest_last_tokens, probe, probe_rows, split_evenly
from saekit.corpora import KEPT_FOR_PROBING, LEAKY, ProbingSet, probing_sets
from saekit.models import capture

D_IN = 12
HOOK_POINT = "blocks.1.hook_resid_post"


def tokens(n=300, seed=0, noise=0.7, **settings):
    """Activations whose class shows, with noise, in latent 3 of `make()`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D_IN, generator=generator)
    h = make().pre_activations(x)[:, 3]
    y = h + noise * torch.randn(n, generator=generator) > h.median()
    return LastTokens(settings.pop("name", f"set {seed}"), x, y, **settings)


# ---------------------------------------------------------------------- the definition


def test_one_latent_scores_the_share_of_pairs_that_it_ranks_right():
    one, dictionary = tokens(), make()
    row = probe(dictionary, [one], ks=[1], dense=False).frame.iloc[0]
    _, test = split_evenly(one.y)
    values = dictionary.encode(one.x)[test, row["latents"][0]]
    positive, negative = values[one.y[test]], values[~one.y[test]]
    right = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative).double()
    assert row["latents"] == (3,)
    assert row["auc"] == pytest.approx(right.mean().item(), abs=1e-12)
    assert 0.6 < row["auc"] < 1


def test_the_latents_are_those_of_the_definition():
    one, dictionary = tokens(), make()
    row = probe(dictionary, [one], ks=[7], dense=False).frame.iloc[0]
    train, _ = split_evenly(one.y)
    latents, y = dictionary.encode(one.x)[train].double().numpy(), one.y[train].numpy()
    differences = []
    for column in latents.T:
        active = column[column != 0]
        scaled = column / active.mean() if len(active) else column
        differences.append(abs(scaled[y].mean() - scaled[~y].mean()))
    assert row["latents"] == tuple(np.argsort(differences)[::-1][:7])


def test_probe_and_penalty_are_those_of_the_definition():
    one, dictionary = tokens(noise=2.0), make()
    row = probe(dictionary, [one], ks=[16], dense=False).frame.iloc[0]
    train, test = split_evenly(one.y)
    latents, y = dictionary.encode(one.x)[:, list(row["latents"])].double().numpy(), one.y.numpy()
    n = len(train)
    fit, held_out = train[: n - n // 5], train[n - n // 5 :]
    scores = []
    for C in 10.0 ** np.linspace(5, -5, 10):
        model = LogisticRegression(C=C, max_iter=1000).fit(latents[fit], y[fit])
        scores.append((roc_auc_score(y[held_out], model.decision_function(latents[held_out])), C))
    best = max(score for score, _ in scores)
    assert row["validation_auc"] == best
    assert row["C"] == pytest.approx(next(C for score, C in scores if score == best))
    final = LogisticRegression(C=row["C"], max_iter=1000).fit(latents[train], y[train])
    assert row["auc"] == roc_auc_score(y[test], final.decision_function(latents[test]))
    assert row["accuracy"] == pytest.approx(final.score(latents[test], y[test]))
    fewest = min(y.sum(), (~y).sum())
    assert (row["n_train"], row["n_test"]) == (len(train), len(test)) == (fewest * 1.2, fewest * 0.8)


def test_c_is_chosen_on_training_prompts_alone():
    one = tokens()
    train, test = split_evenly(one.y)
    latents = make().encode(one.x)
    rows = [
        probe_rows(latents[train], one.y[train], latents[test] * scale, one.y[test], [5])[0]
        for scale in (1, 0)
    ]
    assert rows[0]["C"] == rows[1]["C"]
    assert rows[0]["latents"] == rows[1]["latents"]
    assert rows[1]["auc"] == 0.5


def test_few_prompts_are_cross_validated():
    one = tokens(n=60)
    row = probe(make(), [one], ks=[2], dense=False).frame.iloc[0]
    assert row["n_train"] < probing.FEW
    assert row["C"] in probing.INVERSE_PENALTIES


def test_shuffled_classes_score_one_half():
    aucs = []
    for seed in range(20):
        one = tokens(seed=seed)
        order = torch.randperm(len(one.y), generator=torch.Generator().manual_seed(seed))
        aucs.append(
            probe(make(), [LastTokens("null", one.x, one.y[order])], ks=[5], dense=False).frame["auc"][0]
        )
    assert np.mean(aucs) == pytest.approx(0.5, abs=3 * np.std(aucs) / np.sqrt(len(aucs)))


def test_order_of_latents_and_swapped_classes_change_nothing():
    one, dictionary = tokens(), make()
    order = torch.randperm(dictionary.width, generator=torch.Generator().manual_seed(1))
    found = [probe(d, [one], ks=[1, 5], dense=False).frame for d in (dictionary, dictionary.gather(order))]
    assert found[0]["auc"].tolist() == pytest.approx(found[1]["auc"].tolist(), abs=1e-6)
    named = [{order[i].item() for i in latents} for latents in found[1]["latents"]]
    assert [set(latents) for latents in found[0]["latents"]] == named


def test_the_dense_probe_is_on_the_activations():
    one = tokens()
    frame = probe([], [one], ks=[2]).frame
    assert frame["k"].tolist() == [2, D_IN]
    assert set(frame["latents"].iloc[1]) == set(range(D_IN))
    train, test = split_evenly(one.y)
    x, y = one.x.double().numpy(), one.y.numpy()
    model = LogisticRegression(C=frame["C"].iloc[1], max_iter=10_000, tol=1e-8).fit(x[train], y[train])
    expected = roc_auc_score(y[test], model.decision_function(x[test]))
    assert frame["auc"].iloc[1] == pytest.approx(expected, abs=2e-3)


def test_novel_latents_and_stitched_steps_are_dictionaries():
    one, small, large = tokens(), make(width=20, seed=4), make(width=40)
    stitching = saekit.stitch(small, large, one.x)
    given = {
        "3 left out": large.gather(torch.arange(40) != 3),
        "last step": stitching.dictionary(stitching.n_steps),
    }
    frame = probe({"all": large} | given, [one], ks=[1], dense=False).frame.set_index("dictionary")
    assert frame.loc["last step", "auc"] == frame.loc["all", "auc"]
    assert frame.loc["3 left out", "auc"] < frame.loc["all", "auc"]


# ---------------------------------------------------------------------- splits and results


def test_splits_are_even_disjoint_and_seeded():
    y = torch.arange(500) % 5 == 0
    train, test = split_evenly(y, seed=1)
    assert not set(train.tolist()) & set(test.tolist())
    assert y[train].double().mean() == y[test].double().mean() == 0.5
    assert len(test) == 80
    assert len(train) == 120
    assert torch.equal(split_evenly(y, seed=1)[0], train)
    assert not torch.equal(split_evenly(y, seed=2)[0], train)
    assert 0.3 < y[train[-24:]].double().mean() < 0.7  # in random order: the last ones choose C


def test_tables_leave_leaky_sets_out_and_report_kept_ones_apart():
    sets = [tokens(seed=0, kept_out=True), tokens(seed=1), tokens(seed=2), tokens(seed=3, leaky=True)]
    result = probe({"a": make(), "b": make(seed=1)}, sets, ks=[1, 2])
    frame = result.frame
    table = result.table.set_index(["dictionary", "k", "kept_out"])
    seen = frame[(frame["dictionary"] == "a") & (frame["k"] == 2) & frame["set"].isin(["set 1", "set 2"])][
        "auc"
    ]
    assert table.loc["a", 2, False]["auc"] == pytest.approx(seen.mean())
    assert table.loc["a", 2, False]["auc_error"] == pytest.approx(seen.std(ddof=1) / 2**0.5)
    assert table.loc["a", 2, True]["n_sets"] == 1
    assert result.summary["n_leaky"] == result.summary["n_kept_out"] == 1
    assert result.summary["auc"]["activations"].keys() == {1, 2, D_IN}
    compared = result.compare("b").set_index(["dictionary", "k"])
    sound = frame[~frame["leaky"] & (frame["k"] == 1)].set_index(["dictionary", "set"])["auc"]
    difference = sound["a"] - sound["b"]
    assert compared.loc["a", 1]["difference"] == pytest.approx(difference.mean())
    assert compared.loc["a", 1]["difference_error"] == pytest.approx(difference.std(ddof=1) / 3**0.5)
    assert compared.loc["b", 2]["difference"] == 0
    apart = result.compare("b", kept_out=False).set_index(["dictionary", "k"])
    assert apart.loc["a", 1]["difference"] == pytest.approx(difference[["set 1", "set 2"]].mean())
    assert result.compare("b", kept_out=True)["n_sets"].unique().tolist() == [1]
    with pytest.raises(ValueError, match="reference must be one of"):
        result.compare("c")


def test_what_cannot_be_probed_is_refused():
    one = tokens()
    with pytest.raises(ValueError, match="k must be between 1 and 40"):
        probe(make(), [one], ks=[41], dense=False)
    with pytest.raises(ValueError, match="at least one set"):
        probe(make(), [])
    with pytest.raises(ValueError, match="name of its own"):
        probe(make(), [one, one])
    with pytest.raises(saekit.agreement.MismatchError):
        probe(make(d_in=13), [one])
    here = saekit.Dictionary(**make().tensors(), info={"hook_point": "here"})
    with pytest.raises(saekit.agreement.MismatchError, match="elsewhere"):
        probe(here, [tokens(manifest={"hook_point": "elsewhere"})])
    with pytest.raises(ValueError, match="too few to probe: at least 10"):
        LastTokens("few", torch.eye(40), torch.arange(40) < 9)
    with pytest.raises(ValueError, match="not finite"):
        LastTokens("broken", torch.full((40, 2), torch.nan), torch.arange(40) < 20)
    with pytest.raises(ValueError, match="one Boolean class each"):
        LastTokens("numbers", torch.eye(40), torch.arange(40))


# ---------------------------------------------------------------------- text and model


def toy_set(n=40, name="water"):
    starts = ["the river runs under", "an old king sleeps over the bright", "stone"]
    prompts = [f"{starts[i % 3]} {'moon ' * (i % 7)}{i}" for i in range(n)]
    return ProbingSet(name, prompts, [i % 2 == 0 for i in range(n)])


@pytest.mark.parametrize("context_length", [128, 5])
def test_the_last_token_sees_its_prompt_and_nothing_else(model, tmp_path, context_length):
    one = toy_set()
    found = harvest_last_tokens(
        model, [one], HOOK_POINT, folder=tmp_path, context_length=context_length, batch_rows=7, progress=False
    )[0]
    for prompt, x in zip(one.prompts, found.x, strict=True):
        ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"][-(context_length - 1) :]
        separator = model.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        alone = capture(model, torch.tensor([[separator, *ids]]), HOOK_POINT)[0, -1]
        assert torch.allclose(x, alone, atol=1e-5)
    assert found.y.tolist() == list(one.targets)
    assert found.hook_point == HOOK_POINT


def test_finished_sets_are_not_run_again(model, tmp_path, monkeypatch):
    one, two = toy_set(), toy_set(name="other")
    settings = {"folder": tmp_path, "progress": False}
    first = harvest_last_tokens(model, [one], HOOK_POINT, **settings)[0]
    runs = []
    monkeypatch.setattr(probing, "capture", lambda *args: runs.append(1) or capture(*args))
    again, _ = harvest_last_tokens(model, [one, two], HOOK_POINT, **settings)
    n_two = len(runs)
    assert torch.equal(again.x, first.x)
    assert n_two == 2  # forty prompts of the second set, 32 at a time
    harvest_last_tokens(model, [one], HOOK_POINT, context_length=6, **settings)
    harvest_last_tokens(model, [one], "blocks.0.hook_resid_post", **settings)
    assert len(runs) == n_two + 4
    with pytest.raises(ValueError, match="have no tokens"):
        harvest_last_tokens(model, [ProbingSet("empty", ["", "a"], [True, False])], HOOK_POINT, **settings)


def test_a_probing_set_is_checked():
    with pytest.raises(ValueError, match="one target per prompt"):
        ProbingSet("x", ["a"], [True, False])
    with pytest.raises(ValueError, match="both True and False"):
        ProbingSet("x", ["a", "b"], [True, True])


@pytest.mark.embedded
def test_the_sets_of_the_package():
    sets = probing_sets(rows=100)
    assert len(sets) == 113
    assert {one.name for one in sets if one.kept_out} == set(KEPT_FOR_PROBING)
    assert {one.name for one in sets if one.leaky} == set(LEAKY)
    assert all(len(one.prompts) == 100 and sum(one.targets) == 50 for one in sets)
    file = probing_folder() / "cleaned_data" / "96_spam_is.csv.zst"
    table = pd.read_csv(file, compression="zstd")
    whole = probing_sets(["96_spam_is"], rows=None)[0]
    assert list(whole.prompts) == table["prompt"].tolist()
    assert list(whole.targets) == (table["target"] == table["target"].max()).tolist()
    assert set(sets[[one.name for one in sets].index("96_spam_is")].prompts) <= set(whole.prompts)
    with pytest.raises(ValueError, match="no set 17_world_country"):
        probing_sets(["17_world_country"])


def probing_folder():
    from saekit.corpora import _package_folder

    return _package_folder("sae_probes") / "data"
