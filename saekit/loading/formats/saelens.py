"""SAELens, version 6 and before: a folder with `cfg.json` and `sae_weights.safetensors`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from saekit.folding import Unfolded
from saekit.loading.formats.tensor_file import (
    Format,
    TensorFile,
    choice,
    read_config,
    refuse_crosscoder,
    refuse_transcoder,
    setting,
)
from saekit.models import PROCESSING

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
KINDS = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "matryoshka",
}
TRANSCODERS = {
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
NORMALIZATIONS = {
    "none": None,
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
    "expected_average_only_in": None,
    "covariance_whitening": None,
}
# Settings of version 6 that define the function, and those that only affect training. Any other might
# change the function in a way unknown here.
FUNCTION = {
    "architecture", "d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations",
    "reshape_activations", "metadata", "k", "rescale_acts_by_decoder_norm", "d_out",
}  # fmt: skip
TRAINING = {
    "aux_loss_coefficient", "decoder_init_norm", "jumprelu_bandwidth", "jumprelu_init_threshold",
    "jumprelu_sparsity_loss_mode", "jumprelu_ste_to_input", "jumprelu_tanh_scale", "l0_coefficient",
    "l0_warm_up_steps", "l1_coefficient", "l1_warm_up_steps", "lp_norm", "matryoshka_widths",
    "pre_act_loss_coefficient", "target_l0", "topk_threshold_lr", "use_matryoshka_aux_loss",
    "use_sparse_activations",
}  # fmt: skip
RENAMED = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
METADATA = {  # entries of Dictionary.info, by their names in SAELens
    "model": "model_name",
    "hook_point": "hook_name",
    "neuronpedia_id": "neuronpedia_id",
    "context_length": "context_size",
    "prepend_bos": "prepend_bos",
    "dataset": "dataset_path",
    "trained_as": "training_architecture",
}
# Models that public SAEs are named after by TransformerLens, as the hub and `load_model` call them.
MODELS = {
    "gpt2-small": "gpt2",
    "gemma-2-2b": "google/gemma-2-2b",
    "pythia-70m-deduped": "EleutherAI/pythia-70m-deduped",
}
BATCH_KINDS = ("batchtopk", "matryoshka_batchtopk")
RESCALED_SINCE = (6, 14)  # the version that brought rescale_acts_by_decoder_norm


def _recognises(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def _read(path: Path) -> Unfolded:
    file = path / CONFIG
    config = read_config(file)
    metadata = setting(config, file, "metadata", dict, {})
    version = config.get("sae_lens_version") or metadata.get("sae_lens_version")
    legacy = version is None or re.match(r"[0-5]\.", str(version)) is not None
    if legacy:
        config, metadata = _from_legacy(config, file)
    architecture = str(config.get("architecture"))
    transcoder = architecture in TRANSCODERS
    for settings in (config, metadata):
        (refuse_crosscoder if transcoder else refuse_transcoder)(settings, file)
    choice(architecture, file, "architecture", KINDS | TRANSCODERS)
    if not legacy and (unknown := sorted(set(config) - FUNCTION - TRAINING)):
        raise ValueError(
            f"{file} holds settings that saekit does not know and that may change the function: "
            f"{', '.join(unknown)}."
        )
    name = "normalize_activations"
    mode = choice(config.get(name) or "none", file, name, NORMALIZATIONS)
    # Heads are concatenated before an activation is stored, so hook_z needs no reshaping.
    choice(config.get("reshape_activations") or "none", file, "reshape_activations", ("none", "hook_z"))
    sizes = {"d_in": setting(config, file, "d_in", int), "d_sae": setting(config, file, "d_sae", int)}
    if transcoder:
        return _transcoder(path, architecture, config, metadata, sizes)
    with TensorFile(path / WEIGHTS, **sizes) as tensors:
        parameters = _tensors(tensors, architecture, config, file, version)
        if setting(config, file, "apply_b_dec_to_input", bool, True):
            parameters["pre_bias"] = parameters["b_dec"]
        parameters["normalization"] = NORMALIZATIONS[mode]
        parameters |= _scaling(path, mode)
        info = _info(metadata, file, KINDS[architecture], mode)
    return Unfolded(**parameters, info=info)


def _transcoder(
    path: Path,
    architecture: str,
    config: Mapping[str, Any],
    metadata: Mapping[str, Any],
    sizes: Mapping[str, Any],
) -> Unfolded:
    """A transcoder, which encodes activations as they are: no bias is subtracted, and none normalised."""
    file = path / CONFIG
    if setting(config, file, "apply_b_dec_to_input", bool, False):
        raise ValueError(
            f"{file} sets apply_b_dec_to_input, but b_dec of a transcoder is a bias of its target."
        )
    for name in ("normalize_activations", "reshape_activations"):
        choice(config.get(name) or "none", file, name, ("none",))
    d_out = setting(config, file, "d_out", int)
    jumps, skips = "jumprelu" in architecture, "skip" in architecture
    with TensorFile(path / WEIGHTS, **sizes, d_out=d_out) as tensors:
        return Unfolded(
            W_enc=tensors.take("W_enc", "d_in", "d_sae"),
            b_enc=tensors.take("b_enc", "d_sae"),
            W_dec=tensors.take("W_dec", "d_sae", "d_out"),
            b_dec=tensors.take("b_dec", "d_out"),
            threshold=tensors.take("threshold", "d_sae", infinite=True) if jumps else None,
            W_skip=tensors.take("W_skip", "d_out", "d_in").T if skips else None,
            transcoder=True,
            info={"target": metadata.get("hook_name_out")}
            | _info(metadata, file, TRANSCODERS[architecture], "none"),
            **_scaling(path, "none"),
        )


def _from_legacy(config: Mapping[str, Any], file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Flat settings of versions before 6, by the names of version 6; the same dictionary as metadata."""
    config = {RENAMED.get(name, name): value for name, value in config.items()}
    choice(config.get("activation_fn", "relu"), file, "activation_fn", ("relu", "topk"))
    config.setdefault("architecture", "standard")
    if config.get("activation_fn") == "topk":
        config["architecture"] = "topk"
        kwargs = setting(config, file, "activation_fn_kwargs", dict, {})
        if config.setdefault("k", kwargs.get("k")) != kwargs.get("k", config["k"]):
            raise ValueError(
                f"{file} gives k twice: {config['k']} and {kwargs['k']} in activation_fn_kwargs."
            )
    if isinstance(config.get("normalize_activations"), bool):
        config["normalize_activations"] = (
            "expected_average_only_in" if config["normalize_activations"] else "none"
        )
    return config, config


