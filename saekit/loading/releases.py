"""Published SAEs: where they are, what they were trained on, and what to expect of them.

The table was made without access to a hub: repositories and their layouts are those of SAELens'
registry and of the releases' own pages, and no commit is pinned. Every SAE that is loaded is checked
against the hub's checksums and against the table's `d_in`, `width` and `kind`, and its `info` names
the commit that was used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar

import pandas as pd

from saekit.dictionary import Dictionary
from saekit.folding import Unfolded
from saekit.loading.formats import read
from saekit.loading.hub import fetch
from saekit.selection import Latents


@dataclass(frozen=True)
class PublishedSAE:
    """One SAE of a release; nothing is downloaded before it is opened.

    Parameters
    ----------
    release, member : str
        `"release/member"` is its name for `load_sae`.
    repo, path, revision : str
        Where it is on the hub.
    format : str
        Format of its files, by its name in `saekit.loading.formats`.
    model : str
        Name of the model, as `load_model` takes it.
    processing : mapping
        Processing of the model's weights, as `load_model` takes it: the flags that are on.
    hook_point : str
        Where its activations come from.
    kind : str
        The training variant.
    d_in, width : int
        Dimension of the activations, number of latents.
    neuronpedia_id : str, optional
        Model and source on Neuronpedia.
    expected_l0, expected_explained_variance : float, optional
        The published values, on the publisher's text.
    """

    transcoder: ClassVar[bool] = False
    release: str
    member: str
    repo: str
    path: str
    format: str
    model: str
    hook_point: str
    kind: str
    d_in: int
    width: int
    neuronpedia_id: str | None = None
    expected_l0: float | None = None
    expected_explained_variance: float | None = None
    processing: Mapping[str, bool] = field(default_factory=dict)
    revision: str = "main"

    @property
    def name(self) -> str:
        """The name that `load_sae` takes."""
        return f"{self.release}/{self.member}"

    @property
    def seed(self) -> int | None:
        """Seeds of the training runs are not published."""
        return None

    def open(self) -> Unfolded:
        """Download it if it is not here yet, and check it against the table.

        Raises
        ------
        FileNotFoundError, PermissionError, ConnectionError, ValueError
            As `saekit.loading.hub.fetch` and `open_sae`; ValueError also if it differs from the table.
        """
        fetched = fetch(self.repo, self.path, self.revision)
        sae = read(fetched.path)
        for what in ("d_in", "width", "kind"):
            here, there = getattr(self, what), getattr(sae, what)
            if here != there:
                raise ValueError(
                    f"{self.name} should have {what} {here}, but {self.repo}/{self.path} at commit "
                    f"{fetched.commit} has {there}."
                )
        known = {
            **self.info,
            "release": self.name,
            "neuronpedia_id": self.neuronpedia_id,
            "expected_l0": self.expected_l0,
            "expected_explained_variance": self.expected_explained_variance,
        }
        known = {key: value for key, value in known.items() if value is not None}
        return replace(sae, info={**sae.info, **known, **fetched.info})

    @property
    def info(self) -> dict[str, Any]:
        """The information known before it is opened."""
        return {
            "kind": self.kind,
            "model": self.model,
            "model_processing": dict(self.processing),
            "hook_point": self.hook_point,
        }

    def fold(self, latents: Latents | None = None) -> Dictionary:
        """Download it if it is not here yet, and read it, or some of its latents."""
        return self.open().fold(latents)


def find(name: str) -> list[PublishedSAE]:
    """The SAEs of a release, of a part of it such as `"gemma-scope-2b-pt-res/layer_12"`, or one SAE.

    Examples
    --------
    >>> first = find("gemma-scope-2b-pt-res/layer_12")[0]
    >>> first.repo, first.path
    ('google/gemma-scope-2b-pt-res', 'layer_12/width_16k/average_l0_41')
    """
    return [sae for sae in RELEASES if f"{sae.name}/".startswith(f"{name}/")]


def releases_table() -> pd.DataFrame:
    """The published SAEs that saekit knows by name.

    Returns
    -------
    DataFrame
        One row per SAE, by `release` and `member`; columns are the parameters of `PublishedSAE`.
        `load_sae("release/member")` loads one, `load_family("release")` those of several widths.

    Examples
    --------
    >>> releases_table().loc["gpt2-small-res-jb-feature-splitting", "width"].tolist()
    [768, 1536, 3072, 6144, 12288, 24576, 49152, 98304]
    """
    names = [field.name for field in fields(PublishedSAE)]
    rows = [[getattr(sae, name) for name in names] for sae in RELEASES]
    return pd.DataFrame(rows, columns=names).set_index(["release", "member"])


# ------------------------------------------------------------------------------ the table

_gpt2 = partial(PublishedSAE, model="gpt2", d_in=768)
# Bloom's SAEs read a centred residual stream, formerly the default of TransformerLens.
_bloom = partial(_gpt2, format="SAELens", kind="relu", processing={"center_writing_weights": True})


def _bloom_feature_splitting() -> Iterator[PublishedSAE]:
    """Eight widths at one hook point: the paper's own SAEs on GPT-2 small."""
    for width, l0, explained in (
        (768, 36, 0.61),
        (1536, 39, 0.67),
        (3072, 41, 0.72),
        (6144, 43, 0.76),
        (12288, 43, 0.77),
        (24576, 40, 0.79),
        (49152, 40, 0.81),
        (98304, 43, 0.82),
    ):
        yield _bloom(
            release="gpt2-small-res-jb-feature-splitting",
            member=f"blocks.8.hook_resid_pre_{width}",
            repo="jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
            path=f"blocks.8.hook_resid_pre_{width}",
            hook_point="blocks.8.hook_resid_pre",
            width=width,
            neuronpedia_id=f"gpt2-small/8-res_fs{width}-jb",
            expected_l0=l0,
            expected_explained_variance=explained,
        )


