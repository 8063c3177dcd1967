"""The one class that analyses see: a folded dictionary of latents.

Raw activations go in; every input centring, scaling and decoder norm has been moved into the
weights, biases and thresholds, so that latents can be moved between dictionaries by gathering
rows (`saekit.analysis`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saekit.files import hash_json, hash_tensors, read_json, write_json, write_tensors
from saekit.sparse import SparseLatents, affine

FORMAT = "saekit-dictionary-1"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
CHUNK_ELEMENTS = 1 << 25  # dense pre-activations held at once by encode_sparse: 128 MB


@dataclass(frozen=True, eq=False)
class Dictionary:
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
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2:
            raise ValueError(f"W_enc must be [d_in, d_sae], found shape {list(self.W_enc.shape)}.")
        d_in, d_sae = self.W_enc.shape
        expected = {"b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,), "threshold": (d_sae,)}
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(
                    f"{name} must have shape {list(shape)} beside W_enc [d_in={d_in}, d_sae={d_sae}], "
                    f"found {list(found)}."
                )
        for name in TENSORS:
            if not torch.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name} holds values that are not finite.")
        if (self.threshold < 0).any():
            raise ValueError("Thresholds must be at least 0: a latent is never negative.")
        if self.k is not None and not 0 < self.k <= d_sae:
            raise ValueError(f"k must be between 1 and the width {d_sae}, found {self.k}.")

    @property
    def d_in(self) -> int:
        """Dimension of the activations."""
        return self.W_enc.shape[0]

    @property
    def width(self) -> int:
        """Number of latents (dictionary size, d_sae)."""
        return self.W_enc.shape[1]

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

    @property
    def name(self) -> str:
        """A short name for tables and legends, such as `"relu 1152 (seed 0)"`."""
        seed = "" if self.seed is None else f" (seed {self.seed})"
        return f"{self.kind} {self.width}{seed}"

    @property
    def content_hash(self) -> str:
        """SHA-256 of the tensors and of what the dictionary says of itself."""
        return hash_json({"tensors": hash_tensors(self.tensors()), "k": self.k, "info": dict(self.info)})

    def __repr__(self) -> str:
        k = "" if self.k is None else f", k={self.k}"
        return f"Dictionary({self.name}, d_in={self.d_in}, width={self.width}{k})"

    def tensors(self) -> dict[str, Tensor]:
        """The five tensors by name."""
        return {name: getattr(self, name) for name in TENSORS}

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Dictionary:
        """The same dictionary on another device or in another dtype."""
        tensors = {n: t.to(device=device, dtype=dtype) for n, t in self.tensors().items()}
        return Dictionary(**tensors, k=self.k, info=self.info)

    # ------------------------------------------------------------------ encoding and decoding

    def pre_activations(self, x: Tensor) -> Tensor:
        """`x @ W_enc + b_enc`: `[batch, d_in]` to `[batch, width]`.

        Raises
        ------
        ValueError
            If `x` does not have `d_in` columns.
        """
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise ValueError(
                f"{self.name} takes activations of shape [batch, {self.d_in}], found {list(x.shape)}."
            )
        return affine(x.to(self.W_enc.dtype), self.W_enc.T, self.b_enc)

    def _active(self, h: Tensor) -> Tensor:
        """Which pre-activations make active latents, as a Boolean `[batch, width]`."""
        active = h > self.threshold
        if self.k is not None and self.k < self.width:
            # A TopK latent must also be among the k largest of its row.
            candidates = torch.where(active, h, -torch.inf).topk(self.k, dim=1).indices
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

    def decode(self, latents: Tensor | SparseLatents) -> Tensor:
        """Reconstruction `latents @ W_dec + b_dec`: `[batch, d_in]`."""
        if isinstance(latents, SparseLatents):
            return latents.matmul(self.W_dec) + self.b_dec
        return torch.addmm(self.b_dec, latents, self.W_dec)

    def reconstruct(self, x: Tensor) -> Tensor:
        """`decode(encode_sparse(x))`: raw activations in, their reconstruction out."""
        return self.decode(self.encode_sparse(x))

    # ------------------------------------------------------------------ moving latents

    def require_independent(self, purpose: str) -> None:
        """Refuse to go on if the latents depend on each other.

        Raises
        ------
        ValueError
            If this is a TopK dictionary.
        """
        if self.k is not None:
            raise ValueError(
                f"{purpose} needs latents that do not depend on each other, but {self.name} keeps the "
                f"{self.k} largest of each row: convert it with saekit.as_jumprelu(dictionary, activations)."
            )

    def gather(self, latents: Sequence[int] | Tensor) -> Dictionary:
        """The dictionary that holds only these latents, in this order, with the same `b_dec`.

        Raises
        ------
        ValueError
            If this is a TopK dictionary.
        IndexError
            If a latent is out of range.
        """
        self.require_independent("Moving latents between dictionaries")
        index = torch.as_tensor(latents, dtype=torch.long, device=self.W_enc.device)
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
            "info": dict(self.info),
            "hash": Dictionary(**_from_half(tensors), k=self.k, info=self.info).content_hash,
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
        if set(tensors) != set(TENSORS):
            raise ValueError(
                f"{weights_file} must hold exactly {', '.join(TENSORS)}; found {', '.join(sorted(tensors))}."
            )
        dictionary = cls(**_from_half(tensors), k=header["k"], info=header["info"])
        if dictionary.content_hash != header["hash"]:
            raise ValueError(f"{folder} is damaged: its content does not match the hash in dictionary.json.")
        return dictionary


def _from_half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices stored in half precision, in single precision again, with directions of unit norm."""
    full = {
        name: tensor.float() if tensor.dtype == torch.half else tensor for name, tensor in tensors.items()
    }
    if tensors["W_dec"].dtype == torch.half:
        full["W_dec"] /= full["W_dec"].norm(dim=1, keepdim=True)
    return full


