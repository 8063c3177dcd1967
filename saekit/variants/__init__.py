"""Training variants: one file each, with its loss, its initialisation and how it folds."""

from saekit.variants.batchtopk import BatchTopK
from saekit.variants.common import SAE, Variant
from saekit.variants.gated import Gated
from saekit.variants.jumprelu import JumpReLU
from saekit.variants.matryoshka import Matryoshka
from saekit.variants.relu import ReLU
from saekit.variants.topk import TopK

VARIANTS: dict[str, type[Variant]] = {
    variant.kind: variant for variant in (ReLU, Gated, JumpReLU, TopK, BatchTopK, Matryoshka)
}

__all__ = ["SAE", "VARIANTS", "BatchTopK", "Gated", "JumpReLU", "Matryoshka", "ReLU", "TopK", "Variant"]
