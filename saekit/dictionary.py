"""The one class that analyses see: a folded dictionary of latents.

Raw activations go in; every input centring, scaling and decoder norm has been moved into the
weights, biases and thresholds, so that latents can be moved between dictionaries by gathering
rows (`saekit.analysis`). `saekit.folding` makes one from an SAE as it was trained or published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saekit.files import as_json, hash_json, hash_tensors, read_json, read_tensors, write_json, write_tensors
from saekit.identity import Identity, fingerprint
from saekit.selection import Latents, select_latents
from saekit.settings import choice, finite, flag, real, whole
from saekit.sparse import SparseLatents, affine

FORMAT = "saekit-dictionary-1"
HEADER, WEIGHTS = "dictionary.json", "weights.safetensors"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
COMPUTED = (torch.float32, torch.float64)  # dtypes that a dictionary computes in
WIDENED = (torch.float16, torch.bfloat16)  # dtypes that become float32, which changes no value
LAYOUTS = ("d_in, d_sae", "d_sae, d_in")
LAYOUT_OF = {"W_enc": "enc_layout", "W_dec": "dec_layout"}
NORMALIZATIONS = ("layer_norm", "constant_norm")
LAYER_NORM_EPS = 1e-5
# What `info` records about the origin of activations; dictionaries made from others keep it.
ORIGIN = ("model", "model_weights", "model_revision", "model_processing", "hook_point", "target")
# The activations that the first members of the bundled families were trained on, when their processing was
# not recorded with a dictionary yet. The store itself records that the model's weights were not processed.
UNPROCESSED = "aa369bea733cb3a576d118a868c46448640791ef2cdf270594637dd60fdc242d"
HOOK_POINT_SLIPS = ("hook", "hookname")  # other names of `hook_point`, in lower-case letters alone
CHUNK_ELEMENTS = 1 << 25  # dense pre-activations held at once by encode_sparse: 128 MB


class Described:
    """What `info` records about a dictionary, whether or not it has been read yet."""

    info: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The training variant, such as `"relu"`, or `"unknown"`."""
        return str(self.info.get("kind", "unknown"))

    @property
    def seed(self) -> int | None:
        """Seed of the training run, if known."""
        return self.info.get("seed")

    @property
    def hook_point(self) -> str | None:
        """Where the activations come from, if known."""
        return self.info.get("hook_point")

    @property
    def target(self) -> str | None:
        """The hook point that a transcoder predicts, if known; None for an SAE, which predicts its input."""
        return self.info.get("target")


def origin_of(*infos: Mapping[str, Any]) -> dict[str, Any]:
    """Where activations come from (the entries of `ORIGIN`), as far as all of these records agree.

    Of the processing of the model's weights it has the flags that are on.

    Parameters
    ----------
    *infos : mapping
        The `info` of one dictionary or more.

    Examples
    --------
    >>> origin_of({"model": "gpt2", "seed": 0}, {"model": "gpt2", "hook_point": "blocks.1.hook_resid_pre"})
    {'model': 'gpt2'}
    """
    first, *others = (_origin(info) for info in infos)
    return {name: value for name, value in first.items() if all(o.get(name) == value for o in others)}


def _origin(info: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: info[name] for name in ORIGIN if info.get(name) is not None}
    training = info.get("training")
    if isinstance(training, Mapping) and training.get("activations") == UNPROCESSED:
        known = {"model_processing": {}} | known
    if "model_processing" in known:
        known["model_processing"] = {flag: True for flag, on in known["model_processing"].items() if on}
    return known


