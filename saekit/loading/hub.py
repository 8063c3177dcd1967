"""Files of a model hub: fetched once, checked against the hub's own checksums, found again offline.

Everything goes through `huggingface_hub`, its cache, its progress bars and its access tokens. An
interrupted transfer resumes; complete files are not fetched again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from saekit.files import hash_file, hash_json, home, read_json, write_json

SUFFIXES = (".json", ".safetensors", ".npz", ".pt", ".pth")  # what formats read; nothing else is fetched
SECONDS = 10.0  # to wait for the hub's list of files
PUBLIC = "https://huggingface.co"


@dataclass(frozen=True)
class Fetched:
    """A file or folder of a repository in the local cache.

    Attributes
    ----------
    path : Path
        Path of the local copy.
    repo, commit : str
        The repository, and the commit of the revision.
    checksums : dict
        SHA-256 of each file, by its path in the repository.
    """

    path: Path
    repo: str
    commit: str
    checksums: dict[str, str]

    @property
    def info(self) -> dict[str, Any]:
        """Repository, commit, and SHA-256 of the weights, for a dictionary's `info`."""
        weights = {name: sha for name, sha in self.checksums.items() if not name.endswith(".json")}
        return {"repo": self.repo, "commit": self.commit, "sha256": weights}


def fetch(repo: str, path: str = "", revision: str = "main") -> Fetched:
    """Files of a repository that make an SAE, downloaded where they are not in the cache yet.

    For a folder, these are the files directly in it that have one of `SUFFIXES`; for a file, that
    file and the JSON files beside it and one folder up, where settings are kept. The hub
    (`HF_ENDPOINT` if it is set) is asked every time which commit a revision is; if it cannot be
    reached, the last answer counts, or the commit that the cache has for the revision, whichever
    program downloaded it. A commit's files are read from the cache without asking.

    Parameters
    ----------
    repo : str
        `"organisation/name"`.
    path : str
        A file or folder in it; its root if left out.
    revision : str
        Branch, tag or commit.

    Raises
    ------
    FileNotFoundError
        If the hub has no such repository, revision or path, or it holds no such files.
    PermissionError
        If the hub requires a login.
    ConnectionError
        If the hub cannot be reached and the files are not in the cache.
    ValueError
        If a file differs from the hub's checksum, or from the one downloaded earlier.
    """
    request = {"repo": repo, "path": path, "revision": revision}
    record_file = home() / "hub" / f"{hash_json(request)}.json"
    record = read_json(record_file) if record_file.is_file() else None
    if record is None or revision != record["commit"]:
        try:
            commit, checksums = _look_up(repo, path, revision)
        except ConnectionError:
            known = (record["commit"], record["checksums"]) if record else _cached(repo, path, revision)
            if known is None:
                raise
            commit, checksums = known
    else:
        commit, checksums = record["commit"], record["checksums"]

    found, local = {}, Path()
    for name, checksum in checksums.items():
        with _one_sentence(repo, name, revision):
            local = Path(hub_api().hf_hub_download(repo, name, revision=commit))
        found[name] = _verified(local, f"{repo}/{name}", checksum)
    snapshot = local.parents[len(PurePosixPath(name).parts) - 1]
    write_json(record_file, request | {"commit": commit, "checksums": found})
    return Fetched(snapshot / path, repo, commit, found)


def _look_up(repo: str, path: str, revision: str) -> tuple[str, dict[str, str]]:
    """The commit of a revision, and the checksums that the hub lists for the files to fetch."""
    from huggingface_hub import RepoFile

    hub = hub_api()
    with _one_sentence(repo, path, revision):
        commit = hub.model_info(repo, revision=revision, timeout=SECONDS).sha
        listed = hub.get_paths_info(repo, [path], revision=commit) if path else []
    if path and not listed:
        raise FileNotFoundError(
            f"There is no {repo}/{path} here, and none on {hub_endpoint()} at revision {revision}."
        )
    alone = bool(listed) and isinstance(listed[0], RepoFile)
    folders = [str(folder) for folder in PurePosixPath(path).parents][:2] if alone else [path]
    with _one_sentence(repo, path, revision):
        entries = [
            entry
            for folder in folders
            for entry in hub.list_repo_tree(repo, folder.removeprefix(".") or None, revision=commit)
        ]
    wanted = (".json",) if alone else SUFFIXES
    checksums = {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in entries
        if isinstance(entry, RepoFile) and (entry.path == path or entry.path.endswith(wanted))
    }
    if not checksums:
        there = ", ".join(sorted(entry.path for entry in entries)) or "nothing"
        raise FileNotFoundError(
            f"{repo}/{path} on {hub_endpoint()} holds no SAE: expected files in {', '.join(SUFFIXES)}, found "
            f"{there}."
        )
    return commit, checksums


