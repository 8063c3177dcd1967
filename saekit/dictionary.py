"""The one class that analyses see: a folded dictionary of latents.

Raw activations go in; every input centring, scaling and decoder norm has been moved into the
weights, biases and thresholds, so that latents can be moved between dictionaries by gathering
rows (`saekit.analysis`). `saekit.folding` makes it of an SAE as it was trained or published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saekit.files import hash_json, hash_tensors, read_json, write_json, write_tensors
from saekit.identity import Identity, fingerprint
from saekit.selection import Latents, select_latents
from saekit.sparse import SparseLatents, affine

FORMAT = "saekit-dictionary-1"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
NORMALIZATIONS = ("layer_norm", "constant_norm")
LAYER_NORM_EPS = 1e-5
CHUNK_ELEMENTS = 1 << 25  # dense pre-activations held at once by encode_sparse: 128 MB


class Described:
    """What `info` says of a dictionary, whether it has been read yet or not."""

    info: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The training variant, such as `"relu"`, or `"unknown"`."""
        return self.info.get("kind", "unknown")

    @property
    def seed(self) -> int | None:
        """Seed of the training run, if known."""
        return self.info.get("seed")

    @property
    def hook_point(self) -> str | None:
        """Where the activations come from, if known."""
        return self.info.get("hook_point")


class RowScale(NamedTuple):
    """How each row was normalised: what decoding needs of the input.

    Attributes
    ----------
    centre, factor : Tensor
        `[batch, 1]`: a reconstruction `z_hat` of the normalised row stands for
        `z_hat * factor + centre`.
    """

    centre: Tensor
    factor: Tensor


