"""BentoML's supervisor, with the settings that its command line has not.

It starts the gateway and the runners, a process each, and starts one anew that has ended. Told twice to end,
it waits for nobody; when it is killed its processes are too (`commands.worker`).
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from settings import Settings

LOOK_EVERY_S = 1.0
"""How often it looks for processes that have ended; by itself BentoML does every ten seconds."""
KEEP_ALIVE_S = 75
"""Longer than proxies, clients and the gateway itself keep an idle connection, so that it is theirs to close:
one that the server closes may be taken for a request in the same moment, which then fails."""
WORKER = "commands.worker"
STOP_S = 10
"""What a process gets to end after its requests have."""


def supervise(target: str, folder: Path, options: Settings) -> None:
    """Serves `target` (`module:Service`) on the host and port of `options` until SIGTERM or SIGINT.

    Requests in flight get `drain_s` to end. `folder` is the working directory of all processes.
    """
    # Late: BentoML takes half a second to import, and reads its configuration then.
    import bentoml.serving
    from _bentoml_impl.loader import load
    from _bentoml_impl.server import serve_http
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.log import configure_server_logging
    from bentoml._internal.utils import circus

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    configure_server_logging()
    load(target, str(folder)).inject_config()
    drain_s = max(1, math.ceil(options.drain_s))
    make_watcher: Any = bentoml.serving.create_watcher

    def watcher(*, args: list[str], **rest: Any) -> Any:
        module = args[args.index("-m") + 1 :]
        named = ["-m", WORKER, *module, "--timeout-keep-alive", str(KEEP_ALIVE_S)]
        made = make_watcher(args=named, **rest)
        made.respawn = True  # in a container too, where BentoML would end the others with the one
        made.graceful_timeout = drain_s + STOP_S
        return made

    def arbiter(watchers: list[Any], *, threaded: bool = False, **rest: Any) -> Any:
        # BentoML has it take orders, to start any program too, from whoever reaches a port of this machine.
        del threaded
        ways = {"endpoint": f"ipc://{own}/control", "pubsub_endpoint": f"ipc://{own}/events"}
        return circus.Arbiter(watchers, check_delay=LOOK_EVERY_S, **ways, **rest)

    bentoml.serving.create_watcher = watcher
    circus.create_standalone_arbiter = arbiter
    _end_at_once_when_told_twice()
    with tempfile.TemporaryDirectory(prefix="triptych-") as own:  # which other users cannot enter
        # BentoML has one folder of metrics for all services of a user, and each start empties it for all.
        metrics = Path(own, "metrics")
        metrics.mkdir()
        BentoMLContainer.prometheus_multiproc_dir.set(str(metrics))
        serve_http(
            target,
            working_dir=str(folder),
            host=options.host,
            port=options.port,
            timeout_graceful_shutdown=drain_s,
        )


def _end_at_once_when_told_twice() -> None:
    """The supervisor ends by itself when its processes have."""
    import psutil
    from circus.sighandler import SysHandler

    end_gently = SysHandler.quit
    told = False

    def end(self: Any) -> None:
        nonlocal told
        if told:
            for process in psutil.Process().children(recursive=True):
                process.kill()
        told = True
        end_gently(self)

    SysHandler.quit = end
