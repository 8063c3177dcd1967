"""OpenAI's SAEs on GPT-2 small: one `.pt` file with `pre_bias`, `latent_bias` and the activation's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saekit.folding import Unfolded
from saekit.loading.formats.tensor_file import Format, TensorFile, choice, is_pickled, read_entries, setting

STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def _recognises(path: Path) -> bool:
    return is_pickled(path) and {"pre_bias", "latent_bias"} <= set(read_entries(path))


def _read(path: Path) -> Unfolded:
    with TensorFile(path) as file:
        settings = file.value("activation_state_dict") if "activation_state_dict" in file else None
        # Files of the first version name no activation: they are ReLU.
        named = file.value("activation") if settings is not None or "activation" in file else "ReLU"
        activation = choice(named, path, "activation", ("ReLU", "TopK"))
        b_dec = file.take("pre_bias", "d_in")
        parameters: dict[str, Any] = {
            "W_enc": file.take("encoder.weight", "d_sae", "d_in").T,
            "b_enc": file.take("latent_bias", "d_sae"),
            "W_dec": file.take("decoder.weight", "d_in", "d_sae").T,
            "b_dec": b_dec,
            "pre_bias": b_dec,
        }
        # State dictionaries of torch hold the activation's settings a second time.
        again = file.value("activation.k") if "activation.k" in file else None
        file.drop(*STATISTICS, "activation.postact_fn")
    if activation == "ReLU":
        return Unfolded(**parameters, info={"kind": "relu"})
    settings = settings or {}
    k = setting(settings, path, "k", int)
    if again is not None and int(again) != k:
        raise ValueError(
            f"{path} gives k twice: {k} in activation_state_dict and {int(again)} as activation.k."
        )
    choice(settings.get("postact_fn", "ReLU"), path, "postact_fn", ("ReLU",))
    # The authors normalise the input of exactly these, and do not record it in the file.
    return Unfolded(**parameters, k=k, normalization="layer_norm", info={"kind": "topk"})


FORMAT = Format(
    name="OpenAI sparse_autoencoder",
    files="a .pt file with pre_bias and latent_bias",
    recognises=_recognises,
    read=_read,
)
