"""Language models that are laid over several devices: whole layers on each, by accelerate.

A forward goes from device to device. What no device has room for stays in memory, or in the checkpoint's
files where the device is the CPU itself, and is brought for its part of each forward.
"""

from __future__ import annotations

from typing import Any

from models.protocol import ModelSpec

_STAYS = ("cpu", "disk")


def layout(spec: ModelSpec) -> dict[str, Any]:
    """How `from_pretrained` lays a model out. Raises `ValueError` where nothing tells."""
    if spec.offload and not spec.room:
        raise ValueError(f"{spec.name}: for offload, give its `memory` in the catalog, or pull it first")
    if not spec.room:
        return {"device_map": {"": spec.device}}
    room = {_accelerate_name(device): size for device, size in spec.room.items()}
    return {"device_map": "auto", "max_memory": room}


def check_layout(spec: ModelSpec, model: Any) -> None:
    """Raises `ValueError` where weights had no room: accelerate leaves them in memory or files by itself."""
    devices = {str(device) for device in getattr(model, "hf_device_map", {}).values()}
    left = devices & set(_STAYS) - {spec.device}
    if left and not spec.offload:
        rooms = ", ".join(f"{size / 2**30:.2f} GiB on {device}" for device, size in spec.room.items())
        raise ValueError(
            f"{spec.name} has room for {rooms}, which is too little; `offload: true` allows more"
        )


def _accelerate_name(device: str) -> int | str:
    kind, _, number = device.partition(":")
    return kind if kind == "cpu" else int(number or 0)
