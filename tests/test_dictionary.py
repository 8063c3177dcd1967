import contextlib
import json
import os
import random
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from dictionaries import make, parameters
from safetensors.torch import load_file, save_file

from saekit.analysis import best_matches, collect, match_latents, stitch
from saekit.dictionary import Dictionary
from saekit.metrics import evaluate


def test_encode_of_a_row_does_not_depend_on_the_batch():
    dictionary = make(d_in=64, width=500)
    x = torch.randn(300, 64)
    together = dictionary.encode(x)
    for i in range(0, 300, 7):
        alone = dictionary.encode(x[i : i + 1])[0]
        torch.testing.assert_close(alone, together[i], rtol=1e-6, atol=1e-6 * float(together[i].norm()))
        h = dictionary.pre_activations(x[i : i + 1])[0]
        clear = (h - dictionary.threshold).abs() > 1e-5
        assert torch.equal((alone > 0)[clear], (together[i] > 0)[clear])


@pytest.mark.parametrize("k", [None, 5])
def test_sparse_and_dense_paths_agree(k, monkeypatch):
    dictionary = make()
    dictionary = Dictionary(**dictionary.tensors(), k=k)
    monkeypatch.setattr("saekit.dictionary.CHUNK_ELEMENTS", 40 * 7)  # several chunks
    x = torch.randn(50, 12)
    dense, sparse = dictionary.encode(x), dictionary.encode_sparse(x)
    assert torch.equal(sparse.dense() > 0, dense > 0)
    torch.testing.assert_close(sparse.dense(), dense, rtol=1e-5, atol=1e-6)  # chunks round differently
    assert torch.equal(sparse.counts, (dense > 0).sum(1))
    assert k is None or sparse.counts.max() <= k
    torch.testing.assert_close(dictionary.decode(sparse), dense @ dictionary.W_dec + dictionary.b_dec)


def test_threshold_is_strict():
    eye = torch.eye(2)
    dictionary = Dictionary(eye, torch.zeros(2), eye, torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert dictionary.encode(torch.tensor([[1.0, 0.0], [1.5, 2.0]])).tolist() == [[0.0, 0.0], [1.5, 2.0]]


def test_no_rows_at_all():
    dictionary = make()
    assert len(dictionary.encode_sparse(torch.zeros(0, 12))) == 0
    assert dictionary.reconstruct(torch.zeros(0, 12)).shape == (0, 12)


def test_gather_moves_latents_with_thresholds():
    dictionary = make()
    x = torch.randn(20, 12)
    index = [7, 3, 31]
    torch.testing.assert_close(dictionary.gather(index).encode(x), dictionary.encode(x)[:, index])
    competing = Dictionary(**dictionary.tensors(), k=4)
    with pytest.raises(ValueError, match=r"saekit\.as_jumprelu"):
        competing.gather(index)


@pytest.mark.parametrize("half", [False, True])
def test_a_dictionary_without_latents_reconstructs_its_bias(tmp_path, half):
    dictionary = make()
    empty = dictionary.gather(torch.zeros(40, dtype=torch.bool))
    x = torch.randn(200, 12)
    assert empty.encode(x).shape == empty.encode_sparse(x).dense().shape == (200, 0)
    assert torch.equal(empty.reconstruct(x), dictionary.b_dec.expand(200, 12))
    found = evaluate(empty, x)
    expected = (x.double() - dictionary.b_dec.double()).square().sum(dim=1).mean()
    assert found.mse == pytest.approx(float(expected), rel=1e-5)
    assert found.l0 == 0
    assert Dictionary.load(empty.save(tmp_path, half=half)).content_hash == empty.content_hash
    assert collect(empty, x).summary["median_density"] is None
    for compare in (best_matches, lambda small, large: stitch(small, large, x), match_latents):
        with pytest.raises(ValueError, match="holds no latents"):
            compare(empty, dictionary)


def test_save_and_load_keep_every_bit(tmp_path):
    dictionary = make()
    loaded = Dictionary.load(dictionary.save(tmp_path / "d"))
    assert all(torch.equal(loaded.tensors()[n], t) for n, t in dictionary.tensors().items())
    assert (loaded.content_hash, loaded.info, loaded.k) == (dictionary.content_hash, dictionary.info, None)


@pytest.mark.parametrize("over_an_old_one", [False, True])
def test_saving_leaves_the_files_of_others(tmp_path, over_an_old_one):
    first, second = make(), make(seed=1)
    others = {name: name.encode() for name in ("weights_of_my_model.safetensors", "weights.safetensors.bak")}
    if over_an_old_one:
        first.save(tmp_path)
    else:
        others["weights.safetensors"] = b"somebody else's"
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    for dictionary in (first, second, second, first):
        assert Dictionary.load(dictionary.save(tmp_path)).content_hash == dictionary.content_hash
        own = {file.name for file in tmp_path.iterdir()} - others.keys()
        assert "dictionary.json" in own
        assert len(own) == 2  # the old weights are gone
        assert {name: (tmp_path / name).read_bytes() for name in others} == others


def test_load_refuses_damage(tmp_path):
    folder = make().save(tmp_path / "d")
    weights = folder / "weights.safetensors"
    whole = weights.read_bytes()
    with pytest.raises(FileNotFoundError, match="holds no dictionary"):
        Dictionary.load(tmp_path)
    weights.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
        Dictionary.load(folder)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="hash"):
        Dictionary.load(folder)
    weights.write_bytes(whole)
    save_file(load_file(weights) | {"extra": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="must hold exactly"):
        Dictionary.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_dec": torch.zeros(12, 40)}, r"W_dec must have shape \[40, 12\]"),
        ({"b_enc": torch.zeros(39)}, "b_enc"),
        ({"threshold": torch.full((40,), -1.0)}, "at least 0"),
        ({"b_dec": torch.full((12,), torch.nan)}, "b_dec holds values that are not finite"),
        ({"k": 41}, "k must be between"),
    ],
)
def test_bad_parameters_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Dictionary(**make().tensors() | change)


