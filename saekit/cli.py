"""Thin commands over the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    """The command line: one subcommand for each thing that takes long."""
    parser = argparse.ArgumentParser(prog="saekit", description=__doc__)
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    commands = parser.add_subparsers(dest="command", required=True)

    harvest = commands.add_parser("harvest", help="store a model's activations at a hook point")
    harvest.add_argument("store", type=Path, help="folder to write (resumes if it was interrupted)")
    harvest.add_argument("--model", help="hub name or local folder (default: the embedded model)")
    harvest.add_argument("--revision", help="revision on the hub")
    harvest.add_argument("--hook-point", default="blocks.12.hook_resid_post")
    harvest.add_argument("--text", nargs="+", type=Path, help="text files (default: the embedded corpus)")
    harvest.add_argument("--dataset", help="Hugging Face data set, streamed")
    harvest.add_argument("--dataset-split", default="train", help="split of --dataset")
    harvest.add_argument("--documents", type=int, default=20_000, help="documents to read from --dataset")
    harvest.add_argument(
        "--part", choices=("train", "held-out"), default="train", help="side of the split by documents"
    )
    harvest.add_argument("--tokens", type=int, default=1_000_000)
    harvest.add_argument("--context-length", type=int, default=128)
    harvest.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    harvest.add_argument("--device", default="cpu", help="where the model runs, such as cuda")

    train = commands.add_parser("train", help="train a dictionary on a store of activations")
    train.add_argument("store", type=Path, help="folder that `saekit harvest` wrote")
    train.add_argument("dictionary", type=Path, help="folder to write (resumes if it was interrupted)")
    train.add_argument(
        "--kind",
        default="relu",
        help="relu, gated, jumprelu, topk, batchtopk, matryoshka, or one that another package registers",
    )
    train.add_argument("--width", type=int, required=True)
    train.add_argument(
        "--target-l0", type=float, default=36.0, help="relu, gated, jumprelu: active latents a token"
    )
    train.add_argument(
        "--k", type=int, default=32, help="topk, batchtopk, matryoshka: active latents a token"
    )
    train.add_argument("--steps", type=int, default=5000)
    train.add_argument("--batch-size", type=int, default=512)
    train.add_argument("--learning-rate", type=float, default=None)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--held-out", type=Path, help="store to evaluate on")
    train.add_argument(
        "--bf16-candidates", action="store_true", help="look for active latents in bfloat16, which is faster"
    )
    train.add_argument("--device", default="cpu", help="where to train, such as cuda")

    families = commands.add_parser(
        "families", help="train the bundled families again, and a wider dictionary of each kind"
    )
    families.add_argument("--bundle", action="store_true", help="write them into the package")
    commands.add_parser(
        "kinds", help="train every kind of SAE at equal widths and sparsities, write the tables"
    )

    report = commands.add_parser(
        "report", help="write a page that says whether a family is unique, complete and atomic"
    )
    report.add_argument("family", help="a bundled family, such as relu, or a folder of dictionaries")
    report.add_argument("--store", type=Path, help="held-out activations (default: the embedded ones)")
    report.add_argument("--out", type=Path, help="folder to write (default: report-FAMILY)")
    report.add_argument("--theta", type=float, default=0.7, help="cosine from which latents are the same")

    reproduce = commands.add_parser("reproduce", help="run the notebook series, write figures/")
    reproduce.add_argument(
        "--profile", help="run it on another model and families: gpt2, or a JSON file of your own"
    )
    reproduce.add_argument(
        "--out", type=Path, help="with --profile: folder to write (default: reproduce-PROFILE)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors that people can mend end it with one sentence and status 1."""
    options = build_parser().parse_args(arguments)
    run = {
        "harvest": _harvest,
        "train": _train,
        "families": _families,
        "kinds": _kinds,
        "report": _report,
        "reproduce": _reproduce,
    }
    try:
        run[options.command](options)
    except (ValueError, OSError, ImportError, KeyError) as error:
        # A KeyError's text is its message in quotes.
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"saekit {options.command}: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"saekit {options.command}: stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _harvest(options: argparse.Namespace) -> None:
    import torch

    from saekit.activations import harvest
    from saekit.corpora import Document, embedded_corpus, huggingface_dataset, pack, split, text_files
    from saekit.distributed import distributed, is_main
    from saekit.models import load_model

    documents: Iterable[Document]
    if options.text:
        documents = text_files(options.text)
    elif options.dataset:
        documents = huggingface_dataset(options.dataset, split=options.dataset_split, limit=options.documents)
    else:
        documents = embedded_corpus()
    train, held_out = split(documents)
    dtype = getattr(torch, options.dtype)
    named = {} if options.model is None else {"name": options.model, "revision": options.revision}
    with distributed():
        model = load_model(dtype=dtype, device=options.device, **named)
        rows = pack(
            train if options.part == "train" else held_out,
            model.tokenizer,
            context_length=options.context_length,
            n_tokens=options.tokens,
        )
        store = harvest(
            model, rows, options.hook_point, path=options.store, dtype=dtype, progress=not options.quiet
        )
        if is_main():
            excluded = int(store.excluded.sum())
            print(f"{store.n_tokens} positions at {store.hook_point}, {excluded} of them excluded")


