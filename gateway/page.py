"""The page at `/`: try the models and compare them. One file without a picture, a font or a script of others.

Where keys are needed a browser asks for one as the password; the page asks the endpoints with the key that is
typed into it, never with a password that a browser would also send for other people's pages.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from starlette.responses import HTMLResponse, Response

PAGE = "/"
_HTML = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
_SCRIPT = _HTML.partition("<script>")[2].partition("</script>")[0]
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode("ascii")
_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; connect-src 'self'; img-src data:; media-src blob:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


async def page() -> Response:
    return HTMLResponse(_HTML, headers=_HEADERS)
