"""vLLM's configuration from our settings, with the installed vLLM's own classes."""

import pytest
import torch
from vllm import envs

from deployments import settings
from deployments.engine.arguments import server_arguments
from deployments.engine.config import frontend_config, prepare


def test_the_frontend_has_what_it_reads() -> None:
    loaded = settings.load({"preset": "nano-cpu", "engine.max_model_len": "1024", "engine.stream_interval": "3"})
    config = frontend_config(server_arguments(loaded))
    assert config.model_config.max_model_len == 1024
    assert config.scheduler_config.stream_interval == 3


@pytest.mark.parametrize("preset", settings.presets())
def test_no_preset_needs_a_device_in_the_frontend(preset: str) -> None:
    loaded = settings.load({"preset": preset, "model": "models/nano"})
    assert frontend_config(server_arguments(loaded)).model_config.quantization is None


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without the variables that `prepare` sets, and that is as it was afterwards."""
    for name in ("VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL", "VLLM_USE_FLASHINFER_SAMPLER", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_no_sampler_is_compiled_where_there_is_no_nvcc(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.32.0 asks the card whether FlashInfer's sampler runs on it, and then compiles it; nobody asks for the compiler."""
    from vllm.v1.sample.ops import topk_topp_sampler

    monkeypatch.setattr(type(topk_topp_sampler.current_platform), "is_cuda", lambda self: True)
    assert envs.VLLM_USE_FLASHINFER_SAMPLER, "vLLM's own choice"
    prepare({})
    assert not topk_topp_sampler.flashinfer_sampler_supported()
    prepare({"VLLM_USE_FLASHINFER_SAMPLER": "1"})
    assert envs.VLLM_USE_FLASHINFER_SAMPLER, "what the settings say wins"


@pytest.mark.parametrize("preset", [name for name in settings.presets() if settings.load({"preset": name}).llm.num_gpus])
def test_attention_runs_on_an_rtx_4090_without_nvcc(preset: str) -> None:
    """A backend that is chosen by name must fit; without a name, vLLM takes FlashAttention, whose kernels are in its wheel."""
    from vllm.platforms.interface import DeviceCapability
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    engine = settings.load({"preset": preset}).engine
    name = engine.get("attention_backend", "FLASH_ATTN")
    assert name in ("FLASH_ATTN", "TRITON_ATTN"), "all others are compiled with nvcc, or are not for this card"
    backend = AttentionBackendEnum[name].get_class()
    assert backend.supports_compute_capability(DeviceCapability(8, 9))
    assert backend.supports_dtype(getattr(torch, engine["dtype"]))
    assert backend.supports_kv_cache_dtype(engine.get("kv_cache_dtype", "auto"))
