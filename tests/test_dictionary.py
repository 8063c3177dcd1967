from dataclasses import replace

import pytest
import torch
from dictionaries import make
from safetensors.torch import load_file, save_file

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


def test_save_and_load_keep_every_bit(tmp_path):
    dictionary = make()
    loaded = Dictionary.load(dictionary.save(tmp_path / "d"))
    assert all(torch.equal(loaded.tensors()[n], t) for n, t in dictionary.tensors().items())
    assert (loaded.content_hash, loaded.info, loaded.k) == (dictionary.content_hash, dictionary.info, None)


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
    with pytest.raises(ValueError, match=r"unit of its own.*as_jumprelu"):
        dictionary.gather([0])
    with pytest.raises(ValueError, match="normalization must be None or one of layer_norm"):
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
