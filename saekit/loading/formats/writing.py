"""Dictionaries written for other libraries, in layouts that these load as their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekit.dictionary import Dictionary, Transcoder
from saekit.files import atomic_path, write_json, write_tensors
from saekit.loading.formats import dictionary_learning, is_saved, recognise, saelens, sparsify
from saekit.settings import choice

SAELENS_VERSION = "6.54.12"  # the version whose layout is written
MODES = {None: "none", "layer_norm": "layer_norm", "constant_norm": "constant_norm_rescale"}
ENCODER_COLUMNS = 4096  # in float64 at once


def save_sae(dictionary: Dictionary, folder: str | Path, *, format: str = "saelens") -> Path:
    """Write a dictionary as another library would, for that library's tools to load.

    The function is the same to the last bits of float32. A TopK dictionary whose latents compete by
    `h * rank_scale` is the exception: libraries have no such factors, so its latents are written in
    the units they compete in, with decoder rows of norm `1 / rank_scale`, and a library shows
    `latents * rank_scale`. `load_sae` undoes that. `dictionary.info` is written along, as `saekit`.

    Each file is written to a temporary name and renamed; the JSON, which makes the folder an SAE,
    comes last.

    Parameters
    ----------
    dictionary : Dictionary
        Trained, loaded, stitched, Frankenstein or `meta_sae(...).dictionary`.
    folder : str or Path
        Made if needed.
    format : str
        `"saelens"` (version 6: `cfg.json`, `sae_weights.safetensors`), `"dictionary_learning"`
        (`config.json`, `ae.pt`; SAEs alone) or `"sparsify"` (`cfg.json`, `sae.safetensors`; TopK alone).
        Transcoders of thresholds go to SAELens, TopK transcoders to sparsify.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        If there is no such format, it cannot express a part of the function (thresholds beside `k` in
        any; a normalisation of every row, or float64, in dictionary_learning and sparsify; a kind of
        transcoder), or the folder holds an SAE of another format.

    Examples
    --------
    >>> import tempfile
    >>> eye = torch.eye(3)
    >>> dictionary = Dictionary(eye, torch.zeros(3), eye, torch.zeros(3), threshold=torch.ones(3))
    >>> folder = save_sae(dictionary, tempfile.mkdtemp())
    >>> sorted(file.name for file in folder.iterdir())
    ['cfg.json', 'sae_weights.safetensors']
    """
    choice("format", format, WRITERS)
    folder = Path(folder)
    if others := {*recognise(folder), *(["saekit"] if is_saved(folder) else [])} - {NAMES[format]}:
        raise ValueError(
            f"{folder} holds an SAE of {' and '.join(sorted(others))} already: give another folder."
        )
    if dictionary.k is not None and dictionary.threshold.any():
        raise ValueError(
            f"{dictionary.name} has thresholds beside k={dictionary.k}, but the TopK kinds of {format} have "
            "none: saekit.as_jumprelu(dictionary, activations) makes it one of thresholds alone."
        )
    WRITERS[format](dictionary, folder)
    return folder


def _write_saelens(dictionary: Dictionary, folder: Path) -> None:
    tensors = _tensors(dictionary)
    architecture: dict[str, Any]
    if isinstance(dictionary, Transcoder):
        architecture = _transcoder_of_saelens(dictionary, tensors)
    elif dictionary.k is not None:
        architecture = {"architecture": "topk", "k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    elif tensors["threshold"].any():
        architecture = {"architecture": "jumprelu"}
    else:
        architecture = {"architecture": "standard"}
    if "jumprelu" not in architecture["architecture"]:
        del tensors["threshold"]
    info = dictionary.info
    processing = {flag: True for flag, on in info.get("model_processing", {}).items() if on}
    metadata = {
        "sae_lens_version": SAELENS_VERSION,
        "sae_lens_training_version": None,  # SAELens puts its own version where this is left out
        **{theirs: info[ours] for ours, theirs in saelens.METADATA.items() if ours in info},
        **({"hook_name_out": dictionary.target} if dictionary.transcoder else {}),
        "model_from_pretrained_kwargs": processing,
        "saekit": dict(info),
    }
    config = {
        **architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.width,
        "dtype": str(tensors["W_enc"].dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": MODES[dictionary.normalization],
        # SAELens then takes activations as the hook point has them, [..., n_heads, d_head].
        "reshape_activations": "hook_z" if (dictionary.hook_point or "").endswith("hook_z") else "none",
        "metadata": metadata,
    }
    (folder / saelens.CONFIG).unlink(missing_ok=True)  # an old one would describe the new weights
    write_tensors(folder / saelens.WEIGHTS, tensors)
    write_json(folder / saelens.CONFIG, config)


def _transcoder_of_saelens(dictionary: Transcoder, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The architecture of a transcoder; its skip connection gets the library's orientation."""
    if dictionary.k is not None:
        raise ValueError(
            f"{dictionary.name} keeps the {dictionary.k} largest latents, which no transcoder of SAELens "
            'does: format="sparsify" has a place for it, and saekit.as_jumprelu(dictionary, activations) '
            "makes it one of thresholds."
        )
    parts = ["jumprelu"] if tensors["threshold"].any() else []
    if "W_skip" in tensors:
        parts.append("skip")
        tensors["W_skip"] = tensors["W_skip"].T.contiguous()
    return {"architecture": "_".join([*parts, "transcoder"]), "d_out": dictionary.d_out}


