"""The attention-output SAEs on GPT-2 small: `<name>.pt` with `<name>_cfg.json`."""

from __future__ import annotations

from pathlib import Path

from saekit.folding import Unfolded
from saekit.loading.formats.tensor_file import (
    Format,
    TensorFile,
    is_pickled,
    read_config,
    refuse_transcoder,
    setting,
)

SIZES = {"d_in": "act_size", "d_sae": "dict_size"}
INFO = {"hook_point": "act_name", "seed": "seed", "model": "model_name"}


def _config(path: Path) -> Path:
    return path.with_name(f"{path.stem}_cfg.json")


def _recognises(path: Path) -> bool:
    return is_pickled(path) and _config(path).is_file()


def _read(path: Path) -> Unfolded:
    file = _config(path)
    config = read_config(file)
    refuse_transcoder(config, file)
    sizes = {ours: setting(config, file, theirs, int) for ours, theirs in SIZES.items()}
    with TensorFile(path, **sizes) as tensors:
        b_dec = tensors.take("b_dec", "d_in")
        return Unfolded(
            W_enc=tensors.take("W_enc", "d_in", "d_sae"),
            b_enc=tensors.take("b_enc", "d_sae"),
            W_dec=tensors.take("W_dec", "d_sae", "d_in"),
            b_dec=b_dec,
            pre_bias=b_dec,
            info={"kind": "relu"} | {name: config[key] for name, key in INFO.items() if key in config},
        )


FORMAT = Format(
    name="attention-output SAEs",
    files="<name>.pt with <name>_cfg.json",
    recognises=_recognises,
    read=_read,
)
