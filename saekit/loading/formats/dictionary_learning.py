"""dictionary_learning: `ae.pt` with `config.json`, or a checkpoint `ae_<step>.pt` of such a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from saekit.folding import Unfolded
from saekit.loading.formats.tensor_file import (
    Format,
    TensorFile,
    choice,
    read_config,
    read_entries,
    refuse_transcoder,
    setting,
)

KINDS = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "gated",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "matryoshka",
    "JumpReluAutoEncoder": "jumprelu",
}
BACKUP = {"step", "ae", "optimizer", "config", "norm_factor"}


def _files(path: Path) -> tuple[Path, Path]:
    """The weights and the settings that belong to a path."""
    weights = path / "ae.pt" if path.is_dir() else path
    folder = weights.parent.parent if weights.parent.name == "checkpoints" else weights.parent
    return weights, folder / "config.json"


def _recognises(path: Path) -> bool:
    weights, config = _files(path)
    named = weights.name == "ae.pt" or (weights.name.startswith("ae_") and weights.suffix == ".pt")
    return named and weights.is_file() and config.is_file()


def _read(path: Path) -> Unfolded:
    weights, config_file = _files(path)
    config = read_config(config_file)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise ValueError(f"{config_file} must hold the trainer's settings as trainer, found {trainer!r}.")
    refuse_transcoder(trainer, config_file)
    name = choice(trainer.get("dict_class"), config_file, "trainer.dict_class", KINDS)
    entries, scale = read_entries(weights), 1.0
    if "ae" in entries and set(entries) <= BACKUP:  # written during training
        # Its biases apply to activations divided by the factor; a finished file has them rescaled.
        factor = setting(entries, weights, "norm_factor", int | float, 1.0)
        if not 0 < factor < float("inf"):
            raise ValueError(f"{weights}: norm_factor must be positive and finite, found {factor}.")
        scale = 1 / factor
        entries = entries["ae"]
    info = {"kind": KINDS[name], "seed": trainer.get("seed"), "model": trainer.get("lm_name")}
    info |= {"dict_class": name, "layer": trainer.get("layer"), "submodule": trainer.get("submodule_name")}
    named = {"d_sae": "dict_size", "d_in": "activation_dim"}
    sizes = {ours: setting(trainer, config_file, theirs, int, 0) or None for ours, theirs in named.items()}
    with TensorFile(weights, entries, **sizes) as file:
        parameters = _layout(file, name)
        if name in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            parameters |= _competition(file, name, trainer, config_file)
    info = {key: value for key, value in info.items() if value is not None}
    info |= setting(config, config_file, "saekit", dict, {})  # added by save_sae
    return Unfolded(**parameters, scale=scale, info=info)


def _layout(file: TensorFile, name: str) -> dict[str, Any]:
    """Tensors in saekit's orientation: the classes on `nn.Linear` have them the other way round."""
    if name in ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"):
        tensors = {
            "W_enc": file.take("W_enc", "d_in", "d_sae"),
            "b_enc": file.take("b_enc", "d_sae"),
            "W_dec": file.take("W_dec", "d_sae", "d_in"),
            "b_dec": file.take("b_dec", "d_in"),
        }
        if name == "JumpReluAutoEncoder":
            return tensors | {"threshold": file.take("threshold", "d_sae", infinite=True)}
        return tensors | {"pre_bias": tensors["b_dec"]}
    encoder = file.take("encoder.weight", "d_sae", "d_in").T
    decoder = file.take("decoder.weight", "d_in", "d_sae").T
    if name == "GatedAutoEncoder":
        gain = file.take("r_mag", "d_sae").double().exp()
        b_mag = file.take("mag_bias", "d_sae").double()
        b_dec = file.take("decoder_bias", "d_in")
        # Open where x W + b_gate > 0, so where the magnitude exp(r) x W + b_mag exceeds this.
        threshold = b_mag - gain * file.take("gate_bias", "d_sae").double()
        return {"W_enc": encoder, "b_enc": b_mag, "W_dec": decoder, "b_dec": b_dec} | {
            "threshold": threshold,
            "gain": gain,
            "pre_bias": b_dec,
        }
    bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(name, "b_dec")
    b_dec, b_enc = file.take(bias, "d_in"), file.take("encoder.bias", "d_sae")
    tensors = {"W_enc": encoder, "b_enc": b_enc, "W_dec": decoder, "b_dec": b_dec}
    return tensors if name == "AutoEncoderNew" else tensors | {"pre_bias": b_dec}


def _competition(file: TensorFile, name: str, trainer: dict[str, Any], config_file: Path) -> dict[str, Any]:
    """How TopK kinds choose: the k largest of a token, or a threshold."""
    # The first versions keep k among the settings only, and measure no threshold.
    k = setting(trainer, config_file, "k", int, 0)
    if "k" in file and (held := file.number("k")) != (k := k or int(held)):
        raise ValueError(f"{config_file} gives k={k}, but {file.path} holds k={held:g}.")
    if k < 1:
        raise ValueError(f"{config_file} must give k as trainer.k, since {file.path} holds none.")
    threshold = file.number("threshold") if "threshold" in file else -1.0
    if name == "MatryoshkaBatchTopKSAE":
        groups = int(file.value("group_sizes").sum())
        if groups != file.sizes["d_sae"]:
            raise ValueError(
                f"{file.path}: group_sizes must sum to the width {file.sizes['d_sae']}, found {groups}."
            )
    if name == "AutoEncoderTopK":
        return {"k": k}  # the library does not use its threshold unless it is told to
    if threshold < 0:
        return {"batch_k": k}
    return {"threshold": torch.tensor(threshold).expand(file.sizes["d_sae"])}


FORMAT = Format(
    name="dictionary_learning",
    files="a folder with ae.pt and config.json, or checkpoints/ae_<step>.pt below one",
    recognises=_recognises,
    read=_read,
)