def test_wrong_width_of_activations_is_named():
    with pytest.raises(ValueError, match=r"\[batch, 12\], found \[3, 13\]"):
        make().encode(torch.zeros(3, 13))


@pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm"])
def test_rows_normalised_one_by_one_are_evaluated_as_they_are(normalization):
    """Latents are those of the normalised row; the reconstruction is back in the row's own scale."""
    plain = make()
    dictionary = replace(plain, normalization=normalization)
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) * 5 + 3
    if normalization == "layer_norm":
        centre, factor = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        z = (x - centre) / (factor + 1e-5)
    else:
        centre, factor = torch.zeros(200, 1), x.norm(dim=1, keepdim=True) / 12**0.5
        z = x / factor
    latents, x_hat = plain.encode(z), plain.reconstruct(z) * factor + centre
    torch.testing.assert_close(dictionary.encode(x), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dictionary.reconstruct(x), x_hat, rtol=1e-5, atol=1e-4)
    decoded = dictionary.decode(dictionary.encode(x), dictionary.row_scale(x))
    torch.testing.assert_close(decoded, x_hat, rtol=1e-5, atol=1e-4)
    expected = (x - x_hat).double().square().sum() / (x - x.mean(0)).double().square().sum()
    assert evaluate(dictionary, x).fvu == pytest.approx(float(expected), rel=1e-4)


def test_a_normalised_row_is_not_decoded_without_its_scale():
    dictionary = replace(make(), normalization="layer_norm")
    with pytest.raises(ValueError, match=r"normalises every row \(layer_norm\).*row_scale"):
        dictionary.decode(torch.zeros(3, 40))
    with pytest.raises(ValueError, match=r"its own unit.*as_jumprelu"):
        dictionary.gather([0])
    with pytest.raises(ValueError, match="normalization must be one of 'layer_norm'"):
        replace(make(), normalization="batch_norm")


