"""Maps of activations against NumPy's least squares, known maps, and brute force in the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dictionaries import make

from saekit.activations import harvest
from saekit.agreement import check_agreement
from saekit.analysis.maps import carry_dictionary, fit_map, measure_maps, random_map
from saekit.dictionary import Transcoder
from saekit.models import capture, load_model, logits_with_replacement

N = 500


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def skewed(seed=0, d=12):
    """Correlated source activations with a large mean, as of a residual stream."""
    return random(N, d, seed=seed) @ random(d, d, seed=seed + 1) + 50 * random(d, seed=seed + 2)


def rotation(d=12, seed=3):
    return torch.linalg.qr(random(d, d, seed=seed)).Q


@pytest.mark.parametrize("d_target", [5, 12, 20])
def test_the_affine_map_is_that_of_least_squares(d_target):
    x, y = skewed(), random(N, d_target, seed=9) + skewed() @ random(12, d_target, seed=8)
    found = fit_map(x, y)
    padded = np.concatenate([x.numpy(), np.ones((N, 1))], axis=1)
    expected = np.linalg.lstsq(padded, y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(found.weight, expected[:-1], atol=1e-8)
    np.testing.assert_allclose(found.bias, expected[-1], atol=1e-6)
    assert torch.allclose(found(x), x @ found.weight + found.bias)


@pytest.mark.parametrize("rank", [0, 1, 3, 5])
def test_a_map_of_low_rank_is_the_best_of_that_rank(rank):
    """The fitted values of least squares, cut to their leading singular vectors, are its closed form."""
    x = skewed()
    y = random(N, 8, seed=9) + x @ random(12, 8, seed=8)
    found = fit_map(x, y, rank=rank)
    assert found.summary["rank"] == rank
    centred, aim = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    fitted = centred @ np.linalg.lstsq(centred, aim, rcond=None)[0]
    left, singular, right = np.linalg.svd(fitted, full_matrices=False)
    best = (left[:, :rank] * singular[:rank]) @ right[:rank] + y.mean(0).numpy()
    np.testing.assert_allclose(found(x), best, atol=1e-6)
    # Nor is any other map of that rank near it better.
    error = float((found(x) - y).square().sum())
    for seed in range(20):
        near = found.weight @ (torch.eye(8, dtype=torch.float64) + 1e-3 * random(8, 8, seed=seed))
        moved = x @ near + (y.mean(0) - x.mean(0) @ near)
        assert float((moved - y).square().sum()) >= error * (1 - 1e-12)


def test_a_known_rotation_is_found_exactly():
    x, turn = skewed(), rotation()
    found = fit_map(x, x @ turn + 3)
    assert torch.allclose(found.weight, turn, atol=1e-9)
    assert torch.allclose(found.inverse.weight, turn.T, atol=1e-9)
    assert torch.allclose(found.inverse(found(x)), x, atol=1e-6)
    result = measure_maps(x, x @ turn + 3, ranks=[11])
    fvu = result.frame.set_index("map")["fvu"]
    assert fvu["affine"] < 1e-15
    assert fvu["rank 11"] > 1e-9
    assert fvu["identity"] > 0.1
    assert result.n_fitted + result.n_held_out == N


def test_a_truth_of_rank_k_needs_rank_k():
    x = random(N, 12)
    truth = random(12, 3, seed=5) @ random(3, 9, seed=6)
    noise = 0.1 * random(N, 9, seed=7)
    result = measure_maps(x, x @ truth + noise, ranks=[1, 2, 3, 5])
    fvu = result.frame.set_index("map")["fvu"]
    floor = float(noise.square().sum() / (x @ truth + noise).var(0).sum() / N)
    assert fvu["rank 2"] > 5 * fvu["rank 3"]
    assert fvu["rank 3"] == pytest.approx(floor, rel=0.2)
    assert fvu["rank 3"] < fvu["affine"]  # it fits less of the noise
    assert fvu["mean"] == pytest.approx(1, abs=0.05)
    assert fvu["random orthogonal"] > 0.8


def test_few_tokens_fit_themselves_but_not_others():
    x, y = random(40, 12), random(40, 6, seed=1)
    fitted = fit_map(x, y, positions=range(14))
    inside = (fitted(x[:14]) - y[:14]).square().sum() / (y[:14] - y[:14].mean(0)).square().sum()
    assert inside < 0.3
    outside = measure_maps(x, y, ranks=[], held_out=0.65).frame.set_index("map")["fvu"]
    assert outside["affine"] > 1.5
    assert outside["mean"] < 1.3


def test_the_random_null_is_a_scaled_rotation_of_the_best_factor():
    for d in (5, 12, 20):
        x, y = skewed(), random(N, d, seed=4)
        null = random_map(x, y, seed=1)
        gram = null.weight @ null.weight.T if d >= 12 else null.weight.T @ null.weight
        assert torch.allclose(gram, gram[0, 0] * torch.eye(min(d, 12), dtype=torch.float64), atol=1e-9)
        error = float((null(x) - y).square().sum())
        for factor in (0.9, 1.1):
            other = x @ (factor * null.weight)
            assert float((other - other.mean(0) - (y - y.mean(0))).square().sum()) > error
        assert not torch.allclose(random_map(x, y, seed=2).weight, null.weight)


# ---------------------------------------------------------------------- dictionaries


@pytest.mark.parametrize("settings", [{}, {"k": 3}], ids=["thresholds", "topk"])
def test_a_dictionary_through_a_rotation_is_the_same_function(settings):
    dictionary, x, turn = make(d_in=12, **settings).to(dtype=torch.float64), random(200, 12), rotation()
    forward = fit_map(x, x @ turn + 2)
    carried = carry_dictionary(dictionary, forward)
    y = x @ turn + 2
    assert torch.allclose(carried.encode(y), dictionary.encode(x), atol=1e-6)
    assert torch.allclose(carried.reconstruct(y), forward(dictionary.reconstruct(x)), atol=1e-6)
    assert torch.allclose(carried.W_dec.norm(dim=1), torch.ones(40, dtype=torch.float64))


@pytest.mark.parametrize("d_target", [7, 12, 20])
def test_a_carried_dictionary_is_back_encode_decode_forward(d_target):
    """For any map and way back, of any dimensions, also with decoder rows whose norms it changes."""
    dictionary, x = make(d_in=12).to(dtype=torch.float64), random(300, 12)
    y = x @ random(12, d_target, seed=1) + 0.3 * random(300, d_target, seed=2)
    forward, back = fit_map(x, y), fit_map(y, x)
    for way, given in ((back, back), (forward.inverse, None)):
        carried = carry_dictionary(dictionary, forward, given)
        expected = forward(dictionary.reconstruct(way(y)))
        assert torch.allclose(carried.reconstruct(y), expected, atol=1e-8)
        norms = (dictionary.W_dec @ forward.weight).norm(dim=1)
        assert torch.allclose(carried.encode(y), dictionary.encode(way(y)) * norms, atol=1e-8)
    assert carried.d_in == d_target


# ---------------------------------------------------------------------- in the model


@pytest.fixture(scope="module")
def earlier(model, token_rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "earlier"
    return harvest(model, token_rows, "blocks.0.hook_resid_post", path=path, dtype=torch.float32)


def in_place(dictionary, store):
    """A dictionary that records where its activations are from."""
    model = store.manifest["model"]
    info = {"kind": "relu", "model": model["name"], "hook_point": store.hook_point}
    info |= {f"model_{name}": model[name] for name in ("weights", "revision", "processing")}
    return replace(dictionary, info=info)


@pytest.fixture(scope="module")
def layers(earlier, store, model):
    dictionary, native = in_place(make(d_in=16), earlier), in_place(make(d_in=16, seed=1), store)
    return measure_maps(
        earlier, store, dictionary, native=native, model=model, ranks=[2], max_rows=3, batch_rows=2
    )


def apart(store):
    """Of the last 30% of the rows, those that share no document with a row before."""
    before = set(store.document[:15].flatten().tolist()) - {-1}
    return [row for row in range(15, 22) if not set(store.document[row].tolist()) & before]


def test_ce_degradation_is_that_of_the_model_run_by_hand(layers, earlier, store, model):
    names = ["affine", "rank 2", "mean", "random orthogonal", "identity"]
    assert layers.frame["map"].tolist() == names
    assert layers.frame["rank"].tolist() == [16, 2, 0, 16, 16]
    held = apart(store)
    rows = torch.tensor([held[i] for i in np.linspace(0, len(held) - 1, 3).round().astype(int)]).unique()
    excluded = (earlier.excluded | store.excluded)[rows]
    dictionary = in_place(make(d_in=16), earlier)

    def loss(replacement):
        total = []
        for row, kept in zip(rows.tolist(), excluded, strict=True):
            tokens = store.tokens[row : row + 1]
            x = capture(model, tokens, earlier.hook_point)

            def swap(y, x=x, kept=kept):
                return torch.where(kept[None, :, None], y, replacement(x, y))

            logits = logits_with_replacement(model, tokens, store.hook_point, swap)[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
            total.append(losses[~store.special[row, 1:]])
        return float(torch.cat(total).mean())

    original = loss(lambda x, y: y)
    for row in layers.frame.itertuples():
        expected = loss(lambda x, y, row=row: layers.maps[row.map](x)) - original
        assert row.ce_degradation == pytest.approx(expected, abs=1e-4)
    for row in layers.carried.itertuples():
        if row.map == "native":
            chosen = in_place(make(d_in=16, seed=1), store)
        elif row.back == "fitted":
            continue
        else:
            chosen = carry_dictionary(dictionary, layers.maps[row.map])
        expected = loss(lambda x, y, d=chosen: d.reconstruct(y[0])[None]) - original
        assert row.ce_degradation == pytest.approx(expected, abs=1e-4)


def test_fvu_and_l0_are_those_of_held_out_documents(layers, earlier, store):
    rows = apart(store)
    used = ~(earlier.excluded | store.excluded)
    positions = torch.cat([16 * r + used[r].nonzero()[:, 0] for r in rows])
    assert layers.n_held_out == len(positions)
    x, y = earlier.read(positions).double(), store.read(positions).double()
    variance = (y - y.mean(0)).square().sum()
    for row in layers.frame.itertuples():
        errors = (layers.maps[row.map](x) - y).square().sum(1)
        assert row.fvu == pytest.approx(float(errors.sum() / variance), rel=1e-4)
        # The error of a ratio over rows, from what is left of each row once the ratio is taken out.
        left = errors - row.fvu * (y - y.mean(0)).square().sum(1)
        by_row = [float(left[positions // 16 == r].sum()) for r in rows]
        n = len(rows)
        expected = n * np.std(by_row, ddof=1) / np.sqrt(n) / float(variance)
        assert row.fvu_error == pytest.approx(expected, rel=1e-3)
    native = layers.carried.set_index("map").loc["native"]
    dictionary = in_place(make(d_in=16, seed=1), store)
    assert native["l0"] == pytest.approx(float((dictionary.encode(y.float()) > 0).sum(1).double().mean()))
    assert set(layers.carried["back"]) == {"pseudoinverse", "fitted", ""}


def test_a_carried_dictionary_belongs_to_its_new_place(layers, earlier, store, model):
    carried = carry_dictionary(in_place(make(d_in=16), earlier), layers.maps["affine"])
    assert carried.hook_point == store.hook_point
    check_agreement(model=model, activations=store, dictionaries=[carried])
    with pytest.raises(ValueError, match="do not belong together"):
        check_agreement(activations=earlier, dictionaries=[carried])


def test_two_models_with_one_tokenizer(store, token_rows, gpt2_folder, tmp_path):
    other = load_model(gpt2_folder)
    second = harvest(
        other, token_rows, "blocks.1.hook_resid_post", path=tmp_path / "second", dtype=torch.float32
    )
    result = measure_maps(store, second, model=other, ranks=[1], max_rows=2)
    assert np.isfinite(result.frame["ce_degradation"]).all()
    assert result.maps["affine"].target["model"] != result.maps["affine"].source["model"]


def test_bad_input_gets_one_sentence(store, earlier, model, token_rows, tmp_path):
    x, y = random(N, 12), random(N, 5, seed=1)
    with pytest.raises(ValueError, match="of the same tokens, found"):
        fit_map(x, y[1:])
    with pytest.raises(ValueError, match="both be stores, or both tensors"):
        fit_map(store, x)
    with pytest.raises(ValueError, match="needs more than 13 tokens, found 13"):
        fit_map(x[:13], y[:13])
    with pytest.raises(ValueError, match="rank must be between 0 and 5"):
        fit_map(x, y, rank=6)
    with pytest.raises(ValueError, match="ranks must be at most 5"):
        measure_maps(x, y, ranks=[6])
    with pytest.raises(ValueError, match="source holds values that are not finite"):
        fit_map(x / 0, y)
    with pytest.raises(IndexError, match="positions must be between"):
        fit_map(x, y, positions=[N])
    with pytest.raises(ValueError, match="takes activations of dimension 12"):
        fit_map(x, y)(y)
    with pytest.raises(ValueError, match="needs stores with tokens"):
        measure_maps(x, y, ranks=[], model=model)
    with pytest.raises(ValueError, match="held_out must be above 0"):
        measure_maps(x, y, ranks=[], held_out=0)
    with pytest.raises(ValueError, match="do not belong together"):
        measure_maps(earlier, store, in_place(make(d_in=16), store), ranks=[])
    turned = replace(token_rows, tokens=token_rows.tokens.flip(0), document=token_rows.document.flip(0))
    other = harvest(model, turned, "blocks.0.hook_resid_post", path=tmp_path / "other", dtype=torch.float32)
    with pytest.raises(ValueError, match="must hold the same tokens"):
        fit_map(other, store)
    forward = fit_map(x, y)
    with pytest.raises(ValueError, match="needs a map from 16 dimensions"):
        carry_dictionary(make(d_in=16), forward)
    with pytest.raises(ValueError, match="normalises every row"):
        carry_dictionary(make(d_in=12, normalization="layer_norm"), forward)
    eye = torch.eye(12)
    with pytest.raises(ValueError, match="predicts another activation"):
        carry_dictionary(Transcoder.from_weights(eye, eye), forward)
