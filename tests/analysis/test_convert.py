import pytest
import torch
from dictionaries import make, parameters

from saekit.analysis import as_jumprelu, insertion
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
