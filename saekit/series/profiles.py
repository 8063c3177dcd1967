"""Profiles: which model, text and families the notebook series runs on, as JSON files.

`embedded.json` is the default; `gpt2.json` is the paper's own model and SAEs. A file of your own has
the same keys: those of `Profile`, with `Model`, `Text` and `Plan` below them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saekit.activations import ActivationStore, harvest
from saekit.corpora import Document, embedded_corpus, huggingface_dataset, pack, split, text_files
from saekit.family import Family
from saekit.files import hash_file, hash_json, home, read_json
from saekit.loading.names import load_family, local_to
from saekit.models import EMBEDDED_MODEL, describe_model, load_model
from saekit.series.embedded import HOOK_POINT, embedded_store
from saekit.training.config import TrainingConfig
from saekit.training.side_by_side import train_side_by_side
from saekit.training.variants import VARIANTS

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SHIPPED = Path(__file__).parent / "data"
DEFAULT = SHIPPED / "embedded.json"


# ------------------------------------------------------------------------------ what it says


@dataclass(frozen=True)
class Model:
    """The language model: parameters of `load_model`; a folder may be relative to the profile."""

    name: str
    revision: str | None = None
    processing: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """The text for the model: a data set, text files, or (if neither is named) the embedded corpus.

    Parameters
    ----------
    dataset, split, text_column, revision, limit
        Parameters of `huggingface_dataset`.
    files : sequence of str
        Globs of text files, relative to the profile.
    context_length, prepend_bos
        Parameters of `pack`.
    train_tokens, held_out_tokens : int
        Positions to train missing dictionaries on, and to measure on.
    shown : sequence of str
        Sources whose text may be shown in a notebook; all of them if none is named.
    """

    dataset: str | None = None
    split: str = "train"
    text_column: str = "text"
    revision: str | None = None
    limit: int | None = None
    files: Sequence[str] = ()
    context_length: int = 128
    prepend_bos: bool = False
    train_tokens: int = 5_000_000
    held_out_tokens: int = 100_000
    shown: Sequence[str] = ()


@dataclass(frozen=True)
class Plan:
    """The origin of a family.

    Parameters
    ----------
    sources : sequence of str
        Sources for `load_family`; folders and globs may be relative to the profile.
    train : sequence of mapping
        Dictionaries that are not published: parameters of `TrainingConfig`, with that of the
        variant's sparsity (`target_l0` or `k`). They are trained once, on the profile's own text. As
        the second seed of a published SAE, such a dictionary is a null that includes trainer and
        text, not only the seed.
    """

    sources: Sequence[str] = ()
    train: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Profile:
    """The model, text and families that the notebook series runs on.

    Parameters
    ----------
    file : Path
        The JSON file; its name without the ending is the profile's.
    model : Model
        The language model.
    hook_point : str
        The hook point at which its activations are read.
    text : Text
        The text that it reads.
    families : mapping
        A `Plan` for each kind: the series compares `"relu"` with `"batchtopk"`.
    notebooks : mapping
        Notebooks of the series to run, by name, each with the parameters to change.
    checks : mapping
        The numbers to expect, see `saekit.series.published_numbers`.
    """

    file: Path
    model: Model
    hook_point: str
    text: Text
    families: Mapping[str, Plan]
    notebooks: Mapping[str, Mapping[str, Any]]
    checks: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the profile."""
        return self.file.stem

    def local(self, source: str) -> str:
        """A file, folder or glob that is relative to the profile, made absolute; other names as they are."""
        return local_to(self.file.parent, source)

    @classmethod
    def load(cls, source: str | Path) -> Profile:
        """Read a profile.

        Parameters
        ----------
        source : str or Path
            The name of a profile that comes with saekit, or a JSON file.

        Raises
        ------
        FileNotFoundError
            If there is none of this name.
        ValueError
            If a key is unknown or missing.
        """
        file = Path(source) if Path(source).suffix == ".json" else SHIPPED / f"{source}.json"
        if not file.is_file():
            shipped = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.json")))
            raise FileNotFoundError(
                f"There is no profile {str(source)!r}: expected {shipped}, or the path of a JSON file."
            )
        values = {**_mapping(read_json(file), str(file)), "file": file.resolve()}
        for name, part in (("model", Model), ("text", Text)):
            if name in values:
                values[name] = build(part, values[name], f"{file}, {name}")
        if "families" in values:
            where = f"{file}, families"
            plans = _mapping(values["families"], where)
            values["families"] = {kind: build(Plan, plan, f"{where}, {kind}") for kind, plan in plans.items()}
        return build(cls, values, str(file))


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold values by name, found {type(value).__name__}.")
    return value


