"""SAEs for others: converted into another library's files, or pushed to the hub with a model card."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.files import writable_folder, write_bytes
from saekit.loading.formats.writing import WRITERS, save_sae
from saekit.loading.hub import hub_api, hub_endpoint
from saekit.loading.names import resolve
from saekit.settings import choice

OWN = "saekit"  # the format that `Dictionary.save` writes
TAGS = ("saelens", "sparse-autoencoder", "mechanistic-interpretability")
CARD = "README.md"


def convert_sae(
    source: str | Path, out: str | Path, *, format: str = "saelens", revision: str | None = None
) -> Path:
    """Read an SAE, or a family of them, and write it in another format.

    Parameters
    ----------
    source : str or Path
        Anything that `load_sae` takes; or a folder, glob or name of several SAEs that form a family.
    out : str or Path
        Folder to write, made if needed. With several SAEs, each gets a folder `<width>-seed<seed>` in it.
    format : str
        `"saelens"` or `"dictionary_learning"`, see `save_sae`, or `"saekit"`.
    revision : str, optional
        Branch, tag or commit on the hub.

    Returns
    -------
    Path
        The folder `out`.

    Raises
    ------
    FileNotFoundError, PermissionError, ConnectionError, ValueError
        As `load_sae`, `Family` and `save_sae`.
    OSError
        If the folder cannot be written.

    Examples
    --------
    >>> import tempfile, torch
    >>> from saekit import Dictionary, load_sae
    >>> eye = torch.eye(3)
    >>> dictionary = Dictionary(eye, torch.zeros(3), eye, torch.zeros(3), threshold=torch.ones(3))
    >>> source = dictionary.save(tempfile.mkdtemp())
    >>> out = convert_sae(source, tempfile.mkdtemp(), format="dictionary_learning")
    >>> load_sae(out).info["format"]
    'dictionary_learning'
    """
    choice("format", format, (*WRITERS, OWN))
    members = resolve(source, revision=revision)
    out = writable_folder(out)
    if len(members) > 1:
        for dictionary in Family(members):
            _write(dictionary, out / _folder(dictionary), format)
        return out
    (member,) = members
    _write(member if isinstance(member, Dictionary) else member.fold(), out, format)
    return out


def push_to_hub(
    sae: Dictionary | Family, repo: str, *, path: str = "", private: bool = False, message: str | None = None
) -> str:
    """Upload a dictionary or a family to the hub in SAELens' layout, with a model card.

    The repository is made if needed, and everything is uploaded in one commit by `huggingface_hub`.
    An existing model card is left as it is.

    Parameters
    ----------
    sae : Dictionary or Family
        The SAE or family to upload, see `save_sae`. Each member of a family gets a folder
        `<width>-seed<seed>`.
    repo : str
        `"organisation/name"`.
    path : str
        Folder in the repository; its root if left out.
    private : bool
        Whether a new repository is visible only to its owners.
    message : str, optional
        Message of the commit.

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    ValueError
        If SAELens cannot express a part of a dictionary (see `save_sae`), or `repo` is not a valid name.
    PermissionError
        If the hub does not let the user write there.
    ConnectionError
        If the hub cannot be reached.
    """
    members = [sae] if isinstance(sae, Dictionary) else list(sae)
    places = {"" if isinstance(sae, Dictionary) else _folder(member): member for member in members}
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder) / path
        for place, member in places.items():
            save_sae(member, inner / place)
        with _uploading(repo):
            api = hub_api()
            api.create_repo(repo, private=private, exist_ok=True)
            if not api.file_exists(repo, CARD):
                card = model_card({str(PurePosixPath(path, at)): m for at, m in places.items()}, repo)
                write_bytes(Path(folder) / CARD, card.encode())
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=message or f"Add {members[0].name if len(members) == 1 else repr(sae)}",
            )
    return commit.commit_url


def model_card(places: dict[str, Dictionary], repo: str) -> str:
    """The README of a repository: a table of its SAEs, and how to load them.

    Parameters
    ----------
    places : dict
        The dictionaries by their folders in the repository, `"."` for its root.
    repo : str
        The repository.

    Examples
    --------
    >>> print(model_card({"8": small}, "organisation/name").splitlines()[8])
    """
    first = next(iter(places.values()))
    model = first.info.get("model")
    header = ["---", "library_name: saelens", "tags:", *(f"- {tag}" for tag in TAGS)]
    header += [f"base_model: {model}"] if model else []
    rows = ["| folder | kind | latents | d_in | seed | model | hook point |", "|---|---|---|---|---|---|---|"]
    for place, dictionary in places.items():
        cells = [place, dictionary.kind, dictionary.width, dictionary.d_in, dictionary.seed]
        cells += [dictionary.info.get("model"), dictionary.hook_point]
        rows.append("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
    place = next(iter(places))
    source = repo if place == "." else f"{repo}/{place}"
    return "\n".join(
        [
            *header,
            "---",
            "",
            f"# {repo.rpartition('/')[2]}",
            "",
            "Sparse autoencoders in SAELens' layout, written by saekit.",
            "",
            *rows,
            "",
            "Encoders read raw activations at the hook point, and decoder rows have unit norm, so that",
            "activations of latents are in the units of the reconstruction.",
            "",
            "```python",
            "import saekit",
            "",
            f'dictionary = saekit.load_sae("{source}")',
            "```",
            "",
            "```python",
            "from sae_lens import SAE",
            "",
            f'sae = SAE.from_pretrained("{repo}", "{place}")',
            "```",
            "",
        ]
    )


def _folder(dictionary: Dictionary) -> str:
    return f"{dictionary.width}-seed{dictionary.seed or 0}"


def _write(dictionary: Dictionary, folder: Path, format: str) -> None:
    if format == OWN:
        dictionary.save(folder)
    else:
        save_sae(dictionary, folder, format=format)


@contextmanager
def _uploading(repo: str) -> Iterator[None]:
    """Turn errors in writing to the hub into one sentence."""
    from huggingface_hub import errors

    where = hub_endpoint()
    try:
        yield
    except errors.HFValidationError:
        raise ValueError(f"{repo!r} is not a repository name: expected organisation/name.") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"{where} does not let you write to {repo} (status {status}): log in with `hf auth login`, "
                "by a token that may write there."
            ) from None
        raise ConnectionError(
            f"{repo} could not be written on {where}: it answered with status {status}."
        ) from None
    except errors.OfflineModeIsEnabled:
        raise ConnectionError(f"{repo} could not be written on {where}: HF_HUB_OFFLINE is set.") from None
    except (errors.HTTPError, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise ConnectionError(f"{repo} could not be written on {where}: {reason}.") from None
