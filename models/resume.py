"""Fetches a hub's large files so that a download that broke off, the process too, goes on where it stopped.

`huggingface_hub` throws a broken download's beginning away when its process ends. So the large files are
fetched here into its cache, under the name that it looks for, and it finds them there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from httpx2 import HTTPError
from huggingface_hub import DryRunFileInfo, constants, get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from models.manifest import BrokenFileError, sha256_of

LARGE = 1 << 20
MOST = 50 * 10**9
"""Larger files the hub gives only by its own protocol, which `huggingface_hub` speaks."""
_TRIES = 4
"""How often a download may break off without a new byte before it is given up."""
_PAUSE_S = 1.0
_SHA256 = re.compile(r"[0-9a-f]{64}")

Progress = Callable[[int], object]
"""Told of each piece how many bytes it has, what an earlier try left included."""


def fetch_large(repository: str, files: Sequence[DryRunFileInfo], progress: Progress) -> None:
    """Fetches those of `files` that are large and not here. Raises what the hub's client does, and
    `BrokenFileError` for a file that is not what the hub says it is.
    """
    for file in files:
        if file.will_download and LARGE <= (file.file_size or 0) < MOST:
            _fetch(repository, file, progress)


def _fetch(repository: str, file: DryRunFileInfo, progress: Progress) -> None:
    url = hf_hub_url(repository, file.filename, revision=file.commit_hash)
    about = get_hf_file_metadata(url)
    if about.etag is None or not _SHA256.fullmatch(about.etag):
        return  # nothing to check it by: left to huggingface_hub
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    whole, part = folder / about.etag, folder / f"{about.etag}.part"
    if whole.exists():
        return
    _download(about.location, part, file.file_size or 0, progress)
    if sha256_of(part) != about.etag:
        part.unlink()
        raise BrokenFileError(f"{file.filename} came broken; it is thrown away: pull again")
    part.replace(whole)


def _download(url: str, part: Path, size: int, progress: Progress) -> None:
    tries = 0
    with part.open("ab") as out:
        progress(out.tell())
        while out.tell() < size:
            before = out.tell()
            try:
                _append(url, out, progress)
            except HfHubHTTPError:
                raise  # an answer, and it is no
            except HTTPError:
                tries = 0 if out.tell() > before else tries + 1
                if tries >= _TRIES:
                    raise
                time.sleep(_PAUSE_S)


def _append(url: str, out: BinaryIO, progress: Progress) -> None:
    begin = out.tell()
    headers = {**build_hf_headers(), "Range": f"bytes={begin}-", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers) as answer:
        hf_raise_for_status(answer)
        if begin and answer.status_code != 206:  # it gives the whole file only
            out.truncate(0)
            progress(-begin)
        for piece in answer.iter_bytes():
            out.write(piece)
            progress(len(piece))
