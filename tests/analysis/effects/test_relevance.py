"""RelP against the propagation written out by hand, block by block, from what the model itself computed."""

import pytest
import torch
from toy_effects import double, sae

from saekit.analysis.effects.nodes import measure_node_effects
from saekit.analysis.effects.relevance import relevance_hooks
from saekit.models import capture_each, load_model, run_to
from saekit.prompts import Prompts

pytestmark = pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")
PLACE = "blocks.0.hook_resid_post"


def propagated(model, tokens, change, *, llama):
    """A change of the stream after block 0, `[ctx, d]`, through the frozen model to the logits."""
    names = [f"blocks.1.{part}" for part in ("attn.hook_pattern", "mlp.in.hook_out", "mlp.out.hook_in")]
    names += ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"]
    names += ["blocks.1.mlp.gate.hook_out"] * llama
    found = {name.removeprefix("blocks.1."): x[0] for name, x in capture_each(model, tokens, names).items()}
    block, hf = model.blocks[1], model.original_model

    def weight(part):
        w = part.original_component.weight
        return w if llama else w.T if w.shape == (16, 48) else w

    def norm(stream, delta, module):
        module = module.original_component
        if llama:
            scale = (stream.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
            return delta * scale * module.weight
        centred = stream - stream.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + module.eps).rsqrt()
        return (delta - delta.mean(-1, keepdim=True)) * scale * module.weight

    d = norm(found["hook_resid_pre"], change, block.ln1)
    if llama:
        v = (d @ weight(block.attn.v).T).unflatten(1, (2, 4)).repeat_interleave(2, dim=1)
    else:
        w = hf.transformer.h[1].attn.original_component.c_attn.original_component.weight[:, 32:]
        v = (d @ w).unflatten(1, (4, 4))
    mixed = torch.einsum("hqk,khd->qhd", found["attn.hook_pattern"], v).flatten(1)
    o = block.attn.o.original_component.weight
    change = change + (mixed @ o.T if llama else mixed @ o)
    d = norm(found["hook_resid_mid"], change, block.ln2)
    inside, product = found["mlp.in.hook_out"], found["mlp.out.hook_in"]
    if llama:
        gate = found["mlp.gate.hook_out"]
        of_gate, of_inside = (d @ weight(part).T for part in (block.mlp.gate, getattr(block.mlp, "in")))
        d = 0.5 * torch.sigmoid(gate) * inside * of_gate + 0.5 * torch.nn.functional.silu(gate) * of_inside
        change = change + d @ block.mlp.out.original_component.weight.T
    else:
        d = d @ getattr(block.mlp, "in").original_component.weight * product / inside
        change = change + d @ block.mlp.out.original_component.weight
    d = norm(found["hook_resid_post"], change, model.ln_final)
    return d @ model.W_U.double()


@pytest.mark.parametrize("llama", [True, False])
def test_effects_are_those_of_the_frozen_model(model_folder, gpt2_folder, llama):
    if llama:  # two blocks of three are enough: take the last one out
        model = load_model(model_folder, dtype=torch.float64)
        with torch.no_grad():
            for part in (model.blocks[2].attn.o, model.blocks[2].mlp.out):
                part.original_component.weight.zero_()
    else:
        model = load_model(gpt2_folder, dtype=torch.float64)
    pairs = Prompts.from_texts(
        model.tokenizer, ["the old king runs under a stone"], corrupted=["the old queen runs over a stone"],
        answers=[" moon"], wrong=[" river"],
    )  # fmt: skip
    dictionary = double(sae(PLACE))
    effects = measure_node_effects(model, dictionary, pairs, methods=["relp"])
    assert len(effects.frame) > 30
    for row in effects.frame[effects.frame["kind"] == "latent"].itertuples():
        change = torch.zeros(pairs.tokens.shape[1], 16, dtype=torch.float64)
        change[row.position] = (row.baseline - row.activation) * dictionary.W_dec[row.latent]
        logits = propagated(model, pairs.tokens, change, llama=llama)[-1]
        expected = float(logits[pairs.answers[0, 0]] - logits[pairs.wrong[0, 0]])
        assert row.relp == pytest.approx(expected, abs=1e-6, rel=1e-5)


def test_values_of_the_model_stay(model, token_rows):
    run = run_to(model, token_rows.tokens[:2], PLACE)
    plain, frozen = (run.logits(run.activations, hooks=hooks) for hooks in ((), relevance_hooks(model)))
    torch.testing.assert_close(plain, frozen, rtol=0, atol=1e-5)