def _train(options: argparse.Namespace) -> None:
    from saekit.activations import ActivationStore
    from saekit.distributed import distributed, is_main
    from saekit.settings import choice
    from saekit.training.trainer import TrainingConfig, train
    from saekit.training.variants import VARIANTS

    variant = VARIANTS[choice("--kind", options.kind, VARIANTS)]
    rate = {} if options.learning_rate is None else {"lr": options.learning_rate}
    config = TrainingConfig(
        variant=variant(**{variant.sparsity: getattr(options, variant.sparsity)}),
        width=options.width,
        seed=options.seed,
        steps=options.steps,
        batch_size=options.batch_size,
        bf16_candidates=options.bf16_candidates,
        **rate,
    )
    with distributed():
        result = train(
            config,
            ActivationStore.open(options.store),
            held_out=None if options.held_out is None else ActivationStore.open(options.held_out),
            checkpoint=options.dictionary / "checkpoint.safetensors",
            device=options.device,
            progress=not options.quiet,
        )
        if is_main():
            result.dictionary.save(options.dictionary)
            print("\n".join(f"{name}: {value}" for name, value in result.summary.items()))


def _families(options: argparse.Namespace) -> None:
    from saekit.series.bundling import bundle, train_families

    if options.bundle:
        print(bundle(progress=not options.quiet).to_string(index=False))
    else:
        for kind, folder in train_families(progress=not options.quiet).items():
            print(f"{kind}: {folder}")


def _kinds(options: argparse.Namespace) -> None:
    from saekit.series.kinds_grid import write_tables

    print(write_tables(progress=not options.quiet).to_string(index=False))


def _report(options: argparse.Namespace) -> None:
    from saekit.activations import ActivationStore
    from saekit.loading.names import load_family
    from saekit.models import load_model
    from saekit.report.report import write_report
    from saekit.series.embedded import embedded_store

    family = load_family(options.family)
    if options.store is None:
        model = load_model()
        store = embedded_store("held-out", model=model, progress=not options.quiet)
    else:
        model, store = None, ActivationStore.open(options.store)
    folder = options.out or Path(f"report-{Path(options.family).name}")
    progress = not options.quiet
    print(write_report(family, store, folder=folder, model=model, theta=options.theta, progress=progress))


def _reproduce(options: argparse.Namespace) -> None:
    from saekit.series.profiles import Profile
    from saekit.series.reproduce import reproduce, reproduce_profile

    if options.profile is None:
        if options.out is not None:
            raise ValueError("--out needs --profile: without one the series runs in place.")
        print(reproduce(progress=not options.quiet))
        return
    profile = Profile.load(options.profile)
    folder = options.out or Path(f"reproduce-{profile.name}")
    checks = reproduce_profile(profile, folder, progress=not options.quiet)
    shown = checks.drop(columns="source")
    print(shown.astype(object).where(shown.notna(), "").map(_rounded).to_string(index=False))
    print(
        f"{int(checks['holds'].sum())} of {len(checks)} checks hold; notebooks and figures are in {folder}."
    )


def _rounded(value: object) -> object:
    """A number, also in words, with three digits; anything else as it is."""
    try:
        return f"{float(str(value)):.3g}"
    except ValueError:
        return value