def build(part: type, value: Any, where: str) -> Any:
    """A part of a profile, a dataclass, from its JSON values.

    Raises
    ------
    ValueError
        If a key is unknown or missing; `where` is named.
    """
    values, known = _mapping(value, where), fields(part)
    if unknown := sorted(set(values) - {f.name for f in known}):
        expected = ", ".join(f.name for f in known if f.name != "file")
        raise ValueError(f"{where}: unknown key {', '.join(unknown)}; expected {expected}.")
    required = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{where}: {', '.join(missing)} must be given.")
    return part(**values)


# ------------------------------------------------------------------------------ what it gives


def load_series() -> Series:
    """The series that the notebooks run on: the profile `SAEKIT_PROFILE`, else the embedded default.

    Examples
    --------
    >>> saekit.load_series()
    Series(embedded)
    """
    profile = Profile.load(os.environ.get("SAEKIT_PROFILE") or DEFAULT)
    return Series(profile, progress="TQDM_DISABLE" not in os.environ)  # bars would stay in the notebooks


def store_for(family: Family, *, n_tokens: int = 100_000, progress: bool = True) -> ActivationStore:
    """Held-out activations for a family, from the model, processing and hook point that it names.

    The model reads the embedded corpus; its activations are harvested on the first call and kept.

    Parameters
    ----------
    family : Family
        The family. Its smallest dictionary is read; `info["model"]` is a name for `load_model`.
    n_tokens : int
        Positions.
    progress : bool
        Show progress in tokens.

    Raises
    ------
    ValueError
        If the family does not name its model and hook point.
    FileNotFoundError
        If its model cannot be reached.
    """
    info = family[family.widths[0]].info
    model, hook_point = info.get("model"), info.get("hook_point")
    if model is None or hook_point is None:
        raise ValueError(
            f"The {family.kind} family must name its model and hook point, found {model!r} and "
            f"{hook_point!r}: harvest its activations with saekit.harvest."
        )
    if (model, hook_point) == (EMBEDDED_MODEL, HOOK_POINT):
        return embedded_store("held-out", n_tokens=n_tokens, progress=progress)
    profile = Profile(
        file=Path(f"{Path(model).name}.json"),
        model=Model(model, processing=info.get("model_processing", {})),
        hook_point=hook_point,
        text=Text(prepend_bos=bool(info.get("prepend_bos")), held_out_tokens=n_tokens),
        families={},
        notebooks={},
    )
    return Series(profile, progress=progress).held_out


