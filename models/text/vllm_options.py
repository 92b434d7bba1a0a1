"""What vLLM's engine is told at its start: how much of the machine it takes, and what it loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.protocol import ModelSpec
from models.text.vllm_loras import lora_args
from models.text.vllm_weights import weights_args


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """How much of the machine the engine takes."""

    max_waiting: int = 64
    """Jobs beyond those being run; more are refused."""
    gpu_memory_fraction: float = 0.9
    cpu_cache_gib: int = 1
    """Memory for keys and values on a CPU."""
    own_process: bool = True
    """Whether it steps in a process of its own, which spins as it waits for this one; else on a thread, with
    as many as OMP_NUM_THREADS said when torch was imported: vLLM has it fail where that changes later."""
    tensor_parallel: int = 1
    """GPUs that share the model."""


def engine_args(spec: ModelSpec, options: VllmOptions, *, capability: int | None = None) -> dict[str, Any]:
    """Of vLLM's `AsyncEngineArgs`. Raises `ValueError` for a quantization that this vLLM has not.

    `capability`: an NVIDIA card's, as 89 for 8.9; None elsewhere.
    """
    on_cpu = spec.device == "cpu"
    memory = {} if on_cpu else {"gpu_memory_utilization": options.gpu_memory_fraction}
    return {
        **weights_args(spec, capability=capability),
        "max_num_seqs": spec.max_rows,
        "tensor_parallel_size": options.tensor_parallel,
        # Compiling on a CPU needs a C compiler at run time, which a server has not.
        "enforce_eager": on_cpu,
        **lora_args(spec.loras),
        **memory,
    }
