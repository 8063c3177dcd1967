"""Variants that other packages register, and how each looks."""

import itertools
import re

import pytest
import torch

from saekit.training.config import TrainingConfig
from saekit.training.trainer import train
from saekit.training.variants import BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, TopK, Variants

OWN = (ReLU, Gated, JumpReLU, TopK, BatchTopK, Matryoshka)

OUTSIDE = '''
from dataclasses import dataclass
from typing import ClassVar

from saekit.training.variants import TopK


@dataclass(frozen=True)
class HalfTopK(TopK):
    """Half of k on every token."""

    kind: ClassVar[str] = "halftopk"
    label: ClassVar[str] = "Half TopK"

    def select(self, sae, x):
        return sae.active_above(x, k=self.k // 2)


class Twin(HalfTopK):
    kind: ClassVar[str] = "relu"


NONSENSE = 3
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package that registers one variant."""

    def install(target):
        name = f"outside_{re.sub('[^a-z0-9]', '_', tmp_path.name.lower())}"
        (tmp_path / f"{name}.py").write_text(OUTSIDE)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[saekit.variants]\nmine = {name}:{target}\n")
        monkeypatch.syspath_prepend(tmp_path)
        return name

    return install


def test_a_variant_of_another_package_is_found_and_trains(install):
    install("HalfTopK")
    variants = Variants(*OWN)
    assert list(variants) == [*(variant.kind for variant in OWN), "halftopk"]
    half = variants["halftopk"]
    assert half.label == "Half TopK"
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    config = TrainingConfig(half(k=4), width=12, steps=20, batch_size=32, warmup=2)
    dictionary = train(config, x, progress=False).dictionary
    assert dictionary.kind == "halftopk"


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("Twin", ValueError, "registers the kind 'relu', which exists already"),
        ("NONSENSE", TypeError, "must be a subclass of Variant, found 3"),
        ("Missing", ImportError, "does not load (AttributeError: module"),
    ],
)
def test_what_is_no_variant_is_refused_with_the_package(target, error, message, install):
    name = install(target)
    with pytest.raises(error, match=re.escape(message)) as caught:
        list(Variants(*OWN))
    assert f"saekit.variants entry point mine = {name}:{target} of {name}" in str(caught.value)


def test_kinds_differ_in_colour_and_marker_and_their_greys_can_be_told_apart():
    for a, b in itertools.combinations(OWN, 2):
        assert a.label != b.label
        assert a.colour != b.colour
        assert a.marker != b.marker
    luminance = sorted(_luminance(variant.colour) for variant in OWN)
    assert min(b - a for a, b in itertools.pairwise(luminance)) > 0.04


def _luminance(colour):
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
