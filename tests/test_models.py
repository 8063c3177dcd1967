import contextlib
import copy
import re
import shutil
import subprocess
import sys
import threading
import types

import pytest
import torch
import torch.nn.functional as F

from saekit import models
from saekit.corpora import huggingface_dataset
from saekit.models import (
    FastProducts,
    capture,
    compare_models,
    continue_from,
    describe_model,
    load_model,
    logits_with_replacement,
    resolve_hook_point,
    run_to,
    special_token_ids,
    token_strings,
    unembedding,
)

RESIDUAL = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(2, 300, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def hf_model(model_folder):
    from transformers import AutoModelForCausalLM

    # The bridge computes attention eagerly, so that its hooks can fire.
    return AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def hidden_states(hf_model, tokens):
    """Hidden states by Hugging Face: entry i enters block i (the last one is normed)."""
    with torch.no_grad(), FastProducts():
        return hf_model(tokens, output_hidden_states=True).hidden_states


def test_importing_the_module_does_not_import_transformer_lens():
    code = "import sys, saekit.models; print({'transformers', 'transformer_lens'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


# ---------------------------------------------------------------------------------- hook points


def test_hook_points_are_resolved_to_their_layer(model):
    assert resolve_hook_point(model, RESIDUAL) == (RESIDUAL, 1)
    assert resolve_hook_point(model, "ln_final.hook_normalized") == ("ln_final.hook_normalized", None)


def test_an_unknown_hook_point_names_the_three_nearest(model):
    with pytest.raises(ValueError, match=r"tiny-llama has no hook point 'blocks.1.resid_post'") as error:
        capture(model, torch.zeros(1, 2), "blocks.1.resid_post")
    named = str(error.value).split("the nearest are ")[1].rstrip(".").split(", ")
    assert len(named) == 3
    assert named[0] == RESIDUAL


@pytest.mark.parametrize("folder", ["model_folder", "gpt2_folder"])
def test_hook_points_without_a_vector_per_token_are_refused_at_any_size(request, folder):
    """Also where ctx is the number of heads, or there is one row: found by sizes that coincide nowhere."""
    model = load_model(request.getfixturevalue(folder))
    tokens = torch.randint(2, 300, (5, 11), generator=torch.Generator().manual_seed(0))
    refused = set()
    for hook_point in model.hook_dict:
        if hook_point.startswith("blocks.") and not hook_point.startswith("blocks.1."):
            continue
        held = []
        with contextlib.suppress(ValueError):  # it does not fire
            models._run(model, tokens, [(hook_point, lambda x, held=held, **_: held.append(x))])
        if not held:
            continue
        if held[0].ndim > 2 and held[0].shape[:2] == tokens.shape:
            resolve_hook_point(model, hook_point)
            continue
        for rows in (tokens[:, :4], tokens[:1]):
            with pytest.raises(ValueError, match=r"vector per token|must be \[rows, ctx"):
                capture(model, rows, hook_point)
        refused.add(hook_point)
    assert {"blocks.1.attn.hook_pattern", "blocks.1.attn.hook_attn_scores", "embed.hook_in"} <= refused
    with pytest.raises(ValueError, match=r"hook_pattern' holds \[rows, heads, query, key\], not one vector"):
        capture(model, tokens, "blocks.1.attn.hook_pattern")


@pytest.mark.parametrize("layer", [0, 1])
def test_captured_residuals_are_the_hidden_states(model, tokens, hidden_states, layer):
    before = capture(model, tokens, f"blocks.{layer}.hook_resid_pre")
    after = capture(model, tokens, f"blocks.{layer}.hook_resid_post")
    torch.testing.assert_close(before, hidden_states[layer], rtol=0, atol=0)
    torch.testing.assert_close(after, hidden_states[layer + 1], rtol=0, atol=0)


def test_the_last_block_is_captured_before_the_final_norm(model, hf_model, tokens, hidden_states):
    last = capture(model, tokens, "blocks.2.hook_resid_post")
    torch.testing.assert_close(hf_model.model.norm(last), hidden_states[3], rtol=0, atol=0)


def test_the_parts_of_a_block_add_up(model, tokens):
    part = {
        name: capture(model, tokens, f"blocks.1.hook_{name}")
        for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    }
    torch.testing.assert_close(part["resid_pre"] + part["attn_out"], part["resid_mid"])
    torch.testing.assert_close(part["resid_mid"] + part["mlp_out"], part["resid_post"])


def test_hook_z_is_the_concatenation_of_the_heads(model, hf_model, tokens):
    z = capture(model, tokens, "blocks.1.attn.hook_z")
    seen = []
    projection = hf_model.model.layers[1].self_attn.o_proj
    handle = projection.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad(), FastProducts():
        hf_model(tokens)
    handle.remove()
    assert z.shape == (3, 11, 16)
    torch.testing.assert_close(z, seen[0], rtol=0, atol=0)


def test_a_forward_pass_ends_at_the_hook_point(model, tokens):
    reached = []
    handle = model.blocks[2].register_forward_pre_hook(lambda *args: reached.append(2))
    capture(model, tokens, RESIDUAL)
    assert reached == []
    capture(model, tokens, "blocks.2.hook_resid_mid")
    handle.remove()
    assert reached == [2]


def test_what_is_not_one_vector_per_token_is_refused(model, tokens):
    with pytest.raises(ValueError, match=r"must be \[rows, ctx, ...\]"):
        capture(model, tokens, "embed.hook_in")


def test_capture_leaves_the_model_as_it_was(model, hf_model, tokens):
    capture(model, tokens, RESIDUAL)
    with torch.no_grad():
        expected = hf_model(tokens).logits
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=0)


