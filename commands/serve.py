"""`triptych serve`."""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path

from commands.keys import valid_keys
from commands.terminal import CommandError, Exit, say
from models.catalog import Modality, models_served
from settings import FILE_VARIABLE, PREFIX, Settings, settings

ROOT = Path(__file__).parents[1]


def serve() -> None:
    """Serve on HOST:PORT in the foreground until interrupted.

    What is served, and how, is in the settings: TRIPTYCH_... variables or triptych.toml.
    """
    options = settings()
    _refuse_to_be_open(options)
    for modality in Modality:
        models_served(options.profile, modality)
    url = f"http://{options.host}:{options.port}"
    say(f"Triptych starts on {url} with the profile {options.profile}; /readyz says when it is up.")
    _name_files_by_their_whole_path(options)
    # The supervisor takes this process's place, so that a signal reaches it first.
    os.execv(  # noqa: S606 - a fixed program with checked arguments
        sys.executable,
        [
            *(sys.executable, "-m", "bentoml", "serve", "service:Triptych", "--working-dir", str(ROOT)),
            *("--host", options.host, "--port", str(options.port)),
            # Longer than proxies and clients keep an idle connection, so that it is theirs to close.
            *("--timeout-keep-alive", "75"),
        ],
    )


def _refuse_to_be_open(options: Settings) -> None:
    """Raises `CommandError` when others could come in without a key."""
    if options.keyless or _is_loopback(options.host) or valid_keys():
        return
    raise CommandError(
        f"On {options.host} others can reach the service, and there are no keys: everybody could use it. "
        "Make one with `triptych keys create NAME`, or set TRIPTYCH_KEYLESS=true.",
        Exit.USAGE,
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_files_by_their_whole_path(options: Settings) -> None:
    """The service's processes run in its own folder, not in the one the command was given in."""
    file = Path(os.environ.get(FILE_VARIABLE, "triptych.toml"))
    if file.is_file():
        os.environ[FILE_VARIABLE] = str(file.absolute())
    os.environ[PREFIX + "STATE_DIR"] = str(Path(options.state_dir).absolute())
    if options.profile.endswith((".yaml", ".yml")):
        os.environ[PREFIX + "PROFILE"] = str(Path(options.profile).absolute())