class Series:
    """A profile's model, activations and families, each loaded, harvested or trained when asked for.

    Parameters
    ----------
    profile : Profile
        The profile to load.
    progress : bool
        Show progress bars.
    """

    def __init__(self, profile: Profile, *, progress: bool = True) -> None:
        self.profile = profile
        self.progress = progress

    def __repr__(self) -> str:
        return f"Series({self.profile.name})"

    @property
    def is_embedded(self) -> bool:
        """Whether this is the embedded default, on which the notebooks' claims were found."""
        return self.profile.file == DEFAULT

    @cached_property
    def model(self) -> TransformerBridge:
        """The language model, in float32."""
        model = self.profile.model
        name = self.profile.local(model.name)
        return load_model(name, revision=model.revision, processing=model.processing)

    @cached_property
    def held_out(self) -> ActivationStore:
        """Activations on held-out documents, in float32."""
        return self._store("held-out", self.profile.text.held_out_tokens, torch.float32)

    def train(self, n_tokens: int | None = None) -> ActivationStore:
        """Activations on training documents, in bfloat16; as many as the profile gives if left out."""
        return self._store("train", n_tokens or self.profile.text.train_tokens, torch.bfloat16)

    def family(self, kind: str, widths: Iterable[int] | None = None) -> Family:
        """The family of a kind, of these widths or of all.

        Dictionaries that the profile trains itself are trained now, or resumed.

        Raises
        ------
        ValueError
            If the profile has no family of this kind, or a setting of its training is unknown.
        KeyError
            If the family has not all of these widths.
        """
        if kind not in self.profile.families:
            found = ", ".join(self.profile.families)
            raise ValueError(f"The profile {self.profile.name} has no {kind} family; it has {found}.")
        plan = self.profile.families[kind]
        family = load_family([*map(self.profile.local, plan.sources), *self._trained(kind, plan)])
        if widths is None:
            return family
        keys = [(width, seed) for width in widths for seed in family.seeds(width) or (None,)]
        return Family(family.get(*key) for key in keys)

    @property
    def shown(self) -> tuple[str, ...]:
        """Sources whose text may be shown."""
        sources = self.profile.text.shown or (d["source"] for d in self.held_out.documents)
        return tuple(dict.fromkeys(sources))

    def require(self, claims: Mapping[str, bool]) -> None:
        """Print which claims hold, and insist on them for the embedded default.

        Another family may well contradict what was found there; that is then the result.

        Raises
        ------
        AssertionError
            If a claim does not hold on the embedded default.
        """
        print("\n".join(f"{claim}: {bool(holds)}" for claim, holds in claims.items()))  # noqa: T201 (the output of a notebook's cell)
        failed = [claim for claim, holds in claims.items() if not holds]
        if self.is_embedded and failed:
            raise AssertionError(f"These claims do not hold: {'; '.join(failed)}.")

    def _store(self, part: str, n_tokens: int, dtype: torch.dtype) -> ActivationStore:
        profile, text = self.profile, self.profile.text
        if self.is_embedded:
            return embedded_store(part, n_tokens=n_tokens, dtype=dtype, progress=self.progress)
        files = [path for pattern in text.files for path in sorted(glob(str(profile.file.parent / pattern)))]
        if text.files and not files:
            raise FileNotFoundError(f"{profile.file}: no text files match {', '.join(text.files)}.")
        model = profile.model
        settings: list[Any] = [profile.hook_point, model.name, model.revision, dict(model.processing)]
        settings += [vars(text), [hash_file(file) for file in files]]
        if Path(profile.local(model.name)).is_dir():  # a local folder may hold other weights than before
            settings.append(describe_model(self.model)["weights"])
        name = f"{part}-{n_tokens}-{str(dtype).removeprefix('torch.')}-{hash_json(settings)[:8]}"
        path = home() / "stores" / f"{profile.name}-{name}"
        if (path / "manifest.json").exists() and read_json(path / "manifest.json")["complete"]:
            return ActivationStore.open(path, hook_point=profile.hook_point)
        rows = pack(
            split(_documents(text, text.dataset and profile.local(text.dataset), files))[part == "held-out"],
            self.model.tokenizer,
            context_length=text.context_length,
            n_tokens=n_tokens,
            prepend_bos=text.prepend_bos,
            name=f"{text.dataset or ('text files' if files else 'embedded corpus')}, {part} documents",
        )
        return harvest(self.model, rows, profile.hook_point, path=path, dtype=dtype, progress=self.progress)

    def _trained(self, kind: str, plan: Plan) -> list[Path]:
        """Folders of the dictionaries that the profile trains itself."""
        if not plan.train:
            return []
        train_store = self.train()
        runs = []
        for settings in plan.train:
            config = _config(kind, settings)
            identity = hash_json([config.describe(), train_store.content_hash])[:12]
            name = f"{kind}-{config.width}-seed{config.seed}-{identity}"
            runs.append((config, home() / "families" / self.profile.name / name))
        train_side_by_side(runs, train_store, self.held_out, progress=self.progress)
        return [folder for _, folder in runs]


def _documents(text: Text, dataset: str | None, files: Sequence[str]) -> Iterable[Document]:
    if files:
        return text_files(files)
    if dataset is None:
        return embedded_corpus()
    return huggingface_dataset(
        dataset,
        split=text.split,
        text_column=text.text_column,
        revision=text.revision,
        limit=text.limit,
    )


def _config(kind: str, settings: Mapping[str, Any]) -> TrainingConfig:
    """Training settings of one dictionary."""
    variant = VARIANTS[kind]
    known = {f.name for f in fields(TrainingConfig)} - {"variant"} | {variant.sparsity}
    if set(settings) - known or not {"width", variant.sparsity} <= set(settings):
        raise ValueError(
            f"Training a {kind} dictionary takes width and {variant.sparsity}, and of the rest "
            f"{', '.join(sorted(known))}; found {', '.join(settings)}."
        )
    own = {name: value for name, value in settings.items() if name != variant.sparsity}
    return TrainingConfig(variant=variant(**{variant.sparsity: settings[variant.sparsity]}), **own)