def _write_sparsify(dictionary: Dictionary, folder: Path) -> None:
    if dictionary.k is None:
        raise ValueError(
            f'{dictionary.name} has no k, and sparsify knows TopK alone: format="saelens" has a place for it.'
        )
    if dictionary.d_out != dictionary.d_in:
        raise ValueError(
            f"{dictionary.name} predicts {dictionary.d_out} dimensions from {dictionary.d_in}, but a "
            "transcoder of sparsify has one dimension for both."
        )
    _require_plain(dictionary, "sparsify")
    info = dictionary.info
    places = (dictionary.hook_point, dictionary.target), (info.get("hf_hook_point"), info.get("hf_target"))
    own_input = any(here is not None and here == there for here, there in places)
    transcode = dictionary.transcoder and not own_input
    tensors = {name: tensor.float() for name, tensor in _tensors(dictionary).items()}
    own = {
        "encoder.weight": tensors["W_enc"].T,
        # Only one that predicts its input subtracts b_dec first.
        "encoder.bias": tensors["b_enc"] if transcode else _shifted(tensors),
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
    }
    if "W_skip" in tensors:
        own["W_skip"] = tensors["W_skip"].T
    config = {
        "activation": "topk",
        "expansion_factor": 32,  # without effect beside num_latents
        "normalize_decoder": True,
        "num_latents": dictionary.width,
        "k": dictionary.k,
        "multi_topk": False,
        "skip_connection": "W_skip" in tensors,
        "transcode": transcode,
        "d_in": dictionary.d_in,
        "saekit": dict(dictionary.info),
    }
    (folder / sparsify.CONFIG).unlink(missing_ok=True)  # an old one would describe the new weights
    write_tensors(folder / sparsify.WEIGHTS, {name: tensor.contiguous() for name, tensor in own.items()})
    write_json(folder / sparsify.CONFIG, config)


def _require_plain(dictionary: Dictionary, library: str) -> None:
    """Refuse what neither dictionary_learning nor sparsify has a place for."""
    if dictionary.normalization is not None:
        raise ValueError(
            f"{dictionary.name} normalises every row ({dictionary.normalization}), which no class of "
            f'{library} does: format="saelens" has a place for it.'
        )
    if not all(torch.equal(t.float().to(t.dtype), t) for t in dictionary.tensors().values()):
        raise ValueError(
            f"{dictionary.name} needs float64, and {library} computes in float32: "
            'format="saelens" has a place for it.'
        )