def fold(
    *,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    threshold: Tensor | None = None,
    mean: Tensor | None = None,
    scale: float = 1.0,
    k: int | None = None,
    info: Mapping[str, Any] | None = None,
) -> Dictionary:
    """Fold input normalisation and decoder norms into a `Dictionary`, computing in float64.

    The parameters describe an SAE on `z = (x - mean) * scale`: pre-activations
    `z @ W_enc + b_enc`, strict `threshold`, reconstruction `z_hat = latents @ W_dec + b_dec` and
    `x_hat = z_hat / scale + mean`. The result is the same function of raw `x`, with decoder rows
    of unit norm; latents are rescaled by `norm / scale`, and thresholds with them.

    Parameters
    ----------
    W_enc, b_enc, W_dec, b_dec : Tensor
        `[d_in, d_sae]`, `[d_sae]`, `[d_sae, d_in]`, `[d_in]`.
    threshold : Tensor, optional
        `[d_sae]`; zero (ReLU) if left out.
    mean : Tensor, optional
        `[d_in]`; zero if left out.
    scale : float
        Positive factor on centred activations.
    k : int, optional
        For a TopK SAE.
    info : mapping, optional
        Kept with the dictionary.

    Returns
    -------
    Dictionary
        In float32.

    Raises
    ------
    ValueError
        If a decoder row is zero, or for a TopK SAE whose decoder rows differ in norm: rescaling
        its latents would change which are the k largest.
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive, found {scale}.")
    W_enc, b_enc, W_dec, b_dec = (tensor.double() for tensor in (W_enc, b_enc, W_dec, b_dec))
    threshold = torch.zeros_like(b_enc) if threshold is None else threshold.double()
    mean = torch.zeros_like(b_dec) if mean is None else mean.double()
    norms = W_dec.norm(dim=1)
    if (norms == 0).any():
        raise ValueError(f"Decoder rows of norm zero cannot be folded: {int((norms == 0).sum())} found.")
    if k is not None and not torch.allclose(norms, norms[:1].expand_as(norms), rtol=1e-5):
        raise ValueError(
            "A TopK SAE's decoder norms cannot be folded: rescaled latents would compete differently "
            f"(norms from {norms.min():.4g} to {norms.max():.4g})."
        )
    tensors = {
        "W_enc": W_enc * norms,
        "b_enc": (b_enc / scale - mean @ W_enc) * norms,
        "W_dec": W_dec / norms[:, None],
        "b_dec": b_dec / scale + mean,
        "threshold": threshold / scale * norms,
    }
    return Dictionary(**{n: t.float() for n, t in tensors.items()}, k=k, info=info or {})
