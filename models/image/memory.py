"""Memory that has run out, told in the engine's words."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from models.protocol import OutOfMemoryError


@contextmanager
def memory_errors() -> Generator[None]:
    """Turns what torch raises when memory runs out into `OutOfMemoryError`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError from error
    except RuntimeError as error:
        # The CPU allocator raises no type of its own: only its name in the text tells it from other failures.
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise OutOfMemoryError from error
