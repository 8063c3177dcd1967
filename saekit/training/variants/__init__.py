"""Training variants: one file each, with its loss, its initialisation and how it folds."""

from saekit.training.variants.base import SAE, Variant
from saekit.training.variants.batchtopk import BatchTopK
from saekit.training.variants.gated import Gated
from saekit.training.variants.jumprelu import JumpReLU
from saekit.training.variants.matryoshka import Matryoshka
from saekit.training.variants.relu import ReLU
from saekit.training.variants.topk import TopK

VARIANTS: dict[str, type[Variant]] = {
    variant.kind: variant for variant in (ReLU, Gated, JumpReLU, TopK, BatchTopK, Matryoshka)
}

__all__ = ["SAE", "VARIANTS", "BatchTopK", "Gated", "JumpReLU", "Matryoshka", "ReLU", "TopK", "Variant"]