def test_topk_latents_compete_by_their_ranks():
    generator = torch.Generator().manual_seed(1)
    scale = torch.rand(40, generator=generator) + 0.1
    dictionary = replace(make(), k=3, rank_scale=scale)
    x = torch.randn(100, 12, generator=generator) * 3
    h = dictionary.pre_activations(x)
    active = h > dictionary.threshold
    for row in range(100):
        kept = sorted(active[row].nonzero()[:, 0].tolist(), key=lambda i: -float(h[row, i] * scale[i]))[:3]
        assert set(dictionary.encode(x[row : row + 1])[0].nonzero()[:, 0].tolist()) == set(kept)
    with pytest.raises(ValueError, match=r"rank_scale must have shape \[40\]"):
        replace(make(), k=3, rank_scale=scale[:5])


# ------------------------------------------------------------------------------ what a notebook hands over


def test_arrays_gradients_and_numbers_are_normalised_when_given():
    tensors = make().tensors()
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    info = {"width": np.int64(40), "seed": torch.tensor(3), "shape": (1, 2)}
    dictionary = Dictionary(**arrays, k=np.int64(5), info=info)
    assert type(dictionary.k) is int
    assert dictionary.info == {"width": 40, "seed": 3, "shape": [1, 2]}
    assert type(dictionary.info["width"]) is int
    assert dictionary.W_enc.dtype == torch.float32
    wanting = Dictionary(**{name: tensor.clone().requires_grad_() for name, tensor in tensors.items()})
    assert not any(tensor.requires_grad for tensor in wanting.tensors().values())
    mixed = Dictionary(**tensors | {"b_enc": tensors["b_enc"].double()})
    assert {tensor.dtype for tensor in mixed.tensors().values()} == {torch.float64}
    half = Dictionary(**{name: tensor.bfloat16() for name, tensor in tensors.items()})
    assert torch.equal(half.W_enc, tensors["W_enc"].bfloat16().float())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 2.5}, TypeError, r"k must be a whole number, found 2\.5"),
        ({"W_enc": torch.ones(12, 40, dtype=torch.int64)}, TypeError, r"W_enc must be .*found torch\.int64"),
        ({"b_enc": torch.ones(40).to_sparse()}, TypeError, r"b_enc must be a dense .*sparse"),
        ({"b_enc": torch.ones(40, device="meta")}, TypeError, "b_enc must be .*on meta"),
        ({"b_enc": torch.ones(40).to(torch.float8_e4m3fn)}, TypeError, "b_enc must be .*float8"),
        ({"b_enc": "biases"}, TypeError, "b_enc must be a tensor or an array, found str"),
        ({"threshold": torch.full((40,), torch.nan)}, ValueError, "Thresholds must be at least 0"),
        ({"info": [1]}, TypeError, "info must be a mapping, found list"),
        ({"info": {"made by": object()}}, TypeError, r"info\['made by'\] must be a value that JSON can hold"),
    ],
)
def test_what_is_no_tensor_or_setting_is_named(change, error, message):
    with pytest.raises(error, match=message):
        Dictionary(**{**make().tensors(), **change})


def test_arrays_are_copied_whatever_their_strides():
    tensors = make().tensors()
    arrays = {name: np.flip(np.flip(tensor.numpy()).copy()) for name, tensor in tensors.items()}
    assert all(min(array.strides) < 0 for array in arrays.values())
    dictionary = Dictionary(**arrays)
    found = dictionary.content_hash
    for array in arrays.values():
        array[...] = 0
    assert all(torch.equal(dictionary.tensors()[name], tensor) for name, tensor in tensors.items())
    assert dictionary.content_hash == found
    frames = {name: pd.DataFrame(tensor.numpy()) for name, tensor in tensors.items() if tensor.ndim == 2}
    assert torch.equal(Dictionary(**tensors | frames).W_dec, tensors["W_dec"])
    assert Dictionary(**tensors | {"b_enc": tensors["b_enc"].tolist()}).W_enc.dtype == torch.float32


