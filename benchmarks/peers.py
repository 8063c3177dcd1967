"""The peers' own trainers: each makes its library's whole training step, by the library's own code.

Losses keep each library's own weights. What is set alike everywhere is the learning rate with its
warm-up and decay, the sparsity, and after how many tokens a latent counts as dead, so that the
auxiliary loss has the same latents to work on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trainers import Task, Trainer, Weights

L1 = 1.0  # for kinds whose sparsity is not fixed; dense steps take as long with any


class SAELens(Trainer):
    """`SAETrainer.step` of SAELens, with the calls that `fit` makes around it.

    Includes the auxiliary loss, firing counts and dead latents, clipping of the gradient's norm,
    Adam, and the schedules of the learning rate and of coefficients. SAELens does not project
    gradients; it multiplies pre-activations by the decoder's norms instead, its default.
    """

    label = "SAELens"
    kinds = ("relu", "gated", "topk", "batchtopk", "jumprelu")

    def __init__(self, task: Task) -> None:
        from sae_lens import saes
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        name, extra = {
            "relu": ("Standard", {"l1_coefficient": L1}),
            "gated": ("Gated", {"l1_coefficient": L1}),
            "topk": ("TopK", {"k": task.k}),
            "batchtopk": ("BatchTopK", {"k": task.k}),
            "jumprelu": ("JumpReLU", {"l0_coefficient": L1}),
        }[task.kind]
        config = getattr(saes, f"{name}TrainingSAEConfig")(
            d_in=task.d_in, d_sae=task.width, device=task.device, **extra
        )
        self.sae = getattr(saes, f"{name}TrainingSAE")(config)
        settings = SAETrainerConfig(
            total_training_samples=task.steps * task.batch_size,
            train_batch_size_samples=task.batch_size,
            lr=task.lr,
            lr_end=task.lr / 10,  # asked for, but the constant schedule does not use it
            lr_warm_up_steps=task.warmup,
            lr_decay_steps=int(task.decay * task.steps),
            device=task.device,
            dead_feature_window=task.dead_after // task.batch_size,
        )
        self.trainer = SAETrainer(settings, self.sae, data_provider=iter(()))

    def step(self, z: Tensor) -> None:
        """One turn of the loop in `SAETrainer.fit`, without its progress bar."""
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(z)
        self.trainer.n_training_steps += 1

    def load(self, weights: Weights, silent_tokens: Tensor) -> None:
        """See `Trainer`."""
        sae, weights = self.sae, weights.of_centred_input()
        with torch.no_grad():
            sae.W_enc.copy_(weights.W_enc.T)
            sae.b_enc.copy_(weights.b_enc)
            sae.W_dec.copy_(weights.W_dec)
            sae.b_dec.copy_(weights.b_dec)
        steps = silent_tokens // self.trainer.cfg.train_batch_size_samples
        self.trainer.n_forward_passes_since_fired.copy_(steps)

    def weights(self) -> Weights:
        """See `Trainer`; the decoder's norms are folded into the encoder."""
        sae = self.sae
        norms = sae.W_dec.detach().norm(dim=1)
        return Weights(
            sae.W_enc.detach().T * norms[:, None],
            sae.b_enc.detach() * norms,
            sae.W_dec.detach() / norms[:, None],
            sae.b_dec.detach().clone(),
        ).of_input()

    @property
    def dead(self) -> int:
        """See `Trainer`."""
        return int(self.trainer.dead_neurons.sum())


class DictionaryLearning(Trainer):
    """`update` of dictionary_learning's trainer classes, all that its training loop calls.

    TopK and BatchTopK: auxiliary loss, tokens since each latent fired, the running threshold,
    projection of the decoder's gradient, clipping, Adam, schedule, unit norms. JumpReLU: the same
    without auxiliary loss and threshold. ReLU and Gated: Adam with unit norms and projection.
    """

    label = "dictionary_learning"
    kinds = ("relu", "gated", "topk", "batchtopk", "jumprelu")

    def __init__(self, task: Task) -> None:
        from dictionary_learning import trainers

        name, extra = {
            "relu": ("StandardTrainer", {"l1_penalty": L1, "sparsity_warmup_steps": None}),
            "gated": ("GatedSAETrainer", {"l1_penalty": L1, "sparsity_warmup_steps": None}),
            "topk": ("TopKTrainer", {"k": task.k, "threshold_start_step": 0}),
            "batchtopk": ("BatchTopKTrainer", {"k": task.k, "threshold_start_step": 0}),
            "jumprelu": ("JumpReluTrainer", {"target_l0": task.k, "sparsity_warmup_steps": None}),
        }[task.kind]
        self.trainer = getattr(trainers, name)(
            steps=task.steps,
            activation_dim=task.d_in,
            dict_size=task.width,
            layer=0,
            lm_name="",
            lr=task.lr,
            warmup_steps=task.warmup,
            decay_start=max(task.warmup + 1, int((1 - task.decay) * task.steps)),
            device=task.device,
            **extra,
        )
        self.trainer.dead_feature_threshold = task.dead_after  # a constant there, not an argument
        self.done = 0

    def step(self, z: Tensor) -> None:
        """`update`, as in `trainSAE`."""
        self.trainer.update(self.done, z)
        self.done += 1

    def load(self, weights: Weights, silent_tokens: Tensor) -> None:
        """See `Trainer`."""
        sae, weights = self.trainer.ae, weights.of_centred_input()
        with torch.no_grad():
            sae.encoder.weight.copy_(weights.W_enc)
            sae.encoder.bias.copy_(weights.b_enc)
            sae.decoder.weight.copy_(weights.W_dec.T)
            sae.b_dec.copy_(weights.b_dec)
        self.trainer.num_tokens_since_fired.copy_(silent_tokens)
        self.done = max(self.done, 1)  # step 0 would put a median in place of the decoder's bias

    def weights(self) -> Weights:
        """See `Trainer`."""
        sae = self.trainer.ae
        return Weights(
            sae.encoder.weight.detach().clone(),
            sae.encoder.bias.detach().clone(),
            sae.decoder.weight.detach().T.contiguous(),
            sae.b_dec.detach().clone(),
        ).of_input()

    @property
    def dead(self) -> int | None:
        """See `Trainer`."""
        silent = getattr(self.trainer, "num_tokens_since_fired", None)
        return None if silent is None else int((silent >= self.trainer.dead_feature_threshold).sum())