def _cached(repo: str, path: str, revision: str) -> tuple[str, dict[str, str]] | None:
    """The commit and the checksums of files that another program has put into the hub's cache.

    Returns
    -------
    tuple or None
        As `_look_up`, from the cache alone: its blobs are named by their checksums. None if there is no
        file of weights in it, or (where links cannot be made) no blobs.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        snapshot = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, OSError):
        return None
    place = snapshot / path
    if place.is_file():
        files = [place, *place.parent.glob("*.json")]
        if path.count("/"):
            files += place.parent.parent.glob("*.json")
    else:
        files = [file for file in place.glob("*") if file.suffix in SUFFIXES]
    checksums = {file.relative_to(snapshot).as_posix(): file.resolve().name for file in files}
    if any(len(checksum) not in (40, 64) for checksum in checksums.values()):
        return None
    return (snapshot.name, checksums) if any(not name.endswith(".json") for name in checksums) else None


def _verified(local: Path, name: str, checksum: str) -> str:
    """SHA-256 of a file with the right checksum; a file with another one is removed from the cache.

    A checksum of 64 digits is SHA-256, as the hub lists it for large files; one of 40 is that of
    git, as it lists it for the others.
    """
    sha256 = hash_file(local)
    found = sha256 if len(checksum) == 64 else _git_hash(local)
    if found != checksum:
        local.resolve().unlink(missing_ok=True)
        local.unlink(missing_ok=True)
        raise ValueError(
            f"{name} is damaged: its checksum should be {checksum}, found {found}; the local copy is gone."
        )
    return sha256


def _git_hash(file: Path) -> str:
    data = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def hub_endpoint() -> str:
    """Address of the hub: `HF_ENDPOINT` if it is set."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or PUBLIC


def hub_api() -> Any:
    """The client of the hub."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub_endpoint(), library_name="saekit")


@contextmanager
def _one_sentence(repo: str, path: str, revision: str) -> Iterator[None]:
    """Turn errors into one sentence, without the chain of their causes."""
    from huggingface_hub import errors

    what, where = f"{repo}/{path}".rstrip("/"), hub_endpoint()
    try:
        yield
    except errors.HFValidationError:
        raise FileNotFoundError(f"There is no {what} here, and {repo} is not a repository name.") from None
    except errors.GatedRepoError:
        raise PermissionError(
            f"{repo} on {where} is gated: accept its terms there, and log in with `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"There is no {what} here, and no repository {repo} on {where} that is seen without logging in "
            "by `hf auth login`."
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{repo} on {where} has no revision {revision}.") from None
    except errors.RemoteEntryNotFoundError:
        raise FileNotFoundError(
            f"There is no {what} here, and none on {where} at revision {revision}."
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"{where} does not give {what} to everybody (status {status}): log in with `hf auth login`."
            ) from None
        raise ConnectionError(_away(what, where, f"it answered with status {status}")) from None
    except errors.LocalEntryNotFoundError:
        raise ConnectionError(_away(what, where, "it cannot be reached")) from None
    except errors.OfflineModeIsEnabled:
        raise ConnectionError(_away(what, where, "HF_HUB_OFFLINE is set")) from None
    except (errors.HTTPError, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConnectionError(_away(what, where, reason)) from None


def _away(what: str, where: str, reason: str) -> str:
    return (
        f"{what} could not be fetched from {where} ({reason}); a folder or file that was downloaded "
        "elsewhere can be given instead."
    )
