"""Meta-SAEs: planted structure, numbers against brute force, held-out rows, files."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from dictionaries import make

from saekit.agreement import MismatchError
from saekit.analysis.meta.sae import RECIPES, MetaSAE, Recipe, explained_variance, meta_sae, meta_sweep
from saekit.family import Family
from saekit.folding import Unfolded
from saekit.training.trainer import _Run

D_IN, META, ROWS = 32, 48, 1200
QUICK = Recipe("quick", lr=5e-3, steps=600, batch=1 / 3, width=META / ROWS)


def planted(width=ROWS, seed=0):
    """A dictionary whose directions are positive sums of 1 to 3 of 48 directions, and these.

    The number of terms has to vary: if every row had two, a bias could take over a part of each.
    """
    truth = torch.randn(META, D_IN, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    truth /= truth.norm(dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(width, META, generator=generator).argsort(dim=1)[:, :3]
    amounts = 0.3 + torch.rand(width, 3, generator=generator, dtype=torch.float64)
    amounts *= torch.arange(3) <= torch.randint(3, (width, 1), generator=generator)
    rows = torch.zeros(width, META, dtype=torch.float64).scatter(1, chosen, amounts) @ truth
    parameters = {
        "W_enc": torch.randn(D_IN, width, generator=generator, dtype=torch.float64),
        "b_enc": torch.randn(width, generator=generator, dtype=torch.float64),
        "b_dec": torch.randn(D_IN, generator=generator, dtype=torch.float64),
    }
    return Unfolded(W_dec=rows, info={"kind": "relu", "seed": seed}, **parameters).fold(), truth.float()


@pytest.fixture(scope="module")
def base():
    return planted()[0]


@pytest.fixture(scope="module")
def meta(base):
    return meta_sae(base, k=2, recipe=QUICK, held_out_share=0.2)


@pytest.fixture(scope="module")
def of_family(base):
    family = Family([planted(200, seed=0)[0], planted(200, seed=1)[0], planted(400, seed=0)[0]])
    return meta_sae(family, width=META, k=2, recipe=replace(QUICK, steps=50), seed=3)


# ---------------------------------------------------------------------- what is learnt


def test_planted_directions_are_found(meta):
    cosine = (meta.dictionary.W_dec @ planted()[1].T).amax(0)
    assert (cosine > 0.9).float().mean() > 0.9
    summary = meta.summary
    assert summary["explained_variance"] > 0.93
    assert summary["explained_variance_held_out"] > 0.9
    assert summary["l0"] == pytest.approx(2, abs=0.2)


def test_rows_without_structure_are_explained_less(base):
    generator = torch.Generator().manual_seed(5)
    random = replace(base, W_dec=torch.nn.functional.normalize(torch.randn(ROWS, D_IN, generator=generator)))
    assert meta_sae(random, k=2, recipe=QUICK).summary["explained_variance"] < 0.5


def test_held_out_rows_are_never_seen(base, meta):
    held_out = meta.held_out
    assert int(held_out.sum()) == 240
    W_dec = base.W_dec.clone()
    W_dec[held_out] = torch.nn.functional.normalize(torch.ones(D_IN), dim=0)
    other = meta_sae(replace(base, W_dec=W_dec), k=2, recipe=QUICK, held_out_share=0.2)
    assert torch.equal(other.held_out, held_out)
    for name, tensor in meta.dictionary.tensors().items():
        assert torch.equal(tensor, other.dictionary.tensors()[name])


def test_no_rows_are_held_out_by_default(of_family):
    assert not of_family.held_out.any()
    assert math.isnan(of_family.summary["explained_variance_held_out"])


def test_same_settings_give_the_same_bits_and_another_seed_others(base):
    short = replace(QUICK, steps=20)
    first, again, other = (meta_sae(base, k=2, recipe=short, seed=seed).dictionary for seed in (0, 0, 1))
    assert torch.equal(first.W_dec, again.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)


# ---------------------------------------------------------------------- numbers


def test_numbers_equal_brute_force(meta):
    rows = meta.rows.double().numpy()
    d = {name: tensor.double().numpy() for name, tensor in meta.dictionary.tensors().items()}
    h = rows @ d["W_enc"] + d["b_enc"]
    latents = np.where(h > d["threshold"], h, 0)
    rebuilt = latents @ d["W_dec"] + d["b_dec"]
    out = meta.held_out.numpy()

    def ev(mask):
        w = rows[mask]
        return 1 - ((w - rebuilt[mask]) ** 2).sum() / ((w - w.mean(0)) ** 2).sum()

    summary = meta.summary
    assert summary["explained_variance"] == pytest.approx(ev(np.full(ROWS, True)), abs=1e-5)
    assert summary["explained_variance_held_out"] == pytest.approx(ev(out), abs=1e-5)
    assert summary["explained_variance_uncentred"] == pytest.approx(
        1 - ((rows - rebuilt) ** 2).sum() / (rows**2).sum(), abs=1e-5
    )
    assert summary["mse"] == pytest.approx(((rows - rebuilt) ** 2).sum(1).mean(), rel=1e-4)
    assert summary["l0"] == pytest.approx((latents > 0).sum(1).mean())
    assert summary["l0_held_out"] == pytest.approx((latents[out] > 0).sum(1).mean())
    assert summary["dead_fraction"] == ((latents > 0).sum(0) == 0).mean()
    assert summary["max_share"] == (latents > 0).mean(0).max()
    np.testing.assert_allclose(meta.reconstruct(), rebuilt, atol=1e-5)
    frame = meta.frame
    np.testing.assert_array_equal(frame["n_latents"], (latents > 0).sum(0))
    np.testing.assert_allclose(frame["share"], (latents > 0).mean(0))
    np.testing.assert_allclose(frame["max_activation"], latents.max(0), atol=1e-5)
    active = np.maximum((latents > 0).sum(0), 1)
    np.testing.assert_allclose(frame["mean_activation"], latents.sum(0) / active, atol=1e-5)


def test_explained_variance_of_the_mean_is_zero_and_of_the_rows_one():
    rows = torch.randn(50, 6) + 3
    assert explained_variance(rows, rows) == 1
    assert explained_variance(rows, rows.mean(0).expand_as(rows)) == pytest.approx(0, abs=1e-6)
    assert explained_variance(rows, torch.zeros_like(rows), centred=False) == 0


def test_a_row_is_decomposed_alike_alone_and_with_others(meta):
    whole = meta.decomposition.dense()
    for row in (0, 7, 1199):
        alone = meta.dictionary.encode(meta.rows[row : row + 1])
        torch.testing.assert_close(alone, whole[row : row + 1])


# ---------------------------------------------------------------------- looking up


def test_family_takes_the_lowest_seed_of_each_width(of_family):
    assert of_family.bases == tuple(source.identity for source in of_family.sources)
    assert list(map(str, of_family.bases)) == ["relu 200 (seed 0)", "relu 400 (seed 0)"]
    assert of_family.widths == (200, 400)
    assert of_family.name == "meta 48 (k 2) of relu 200 (seed 0) to relu 400 (seed 0)"
    assert of_family.rows.shape == (600, D_IN)
    assert of_family.base.tolist() == [0] * 200 + [1] * 400
    assert of_family.latent.tolist() == [*range(200), *range(400)]


def test_of_and_members_read_the_same_decomposition(of_family):
    dense = of_family.decomposition.dense()
    for base, start in ((0, 0), (1, 200), (-1, 200), (-2, 0)):
        found = of_family.of(5, base)
        row = dense[start + 5]
        assert found["activation"].is_monotonic_decreasing
        assert sorted(found["meta_latent"]) == row.nonzero().squeeze(1).tolist()
        np.testing.assert_array_equal(found["activation"], row[found["meta_latent"].tolist()])
    meta_latent = int(dense.sum(0).argmax())
    members = of_family.members(meta_latent, n=1000)
    assert len(members) == (dense[:, meta_latent] > 0).sum()
    assert members["activation"].is_monotonic_decreasing
    rows = members["latent"] + 200 * members["base"]
    np.testing.assert_array_equal(members["activation"], dense[rows.tolist(), meta_latent])
    assert (members["width"] == members["base"].map({0: 200, 1: 400})).all()
    narrow = of_family.members(meta_latent, n=3, base=0)
    pd.testing.assert_frame_equal(
        narrow, members[members["base"] == 0].head(3).reset_index(drop=True), check_dtype=False
    )


def test_rebuilt_has_the_same_active_latents_and_rebuilt_directions(meta, base):
    rebuilt = meta.rebuilt()
    x = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(1))
    latents, here = base.encode(x), rebuilt.encode(x)
    assert torch.equal(latents > 0, here > 0)
    torch.testing.assert_close(rebuilt.decode(here), latents @ meta.reconstruct() + base.b_dec)
    torch.testing.assert_close(rebuilt.W_dec.norm(dim=1), torch.ones(ROWS))


# ---------------------------------------------------------------------- recipes


def test_recipes_are_as_published_at_the_published_width():
    for name, batch, steps, lr in (("iclr", 4096, 24_000, 1e-4), ("lesswrong", 16384, 2000, 1e-3)):
        config = RECIPES[name].config(49152, width=2304, k=4, seed=0)
        assert (config.batch_size, config.steps, config.variant.k_aux) == (batch, steps, 512)
        assert config.variant.dead_after == 100 * batch
        assert {config.lr_at(step) for step in (0, 1, steps - 1)} == {lr}
    config = RECIPES["saebench"].config(16384, width=4096, k=4, seed=0)
    assert (config.batch_size, config.steps, config.lr) == (1024, 1500, 5e-4)


def test_recipes_scale_with_the_rows():
    assert RECIPES["iclr"].config(4608, width=216, k=4, seed=0).batch_size == 384
    assert RECIPES["lesswrong"].config(4608, width=216, k=4, seed=0).batch_size == 1536
    assert RECIPES["lesswrong"].config(4608, width=216, k=4, seed=0).variant.k_aux == 48
    assert RECIPES["saebench"].config(576, width=144, k=4, seed=0).batch_size == 576


def test_width_follows_the_recipe():
    one_step = {name: replace(recipe, steps=1) for name, recipe in RECIPES.items()}
    large, small = planted(640)[0], planted(101)[0]
    assert meta_sae(large, recipe=one_step["lesswrong"]).width == 30
    assert meta_sae(small, recipe=one_step["saebench"]).width == 26


def test_sweep_gives_each_width_with_each_k(base):
    result = meta_sweep(base, [8, np.int64(16)], iter([1, 2]), recipe=replace(QUICK, steps=30), seed=2)
    sweep = result.frame
    assert list(zip(sweep["width"], sweep["k"], strict=True)) == [(8, 1), (8, 2), (16, 1), (16, 2)]
    assert (sweep["seed"] == 2).all()
    alone = meta_sae(base, width=16, k=1, recipe=replace(QUICK, steps=30), seed=2)
    assert sweep["explained_variance"][2] == alone.summary["explained_variance"]
    assert result.bases == (base.identity,)
    assert result.summary["explained_variance"] == sweep["explained_variance"].max()
    assert len(repr(result)) < 200


# ---------------------------------------------------------------------- files


def test_saved_and_loaded_it_is_the_same_bit_for_bit(meta, base, tmp_path):
    loaded = MetaSAE.load(meta.save(tmp_path), base)
    for name, tensor in meta.dictionary.tensors().items():
        assert torch.equal(tensor, loaded.dictionary.tensors()[name])
    assert torch.equal(loaded.held_out, meta.held_out)
    assert loaded.summary == meta.summary
    assert (loaded.name, loaded.k, loaded.recipe, loaded.seed) == (meta.name, 2, "quick", 0)


def test_load_refuses_other_dictionaries_and_other_folders(meta, base, tmp_path):
    meta.save(tmp_path / "meta")
    with pytest.raises(ValueError, match="other dictionaries than relu 1200"):
        MetaSAE.load(tmp_path / "meta", planted(seed=1)[0])
    with pytest.raises(FileNotFoundError, match="holds no dictionary"):
        MetaSAE.load(tmp_path / "none", base)
    base.save(tmp_path / "base")
    with pytest.raises(FileNotFoundError, match=r"holds relu 1200 .*, which is not a meta-SAE"):
        MetaSAE.load(tmp_path / "base", base)
    (tmp_path / "meta" / "held_out.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="damaged"):
        MetaSAE.load(tmp_path / "meta", base)


def test_a_meta_sae_in_the_folder_is_not_trained_again(base, tmp_path, monkeypatch):
    settings = {"k": 2, "recipe": replace(QUICK, steps=20), "folder": tmp_path}
    first = meta_sae(base, **settings)
    monkeypatch.setattr("saekit.analysis.meta.sae.train", None)
    assert torch.equal(meta_sae(base, **settings).dictionary.W_dec, first.dictionary.W_dec)
    for change in ({"seed": 1}, {"k": 3}, {"width": 9}, {"held_out_share": 0.1}):
        with pytest.raises(TypeError):  # would train
            meta_sae(base, **settings | change)


# ---------------------------------------------------------------------- refusals


def test_settings_out_of_range_are_refused(base, meta):
    with pytest.raises(
        ValueError, match="recipe must be one of 'iclr', 'lesswrong', 'saebench', found 'iclr2025'"
    ):
        meta_sae(base, recipe="iclr2025")
    with pytest.raises(ValueError, match="held_out_share must be at least 0 and below 1, found 1"):
        meta_sae(base, held_out_share=1)
    with pytest.raises(ValueError, match="k must be at most the width 3, found 4"):
        meta_sae(base, width=3)
    with pytest.raises(ValueError, match="at least one dictionary"):
        meta_sae([])
    with pytest.raises(ValueError, match="has d_in 32, the second 12"):
        meta_sae([base, make()])
    with pytest.raises(ValueError, match=r"must be \[3, 2\] as the rows, found \[3, 1\]"):
        explained_variance(torch.randn(3, 2), torch.randn(3, 1))
    with pytest.raises(ValueError, match="do not vary"):
        explained_variance(torch.ones(3, 2), torch.ones(3, 2))
    for rows in (torch.tensor([[1.0], [torch.nan]]), torch.tensor([[1.0], [torch.inf]])):
        with pytest.raises(ValueError, match="not finite"):
            explained_variance(rows, torch.ones(2, 1))
    with pytest.raises(IndexError, match="latent must be between 0 and 1199, found 1200"):
        meta.of(1200)
    with pytest.raises(IndexError, match="has no base 1; it has 1"):
        meta.of(0, base=1)
    with pytest.raises(IndexError, match="meta-latent must be between 0 and 47, found 48"):
        meta.members(48)


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("k", 2.0, TypeError),
        ("k", True, TypeError),
        ("k", 0, ValueError),
        ("width", 30.5, TypeError),
        ("width", 0, ValueError),
        ("seed", 1.5, TypeError),
        ("seed", -1, ValueError),
        ("held_out_share", float("nan"), ValueError),
        ("held_out_share", -0.1, ValueError),
        ("device", "gpu", ValueError),
    ],
)
def test_settings_are_checked_before_any_work(base, monkeypatch, tmp_path, setting, value, error):
    monkeypatch.setattr("saekit.analysis.meta.sae.train", None)
    with pytest.raises(error, match="device" if setting == "device" else setting):
        meta_sae(base, folder=tmp_path / "kept", **{setting: value})
    assert not (tmp_path / "kept").exists()


def test_recipes_are_checked_when_they_are_made():
    for change, error in (
        ({"lr": 0}, ValueError),
        ({"steps": 2.5}, TypeError),
        ({"batch": float("nan")}, ValueError),
        ({"aux_share": 1.5}, ValueError),
    ):
        with pytest.raises(error, match=next(iter(change))):
            replace(QUICK, **change)


def test_numbers_of_a_notebook_are_taken_as_they_come(base, tmp_path):
    """NumPy integers and a zero-dimensional tensor; the result can be saved."""
    made = meta_sae(
        base, width=np.int64(9), k=torch.tensor(2), seed=np.uint8(3), recipe=replace(QUICK, steps=3)
    )
    assert (made.width, made.k, made.seed) == (9, 2, 3)
    assert MetaSAE.load(made.save(tmp_path), base).summary == made.summary


def test_gradients_may_be_off(base):
    """As at the top of many notebooks."""
    torch.set_grad_enabled(False)
    try:
        off = meta_sae(base, k=2, recipe=replace(QUICK, steps=20))
    finally:
        torch.set_grad_enabled(True)
    on = meta_sae(base, k=2, recipe=replace(QUICK, steps=20))
    assert torch.equal(on.dictionary.W_dec, off.dictionary.W_dec)


def test_dictionaries_of_two_places_are_not_decomposed_together(base):
    def at(place, model="one"):
        return replace(base, info={**base.info, "hook_point": place, "model": model})

    quick = replace(QUICK, steps=2)
    pair = [at("blocks.1.hook_resid_post"), at("blocks.2.hook_resid_post")]
    with pytest.raises(MismatchError, match="hook point"):
        meta_sae(pair, recipe=quick)
    with pytest.raises(MismatchError, match="model"):
        meta_sae([at("blocks.1.hook_resid_post"), at("blocks.1.hook_resid_post", "two")], recipe=quick)
    with pytest.warns(UserWarning, match="do not belong together"):
        meta_sae(pair, recipe=quick, allow_mismatch=True)


def test_what_the_bases_record_is_recorded(base):
    info = {
        "model": "m",
        "model_weights": "0" * 64,
        "model_revision": "r",
        "model_processing": {"fold_ln": True},
        "hook_point": "blocks.1.hook_resid_post",
    }
    made = meta_sae(replace(base, info={**base.info, **info}), recipe=replace(QUICK, steps=2))
    assert {name: made.dictionary.info[name] for name in info} == info
    assert made.identity.hook_point == info["hook_point"]
    assert made.identity.hash == made.dictionary.content_hash


# ---------------------------------------------------------------------- places


def test_a_folder_that_cannot_be_written_is_refused_before_training(base, tmp_path, monkeypatch):
    monkeypatch.setattr("saekit.analysis.meta.sae.train", None)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="Nothing can be written to the folder"):
        meta_sae(base, folder=tmp_path / "file")
    with pytest.raises(OSError, match="Nothing can be written to the folder"):
        meta_sweep(base, [8, 9], [2], folder=tmp_path / "file")
    with pytest.raises(ValueError, match="k must be at most the width 8, found 9"):
        meta_sweep(base, [16, 8], [2, 9])
    with pytest.raises(ValueError, match="at least one width and one k"):
        meta_sweep(base, [], [2])


def test_training_that_was_interrupted_goes_on_to_the_same_bits(base, tmp_path, monkeypatch):
    """Stopped after its checkpoint: the next call begins there, and cleans up after itself."""
    settings = {"k": 2, "recipe": replace(QUICK, steps=1200), "seed": 5}
    whole = meta_sae(base, **settings)

    class Stopped(BaseException):
        pass

    step = _Run.train_step

    def stop_at(run, x):
        if run.step == 1100:
            raise Stopped
        step(run, x)

    monkeypatch.setattr(_Run, "train_step", stop_at)
    with pytest.raises(Stopped):
        meta_sae(base, folder=tmp_path, **settings)
    begun = []
    monkeypatch.setattr(_Run, "train_step", lambda run, x: (begun.append(run.step), step(run, x)))
    resumed = meta_sae(base, folder=tmp_path, **settings)
    assert begun[0] >= 1000
    assert torch.equal(resumed.dictionary.W_dec, whole.dictionary.W_dec)
    (kept,) = tmp_path.iterdir()
    assert sorted(file.name for file in kept.iterdir()) == [
        "dictionary.json",
        "held_out.safetensors",
        "weights.safetensors",
    ]


def test_a_topk_base_is_rebuilt_with_the_same_latents_active():
    """Rebuilt rows have other norms, but latents go on competing as they did."""
    base = replace(planted(100)[0], k=5)
    meta = meta_sae(base, width=8, k=2, recipe=replace(QUICK, steps=20))
    x = torch.randn(200, base.d_in, generator=torch.Generator().manual_seed(0)) * 3
    norms = meta.reconstruct().norm(dim=1)
    torch.testing.assert_close(meta.rebuilt().encode(x), base.encode(x) * norms, rtol=1e-4, atol=1e-5)