class Sparsify(Trainer):
    """sparsify's `SparseCoder`, with the training step of its `Trainer`.

    That trainer only runs inside a transformer's forward hooks, so its step is called here piece by
    piece, for its loss "fvu" without accumulation: unit norms; the mask of dead latents; the total
    variance; `SparseCoder.forward` (the fused encoder, the sparse decoder, AuxK) and backward; the
    two losses read out; projection of the decoder's gradient; optimiser and schedule; tokens since
    each latent fired. Left out are the hook's copies of the batch and its mask of tokens.
    """

    kinds = ("topk",)

    def __init__(self, task: Task, optimiser: str = "adam") -> None:
        from sparsify import SparseCoder, SparseCoderConfig
        from sparsify.sign_sgd import SignSGD

        self.label = f"sparsify, {optimiser}"
        self.task = task
        config = SparseCoderConfig(num_latents=task.width, k=task.k)
        self.coder = SparseCoder(task.d_in, config, task.device, dtype=torch.float32)
        self.silent_tokens = torch.zeros(task.width, dtype=torch.long, device=task.device)
        self.fired = torch.zeros(task.width, dtype=torch.bool, device=task.device)
        self.scheduler: Any = None
        if optimiser == "adam":
            from transformers import get_linear_schedule_with_warmup

            self.optimiser = torch.optim.Adam(self.coder.parameters(), lr=task.lr)
            self.scheduler = get_linear_schedule_with_warmup(self.optimiser, task.warmup, task.steps)
        else:  # the library's default: sign descent without a schedule, at its own learning rate
            from schedulefree import ScheduleFreeWrapper

            base = SignSGD(self.coder.parameters(), lr=5e-3 / (task.width / 2**14) ** 0.5)
            self.optimiser = ScheduleFreeWrapper(base, momentum=0.95)
            self.optimiser.train()

    def step(self, z: Tensor) -> None:
        """See the class; at the precision of products that `Trainer.fit` sets for all it does."""
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        self._step(z)
        torch.set_float32_matmul_precision(precision)

    def _step(self, z: Tensor) -> None:
        coder, alpha = self.coder, 1 / 32
        coder.set_decoder_norm_to_unit_norm()
        out = coder(
            x=z,
            y=z,
            dead_mask=self.silent_tokens > self.task.dead_after,
            total_variance=(z - z.mean(0)).pow(2).sum(),
        )
        self.fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach()), float(out.auxk_loss.detach())  # what the trainer logs
        (out.fvu + alpha * out.auxk_loss).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.scheduler is not None:
            self.scheduler.step()
        self.silent_tokens += len(z)
        self.silent_tokens[self.fired] = 0
        self.fired.zero_()

    def load(self, weights: Weights, silent_tokens: Tensor) -> None:
        """See `Trainer`."""
        coder, weights = self.coder, weights.of_centred_input()
        with torch.no_grad():
            coder.encoder.weight.copy_(weights.W_enc)
            coder.encoder.bias.copy_(weights.b_enc)
            coder.W_dec.copy_(weights.W_dec)
            coder.b_dec.copy_(weights.b_dec)
        self.silent_tokens.copy_(silent_tokens)

    def weights(self) -> Weights:
        """See `Trainer`; of sign descent the averages that it keeps."""
        coder = self.coder
        if self.scheduler is None:
            self.optimiser.eval()
        tensors = (coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec)
        weights = Weights(*(tensor.detach().clone() for tensor in tensors)).of_input()
        if self.scheduler is None:
            self.optimiser.train()
        return weights

    @property
    def dead(self) -> int:
        """See `Trainer`."""
        return int((self.silent_tokens > self.task.dead_after).sum())


class SparsifySigns(Sparsify):
    """`Sparsify` with the optimiser that is the library's default."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, "signum")


PEERS: dict[str, type[Trainer]] = {
    "sae-lens": SAELens,
    "dictionary-learning": DictionaryLearning,
    "sparsify": Sparsify,
    "sparsify-signum": SparsifySigns,
}


def peers(task: Task) -> list[Trainer]:
    """The peers' trainers that have this kind and can be imported; says which cannot."""
    found: list[Trainer] = []
    for name, peer in PEERS.items():
        if task.kind in peer.kinds:
            try:
                found.append(peer(task))
            except ImportError as error:
                print(f"{name} is left out: {error}.")
    return found
