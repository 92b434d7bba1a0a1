"""`triptych models pull` and `triptych models import`: models onto this machine, each with its SHA-256."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from huggingface_hub import constants
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from commands.models import entry_of
from commands.terminal import AsJson, CommandError, Exit, gib, say, show
from models.catalog import Entry, Modality, catalog_of
from models.footprint import measure
from models.manifest import BrokenFileError, check, pickles, size_of, strays, write_manifest
from models.resume import fetch_large
from models.sources import (
    HubError,
    LoadError,
    download,
    files_to_download,
    hub_errors,
    local_folder,
    split_place,
)
from settings import settings

Names = Annotated[
    list[str] | None, typer.Argument(help="Models of the catalog; the profile's (TRIPTYCH_PROFILE) without.")
]
Folder = Annotated[Path, typer.Argument(help="A folder in the hub's layout.", exists=True, file_okay=False)]
Store = Annotated[bool, typer.Option("--store", help="Copy into BentoML's model store too.")]


def pull(names: Names = None, store: Store = False, as_json: AsJson = False) -> None:
    """Fetch models from the hub into its local cache, and write down their SHA-256.

    A pull that broke off goes on where it stopped. HF_TOKEN is used for gated models, HF_HOME says where the
    cache is, HF_ENDPOINT where the hub is; under HF_HUB_OFFLINE=1 nothing is fetched.
    """
    catalog, profile = catalog_of(settings().profile)
    wanted = names or [name for each in Modality for name in catalog.served(profile, each)]
    results: list[dict[str, Any]] = []
    for name in wanted:
        entry = entry_of(catalog, name)
        for part in (entry.config, entry.loras):
            if part and part.startswith("hub:"):
                _fetch(name, part, entry)
        if not entry.source.startswith("hub:"):
            say(f"{name} is {entry.source}: there is nothing to fetch.")
            continue
        folder = _fetch(name, entry.source, entry)
        result: dict[str, Any] = {"name": name, "folder": str(folder), "bytes": size_of(folder)}
        if store:
            result["store"] = _copy_into_store(name, folder)
        results.append(result)
    text = [f"{each['name']}: {gib(each['bytes'])} in {each['folder']}" for each in results]
    text += [f"{each['name']}: in BentoML's store as {each['store']}" for each in results if store]
    show(results, as_json, *text)


def import_model(
    folder: Annotated[
        Path, typer.Argument(help="A folder in the hub's layout.", exists=True, file_okay=False)
    ],
    name: Annotated[str, typer.Option("--name", help="What the catalog shall call it.")],
    family: Annotated[
        str, typer.Option("--family", help="The file in models/ that loads it: text.decoder, speech.bark ...")
    ],
    licence: Annotated[str, typer.Option("--licence", help="Its licence's name.")],
    as_json: AsJson = False,
) -> None:
    """Copy a model's folder into BentoML's model store and print the catalog entry that serves it.

    Weights must be safetensors: pickled ones, which can run code when they are loaded, are refused.
    """
    if unsafe := pickles(folder):
        raise CommandError(f"{', '.join(unsafe[:3])}: pickled weights are refused; convert to safetensors.")
    if others := strays(folder):
        raise CommandError(
            f"{', '.join(others[:3])}: links out of the folder, links to folders and what is no file are "
            "refused; copy the files."
        )
    if broken := check(folder):
        raise CommandError(f"{folder} is not whole: {'; '.join(broken)}.")
    try:
        entry = Entry(family=family, source=f"store:{name}", licence=licence, memory=measure(folder, family))
    except (ValueError, BrokenFileError) as error:
        raise CommandError(f"{folder} is no model of family {family}: {error}", Exit.USAGE) from None
    tag = _copy_into_store(name, folder)
    made = {name: entry.model_dump(mode="json", exclude_defaults=True)}
    text = yaml.safe_dump({"models": made}, sort_keys=False, allow_unicode=True)
    say(f"{name} is in BentoML's store as {tag}. Put this into a catalog of yours (TRIPTYCH_PROFILE):")
    show({"store": tag, "models": made}, as_json, text)


def _fetch(name: str, source: str, entry: Entry) -> Path:
    place = source.removeprefix("hub:")
    try:
        if local_folder(source, entry) is None:
            files = files_to_download(place, entry)
            size = sum(file.file_size or 0 for file in files)
            _check_room(place, size)
            say(f"{place}: {gib(size)} to fetch.")
            with hub_errors(place, entry), _bar(f"fetching {name}", size) as bar:
                fetch_large(split_place(place)[0], files, lambda come: bar.advance(bar.task_ids[0], come))
        folder = download(place, entry)
        with _bar(f"checking {name}", size_of(folder)) as bar:
            write_manifest(folder, lambda read: bar.advance(bar.task_ids[0], read))
    except HubError as error:
        raise CommandError(str(error), Exit.UNREACHABLE) from None
    except (LoadError, BrokenFileError) as error:
        raise CommandError(f"{name}: {error}") from None
    return folder


def _check_room(place: str, size: int) -> None:
    """A download that cannot end is not begun."""
    cache = Path(constants.HF_HUB_CACHE)
    at = next(each for each in (cache, *cache.parents) if each.exists())
    free = shutil.disk_usage(at).free
    if size > free:
        raise CommandError(f"{place} needs {gib(size)} more, and {at} has {gib(free)} free.")


def _copy_into_store(name: str, folder: Path) -> str:
    import bentoml  # late: it takes a second
    from bentoml.exceptions import BentoMLException

    try:
        with bentoml.models.create(name) as stored:
            place = Path(stored.path)
            shutil.copytree(folder, place, dirs_exist_ok=True)
            write_manifest(place)
    except (BentoMLException, ValueError) as error:
        raise CommandError(f"BentoML's store does not take {name}: {error}") from None
    return str(stored.tag)


def _bar(what: str, total: int) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(what, total=total)
    return bar
