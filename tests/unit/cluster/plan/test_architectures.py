"""A model's shape: parameters as transformers counts them, headers of safetensors, errors that name what is missing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.plan import architectures
from cluster.plan.architectures import PlanError, shape

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}


def config(architecture: str, **fields: Any) -> dict[str, Any]:
    return SMALL | {"architectures": [architecture]} | fields


@pytest.mark.parametrize(
    "given",
    [
        config("Qwen2ForCausalLM"),
        config("Qwen2ForCausalLM", tie_word_embeddings=True),
        config("LlamaForCausalLM"),
        config("LlamaForCausalLM", attention_bias=True, mlp_bias=True),
        config("MistralForCausalLM", head_dim=32),
        config("Qwen3ForCausalLM", head_dim=32, tie_word_embeddings=True),
    ],
    ids=lambda given: "-".join([given["architectures"][0], *given.keys() - SMALL.keys() - {"architectures"}]),
)
def test_parameters_are_those_that_transformers_counts(given: dict[str, Any]) -> None:
    import torch
    import transformers

    name = given["architectures"][0].removesuffix("ForCausalLM")
    fields = {key: value for key, value in given.items() if key != "architectures"}
    fields.setdefault("tie_word_embeddings", False)
    with torch.device("meta"):
        model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**fields))
    assert shape(given).parameters == sum(parameter.numel() for parameter in model.parameters())


def test_the_embedded_model_is_read_from_its_headers(nano: Path) -> None:
    found = architectures.load(str(nano))
    assert found.source == "from the safetensors' headers"
    assert found.parameters == shape(json.loads((nano / "config.json").read_text())).parameters
    assert (found.layers, found.kv_heads, found.head_dim, found.tied, found.windowed_layers) == (4, 4, 64, True, 0)


def test_a_checkpoint_that_differs_from_its_config_is_told_of(nano: Path, tmp_path: Path) -> None:
    shutil.copy(nano / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(json.loads((nano / "config.json").read_text()) | {"vocab_size": 2048}))
    found = architectures.load(str(tmp_path))
    assert found.parameters == 3_478_784
    assert "config.json's arithmetic gives 3,740,928" in found.source


def test_a_window_bounds_what_its_layers_keep() -> None:
    mixed = shape(config("Qwen2ForCausalLM", sliding_window=16, layer_types=["full_attention", *["sliding_attention"] * 2]))
    assert mixed.windowed_layers == 2
    a_layer = 2 * 2 * 16
    assert mixed.kv_values(10) == 3 * a_layer * 10
    assert mixed.kv_values(100) == a_layer * (100 + 16 + 16)
    assert shape(config("MistralForCausalLM", sliding_window=16)).windowed_layers == 3
    assert shape(config("MistralForCausalLM", sliding_window=None)).windowed_layers == 0
    assert shape(config("Qwen2ForCausalLM", sliding_window=16, use_sliding_window=False)).windowed_layers == 0
    assert shape(config("Qwen2ForCausalLM", sliding_window=16, use_sliding_window=True, max_window_layers=1)).windowed_layers == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["architectures=None", "allowed: LlamaForCausalLM"]),
        (config("MambaForCausalLM"), ["architectures='MambaForCausalLM'", "not known", "Qwen2ForCausalLM"]),
        (config("Qwen2ForCausalLM", hidden_size=None), ["hidden_size=None", "whole number"]),
        (config("Qwen2ForCausalLM", num_hidden_layers="3"), ["num_hidden_layers='3'", "whole number"]),
        (config("Qwen2ForCausalLM", num_key_value_heads=3), ["num_key_value_heads=3", "divisor of num_attention_heads=4"]),
        (config("Qwen2ForCausalLM", head_dim=32), ["head_dim=32", "num_attention_heads = 16"]),
        (config("Qwen2ForCausalLM", quantization_config={"quant_method": "awq"}), ["quantization_config='awq'", "not planned"]),
    ],
)
def test_what_a_config_lacks_is_named(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(PlanError) as error:
        shape(given)
    for word in words:
        assert word in str(error.value)


def test_a_directory_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"has no config\.json"):
        architectures.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PlanError, match="is no JSON"):
        architectures.load(str(tmp_path))


def test_an_id_without_the_hub_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PlanError, match=r"model='someone/something': its .* could not be had"):
        architectures.load("someone/something")


def test_an_id_is_read_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import types

    import huggingface_hub

    (tmp_path / "config.json").write_text(json.dumps(config("Qwen2ForCausalLM")))
    headers = types.SimpleNamespace(parameter_count={"BF16": 100_000, "F32": 1_000})
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name: str(tmp_path / name))
    monkeypatch.setattr(huggingface_hub.HfApi, "get_safetensors_metadata", lambda self, repo: headers)
    assert architectures.load("someone/something").parameters == 101_000
