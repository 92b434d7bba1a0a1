"""Requests made up from the service's own document (schemathesis), and whether each answer is as it says.

What cannot be said in a schema is not asked of it: that each request which fits the schema is taken (a LoRA
must be there, a mask needs a picture), and that a part of a form, which is always text, has a wrong type.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

JSON, FORM = "application/json", "multipart/form-data"
_NOT_ASKED = {JSON: "positive_data_acceptance", FORM: "positive_data_acceptance,negative_data_rejection"}
_CONFIG = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 409, 413, 415, 422, 429]
"""
"""A text that is too long is refused as such, or with its whole body (413)."""
_CASES = re.compile(r"(\d+) generated")


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """`failures` is what schemathesis reports of those that failed, empty if none did."""

    cases: int
    failures: str


def fuzz(
    url: str, folder: Path, per_operation: int, phases: str, *, only_errors: bool = False
) -> Iterator[Fuzzed]:
    """Tries each operation with about so many requests, in JSON and as forms. `folder` is for its files.

    `only_errors`: just that no answer is a server's error.
    """
    document = httpx.get(f"{url}/docs.json").raise_for_status().json()
    (folder / "schemathesis.toml").write_text(_CONFIG, encoding="utf-8")
    for media in (JSON, FORM):
        file = folder / f"{media.partition('/')[0]}.json"
        file.write_text(json.dumps(_only(document, media)), encoding="utf-8")
        asked = ("--checks", "not_a_server_error") if only_errors else ("--exclude-checks", _NOT_ASKED[media])
        told = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", url),
                *("--phases", phases, "--max-examples", str(per_operation), "--seed", "1"),
                *("--no-shrink", "--continue-on-failure", "--request-timeout", "60", "--warnings", "off"),
                *asked,
                *("--suppress-health-check", "all"),
            ],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        found = _CASES.search(told.stdout)
        failed = told.returncode != 0 or found is None
        yield Fuzzed(int(found[1]) if found else 0, told.stdout + told.stderr if failed else "")


def _only(document: dict[str, Any], media: str) -> dict[str, Any]:
    """The document with bodies of this type alone; of operations that take no body only for JSON."""
    document = copy.deepcopy(document)
    for path, methods in list(document["paths"].items()):
        for method, operation in list(methods.items()):
            content = operation.get("requestBody", {}).get("content", {JSON: None})
            for other in [each for each in content if each != media]:
                del content[other]
            if not content:
                del methods[method]
        if not methods:
            del document["paths"][path]
    return document
