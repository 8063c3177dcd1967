"""Thin commands over the package.

An option that is not given is not passed on, so the defaults are those of the Python functions;
`--help` reads them there.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saekit.activations import ActivationStore
    from saekit.corpora import Document, TokenRows
    from saekit.family import Family
    from saekit.widgets.atlas import Atlas
    from saekit.widgets.workspace import Workspace

TOKENS = 1_000_000
DOCUMENTS = 20_000
KIND = "relu"
TEXT_OPTIONS = (
    *("model", "revision", "processing", "model_dtype", "hook_point", "text", "dataset"),
    *("dataset_split", "documents", "part", "tokens", "context_length", "bos", "dtype"),
)

ABBREVIATIONS = ("et al.", "i.e.", "e.g.", "cf.", "vs.")
Parser = argparse.ArgumentParser


@dataclass(frozen=True)
class Command:
    """A subcommand: its options are added only when it is asked for, so that the others stay fast."""

    help: str
    add_options: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], None]
    resumes: bool = True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors that users can fix end it with one sentence and status 1."""
    listing = "\n".join(f"  {name:<11}{command.help}" for name, command in COMMANDS.items())
    top = Parser(
        prog="saekit",
        description="Are the latents of sparse autoencoders unique, complete and atomic?",
        epilog=f"commands:\n{listing}\n\nsaekit COMMAND --help lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--quiet", action="store_true", help="show no progress bars")
    top.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    top.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the command")
    chosen = top.parse_args(arguments)
    command = COMMANDS[chosen.command]
    parser = Parser(
        prog=f"saekit {chosen.command}",
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    command.add_options(parser)
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file of options; those given here win")
    try:
        options = parser.parse_args(_with_file(parser, chosen.arguments))
        options.progress = not chosen.quiet
        from saekit.files import without_empty_folders

        with without_empty_folders():
            command.run(options)
    except (
        *(ValueError, OSError, ImportError, KeyError, TypeError, IndexError),
        *(FloatingPointError, OverflowError, MemoryError, RuntimeError),
    ) as error:
        too_large = _too_large(error)
        if isinstance(error, RuntimeError) and not too_large:
            raise
        # A KeyError's text is its message in quotes.
        message = str(error.args[0] if isinstance(error, KeyError) else error)
        if too_large:
            message = "there is not enough memory: choose smaller widths or batches."
        offered = "--allow-mismatch" in parser._option_string_actions
        there = " Add --allow-mismatch if this is what you want." if offered else ""
        message = message.replace(" Pass allow_mismatch=True if this is what you want.", there)
        print(f"saekit {chosen.command}: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        further = "; repeat the command to resume" if command.resumes else ""
        print(f"saekit {chosen.command}: stopped{further}.", file=sys.stderr)
        return 130
    return 0


def _too_large(error: Exception) -> bool:
    """Whether a tensor of the requested size could not be made."""
    if not isinstance(error, RuntimeError | TypeError):
        return isinstance(error, MemoryError)
    text = str(error).lower()
    return any(sign in text for sign in ("out of memory", "can't allocate memory", "overflow"))


def _output(place: str | Path) -> Path:
    """The folder to write to, which must not be an activation store."""
    from saekit.files import writable_folder

    if (Path(place) / "manifest.json").exists():
        raise ValueError(f"{place} holds an activation store (manifest.json): write to another folder.")
    return writable_folder(place)


# ---------------------------------------------------------------------- options


def _default(function: Callable[..., Any], name: str) -> Any:
    return inspect.signature(function).parameters[name].default


def _option(parser: Any, name: str, help: str, *, default: Any = None, **how: Any) -> None:
    """An option `--name`; `help` gets the default, which argparse itself does not fill in."""
    if how.get("type") in METAVARS:
        how["metavar"] = METAVARS[how["type"]]
    shown = "" if default is None else f" (default: {str(default).removeprefix('torch.')})"
    parser.add_argument(f"--{name.replace('_', '-')}", help=(help + shown).replace("%", "%%"), **how)


def _given(options: argparse.Namespace, *names: str, **renamed: str) -> dict[str, Any]:
    """The options among these that were given, under the parameter names of the function that takes them."""
    names_there = {name: name for name in names} | renamed
    return {there: getattr(options, here) for here, there in names_there.items() if hasattr(options, here)}


def _with_file(parser: Parser, arguments: Sequence[str]) -> list[str]:
    """The arguments, and after them those of the file that `--config` names and that are not given here."""
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    file = first.parse_known_args(arguments)[0].config
    if file is None:
        return [*arguments]
    fixed = ("--config", "--help", "-h")
    options = ((option, action) for action in parser._actions for option in action.option_strings)
    known = {option: action for option, action in options if option not in fixed}
    here = {argument.partition("=")[0] for argument in arguments}
    added: list[str] = []
    for name, value in _settings_in(file).items():
        option = f"--{name.replace('_', '-')}"
        if option not in known:
            takes = ", ".join(option.removeprefix("--") for option in known)
            raise ValueError(f"{file}: {parser.prog} has no option {name}; it has {takes}.")
        if here & {*known[option].option_strings}:
            continue
        if known[option].nargs == 0:
            if value not in ("true", "false"):
                raise ValueError(f"{file}: {name} must be true or false, found {value!r}.")
            negative = option.replace("--", "--no-", 1)
            added += [option] if value == "true" else [negative] if negative in known else []
        elif isinstance(value, list):
            added += [option, *value]
        else:
            added.append(f"{option}={value}")
    return [*arguments, *added]


def _settings_in(file: Path) -> dict[str, str | list[str]]:
    """Options by name, each a string or a list of strings, which the option itself interprets."""
    import yaml

    from saekit.files import read_json

    if file.suffix == ".json":
        found = read_json(file)
    else:
        try:
            text = file.read_text(encoding="utf-8")
            # Strings only, since in YAML `1e-3` is not a number and `012` is ten.
            found, node = yaml.load(text, yaml.BaseLoader), yaml.compose(text, yaml.BaseLoader)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, TypeError) as error:
            raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}.") from error
        if isinstance(found, Mapping) and len(found) < len(node.value):
            names = [key.value for key, _ in node.value]
            twice = ", ".join(name for name in found if names.count(name) > 1)
            raise ValueError(f"{file} gives {twice} twice.")
    if not isinstance(found, Mapping):
        raise ValueError(f"{file} must hold options by name, found {type(found).__name__}.")
    return {name: _texts(value, f"{file}: {name}") for name, value in found.items()}


