"""Hub, folder or embedded -> a model in memory."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from models.catalog import Entry
from models.protocol import Model, ModelSpec

EMBEDDED = Path(__file__).with_name("embedded")


class LoadError(Exception):
    """A model that cannot be loaded; the message is for the operator: what to do."""


def load_model(name: str, entry: Entry, device: str) -> Model[Any, Any]:
    """Loads a model of the catalog on `device` (as torch names it). Raises `LoadError`."""
    spec = spec_of(name, entry, device)
    family = importlib.import_module(f"models.{entry.family}")
    transformers.utils.logging.disable_progress_bar()  # a service's log is no terminal
    try:
        return family.load(spec)
    except (OSError, ValueError) as error:
        raise LoadError(f"The model {name} in {spec.folder} cannot be loaded: {error}") from error


def spec_of(name: str, entry: Entry, device: str) -> ModelSpec:
    """Brings the model's files to this machine and says how to load them. Raises `LoadError`."""
    quantization = entry.precision if entry.precision in ("int8", "int4") else None
    automatic = entry.precision == "auto" or quantization is not None
    dtype = ("float32" if device == "cpu" else "bfloat16") if automatic else entry.precision
    return ModelSpec(
        name=name,
        folder=find_folder(entry.source, entry),
        device=device,
        dtype=dtype,
        quantization=quantization,
        max_rows=entry.max_rows,
        loras=find_folder(entry.loras, entry) if entry.loras is not None else None,
    )


def find_folder(source: str, entry: Entry) -> Path:
    """The local folder of a catalog source, downloaded if need be. Raises `LoadError`."""
    kind, _, place = source.partition(":")
    if kind == "hub":
        return _download(place, entry)
    folder = EMBEDDED / place if kind == "embedded" else Path(place).expanduser()
    if not folder.exists():
        raise LoadError(f"There is no {folder}, which the catalog names as {source}.")
    return folder


def _download(place: str, entry: Entry) -> Path:
    """Takes the token from HF_TOKEN or the hub's login, and the cache alone under HF_HUB_OFFLINE=1."""
    repository, _, revision = place.partition("@")
    try:
        return Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=list(entry.files))
        )
    except GatedRepoError:
        raise LoadError(
            f"{repository} is gated. Agree to its licence ({entry.licence}) on its page, "
            f"https://huggingface.co/{repository}, and set HF_TOKEN to a token of that account."
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise LoadError(
            f"The hub has no {place}, or it is private: check the name, or set HF_TOKEN to a token that may "
            "see it."
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError):
        raise LoadError(
            f"The hub cannot be reached and {repository} is not in the local cache. Connect this machine and "
            f"start again, copy a cache here (HF_HOME), or serve what ships: TRIPTYCH_PROFILE=embedded."
        ) from None