def test_raw_tensors_keep_their_precision():
    raw = parameters()  # float64
    given = {"W_enc": raw["W_enc"], "W_dec": raw["W_dec"], "b_enc": raw["b_enc"], "b_dec": raw["b_dec"]}
    x = torch.randn(50, 12, dtype=torch.float64)
    for kind in (torch.float64, torch.float32):
        dictionary = Dictionary.from_weights(**{name: tensor.to(kind) for name, tensor in given.items()})
        assert {tensor.dtype for tensor in dictionary.tensors().values()} == {kind}
        expected = (x @ raw["W_enc"] + raw["b_enc"]).relu() @ raw["W_dec"] + raw["b_dec"]
        error = (dictionary.reconstruct(x) - expected).abs().max() / expected.abs().max()
        assert error < (1e-14 if kind == torch.float64 else 1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"subtract_b_dec": "no"}, TypeError, "subtract_b_dec must be True or False, found 'no'"),
        ({"threshold": -0.5}, ValueError, "threshold must be at least 0"),
        ({"threshold": np.full(40, -0.5)}, ValueError, "Thresholds must be at least 0"),
        ({"threshold": "high"}, TypeError, "threshold must be a number"),
        ({"info": [1]}, TypeError, "info must be a mapping, found list"),
    ],
)
def test_settings_of_raw_tensors_are_checked(change, error, message):
    weights = {name: tensor for name, tensor in parameters().items() if name != "threshold"}
    with pytest.raises(error, match=message):
        Dictionary.from_weights(**weights | change)


def test_other_dtypes_are_refused():
    assert make().to(dtype=torch.float64).W_enc.dtype == torch.float64
    with pytest.raises(ValueError, match=r"computes in float32 or float64, found torch\.bfloat16"):
        make().to(dtype=torch.bfloat16)


def test_activations_may_be_arrays_and_are_finite():
    dictionary = make()
    x = torch.randn(5, 12)
    assert torch.equal(dictionary.encode(x.double().numpy()), dictionary.encode(x))
    assert torch.equal(dictionary.reconstruct(x.numpy()), dictionary.reconstruct(x))
    assert torch.equal(dictionary.encode_sparse(x.numpy()).dense(), dictionary.encode_sparse(x).dense())
    for value in (torch.nan, torch.inf, -torch.inf):
        bad = x.clone()
        bad[3, 2] = value
        for use in (dictionary.encode, dictionary.encode_sparse, dictionary.reconstruct):
            with pytest.raises(ValueError, match="The activations hold values that are not finite"):
                use(bad)
        latents = dictionary.encode(x)
        latents[0, 0] = value
        with pytest.raises(ValueError, match="The latents hold values that are not finite"):
            dictionary.decode(latents)
    with pytest.raises(ValueError, match="not finite"):  # beyond single precision
        dictionary.encode(torch.full((1, 12), 1e300, dtype=torch.float64))


def test_tensors_that_share_memory_are_saved(tmp_path):
    decoder = torch.nn.functional.normalize(torch.randn(40, 12), dim=1)
    zero = torch.zeros(40)
    tied = Dictionary(decoder.T, zero, decoder, torch.zeros(12), zero)
    again = Dictionary.load(tied.save(tmp_path))
    assert torch.equal(again.W_enc, decoder.T)
    assert again.content_hash == tied.content_hash


def test_a_loaded_dictionary_outlives_its_file(tmp_path):
    dictionary = make(d_in=64, width=500)
    loaded = Dictionary.load(dictionary.save(tmp_path))
    os.truncate(tmp_path / "weights.safetensors", 10)
    assert torch.equal(loaded.W_enc, dictionary.W_enc)


@pytest.mark.parametrize("change", [{"info": 3}, {"hash": None}, {"weights": "../x"}, {"k": 99}, {"k": "3"}])
def test_a_header_that_is_wrong_is_an_error_that_names_the_file(tmp_path, change):
    file = make().save(tmp_path) / "dictionary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        Dictionary.load(tmp_path)


class Stop(BaseException):
    """An interrupt."""