def _texts(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_texts(one, where) for one in value]
    if isinstance(value, Mapping):
        raise ValueError(f"{where} must be a value or a list of values.")
    return value if isinstance(value, str) else json.dumps(value)


# ---------------------------------------------------------------------- model and text


def _model_options(parser: Parser) -> None:
    from saekit.models import EMBEDDED_MODEL, PROCESSING

    _option(parser, "model", "hub name or local folder", default=EMBEDDED_MODEL)
    _option(parser, "revision", "branch, tag or commit of the model on the hub")
    _option(
        parser,
        "processing",
        "weight processing to apply: the one that the SAEs were trained with",
        default="none",
        nargs="+",
        choices=PROCESSING,
    )


def _text_options(parser: Parser) -> None:
    from saekit.activations import DTYPES, harvest
    from saekit.corpora import huggingface_dataset, pack
    from saekit.models import load_model

    _model_options(parser)
    dtypes = tuple(DTYPES)
    default = _default(load_model, "dtype")
    _option(parser, "model_dtype", "precision the model runs in", default=default, choices=dtypes)
    default = _default(harvest, "hook_point")
    _option(parser, "hook_point", "where activations are read", default=default)
    text = parser.add_mutually_exclusive_group()
    _option(text, "text", "text files", default="the embedded corpus", nargs="+", type=Path)
    _option(text, "dataset", "Hugging Face data set, streamed")
    default = _default(huggingface_dataset, "split")
    _option(parser, "dataset_split", "split of --dataset", default=default)
    _option(parser, "documents", "documents to read from --dataset", default=DOCUMENTS, type=_whole)
    _option(parser, "part", "side of the split by documents", default="train", choices=("train", "held-out"))
    _option(parser, "tokens", "positions to harvest", default=TOKENS, type=_whole)
    default = _default(pack, "context_length")
    _option(parser, "context_length", "tokens per row", default=default, type=_whole)
    parser.add_argument(
        "--bos", action="store_true", help="begin each row with the beginning-of-text token (default: no)"
    )
    default = _default(harvest, "dtype")
    _option(parser, "dtype", "precision activations are kept in", default=default, choices=dtypes)


