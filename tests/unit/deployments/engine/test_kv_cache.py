"""A KV cache on a CPU: vLLM's own allocation, with memory that is taken as it is used."""

import psutil
import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, KVCacheTensor
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker import gpu_model_runner

from deployments.engine import kv_cache

SIZE = 256 * 2**20


def taken() -> int:
    """Return how much memory this process has, in bytes."""
    return int(psutil.Process().memory_info().rss)


def test_zeros_take_memory_when_they_are_written_to() -> None:
    before = taken()
    zeros = kv_cache.lazy_zeros(SIZE // 4, torch.float32)
    assert taken() - before < SIZE / 8
    assert zeros.shape == (SIZE // 4,)
    assert zeros[:: 2**20].eq(0).all()
    zeros[: SIZE // 8] = 1
    assert taken() - before > SIZE / 4
    assert zeros[SIZE // 8 - 1 : SIZE // 8 + 1].tolist() == [1, 0]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM with the patch, which goes with the test."""
    monkeypatch.setattr(gpu_model_runner, "allocate_kv_cache", gpu_model_runner.allocate_kv_cache)
    kv_cache.install()


@pytest.mark.usefixtures("installed")
def test_what_vllm_allocates_on_a_cpu_is_such_memory() -> None:
    spec = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.float32)
    page = spec.page_size_bytes
    blocks = SIZE // page // 2
    tensor = KVCacheTensor(size=SIZE, layers=["0", "1"], layer_stride=page * blocks, block_stride=page)
    config = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[tensor], kv_cache_groups=[KVCacheGroupSpec(["0", "1"], spec)])
    before = taken()
    cache = gpu_model_runner.allocate_kv_cache(config, torch.device("cpu"), KVCacheLayout.LBHNC)
    assert taken() - before < SIZE / 8
    assert sum(one.numel() * one.element_size() for one in cache.values()) == SIZE
    assert cache["0"].dtype == torch.float32
    cache["0"].fill_(1)
    assert not cache["1"].any(), "each layer has memory of its own"
    assert torch.zeros(3).tolist() == [0, 0, 0]
