import pytest
import torch
from dictionaries import make, parameters

from saekit.analysis import insertion
from saekit.convert import as_jumprelu
from saekit.dictionary import Dictionary
from saekit.folding import Unfolded

D_IN, WIDTH, K = 12, 40, 5


@pytest.fixture(scope="module")
def topk() -> Dictionary:
    made = parameters(D_IN, WIDTH, seed=3)
    made["W_dec"] = torch.nn.functional.normalize(made["W_dec"], dim=1)
    made["threshold"] = None
    return Unfolded(**made, k=K, info={"kind": "topk", "seed": 3, "hook_point": "here"}).fold()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(900, D_IN, generator=torch.Generator().manual_seed(1)) * 2


def test_threshold_is_the_mean_of_the_least_kept_activation(topk, x) -> None:
    latents = topk.encode(x)
    least = torch.where(latents > 0, latents, torch.inf).min(1).values
    expected = float(least[least.isfinite()].double().mean())
    result = as_jumprelu(topk, x, batch_size=128)
    assert result.threshold == pytest.approx(expected, rel=1e-6)
    assert result.dictionary.k is None
    assert result.dictionary.threshold.tolist() == pytest.approx([expected] * WIDTH, rel=1e-6)
    assert result.dictionary.kind == "jumprelu"
    assert result.dictionary.info["converted_from"] == "topk"
    assert result.dictionary.hook_point == "here"


def test_reports_what_it_changed(topk, x) -> None:
    result = as_jumprelu(topk, x, batch_size=128)
    variance = (x.double() - x.double().mean(0)).square().sum()
    active = []
    for version, row in zip((topk, result.dictionary), result.frame.itertuples(), strict=True):
        latents = version.encode(x)
        active.append(latents > 0)
        assert row.l0 == pytest.approx(float((latents > 0).sum(1).double().mean()))
        error = (x - version.decode(latents)).double().square().sum()
        assert row.fvu == pytest.approx(float(error / variance), rel=1e-5)
        assert row.mse == pytest.approx(float(error) / len(x), rel=1e-5)
    before, after = active
    assert result.share_changed == pytest.approx(float((before ^ after).sum() / (before | after).sum()))
    assert 0 < result.share_changed < 1
    assert result.summary["l0_before"] == result.frame["l0"][0] != result.summary["l0_after"]


def test_the_result_can_be_moved(topk, x) -> None:
    converted = as_jumprelu(topk, x).dictionary
    assert insertion(converted, converted, x).n_tokens == len(x)


def test_independent_latents_need_no_conversion(x) -> None:
    with pytest.raises(ValueError, match=r"relu 40 \(seed 0\) needs no conversion"):
        as_jumprelu(make(D_IN, WIDTH), x)


def brute_force_top(h, n):
    """The n largest positive entries of a whole batch."""
    kept = torch.zeros_like(h).flatten()
    order = h.clamp(min=0).flatten().topk(n).indices
    kept[order] = h.flatten()[order]
    return kept.view_as(h)


def test_batchtopk_without_a_threshold_gets_one(x) -> None:
    """Decoder rows of unequal norm compete in their own units, by batches of the size asked for."""
    made = parameters(D_IN, WIDTH, seed=3) | {"threshold": None}
    sae = Unfolded(**made, batch_k=K, info={"kind": "batchtopk"})
    result = as_jumprelu(sae, x, batch_size=300)
    h = x.double() @ made["W_enc"] + made["b_enc"]
    batches = [brute_force_top(part, K * 300) for part in h.split(300)]
    expected = sum(float(part[part > 0].min()) for part in batches) / 3
    assert result.threshold == pytest.approx(expected, rel=1e-5)
    norms = made["W_dec"].norm(dim=1)
    torch.testing.assert_close(result.dictionary.threshold.double(), expected * norms, rtol=1e-5, atol=0)
    assert result.frame["l0"][0] == K
    latents = torch.cat(batches)
    error = (x.double() - latents @ made["W_dec"] - made["b_dec"]).square().sum()
    assert result.frame["mse"][0] == pytest.approx(float(error) / len(x), rel=1e-5)
    after = result.dictionary.encode(x) > 0
    assert result.share_changed == pytest.approx(
        float(((latents > 0) ^ after).sum() / ((latents > 0) | after).sum()), abs=1e-3
    )
    assert result.dictionary.info["converted_from"] == "batchtopk"


@pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm"])
@pytest.mark.parametrize("k", [None, K])
def test_rows_of_one_scale_lose_nothing_by_a_constant_one(x, normalization, k) -> None:
    """Where every row has the same centre and factor, the constant one is exact."""
    made = parameters(D_IN, WIDTH, seed=3) | {"k": k, "normalization": normalization}
    if k is not None:
        made["threshold"] = None
    sae = Unfolded(**made, info={"kind": "topk" if k else "jumprelu"}).fold()
    if normalization == "layer_norm":
        same = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) * 3.0 + 0.7
    else:
        same = x / x.norm(dim=1, keepdim=True) * 3.0
    result = as_jumprelu(sae, same, batch_size=256)
    converted = result.dictionary
    assert converted.normalization is None
    assert (result.threshold is None) == (k is None)
    if k is None:
        assert result.share_changed <= 1e-3
        torch.testing.assert_close(converted.reconstruct(same), sae.reconstruct(same), rtol=1e-4, atol=1e-4)
    assert result.frame["fvu"][0] == pytest.approx(
        float((same - sae.reconstruct(same)).square().sum() / (same - same.mean(0)).square().sum()), rel=1e-4
    )
    assert insertion(converted, converted, same).n_tokens == len(x)


def test_rows_of_many_scales_are_converted_at_a_price_that_is_reported(x) -> None:
    made = parameters(D_IN, WIDTH, seed=3) | {"normalization": "layer_norm"}
    sae = Unfolded(**made, info={"kind": "jumprelu"}).fold()
    with pytest.raises(ValueError, match="measures each row in its own unit"):
        insertion(sae, sae, x)
    result = as_jumprelu(sae, x)
    scales = sae.row_scale(x)
    mean_scale = float(scales.factor.double().mean())
    torch.testing.assert_close(result.dictionary.threshold, sae.threshold * mean_scale, rtol=1e-5, atol=0)
    assert result.share_changed > 0.01