# ---------------------------------------------------------------------------------- replacing


@pytest.mark.parametrize("hook_point", [RESIDUAL, "blocks.1.attn.hook_z", "blocks.0.hook_mlp_out"])
def test_replacing_by_the_same_changes_nothing(model, hf_model, tokens, hook_point):
    with torch.no_grad(), FastProducts():
        expected = hf_model(tokens).logits
    for replace in (None, lambda x: x):
        logits = logits_with_replacement(model, tokens, hook_point, replace)
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def test_a_replacement_reaches_the_logits(model, hf_model, tokens):
    seen = []

    def double(x):
        seen.append(x.clone())
        return 2 * x

    logits = logits_with_replacement(model, tokens, RESIDUAL, double)
    torch.testing.assert_close(seen[0], capture(model, tokens, RESIDUAL), rtol=0, atol=0)
    handle = hf_model.model.layers[1].register_forward_hook(
        lambda module, args, output: (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output
    )
    with torch.no_grad(), FastProducts():
        expected = hf_model(tokens).logits
    handle.remove()
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def test_heads_are_replaced_in_the_order_that_they_are_captured(model, hf_model, tokens):
    scale = torch.linspace(-1, 1, 16)
    logits = logits_with_replacement(model, tokens, "blocks.1.attn.hook_z", lambda z: z * scale)
    handle = hf_model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(
        lambda module, args: (args[0] * scale,)
    )
    with torch.no_grad(), FastProducts():
        expected = hf_model(tokens).logits
    handle.remove()
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def test_a_replacement_of_another_shape_is_refused(model, tokens):
    with pytest.raises(ValueError, match=r"must have shape \[3, 11, 16\], found \[3, 11, 8\]"):
        logits_with_replacement(model, tokens, RESIDUAL, lambda x: x[..., :8])


@pytest.mark.parametrize("folder", ["model_folder", "gpt2_folder"])
def test_continuing_from_a_residual_equals_replacing_it(request, folder, tokens):
    model = load_model(request.getfixturevalue(folder))
    for layer in range(len(model.blocks)):
        hook_point = f"blocks.{layer}.hook_resid_post"
        residual = capture(model, tokens, hook_point) * 0.5 + 1
        expected = logits_with_replacement(model, tokens, hook_point, lambda x, new=residual: new)
        found = continue_from(model, tokens, residual, layer + 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    start = capture(model, tokens, "blocks.0.hook_resid_pre")
    plain = logits_with_replacement(model, tokens, hook_point, None)
    torch.testing.assert_close(continue_from(model, tokens, start, 0), plain, rtol=0, atol=0)
    assert all("forward" not in block.__dict__ for block in model.blocks)


def test_continuing_skips_the_blocks_before(model, tokens):
    ran = []
    handles = [
        block.original_component.self_attn.register_forward_pre_hook(lambda *args, i=i: ran.append(i))
        for i, block in enumerate(model.blocks)
    ]
    continue_from(model, tokens, capture(model, tokens, RESIDUAL), 2)
    for handle in handles:
        handle.remove()
    assert ran[-1] == 2  # after block 0 and 1 of capture, and block 0 on a single token
    assert ran.count(1) == 1


@pytest.mark.parametrize("folder", ["model_folder", "gpt2_folder"])
@pytest.mark.parametrize(
    "place",
    [
        "blocks.{}.hook_resid_pre",
        "blocks.{}.hook_resid_mid",
        "blocks.{}.hook_resid_post",
        "blocks.{}.hook_attn_out",
        "blocks.{}.attn.hook_z",
        "blocks.{}.hook_mlp_out",
        "blocks.{}.mlp.hook_post",
        "ln_final.hook_normalized",
    ],
)
def test_going_on_from_a_hook_point_equals_replacing_in_a_full_pass(request, folder, place, tokens):
    model = load_model(request.getfixturevalue(folder))
    for layer in range(len(model.blocks)):
        hook_point = place.format(layer)
        run = run_to(model, tokens, hook_point)
        scaled = run.activations * torch.linspace(-1, 2, run.activations.shape[2])
        for activations in (scaled, run.activations.roll(1, 0)):
            expected = logits_with_replacement(model, tokens, hook_point, lambda x, new=activations: new)
            torch.testing.assert_close(run.logits(activations), expected, rtol=0, atol=0)
            log_p = expected[:, :-1].double().log_softmax(-1)
            losses = -log_p.gather(2, tokens[:, 1:, None])[..., 0]
            torch.testing.assert_close(run.losses(activations).double(), losses, rtol=1e-6, atol=1e-6)
        assert (run.losses(scaled) - run.losses(run.activations)).abs().max() > 1e-4
        assert all("forward" not in block.__dict__ for block in model.blocks)


def test_going_on_computes_only_the_blocks_that_are_left(model, tokens):
    ran = []
    handles = [
        block.original_component.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs, i=i: ran.append((i, kwargs["hidden_states"].shape[0])),
            with_kwargs=True,
        )
        for i, block in enumerate(model.blocks)
    ]
    inside, after = (run_to(model, tokens, f"blocks.1.{name}") for name in ("attn.hook_z", "hook_resid_post"))
    for run, expected in ((inside, [1, 2]), (after, [2])):
        ran.clear()
        run.losses(run.activations)
        assert [layer for layer, rows in ran if rows == len(tokens)] == expected
    for handle in handles:
        handle.remove()


def test_activations_of_another_shape_are_refused(model, tokens):
    run = run_to(model, tokens, RESIDUAL)
    with pytest.raises(ValueError, match=r"must have shape \[3, 11, 16\], found \[3, 11, 8\]"):
        run.losses(run.activations[..., :8])
    with pytest.raises(ValueError, match=r"must have shape \[3, 11, 16\], found \[2, 11, 16\]"):
        run.logits(run.activations[:2])


def test_fast_products_are_those_of_linear_layers():
    generator = torch.Generator().manual_seed(0)
    x, W, b = (torch.randn(shape, generator=generator) for shape in ((3, 5, 96), (64, 96), (64,)))
    exact = x.double() @ W.double().T
    with torch.no_grad(), FastProducts():
        found = [torch.nn.functional.linear(x, W), torch.nn.functional.linear(x, W, b)]
        half = torch.nn.functional.linear(x.bfloat16(), W.bfloat16())
        keyword = torch.nn.functional.linear(input=x, weight=W)
        one = torch.nn.functional.linear(x[0, 0], W)
    error = 96 * torch.finfo(torch.float32).eps * (x.double().abs() @ W.double().T.abs())
    for product, expected in ((found[0], exact), (found[1], exact + b.double()), (keyword, exact)):
        assert ((product.double() - expected).abs() <= error + 1e-6).all()
    assert (one.double() - exact[0, 0]).abs().max() <= error.max()
    assert torch.equal(half, torch.nn.functional.linear(x.bfloat16(), W.bfloat16()))


def test_continuing_from_what_does_not_fit_is_refused(model, tokens):
    with pytest.raises(ValueError, match="between 0 and the model's 3 blocks, found 4"):
        continue_from(model, tokens, torch.zeros(3, 11, 16), 4)
    with pytest.raises(ValueError, match=r"shape \[3, 11, 16\], found \[3, 10, 16\]"):
        continue_from(model, tokens, torch.zeros(3, 10, 16), 1)


# ---------------------------------------------------------------------------------- weights


def test_the_unembedding_is_the_logit_lens(model, hf_model):
    expected = hf_model.model.norm.weight[:, None] * hf_model.lm_head.weight.T
    torch.testing.assert_close(unembedding(model), expected, rtol=1e-5, atol=1e-6)


def test_the_unembedding_of_a_layer_norm(gpt2_folder):
    model = load_model(gpt2_folder)
    weight = model.original_model.transformer.ln_f.weight
    expected = weight[:, None] * model.original_model.lm_head.weight.T
    torch.testing.assert_close(unembedding(model), expected, rtol=1e-5, atol=1e-6)


def test_centring_the_writing_weights_centres_the_residual_and_keeps_the_function(gpt2_folder, tokens):
    plain = load_model(gpt2_folder)
    centred = load_model(gpt2_folder, processing={"center_writing_weights": True})
    for layer in (0, 1):
        for place in ("pre", "post"):
            before = capture(plain, tokens, f"blocks.{layer}.hook_resid_{place}")
            after = capture(centred, tokens, f"blocks.{layer}.hook_resid_{place}")
            expected = before - before.mean(dim=-1, keepdim=True)
            assert (after - before).abs().max() > 1e-2  # the model does write a mean
            torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
            assert after.mean(dim=-1).abs().max() < 1e-5
    torch.testing.assert_close(centred(tokens), plain(tokens), rtol=1e-4, atol=1e-4)
    weights = [model.original_model.lm_head.weight for model in (centred, plain)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)  # tied to the embedding, but not centred with it


@pytest.mark.parametrize("flag", ["fold_ln", "center_unembed", "fold_value_biases"])
def test_processing_keeps_probabilities(gpt2_folder, tokens, flag):
    plain, processed = load_model(gpt2_folder), load_model(gpt2_folder, processing={flag: True})
    torch.testing.assert_close(
        processed(tokens).log_softmax(-1), plain(tokens).log_softmax(-1), rtol=1e-4, atol=1e-4
    )
    assert describe_model(processed)["processing"] == {name: name == flag for name in models.PROCESSING}


def test_folding_the_final_norm_leaves_the_logit_lens(gpt2_folder):
    plain, folded = load_model(gpt2_folder), load_model(gpt2_folder, processing={"fold_ln": True})
    # Folding a layer norm also centres what it reads, which a centred residual does not notice.
    expected = unembedding(plain) - unembedding(plain).mean(dim=0)
    torch.testing.assert_close(unembedding(folded), expected, rtol=1e-4, atol=1e-5)


def test_processing_flags_are_checked(model_folder):
    with pytest.raises(ValueError, match="Unknown processing flag 'centre'"):
        load_model(model_folder, processing={"centre": True})
    with pytest.raises(ValueError, match=r"only under layer normalisation, but .*tiny-llama uses RMS"):
        load_model(model_folder, processing={"center_writing_weights": True})
    off = load_model(model_folder, processing={"center_writing_weights": False})
    assert not any(describe_model(off)["processing"].values())


def test_a_model_describes_itself(model, model_folder):
    weights = describe_model(model)["weights"]
    assert re.fullmatch("[0-9a-f]{64}", weights)
    assert describe_model(model) == {
        "name": "tiny-llama",
        "revision": None,
        "weights": weights,
        "dtype": "float32",
        "d_model": 16,
        "n_layers": 3,
        "processing": dict.fromkeys(models.PROCESSING, False),
    }
    half = load_model(model_folder, dtype=torch.bfloat16)
    assert describe_model(half)["dtype"] == "bfloat16"
    assert describe_model(half)["weights"] == weights
    assert capture(half, torch.zeros(1, 4), RESIDUAL).dtype == torch.bfloat16


# ---------------------------------------------------------------------------------- identity


def boot(folder):
    """A bridge made without saekit."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(folder))


def differences(a, b):
    return [what for what, x, y in compare_models(describe_model(a), describe_model(b)) if x != y]


@pytest.fixture
def runs(gpt2_folder, tmp_path):
    """Two checkpoints of one name in two runs: one weight differs."""
    from safetensors.torch import load_file, save_file

    folders = [shutil.copytree(gpt2_folder, tmp_path / run / "checkpoint-100") for run in ("runA", "runB")]
    weights = load_file(folders[1] / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"][3, 5] += 1
    save_file(weights, folders[1] / "model.safetensors", metadata={"format": "pt"})
    return folders


def test_checkpoints_of_one_name_are_told_apart_and_copies_are_not(runs, tmp_path):
    a, b = (load_model(folder) for folder in runs)
    assert describe_model(a)["name"] == describe_model(b)["name"] == "checkpoint-100"
    assert differences(a, b) == ["model weights"]
    renamed = load_model(shutil.copytree(runs[0], tmp_path / "elsewhere" / "another name"))
    assert describe_model(renamed)["name"] == "another name"
    assert differences(a, renamed) == []


def test_weights_are_hashed_once_and_again_when_they_change(gpt2_folder, monkeypatch):
    model, hashed = load_model(gpt2_folder), []
    real = models.hash_weights
    monkeypatch.setattr(models, "hash_weights", lambda named: hashed.append(1) or real(named))
    before = describe_model(model)["weights"]
    assert before == describe_model(model)["weights"] == describe_model(copy.deepcopy(model))["weights"]
    assert len(hashed) == 1
    weight = model.blocks[1].mlp.out.weight
    for change in (
        lambda: weight.data[2, 3].mul_(2),  # past torch's count of changes
        lambda: weight.data.copy_(weight.data[torch.randperm(len(weight))]),  # the same values elsewhere
    ):
        change()
        found = describe_model(model)["weights"]
        assert found != before
        before = found
    assert len(hashed) == 3


def test_a_bridge_of_the_users_own_is_the_same_model(gpt2_folder):
    own, loaded = boot(gpt2_folder), load_model(gpt2_folder)
    assert describe_model(own)["name"] == "tiny-gpt2"  # and not a path of this machine
    assert differences(own, loaded) == []


FLAGS = {"center_writing_weights": True}


def test_processing_survives_copies_and_leaves_the_weights_hash(gpt2_folder):
    plain, processed = load_model(gpt2_folder), load_model(gpt2_folder, processing=FLAGS)
    assert describe_model(processed)["weights"] == describe_model(plain)["weights"]
    same = copy.deepcopy(processed)
    assert describe_model(same) == describe_model(processed)
    assert describe_model(same)["processing"]["center_writing_weights"]
    assert differences(plain, processed) == ["weight processing"]
    with torch.no_grad():
        processed.blocks[0].mlp.out.weight[0, 0] += 1
    assert describe_model(processed)["weights"] != describe_model(plain)["weights"]


@pytest.mark.parametrize("process", ["process_weights", "enable_compatibility_mode"])
def test_a_bridge_that_the_user_processed_does_not_pass_for_a_plain_one(gpt2_folder, process):
    """TransformerLens records that it was processed, and not how."""
    plain, own = load_model(gpt2_folder), boot(gpt2_folder)
    after_loading, again = load_model(gpt2_folder), boot(gpt2_folder)
    for model in (own, after_loading, again):
        getattr(model, process)()
        assert describe_model(model)["processing"] is None
        assert describe_model(copy.deepcopy(model))["processing"] is None
    assert differences(plain, own) == ["weight processing"]
    assert differences(own, again) == []
    with torch.no_grad():
        again.blocks[0].mlp.out.weight[0, 0] += 1
    assert differences(own, again) == ["model weights"]


def known(name, revision=None, processing=()):
    return {"name": name, "revision": revision, "processing": dict.fromkeys(processing, True)}


def test_names_are_compared_where_weights_are_not_recorded():
    for same in ("gpt2", "gpt2-small", "openai-community/gpt2", "GPT2-small"):
        assert [x == y for _, x, y in compare_models(known("gpt2"), known(same))] == [True, True]
    compared = compare_models(known("gpt2"), known("EleutherAI/pythia-70m"))
    assert compared == [("model", "gpt2", "pythia-70m"), ("weight processing", (), ())]
    revisions = compare_models(known("gpt2", "abc"), known("gpt2", "def", ["fold_ln"]))
    assert revisions[1:] == [("model revision", "abc", "def"), ("weight processing", (), ("fold_ln",))]
    assert compare_models(known("gpt2", "abc"), known("gpt2")) == [
        ("model", "gpt2", "gpt2"),
        ("weight processing", (), ()),
    ]
    assert compare_models(known("a") | {"weights": "1"}, known("b") | {"weights": "1"})[0] == (
        "model weights",
        "1",
        "1",
    )


@pytest.mark.parametrize("part", ["all", "one dropout"])
def test_a_model_in_training_mode_is_refused(gpt2_folder, tokens, part):
    model = load_model(gpt2_folder)
    (model if part == "all" else model.original_model.transformer.drop).train()
    hook_point = "blocks.0.hook_resid_post"
    for run in (
        lambda: capture(model, tokens, hook_point),
        lambda: logits_with_replacement(model, tokens, hook_point, None),
        lambda: continue_from(model, tokens, torch.zeros(3, 11, 16), 1),
    ):
        with pytest.raises(ValueError, match=r"tiny-gpt2 is in training mode.*call model\.eval\(\) first"):
            run()
    model.eval()
    capture(model, tokens, hook_point)


def test_two_passes_on_one_model_at_once_are_refused(model, tokens):
    """Their hooks would fire in each other's pass: from another thread, and from a replacement."""
    expected = capture(model, tokens, RESIDUAL)
    inside, done = threading.Event(), threading.Event()

    def wait(x):
        inside.set()
        done.wait(10)
        return x

    thread = threading.Thread(target=logits_with_replacement, args=(model, tokens, RESIDUAL, wait))
    thread.start()
    inside.wait(10)
    for run in (
        lambda: capture(model, tokens, RESIDUAL),
        lambda: logits_with_replacement(model, tokens, RESIDUAL, None),
        lambda: continue_from(model, tokens, expected, 2),
    ):
        with pytest.raises(RuntimeError, match="tiny-llama is in the middle of another forward pass"):
            run()
    done.set()
    thread.join()
    with pytest.raises(RuntimeError, match="run one pass at a time, or load the model twice"):
        logits_with_replacement(model, tokens, RESIDUAL, lambda x: capture(model, tokens, RESIDUAL))
    assert torch.equal(capture(model, tokens, RESIDUAL), expected)  # none of them left anything behind


@pytest.mark.parametrize("own", ["hook_resid_pre", "hook_resid_post", "attn.hook_z"])
@pytest.mark.parametrize("at", ["hook_resid_pre", "attn.hook_z", "hook_mlp_out", "hook_resid_post"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_hooks_of_the_users_own_change_activations_once(model_folder, tokens, own, at, layer):
    """A partial run equals a full one, wherever a permanent hook changes what goes through."""
    model, hook_point, calls = load_model(model_folder), f"blocks.{layer}.{at}", []
    for block in range(3):
        model.add_hook(f"blocks.{block}.{own}", lambda x, hook: calls.append(hook.name) or 1.5 * x + 1)
    run = run_to(model, tokens, hook_point)
    assert len(calls) == len({*calls})
    assert torch.equal(run.activations, capture(model, tokens, hook_point))
    changed = run.activations.flip(0)
    calls.clear()
    found = run.logits(changed)
    assert len(calls) == len({*calls})
    expected = logits_with_replacement(model, tokens, hook_point, lambda _: changed)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    losses = F.cross_entropy(expected[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(run.losses(changed).flatten(), losses, rtol=1e-4, atol=1e-4)


def test_a_device_and_flags_are_checked_before_anything_is_loaded(monkeypatch):
    with pytest.raises(ValueError, match="no device 'cuda:99'"):
        load_model("nothing", device="cuda:99")
    with pytest.raises(TypeError, match="fold_ln must be True or False, found 'no'"):
        load_model("nothing", processing={"fold_ln": "no"})


def test_a_model_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with monkeypatch.context() as no_hub:
        no_hub.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        no_hub.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)  # it takes half a minute
        for slip in (
            *(
                tmp_path / "nothing",
                str(tmp_path / "nothing"),
                "./my-model",
                "../my-model",
                "~/no-such-model",
            ),
            *("models/my-modle", "some/deep/folder"),
        ):
            with pytest.raises(FileNotFoundError, match=r"There is no model .*: the last folder on"):
                load_model(slip)
        # With a revision it is meant for a hub, and so is an organisation that is no folder here.
        for name, revision in (("models/my-model", "main"), ("organisation/my-model", None)):
            with pytest.raises(FileNotFoundError, match=f"no model '{name}' here, and http"):
                load_model(name, revision=revision)
        (tmp_path / "checkpoint-1000").mkdir()
        slips = {"smolm2-135m-instruct": models.EMBEDDED_MODEL, "chekpoint-1000": "checkpoint-1000"}
        for slip, meant in slips.items():
            with pytest.raises(FileNotFoundError, match=f"cannot be reached .*; did you mean '{meant}'\\?"):
                load_model(slip)
        no_hub.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set"):
            load_model("gpt3")
        with pytest.raises(FileNotFoundError, match=r"no dataset 'wikitxt' here, and no hub is asked"):
            next(iter(huggingface_dataset("wikitxt")))
    with pytest.raises(ValueError, match="is embedded and has no revisions"):
        load_model(revision="main")
    monkeypatch.setattr(models, "EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match=r"--require-hashes -r requirements/embedded\.txt"):
        load_model()


# ---------------------------------------------------------------------------------- conversion


@pytest.fixture
def conversion(monkeypatch, tmp_path, model_folder):
    """The embedded package replaced by a folder, and its conversion by a copy of the tiny model."""
    import transformers

    package = tmp_path / "package"
    package.mkdir()
    (package / "tiny.gguf").write_bytes(b"quantised")
    spec = types.SimpleNamespace(submodule_search_locations=[str(package)])
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path / "home"))
    calls = []

    class Saves:
        def __init__(self):
            self.config = types.SimpleNamespace(quantization_config={})

        def save_pretrained(self, folder):
            calls.append(folder)
            shutil.copytree(model_folder, folder, dirs_exist_ok=True)

    real = transformers.AutoModelForCausalLM.from_pretrained, transformers.AutoTokenizer.from_pretrained
    for auto, load in zip((transformers.AutoModelForCausalLM, transformers.AutoTokenizer), real, strict=True):
        monkeypatch.setattr(
            auto,
            "from_pretrained",
            lambda folder, load=load, **kwargs: Saves() if "gguf_file" in kwargs else load(folder, **kwargs),
        )
    return calls


def test_the_embedded_model_is_converted_once(conversion, tmp_path):
    model = load_model()
    assert describe_model(model)["name"] == "smollm2-135m-instruct"
    (folder,) = (tmp_path / "home" / "models").iterdir()
    assert describe_model(model)["revision"] == folder.name.split("-")[-1]
    assert len(conversion) == 2  # model and tokenizer
    load_model()
    assert len(conversion) == 2


def test_half_a_conversion_is_not_used(conversion, tmp_path):
    load_model()
    (folder,) = (tmp_path / "home" / "models").iterdir()
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    load_model()
    assert weights.read_bytes() == whole
    (folder / "complete.json").unlink()
    load_model()
    assert len(conversion) == 6


def test_a_conversion_that_fails_leaves_nothing(conversion, tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "write_json", fail)
    with pytest.raises(KeyboardInterrupt):
        load_model()
    assert list((tmp_path / "home" / "models").iterdir()) == []


# ---------------------------------------------------------------------------------- tokens


def test_special_tokens_are_found(model):
    assert special_token_ids(model.tokenizer) == [0, 1]
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.tokenizer.name_or_path)
    tokenizer.add_tokens([AddedToken("<|role|>", special=True), AddedToken("<plain>", special=False)])
    assert special_token_ids(tokenizer) == [0, 1, tokenizer.convert_tokens_to_ids("<|role|>")]


def test_token_strings_spell_the_text(model):
    text = "the river runs under a stone"
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    strings = token_strings(model.tokenizer, ids)
    assert "".join(strings) == text
    assert any(string.startswith(" ") for string in strings)
    assert token_strings(model.tokenizer, torch.tensor([0, 1])) == ["<|endoftext|>", "<|begin|>"]


def test_half_a_character_has_a_string_of_its_own(model):
    ids = model.tokenizer("é", add_special_tokens=False)["input_ids"]
    strings = token_strings(model.tokenizer, ids)
    assert len(ids) == 2
    assert len(set(strings)) == 2
    assert not any("\ufffd" in string for string in strings)
    assert all(string.startswith("<") and string.endswith(">") for string in strings)  # not a word's look


# ---------------------------------------------------------------------------------- the embedded model


@pytest.mark.embedded
@pytest.mark.slow
def test_the_embedded_model_has_learnt_language():
    model = load_model()
    text = "The Moon is the only natural satellite of Earth. It orbits our planet about once a month."
    ids = model.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    loss = [
        torch.nn.functional.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:]).item()
        for tokens in (ids, shuffled)
    ]
    assert loss[0] < 4  # measured: 3.4 and 8.3
    assert loss[1] > 7
    description = describe_model(model)
    assert (description["d_model"], description["n_layers"]) == (576, 30)
    assert special_token_ids(model.tokenizer) == list(range(17))
