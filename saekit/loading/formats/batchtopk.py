"""The BatchTopK and Matryoshka repositories of the paper's authors: `sae.pt` with `config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from saekit.folding import Unfolded
from saekit.loading.formats.tensor_file import (
    Format,
    TensorFile,
    choice,
    is_pickled,
    read_config,
    refuse_transcoder,
    setting,
)

KINDS = {
    "vanilla": "relu",
    "topk": "topk",
    "batchtopk": "batchtopk",
    "batch-topk": "batchtopk",
    "jumprelu": "jumprelu",
    "global-matryoshka-topk": "matryoshka",
}
SIZES = {"d_in": "act_size", "d_sae": "dict_size"}
# Settings of older versions of this code that changed the function and are gone.
GONE = {"use_encoder_bias": False, "tied_weights": False, "activation": "relu"}


def _config(path: Path) -> Path | None:
    """The settings beside the weights; some of the authors' files are named with capitals."""
    return next((p for name in ("config.json", "Config.json") if (p := path.with_name(name)).is_file()), None)


def _weights(path: Path) -> Path:
    if path.is_file():
        return path
    found = [p for name in ("sae.pt", "SAE.pt") if (p := path / name).is_file()]
    if len(found) == 2 and not found[0].samefile(found[1]):  # one file where names differ only in case
        raise ValueError(f"{path} holds two SAEs, sae.pt and SAE.pt: give the file.")
    return found[0] if found else path


def _recognises(path: Path) -> bool:
    weights = _weights(path)
    config = _config(weights) if is_pickled(weights) else None
    return config is not None and {"act_size", "dict_size"} <= set(read_config(config))


def _read(path: Path) -> Unfolded:
    weights = _weights(path)
    config_file = _config(weights)
    assert config_file is not None, "read is called on what was recognised"
    config = read_config(config_file)
    refuse_transcoder(config, config_file)
    kind = KINDS[choice(config.get("sae_type"), config_file, "sae_type", KINDS)]
    if "epochs" in config:  # their meta-SAEs are BatchTopK, whatever sae_type states
        kind = "batchtopk"
    for name, value in GONE.items():
        choice(config.get(name, value), config_file, name, (value,))
    unit = setting(config, config_file, "input_unit_norm", bool)
    info = {
        "kind": kind,
        "model": config.get("model_name"),
        "hook_point": config.get("hook_point"),
        "seed": config.get("seed"),
        "dataset": config.get("dataset_path"),
    }
    sizes = {ours: setting(config, config_file, theirs, int) for ours, theirs in SIZES.items()}
    with TensorFile(weights, **sizes) as file:
        b_enc, b_dec = file.take("b_enc", "d_sae"), file.take("b_dec", "d_in")
        parameters: dict[str, Any] = {
            "W_enc": file.take("W_enc", "d_in", "d_sae"),
            # TopK kinds of this code have an encoder bias that they never add.
            "b_enc": b_enc if kind in ("relu", "jumprelu") else torch.zeros_like(b_enc),
            "W_dec": file.take("W_dec", "d_sae", "d_in"),
            "b_dec": b_dec,
        }
        if kind != "jumprelu":
            parameters["pre_bias"] = b_dec
        parameters |= _competition(file, kind, config, config_file)
    return Unfolded(
        **parameters,
        normalization="layer_norm" if unit else None,
        info={key: value for key, value in info.items() if value is not None},
    )


def _competition(file: TensorFile, kind: str, config: dict[str, Any], config_file: Path) -> dict[str, Any]:
    if kind == "jumprelu":
        return {"threshold": file.take("jumprelu.log_threshold", "d_sae", infinite=True).double().exp()}
    if "group_sizes" in config:  # the Matryoshka code keeps a threshold, for its BatchTopK too
        return {"threshold": torch.tensor(file.number("threshold")).expand(file.sizes["d_sae"])}
    if kind == "relu":
        return {}
    k = setting(config, config_file, "top_k", int)
    return {"k": k} if kind == "topk" else {"batch_k": k}


FORMAT = Format(
    name="BatchTopK",
    files="a folder with sae.pt and config.json (act_size, dict_size, sae_type)",
    recognises=_recognises,
    read=_read,
)
