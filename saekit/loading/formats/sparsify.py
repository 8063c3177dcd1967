"""sparsify: a folder with `cfg.json` and `sae.safetensors`."""

from __future__ import annotations

import re
from pathlib import Path

from saekit.folding import Unfolded
from saekit.loading.formats.tensor_file import (
    Format,
    TensorFile,
    choice,
    read_config,
    refuse_crosscoder,
    setting,
)

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"


def _recognises(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def _read(path: Path) -> Unfolded:
    file = path / CONFIG
    config = read_config(file)
    refuse_crosscoder(config, file)
    transcode = setting(config, file, "transcode", bool, False)
    if (run := path.parent / RUN).is_file():  # older versions kept transcode among the run's settings only
        transcode |= setting(read_config(run), run, "transcode", bool, False)
    skip = setting(config, file, "skip_connection", bool, False)
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
    with TensorFile(path / WEIGHTS, d_in=d_in, d_out=d_in, d_sae=width) as tensors:
        b_dec = tensors.take("b_dec", "d_in")
        # A skip connection adds x @ W_skip, whether the module's output is predicted or its own input.
        return Unfolded(
            W_enc=tensors.take("encoder.weight", "d_sae", "d_in").T,
            b_enc=tensors.take("encoder.bias", "d_sae"),
            W_dec=tensors.take("W_dec", "d_sae", "d_in"),
            b_dec=b_dec,
            pre_bias=None if transcode else b_dec,
            k=setting(config, file, "k", int),
            transcoder=transcode or skip,
            W_skip=tensors.take("W_skip", "d_out", "d_in").T if skip else None,
            info={"kind": "topk", "hf_hook_point": path.name}
            | (_place(path.name) if transcode else {"hf_target": path.name} if skip else {})
            | setting(config, file, "saekit", dict, {}),  # added by save_sae
        )


def _place(module: str) -> dict[str, str]:
    """The hook points of a transcoder, which predicts the output of an MLP or a block from its input."""
    found = re.search(r"(?:^|\.)(?:layers|h)\.(\d+)(\.mlp)?$", module)
    if found is None:
        return {}
    places = ("mlp.hook_in", "hook_mlp_out") if found[2] else ("hook_resid_pre", "hook_resid_post")
    hook_point, target = (f"blocks.{found[1]}.{place}" for place in places)
    return {"hook_point": hook_point, "target": target}


FORMAT = Format(
    name="sparsify",
    files=f"a folder with {CONFIG} and {WEIGHTS}",
    recognises=_recognises,
    read=_read,
)