@dataclass(frozen=True, eq=False)
class Dictionary(Described):
    """A sparse dictionary on raw activations.

    With pre-activations `h = x @ W_enc + b_enc`, latent `i` is `h[i]` where
    `h[i] > threshold[i]` (strictly) and 0 elsewhere; the reconstruction is
    `latents @ W_dec + b_dec`. A ReLU SAE has threshold 0.

    Parameters
    ----------
    W_enc : Tensor
        Encoder, `[d_in, d_sae]`.
    b_enc : Tensor
        Encoder bias, `[d_sae]`.
    W_dec : Tensor
        Decoder directions as rows of unit norm, `[d_sae, d_in]`.
    b_dec : Tensor
        Decoder bias, `[d_in]`.
    threshold : Tensor
        Threshold of each latent, `[d_sae]`, at least 0, in the units of the pre-activations.
    k : int, optional
        For a TopK SAE only: of the latents above their threshold, the `k` largest of a row are
        kept. Such latents compete, so they cannot be moved (`require_independent`).
    rank_scale : Tensor, optional
        For a TopK SAE whose decoder rows had other norms: latents compete by
        `h * rank_scale`, `[d_sae]`.
    normalization : str, optional
        Every row is normalised on its own before it is encoded: `"layer_norm"` (mean 0, unbiased
        standard deviation 1) or `"constant_norm"` (norm `sqrt(d_in)`). Its latents are in units
        that differ from row to row, so they cannot be moved either, and `decode` needs to know
        the rows' scale (`row_scale`).
    info : mapping
        What the dictionary is and where it comes from (`kind`, `model`, `hook_point`, `seed`,
        training settings, ...), as JSON values.

    Raises
    ------
    ValueError
        If a shape does not fit, a value is not finite, or a threshold is negative.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor
    k: int | None = None
    rank_scale: Tensor | None = None
    normalization: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2:
            raise ValueError(f"W_enc must be [d_in, d_sae], found shape {list(self.W_enc.shape)}.")
        d_in, d_sae = self.W_enc.shape
        expected = {"b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,), "threshold": (d_sae,)}
        expected["rank_scale"] = (d_sae,)
        tensors = self.tensors()
        for name in tensors.keys() - {"W_enc"}:
            shape, found = expected[name], tuple(tensors[name].shape)
            if found != shape:
                raise ValueError(
                    f"{name} must have shape {list(shape)} beside W_enc [d_in={d_in}, d_sae={d_sae}], "
                    f"found {list(found)}."
                )
        for name, tensor in tensors.items():
            if not _is_finite(tensor):
                raise ValueError(f"{name} holds values that are not finite.")
        if (self.threshold < 0).any():
            raise ValueError("Thresholds must be at least 0: a latent is never negative.")
        if self.k is not None and not 0 < self.k <= d_sae:
            raise ValueError(f"k must be between 1 and the width {d_sae}, found {self.k}.")
        if self.normalization not in (None, *NORMALIZATIONS):
            raise ValueError(
                f"normalization must be None or one of {', '.join(NORMALIZATIONS)}, found "
                f"{self.normalization!r}."
            )

    @property
    def d_in(self) -> int:
        """Dimension of the activations."""
        return self.W_enc.shape[0]

    @property
    def width(self) -> int:
        """Number of latents (dictionary size, d_sae)."""
        return self.W_enc.shape[1]

    @property
    def name(self) -> str:
        """A short name for tables and legends, such as `"relu 1152 (seed 0)"`."""
        seed = "" if self.seed is None else f" (seed {self.seed})"
        return f"{self.kind} {self.width}{seed}"

    @property
    def identity(self) -> Identity:
        """What results say of this dictionary; compared by content."""
        return Identity(self.name, self.kind, self.width, self.seed, self.hook_point, self.content_hash)

    @property
    def content_hash(self) -> str:
        """SHA-256 of the tensors and of what the dictionary records of itself, computed when they change."""
        key = fingerprint(self.tensors().values())
        if self._hashed.get("key") != key:
            self._hashed.update(key=key, hash=self._hash())
        return self._hashed["hash"]

    @cached_property
    def _hashed(self) -> dict[str, Any]:
        return {}

    def _hash(self) -> str:
        normalized = {} if self.normalization is None else {"normalization": self.normalization}
        parts = {"tensors": hash_tensors(self.tensors()), "k": self.k, "info": dict(self.info)}
        return hash_json(parts | normalized)

    def __repr__(self) -> str:
        k = "" if self.k is None else f", k={self.k}"
        return f"Dictionary({self.name}, d_in={self.d_in}, width={self.width}{k})"

    def tensors(self) -> dict[str, Tensor]:
        """The five tensors by name, and `rank_scale` where there is one."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        return tensors if self.rank_scale is None else tensors | {"rank_scale": self.rank_scale}

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Dictionary:
        """The same dictionary on another device or in another dtype."""
        tensors: dict[str, Any] = {n: t.to(device=device, dtype=dtype) for n, t in self.tensors().items()}
        return replace(self, **tensors)

    # ------------------------------------------------------------------ encoding and decoding

    def row_scale(self, x: Tensor) -> RowScale | None:
        """How rows `[batch, d_in]` are normalised one by one; None if they are not."""
        if self.normalization == "layer_norm":
            return RowScale(x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True))
        if self.normalization == "constant_norm":
            norm = x.norm(dim=1, keepdim=True)
            return RowScale(torch.zeros_like(norm), norm / self.d_in**0.5)
        return None

    def pre_activations(self, x: Tensor) -> Tensor:
        """`x @ W_enc + b_enc` of (normalised) rows: `[batch, d_in]` to `[batch, width]`.

        Raises
        ------
        ValueError
            If `x` does not have `d_in` columns.
        """
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise ValueError(
                f"{self.name} takes activations of shape [batch, {self.d_in}], found {list(x.shape)}."
            )
        x = x.to(self.W_enc.dtype)
        if (scale := self.row_scale(x)) is not None:
            eps = LAYER_NORM_EPS if self.normalization == "layer_norm" else 0.0
            x = (x - scale.centre) / (scale.factor + eps)
        return affine(x, self.W_enc.T, self.b_enc)

    def _active(self, h: Tensor) -> Tensor:
        """Which pre-activations make active latents, as a Boolean `[batch, width]`."""
        active = h > self.threshold
        if self.k is not None and self.k < self.width:
            # A TopK latent must also be among the k largest of its row.
            rank = h if self.rank_scale is None else h * self.rank_scale
            candidates = torch.where(active, rank, -torch.inf).topk(self.k, dim=1).indices
            active &= torch.zeros_like(active).scatter_(1, candidates, True)
        return active

    def encode(self, x: Tensor) -> Tensor:
        """Latents of raw activations, dense: `[batch, d_in]` to `[batch, width]`."""
        h = self.pre_activations(x)
        return torch.where(self._active(h), h, 0.0)

    def encode_sparse(self, x: Tensor) -> SparseLatents:
        """Active latents of raw activations `[batch, d_in]`, without a dense `[batch, width]`.

        Works through the rows in chunks, so memory stays bounded at any width.
        """
        rows = max(1, CHUNK_ELEMENTS // self.width)
        parts = []
        for chunk in x.split(rows):
            h = self.pre_activations(chunk)
            parts.append(SparseLatents.from_mask(self._active(h), h))
        return SparseLatents.concatenate(parts) if parts else SparseLatents.empty(self.width, self.W_enc)

    def decode(self, latents: Tensor | SparseLatents, scale: RowScale | None = None) -> Tensor:
        """Reconstruction `latents @ W_dec + b_dec`: `[batch, d_in]`.

        Parameters
        ----------
        latents : Tensor or SparseLatents
            `[batch, width]`.
        scale : RowScale, optional
            `row_scale(x)` of the rows that were encoded, for a dictionary that normalises them.

        Raises
        ------
        ValueError
            If this dictionary normalises rows and their scale is not given.
        """
        if self.normalization is not None and scale is None:
            raise ValueError(
                f"{self.name} normalises every row ({self.normalization}), so decoding needs their scale: "
                "decode(latents, dictionary.row_scale(x)), or reconstruct(x)."
            )
        if isinstance(latents, SparseLatents):
            x_hat = latents.matmul(self.W_dec) + self.b_dec
        else:
            x_hat = torch.addmm(self.b_dec, latents, self.W_dec)
        return x_hat if scale is None else x_hat * scale.factor + scale.centre

    def reconstruct(self, x: Tensor) -> Tensor:
        """Raw activations in, their reconstruction out: `[batch, d_in]` both."""
        return self.decode(self.encode_sparse(x), self.row_scale(x))

    # ------------------------------------------------------------------ moving latents

    def require_independent(self, purpose: str) -> None:
        """Refuse to go on if the latents depend on each other, or their unit on the row.

        Raises
        ------
        ValueError
            If this is a TopK dictionary, or one that normalises every row.
        """
        if self.k is not None:
            why = f"keeps the {self.k} largest of each row"
        elif self.normalization is not None:
            why = f"measures each row in a unit of its own ({self.normalization})"
        else:
            return
        raise ValueError(
            f"{purpose} needs latents that do not depend on each other or on the row, but {self.name} {why}: "
            "convert it with saekit.as_jumprelu(dictionary, activations)."
        )

    def gather(self, latents: Latents) -> Dictionary:
        """The dictionary that holds only these latents, in this order, with the same `b_dec`.

        Parameters
        ----------
        latents : tensor, array, Series, list or slice
            Indices or a Boolean mask, see `saekit.selection.select_latents`.

        Raises
        ------
        ValueError
            As `require_independent`.
        TypeError, IndexError, ValueError
            As `select_latents`.
        """
        self.require_independent("Moving latents between dictionaries")
        index = select_latents(latents, self.width).to(self.W_enc.device)
        return replace(
            self,
            W_enc=self.W_enc[:, index],
            b_enc=self.b_enc[index],
            W_dec=self.W_dec[index],
            threshold=self.threshold[index],
        )

    # ------------------------------------------------------------------ files

    def save(self, folder: str | Path, *, half: bool = False) -> Path:
        """Write `weights.safetensors` and `dictionary.json` into `folder`.

        Each file is written to a temporary name and renamed; the JSON, which makes the folder a
        dictionary, comes last.

        Parameters
        ----------
        folder : str or Path
            Made if needed.
        half : bool
            Store the encoder and the decoder directions in half precision; they are single
            precision, and directions of unit norm, again once loaded.
        """
        folder, tensors = Path(folder), self.tensors()
        if half:
            tensors |= {name: tensors[name].half() for name in ("W_enc", "W_dec")}
        write_tensors(folder / "weights.safetensors", tensors)
        header = {
            "format": FORMAT,
            "d_in": self.d_in,
            "width": self.width,
            "k": self.k,
            "normalization": self.normalization,
            "info": dict(self.info),
            "hash": replace(self, **_from_half(tensors)).content_hash,
        }
        write_json(folder / "dictionary.json", header)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Dictionary:
        """Read a dictionary that `save` wrote, and check it against its hash.

        Raises
        ------
        FileNotFoundError
            If the folder holds no dictionary.
        ValueError
            If a file is damaged, a tensor is missing or unknown, or the hash does not fit.
        """
        folder = Path(folder)
        header_file, weights_file = folder / "dictionary.json", folder / "weights.safetensors"
        if not header_file.exists() or not weights_file.exists():
            raise FileNotFoundError(
                f"{folder} holds no dictionary: expected dictionary.json and weights.safetensors."
            )
        header = read_json(header_file)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError(f"{header_file} does not say format {FORMAT!r}, so it is not read.")
        try:
            with safe_open(weights_file, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        except SafetensorError as error:
            raise ValueError(f"{weights_file} is damaged or not a safetensors file: {error}.") from error
        if set(tensors) - {"rank_scale"} != set(TENSORS):
            raise ValueError(
                f"{weights_file} must hold exactly {', '.join(TENSORS)}; found {', '.join(sorted(tensors))}."
            )
        dictionary = cls(
            **_from_half(tensors),
            k=header["k"],
            normalization=header.get("normalization"),
            info=header["info"],
        )
        if dictionary.content_hash != header["hash"]:
            raise ValueError(f"{folder} is damaged: its content does not match the hash in dictionary.json.")
        return dictionary


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, without a copy of the tensor, which may be large."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(extreme)) for extreme in tensor.aminmax())


def _from_half(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Matrices stored in half precision, in single precision again, with directions of unit norm."""
    full = {
        name: tensor.float() if tensor.dtype == torch.half else tensor for name, tensor in tensors.items()
    }
    if tensors["W_dec"].dtype == torch.half:
        full["W_dec"] /= full["W_dec"].norm(dim=1, keepdim=True)
    return full