def _bloom_layers() -> Iterator[PublishedSAE]:
    """Before each block, and after the last."""
    l0 = (10, 10, 18, 23, 31, 41, 51, 54, 60, 70, 52, 56, 70)
    explained = (*4 * (0.999,), *5 * (0.9,), *4 * (0.77,))
    for layer in range(13):
        hook_point = f"blocks.{layer}.hook_resid_pre" if layer < 12 else "blocks.11.hook_resid_post"
        yield _bloom(
            release="gpt2-small-res-jb",
            member=hook_point,
            repo="jbloom/GPT2-Small-SAEs-Reformatted",
            path=hook_point,
            hook_point=hook_point,
            width=24576,
            neuronpedia_id=f"gpt2-small/{layer}-res-jb",
            expected_l0=l0[layer],
            expected_explained_variance=explained[layer],
        )


def _openai() -> Iterator[PublishedSAE]:
    """OpenAI's version 5 (k = 32, layer-normalised input), in the mirrors that have SAELens' layout."""
    # Names that end in .pt are folders there too.
    for size, width, ending in (("32k", 32768, ".pt"), ("128k", 131072, "")):
        for layer in range(12):
            yield _gpt2(
                release=f"gpt2-small-resid-post-v5-{size}",
                member=f"blocks.{layer}.hook_resid_post",
                repo=f"jbloom/GPT2-Small-OAI-v5-{size}-resid-post-SAEs",
                path=f"v5_{size}_layer_{layer}{ending}",
                format="SAELens",
                hook_point=f"blocks.{layer}.hook_resid_post",
                kind="topk",
                width=width,
                neuronpedia_id=f"gpt2-small/{layer}-res_post_{size}-oai",
                expected_l0=32,
                expected_explained_variance=0.74 if (size, layer) == ("32k", 8) else 0.9,
            )


