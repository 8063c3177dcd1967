"""dictionary_learning: what its `trainSAE` writes, and what its classes compute from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from dictionary_learning import dictionary
from dictionary_learning.trainers import batch_top_k, gdm, jumprelu, matryoshka_batch_top_k, standard, top_k
from dictionary_learning.training import trainSAE
from recorded import D_IN, WIDTH, Case, K, Run, batches, fill
from torch import Generator, Tensor

GROUPS = [10, 30]
FOLDER = "trainer_0"
STEPS, STEP = 4, 3
CLASSES = {
    kind.__name__: kind
    for kind in (
        dictionary.AutoEncoder,
        dictionary.AutoEncoderNew,
        dictionary.GatedAutoEncoder,
        dictionary.JumpReluAutoEncoder,
        top_k.AutoEncoderTopK,
        batch_top_k.BatchTopKSAE,
        matryoshka_batch_top_k.MatryoshkaBatchTopKSAE,
    )
}


class AprilUpdate(standard.StandardTrainerAprilUpdate):
    """The trainer of AutoEncoderNew: 0.1.0 still has that class, but no trainer that makes it."""

    @property
    def config(self) -> dict[str, Any]:
        """Settings, with the names of such runs."""
        return super().config | {"trainer_class": "StandardTrainerNew", "dict_class": "AutoEncoderNew"}


class Buffer(list[Tensor]):
    """Batches of activations; the settings go to config.json."""

    config: ClassVar = {
        "d_submodule": D_IN,
        "io": "out",
        "n_ctxs": 3000,
        "ctx_len": 128,
        "refresh_batch_size": 24,
        "out_batch_size": 2048,
        "device": "cpu",
    }


def cases() -> Iterator[Case]:
    """All classes that `load_dictionary` knows, and what runs leave before they end."""
    yield case("autoencoder", "decoder norms are not folded", standard.StandardTrainer)
    yield case(
        "autoencoder_new",
        "decoder.bias is not subtracted",
        AprilUpdate,
        dict_class=dictionary.AutoEncoderNew,
    )
    yield case("gated", "r_mag, gate_bias and mag_bias", gdm.GatedSAETrainer)
    yield case("topk", "k a token; no threshold yet", top_k.TopKTrainer, k=K)
    shows = "k a token: the threshold in the file is not used"
    yield case("topk_threshold", shows, top_k.TopKTrainer, threshold=0.9, k=K)
    shows = "one threshold for all latents"
    yield case("batchtopk", shows, batch_top_k.BatchTopKTrainer, threshold=0.9, k=K)
    shows = "no threshold yet: k a row on average, of all rows together (latents_default: encode's ReLU)"
    yield case("batchtopk_unset", shows, batch_top_k.BatchTopKTrainer, k=K)
    yield case(
        "matryoshka",
        "groups, which do not act on the function",
        matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer,
        threshold=0.9,
        k=K,
        group_fractions=[size / WIDTH for size in GROUPS],
    )
    yield case("jumprelu", "b_dec is not subtracted", jumprelu.JumpReluTrainer)
    shows = "saved on the way: the settings are one folder up"
    yield Case("dictionary_learning/checkpoint", shows, checkpoint, f"{FOLDER}/checkpoints/ae_{STEP}.pt")
    for name, factor in (("backup", 1.0), ("backup_scaled", 2.5)):
        shows = f"ae.pt to go on from, of activations divided by {factor}; expected of raw ones"
        yield Case(f"dictionary_learning/{name}", shows, backup(factor), FOLDER)


def case(name: str, shows: str, trainer: type, threshold: float = -1.0, **settings: Any) -> Case:
    """What `trainSAE` writes of an SAE with random parameters, after no step."""

    def write(folder: Path, generator: Generator) -> Run:
        train(folder, filled(trainer, generator, threshold), 0, generator, **settings)
        return running(load(folder / FOLDER / "ae.pt", folder / FOLDER / "config.json"))

    return Case(f"dictionary_learning/{name}", shows, write, FOLDER)


def filled(trainer: type, generator: Generator, threshold: float) -> Callable[..., Any]:
    """The trainer's class, but the parameters are random; a threshold below 0 is none."""

    def make(**config: Any) -> Any:
        made = trainer(**config)
        fill(made.ae, generator)
        if made.ae.state_dict().get("threshold", torch.ones(1)).ndim == 0:
            made.ae.threshold.fill_(threshold)
        return made

    return make


def train(
    folder: Path,
    trainer: Callable[..., Any],
    steps: int,
    generator: Generator,
    save_steps: list[int] | None = None,
    **settings: Any,
) -> None:
    """The library's own training loop, with its own files."""
    config = {
        "trainer": trainer,
        "steps": 10_000,
        "activation_dim": D_IN,
        "dict_size": WIDTH,
        "layer": 8,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "device": "cpu",
        "seed": 0,
        "submodule_name": "resid_post_layer_8",
        **settings,
    }
    with torch.enable_grad():
        trainSAE(
            Buffer(batches(steps, generator)),
            [config],
            steps,
            save_steps=save_steps,
            save_dir=str(folder),
            device="cpu",
        )


def checkpoint(folder: Path, generator: Generator) -> Run:
    """Some steps of BatchTopK, by whose end it has a threshold, and a checkpoint before that."""
    trainer = filled(batch_top_k.BatchTopKTrainer, generator, -1.0)
    train(folder, trainer, STEPS, generator, [STEP], k=K, threshold_start_step=0)
    where = folder / FOLDER
    return running(load(where / "checkpoints" / f"ae_{STEP}.pt", where / "config.json"))


def backup(norm_factor: float) -> Callable[[Path, Generator], Run]:
    """What later versions of `trainSAE` keep in ae.pt until a run ends; 0.1.0 does not yet."""

    def write(folder: Path, generator: Generator) -> Run:
        made = []

        def make(**config: Any) -> Any:
            made.append(filled(standard.StandardTrainer, generator, -1.0)(**config))
            return made[0]

        train(folder, make, 1, generator)
        trainer, weights = made[0], folder / FOLDER / "ae.pt"
        state = {
            "step": 1,
            "ae": trainer.ae.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "config": trainer.config,
            "norm_factor": norm_factor,
        }
        torch.save(state, weights)
        # trainSAE divides activations by the factor, and at the end multiplies the biases by it.
        trainer.ae.scale_biases(norm_factor)
        return running(trainer.ae)

    return write


def load(weights: Path, config: Path) -> Any:
    """An SAE with the tensors of a file, as they are."""
    trainer = json.loads(config.read_text())["trainer"]
    kind = CLASSES[trainer["dict_class"]]
    sizes = [trainer["activation_dim"], trainer["dict_size"]]
    sizes += [trainer[name] for name in ("k", "group_sizes") if name in trainer]
    ae = kind(*sizes)
    ae.load_state_dict(torch.load(weights, weights_only=True))
    return ae


def running(ae: Any) -> Run:
    """How the library computes; without a threshold, as its trainers do then."""
    tensors = ae.state_dict()
    decoder = tensors["W_dec"] if "W_dec" in tensors else tensors["decoder.weight"].T
    if isinstance(ae, batch_top_k.BatchTopKSAE) and ae.threshold < 0:
        return Run(lambda x: ae.encode(x, use_threshold=False), ae.decode, decoder, ae.encode)
    return Run(ae.encode, ae.decode, decoder)