def _load_model(options: argparse.Namespace, **further: Any) -> TransformerBridge:
    import torch

    from saekit.models import load_model

    chosen = _given(options, "revision", model="name") | further
    if hasattr(options, "processing"):
        chosen["processing"] = dict.fromkeys(options.processing, True)
    if hasattr(options, "model_dtype"):
        chosen["dtype"] = getattr(torch, options.model_dtype)
    return load_model(**chosen)


def _rows(options: argparse.Namespace, model: TransformerBridge) -> TokenRows:
    """Token rows of the requested text."""
    from saekit.corpora import embedded_corpus, huggingface_dataset, pack, split, text_files

    documents: Iterable[Document]
    if not hasattr(options, "dataset"):
        for name in ("dataset_split", "documents"):
            if hasattr(options, name):
                raise ValueError(f"--{name.replace('_', '-')} applies only to --dataset.")
    if hasattr(options, "text"):
        documents = text_files(options.text)
    elif hasattr(options, "dataset"):
        limit = getattr(options, "documents", DOCUMENTS)
        documents = huggingface_dataset(
            options.dataset, limit=limit, **_given(options, dataset_split="split")
        )
    else:
        documents = embedded_corpus()
    return pack(
        split(documents)[getattr(options, "part", "train") == "held-out"],
        model.tokenizer,
        n_tokens=getattr(options, "tokens", TOKENS),
        **_given(options, "context_length", bos="prepend_bos"),
    )


