import pytest
import torch
from dictionaries import make

from saekit.dictionary import Dictionary
from saekit.metrics import evaluate
from saekit.moments import Moments, fvu


@pytest.fixture
def x():
    """Activations with a mean far from zero, where a variance about zero would be wrong."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(500, 12, generator=generator) * torch.linspace(0.1, 4, 12) + 50


def silent(b_dec):
    """A dictionary whose latents never fire, so that it predicts `b_dec`."""
    d_in = len(b_dec)
    return Dictionary(
        torch.zeros(d_in, 3), torch.zeros(3), torch.eye(3, d_in), b_dec, torch.zeros(3), info={"kind": "relu"}
    )


def test_predicting_the_mean_has_fvu_one(x):
    result = evaluate(silent(x.double().mean(0).float()), x)
    assert result.fvu == pytest.approx(1, rel=1e-5)
    assert result.l0 == 0
    assert result.dead_fraction == 1


def test_a_perfect_reconstruction_has_fvu_zero(x):
    eye = torch.eye(12)
    perfect = Dictionary(eye, torch.zeros(12), eye, torch.zeros(12), torch.zeros(12))
    positive = x.abs()
    result = evaluate(perfect, positive)
    assert result.fvu == 0
    assert result.l0 == pytest.approx(float((positive > 0).sum(1).double().mean()))


def test_a_constant_offset_is_an_error(x):
    """Explained variance of the residual about its own mean would call this perfect."""
    eye = torch.eye(12)
    shifted = Dictionary(eye, torch.zeros(12), eye, torch.full((12,), 3.0), torch.zeros(12))
    positive = x.abs().double()
    expected = len(x) * 12 * 9.0 / float((positive - positive.mean(0)).square().sum())
    assert evaluate(shifted, positive.float()).fvu == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 500, 4096])
def test_evaluate_equals_a_dense_float64_computation(x, batch_size):
    x = x - 50
    dictionary = make(seed=3)
    wide = dictionary.to(dtype=torch.float64)
    latents = wide.encode(x.double())
    error = (x.double() - wide.decode(latents)).square().sum()
    result = evaluate(dictionary, x, batch_size=batch_size)
    assert result.mse == pytest.approx(float(error) / 500, rel=1e-5)
    assert result.fvu == pytest.approx(
        float(error / (x.double() - x.double().mean(0)).square().sum()), rel=1e-5
    )
    assert result.l0 == pytest.approx(float((latents > 0).sum(1).double().mean()))
    torch.testing.assert_close(result.density, (latents > 0).double().mean(0))
    assert result.frame["dead"].mean() == result.dead_fraction


def test_moments_do_not_cancel_far_from_zero():
    x = torch.randn(1000, 3, dtype=torch.float64) + 1e8
    moments = Moments(3)
    for batch in x.split(33):
        moments.update(batch)
    torch.testing.assert_close(moments.mean, x.mean(0))
    assert moments.total_variance == pytest.approx(float((x - x.mean(0)).square().sum()), rel=1e-6)


def test_activations_that_cannot_be_evaluated(x):
    with pytest.raises(ValueError, match="do not vary"):
        fvu(1.0, 0.0)
    with pytest.raises(ValueError, match="no activations"):
        evaluate(make(), x[:0])


def test_scaling_the_latents_by_the_inverse_bias_lowers_the_error_most():
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(2)).double().float() + 1
    dictionary = make(12, 30)
    found = evaluate(dictionary, x)
    z = (dictionary.reconstruct(x) - dictionary.b_dec).double()
    target = (x - dictionary.b_dec).double()
    (factor,) = (
        torch.linalg.lstsq(z.flatten()[:, None], target.flatten()[:, None]).solution.flatten().tolist()
    )
    assert 1 / found.reconstruction_bias == pytest.approx(factor, rel=1e-5)


def test_a_perfect_reconstruction_at_half_size_has_bias_one_half():
    rows, zero = torch.eye(8), torch.zeros(8)
    half = Dictionary(0.5 * rows, zero, rows, zero, zero, info={"kind": "relu", "seed": 0})
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(2)).abs()
    assert evaluate(half, x).reconstruction_bias == pytest.approx(0.5)


def test_rows_of_a_tensor_are_its_activations():
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(2))
    dictionary = make(12, 30)
    found = evaluate(dictionary, x)
    expected = (x - dictionary.reconstruct(x)).double().square().sum(1)
    torch.testing.assert_close(found.row_errors, expected, rtol=1e-5, atol=1e-5)
    assert (found.row_tokens == 1).all()
