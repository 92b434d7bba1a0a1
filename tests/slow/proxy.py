"""nginx as a process of ours, with the configuration that `deploy/` ships, in front of a service."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import ROOT, free_port, until

PROGRAMS = {"nginx": "/usr/sbin/nginx", "openssl": "/usr/bin/openssl"}
"""Where Debian's packages of these names put them, which `.ci/run` installs."""
MISSING = [name for name, path in PROGRAMS.items() if not Path(path).exists()]
needs_nginx = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@contextmanager
def in_front_of(url: str, folder: Path) -> Generator[httpx.Client]:
    """A client that trusts the proxy's certificate. `folder` is for the proxy's files."""
    port = free_port()
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost")
    files = ("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate)
    subprocess.run([PROGRAMS["openssl"], *made, *files], check=True, capture_output=True)
    text = (ROOT / "deploy/nginx.conf").read_text(encoding="utf-8")
    for ours, here in {
        "127.0.0.1:3000": url.removeprefix("http://"),
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        "/etc/nginx/tls/triptych.crt": str(certificate),
        "/etc/nginx/tls/triptych.key": str(key),
        "/run/nginx.pid": str(folder / "pid"),
    }.items():
        assert ours in text, ours
        text = text.replace(ours, here)
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    command = [PROGRAMS["nginx"], "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with (folder / "log").open("wb") as log:
        nginx = subprocess.Popen([*command, "-g", "daemon off;"], stdout=log, stderr=log)
    try:
        trusts = ssl.create_default_context(cafile=certificate)
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusts, timeout=60) as client:
            until(lambda: _answers(client), 30, "nginx")
            yield client
    finally:
        nginx.terminate()
        nginx.wait(30)


def _answers(client: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return client.get("/livez").status_code == 200
    return False