def _rescaled(config: Mapping[str, Any], file: Path, version: Any) -> bool:
    """Whether a BatchTopK checkpoint's threshold applies to latents times their decoder norms.

    The setting came with version 6.14 and defaults to True there; earlier versions never multiplied by norms.
    """
    name = "rescale_acts_by_decoder_norm"
    if config.get(name) is not None:
        return setting(config, file, name, bool)
    found = re.match(r"(\d+)\.(\d+)", str(version))
    if found is None:
        raise ValueError(
            f"{file} must give {name}, or the version of SAELens that wrote it (sae_lens_version in its "
            f"metadata), found {version!r}: before version 6.14 thresholds meant something else."
        )
    return (int(found[1]), int(found[2])) >= RESCALED_SINCE


def _tensors(
    tensors: TensorFile, architecture: str, config: Mapping[str, Any], file: Path, version: Any
) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "W_enc": tensors.take("W_enc", "d_in", "d_sae"),
        "W_dec": tensors.take("W_dec", "d_sae", "d_in"),
        "b_dec": tensors.take("b_dec", "d_in"),
    }
    if architecture == "gated":
        gain = tensors.take("r_mag", "d_sae").double().exp()
        b_mag = tensors.take("b_mag", "d_sae").double()
        # Open where x W + b_gate > 0, so where the magnitude exp(r) x W + b_mag exceeds this.
        threshold = b_mag - gain * tensors.take("b_gate", "d_sae").double()
        return parameters | {"b_enc": b_mag, "gain": gain, "threshold": threshold}
    parameters["b_enc"] = tensors.take("b_enc", "d_sae")
    if architecture == "topk":
        parameters["k"] = setting(config, file, "k", int)
        parameters["rescaled"] = setting(config, file, "rescale_acts_by_decoder_norm", bool, False)
    if architecture == "jumprelu":
        parameters["threshold"] = (
            tensors.take("log_threshold", "d_sae", infinite=True).exp()
            if "log_threshold" in tensors
            else tensors.take("threshold", "d_sae", infinite=True)
        )
    if architecture in BATCH_KINDS:  # a checkpoint of training
        parameters["threshold"] = torch.tensor(tensors.number("topk_threshold")).expand(
            tensors.sizes["d_sae"]
        )
        parameters["rescaled"] = _rescaled(config, file, version)
    if "scaling_factor" in tensors:
        factor = tensors.take("scaling_factor", "d_sae")
        if not torch.equal(factor, torch.ones_like(factor)):
            raise ValueError(
                f"{tensors.path}: scaling_factor must be 1 everywhere, found {factor.min():.4g} to "
                f"{factor.max():.4g}: an SAE fine-tuned by factors is not read."
            )
    return parameters


def _scaling(path: Path, mode: str) -> dict[str, Any]:
    """The scale or whitening of a checkpoint's activations, which a finished SAE has folded in."""
    if mode == "expected_average_only_in":
        scaler = path / SCALER
        if not scaler.is_file():
            raise ValueError(
                f"{path / CONFIG} has activations multiplied by a factor ({mode}), but no {SCALER} "
                'beside it gives the factor; write {"scaling_factor": 1.0} there if it was folded into the '
                "weights, else the square root of d_in over the mean norm of the training activations."
            )
        return {"scale": setting(read_config(scaler), scaler, "scaling_factor", int | float)}
    if mode == "covariance_whitening":
        with TensorFile(path / WHITENING) as tensors:
            mean = tensors.take("mean", "d_in")
            matrix = tensors.take("matrix", "d_in", "d_in")
            inverse = tensors.take("inverse_matrix", "d_in", "d_in")
        return {"mean": mean, "whitening": (matrix, inverse)}
    return {}


def _info(metadata: Mapping[str, Any], file: Path, kind: str, mode: str) -> dict[str, Any]:
    options = setting(metadata, file, "model_from_pretrained_kwargs", dict, {})
    info = {
        "kind": kind,
        **{ours: metadata.get(theirs) for ours, theirs in METADATA.items()},
        "model": MODELS.get(str(name := metadata.get("model_name")), name),
        "model_processing": {flag: bool(options[flag]) for flag in PROCESSING if flag in options},
        "input_normalization": None if mode == "none" else mode,
    }
    known = {name: value for name, value in info.items() if value not in (None, {})}
    return known | setting(metadata, file, "saekit", dict, {})  # added by save_sae


FORMAT = Format(
    name="SAELens",
    files=f"a folder with {CONFIG} and {WEIGHTS}",
    recognises=_recognises,
    read=_read,
)
