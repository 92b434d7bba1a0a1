"""`triptych models`: what the catalog has, and what of it is on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.terminal import AsJson, CommandError, Commands, Exit, gib, say, show, table
from models.catalog import Catalog, Entry, catalog_of
from models.manifest import check, has_manifest, place_of, size_of
from models.sources import local_folder, split_place
from settings import settings

app = typer.Typer(
    cls=Commands, no_args_is_help=True, help="The catalog's models, and what of them is on this machine."
)

Name = Annotated[str, typer.Argument(help="A model of the catalog; `triptych models list` shows them.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the catalog: what there is, which profiles serve it, and what is on this machine."""
    catalog = catalog_of(settings().profile)[0]
    found = [_described(catalog, name) for name in catalog.models]
    rows = [
        (
            each["name"],
            each["family"],
            ", ".join(each["profiles"]),
            each["source"],
            "-" if each["folder"] is None else gib(each["bytes"]),
        )
        for each in found
    ]
    show(found, as_json, table(("model", "family", "profiles", "source", "here "), rows))


@app.command("show")
def show_model(name: Name, as_json: AsJson = False) -> None:
    """Show one model: where it comes from, its licence, its files and what memory it takes."""
    catalog = catalog_of(settings().profile)[0]
    entry_of(catalog, name)
    found = _described(catalog, name)
    rows = [
        (key.replace("_", " "), ", ".join(value) if isinstance(value, list) else value)
        for key, value in found.items()
        if key not in ("memory", "bytes") and value is not None
    ]
    rows += [("size", gib(found["bytes"]))] if found["folder"] else [("folder", "not on this machine")]
    rows += [(key.replace("_", " "), f"{value:,}") for key, value in (found["memory"] or {}).items() if value]
    show(found, as_json, table(("", ""), rows))


@app.command("verify")
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Models; all that are here without.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check models' files against the SHA-256 that was written down when they were fetched.

    A model without such a manifest (one that ships, or a folder) is checked for files that are cut off.
    """
    catalog = catalog_of(settings().profile)[0]
    results: list[dict[str, Any]] = []
    for name in names or list(catalog.models):
        entry = entry_of(catalog, name)
        folder = local_folder(entry.source, entry)
        if folder is None:
            if names:
                results.append({"name": name, "by": None, "wrong": ["it is not on this machine"]})
            continue
        by = "sha256" if has_manifest(folder) else "structure"
        results.append({"name": name, "by": by, "wrong": check(folder)})
    rows = [(each["name"], each["by"], "; ".join(each["wrong"]) or "as it should be") for each in results]
    show(results, as_json, table(("model", "checked by", ""), rows))
    if any(each["wrong"] for each in results):
        raise typer.Exit(Exit.WRONG)


@app.command("remove")
def remove(name: Name, yes: Yes = False) -> None:
    """Remove a model from the hub's local cache or from BentoML's store. What ships, and folders, stay."""
    entry = entry_of(catalog_of(settings().profile)[0], name)
    kind, _, place = entry.source.partition(":")
    if kind not in ("hub", "store"):
        raise CommandError(f"{name} is {entry.source}: only what was pulled or imported can be removed.")
    folder = local_folder(entry.source, entry)
    if folder is None:
        raise CommandError(f"{name} is not on this machine.")
    if not yes and not typer.confirm(f"Remove {name}, {gib(size_of(folder))}?", err=True):
        raise CommandError("Nothing was removed.")
    size = size_of(folder)
    if kind == "hub":
        _remove_from_cache(place, folder)
    else:
        import bentoml  # late: it takes a second

        bentoml.models.delete(place)
    say(f"{name} is removed; {gib(size)} are free.")


def entry_of(catalog: Catalog, name: str) -> Entry:
    """Raises `CommandError` that tells what there is."""
    if name not in catalog.models:
        there = ", ".join(catalog.models)
        raise CommandError(f"There is no model {name} in the catalog. There are: {there}.", Exit.USAGE)
    return catalog.models[name]


def _described(catalog: Catalog, name: str) -> dict[str, Any]:
    entry = catalog.models[name]
    folder = local_folder(entry.source, entry)
    return {
        "name": name,
        "family": entry.family,
        "profiles": [
            title for title, profile in catalog.profiles.items() if name in profile.names(entry.modality)
        ],
        "source": entry.source,
        "licence": entry.licence,
        "precision": entry.precision,
        "max_rows": entry.max_rows,
        "folder": None if folder is None else str(folder),
        "bytes": None if folder is None else size_of(folder),
        "verified_by": None if folder is None else "sha256" if has_manifest(folder) else "structure",
        "memory": None if entry.memory is None else entry.memory.model_dump(),
    }


def _remove_from_cache(place: str, folder: Path) -> None:
    from huggingface_hub import scan_cache_dir

    repository, _ = split_place(place)
    cache = folder.parents[2]
    for repo in scan_cache_dir(cache).repos:
        if repo.repo_id == repository:
            scan_cache_dir(cache).delete_revisions(*(each.commit_hash for each in repo.revisions)).execute()
    place_of(folder).unlink(missing_ok=True)
    shutil.rmtree(folder.parents[1], ignore_errors=True)
