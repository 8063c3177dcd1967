"""Training variants: one file each, with its loss, initialisation, folding and look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from saekit.plugins import registered
from saekit.training.variants.base import SAE, Variant
from saekit.training.variants.batchtopk import BatchTopK
from saekit.training.variants.gated import Gated
from saekit.training.variants.jumprelu import JumpReLU
from saekit.training.variants.matryoshka import Matryoshka
from saekit.training.variants.relu import ReLU
from saekit.training.variants.topk import TopK

ENTRY_POINTS = "saekit.variants"


class Variants(Mapping[str, type[Variant]]):
    """Every kind of SAE by name: saekit's own, then those that other packages register.

    A package registers a `Variant` as an entry point of the group `saekit.variants`. Entry points are
    loaded when a kind is first asked for, so that such a package can import this one.

    Raises
    ------
    TypeError
        If an entry point is not a `Variant`.
    ValueError
        If it registers a kind that exists already.
    """

    def __init__(self, *own: type[Variant]) -> None:
        self.own = own

    @cached_property
    def _by_kind(self) -> dict[str, type[Variant]]:
        kinds = {variant.kind: variant for variant in self.own}
        for where, variant in registered(ENTRY_POINTS):
            if not (isinstance(variant, type) and issubclass(variant, Variant)):
                raise TypeError(f"The {where} must be a subclass of Variant, found {variant!r}.")
            if variant.kind in kinds:
                raise ValueError(
                    f"The {where} registers the kind {variant.kind!r}, which exists already: "
                    "give it another name."
                )
            kinds[variant.kind] = variant
        return kinds

    def __getitem__(self, kind: str) -> type[Variant]:
        return self._by_kind[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_kind)

    def __len__(self) -> int:
        return len(self._by_kind)


VARIANTS = Variants(ReLU, Gated, JumpReLU, TopK, BatchTopK, Matryoshka)

__all__ = ["SAE", "VARIANTS", "BatchTopK", "Gated", "JumpReLU", "Matryoshka", "ReLU", "TopK", "Variant"]
