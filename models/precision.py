"""What `precision: auto` is."""

from __future__ import annotations

from pathlib import Path

from models.catalog import Modality


def automatic(modality: Modality, device: str) -> str:
    """bfloat16 where the hardware multiplies it faster: on a GPU, and pictures on a CPU with AMX."""
    faster = device != "cpu" or (modality is Modality.IMAGE and has_amx())
    return "bfloat16" if faster else "float32"


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies matrices of bfloat16 in tiles; False where that cannot be read."""
    try:
        return "amx_bf16" in cpuinfo.read_text(encoding="utf-8").split()
    except OSError:
        return False
