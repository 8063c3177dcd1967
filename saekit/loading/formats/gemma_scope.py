"""Gemma Scope: `params.npz` (the first release), `params.safetensors` with `config.json` (the second)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from saekit.folding import Unfolded
from saekit.loading.formats.tensor_file import (
    Format,
    TensorFile,
    choice,
    read_config,
    refuse_transcoder,
    setting,
)

FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"
# Folders and repositories: the files of the first release do not tell transcoders from SAEs.
CODER = re.compile(r"(?:^|[-_])(transcoder|crosscoder|clt)s?(?:[-_]|$)", re.IGNORECASE)
SAES = re.compile(
    r"gemma-scope-.*-(?:res|mlp|att)(?:-|$)|^(?:resid_post|attn_out|mlp_out)(?:_|$)", re.IGNORECASE
)
REPOSITORY = re.compile(r"(?:models--|google__|gemma-scope-)", re.IGNORECASE)
INNER = (
    4  # folders from a repository, with its name, down to a file: layer, width and average L0 are below it
)
SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


def _files(path: Path) -> list[Path]:
    candidates = [path / FIRST, path / SECOND] if path.is_dir() else [path]
    return [p for p in candidates if p.name in (FIRST, SECOND) and p.is_file()]


def _recognises(path: Path) -> bool:
    return bool(_files(path))


def _read(path: Path) -> Unfolded:
    file, *others = _files(path)
    if others:
        raise ValueError(f"{path} holds two SAEs, {FIRST} and {SECOND}: give the file.")
    if _coder(file):
        raise ValueError(
            f"{file} lies where Gemma Scope keeps its transcoders, which predict one hook point from "
            "another: saekit reads SAEs."
        )
    config_file = file.with_name(CONFIG)
    config = read_config(config_file) if config_file.is_file() else {}
    if config:
        _check(config, config_file)
    # The second release writes the matrices in small letters.
    enc, dec = ("W_enc", "W_dec") if file.name == FIRST else ("w_enc", "w_dec")
    with TensorFile(file, d_sae=config.get("width")) as t:
        if "affine_skip_connection" in t:
            raise ValueError(
                f"{file} holds affine_skip_connection, so it is a transcoder, which predicts one hook point "
                "from another: saekit reads SAEs."
            )
        W_enc = t.take(enc, "d_in", "d_sae")
        return Unfolded(
            W_enc=W_enc,
            b_enc=t.take("b_enc", "d_sae"),
            W_dec=t.take(dec, "d_sae", "d_in"),
            b_dec=t.take("b_dec", "d_in"),
            threshold=t.take("threshold", "d_sae", infinite=True),
            info={"kind": "jumprelu"} | _info(config, file),
        )


def _coder(file: Path) -> str | None:
    """`"transcoder"`, `"crosscoder"` or `"clt"`, if the nearest folder that tells is one of those."""
    for path in (file.absolute(), file.resolve()):  # a link may have another name
        for above, name in enumerate(reversed(path.parent.parts)):
            found = CODER.search(name)
            if found and (above < INNER or REPOSITORY.match(name)):
                return found[1].lower()
            if SAES.search(name):
                break
    return None


def _check(config: dict[str, Any], file: Path) -> None:
    """Check the settings of the second release that define the function."""
    refuse_transcoder(config, file)
    choice(config.get("architecture", "jump_relu"), file, "architecture", ("jump_relu",))
    choice(config.get("type", "sae"), file, "type", ("sae",))
    setting(config, file, "width", int, 0)


def _info(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """Layer, site and average L0, from settings or the folders' names."""
    where = file.absolute().parent.as_posix()  # not of a link into a cache
    info: dict[str, Any] = {}
    if layer := re.search(r"layer_(\d+)", where):
        site = re.search(r"gemma-scope-[^/]*-(res|mlp|att)(?:/|$)", where)
        if site:
            info["hook_point"] = f"blocks.{layer[1]}.{SITES[site[1]]}"
    if l0 := re.search(r"average_l0_(\d+)", where):
        info["expected_l0"] = int(l0[1])
    if "model_name" in config:
        info["model"] = config["model_name"]
    if "hf_hook_point_in" in config:
        info["hf_hook_point"] = config["hf_hook_point_in"]
    return info


FORMAT = Format(
    name="Gemma Scope",
    files=f"{FIRST}, or {SECOND}, or the folder of one",
    recognises=_recognises,
    read=_read,
)
