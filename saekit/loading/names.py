"""From a name to an SAE or a family: the one place where names, paths and hub ids are resolved.

A source is looked up in this order, and the first match is taken:

1. A file or folder, as typed: `~` is the user's home, and a relative path starts at the current
working directory. So a folder `relu` beside a notebook comes before the bundled family.
2. A glob that files or folders match, such as `"saes/width_*"`. A path that exists as typed is not a
glob, so brackets in folder names need no escape.
3. A bundled family (`"relu"`, `"batchtopk"`), or a member of one (`"relu/1152-seed0"`).
4. A published SAE, a release or a part of one, by the names of `releases_table`.
5. A place on the hub, `"organisation/repository"` or `"organisation/repository/path"`. Not what is
   spelled as a path, or begins with a folder that is there or a bundled family: that is a slip, unless a
   revision is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saekit.dictionary import Described, Dictionary, read_header
from saekit.family import Family, Member
from saekit.files import local_only
from saekit.folding import Unfolded
from saekit.loading import releases
from saekit.loading.formats import is_sae, is_saved, known_files, read, recognise
from saekit.loading.hub import fetch
from saekit.selection import Latents

BUNDLED = Path(__file__).parents[1] / "series" / "data"  # one folder per kind, and the tables


@dataclass(frozen=True, repr=False)
class Saved(Described):
    """A folder that `Dictionary.save` wrote, of which only the JSON has been read."""

    folder: Path
    d_in: int
    width: int
    info: dict[str, Any]
    transcoder: bool = False

    @classmethod
    def open(cls, folder: Path) -> Saved:
        """Read the JSON; `fold` checks the whole.

        Raises
        ------
        ValueError
            If it does not describe a dictionary, or the folder holds a foreign SAE as well.
        """
        if others := recognise(folder):
            raise ValueError(
                f"{folder} holds a dictionary of saekit and an SAE of {' and '.join(others)}: keep each in a "
                "separate folder."
            )
        header = read_header(folder)
        return cls(folder, header["d_in"], header["width"], header["info"], header["transcoder"])

    def __repr__(self) -> str:
        return f"Saved({self.kind}, d_in={self.d_in}, width={self.width}, from {self.folder.name})"

    def fold(self, latents: Latents | None = None) -> Dictionary:
        """Read the dictionary, or some of its latents."""
        dictionary = Dictionary.load(self.folder)
        return dictionary if latents is None else dictionary.gather(latents)


# ---------------------------------------------------------------------- the resolver


def resolve(source: str | Path, *, revision: str | None = None) -> Sequence[Dictionary | Member]:
    """The SAEs that a source leads to, in the order of this module's description.

    Bundled ones are read at once, others when they are asked for; only an SAE that is named by its
    place on the hub is downloaded here.

    Parameters
    ----------
    source : str or Path
        A path, glob, name or hub id.
    revision : str, optional
        Branch, tag or commit on the hub.

    Returns
    -------
    sequence of Dictionary or Member
        At least one.

    Raises
    ------
    FileNotFoundError
        If nothing has this name, or a local place holds no SAE.
    ValueError
        If the files of an SAE do not follow their format.
    PermissionError, ConnectionError
        If the hub refuses the files, or cannot be reached.

    Examples
    --------
    >>> folder = small.save("mine")
    >>> resolve(folder)
    [Saved(relu, d_in=6, width=8, from mine)]
    """
    name, path = str(source), _typed(source)
    local = [path] if path.exists() else _matches(path)
    if local:
        if revision is not None:
            raise ValueError(f"Local files have no revision, found revision={revision!r} for {path}.")
        return _local(path, local)
    if (folder := _bundled(name)) is not None:
        return [member.fold() for member in _local(folder, [folder])]
    if published := releases.find(name):
        return [replace(sae, revision=revision or sae.revision) for sae in published]
    if (place := _on_the_hub(source, revision)) is None:
        raise FileNotFoundError(
            f"There is no file or folder {path}, and no SAE or family of this name: expected a path or glob, "
            f"one of {', '.join(bundled())}, a name in saekit.releases_table(), or organisation/repository."
        )
    fetched = fetch(*place, revision or "main")
    sae = read(fetched.path)
    return [replace(sae, info={**sae.info, **fetched.info})]


def local_to(folder: Path, source: str) -> str:
    """A source named in a file of `folder`: made absolute if it is a path or glob there, else as it is.

    Examples
    --------
    >>> local_to(Path("/saes"), "org/repo")
    'org/repo'
    """
    path = _typed(folder / Path(source).expanduser())
    return str(path) if path.exists() or _matches(path) else source


def bundled() -> list[str]:
    """Names of the bundled families.

    Examples
    --------
    >>> bundled()
    ['attention', 'batchtopk', 'relu', 'transcoder']
    """
    return [folder.name for folder in sorted(BUNDLED.iterdir()) if any(folder.glob("*/dictionary.json"))]


def _bundled(name: str) -> Path | None:
    """The folder of a bundled family, or of one of its members."""
    kind, _, member = name.partition("/")
    folder = BUNDLED / kind / member
    there = kind in bundled() and "/" not in member and ".." not in member and folder.is_dir()
    return folder if there else None


def _typed(source: str | Path) -> Path:
    """A path that stays right when the working directory changes."""
    try:
        return Path(source).expanduser().absolute()
    except RuntimeError as error:
        raise FileNotFoundError(f"There is no home folder for {str(source)!r}.") from error


def _matches(path: Path) -> list[Path]:
    """The matches of a glob, each once: links to parent folders are not followed forever."""
    if not any(character in path.as_posix() for character in "*?["):
        return []
    base = next(parent for parent in path.parents if parent.exists())
    try:
        found = sorted(base.glob(path.relative_to(base).as_posix()))
    except ValueError as error:
        raise ValueError(f"{path} is not a glob: {error}") from error
    return list({match.resolve(): match for match in reversed(found)}.values())[::-1]


def _local(typed: Path, places: list[Path]) -> Sequence[Member]:
    """SAEs at a path as typed, directly below it if it is a folder of SAEs, or at the matches of its glob."""
    if places == [typed] and typed.is_dir() and not is_sae(typed):
        places = sorted(typed.glob("*"))
    if places == [typed]:
        return [_open(typed)]
    found = [_open(path) for path in places if is_sae(path)]
    if not found:
        hidden = ""
        if typed.name in bundled() and typed.parent == Path.cwd():
            hidden = f" It comes before the bundled family {typed.name}: rename it, or work elsewhere."
        raise FileNotFoundError(
            f"{typed} holds no SAE that saekit recognises, nor does a folder right below it: expected one of "
            f"{known_files()}.{hidden}"
        )
    return found


def _open(path: Path) -> Member:
    return Saved.open(path) if is_saved(path) else read(path)


def _on_the_hub(source: str | Path, revision: str | None) -> tuple[str, str] | None:
    """Repository and path of `"organisation/repository/path"`; None of what cannot be one, or is a slip."""
    organisation, _, rest = str(source).partition("/")
    repository, _, path = rest.partition("/")
    slip = organisation in bundled() or local_only(source) or any(c in str(source) for c in "*?[")
    if not repository or (slip and revision is None):
        return None
    return f"{organisation}/{repository}", path.strip("/")


# ---------------------------------------------------------------------- one SAE


def open_sae(source: str | Path, *, revision: str | None = None) -> Unfolded:
    """An SAE in a foreign format, recognised and checked, with its matrices still in the file.

    Parameters
    ----------
    source : str or Path
        A file or folder of an SAE; the name of a published SAE (`releases_table`), such as
        `"gpt2-small-res-jb/blocks.8.hook_resid_pre"`; or a file or folder on the hub, as
        `"organisation/repository/path"`. `saekit.loading.names` gives the order in which it is looked up.
    revision : str, optional
        Branch, tag or commit on the hub.

    Returns
    -------
    Unfolded
        Its `fold()` reads the matrices; `info["format"]` names the format, and an SAE from the
        hub has `repo`, `commit` and `sha256` there.

    Raises
    ------
    FileNotFoundError
        If there is nothing of this name, or it holds no SAE.
    ValueError
        If there are several, or the files do not follow their format, or differ from the published ones.
    PermissionError, ConnectionError
        If the hub refuses the files, or cannot be reached (see `saekit.loading.hub.fetch`).

    Examples
    --------
    >>> import tempfile, torch
    >>> from saekit import Dictionary, save_sae
    >>> eye = torch.eye(3)
    >>> dictionary = Dictionary(eye, torch.zeros(3), eye, torch.zeros(3), threshold=torch.ones(3))
    >>> sae = open_sae(save_sae(dictionary, tempfile.mkdtemp()))
    >>> sae.info["format"], sae.width
    ('SAELens', 3)
    """
    member = _one(source, revision)
    if isinstance(member, releases.PublishedSAE):
        return member.open()
    if not isinstance(member, Unfolded):
        raise ValueError(f"{source} is a dictionary of saekit, which is folded already: load_sae reads it.")
    return member


def load_sae(
    source: str | Path, *, latents: Latents | None = None, revision: str | None = None
) -> Dictionary:
    """An SAE of any format as a `Dictionary`.

    Parameters
    ----------
    source : str or Path
        Anything that `open_sae` takes, a folder that `Dictionary.save` wrote, or a member of a
        bundled family, such as `"relu/1152-seed0"`.
    latents : tensor, array, Series, list or slice, optional
        Only these latents, in this order (`saekit.selection.select_latents`); all if left out. For a
        foreign format, memory is used only for these.
    revision : str, optional
        Branch, tag or commit on the hub.

    Raises
    ------
    FileNotFoundError, PermissionError, ConnectionError
        As `open_sae`.
    ValueError
        As `open_sae` and `Unfolded.fold`.
    TypeError, IndexError
        If the latents are not indices or a mask, or are out of range.

    Examples
    --------
    >>> import tempfile, torch
    >>> from saekit import Dictionary
    >>> eye = torch.eye(3)
    >>> dictionary = Dictionary(eye, torch.zeros(3), eye, torch.zeros(3), threshold=torch.ones(3))
    >>> load_sae(dictionary.save(tempfile.mkdtemp()), latents=[2, 0])
    Dictionary(unknown 2, d_in=3, width=2)
    """
    member = _one(source, revision)
    if isinstance(member, Dictionary):
        return member if latents is None else member.gather(latents)
    return member.fold(latents)


def _one(source: str | Path, revision: str | None) -> Dictionary | Member:
    members = resolve(source, revision=revision)
    if len(members) > 1:
        raise ValueError(
            f"{source} holds {len(members)} SAEs, of which one can be loaded: "
            f"{', '.join(getattr(member, 'name', None) or str(member) for member in members)}."
        )
    return members[0]


# ---------------------------------------------------------------------- a family


def load_family(source: str | Path | Sequence[str | Path]) -> Family:
    """A family of dictionaries, each read when it is asked for.

    Parameters
    ----------
    source : str, Path or sequence of them
        A folder of dictionaries such as `Family.save` writes, or of SAEs in foreign formats; a glob of
        such SAEs; `"relu"`, `"batchtopk"`, `"transcoder"` or `"attention"` for the bundled families (see
        `bundled_table` and `components_table`), which are read at once; published SAEs (see
        `releases_table`), such as `"gpt2-small-res-jb-feature-splitting"` or
        `"gemma-scope-2b-pt-res/layer_12"`, of which each is downloaded when it is asked for; or a list of
        these and of anything that `load_sae` takes.
        `saekit.loading.names` gives the order in which a name is looked up.

    Raises
    ------
    FileNotFoundError
        If nothing has this name, or it holds no dictionaries.
    ValueError
        If the SAEs do not form a family, or a file is not an SAE.

    Examples
    --------
    >>> import tempfile, torch
    >>> from saekit import Dictionary, Family
    >>> eye = torch.eye(3)
    >>> members = [Dictionary.from_weights(eye[:n], eye[:n], d_in=3) for n in (1, 2)]
    >>> load_family(Family(members).save(tempfile.mkdtemp()))
    Family(relu, widths=[1, 2], 2 dictionaries at None)
    """
    sources = [source] if isinstance(source, str | Path) else source
    return Family(member for one in sources for member in resolve(one))
