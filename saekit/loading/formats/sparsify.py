"""sparsify: a folder with `cfg.json` and `sae.safetensors`."""

from __future__ import annotations

from pathlib import Path

from saekit.folding import Unfolded
from saekit.loading.formats.tensor_file import (
    Format,
    TensorFile,
    choice,
    read_config,
    refuse_transcoder,
    setting,
)

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"


def _recognises(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def _read(path: Path) -> Unfolded:
    file = path / CONFIG
    config = read_config(file)
    refuse_transcoder(config, file)
    if (run := path.parent / RUN).is_file():  # older versions kept transcode among the run's settings only
        refuse_transcoder(read_config(run), run)
    activation = config.get("activation", "topk")
    if activation == "groupmax":
        raise ValueError(
            f"{path} holds a GroupMax SAE, whose latents compete within groups: saekit reads TopK SAEs of "
            "this library."
        )
    choice(activation, file, "activation", ("topk",))
    if config.get("signed"):
        raise ValueError(f"{file} sets signed: latents that may be negative have no place in saekit.")
    d_in = setting(config, file, "d_in", int)
    width = config.get("num_latents") or d_in * setting(config, file, "expansion_factor", int)
    with TensorFile(path / WEIGHTS, d_in=d_in, d_sae=width) as tensors:
        b_dec = tensors.take("b_dec", "d_in")
        return Unfolded(
            W_enc=tensors.take("encoder.weight", "d_sae", "d_in").T,
            b_enc=tensors.take("encoder.bias", "d_sae"),
            W_dec=tensors.take("W_dec", "d_sae", "d_in"),
            b_dec=b_dec,
            pre_bias=b_dec,
            k=setting(config, file, "k", int),
            info={"kind": "topk", "hf_hook_point": path.name},
        )


FORMAT = Format(
    name="sparsify",
    files=f"a folder with {CONFIG} and {WEIGHTS}",
    recognises=_recognises,
    read=_read,
)
