"""Transcoders: the dictionary that predicts another activation, from harvesting to every family analysis."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

import saekit
from saekit.activations import ActivationStore, harvest
from saekit.agreement import MismatchError
from saekit.analysis.meta.sae import RECIPES
from saekit.dictionary import Dictionary, Transcoder
from saekit.loading.names import resolve
from saekit.models import capture
from saekit.streaming import StreamedActivations

D_IN, D_OUT, TOKENS = 6, 5, 160
HOOK_POINT, TARGET = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(width, seed=0, *, skip=True, **options):
    """A random transcoder of the toy activations."""
    seeds = [1000 * (seed + 1) + 10 * width + i for i in range(5)]
    return Transcoder.from_weights(
        random(D_IN, width, seed=seeds[0]) / D_IN**0.5,
        random(width, D_OUT, seed=seeds[1]),
        random(width, seed=seeds[2]) / 2 - 0.3,
        random(D_OUT, seed=seeds[3]),
        W_skip=random(D_IN, D_OUT, seed=seeds[4]) / 3 if skip else None,
        info={"kind": "relu", "seed": seed, "hook_point": "x", "target": "y"},
        **options,
    )


@pytest.fixture(scope="module")
def pair():
    """Inputs and targets, side by side."""
    x = random(TOKENS, D_IN, seed=1)
    return torch.cat([x, torch.tanh(x @ random(D_IN, D_OUT, seed=2)) + 1], dim=1)


@pytest.fixture(scope="module")
def transcoder_store(model, token_rows, tmp_path_factory):
    """MLP inputs and outputs of block 1."""
    path = tmp_path_factory.mktemp("stores") / "mlp"
    settings = {"dtype": torch.float32, "batch_rows": 2, "shard_rows": 4, "progress": False}
    return harvest(model, token_rows, HOOK_POINT, target=TARGET, path=path, **settings)


def fvu(transcoder, pair):
    """The definition, in float64."""
    transcoder, pair = transcoder.to(dtype=torch.float64), pair.double()
    x, y = pair.split([D_IN, D_OUT], dim=1)
    h = x @ transcoder.W_enc + transcoder.b_enc
    prediction = torch.where(h > transcoder.threshold, h, 0) @ transcoder.W_dec + transcoder.b_dec
    if transcoder.W_skip is not None:
        prediction = prediction + x @ transcoder.W_skip
    return float((y - prediction).square().sum() / (y - y.mean(0)).square().sum())


# ------------------------------------------------------------------------------ the class


def test_weights_of_any_norm_keep_the_function():
    W_enc, W_dec, W_skip = random(D_IN, 9), random(9, D_OUT, seed=1), random(D_IN, D_OUT, seed=2)
    b_enc, b_dec, threshold = random(9, seed=3), random(D_OUT, seed=4), random(9, seed=5).abs()
    x = random(20, D_IN, seed=6)
    transcoder = Transcoder.from_weights(W_enc, W_dec, b_enc, b_dec, W_skip=W_skip, threshold=threshold)
    h = x @ W_enc + b_enc
    expected = torch.where(h > threshold, h, 0) @ W_dec + x @ W_skip + b_dec
    torch.testing.assert_close(transcoder.reconstruct(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(transcoder.W_dec.norm(dim=1), torch.ones(9))
    # Rows may bring their targets along.
    assert torch.equal(transcoder.reconstruct(torch.cat([x, x[:, :D_OUT]], dim=1)), transcoder.reconstruct(x))


def test_it_survives_saving_and_is_not_an_sae_of_the_same_tensors(tmp_path):
    transcoder = make(12)
    again = Dictionary.load(transcoder.save(tmp_path / "one"))
    assert isinstance(again, Transcoder)
    assert again.content_hash == transcoder.content_hash
    assert torch.equal(again.W_skip, transcoder.W_skip)
    (opened,) = resolve(tmp_path / "one")
    assert opened.transcoder
    square = Transcoder.from_weights(random(4, 8), random(8, 4, seed=1))
    as_sae = Dictionary(**square.tensors(), info=square.info)
    assert as_sae.content_hash != square.content_hash
    assert not isinstance(Dictionary.load(as_sae.save(tmp_path / "two")), Transcoder)


def test_what_it_is_shows():
    assert make(12).name == "relu transcoder 12 (seed 0)"
    assert repr(make(12)) == "Transcoder(relu 12 (seed 0), d_in=6, d_out=5, width=12, skip)"
    assert make(12, skip=False).to(dtype=torch.float64).W_skip is None
    assert make(12).to(dtype=torch.float64).W_skip.dtype == torch.float64


def test_wrong_tensors_are_refused():
    with pytest.raises(ValueError, match=r"W_skip must have shape \[6, 5\]"):
        replace(make(8), W_skip=random(5, 6))
    with pytest.raises(ValueError, match=r"W_dec must be \[d_sae=8, d_out\]"):
        Transcoder.from_weights(random(D_IN, 8), random(D_OUT, 8))
    with pytest.raises(ValueError, match="does not normalise rows"):
        replace(make(8), normalization="layer_norm")
    with pytest.raises(ValueError, match="adds x @ W_skip to every row, so decoding needs"):
        make(8).decode(torch.zeros(1, 8))
    with pytest.raises(ValueError, match=r"takes activations of shape \[batch, 6\], found \[2, 7\]"):
        make(8).encode(torch.zeros(2, 7))


# ------------------------------------------------------------------------------ activations


def test_a_store_holds_both_hook_points(model, token_rows, transcoder_store):
    store = transcoder_store
    assert (store.hook_point, store.target, store.d_in, store.d_out) == (HOOK_POINT, TARGET, 16, 16)
    parts = [capture(model, token_rows.tokens, name) for name in (HOOK_POINT, TARGET)]
    # A pass in other batches rounds in other places.
    torch.testing.assert_close(store.rows(0, store.n_rows), torch.cat(parts, dim=2), rtol=1e-5, atol=1e-5)
    norms = [part.norm(dim=2) for part in parts]
    massive = [n > 10 * n.flatten().median() for n in norms]
    expected = massive[0] | massive[1] | store.special
    expected[:, 0] = True
    assert torch.equal(store.excluded, expected)
    torch.testing.assert_close(store.norms, norms[1], rtol=1e-5, atol=1e-5)
    again = ActivationStore.open(store.path)
    again.verify()
    assert again.content_hash == store.content_hash


def test_a_massive_input_or_target_excludes_the_position(model, token_rows, tmp_path):
    store = harvest(
        model, token_rows, "blocks.1.hook_resid_pre", target=TARGET, path=tmp_path / "s", progress=False
    )
    x, y = (capture(model, token_rows.tokens, n).norm(dim=2) for n in ("blocks.1.hook_resid_pre", TARGET))
    limits = store.manifest["exclusion"]["norm_limit"]
    assert limits == pytest.approx([10 * float(n.flatten().median()) for n in (x, y)], rel=1e-2)


def test_a_stream_holds_what_a_store_does(model, token_rows, transcoder_store):
    stream = StreamedActivations(
        model, token_rows, HOOK_POINT, target=TARGET, dtype=torch.float32, batch_rows=2, buffer_tokens=64
    )
    assert (stream.d_in, stream.d_out, stream.target) == (16, 16, TARGET)
    some = transcoder_store.positions[::7]
    torch.testing.assert_close(stream.read(some), transcoder_store.read(some), rtol=1e-5, atol=1e-5)
    batch = next(stream.shuffled(8, seed=0))
    assert batch.shape == (8, 32)


def test_a_store_with_another_target_is_not_resumed(model, token_rows, transcoder_store):
    for target in (None, "blocks.1.hook_resid_post"):
        with pytest.raises(ValueError, match="target is"):
            harvest(
                model,
                token_rows,
                HOOK_POINT,
                target=target,
                path=transcoder_store.path,
                dtype=torch.float32,
                batch_rows=2,
                shard_rows=4,
            )


def test_targets_come_after_inputs(model, token_rows, tmp_path):
    with pytest.raises(ValueError, match="comes after"):
        harvest(model, token_rows, TARGET, target=HOOK_POINT, path=tmp_path / "s", progress=False)


def test_a_store_made_of_arrays(pair, tmp_path):
    x, y = pair.split([D_IN, D_OUT], dim=1)
    store = ActivationStore.from_array(tmp_path / "s", x, targets=y, hook_point="x", target="y")
    assert torch.equal(store.read(slice(None)), pair)
    with pytest.raises(ValueError, match="one target for each"):
        ActivationStore.from_array(tmp_path / "t", x, targets=y[1:], hook_point="x", target="y")
    with pytest.raises(ValueError, match="given together"):
        ActivationStore.from_array(tmp_path / "t", x, targets=y, hook_point="x")


def test_what_does_not_belong_together_is_refused(pair, tmp_path):
    x, y = pair.split([D_IN, D_OUT], dim=1)
    store = ActivationStore.from_array(tmp_path / "s", x, targets=y, hook_point="x", target="y")
    sae = Dictionary.from_weights(random(D_IN, 8), random(8, D_IN), d_in=D_IN, info={"hook_point": "x"})
    plain = ActivationStore.from_array(tmp_path / "p", x, hook_point="x")
    for dictionary, activations, what in (
        (sae, store, r"d_out none \(no target\)"),
        (make(8), plain, r"d_out 5.*d_out none|d_out 5, the second none"),
        (make(8), x, r"d_in \+ d_out 11, the second 6"),
        (replace(make(8), info=make(8).info | {"target": "z"}), store, "target z, the second y"),
    ):
        with pytest.raises(MismatchError, match=what):
            saekit.evaluate(dictionary, activations)
    with pytest.raises(MismatchError, match="d_out"):
        saekit.insertion(sae, make(8), store)
    with pytest.raises(ValueError, match="one form"):
        saekit.Family([sae, make(12)])
    with pytest.raises(ValueError, match="one target"):
        saekit.Family([make(8), replace(make(12), info=make(12).info | {"target": "z"})])


# ------------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize("skip", [True, False])
def test_fvu_is_that_of_the_target(skip, pair, tmp_path):
    transcoder = make(12, skip=skip)
    result = saekit.evaluate(transcoder, pair, batch_size=50)
    assert result.fvu == pytest.approx(fvu(transcoder, pair), rel=1e-5)
    x, y = pair.split([D_IN, D_OUT], dim=1)
    store = ActivationStore.from_array(tmp_path / "s", x, targets=y, hook_point="x", target="y")
    assert saekit.evaluate(transcoder, store).fvu == pytest.approx(result.fvu, rel=1e-6)
    # The latents explain what bias and skip connection leave.
    left = y - transcoder.b_dec - (x @ transcoder.W_skip if skip else 0)
    z = transcoder.encode(x) @ transcoder.W_dec
    expected = float((z.double() ** 2).sum() / (z * left).double().sum())
    assert result.reconstruction_bias == pytest.approx(expected, rel=1e-4)


def test_ce_degradation_replaces_the_target(model, transcoder_store):
    store = transcoder_store
    transcoder = Transcoder.from_weights(
        random(16, 24),
        random(24, 16, seed=1),
        W_skip=random(16, 16, seed=2) / 4,
        info={"hook_point": HOOK_POINT, "target": TARGET, **_origin(store)},
    )
    result = saekit.ce_degradation(model, transcoder, store, max_rows=5, batch_rows=2)
    rows = torch.linspace(0, store.n_rows - 1, 5).round().long()
    changes = []
    for row in rows:
        tokens, kept = store.tokens[row : row + 1], store.excluded[row]
        inputs = {}

        def remember(x, hook, inputs=inputs):
            inputs["x"] = x

        def put(y, hook, inputs=inputs, kept=kept):
            return torch.where(kept[None, :, None], y, transcoder.reconstruct(inputs["x"][0])[None])

        with torch.no_grad():
            plain = model(tokens, return_type="logits")
            changed = model.run_with_hooks(tokens, fwd_hooks=[(HOOK_POINT, remember), (TARGET, put)])
        targets = ~store.special[row, 1:]
        losses = [
            torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="none")[targets]
            for logits in (changed, plain)
        ]
        changes.append((float((losses[0] - losses[1]).sum()), int(targets.sum())))
    total, n = map(sum, zip(*changes, strict=True))
    assert float(result.frame["ce_degradation"].iloc[0]) == pytest.approx(total / n, abs=1e-5)
    # Zero ablation is of the target too.
    with torch.no_grad():
        zero = [
            model.run_with_hooks(
                store.tokens[row : row + 1],
                fwd_hooks=[
                    (
                        TARGET,
                        lambda y, hook, row=row: torch.where(
                            store.excluded[row][None, :, None], y, torch.zeros_like(y)
                        ),
                    )
                ],
            )
            for row in rows
        ]
    losses = [
        torch.nn.functional.cross_entropy(logits[0, :-1], store.tokens[row, 1:], reduction="none")[
            ~store.special[row, 1:]
        ].sum()
        for logits, row in zip(zero, rows, strict=True)
    ]
    assert result.ce_zero_ablation == pytest.approx(float(sum(losses)) / n, abs=1e-5)


def _origin(store):
    model = store.manifest["model"]
    names = {"model": "name", "model_weights": "weights", "model_revision": "revision"}
    return {ours: model[theirs] for ours, theirs in names.items()} | {"model_processing": model["processing"]}


# ------------------------------------------------------------------------------ families


@pytest.mark.parametrize(
    ("bias", "skips"),
    list(product(("small", "large", "interpolated"), ((True, True), (False, True), (False, False)))),
)
def test_stitching_equals_brute_force(bias, skips, pair):
    small, large = (make(width, skip=skip) for width, skip in zip((8, 14), skips, strict=True))
    expected = None
    for order in ("similarity", "greedy_gain", "static_gain"):
        path = saekit.stitch(small, large, pair, theta=0.5, bias=bias, order=order)
        found = path.frame["fvu"]
        expected = [fvu(path.dictionary(step), pair) for step in range(path.n_steps + 1)]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert found.iloc[0] == pytest.approx(fvu(small, pair), rel=1e-5)
        assert found.iloc[-1] == pytest.approx(fvu(large, pair), rel=1e-5)
        last = path.dictionary(path.n_steps)
        for name, tensor in large.tensors().items():
            assert torch.equal(getattr(last, name), tensor), name


def test_the_order_by_gain_counts_the_skip_connection(pair):
    """With the bias first, the gain of a move is that of the dictionaries before and after it."""
    small, large = make(8), make(14)
    path = saekit.stitch(small, large, pair, theta=0.5, bias="large", order="static_gain")
    start = path.dictionary(1)  # the small latents, with the large bias and skip connection
    inserted = [path.at(step)["inserted"] for step in range(2, path.n_steps + 1)]
    phases = [path.at(step)["phase"] for step in range(2, path.n_steps + 1)]
    gains = [
        fvu(saekit.insert_latents(start, large.gather(latents)), pair) - fvu(start, pair)
        for latents, phase in zip(inserted, phases, strict=True)
        if phase == "insert"
    ]
    assert len(gains) > 3
    assert gains == sorted(gains)


def test_matched_curves_know_the_skip_connection(pair):
    small, large = make(8), make(14)
    path = saekit.stitch(small, large, pair, theta=0.5)
    curve = saekit.matched_curve(path, pair, n_points=2).frame
    first = curve.iloc[0]
    assert first["fvu_matched"] == pytest.approx(fvu(small, pair), rel=1e-5)


def test_insertion_equals_brute_force(pair):
    small, large = make(8), make(14)
    result = saekit.insertion(small, large, pair)
    variance = float((pair[:, D_IN:] - pair[:, D_IN:].mean(0)).double().square().sum())
    expected = [
        (fvu(saekit.insert_latents(small, large.gather([latent])), pair) - fvu(small, pair))
        * variance
        / len(pair)
        for latent in range(large.width)
    ]
    np.testing.assert_allclose(result.mse_change, expected, rtol=1e-4, atol=1e-5)


def test_every_family_analysis_takes_transcoders(pair):
    family = saekit.Family(make(width, seed) for width in (8, 14, 20) for seed in (0, 1))
    chain = saekit.stitch_chain(family, pair, theta=0.5)
    assert chain.frame["fvu"].iloc[-1] == pytest.approx(fvu(family[20], pair), rel=1e-5)
    assert saekit.measure_splitting(family[8], family[14], theta=0.4).summary
    assert saekit.measure_uniqueness(family[14], family.second_seed(14)).summary
    frankenstein = saekit.build_frankenstein(family, pair)
    assert isinstance(frankenstein.dictionaries[-1], Transcoder)
    meta = saekit.meta_sae(family[20], width=6, k=2, recipe=replace(RECIPES["lesswrong"], steps=30))
    assert meta.reconstruct().shape == (20, D_OUT)


def test_a_topk_transcoder_becomes_one_of_thresholds(pair):
    topk = make(14, k=3)
    found = saekit.as_jumprelu(topk, pair)
    assert isinstance(found.dictionary, Transcoder)
    assert found.frame["fvu"].tolist() == pytest.approx(
        [saekit.evaluate(each, pair).fvu for each in (topk, found.dictionary)], rel=1e-5
    )


# ------------------------------------------------------------------------------ training


@pytest.mark.parametrize(
    "variant",
    [
        saekit.ReLU(target_l0=4),
        saekit.TopK(k=3),
        saekit.BatchTopK(k=3),
        saekit.JumpReLU(target_l0=4),
        saekit.Gated(target_l0=4),
        saekit.Matryoshka(k=3, prefixes=(0.5, 1.0)),
    ],
    ids=lambda variant: variant.kind,
)
def test_training_predicts_the_target(variant, tmp_path):
    """Of a target that is linear in the input, a skip connection learns all that the latents do not."""
    x = random(2048, D_IN) * 3 + 1
    y = x @ random(D_IN, D_OUT, seed=1) + 2
    store = ActivationStore.from_array(tmp_path / "s", x, targets=y, hook_point="x", target="y")
    config = saekit.TrainingConfig(variant, width=16, steps=100, batch_size=128, lr=0.03, skip=True)
    result = saekit.train(config, store, progress=False)
    transcoder = result.dictionary
    assert isinstance(transcoder, Transcoder)
    assert (transcoder.hook_point, transcoder.target) == ("x", "y")
    assert transcoder.W_skip.shape == (D_IN, D_OUT)
    assert result.log["fvu"].iloc[-1] == saekit.evaluate(transcoder, store).fvu < 0.05


def test_training_without_a_skip_connection(tmp_path):
    x = random(2048, D_IN) * 3 + 1
    y = torch.relu(x - 1) @ random(D_IN, D_OUT, seed=1)
    store = ActivationStore.from_array(tmp_path / "s", x, targets=y, hook_point="x", target="y")
    config = saekit.TrainingConfig(saekit.TopK(k=6), width=24, steps=150, batch_size=128, lr=0.01)
    transcoder = saekit.train(config, store, progress=False).dictionary
    assert transcoder.W_skip is None
    assert saekit.evaluate(transcoder, store).fvu < 0.3


def test_training_resumes_with_the_same_bits(tmp_path, pair):
    x, y = pair.split([D_IN, D_OUT], dim=1)
    store = ActivationStore.from_array(tmp_path / "s", x, targets=y, hook_point="x", target="y")
    config = saekit.TrainingConfig(
        saekit.ReLU(target_l0=4), width=12, steps=40, batch_size=32, log_every=10, decay=0, skip=True
    )
    whole = saekit.train(config, store, progress=False).dictionary
    short = replace(config, steps=20, variant=config.variant)
    with pytest.raises(KeyboardInterrupt):
        saekit.train(
            config,
            store,
            checkpoint=tmp_path / "c.safetensors",
            progress=False,
            on_log=_interrupt_at(20),
        )
    resumed = saekit.train(config, store, checkpoint=tmp_path / "c.safetensors", progress=False).dictionary
    assert resumed.content_hash == whole.content_hash
    assert short.steps == 20


def _interrupt_at(step):
    def on_log(dictionary, at):
        if at == step:
            raise KeyboardInterrupt

    return on_log


def test_a_skip_connection_needs_a_target(pair):
    config = saekit.TrainingConfig(saekit.TopK(k=2), width=8, steps=4, batch_size=16, skip=True)
    with pytest.raises(ValueError, match="for transcoders"):
        saekit.train(config, pair, progress=False)


def test_a_transcoder_is_trained_on_a_model(model, token_rows, transcoder_store):
    config = saekit.TrainingConfig(saekit.TopK(k=4), width=32, steps=200, batch_size=64, skip=True)
    transcoder = saekit.train(config, transcoder_store, progress=False).dictionary
    assert saekit.evaluate(transcoder, transcoder_store).fvu < 0.6
    stream = StreamedActivations(
        model, token_rows, HOOK_POINT, target=TARGET, dtype=torch.float32, buffer_tokens=256
    )
    streamed = saekit.train(config, stream, progress=False).dictionary
    assert saekit.evaluate(streamed, transcoder_store).fvu < 0.6
    degradation = saekit.ce_degradation(model, transcoder, transcoder_store, max_rows=4)
    assert np.isfinite(degradation.frame["ce_degradation"]).all()
