"""Formats of repositories that are no packages: openai/sparse_autoencoder and the paper's authors'.

Their forward passes are stated here again, from reading `sparse_autoencoder/model.py`, `sae.py` of
bartbussmann/BatchTopK and bartbussmann/matryoshka_sae, and `meta_saes/sae.py`; files have the entries
that these classes' state_dict and the repositories' saving code give them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from recorded import D_IN, WIDTH, Case, K, Run, draw, parameters, write_config
from torch import Generator, Tensor

Select = Callable[[Tensor], Tensor]  # pre-activations to latents


def running(tensors: dict[str, Tensor], select: Select, *, centred: bool = True, unit: bool = False) -> Run:
    """Encode, select, decode, with matrices of inputs by outputs.

    Where activations are made to have mean 0 and standard deviation 1 token by token, the division
    is by the deviation plus 1e-5, and the multiplication at the end by the deviation itself.
    """
    W_enc, W_dec, b_dec = tensors["W_enc"], tensors["W_dec"], tensors["b_dec"]
    statistics: list[Tensor] = []

    def encode(x: Tensor) -> Tensor:
        if unit:
            statistics[:] = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
            x = (x - statistics[0]) / (statistics[1] + 1e-5)
        return select((x - b_dec if centred else x) @ W_enc + tensors.get("b_enc", 0))

    def decode(latents: Tensor) -> Tensor:
        x_hat = latents @ W_dec + b_dec
        return x_hat * statistics[1] + statistics[0] if unit else x_hat

    return Run(encode, decode, W_dec)


def topk(h: Tensor) -> Tensor:
    """The K largest of each row, if positive."""
    top = h.relu().topk(K)
    return torch.zeros_like(h).scatter(1, top.indices, top.values)


def batch_topk(h: Tensor) -> Tensor:
    """The K largest a row on average, of all rows together."""
    top = h.relu().flatten().topk(K * len(h))
    return torch.zeros(h.numel()).scatter(0, top.indices, top.values).view_as(h)


def above(threshold: Tensor) -> Select:
    """Latents that exceed a threshold, one or one each."""
    return lambda h: h.relu() * (h > threshold)


# ------------------------------------------------------------------------------ OpenAI


def openai() -> Iterator[Case]:
    """Both generations of SAEs on GPT-2 small."""
    shows = "first generation: ReLU, no normalisation"
    yield Case("openai/relu", shows, openai_file("ReLU"), "8.pt")
    shows = "fifth generation: TopK, and with it layer normalisation, which the file does not name"
    yield Case("openai/topk", shows, openai_file("TopK"), "8.pt")
    shows = "as state_dict() writes it now: activation.k and activation.postact_fn a second time"
    yield Case("openai/topk_nested", shows, openai_file("TopK", nested=True), "8.pt")


def openai_file(activation: str, nested: bool = False) -> Callable[[Path, Generator], Run]:
    """A state of their Autoencoder."""

    def write(folder: Path, generator: Generator) -> Run:
        state: OrderedDict[str, Any] = OrderedDict(
            pre_bias=draw("b_dec", (D_IN,), generator),
            latent_bias=draw("latent_bias", (WIDTH,), generator),
            stats_last_nonzero=torch.randint(100, (WIDTH,), generator=generator),
            latents_activation_frequency=torch.rand(WIDTH, generator=generator),
            latents_mean_square=torch.rand(WIDTH, generator=generator),
        )
        state["encoder.weight"] = draw("encoder.weight", (WIDTH, D_IN), generator)
        settings = OrderedDict(k=K, postact_fn="ReLU") if activation == "TopK" else OrderedDict()
        if nested:
            state |= {f"activation.{name}": value for name, value in settings.items()}
        state["decoder.weight"] = draw("decoder.weight", (D_IN, WIDTH), generator)
        state |= {"activation": activation, "activation_state_dict": settings}
        torch.save(state, folder / "8.pt")
        tensors = {
            "W_enc": state["encoder.weight"].T,
            "b_enc": state["latent_bias"],
            "W_dec": state["decoder.weight"].T,
            "b_dec": state["pre_bias"],
        }
        normalised = activation == "TopK"
        return running(tensors, topk if normalised else torch.relu, unit=normalised)

    return write


# ------------------------------------------------------------------------------ the paper's authors

BATCHTOPK = {
    "seed": 49,
    "batch_size": 4096,
    "lr": 0.0003,
    "num_tokens": 1000000000,
    "l1_coeff": 0,
    "beta1": 0.9,
    "beta2": 0.99,
    "max_grad_norm": 100000,
    "seq_len": 128,
    "dtype": "torch.float32",
    "model_name": "gpt2-small",
    "site": "resid_pre",
    "layer": 8,
    "act_size": D_IN,
    "dict_size": WIDTH,
    "device": "cuda",
    "model_batch_size": 512,
    "num_batches_in_buffer": 10,
    "dataset_path": "Skylion007/openwebtext",
    "wandb_project": "batchtopk_comparison",
    "input_unit_norm": True,
    "perf_log_freq": 1000,
    "sae_type": "topk",
    "checkpoint_freq": 10000,
    "n_batches_to_dead": 5,
    "top_k": K,
    "top_k_aux": 512,
    "aux_penalty": 0.03125,
    "bandwidth": 0.001,
    "hook_point": "blocks.8.hook_resid_pre",
}
META = {
    "epochs": 5000,
    "batch_size": 16384,
    "lr": 0.001,
    "input_unit_norm": False,
    "n_batches_to_dead": 100,
    "aux_penalty": 0.0625,
    "architecture": "standard",
    "threshold": None,
    "cosine_penalty": 0.0,
}


def batchtopk() -> Iterator[Case]:
    """All classes of the three repositories."""
    for unit in (True, False):
        suffix = "_unit_norm" if unit else ""
        with_norm = "; token by token mean 0, deviation 1" if unit else ""
        settings = {"input_unit_norm": unit}
        yield case(f"vanilla{suffix}", f"ReLU{with_norm}", "vanilla", **settings)
        yield case(f"topk{suffix}", f"b_enc is not used{with_norm}", "topk", **settings)
        shows = f"b_enc is not used, no threshold: k a row on average, of all rows together{with_norm}"
        yield case(f"batchtopk{suffix}", shows, "batchtopk", **settings)
        shows = f"exp(log_threshold); b_dec is not subtracted{with_norm}"
        yield case(f"jumprelu{suffix}", shows, "jumprelu", **settings)
    groups = {"group_sizes": "[10, 30]", "top_k_matryoshka": "[3, 3]", "input_unit_norm": False}
    shows = "matryoshka_sae: b_enc is not used, one threshold"
    yield case("matryoshka", shows, "global-matryoshka-topk", threshold=0.9, **groups)
    shows = "matryoshka_sae's own BatchTopK, which keeps a threshold"
    yield case("matryoshka_batchtopk", shows, "batch-topk", threshold=0.9, **groups)
    shows = "the released meta-SAE: BatchTopK, though sae_type says topk; SAE.pt and Config.json"
    yield case("meta_sae", shows, "topk", files=("SAE.pt", "Config.json"), batch=True, **META)


def case(
    name: str,
    shows: str,
    kind: str,
    *,
    threshold: float | None = None,
    files: tuple[str, str] = ("sae.pt", "config.json"),
    batch: bool = False,
    **settings: Any,
) -> Case:
    """A checkpoint: the state and the settings, in which what is no number is a string."""

    def write(folder: Path, generator: Generator) -> Run:
        tensors = parameters(generator, "b_dec", "b_enc", "W_enc", "W_dec")
        state = OrderedDict(tensors)
        if kind == "jumprelu":
            state["jumprelu.log_threshold"] = draw("log_threshold", (WIDTH,), generator)
        if threshold is not None:
            state["threshold"] = torch.tensor(threshold)
        torch.save(state, folder / files[0])
        config = BATCHTOPK | {"sae_type": kind} | settings
        config["name"] = "{model_name}_{hook_point}_{dict_size}_{sae_type}_{top_k}_{lr}".format(**config)
        write_config(folder / files[1], config, indent=4)
        if kind not in ("vanilla", "jumprelu"):
            del tensors["b_enc"]
        return running(
            tensors, selection(kind, state, batch), centred=kind != "jumprelu", unit=config["input_unit_norm"]
        )

    return Case(f"batchtopk/{name}", shows, write)


def selection(kind: str, state: dict[str, Tensor], batch: bool) -> Select:
    """How a class chooses its latents once it is trained."""
    if kind == "jumprelu":
        return above(state["jumprelu.log_threshold"].exp())
    if "threshold" in state:
        return above(state["threshold"])
    if kind == "batchtopk" or batch:
        return batch_topk
    return topk if kind == "topk" else torch.relu
