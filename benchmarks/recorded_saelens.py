"""SAELens: what its classes save, and what they compute when they load it again.

Gemma Scope and the attention-output SAEs are here too: SAELens reads both, and has a class for each.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recorded import (
    D_IN,
    D_OUT,
    TOKENS,
    WIDTH,
    Case,
    K,
    Run,
    activations,
    batches,
    fill,
    parameters,
    write_config,
)
from sae_lens import saes
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAE, SAEMetadata, TrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import save_file
from torch import Generator, Tensor

HEADS = 3
SCALER = "activation_scaler.json"
THRESHOLD = 0.9  # of BatchTopK kinds
RESIDUAL, Z = "blocks.8.hook_resid_pre", "blocks.3.attn.hook_z"


def cases() -> Iterator[Case]:
    """Every architecture and normalisation, checkpoints, older files, and what is no SAE."""
    yield case("standard", "b_dec is subtracted first; decoder norms are not 1", "Standard")
    yield case("standard_no_b_dec", "b_dec is not subtracted", "Standard", apply_b_dec_to_input=False)
    yield case("topk", "latents compete as they are", "TopK", k=K)
    yield case(
        "topk_rescaled",
        "latents compete, and are shown, times their decoder norms",
        "TopK",
        k=K,
        rescale_acts_by_decoder_norm=True,
    )
    yield case("jumprelu", "a threshold a latent", "JumpReLU")
    yield case(
        "jumprelu_negative_threshold",
        "a threshold below zero lets no negative latent through",
        "JumpReLU",
        change=negative_thresholds,
    )
    yield case("gated", "r_mag, b_gate and b_mag", "Gated")
    for mode, short in (("layer_norm", "layer_norm"), ("constant_norm_rescale", "constant_norm")):
        for architecture, extra in (("Standard", {}), ("TopK", {"k": K}), ("JumpReLU", {})):
            yield case(
                f"{architecture.lower()}_{short}",
                f"normalize_activations {mode}",
                architecture,
                normalize_activations=mode,
                **extra,
            )
    yield case(
        "standard_hook_z",
        f"{HEADS} heads, concatenated in x and x_hat",
        "Standard",
        reshape_activations="hook_z",
        hook=Z,
    )
    yield case("standard_bf16", "bfloat16 in the file, expected in float32", "Standard", dtype="bfloat16")
    yield from finished()
    yield from checkpoints()
    yield from older()
    yield from transcoders()
    yield from no_saes()


def metadata(hook: str = RESIDUAL) -> SAEMetadata:
    """What a training run leaves."""
    return SAEMetadata(
        model_name="gpt2-small",
        hook_name=hook,
        context_size=128,
        prepend_bos=True,
        dataset_path="Skylion007/openwebtext",
        model_from_pretrained_kwargs={"center_writing_weights": True},
        neuronpedia_id="gpt2-small/8-toy",
    )


def make(kind: str, generator: Generator, hook: str = RESIDUAL, **settings: Any) -> SAE[Any]:
    """An SAE of a class by the first part of its name, with random parameters."""
    name = kind if kind.endswith("ranscoder") else f"{kind}SAE"
    config = getattr(saes, f"{name}Config")(d_in=D_IN, d_sae=WIDTH, metadata=metadata(hook), **settings)
    sae = getattr(saes, name)(config)
    fill(sae, generator, topk_threshold=THRESHOLD)
    return sae


def running(sae: SAE[Any], scaler: ActivationScaler | None = None) -> Run:
    """How SAELens computes with an SAE, on raw activations."""
    scaler = scaler or ActivationScaler()
    heads = sae.hook_z_reshaping_mode
    inputs: list[Tensor] = []

    def encode(x: Tensor) -> Tensor:
        inputs[:] = [x]
        x = scaler.scale(x)
        return sae.encode(x.unflatten(1, (HEADS, -1)) if heads else x)

    def decode(latents: Tensor) -> Tensor:
        if hasattr(sae, "W_skip"):  # only the whole function adds it
            return sae(inputs[0])
        x_hat = sae.decode(latents)
        return scaler.unscale(x_hat.flatten(1) if heads else x_hat)

    decoder = sae.W_dec.detach()
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        decoder = decoder / decoder.norm(dim=1, keepdim=True)
    if scaler.whitening is not None:
        decoder = decoder @ scaler.whitening.inverse_matrix.float()
    return Run(encode, decode, decoder / (scaler.scaling_factor or 1))


def case(
    name: str,
    shows: str,
    kind: str,
    change: Callable[[SAE[Any]], None] | None = None,
    **settings: Any,
) -> Case:
    """An SAE of an inference class."""

    def write(folder: Path, generator: Generator) -> Run:
        sae = make(kind, generator, **settings)
        if change:
            change(sae)
        sae.save_model(folder)
        return running(SAE.load_from_disk(folder, dtype="float32"))

    return Case(f"saelens/{name}", shows, write)


def negative_thresholds(sae: SAE[Any]) -> None:
    """Every other threshold with its sign changed."""
    sae.threshold.data[::2] *= -1


# ------------------------------------------------------------------------------ training classes


def finished() -> Iterator[Case]:
    """What training classes write at the end of a run."""

    def saved(kind: str, **settings: Any) -> Callable[[Path, Generator], Run]:
        def write(folder: Path, generator: Generator) -> Run:
            make(f"{kind}Training", generator, **settings).save_inference_model(folder)
            return running(SAE.load_from_disk(folder))

        return write

    unit = "save_inference_model has made decoder norms 1"
    yield Case("saelens/trained_topk", f"TopK: {unit}", saved("TopK", k=K))
    yield Case("saelens/trained_batchtopk", f"BatchTopK, now JumpReLU: {unit}", saved("BatchTopK", k=K))
    yield Case(
        "saelens/trained_matryoshka",
        f"Matryoshka BatchTopK, now JumpReLU: {unit}",
        saved("MatryoshkaBatchTopK", k=K, matryoshka_widths=[10, WIDTH]),
    )
    yield Case("saelens/trained_jumprelu", "JumpReLU: decoder norms stay", saved("JumpReLU"))


def checkpoints() -> Iterator[Case]:
    """What is written during a run: nothing is folded, and a scaler lies beside the weights."""
    yield Case("saelens/checkpoint_batchtopk", "a whole checkpoint of SAETrainer", full_checkpoint)
    yield checkpoint(
        "batchtopk_plain",
        "topk_threshold is about latents as they are",
        "BatchTopK",
        k=K,
        rescale_acts_by_decoder_norm=False,
    )
    scaled = {"normalize_activations": "expected_average_only_in"}
    yield checkpoint("standard_scaled", "activations times scaling_factor", "Standard", **scaled)
    yield checkpoint("jumprelu_scaled", "activations times scaling_factor", "JumpReLU", **scaled)
    yield checkpoint(
        "batchtopk_scaled",
        "topk_threshold is about latents times the decoder norms in the file",
        "BatchTopK",
        k=K,
        **scaled,
    )
    white = {"normalize_activations": "covariance_whitening"}
    yield checkpoint("standard_whitened", "(x - mean) @ matrix", "Standard", **white)
    yield checkpoint(
        "standard_whitened_no_b_dec",
        "(x - mean) @ matrix, b_dec is not subtracted",
        "Standard",
        apply_b_dec_to_input=False,
        **white,
    )
    yield checkpoint("gated_whitened", "(x - mean) @ matrix", "Gated", **white)
    yield checkpoint(
        "topk_whitened", "latents compete times the decoder norms in the file", "TopK", k=K, **white
    )


def checkpoint(name: str, shows: str, kind: str, **settings: Any) -> Case:
    """A training SAE and its scaler, as a checkpoint has them."""

    def write(folder: Path, generator: Generator) -> Run:
        sae = make(f"{kind}Training", generator, **settings)
        sae.save_model(folder)
        scaler = ActivationScaler()
        mode = settings.get("normalize_activations")
        if mode == "expected_average_only_in":
            scaler.estimate_scaling_factor(D_IN, batches(8, generator), 8)
        elif mode == "covariance_whitening":
            mixing = torch.eye(D_IN) + 0.5 * torch.randn(D_IN, D_IN, generator=generator)
            scaler.estimate_whitening(D_IN, (x @ mixing for x in batches(8, generator)), 8)
        scaler.save(str(folder / SCALER))
        return running(usable(folder), scaler)

    return Case(f"saelens/checkpoint_{name}", shows, write)


def full_checkpoint(folder: Path, generator: Generator) -> Run:
    """Two steps of SAETrainer and its own checkpoint."""
    sae = make("BatchTopKTraining", generator, k=K)
    settings = SAETrainerConfig(
        total_training_samples=1024, train_batch_size_samples=TOKENS, device="cpu", lr=1e-3, lr_end=1e-4
    )
    with torch.enable_grad():
        trainer = SAETrainer(settings, sae, data_provider=itertools.repeat(torch.empty(0)))
        for _ in range(2):
            trainer.step(activations(TOKENS, generator))
            trainer.n_training_steps += 1
    trainer.save_checkpoint(folder.name, folder.parent)
    return running(usable(folder))


def usable(folder: Path) -> SAE[Any]:
    """A checkpoint; one that computes batch by batch as SAELens converts it for use."""
    sae = TrainingSAE.load_from_disk(folder)
    if not hasattr(sae, "topk_threshold"):
        return sae
    with tempfile.TemporaryDirectory() as converted:
        sae.save_inference_model(converted)
        return SAE.load_from_disk(converted)


# ------------------------------------------------------------------------------ older versions

LEGACY = {
    "model_name": "gpt2-small",
    "hook_point": RESIDUAL,
    "hook_point_layer": 8,
    "hook_point_head_index": None,
    "dataset_path": "Skylion007/openwebtext",
    "context_size": 128,
    "d_in": D_IN,
    "d_sae": WIDTH,
    "dtype": "torch.float32",
    "device": "cpu",
    "l1_coefficient": 8e-05,
    "lr": 0.0004,
    "seed": 42,
}


def older() -> Iterator[Case]:
    """Files of versions before 6, with flat settings."""

    def legacy(kind: str, scaling_factor: bool, **settings: Any) -> Callable[[Path, Generator], Run]:
        def write(folder: Path, generator: Generator) -> Run:
            k = {"k": K} if kind == "TopK" else {}
            tensors = dict(make(kind, generator, **k).state_dict())
            if scaling_factor:
                tensors["scaling_factor"] = torch.ones(WIDTH)
            save_file(tensors, folder / "sae_weights.safetensors")
            write_config(folder / "cfg.json", LEGACY | settings)
            return running(SAE.load_from_disk(folder))

        return write

    yield Case(
        "saelens/legacy_standard",
        "flat settings of version 2, with a scaling_factor of ones",
        legacy("Standard", True, normalize_activations=False, apply_b_dec_to_input=True),
    )
    yield Case(
        "saelens/legacy_topk",
        "TopK by the name of its activation function, on layer-normalised activations",
        legacy(
            "TopK",
            False,
            architecture="standard",
            activation_fn_str="topk",
            activation_fn_kwargs={"k": K},
            normalize_activations="layer_norm",
            apply_b_dec_to_input=True,
            sae_lens_training_version="3.13.0",
        ),
    )

    def log_threshold(folder: Path, generator: Generator) -> Run:
        sae = make("JumpReLUTraining", generator)
        sae.save_model(folder)
        tensors = sae.state_dict()
        tensors["log_threshold"] = tensors.pop("threshold").log()
        save_file(tensors, folder / "sae_weights.safetensors")
        return running(TrainingSAE.load_from_disk(folder))

    yield Case(
        "saelens/checkpoint_log_threshold", "an older JumpReLU checkpoint: exp(log_threshold)", log_threshold
    )


MLP = {"hook_name": "blocks.8.ln2.hook_normalized", "hook_name_out": "blocks.8.hook_mlp_out"}


def transcoders() -> Iterator[Case]:
    """Every class of transcoders, which have no training classes."""

    def transcoder(name: str, shows: str, kind: str) -> Case:
        def write(folder: Path, generator: Generator) -> Run:
            settings = {"d_out": D_OUT, "apply_b_dec_to_input": False}
            sae = make(kind, generator, **settings)
            for name, value in MLP.items():
                setattr(sae.cfg.metadata, name, value)
            sae.save_model(folder)
            return running(SAE.load_from_disk(folder))

        return Case(f"saelens/{name}", shows, write)

    yield transcoder("transcoder", "predicts one hook point from another", "Transcoder")
    yield transcoder("skip_transcoder", "adds x @ W_skip.T", "SkipTranscoder")
    yield transcoder("jumprelu_transcoder", "a threshold a latent", "JumpReLUTranscoder")
    shows = "a threshold a latent, and adds x @ W_skip.T"
    yield transcoder("jumprelu_skip_transcoder", shows, "JumpReLUSkipTranscoder")


def no_saes() -> Iterator[Case]:
    """Other things that SAELens saves in the same layout."""

    def other(name: str, shows: str, kind: str, refused: str, **settings: Any) -> Case:
        def write(folder: Path, generator: Generator) -> None:
            make(kind, generator, **settings).save_model(folder)

        return Case(f"saelens/{name}", f"refused: {shows}", write, refused=refused)

    yield other("abstopk", "latents may be negative", "AbsTopK", "abstopk", k=K)
    yield other("matching_pursuit", "latents are found one by one", "MatchingPursuit", "matching_pursuit")
    settings = {"n_heads": 2, "n_attn_layers": 1, "bottleneck_factor": 2}
    yield other("temporal", "latents depend on other tokens", "Temporal", "temporal", **settings)


# ------------------------------------------------------------------------------ published formats


def gemma_scope() -> Iterator[Case]:
    """Both releases, in the folders that they have on the hub."""
    first = ("W_dec", "W_enc", "b_dec", "b_enc", "threshold")

    def npz(where: str, save: Callable[..., None], d_out: int = D_IN) -> Callable[[Path, Generator], Run]:
        def write(folder: Path, generator: Generator) -> Run:
            tensors = parameters(generator, *first, d_out=d_out)
            (folder / where).mkdir(parents=True)
            save(folder / where / "params.npz", **{name: t.numpy() for name, t in tensors.items()})
            return jumprelu(tensors) if d_out == D_IN else jumprelu_transcoder(tensors)

        return write

    where = "layer_12/width_16k/average_l0_41"
    yield Case(
        "gemma_scope/gemma-scope-2b-pt-transcoders",
        "first release: only the repository's name tells that it is one",
        npz(where, np.savez, d_out=D_OUT),
        where,
    )
    for site, save, stored in (
        ("res", np.savez, "stored as they are"),
        ("mlp", np.savez_compressed, "compressed"),
    ):
        where = "layer_12/width_16k/average_l0_41"
        shows = f"first release, arrays {stored}; b_dec is not subtracted"
        yield Case(f"gemma_scope/gemma-scope-2b-pt-{site}", shows, npz(where, save), where)

    config = {
        "hf_hook_point_in": "model.layers.12.output",
        "hf_hook_point_out": "model.layers.12.output",
        "width": WIDTH,
        "model_name": "google/gemma-3-1b-pt",
        "architecture": "jump_relu",
        "l0": 41,
        "affine_connection": False,
        "type": "sae",
    }
    transcoder = config | {
        "hf_hook_point_in": "model.layers.12.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.12.post_feedforward_layernorm.output",
        "type": "transcoder",
    }

    def params(where: str, config: dict[str, Any] | None) -> Callable[[Path, Generator], Run]:
        def write(folder: Path, generator: Generator) -> Run:
            names = ["w_enc", "w_dec", "b_enc", "b_dec", "threshold"]
            transcoder = "transcoder" in where
            names += ["affine_skip_connection"] if "affine" in where else []
            tensors = parameters(generator, *names, d_out=D_OUT if transcoder else D_IN)
            as_saelens = {name.replace("w_", "W_"): t for name, t in tensors.items()}
            run = (jumprelu_transcoder if transcoder else jumprelu)(as_saelens)
            (folder / where).mkdir(parents=True)
            save_file(tensors, folder / where / "params.safetensors")
            if config:
                write_config(folder / where / "config.json", config, indent=2)
            return run

        return write

    where = "resid_post/layer_12_width_16k_l0_medium"
    yield Case("gemma_scope_2/resid_post", "second release", params(where, config), where)
    shows = "second release, as some folders are: no config.json"
    yield Case("gemma_scope_2/without_config", shows, params(where, None), where)
    where = "transcoder/layer_12_width_16k_l0_medium"
    shows = "predicts one hook point from another, without affine_skip_connection"
    yield Case("gemma_scope_2/transcoder", shows, params(where, transcoder), where)
    yield Case("gemma_scope_2/transcoder_without_config", shows, params(where, None), where)
    where += "_affine"
    affine = transcoder | {"affine_connection": True}
    shows = "adds x @ affine_skip_connection"
    yield Case("gemma_scope_2/transcoder_affine", shows, params(where, affine), where)


def jumprelu(tensors: dict[str, Tensor]) -> Run:
    """SAELens' class with these tensors, as its loaders of Gemma Scope set it up."""
    config = saes.JumpReLUSAEConfig(d_in=D_IN, d_sae=WIDTH, apply_b_dec_to_input=False)
    sae = saes.JumpReLUSAE(config)
    sae.load_state_dict(tensors)
    return running(sae)