@pytest.mark.parametrize("point", range(20))
def test_an_interrupt_at_any_moment_leaves_the_old_or_the_new_dictionary(tmp_path, monkeypatch, point):
    """Every call into the file system is a place to stop at; twenty of them at random."""
    old, new = make(seed=1), make(seed=2)
    folder = old.save(tmp_path / "folder")
    copy = shutil.copytree(folder, tmp_path / "copy")
    calls, stop_at = 0, None
    originals = {name: getattr(os, name) for name in ("open", "close", "fsync", "replace", "unlink", "mkdir")}

    def counted(name):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise Stop
            return originals[name](*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for name in originals:
            patched.setattr(os, name, counted(name))
        new.save(copy)
        stop_at, calls = random.Random(point).randint(1, calls), 0
        with contextlib.suppress(Stop):
            new.save(folder)
    assert Dictionary.load(folder).content_hash in (old.content_hash, new.content_hash)
    assert Dictionary.load(new.save(folder)).content_hash == new.content_hash
    assert sorted(file.suffix for file in folder.iterdir() if file.suffix != ".tmp") == [
        ".json",
        ".safetensors",
    ]


@pytest.mark.parametrize(("name", "found"), [("d_in", 12), ("width", 40)])
def test_a_header_of_other_sizes_than_the_tensors_is_refused(tmp_path, name, found):
    header = json.loads((make().save(tmp_path) / "dictionary.json").read_text())
    (tmp_path / "dictionary.json").write_text(json.dumps(header | {name: 7}))
    with pytest.raises(ValueError, match=f"gives {name} 7, the tensors {found}"):
        Dictionary.load(tmp_path)


# ------------------------------------------------------------------------------ raw tensors


def raw(seed=0, **change):
    p = {name: tensor.float() for name, tensor in parameters(seed=seed).items()} | change
    return p.pop("W_enc"), p.pop("W_dec"), p


@pytest.mark.parametrize("enc", [False, True])
@pytest.mark.parametrize("dec", [False, True])
@pytest.mark.parametrize("subtract", [False, True])
def test_raw_tensors_in_any_orientation_and_norm_are_the_same_function(enc, dec, subtract):
    W_enc, W_dec, p = raw()
    x = torch.randn(100, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    h = (x - p["b_dec"] * subtract) @ W_enc.double() + p["b_enc"]
    latents = torch.where(h > p["threshold"], h, 0.0)
    found = Dictionary.from_weights(
        W_enc.T if enc else W_enc,
        (W_dec.T if dec else W_dec).numpy(),
        **p,
        subtract_b_dec=subtract,
        info={"seed": 3},
    )
    assert (found.kind, found.seed, found.width, found.d_in) == ("jumprelu", 3, 40, 12)
    double = found.to(dtype=torch.float64)
    clear = ((h - p["threshold"]).abs() > 1e-4).all(dim=1)
    assert clear.sum() > 80
    assert torch.equal((double.encode(x) > 0)[clear], (latents > 0)[clear])
    expected = latents @ W_dec.double() + p["b_dec"]
    torch.testing.assert_close(double.reconstruct(x)[clear], expected[clear], rtol=1e-5, atol=1e-4)


def test_orientation_is_inferred_only_where_it_is_clear():
    W_enc, W_dec, p = raw()
    for told in ({"b_enc": p["b_enc"]}, {"b_dec": p["b_dec"]}, {"threshold": p["threshold"]}, {"d_in": 12}):
        assert Dictionary.from_weights(W_enc.T, W_dec.T, **told).d_in == 12
    assert Dictionary.from_weights(W_enc, W_dec, enc_layout="d_in, d_sae").width == 40
    assert Dictionary.from_weights(W_enc, W_dec, enc_layout="d_sae, d_in").width == 12
    with pytest.raises(ValueError, match=r"shape \[12, 40\], and nothing tells which .*give d_in="):
        Dictionary.from_weights(W_enc, W_dec)
    with pytest.raises(ValueError, match="b_enc, d_in and layouts disagree"):
        Dictionary.from_weights(W_enc, W_dec, b_enc=p["b_enc"], d_in=40)
    with pytest.raises(ValueError, match="b_dec gives a size of 13"):
        Dictionary.from_weights(W_enc, W_dec, b_dec=torch.zeros(13))
    with pytest.raises(ValueError, match=r"W_dec \[30, 12\]: the shapes have no d_sae in common"):
        Dictionary.from_weights(W_enc, W_dec[:30], d_in=12)


def test_square_matrices_need_their_layout():
    W = torch.randn(12, 12)
    with pytest.raises(ValueError, match=r'W_enc is square .* give enc_layout="d_in, d_sae"'):
        Dictionary.from_weights(W, W)
    with pytest.raises(ValueError, match=r"W_dec is square .* give dec_layout="):
        Dictionary.from_weights(W, W, enc_layout="d_in, d_sae")
    with pytest.raises(ValueError, match="enc_layout must be one of 'd_in, d_sae'"):
        Dictionary.from_weights(W, W, enc_layout="rows", dec_layout="d_in, d_sae")
    found = Dictionary.from_weights(W, W, enc_layout="d_sae, d_in", dec_layout="d_in, d_sae")
    x = torch.randn(7, 12)
    expected = (x @ W.T).relu() @ W.T
    torch.testing.assert_close(found.reconstruct(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("info", "given", "message"),
    [
        ({"kind": "topk"}, {}, "give k="),
        ({"kind": "topk"}, {"threshold": 0.5}, "give k="),
        ({"kind": "jumprelu"}, {}, "give threshold="),
        ({"kind": "batchtopk"}, {}, "give threshold="),
        *(
            ({key: "blocks.0.hook_resid_post"}, {}, f"{key!r} that saekit reads: call it 'hook_point'")
            for key in ("hook", "hookpoint", "hook_name", "hook-point", "hook_pont", "HookPoint")
        ),
    ],
)
def test_a_record_that_contradicts_the_weights_is_refused(info, given, message):
    W_enc, W_dec, _ = raw()
    with pytest.raises(ValueError, match=message):
        Dictionary.from_weights(W_enc, W_dec, d_in=12, info=info, **given)


def test_records_of_all_kinds_and_of_other_things_are_kept():
    W_enc, W_dec, _ = raw()
    for info, given in (
        ({"kind": "topk"}, {"k": 4}),
        ({"kind": "batchtopk"}, {"threshold": 0.5}),
        ({"kind": "gated", "hook_point": "blocks.0.hook_resid_post", "hook": 3, "point": 1}, {}),
    ):
        assert Dictionary.from_weights(W_enc, W_dec, d_in=12, info=info, **given).info == info


@pytest.mark.parametrize(
    ("W_dec", "missing"), [((16, 40), "d_sae"), ((40, 16), "d_sae"), ((5, 6), "d_in and d_sae")]
)
def test_matrices_that_do_not_fit_each_other_are_named(W_dec, missing):
    shapes = re.escape(f"W_enc has shape [48, 16] and W_dec {list(W_dec)}")
    message = f"{shapes}: the shapes have no {missing} in common"
    for options in ({}, {"d_in": 16}):
        with pytest.raises(ValueError, match=message):
            Dictionary.from_weights(torch.ones(48, 16), torch.ones(W_dec), **options)
    with pytest.raises(ValueError, match="no d_in in common"):
        Dictionary.from_weights(torch.ones(16, 48), torch.ones(48, 12), b_enc=torch.ones(48))


def test_raw_topk_tensors_and_a_common_threshold():
    W_enc, W_dec, p = raw()
    x = torch.randn(20, 12)
    found = Dictionary.from_weights(W_enc, W_dec, b_enc=p["b_enc"], k=np.int64(4))
    h = (x @ W_enc + p["b_enc"]).relu()
    kept = torch.where(h >= h.sort(dim=1, descending=True).values[:, 3:4], h, 0.0)
    torch.testing.assert_close(found.reconstruct(x), kept @ W_dec, rtol=1e-4, atol=1e-4)
    assert found.kind == "topk"
    common = Dictionary.from_weights(W_enc, W_dec, b_enc=p["b_enc"], threshold=0.5)
    torch.testing.assert_close(common.threshold, 0.5 * W_dec.norm(dim=1))
    assert Dictionary.from_weights(W_enc, W_dec, d_in=12).kind == "relu"
