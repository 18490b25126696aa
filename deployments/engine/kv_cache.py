"""A KV cache on a CPU takes memory as requests use it, not when the engine starts."""

import mmap
from typing import TYPE_CHECKING, Any

from deployments.patching import patch, patched

if TYPE_CHECKING:
    import torch


def install() -> None:
    """Have vLLM leave it to Linux to zero a CPU's KV cache: page by page, when it is first written to."""
    import torch
    from vllm.v1.worker import gpu_model_runner

    def allocate(*arguments: Any, **options: Any) -> Any:
        with patched(torch, "zeros", zeros, why="it is what vLLM allocates a KV cache with", until="the patch below goes"):
            return allocate_kv_cache(*arguments, **options)

    def zeros(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return lazy_zeros(size, dtype) if device.type == "cpu" else torch_zeros(size, dtype=dtype, device=device)

    torch_zeros = torch.zeros
    allocate_kv_cache = patch(
        gpu_model_runner,
        "allocate_kv_cache",
        allocate,
        why="vLLM 0.32.0 writes zeros to all of a KV cache at its start: 1 GiB of nano's takes a second or more, and stays taken",
        until="it does not on a CPU",
    )


def lazy_zeros(size: int, dtype: "torch.dtype") -> "torch.Tensor":
    """Return so many zeros, shape (size,), whose pages Linux gives when they are first written to."""
    import torch

    return torch.frombuffer(mmap.mmap(-1, size * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=dtype)
