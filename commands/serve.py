"""`triptych serve`."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from commands.keys import valid_keys
from commands.supervisor import supervise
from commands.terminal import CommandError, Exit, say
from models.catalog import Modality, models_served
from settings import FILE_VARIABLE, PREFIX, Settings, settings

ROOT = Path(__file__).parents[1]


def serve(
    runner: Annotated[
        Modality | None, typer.Argument(help="Serve this runner alone, for a gateway elsewhere.")
    ] = None,
) -> None:
    """Serve on HOST:PORT in the foreground until interrupted.

    What is served, and how, is in the settings: TRIPTYCH_... variables or triptych.toml.
    """
    options = settings()
    _refuse_to_be_open(options, runner)
    if runner is not None and options.processes(runner) > 1:
        raise CommandError(
            "TRIPTYCH_REPLICAS counts processes beside their gateway; a runner that is served alone is one: "
            f"leave {runner} out of it, and name the addresses of several to the gateway.",
            Exit.USAGE,
        )
    for modality in Modality:
        models_served(options.profile, modality)
    _refuse_a_taken_port(options)
    what, target = "Triptych", "service:Triptych"
    if runner is not None:
        what, target = f"The {runner} runner", f"runners.{runner}:{runner.capitalize()}Runner"
    say(f"{what} starts on {options.url} with the profile {options.profile}; /readyz says when it is up.")
    _name_files_by_their_whole_path(options)
    supervise(target, ROOT, options)


def _refuse_to_be_open(options: Settings, runner: Modality | None) -> None:
    """Raises `CommandError` when others could come in without a key, or to a runner without the token."""
    if options.keyless or _is_loopback(options.host):
        return
    if runner is not None:
        if options.runner_token:
            return
        raise CommandError(
            f"On {options.host} others can reach the runner: give it and its gateways one "
            "TRIPTYCH_RUNNER_TOKEN, or set TRIPTYCH_KEYLESS=true where nobody else can reach it.",
            Exit.USAGE,
        )
    if valid_keys():
        return
    raise CommandError(
        f"On {options.host} others can reach the service, and there are no keys: everybody could use it. "
        "Make one with `triptych keys create NAME`, or set TRIPTYCH_KEYLESS=true.",
        Exit.USAGE,
    )


def _refuse_a_taken_port(options: Settings) -> None:
    """Raises `CommandError`; the supervisor itself would say it in a traceback."""
    if why := port_obstacle(options):
        raise CommandError(
            f"{options.host}:{options.port} cannot be listened on: {why}. HOST and PORT change it.",
            Exit.USAGE,
        )


def port_obstacle(options: Settings) -> str | None:
    """Why nobody can listen on HOST:PORT; None when one can."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            return error.strerror or str(error)
    return None


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
