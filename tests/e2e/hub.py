"""A model hub of one repository, as far as `huggingface_hub` speaks to one; it can break off or be gated."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1 << 16
"""Files from this size on are "large": their hash is told as SHA-256."""


@dataclass
class Hub:
    repository: str
    files: dict[str, bytes]
    token: str | None = None
    """Who has no such token finds the repository gated."""
    breaks_after: int | None = None
    """Bytes after which an answer breaks off."""
    answers: int | None = None
    """How many files are given at all; then it answers 500."""
    url: str = ""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list[tuple[str, str, str | None]])
    """Method, path and Range of each request."""

    @contextmanager
    def serving(self) -> Generator[Hub]:
        hub = self

        class Answer(_Answer):
            of = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Answer(BaseHTTPRequestHandler):
    of: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None: ...

    def _answer(self) -> None:
        hub, path = self.of, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range")))
        api, plain = f"/api/models/{hub.repository}", f"/{hub.repository}/resolve/"
        if not (path == api or path.startswith((api + "/", plain))):
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path.startswith(f"{api}/tree/"):
            self._send(200, json.dumps([_listed(*each) for each in hub.files.items()]).encode())
        elif path.startswith(api):
            self._send(200, json.dumps({"id": hub.repository, "sha": COMMIT, "siblings": []}).encode())
        else:
            self._file(path.removeprefix(plain).partition("/")[2])

    def _file(self, name: str) -> None:
        data = self.of.files.get(name)
        if data is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if self.of.answers is not None and self.command == "GET" and len(data) >= LARGE:
            if self.of.answers == 0:
                self._send(500, b"")
                return
            self.of.answers -= 1
        etag = hashlib.sha256(data).hexdigest() if len(data) >= LARGE else _blob_id(data)
        about = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(200, data, about)
            return
        start = int(wanted.removeprefix("bytes=").partition("-")[0])
        about["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206, data[start:], about)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if (
            self.of.answers is not None
            and self.of.breaks_after is not None
            and len(body) > self.of.breaks_after
        ):
            body = body[: self.of.breaks_after]
            self.close_connection = True
        self.wfile.write(body)


def _listed(name: str, data: bytes) -> dict[str, Any]:
    listed: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _blob_id(data)}
    if len(data) >= LARGE:
        listed["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return listed


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
