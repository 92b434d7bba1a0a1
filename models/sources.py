"""Where a model's files are: shipped, a folder, BentoML's model store, or the hub and its local cache.

Brings them to this machine and finds them there; no torch here, so that commands may ask.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import DryRunFileInfo, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from models.catalog import Entry

EMBEDDED = Path(__file__).with_name("embedded")


class LoadError(Exception):
    """A model that cannot be loaded; the message is for the operator: what to do."""


class HubError(LoadError):
    """The hub cannot be reached, or it refuses."""


def find_folder(source: str, entry: Entry) -> Path:
    """The local folder of a catalog source, downloaded if need be. Raises `LoadError`."""
    kind, _, place = source.partition(":")
    if kind == "hub":
        return download(place, entry)
    folder = local_folder(source, entry)
    if folder is None:
        what = "no model of that name in BentoML's store" if kind == "store" else f"no {place}"
        raise LoadError(f"There is {what}, which the catalog names as {source}.")
    return folder


def local_folder(source: str, entry: Entry) -> Path | None:
    """The folder of a catalog source if all of it is on this machine; never touches a network."""
    kind, _, place = source.partition(":")
    if kind == "hub":
        return _cached(place, entry)
    if kind == "store":
        return _stored(place)
    folder = EMBEDDED / place if kind == "embedded" else Path(place).expanduser()
    return folder if folder.exists() else None


def split_place(place: str) -> tuple[str, str | None]:
    """`OWNER/NAME[@REVISION]` of a hub."""
    repository, _, revision = place.partition("@")
    return repository, revision or None


def download(place: str, entry: Entry) -> Path:
    """Into the hub's local cache. Raises `LoadError`.

    Takes the token from HF_TOKEN or the hub's login, and the cache alone under HF_HUB_OFFLINE=1.
    """
    repository, revision = split_place(place)
    with hub_errors(place, entry):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(entry.files)))


def files_to_download(place: str, entry: Entry) -> list[DryRunFileInfo]:
    """What `download` would fetch now. Raises `LoadError`."""
    repository, revision = split_place(place)
    with hub_errors(place, entry):
        try:
            files = snapshot_download(
                repository, revision=revision, allow_patterns=list(entry.files), dry_run=True
            )
        except DryRunError as error:  # of which the cause is what is wrong
            raise error.__cause__ or error from None
    return [file for file in files if file.will_download]


def _cached(place: str, entry: Entry) -> Path | None:
    repository, revision = split_place(place)
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(entry.files), local_files_only=True
            )
        )
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def _stored(tag: str) -> Path | None:
    import bentoml  # late: it is slow to import, and most catalogs name no model of its store
    from bentoml.exceptions import BentoMLException

    try:
        return Path(bentoml.models.get(tag).path)
    except (BentoMLException, ValueError):
        return None


@contextmanager
def hub_errors(place: str, entry: Entry) -> Generator[None]:
    """Turns what the hub's client raises into `LoadError`s that say what to do."""
    repository, _ = split_place(place)
    try:
        yield
    except GatedRepoError:
        raise HubError(
            f"{repository} is gated. Agree to its licence ({entry.licence}) on its page, "
            f"https://huggingface.co/{repository}, and set HF_TOKEN to a token of that account."
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise _out_of_reach(repository) from None
        raise HubError(
            f"The hub has no {place}, or it is private: check the name, or set HF_TOKEN to a token that may "
            "see it."
        ) from None
    except HfHubHTTPError as error:
        raise HubError(
            f"The hub answered {error.response.status_code} for {place}; what has been fetched is kept, and "
            "the next try goes on from there."
        ) from None
    except (OfflineModeIsEnabled, HTTPError, OSError):
        raise _out_of_reach(repository) from None


def _out_of_reach(repository: str) -> HubError:
    return HubError(
        f"The hub cannot be reached and {repository} is not in the local cache. Connect this machine and "
        f"start again, copy a cache here (HF_HOME), or serve what ships: TRIPTYCH_PROFILE=embedded."
    )
