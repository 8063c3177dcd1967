"""Fingerprints and substitution in loss against plain Hugging Face forward passes with hooks of our own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dictionaries import make
from transformers import AutoModelForCausalLM

from saekit.agreement import MismatchError
from saekit.analysis.uniqueness.effects import measure_effects
from saekit.analysis.uniqueness.matching import match_latents
from saekit.dictionary import Dictionary


def pair(store) -> tuple[Dictionary, Dictionary]:
    """Two runs whose latents fire on some of the store's tokens, half of them in the same directions."""
    found = []
    for seed in (0, 1):
        made = make(d_in=16, width=24)
        noise = torch.randn(24, 16, generator=torch.Generator().manual_seed(seed))
        noise[:12] *= 0.05
        rows = torch.nn.functional.normalize(made.W_dec + noise, dim=1)
        h = store.read(store.positions) @ rows.T
        bias = -h.quantile(0.9, dim=0)
        info = {"kind": "relu", "seed": seed, "hook_point": store.hook_point}
        found.append(Dictionary(rows.T.contiguous(), bias, rows, torch.zeros(16), torch.zeros(24), info=info))
    return found[0], found[1]


@pytest.fixture(scope="module")
def hf_model(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder).eval()


def losses(hf_model, store, row, change) -> np.ndarray:
    """Loss at every target of a row, with something added to the activations, in double precision."""

    def hook(_module, _inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        added = torch.where(store.excluded[row][:, None], 0.0, change(x[0]))
        changed = x + added[None]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = hf_model.model.layers[1].register_forward_hook(hook)
    try:
        with torch.no_grad():
            log_p = hf_model(store.tokens[row : row + 1]).logits[0].double().log_softmax(-1)
    finally:
        handle.remove()
    targets = store.tokens[row, 1:].long()
    found = -log_p[:-1].gather(1, targets[:, None])[:, 0]
    return found[~store.special[row, 1:]].numpy()


def part(dictionary, latent):
    return lambda x: dictionary.encode(x)[:, [latent]] * dictionary.W_dec[latent]


@pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")
def test_effects_equal_plain_forward_passes(model, hf_model, store) -> None:
    a, b = pair(store)
    matching = match_latents(a, b, activations=store)
    # All rows on which either fires, so that the test need not know which were drawn.
    result = measure_effects(model, a, b, matching, store, n_latents=2, n_rows=store.n_rows, batch_rows=7)
    assert len(result.frame) == 4
    assert (result.frame["status"] == "shared").sum() == 2
    codes = [d.encode(store.read(slice(None))).view(store.n_rows, -1, 24) > 0 for d in (a, b)]
    for row in result.frame.itertuples():
        own, match, control = part(a, row.latent), part(b, row.match), part(b, row.control)
        rows = [
            r
            for code, latent in ((codes[0], row.latent), (codes[1], row.control))
            for r in np.flatnonzero((code[:, :, latent] & ~store.excluded).any(1))
        ]
        before = [losses(hf_model, store, r, torch.zeros_like) for r in rows]

        def profile(change, rows=rows, before=before):
            return np.concatenate(
                [losses(hf_model, store, r, change) - b for r, b in zip(rows, before, strict=True)]
            )

        ablated = profile(lambda x, own=own: -own(x))
        assert row.n_targets == len(ablated)
        assert row.ablated == pytest.approx(np.abs(ablated).mean(), abs=1e-5)
        swapped = profile(lambda x, own=own, match=match: match(x) - own(x))
        assert row.substituted == pytest.approx(np.abs(swapped).mean(), abs=1e-5)
        replaced = profile(lambda x, own=own, control=control: control(x) - own(x))
        assert row.substituted_control == pytest.approx(np.abs(replaced).mean(), abs=1e-5)
        for found, other in ((row.correlation, match), (row.correlation_control, control)):
            expected = np.corrcoef(ablated, profile(lambda x, other=other: -other(x)))[0, 1]
            assert found == pytest.approx(expected, abs=2e-3)


@pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")
def test_a_copy_has_the_same_effects(model, store) -> None:
    a, _ = pair(store)
    copy = replace(a.gather(torch.arange(23, -1, -1)), info=a.info | {"seed": 1})
    matching = match_latents(a, copy, activations=store)
    result = measure_effects(model, a, copy, matching, store, n_latents=4)
    np.testing.assert_allclose(result.frame["correlation"], 1, atol=1e-3)
    assert result.summary["quality_shared"] == pytest.approx(1, abs=1e-3)
    assert result.frame["correlation_control"].abs().median() < 0.9
    assert "correlation_lacking" not in result.summary, "every latent of a copy is shared"


@pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")
def test_what_it_needs_is_refused_by_name(model, store) -> None:
    a, b = pair(store)
    with pytest.raises(ValueError, match="match the latents with activations"):
        measure_effects(model, a, b, match_latents(a, b), store)
    elsewhere = [replace(d, info=d.info | {"hook_point": "blocks.0.hook_resid_pre"}) for d in (a, b)]
    x = store.read(store.positions)
    with pytest.raises(MismatchError, match="hook point"):
        measure_effects(model, *elsewhere, match_latents(*elsewhere, activations=x), store)
    silent = [replace(d, threshold=torch.full((24,), 1e6)) for d in (a, b)]
    with pytest.raises(ValueError, match="at least two living latents"):
        measure_effects(model, *silent, match_latents(*silent, activations=store), store)