def _kept_as(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    return {"dtype": getattr(torch, options.dtype)} if hasattr(options, "dtype") else {}


# ---------------------------------------------------------------------- harvest


def _harvest_options(parser: Parser) -> None:
    from saekit.models import load_model

    parser.add_argument("store", type=Path, help="folder to write")
    _text_options(parser)
    _option(parser, "device", "where the model runs, such as cuda", default=_default(load_model, "device"))


def _harvest(options: argparse.Namespace) -> None:
    from saekit.activations import harvest
    from saekit.distributed import distributed, is_main
    from saekit.files import writable_folder

    writable_folder(options.store)
    with distributed():
        model = _load_model(options, **_given(options, "device"))
        where = {**_given(options, "hook_point"), **_kept_as(options)}
        store = harvest(model, _rows(options, model), path=options.store, progress=options.progress, **where)
        if is_main():
            excluded = int(store.excluded.sum())
            print(f"{store.n_tokens} positions at {store.hook_point}, {excluded} of them excluded")


# ---------------------------------------------------------------------- train


def _train_options(parser: Parser) -> None:
    from saekit.training.config import TrainingConfig
    from saekit.training.trainer import train
    from saekit.training.variants import VARIANTS

    parser.add_argument(
        "places",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="the store that `saekit harvest` wrote, then the folder to write the dictionary to; with "
        "--stream only the latter",
    )
    _option(parser, "kind", "kind of SAE", default=KIND, choices=tuple(VARIANTS))
    general, own = parser.add_argument_group("training"), parser.add_argument_group("kinds of SAE")
    _setting_options(general, {"": TrainingConfig})
    _setting_options(own, VARIANTS)
    default = _default(train, "checkpoint_every")
    _option(general, "checkpoint_every", "steps between checkpoints", default=default, type=_whole)
    _option(general, "held_out", "store to measure the log on", default="a sample of the first", type=Path)
    _option(general, "device", "where to train, such as cuda", default=_default(train, "device"))
    _option(general, "tensorboard", "folder for the log in TensorBoard's format", metavar="FOLDER")
    _option(general, "wandb", "project of Weights & Biases to send the log to", metavar="PROJECT")
    parser.add_argument(
        "--stream", action="store_true", help="harvest activations while training, with nothing on disk"
    )
    _text_options(parser)


def _setting_options(group: Any, by_kind: Mapping[str, type]) -> None:
    """An option for every setting of these dataclasses, with its description and default."""
    takers: dict[str, list[str]] = {}
    for kind, made in by_kind.items():
        for field in fields(made):
            takers.setdefault(field.name, []).append(kind)
    for name, kinds in takers.items():
        made = by_kind[kinds[0]]
        if name == "variant":
            continue
        default = next(field.default for field in fields(made) if field.name == name)
        shown = "required" if default is MISSING else "" if default is None else f"default: {default}"
        notes = "; ".join(filter(None, [", ".join(kinds), shown]))
        text = _documented(made)[name].removesuffix(".") + (f" ({notes})" if notes else "")
        _option(group, name, text, **_how(get_type_hints(made)[name]))


def _how(hint: Any) -> dict[str, Any]:
    """What argparse needs for a setting of this type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    plain = _number if "float" in str(hint) else _whole
    if "None" in str(hint):
        return {"type": _or_none(plain), "metavar": f"{METAVARS[plain]}|none"}
    return {"type": plain} | ({"nargs": "+"} if "tuple" in str(hint) else {})


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, found {text!r}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, found {text!r}") from None


def _or_none(plain: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text.lower() in ("none", "null") else plain(text)


METAVARS = {_whole: "INT", _number: "FLOAT"}


def _documented(made: type) -> dict[str, str]:
    """Descriptions of the parameters in the docstrings of a class and those it is made from."""
    found: dict[str, str] = {}
    for one in reversed(made.__mro__):
        text = inspect.cleandoc(one.__doc__ or "") + "\n"
        for names, description in re.findall(r"^(\w+(?:, \w+)*) : .*\n((?:    .*\n)+)", text, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), _first_sentence(description))
    return found


def _first_sentence(text: str) -> str:
    """The first sentence; full stops of abbreviations do not end it."""
    return re.split(rf"(?<!{')(?<!'.join(map(re.escape, ABBREVIATIONS))})(?<=\.) ", " ".join(text.split()))[0]


def _train(options: argparse.Namespace) -> None:
    from saekit.activations import ActivationStore
    from saekit.distributed import distributed, is_main
    from saekit.streaming import StreamedActivations
    from saekit.training.config import TrainingConfig, configure
    from saekit.training.loggers import Logger, TensorBoardLogger, WandbLogger
    from saekit.training.trainer import train
    from saekit.training.variants import VARIANTS

    kinds: list[type] = [TrainingConfig, *VARIANTS.values()]
    known = {field.name for made in kinds for field in fields(made)}
    config = configure(getattr(options, "kind", KIND), _given(options, *known))
    stream = hasattr(options, "stream")
    if not stream and (given := [*_given(options, *TEXT_OPTIONS)]):
        raise ValueError(f"--{given[0].replace('_', '-')} applies only with --stream: a store is harvested.")
    if len(options.places) != 2 - stream:
        expected = "only the dictionary's folder" if stream else "a store and the dictionary's folder"
        raise ValueError(f"Expected {expected}, found {' '.join(map(str, options.places))}.")
    folder = _output(options.places[-1])
    loggers: list[Logger] = (
        [TensorBoardLogger(options.tensorboard)] if hasattr(options, "tensorboard") else []
    )
    loggers += [WandbLogger(options.wandb)] if hasattr(options, "wandb") else []
    held_out = ActivationStore.open(options.held_out) if hasattr(options, "held_out") else None
    source: ActivationStore | StreamedActivations
    with distributed():
        if stream:
            model = _load_model(options, **_given(options, "device"))
            where = {**_given(options, "hook_point"), **_kept_as(options)}
            source = StreamedActivations(model, _rows(options, model), **where)
        else:
            source = ActivationStore.open(options.places[0])
        result = train(
            config,
            source,
            held_out=held_out,
            checkpoint=folder / "checkpoint.safetensors",
            loggers=loggers,
            progress=options.progress,
            **_given(options, "checkpoint_every", "device"),
        )
        if is_main():
            result.dictionary.save(folder)
            print("\n".join(f"{name}: {value}" for name, value in result.summary.items()))


# ---------------------------------------------------------------------- convert


def _convert_options(parser: Parser) -> None:
    from saekit.loading.publishing import OWN, WRITERS, convert_sae

    parser.add_argument("source", help="SAEs of any format: a file, folder, glob, name or hub id")
    parser.add_argument("out", type=Path, help="folder to write")
    formats = (*WRITERS, OWN)
    _option(parser, "format", "what to write", default=_default(convert_sae, "format"), choices=formats)
    _option(parser, "revision", "branch, tag or commit on the hub")


def _convert(options: argparse.Namespace) -> None:
    from saekit.loading.publishing import convert_sae

    out = _output(options.out)
    print(convert_sae(options.source, out, **_given(options, "format", "revision")))


# ---------------------------------------------------------------------- report


def _report_options(parser: Parser) -> None:
    from saekit.report.report import write_report

    _family_options(parser, store="the embedded ones")
    _option(parser, "out", "folder to write", default="report-FAMILY", type=Path)
    for name, kind, help in (
        ("theta", _number, "cosine from which latents are the same"),
        ("k", _whole, "meta-latents per latent"),
        ("recipe", str, "how meta-SAEs are trained"),
    ):
        _option(parser, name, help, default=_default(write_report, name), type=kind)


def _family_options(parser: Parser, *, store: str) -> None:
    """The options of a family, held-out activations and their model."""
    parser.add_argument(
        "family", help="a folder or glob of SAEs, a bundled family such as relu, or a release"
    )
    _option(parser, "store", "held-out activations", default=store, type=Path)
    parser.add_argument(
        "--allow-mismatch",
        action="store_true",
        help="warn where model, store and family contradict each other, instead of stopping (default: no)",
    )
    _model_options(parser)


def _report(options: argparse.Namespace) -> None:
    from saekit.activations import ActivationStore
    from saekit.loading.names import load_family
    from saekit.report.report import write_report
    from saekit.series.embedded import embedded_store

    # For `..` or `.`, the name of the folder itself.
    folder = _output(getattr(options, "out", f"report-{Path(options.family).resolve().name}"))
    family = load_family(options.family)
    own_store, own_model = hasattr(options, "store"), bool(_given(options, "model", "revision", "processing"))
    allow_mismatch = hasattr(options, "allow_mismatch")
    if not (own_store or own_model or allow_mismatch):
        _require_embedded(family)
    model = _load_model(options) if own_model or not own_store else None
    if own_store:
        store = ActivationStore.open(options.store)
    else:
        store = embedded_store("held-out", model=model, progress=options.progress)
    family = _independent(family, store, allow_mismatch=allow_mismatch, progress=options.progress)
    further = _given(options, "theta", "k", "recipe", "allow_mismatch")
    print(write_report(family, store, folder=folder, model=model, progress=options.progress, **further))


def _require_embedded(family: Family) -> None:
    """Refuse, before anything is loaded, a family that does not fit the embedded activations."""
    from saekit.models import EMBEDDED_MODEL
    from saekit.series.embedded import HOOK_POINT

    model = family[family.widths[0]].info.get("model")
    if model in (None, EMBEDDED_MODEL) and family.hook_point in (None, HOOK_POINT):
        return
    place = f"at {family.hook_point}" if model in (None, EMBEDDED_MODEL) else f"of {model}"
    raise ValueError(
        f"The family is {place}, but without --store the report is on activations of {EMBEDDED_MODEL} at "
        f"{HOOK_POINT}: give --store, a folder that saekit harvest wrote from the model of the family."
    )


def _independent(family: Family, store: ActivationStore, *, allow_mismatch: bool, progress: bool) -> Family:
    """The family with thresholds in place of competition between latents, which analyses cannot handle."""
    from saekit.convert import as_jumprelu
    from saekit.family import Family

    members = []
    for dictionary in family:
        if dictionary.k is not None or dictionary.normalization is not None:
            found = as_jumprelu(dictionary, store, allow_mismatch=allow_mismatch, progress=progress)
            print(
                f"{dictionary.name} is converted to thresholds, measured on the same store: L0 "
                f"{found.summary['l0_before']:.1f} to {found.summary['l0_after']:.1f}, FVU "
                f"{found.summary['fvu_before']:.3f} to {found.summary['fvu_after']:.3f}, "
                f"{found.share_changed:.1%} of active entries changed"
            )
            dictionary = found.dictionary
        members.append(dictionary)
    return Family(members)


# ---------------------------------------------------------------------- pages for people without a notebook


def _export_options(parser: Parser) -> None:
    _family_options(parser, store="those of the family's model on the embedded text")
    parser.add_argument("out", type=Path, help="folder to write")
    _option(parser, "widths", "widths that have pages", default="all", nargs="+", type=_whole)
    _option(
        parser,
        "latents",
        "latents of each width that have pages, such as 7 or 0-99",
        default="all",
        nargs="+",
        type=_latents,
    )


def _latents(text: str) -> range:
    """A latent, or the first and last of several."""
    found = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", text)
    if not found:
        raise argparse.ArgumentTypeError(
            f"expected a latent such as 7, or several such as 0-99, found {text!r}"
        )
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise argparse.ArgumentTypeError(f"expected the lower latent first, as in 0-99, found {text!r}")
    return range(first, last + 1)


def _export(options: argparse.Namespace) -> None:
    from saekit.files import writable_folder
    from saekit.loading.names import load_family
    from saekit.site.export import export_site, require_site_folder
    from saekit.site.pages import choose_latents

    out = require_site_folder(options.out)
    family = load_family(options.family)
    # Refused before anything is computed, and before a range of any length becomes a list.
    widths, last = getattr(options, "widths", None), max(family.widths) - 1
    several = getattr(options, "latents", None)
    if several is not None and (beyond := [one for one in several if one[-1] > last]):
        raise IndexError(f"latents must be between 0 and {last}, found {beyond[0][-1]}.")
    latents = None if several is None else sorted({latent for one in several for latent in one})
    choose_latents(family, widths, latents)
    writable_folder(out)
    atlas = _atlas(family, options)
    print(export_site(atlas, out, widths=widths, latents=latents, progress=options.progress))


def _serve_options(parser: Parser) -> None:
    from saekit.site.serve import HOST, PORT

    _family_options(parser, store="those of the family's model on the embedded text")
    _option(parser, "host", "address to listen on", default=HOST)
    _option(parser, "port", "port to listen on", default=PORT, type=_whole)
    parser.add_argument(
        "--no-browser", action="store_true", help="do not open the page in the browser of this machine"
    )


def _serve(options: argparse.Namespace) -> None:
    from saekit.loading.names import load_family
    from saekit.site.serve import HOST, PORT, is_loopback, require_free, require_voila, serve

    host, port = getattr(options, "host", HOST), getattr(options, "port", PORT)
    require_voila()
    require_free(host, port)
    if not is_loopback(host):
        print(
            f"Warning: everyone who reaches {host}, port {port}, can open the workspace without a password, "
            "and each visitor starts a process here.",
            file=sys.stderr,
        )
    _atlas(load_family(options.family), options)  # kept, so that visitors need not wait for it
    place = f"[{host}]" if ":" in host else host
    print(f"The workspace is at http://{place}:{port}/ (Ctrl-C stops it).", flush=True)
    given = _given(options, "family", "store", "allow_mismatch", "model", "revision", "processing")
    given = json.loads(json.dumps(given, default=str))
    source = f"from saekit.cli import workspace\nworkspace(**{given!r})"
    serve(source, host=host, port=port, open_browser=not hasattr(options, "no_browser"))


def workspace(**given: Any) -> Workspace:
    """The workspace that `saekit serve` shows to a visitor, from the options that it was given."""
    from saekit.loading.names import load_family
    from saekit.widgets.workspace import Workspace

    options = argparse.Namespace(progress=False, **given)
    return Workspace(_atlas(load_family(options.family), options))


def _atlas(family: Family, options: argparse.Namespace) -> Atlas:
    """Everything that the pages of a family look up, kept for the next time."""
    from saekit.activations import ActivationStore
    from saekit.series.profiles import store_for
    from saekit.widgets.atlas import build_atlas

    info = family[family.widths[0]].info
    own = {"processing": info.get("model_processing", {})} | (
        {"name": info["model"]} if "model" in info else {}
    )
    model = _load_model(options, **({} if _given(options, "model", "processing") else own))
    if hasattr(options, "store"):
        store = ActivationStore.open(options.store)
    else:
        store = store_for(family, progress=options.progress)
    return build_atlas(family, store, model, progress=options.progress, **_given(options, "allow_mismatch"))


# ---------------------------------------------------------------------- the series


def _families_options(parser: Parser) -> None:
    parser.add_argument(
        "--bundle",
        action="store_true",
        help="train only what fits into the package, and add it",
    )


def _families(options: argparse.Namespace) -> None:
    from saekit.files import home
    from saekit.loading.names import BUNDLED
    from saekit.series.bundling import bundle, train_families

    print(f"Dictionaries are trained in {home() / 'families'}.", flush=True)
    if hasattr(options, "bundle"):
        print(bundle(progress=options.progress).to_string(index=False))
        print(f"They are in {BUNDLED}, with their tables.")
    else:
        print(*train_families(progress=options.progress), sep="\n")


def _kinds(options: argparse.Namespace) -> None:
    from saekit.files import home
    from saekit.loading.names import BUNDLED
    from saekit.series.kinds_grid import write_tables

    print(f"Dictionaries are trained in {home() / 'kinds'}.", flush=True)
    print(write_tables(progress=options.progress).to_string(index=False))
    print(f"The tables are {BUNDLED / 'kinds.csv'} and {BUNDLED / 'kinds_l0.csv'}.")


def _cite_options(parser: Parser) -> None:
    parser.add_argument("figure", metavar="FIGURE", help="name of a saved figure, such as 02_max_cosine")
    parser.add_argument("--folder", type=Path, help="where it was saved (figures/ if left out)")


def _cite(options: argparse.Namespace) -> None:
    from saekit.figures import figures_folder
    from saekit.gallery import citation

    folder = getattr(options, "folder", figures_folder())
    print(citation(options.figure, folder=folder), (folder / f"{options.figure}.tex").read_text(), sep="\n")


def _components(options: argparse.Namespace) -> None:
    from saekit.files import home
    from saekit.loading.names import BUNDLED
    from saekit.series.components import write_components

    print(f"Dictionaries are trained in {home() / 'components'}.", flush=True)
    print(write_components(progress=options.progress).to_string(index=False))
    print(f"They are in {BUNDLED}, with their table components.csv.")


def _order(options: argparse.Namespace) -> None:
    from saekit.files import home
    from saekit.loading.names import BUNDLED
    from saekit.series.seeds_and_order import write_table

    print(f"Dictionaries are trained in {home() / 'order'}.", flush=True)
    print(write_table(progress=options.progress).to_string(index=False))
    print(f"The table is {BUNDLED / 'order.csv'}.")


def _probing(options: argparse.Namespace) -> None:
    from saekit.loading.names import BUNDLED
    from saekit.series.probing_grid import as_result, write_probing

    print(as_result(write_probing(progress=options.progress)).table.to_string(index=False))
    print(f"The table is {BUNDLED / 'probing.csv'}.")


def _facts(options: argparse.Namespace) -> None:
    from saekit.loading.names import BUNDLED
    from saekit.series.facts import write_facts

    known = write_facts(progress=options.progress).groupby(["kind", "attribute"], sort=False)["known"]
    print(known.agg(["sum", "size"]).to_string())
    print(f"The table is {BUNDLED / 'facts.csv'}.")


def _circuits(options: argparse.Namespace) -> None:
    from saekit.loading.names import BUNDLED
    from saekit.series.circuits_grid import write_circuits

    print(write_circuits(progress=options.progress)["dictionaries"].to_string(index=False))
    print(f"The tables are {BUNDLED / 'circuits_*.csv'}.")


def _edits(options: argparse.Namespace) -> None:
    from saekit.loading.names import BUNDLED
    from saekit.series.edits_grid import write_edits

    print(write_edits(progress=options.progress).to_string(index=False))
    print(f"The table is {BUNDLED / 'edits.csv'}.")


def _baselines(options: argparse.Namespace) -> None:
    from saekit.files import home
    from saekit.loading.names import BUNDLED
    from saekit.series.baselines_grid import write_baselines

    print(f"Dictionaries are trained in {home() / 'baselines'}.", flush=True)
    print(write_baselines(progress=options.progress).to_string(index=False))
    print(f"The table is {BUNDLED / 'baselines.csv'}.")


def _lines(options: argparse.Namespace) -> None:
    from saekit.loading.names import BUNDLED
    from saekit.series.lines_grid import write_lines

    write_lines(progress=options.progress)
    print(f"The tables are {BUNDLED / 'lines_*.csv'}.")


def _truth_options(parser: Parser) -> None:
    parser.add_argument(
        "--bench",
        type=int,
        metavar="N",
        help="train on N samples of SynthSAEBench-16k, at width 4096, instead",
    )


def _truth(options: argparse.Namespace) -> None:
    from saekit.files import home
    from saekit.loading.names import BUNDLED
    from saekit.series.ground_truth import write_bench, write_family, write_truth

    print(f"Dictionaries are trained in {home() / 'truth'}.", flush=True)
    if "bench" in options:
        print(write_bench(options.bench, progress=options.progress).to_string(index=False))
    else:
        write_truth(progress=options.progress)
        write_family(progress=options.progress)
    print(f"The tables are {BUNDLED / 'truth_*.csv'}.")


def _reproduce_options(parser: Parser) -> None:
    _option(parser, "profile", "run it on another model and families: gpt2, or a JSON file of your own")
    _option(parser, "out", "with --profile: folder to write", default="reproduce-PROFILE", type=Path)


def _reproduce(options: argparse.Namespace) -> None:
    from saekit.files import writable_folder
    from saekit.series.profiles import Profile
    from saekit.series.reproduce import reproduce, reproduce_profile

    if not hasattr(options, "profile"):
        if hasattr(options, "out"):
            raise ValueError("--out needs --profile: without one the series runs in place.")
        print(reproduce(progress=options.progress))
        return
    profile = Profile.load(options.profile)
    folder = writable_folder(getattr(options, "out", f"reproduce-{profile.name}"))
    checks = reproduce_profile(profile, folder, progress=options.progress)
    shown = checks.drop(columns="source")
    print(shown.astype(object).where(shown.notna(), "").map(_rounded).to_string(index=False))
    print(
        f"{int(checks['holds'].sum())} of {len(checks)} checks hold; notebooks and figures are in {folder}."
    )


def _rounded(value: object) -> object:
    """A number (or the text of one) with three digits; anything else as it is."""
    try:
        return f"{float(str(value)):.3g}"
    except ValueError:
        return value


def _no_options(_: Parser) -> None:
    pass


COMMANDS = {
    "harvest": Command("store a model's activations at a hook point", _harvest_options, _harvest),
    "train": Command(
        "train a dictionary; with more --steps, extend a run that ended", _train_options, _train
    ),
    "convert": Command("write an SAE in another library's format", _convert_options, _convert, resumes=False),
    "report": Command(
        "report whether the latents of a family are unique, complete and atomic",
        _report_options,
        _report,
        resumes=False,
    ),
    "export": Command("write a static site with a page for every latent", _export_options, _export),
    "serve": Command("open the workspace in a browser, through Voila", _serve_options, _serve, resumes=False),
    "families": Command(
        "train missing and wider members of the bundled families",
        _families_options,
        _families,
    ),
    "kinds": Command("train every kind of SAE at equal widths and sparsities", _no_options, _kinds),
    "order": Command(
        "train seeds that share initialisation or data order, and compare them", _no_options, _order
    ),
    "components": Command("train transcoders and SAEs of attention heads", _no_options, _components),
    "probing": Command("probe the bundled dictionaries on the sets of sae-probes", _no_options, _probing),
    "baselines": Command(
        "train baselines that learn nothing, and measure every headline on them", _no_options, _baselines
    ),
    "lines": Command("test days and months for circles, and map between layers", _no_options, _lines),
    "circuits": Command("measure circuits through the bundled dictionaries", _no_options, _circuits),
    "edits": Command("edit facts by latents of the bundled dictionaries", _no_options, _edits),
    "facts": Command("find facts that the embedded model knows", _no_options, _facts, resumes=False),
    "truth": Command("train on worlds whose true features are known", _truth_options, _truth),
    "cite": Command("print BibTeX and TeX for a figure", _cite_options, _cite, resumes=False),
    "reproduce": Command(
        "run the notebook series, write figures/", _reproduce_options, _reproduce, resumes=False
    ),
}
