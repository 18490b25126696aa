"""vLLM's configuration from our settings, with the installed vLLM's own classes."""

from deployments import settings
from deployments.engine.arguments import server_arguments
from deployments.engine.config import frontend_config


def test_the_frontend_has_what_it_reads() -> None:
    loaded = settings.load({"preset": "nano-cpu", "engine.max_model_len": "1024", "engine.stream_interval": "3"})
    config = frontend_config(server_arguments(loaded))
    assert config.model_config.max_model_len == 1024
    assert config.scheduler_config.stream_interval == 3


def test_a_quantized_preset_needs_no_device_in_the_frontend() -> None:
    loaded = settings.load({"preset": "nano-cpu", "engine.quantization": "fp8", "engine.kv_cache_dtype": "fp8"})
    assert frontend_config(server_arguments(loaded)).model_config.quantization is None