class RowScale(NamedTuple):
    """How the reconstruction of each row depends on the row itself, which decoding needs to know.

    Attributes
    ----------
    centre, factor : Tensor
        `[batch, 1]`: a reconstruction `z_hat` of the normalised row stands for
        `z_hat * factor + centre`. The centre of a skip transcoder is `x @ W_skip`, `[batch, d_out]`.
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
        Decoder directions as rows of unit norm, `[d_sae, d_in]`. The one exception is a row of zeros:
        its latent may be active, but adds nothing to a reconstruction.
    b_dec : Tensor
        Decoder bias, `[d_in]`.
    threshold : Tensor
        Threshold of each latent, `[d_sae]`, at least 0, in the units of the pre-activations; a latent
        whose threshold is infinite is never active.
    k : int, optional
        For a TopK SAE only: of the latents above their threshold, the `k` largest of a row are
        kept. Such latents compete, so they cannot be moved (`require_independent`).
    rank_scale : Tensor, optional
        For a TopK SAE whose decoder rows had other norms: latents compete by
        `h * rank_scale`, `[d_sae]`.
    normalization : str, optional
        Every row is normalised by itself before it is encoded: `"layer_norm"` (mean 0, unbiased
        standard deviation 1) or `"constant_norm"` (norm `sqrt(d_in)`). Its latents are in units
        that differ from row to row, so they cannot be moved either, and `decode` needs to know
        the rows' scale (`row_scale`).
    info : mapping
        What the dictionary is and where it comes from (`kind`, `model`, `hook_point`, `seed`,
        training settings, ...), as values that JSON can hold.

    Notes
    -----
    Tensors may be NumPy arrays; gradients are dropped. A dictionary computes
    in float32, or in float64 if one of its tensors has that dtype; half precision is widened to float32,
    which is exact. `Dictionary.from_weights` takes tensors of any orientation and norm.

    Raises
    ------
    TypeError
        If a tensor does not hold floating-point numbers, or `info` holds a value that JSON cannot.
    ValueError
        If a shape does not fit, a value is not finite, or a threshold is negative.

    Examples
    --------
    >>> eye = torch.eye(3)
    >>> dictionary = Dictionary(eye, torch.zeros(3), eye, torch.zeros(3), threshold=torch.ones(3))
    >>> dictionary
    Dictionary(unknown 3, d_in=3, width=3)
    >>> dictionary.encode(torch.tensor([[0.5, 2.0, 3.0]]))
    tensor([[0., 2., 3.]])
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
    transcoder: ClassVar[bool] = False

    def __post_init__(self) -> None:
        tensors = _tensors(self.tensors())
        if tensors["W_enc"].ndim != 2:
            raise ValueError(f"W_enc must be [d_in, d_sae], found shape {list(tensors['W_enc'].shape)}.")
        d_in, d_sae = tensors["W_enc"].shape
        d_out = tensors["b_dec"].numel() if self.transcoder else d_in
        expected = {"b_enc": (d_sae,), "W_dec": (d_sae, d_out), "b_dec": (d_out,), "threshold": (d_sae,)}
        expected |= {"rank_scale": (d_sae,), "W_skip": (d_in, d_out)}
        for name in tensors.keys() - {"W_enc"}:
            shape, found = expected[name], tuple(tensors[name].shape)
            if found != shape:
                raise ValueError(
                    f"{name} must have shape {list(shape)} beside W_enc [d_in={d_in}, d_sae={d_sae}], "
                    f"found {list(found)}."
                )
        _require_numbers(tensors)
        if self.normalization is not None:
            choice("normalization", self.normalization, NORMALIZATIONS)
        if not isinstance(self.info, Mapping):
            raise TypeError(f"info must be a mapping, found {type(self.info).__name__}.")
        given: dict[str, Any] = {**tensors, "info": as_json(self.info, "info")}
        if self.k is not None:
            given["k"] = whole("k", self.k, at_most=d_sae)
        for name, value in given.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_weights(
        cls,
        W_enc: Tensor | np.ndarray,
        W_dec: Tensor | np.ndarray,
        b_enc: Tensor | np.ndarray | None = None,
        b_dec: Tensor | np.ndarray | None = None,
        *,
        threshold: Tensor | np.ndarray | float | None = None,
        k: int | None = None,
        subtract_b_dec: bool = False,
        normalization: str | None = None,
        d_in: int | None = None,
        enc_layout: str | None = None,
        dec_layout: str | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> Dictionary:
        """Make a dictionary from raw tensors, in any orientation and with decoder rows of any norm.

        The SAE computes `h = (x - b_dec) @ W_enc + b_enc` (or `x @ W_enc + b_enc`), keeps `h` where it
        exceeds its threshold, and adds up `latents @ W_dec + b_dec`. Decoder norms move into encoder,
        biases and thresholds, in float64, so that reconstructions stay the same; latents are multiplied
        by the norm of their decoder row.

        Parameters
        ----------
        W_enc, W_dec : Tensor or array
            Encoder and decoder, each `[d_in, d_sae]` or `[d_sae, d_in]`. The sizes of biases and
            thresholds, or `d_in`, tell which; if they do not, an error asks for it.
        b_enc, b_dec : Tensor or array, optional
            Biases, `[d_sae]` and `[d_in]`; zero if left out.
        threshold : Tensor, array or float, optional
            In the units of `h`, `[d_sae]` or one number for all; zero (ReLU) if left out.
        k : int, optional
            Only the `k` largest latents of a row are kept (TopK).
        subtract_b_dec : bool
            Whether the encoder reads `x - b_dec`, as in SAELens by default and in dictionary_learning, or
            `x`, as in Gemma Scope.
        normalization : str, optional
            See `Dictionary`.
        d_in : int, optional
            Dimension of the activations, where neither bias gives it.
        enc_layout, dec_layout : str, optional
            `"d_in, d_sae"` or `"d_sae, d_in"`: needed for square matrices.
        info : mapping, optional
            See `Dictionary`; `kind` is `"relu"`, `"jumprelu"` or `"topk"` if it is left out.

        Raises
        ------
        TypeError
            If a tensor does not hold floating-point numbers.
        ValueError
            If an orientation is not clear, shapes do not fit, a value is not finite, `info` names a kind
            whose `k` or `threshold` is missing, or one of its keys is a misspelling of `hook_point`.

        Examples
        --------
        >>> decoder = 2 * torch.eye(4)[:, :3]  # three latents of norm 2, as columns
        >>> dictionary = Dictionary.from_weights(decoder.T / 2, decoder, b_dec=torch.ones(4))
        >>> dictionary
        Dictionary(relu 3, d_in=4, width=3)
        >>> dictionary.W_dec
        tensor([[1., 0., 0., 0.],
                [0., 1., 0., 0.],
                [0., 0., 1., 0.]])
        >>> dictionary.encode(torch.tensor([[1.0, -1.0, 0.5, 0.0]]))
        tensor([[2., 0., 1.]])
        """
        given: dict[str, Any] = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
        subtract_b_dec = flag("subtract_b_dec", subtract_b_dec)
        if threshold is not None and np.ndim(threshold):
            given["threshold"] = threshold
        tensors: dict[str, Any] = {**_tensors({name: t for name, t in given.items() if t is not None})}
        sizes = _sizes(tensors, d_in, {"W_enc": enc_layout, "W_dec": dec_layout})
        like = tensors["W_enc"]
        tensors["W_enc"] = _oriented("W_enc", tensors["W_enc"], sizes, LAYOUTS[0], enc_layout)
        tensors["W_dec"] = _oriented("W_dec", tensors["W_dec"], sizes, LAYOUTS[1], dec_layout)
        tensors.setdefault("b_enc", like.new_zeros(sizes[1]))
        tensors.setdefault("b_dec", like.new_zeros(sizes[0]))
        if threshold is not None and "threshold" not in tensors:
            tensors["threshold"] = like.new_full((sizes[1],), real("threshold", threshold, at_least=0))
        info = as_json({} if info is None else info, "info")
        if not isinstance(info, Mapping):
            raise TypeError(f"info must be a mapping, found {type(info).__name__}.")
        _check_record(info, k, threshold)
        kind = "topk" if k is not None else "relu" if threshold is None else "jumprelu"
        if "threshold" in tensors and not (tensors["threshold"] >= 0).all():
            raise ValueError("Thresholds must be at least 0: a latent is never negative.")
        # What `Unfolded.fold` does block by block, for tensors that are in memory as they are.
        wide = {name: tensor.double() for name, tensor in tensors.items()}
        if subtract_b_dec:
            wide["b_enc"] = wide["b_enc"] - wide["b_dec"] @ wide["W_enc"]
        given = {name: tensor.to(like.dtype) for name, tensor in _with_unit_rows(wide, k).items()}
        return cls(**given, k=k, normalization=normalization, info={"kind": kind, **info})

    @property
    def d_in(self) -> int:
        """Dimension of the activations."""
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        """Dimension of reconstructions: `d_in`, except for a transcoder."""
        return self.W_dec.shape[1]

    @property
    def columns(self) -> int:
        """Columns of the activations that analyses take: `d_in`; `d_in + d_out` for a transcoder."""
        return self.d_in

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
        """The identity that results record; compared by content."""
        return Identity(self.name, self.kind, self.width, self.seed, self.hook_point, self.content_hash)

    @property
    def content_hash(self) -> str:
        """SHA-256 of tensors, `k`, normalisation and `info`, computed again when the tensors change."""
        key = fingerprint(self.tensors().values())
        if self._hashed.get("key") != key:
            self._hashed.update(key=key, hash=self._hash())
        return str(self._hashed["hash"])

    @cached_property
    def _hashed(self) -> dict[str, Any]:
        return {}

    def _hash(self) -> str:
        normalized = {} if self.normalization is None else {"normalization": self.normalization}
        parts = {"tensors": hash_tensors(self.tensors()), "k": self.k, "info": dict(self.info)}
        if self.transcoder:
            parts["transcoder"] = True
        return hash_json(parts | normalized)

    def __repr__(self) -> str:
        k = "" if self.k is None else f", k={self.k}"
        return f"Dictionary({self.name}, d_in={self.d_in}, width={self.width}{k})"

    def tensors(self) -> dict[str, Tensor]:
        """The five tensors by name, and `rank_scale` where there is one."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        return tensors if self.rank_scale is None else tensors | {"rank_scale": self.rank_scale}

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Dictionary:
        """The same dictionary on another device, or in float32 or float64.

        Raises
        ------
        ValueError
            If the dtype is another one: thresholds and close latents need single precision.
        """
        if dtype not in (None, *COMPUTED):
            raise ValueError(
                f"A dictionary computes in float32 or float64, found {dtype}: convert activations instead."
            )
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
            If `x` does not have `d_in` columns, or a value is not finite.
        """
        x = self._rows(x)
        if self.normalization is not None and (scale := self.row_scale(x)) is not None:
            eps = LAYER_NORM_EPS if self.normalization == "layer_norm" else 0.0
            x = (x - scale.centre) / (scale.factor + eps)
        return affine(x, self.W_enc.T, self.b_enc)

    def _rows(self, x: Tensor | np.ndarray) -> Tensor:
        """Activations in this dictionary's dtype: an array becomes a tensor, and every value is finite."""
        if not isinstance(x, Tensor):
            x = torch.as_tensor(x, device=self.W_enc.device)
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise ValueError(
                f"{self.name} takes activations of shape [batch, {self.d_in}], found {list(x.shape)}."
            )
        x = x.to(self.W_enc.dtype)
        finite("The activations hold", x)
        return x

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
        """Latents of raw activations, dense: `[batch, d_in]` to `[batch, width]`.

        Raises
        ------
        ValueError
            If `x` does not have `d_in` columns, or a value is not finite.
        """
        h = self.pre_activations(x)
        return torch.where(self._active(h), h, 0.0)

    def encode_sparse(self, x: Tensor) -> SparseLatents:
        """Active latents of raw activations `[batch, d_in]`, without a dense `[batch, width]`.

        Works through the rows in chunks, so memory stays bounded at any width.

        Raises
        ------
        ValueError
            As `encode`.
        """
        rows = max(1, CHUNK_ELEMENTS // max(1, self.width))
        x = x if isinstance(x, Tensor) else self._rows(x)
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
            `row_scale(x)` of the rows that were encoded, for a dictionary that normalises them or has a
            skip connection.

        Raises
        ------
        ValueError
            If this dictionary normalises rows, or has a skip connection, and their scale is not given;
            or if a value is not finite.
        """
        if not isinstance(latents, SparseLatents):
            latents = torch.as_tensor(latents, device=self.W_enc.device).to(self.W_dec.dtype)
        finite("The latents hold", latents.values if isinstance(latents, SparseLatents) else latents)
        if scale is None and (why := self._needs_rows()):
            raise ValueError(
                f"{self.name} {why}, so decoding needs their scale: "
                "decode(latents, dictionary.row_scale(x)), or reconstruct(x)."
            )
        if isinstance(latents, SparseLatents):
            x_hat = latents.matmul(self.W_dec) + self.b_dec
        else:
            x_hat = torch.addmm(self.b_dec, latents, self.W_dec)
        return x_hat if scale is None else x_hat * scale.factor + scale.centre

    def _needs_rows(self) -> str | None:
        """The reason that decoding needs the rows, if it does."""
        return None if self.normalization is None else f"normalises every row ({self.normalization})"

    def reconstruct(self, x: Tensor) -> Tensor:
        """Raw activations in, their reconstruction out: `[batch, d_in]` both.

        Raises
        ------
        ValueError
            As `encode`.
        """
        x = self._rows(x)
        return self.decode(self.encode_sparse(x), self.row_scale(x))

    # ------------------------------------------------------------------ moving latents

    def require_finite(self) -> None:
        """Refuse to continue if its tensors were changed in place to values that are not finite.

        Raises
        ------
        ValueError
            If a value is infinite (other than a threshold) or not a number, or a threshold is negative.
        """
        _require_numbers(self.tensors(), f" of {self.name}")

    def require_independent(self, purpose: str) -> None:
        """Refuse to continue if the latents depend on each other, or their unit on the row.

        Raises
        ------
        ValueError
            If this is a TopK dictionary, or one that normalises every row.
        """
        if self.k is not None:
            why = f"keeps the {self.k} largest of each row"
        elif self.normalization is not None:
            why = f"measures each row in its own unit ({self.normalization})"
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
        """Write the weights and `dictionary.json` into `folder`.

        The JSON, which names the weights' file and makes the folder a dictionary, is written last,
        and each file replaces an old one in one step. A dictionary already in the folder stays whole
        until then: whenever writing stops, the folder holds the old one or the new one. Only the
        weights that the old JSON names are removed; all other files stay.

        Parameters
        ----------
        folder : str or Path
            Made if needed.
        half : bool
            Store the encoder and the decoder directions in half precision; they are single
            precision, and directions of unit norm, again once loaded.

        Raises
        ------
        ValueError
            If the folder holds a family, which a dictionary beside its members would hide.
        OSError
            If the folder cannot be written.
        """
        folder, tensors = Path(folder), self.tensors()
        members = sorted(header.parent.name for header in folder.glob(f"*/{HEADER}"))
        if members and not (folder / HEADER).exists():
            raise ValueError(
                f"{folder} holds a family ({', '.join(members)}): save this dictionary in another folder, or "
                "the whole family with Family.save."
            )
        if half:
            tensors |= {name: tensors[name].half() for name in ("W_enc", "W_dec")}
        content = replace(self, **_from_half(tensors)).content_hash
        weights, old = folder / WEIGHTS, _weights_in(folder)
        if weights.exists() or old:  # the old dictionary stays whole until the new one is
            weights = folder / f"weights-{content[:8]}.safetensors"
        write_tensors(weights, tensors)
        header = {
            "format": FORMAT,
            "d_in": self.d_in,
            "width": self.width,
            "k": self.k,
            "normalization": self.normalization,
            "info": dict(self.info),
            "hash": content,
        }
        if self.transcoder:
            header["transcoder"] = True
        if weights.name != WEIGHTS:
            header["weights"] = weights.name
        old -= {weights.name}
        if old:  # recorded until they are gone, for a later `save` if this one is stopped
            write_json(folder / HEADER, header | {"replaces": sorted(old)})
            for name in old:
                (folder / name).unlink(missing_ok=True)
        write_json(folder / HEADER, header)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Dictionary:
        """Read a dictionary or `Transcoder` that `save` wrote, and check it against its hash.

        Raises
        ------
        FileNotFoundError
            If the folder holds no dictionary.
        ValueError
            If a file is damaged, a tensor is missing or unknown, or the hash does not fit.
        """
        folder = Path(folder)
        header = read_header(folder)
        weights = folder / header["weights"]
        if not weights.exists():
            raise FileNotFoundError(f"{folder} holds no dictionary: expected {HEADER} and {weights.name}.")
        tensors = read_tensors(weights)
        kind = Transcoder if header["transcoder"] else Dictionary
        extra = {"rank_scale", "W_skip"} if header["transcoder"] else {"rank_scale"}
        if set(tensors) - extra != set(TENSORS):
            raise ValueError(
                f"{weights} must hold exactly {', '.join(TENSORS)}; found {', '.join(sorted(tensors))}."
            )
        settings = {name: header[name] for name in ("k", "normalization", "info")}
        try:
            dictionary = kind(**_from_half(tensors), **settings)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder} is damaged: {error}") from error
        sizes = {"d_in": dictionary.d_in, "width": dictionary.width}
        for name, size in sizes.items():
            if header[name] != size:
                raise ValueError(
                    f"{folder} is damaged: {HEADER} gives {name} {header[name]}, the tensors {size}."
                )
        if dictionary.content_hash != header["hash"]:
            raise ValueError(f"{folder} is damaged: its content does not match the hash in {HEADER}.")
        return dictionary


@dataclass(frozen=True, eq=False)
class Transcoder(Dictionary):
    """A dictionary that predicts another activation than the one that it encodes (Dunefsky et al. 2024).

    It encodes `x` as a `Dictionary` does and predicts `y`, such as an MLP's output from its input, by
    `latents @ W_dec + x @ W_skip + b_dec`. Wherever an analysis takes activations, a transcoder's are
    rows `[x, y]` side by side, `[n, d_in + d_out]`: a store that was harvested with `target`, or
    `torch.cat([x, y], dim=1)`. Its residual is `y` minus the prediction; FVU is that of `y`.

    Parameters
    ----------
    W_enc, b_enc, threshold, k, rank_scale, info
        See `Dictionary`. `info` records the hook point of `x` as `hook_point`, and that of `y` as `target`.
    W_dec : Tensor
        Decoder directions as rows of unit norm, `[d_sae, d_out]`.
    b_dec : Tensor
        Decoder bias, `[d_out]`.
    W_skip : Tensor, optional
        Skip connection, `[d_in, d_out]` (Paulo et al. 2025, arXiv:2501.18823); none if left out.

    Raises
    ------
    TypeError, ValueError
        As `Dictionary`, or if rows are to be normalised one by one, which is not defined for two
        activations.

    Examples
    --------
    >>> eye, zero = torch.eye(3), torch.zeros(3)
    >>> transcoder = Transcoder(eye, zero, eye, zero, threshold=zero, W_skip=-eye)
    >>> transcoder
    Transcoder(unknown 3, d_in=3, d_out=3, width=3, skip)
    >>> transcoder.reconstruct(torch.tensor([[1.0, -2.0, 3.0]]))
    tensor([[0., 2., 0.]])
    """

    W_skip: Tensor | None = None
    transcoder: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.normalization is not None:
            raise ValueError(
                f"A transcoder does not normalise rows, found normalization={self.normalization!r}: what it "
                "predicts is another activation, of another scale."
            )
        super().__post_init__()

    @classmethod
    def from_weights(  # type: ignore[override]  # other parameters than of an SAE
        cls,
        W_enc: Tensor | np.ndarray,
        W_dec: Tensor | np.ndarray,
        b_enc: Tensor | np.ndarray | None = None,
        b_dec: Tensor | np.ndarray | None = None,
        *,
        W_skip: Tensor | np.ndarray | None = None,
        threshold: Tensor | np.ndarray | None = None,
        k: int | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> Transcoder:
        """Make a transcoder from raw tensors, with decoder rows of any norm.

        Parameters
        ----------
        W_enc, W_dec, W_skip : Tensor or array
            `[d_in, d_sae]`, `[d_sae, d_out]` and `[d_in, d_out]`.
        b_enc, b_dec : Tensor or array, optional
            `[d_sae]` and `[d_out]`; zero if left out.
        threshold : Tensor or array, optional
            In the units of `x @ W_enc + b_enc`, `[d_sae]`; zero (ReLU) if left out.
        k, info
            As `Dictionary.from_weights`.

        Raises
        ------
        TypeError, ValueError
            If a tensor is not of floating-point numbers, shapes do not fit, a value is not finite, or
            `info` contradicts the tensors.

        Examples
        --------
        >>> transcoder = Transcoder.from_weights(torch.ones(2, 3), 2 * torch.ones(3, 1))
        >>> transcoder
        Transcoder(relu 3, d_in=2, d_out=1, width=3)
        >>> transcoder.reconstruct(torch.ones(1, 2))
        tensor([[12.]])
        """
        given: dict[str, Any] = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
        given |= {"W_skip": W_skip, "threshold": threshold}
        tensors = _tensors({name: t for name, t in given.items() if t is not None})
        for name in ("W_enc", "W_dec"):
            if tensors[name].ndim != 2:
                raise ValueError(f"{name} must be a matrix, found shape {list(tensors[name].shape)}.")
        like = tensors["W_enc"]
        if len(tensors["W_dec"]) != like.shape[1]:
            raise ValueError(
                f"W_dec must be [d_sae={like.shape[1]}, d_out] beside W_enc {list(like.shape)}, found "
                f"{list(tensors['W_dec'].shape)}."
            )
        tensors.setdefault("b_enc", like.new_zeros(like.shape[1]))
        tensors.setdefault("b_dec", like.new_zeros(tensors["W_dec"].shape[1]))
        info = as_json({} if info is None else info, "info")
        _check_record(info, k, threshold)
        kind = "topk" if k is not None else "relu" if threshold is None else "jumprelu"
        folded = _with_unit_rows({name: tensor.double() for name, tensor in tensors.items()}, k)
        own: dict[str, Any] = {name: tensor.to(like.dtype) for name, tensor in folded.items()}
        return cls(**own, k=k, info={"kind": kind, **info})

    @property
    def columns(self) -> int:
        """Columns of the activations that analyses take, inputs beside targets: `d_in + d_out`."""
        return self.d_in + self.d_out

    @property
    def name(self) -> str:
        """A short name for tables and legends, such as `"relu transcoder 1152 (seed 0)"`."""
        return f"{self.kind} transcoder {super().name.removeprefix(f'{self.kind} ')}"

    def __repr__(self) -> str:
        name = super().name
        more = ("" if self.k is None else f", k={self.k}") + ("" if self.W_skip is None else ", skip")
        return f"Transcoder({name}, d_in={self.d_in}, d_out={self.d_out}, width={self.width}{more})"

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a `Dictionary` by name, and `W_skip` where there is one."""
        tensors = super().tensors()
        return tensors if self.W_skip is None else tensors | {"W_skip": self.W_skip}

    def row_scale(self, x: Tensor) -> RowScale | None:
        """The part of the prediction that skips the latents, `x @ W_skip`; None without such a connection."""
        if self.W_skip is None:
            return None
        skipped = affine(x[:, : self.d_in].to(self.W_skip.dtype), self.W_skip.T)
        return RowScale(skipped, torch.ones_like(skipped[:, :1]))

    def _needs_rows(self) -> str | None:
        return None if self.W_skip is None else "adds x @ W_skip to every row"

    def _rows(self, x: Tensor | np.ndarray) -> Tensor:
        """The inputs of rows that may hold their targets too, checked as a `Dictionary` does."""
        if x.ndim == 2 and x.shape[1] == self.columns:
            x = x[:, : self.d_in]
        return super()._rows(x)


def identity_of(value: Identity | Dictionary) -> Identity:
    """The identity of a dictionary, or the one that a result holds.

    Examples
    --------
    >>> identity_of(small) == identity_of(small.identity)
    True
    """
    return value if isinstance(value, Identity) else value.identity


def require_dictionaries(**given: Any) -> None:
    """Refuse arguments that are not a `Dictionary`, by name.

    Raises
    ------
    TypeError
        If one is not: another object, a name that has not been loaded, or the None that
        `Family.second_seed` gives where there is none.

    Examples
    --------
    >>> require_dictionaries(small=small, large=large)
    >>> require_dictionaries(small="relu")
    Traceback (most recent call last):
        ...
    TypeError: small must be a Dictionary, found str; load it with ...
    """
    for name, value in given.items():
        if isinstance(value, Dictionary):
            continue
        hint = ""
        if isinstance(value, str | Path):
            hint = "; load it with saekit.load_sae"
        elif value is None:
            hint = "; family.second_seed(width) is None where there is no second seed"
        raise TypeError(f"{name} must be a Dictionary, found {type(value).__name__}{hint}.")


def read_header(folder: Path) -> dict[str, Any]:
    """What `dictionary.json` records, without reading any weights.

    Raises
    ------
    FileNotFoundError
        If the folder holds no dictionary.
    ValueError
        If the file is not what `Dictionary.save` writes.

    Examples
    --------
    >>> folder = small.save("saved")
    >>> header = read_header(folder)
    >>> header["info"]["kind"], header["info"]["seed"]
    ('relu', 0)
    """
    file = folder / HEADER
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no dictionary: expected {HEADER} and {WEIGHTS}.")
    header = read_json(file)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{file} must give format {FORMAT!r}: it is of another version, or no dictionary.")
    optional: dict[str, Any] = {"weights": WEIGHTS, "replaces": [], "normalization": None, "k": None}
    header = optional | {"transcoder": False} | header
    kinds: dict[str, type] = {"d_in": int, "width": int, "info": dict, "hash": str}
    kinds |= {"weights": str, "replaces": list, "transcoder": bool}
    wrong = [name for name, kind in kinds.items() if not isinstance(header.get(name), kind)]
    if wrong or any(Path(str(name)).name != name for name in (header["weights"], *header["replaces"])):
        raise ValueError(f"{file} does not describe a dictionary: {', '.join(wrong) or 'weights'} is wrong.")
    return header


def _weights_in(folder: Path) -> set[str]:
    """Names of the files with the weights of the dictionary in a folder and of what it was to replace."""
    try:
        header = read_header(folder)
    except (FileNotFoundError, ValueError):
        return set()
    return {header["weights"], *header["replaces"]}


def _tensors(given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors without gradients, of one dtype that a dictionary computes in and on one device."""
    tensors = {}
    for name, value in given.items():
        try:
            # An array (or a frame) is copied: its owner may write to it, and strides may be negative.
            foreign = hasattr(value, "__array__") and not isinstance(value, Tensor)
            tensor = torch.as_tensor(np.array(value) if foreign else value).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be a tensor or an array, found {type(value).__name__}.") from error
        if tensor.dtype not in COMPUTED + WIDENED or tensor.layout != torch.strided or tensor.is_meta:
            raise TypeError(
                f"{name} must be a dense tensor of float32 or float64 (or float16 or bfloat16, which are "
                f"widened), found {tensor.dtype}, {tensor.layout} on {tensor.device}."
            )
        tensors[name] = tensor
    devices = {str(tensor.device) for tensor in tensors.values()}
    if len(devices) > 1:
        raise ValueError(f"All tensors must be on one device, found {', '.join(sorted(devices))}.")
    double = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    return {name: tensor.to(torch.float64 if double else torch.float32) for name, tensor in tensors.items()}


def _check_record(info: Mapping[str, Any], k: int | None, threshold: Any) -> None:
    """Refuse a record of raw tensors that contradicts them or has a misspelt key.

    Raises
    ------
    ValueError
        If `k` or the thresholds of the recorded kind are missing, or `hook_point` is misspelt.
    """
    kind = info.get("kind")
    if kind == "topk" and k is None:
        raise ValueError("info gives the kind 'topk': give k=, the number of latents kept per row, too.")
    if kind in ("jumprelu", "batchtopk") and k is None and threshold is None:
        raise ValueError(f"info gives the kind {kind!r}: give threshold=, too, else every threshold is 0.")
    for key in () if "hook_point" in info else info:
        letters = re.sub("[^a-z]", "", str(key).lower())
        if letters in HOOK_POINT_SLIPS or get_close_matches(letters, ["hookpoint"], cutoff=0.85):
            raise ValueError(f"info has no key {key!r} that saekit reads: call it 'hook_point'.")


def _require_numbers(tensors: Mapping[str, Tensor], of: str = "") -> None:
    """Refuse weights that are not finite (a threshold may be infinite) and negative thresholds."""
    for name, tensor in tensors.items():
        if name != "threshold":
            finite(f"{name}{of} holds", tensor)
    if not (tensors["threshold"] >= 0).all():  # or it is not a number
        raise ValueError(f"Thresholds{of} must be at least 0: a latent is never negative.")


def _with_unit_rows(wide: dict[str, Tensor], k: int | None) -> dict[str, Tensor]:
    """Tensors in float64 with decoder rows of unit norm, whose norms have moved into the others."""
    norm = wide["W_dec"].norm(dim=1)
    norm = norm.where(norm > 0, 1.0)
    folded = wide | {
        "W_enc": wide["W_enc"] * norm,
        "b_enc": wide["b_enc"] * norm,
        "W_dec": wide["W_dec"] / norm[:, None],
        "threshold": wide["threshold"] * norm if "threshold" in wide else 0 * norm,
    }
    if k is not None and not torch.allclose(norm, norm[:1].expand_as(norm), rtol=1e-6, atol=0):
        folded["rank_scale"] = 1 / norm  # latents compete in the units that they were given in
    return folded


def _sizes(
    tensors: Mapping[str, Tensor], d_in: int | None, layouts: Mapping[str, str | None]
) -> tuple[int, int]:
    """`d_in` and `d_sae` of raw tensors, from anything that tells them apart.

    Raises
    ------
    ValueError
        If nothing does, or two things disagree.
    """
    for name in ("W_enc", "W_dec"):
        if tensors[name].ndim != 2:
            raise ValueError(f"{name} must be a matrix, found shape {list(tensors[name].shape)}.")
    for name in ("b_enc", "b_dec", "threshold"):
        if name in tensors and tensors[name].ndim != 1:
            raise ValueError(f"{name} must have one dimension, found shape {list(tensors[name].shape)}.")
    one, other = tensors["W_enc"].shape
    if sorted(tensors["W_dec"].shape) != sorted((one, other)):
        shared = {one, other} & {*tensors["W_dec"].shape}
        d_sae = {len(tensors[name]) for name in ("b_enc", "threshold") if name in tensors}
        missing = "d_in and d_sae" if not shared else "d_in" if shared == d_sae else "d_sae"
        raise ValueError(
            f"W_enc has shape {[one, other]} and W_dec {list(tensors['W_dec'].shape)}: the shapes have no "
            f"{missing} in common."
        )
    told = {name: len(tensors[name]) for name in ("b_enc", "b_dec", "threshold") if name in tensors}
    if d_in is not None:
        told["d_in"] = whole("d_in", d_in)
    sizes = set()
    for name, size in told.items():
        if size not in (one, other):
            raise ValueError(f"{name} gives a size of {size}, but W_enc has shape {[one, other]}.")
        rest = other if size == one else one
        sizes.add((size, rest) if name in ("b_dec", "d_in") else (rest, size))
    for name, layout in layouts.items():
        if layout is not None:
            rows, columns = tensors[name].shape
            straight = choice(LAYOUT_OF[name], layout, LAYOUTS) == LAYOUTS[0]
            sizes.add((rows, columns) if straight else (columns, rows))
    if one == other:
        sizes = {(one, other)}
    if len(sizes) != 1:
        what = "nothing tells" if not sizes else f"{', '.join(told)} and layouts disagree about"
        raise ValueError(
            f"W_enc has shape {[one, other]}, and {what} which of the two is d_in: give d_in=, or biases "
            "that fit."
        )
    return sizes.pop()


def _oriented(name: str, matrix: Tensor, sizes: tuple[int, int], wanted: str, layout: str | None) -> Tensor:
    """A matrix in saekit's orientation."""
    if sizes[0] == sizes[1]:
        if layout is None:
            raise ValueError(
                f"{name} is square ({sizes[0]}), so its shape does not tell its orientation: give "
                f'{LAYOUT_OF[name]}="{LAYOUTS[0]}" or "{LAYOUTS[1]}".'
            )
        found = choice(LAYOUT_OF[name], layout, LAYOUTS)
    else:
        found = LAYOUTS[0] if tuple(matrix.shape) == sizes else LAYOUTS[1]
    return matrix if found == wanted else matrix.T


def _from_half(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Matrices stored in half precision, in single precision again, with directions of unit norm."""
    full = {
        name: tensor.float() if tensor.dtype == torch.half else tensor for name, tensor in tensors.items()
    }
    if tensors["W_dec"].dtype == torch.half:
        norm = full["W_dec"].norm(dim=1, keepdim=True)
        full["W_dec"] /= norm.where(norm > 0, 1)
    return full
