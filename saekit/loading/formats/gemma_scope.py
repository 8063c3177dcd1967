"""Gemma Scope: `params.npz` (the first release), `params.safetensors` with `config.json` (the second)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from saekit.folding import Unfolded
from saekit.loading.formats.tensor_file import (
    OTHER,
    Format,
    TensorFile,
    choice,
    marks_of,
    read_config,
    refuse_crosscoder,
    setting,
)

FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"
# Folders and repositories: the files of the first release do not tell transcoders from SAEs.
CODER = re.compile(r"(?:^|[-_])(transcoder|crosscoder|clt)s?(?:[-_]|$)", re.IGNORECASE)
SAES = re.compile(
    r"gemma-scope-.*-(?:res|mlp|att)(?:-|$)|^(?:resid_post|attn_out|mlp_out)(?:_|$)", re.IGNORECASE
)
REPOSITORY = re.compile(r"(?:models--|google__|gemma-scope-)", re.IGNORECASE)
INNER = 4  # folders from a repository down to a file: layer, width and average L0 are below its name
ARCHITECTURES = ("jump_relu", "jump_relu_transcoder")
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
    config_file = file.with_name(CONFIG)
    config = read_config(config_file) if config_file.is_file() else {}
    transcoder = _is_transcoder(config, file)
    if config:
        choice(config.get("architecture", "jump_relu"), config_file, "architecture", ARCHITECTURES)
        setting(config, config_file, "width", int, 0)
    # The second release writes the matrices in small letters.
    enc, dec = ("W_enc", "W_dec") if file.name == FIRST else ("w_enc", "w_dec")
    skip = "affine_skip_connection"
    with TensorFile(file, d_sae=config.get("width")) as t:
        transcoder |= skip in t
        if config.get("affine_connection") and skip not in t:
            raise ValueError(f"{config_file} sets affine_connection, but {file} holds no {skip}.")
        W_enc, d_out = t.take(enc, "d_in", "d_sae"), "d_out" if transcoder else "d_in"
        return Unfolded(
            W_enc=W_enc,
            b_enc=t.take("b_enc", "d_sae"),
            W_dec=t.take(dec, "d_sae", d_out),
            b_dec=t.take("b_dec", d_out),
            threshold=t.take("threshold", "d_sae", infinite=True),
            W_skip=t.take(skip, "d_in", "d_out") if skip in t else None,
            transcoder=transcoder,
            info={"kind": "jumprelu"} | _info(config, file, transcoder=transcoder),
        )


def _is_transcoder(config: dict[str, Any], file: Path) -> bool:
    """Whether settings or, where they do not tell, folders are those of a transcoder.

    Raises
    ------
    ValueError
        If they are those of a crosscoder or cross-layer transcoder, or contradict each other.
    """
    config_file = file.with_name(CONFIG)
    refuse_crosscoder(config, config_file)
    kind = str(choice(config.get("type", "sae"), config_file, "type", ("sae", "transcoder")))
    folder = _coder(file)
    if folder in OTHER:
        raise ValueError(
            f"{file} lies where Gemma Scope keeps what reads or predicts several layers ({folder}): saekit "
            "reads SAEs and transcoders."
        )
    marks = [name for name in marks_of(config) if name != "type"]
    if "type" in config and kind == "sae" and (marks or folder):
        told = f"{marks[0]} is {config[marks[0]]!r}" if marks else "the folder is that of transcoders"
        raise ValueError(f"{config_file} gives the type 'sae', but {told}: which of the two holds?")
    return kind == "transcoder" or bool(marks) or folder == "transcoder"


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


def _info(config: dict[str, Any], file: Path, *, transcoder: bool) -> dict[str, Any]:
    """Layer, site and average L0, from settings or the folders' names."""
    where = file.absolute().parent.as_posix()  # not of a link into a cache
    info: dict[str, Any] = {}
    if layer := re.search(r"layer_(\d+)", where):
        site = re.search(r"gemma-scope-[^/]*-(res|mlp|att)(?:/|$)", where)
        if transcoder and file.name == FIRST:
            # Trained on the normalised input before the norm's weights, which were folded into the MLP.
            info["hook_point"] = f"blocks.{layer[1]}.ln2.hook_normalized"
            info["target"] = f"blocks.{layer[1]}.hook_mlp_out"
        elif site and not transcoder:
            info["hook_point"] = f"blocks.{layer[1]}.{SITES[site[1]]}"
    if l0 := re.search(r"average_l0_(\d+)", where):
        info["expected_l0"] = int(l0[1])
    if "model_name" in config:
        info["model"] = config["model_name"]
    for name, theirs in {"hf_hook_point": "hf_hook_point_in", "hf_target": "hf_hook_point_out"}.items():
        if config.get(theirs) is not None and (transcoder or name == "hf_hook_point"):
            info[name] = config[theirs]
    return info


FORMAT = Format(
    name="Gemma Scope",
    files=f"{FIRST}, or {SECOND}, or the folder of one",
    recognises=_recognises,
    read=_read,
)