def _attention() -> Iterator[PublishedSAE]:
    """Kissane and Krzyzanowski's SAEs on the concatenated outputs of the attention heads."""
    # SAELens lists explained variances down to -7.6 for these, so none is taken as expected.
    for layer, (width, l0, l1, decay, version) in enumerate(
        (
            (24576, 3.0, "1.80e+00", "1.00e-06", 9),
            (24576, 23.0, "8.00e-01", "1.00e-06", 5),
            (24576, 16.0, "1.00e+00", "1.00e-06", 4),
            (24576, 15.0, "9.00e-01", "1.00e-06", 9),
            (24576, 14.0, "1.10e+00", "1.00e-06", 7),
            (49152, 17.0, "1.00e+00", "1.00e-06", 9),
            (24576, 17.0, "1.10e+00", "1.00e-06", 9),
            (49152, 19.0, "1.10e+00", "1.00e-06", 9),
            (24576, 23.0, "1.30e+00", "1.00e-05", 6),
            (24576, 23.0, "1.20e+00", "1.00e-06", 9),
            (24576, 14.0, "1.30e+00", "1.00e-05", 9),
            (24576, 9.4, "3.00e+00", "3.16e-06", 9),
        )
    ):
        yield _gpt2(
            release="gpt2-small-hook-z-kk",
            member=f"blocks.{layer}.hook_z",
            repo="ckkissane/attn-saes-gpt2-small-all-layers",
            path=f"gpt2-small_L{layer}_Hcat_z_lr1.20e-03_l1{l1}_ds{width}_bs4096_dc{decay}_rsanthropic_rie25000_"
            f"nr4_v{version}.pt",
            format="attention-output SAEs",
            hook_point=f"blocks.{layer}.attn.hook_z",
            kind="relu",
            width=width,
            neuronpedia_id=f"gpt2-small/{layer}-att-kk",
            expected_l0=l0,
        )


def _gemma_scope() -> Iterator[PublishedSAE]:
    """Layer 12 of Gemma 2 2B, at each width the SAE whose average L0 is nearest to 40 by ratio."""
    for size, width, l0, source in (
        ("16k", 1 << 14, 41, "12-gemmascope-res-16k__l0-41"),
        ("32k", 1 << 15, 40, None),
        ("65k", 1 << 16, 38, "12-gemmascope-res-65k__l0-38"),
        ("131k", 1 << 17, 36, None),
        ("262k", 1 << 18, 36, None),
        ("524k", 1 << 19, 46, None),
        ("1m", 1 << 20, 58, "12-gemmascope-res-1m__l0-58"),
    ):
        path = f"layer_12/width_{size}/average_l0_{l0}"
        yield PublishedSAE(
            release="gemma-scope-2b-pt-res",
            member=path,
            repo="google/gemma-scope-2b-pt-res",
            path=path,
            format="Gemma Scope",
            model="google/gemma-2-2b",
            hook_point="blocks.12.hook_resid_post",
            kind="jumprelu",
            d_in=2304,
            width=width,
            neuronpedia_id=source and f"gemma-2-2b/{source}",
            expected_l0=l0,
        )


def _pythia() -> Iterator[PublishedSAE]:
    """Marks et al.'s SAEs on the residual stream of Pythia 70M, converted to SAELens' layout."""
    for layer in range(6):
        yield PublishedSAE(
            release="pythia-70m-deduped-res-sm",
            member=f"blocks.{layer}.hook_resid_post",
            repo="ctigges/pythia-70m-deduped__res-sm_processed",
            path=f"{layer}-res-sm",
            format="SAELens",
            model="EleutherAI/pythia-70m-deduped",
            hook_point=f"blocks.{layer}.hook_resid_post",
            kind="relu",
            d_in=512,
            width=32768,
            neuronpedia_id=f"pythia-70m-deduped/{layer}-res-sm",
        )


RELEASES = (
    *_bloom_feature_splitting(),
    *_bloom_layers(),
    *_openai(),
    *_attention(),
    *_gemma_scope(),
    *_pythia(),
)
