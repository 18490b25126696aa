"""vLLM's configuration from our settings, with the installed vLLM's own parser and classes."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from deployments import settings, sharing, weights
from deployments.engine import download, frontend_config, server_arguments, server_words

ROOT = Path(__file__).parent.parent.parent


def test_the_list_of_arguments_is_that_of_the_installed_vllm() -> None:
    spec = importlib.util.spec_from_file_location("engine_arguments", ROOT / "dev" / "engine_arguments.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert json.loads(settings.ARGUMENTS.read_text()) == module.catalogue()


@pytest.mark.parametrize("preset", settings.presets())
def test_presets_make_valid_engine_arguments(preset: str) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    loaded = settings.load({"preset": preset})
    arguments = AsyncEngineArgs.from_cli_args(server_arguments(loaded))
    assert arguments.model == loaded.model
    for name, value in loaded.engine.items():
        assert getattr(arguments, name) == value, name


def test_values_of_all_kinds_reach_vllm() -> None:
    loaded = settings.load(
        {
            "preset": "nano-cpu",
            "engine.max_model_len": "2k",
            "engine.hf_overrides": '{"rope_theta": 5}',
            "engine.enable_prefix_caching": "false",
            "engine.seed": "7",
            "api.enable_auto_tool_choice": "true",
            "api.tool_call_parser": "hermes",
        }
    )
    arguments = server_arguments(loaded)
    assert arguments.max_model_len == 2000
    assert arguments.hf_overrides == {"rope_theta": 5}
    assert arguments.enable_prefix_caching is False
    assert arguments.seed == 7
    assert arguments.enable_auto_tool_choice is True
    assert arguments.tool_call_parser == "hermes"


def test_unset_values_are_left_to_vllm() -> None:
    loaded = settings.load({"preset": "nano-cpu", "engine.max_num_seqs": "None"})
    assert "--max-num-seqs" not in server_words(loaded)


def test_the_frontend_has_what_it_reads() -> None:
    loaded = settings.load({"preset": "nano-cpu", "engine.max_model_len": "1024", "engine.stream_interval": "3"})
    config = frontend_config(server_arguments(loaded))
    assert config.model_config.max_model_len == 1024
    assert config.scheduler_config.stream_interval == 3


def test_a_quantized_preset_needs_no_device_in_the_frontend() -> None:
    loaded = settings.load({"preset": "nano-cpu", "engine.quantization": "fp8", "engine.kv_cache_dtype": "fp8"})
    assert frontend_config(server_arguments(loaded)).model_config.quantization is None


def test_a_models_directory_takes_the_place_of_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetch(store: weights.Store, hub: weights.Hub, patterns: list[str], tell: Any) -> Path:
        asked.append((store.key, vars(hub), patterns))
        return Path("/data/snapshots/c0ffee")

    monkeypatch.setattr(sharing, "fetch", fetch)
    given = {"preset": "nano-cpu", "model": "owner/name", "engine.revision": "v2", "engine.download_dir": "/data"}
    loaded = settings.load(given | {"weights.mirror": "http://mirror"})
    found = download(loaded, print)
    assert download(loaded, print, weights=False) == found == loaded.model_copy(update={"model": "/data/snapshots/c0ffee"})
    [(key, hub, patterns), (_, _, fewer)] = asked
    assert key == ("owner/name", "v2", "/data")
    assert hub == {"name": "http://mirror", "_model": "owner/name", "_revision": "v2", "_endpoint": "http://mirror"}
    assert set(patterns) - set(fewer) == {"*.safetensors"}