def _write_dictionary_learning(dictionary: Dictionary, folder: Path) -> None:
    if dictionary.transcoder:
        other = "saelens" if dictionary.k is None else "sparsify"
        raise ValueError(
            f"{dictionary.name} predicts another activation than it reads, which no class of "
            f'dictionary_learning does: format="{other}" has a place for it.'
        )
    _require_plain(dictionary, "dictionary_learning")
    tensors = {name: tensor.float() for name, tensor in _tensors(dictionary).items()}
    if dictionary.k is not None:
        names = {"dict_class": "AutoEncoderTopK", "trainer_class": "TopKTrainer"}
        tensors = _topk(tensors, dictionary.k)
        sparsity = {"k": dictionary.k}
    else:
        # ReLU too, as thresholds of zero: AutoEncoder subtracts b_dec before it encodes, so its
        # bias would have to be rounded anew, and neither SAEBench nor SAELens reads AutoEncoderNew.
        names = {"dict_class": "JumpReluAutoEncoder", "trainer_class": "JumpReluTrainer"}
        sparsity = {}
    info = dictionary.info
    training = info.get("training", {})
    trainer = {
        **names,  # SAEBench chooses its class by trainer_class
        "activation_dim": dictionary.d_in,
        "dict_size": dictionary.width,
        **sparsity,
        "lr": training.get("lr"),
        "steps": training.get("steps"),
        "seed": dictionary.seed,
        "device": "cpu",
        **_place(dictionary.hook_point),
        "lm_name": info.get("model"),
    }
    config = {"trainer": trainer, "buffer": {"ctx_len": info.get("context_length")}, "saekit": dict(info)}
    (folder / "config.json").unlink(missing_ok=True)  # an old one would describe the new weights
    with atomic_path(folder / "ae.pt") as temporary:
        # torch saves the whole storage of a view.
        torch.save(
            {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}, temporary
        )
    write_json(folder / "config.json", config)


def _tensors(dictionary: Dictionary) -> dict[str, Tensor]:
    """The five tensors of latents in the units in which they compete."""
    tensors = {name: tensor.cpu() for name, tensor in dictionary.tensors().items()}
    rank = tensors.pop("rank_scale", None)
    if rank is not None:
        tensors["W_enc"] = tensors["W_enc"] * rank
        tensors["b_enc"] = tensors["b_enc"] * rank
        tensors["W_dec"] = tensors["W_dec"] / rank[:, None]
    return tensors


def _shifted(tensors: Mapping[str, Tensor]) -> Tensor:
    """The encoder's bias for classes that encode `x - b_dec`."""
    b_dec = tensors["b_dec"].double()
    shift = torch.cat(
        [b_dec @ columns.double() for columns in tensors["W_enc"].split(ENCODER_COLUMNS, dim=1)]
    )
    return (tensors["b_enc"].double() + shift).float()


def _topk(tensors: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """The tensors of `AutoEncoderTopK`, which encodes `x - b_dec`."""
    return {
        "encoder.weight": tensors["W_enc"].T,
        "encoder.bias": _shifted(tensors),
        "decoder.weight": tensors["W_dec"].T,
        "b_dec": tensors["b_dec"],
        "k": torch.tensor(k, dtype=torch.int),
        "threshold": torch.tensor(-1.0),  # none was measured
    }


def _place(hook_point: str | None) -> dict[str, Any]:
    """`blocks.8.hook_resid_post` in the library's words."""
    found = re.fullmatch(r"blocks\.(\d+)\.(?:\w+\.)?hook_(\w+)", hook_point or "")
    if found is None:
        return {"layer": None, "submodule_name": hook_point}
    return {"layer": int(found[1]), "submodule_name": f"{found[2]}_layer_{found[1]}"}


WRITERS = {
    "saelens": _write_saelens,
    "dictionary_learning": _write_dictionary_learning,
    "sparsify": _write_sparsify,
}
NAMES = {
    "saelens": saelens.FORMAT.name,
    "dictionary_learning": dictionary_learning.FORMAT.name,
    "sparsify": sparsify.FORMAT.name,
}
