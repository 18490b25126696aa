"""vLLM's arguments from our settings, with the installed vLLM's own parser."""

import pytest

from deployments import settings
from deployments.engine.arguments import server_arguments, server_words


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
            "api.allowed_origins": '["https://a.example", "https://b.example"]',
            "api.allowed_methods": "GET",
            "api.middleware": ["one.Two", "three.Four"],
        }
    )
    arguments = server_arguments(loaded)
    assert arguments.max_model_len == 2000
    assert arguments.hf_overrides == {"rope_theta": 5}
    assert arguments.enable_prefix_caching is False
    assert arguments.seed == 7
    assert arguments.enable_auto_tool_choice is True
    assert arguments.tool_call_parser == "hermes"
    assert arguments.allowed_origins == ["https://a.example", "https://b.example"]
    assert arguments.allowed_methods == ["GET"]
    assert arguments.middleware == ["one.Two", "three.Four"]


def test_unset_values_are_left_to_vllm() -> None:
    loaded = settings.load({"preset": "nano-cpu", "engine.max_num_seqs": "None"})
    assert "--max-num-seqs" not in server_words(loaded)