def jumprelu_transcoder(tensors: dict[str, Tensor]) -> Run:
    """SAELens' class with these tensors, as its loaders of Gemma Scope set it up."""
    tensors = dict(tensors)
    skip = tensors.pop("affine_skip_connection", None)
    if skip is not None:
        tensors["W_skip"] = skip.T.contiguous()
    name = "JumpReLUTranscoder" if skip is None else "JumpReLUSkipTranscoder"
    settings = {"d_in": D_IN, "d_out": D_OUT, "d_sae": WIDTH, "apply_b_dec_to_input": False}
    sae = getattr(saes, name)(getattr(saes, f"{name}Config")(**settings))
    sae.load_state_dict(tensors)
    return running(sae)


def hook_z() -> Iterator[Case]:
    """The attention-output SAEs: SAELens' tensors in a `.pt`, with settings of another library."""
    name = "gpt2-small_L3_Hcat_z_lr1.20e-03_l19.00e-01_ds40_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9"
    config = {
        "seed": 49,
        "batch_size": 4096,
        "buffer_mult": 384,
        "lr": 0.0012,
        "num_tokens": 2000000000,
        "l1_coeff": 0.9,
        "beta1": 0.9,
        "beta2": 0.99,
        "dict_mult": 32,
        "seq_len": 128,
        "enc_dtype": "fp32",
        "model_name": "gpt2-small",
        "site": "z",
        "layer": 3,
        "head": "cat",
        "device": "cuda",
        "dict_size": WIDTH,
        "act_size": D_IN,
        "act_name": Z,
    }

    def write(folder: Path, generator: Generator) -> Run:
        tensors = parameters(generator, "W_enc", "W_dec", "b_enc", "b_dec")
        torch.save(tensors, folder / f"{name}.pt")
        write_config(folder / f"{name}_cfg.json", config)
        settings = saes.StandardSAEConfig(
            d_in=D_IN, d_sae=WIDTH, reshape_activations="hook_z", metadata=metadata(Z)
        )
        sae = saes.StandardSAE(settings)
        sae.load_state_dict(tensors)
        return running(sae)

    yield Case("connor_rob_hook_z/layer_3", "weights and settings side by side", write, f"{name}.pt")
