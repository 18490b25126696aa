"""vLLM's own arguments as settings (`engine.*`, `api.*`): the catalogue of all arguments, and the check of the given ones."""

import difflib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ARGUMENTS = Path(__file__).parent / "engine_arguments.json"
_CONTROL = "what it prepares is done by routes that control the engine, which are not served here"
_POOLING = "it is for pooling models, which are not served here"
_ADAPTERS = "adapters (LoRA) are not served here; allowed: a model into which one is merged"
_OWN_REPLICAS = "it is for vLLM's own copies of an engine; allowed: llm.num_replicas"
REFUSED = {
    "aggregate_engine_logging": _OWN_REPLICAS,
    "default_mm_loras": _ADAPTERS,
    "elastic_ep_max_dp_size": _OWN_REPLICAS,
    "enable_fault_tolerance": _OWN_REPLICAS,
    "enable_lora": _ADAPTERS,
    "enable_mixed_moe_lora_format": _ADAPTERS,
    "enable_moe_shared_loras": _ADAPTERS,
    "enable_sleep_mode": _CONTROL,
    "enable_tower_connector_lora": _ADAPTERS,
    "fault_tolerance_config": _OWN_REPLICAS,
    "fully_sharded_loras": _ADAPTERS,
    "io_processor_plugin": _POOLING,
    "lora_dtype": _ADAPTERS,
    "lora_modules": _ADAPTERS,
    "lora_target_modules": _ADAPTERS,
    "max_cpu_loras": _ADAPTERS,
    "max_lora_cls_labels": _ADAPTERS,
    "max_lora_rank": _ADAPTERS,
    "max_loras": _ADAPTERS,
    "pooler_config": _POOLING,
    "profiler_config": _CONTROL,
    "skip_tokenizer_init": "the ingress needs the model's tokenizer",
    "sleep_mode_offload_cudagraph": _CONTROL,
    "sleep_preserve_parameter_names": _CONTROL,
    "specialize_active_lora": _ADAPTERS,
    "tokens_only": "the ingress needs the model's tokenizer",
    "weight_transfer_config": _CONTROL,
    "api_key": "vLLM would keep and log keys in the clear; allowed: access.keys, a file of keys' digests",
    "cohere_format": "Cohere's API is not served here",
    "cohere_is_reasoning_model": "Cohere's API is not served here",
    "enable_flash_late_interaction": _POOLING,
    "enable_offline_docs": "/docs loads nothing from elsewhere as it is",
    "enable_scale_out": "its routes control the engine; allowed: autoscaling.* and llm.num_replicas",
    "tool_server": "tools that the server itself runs are not supported here",
}
"""vLLM's arguments that would do nothing here, or harm, each with why and what to set instead."""


@cache
def _catalogue() -> dict[str, dict[str, dict[str, Any]]]:
    loaded: dict[str, dict[str, dict[str, Any]]] = json.loads(ARGUMENTS.read_text())
    return loaded


def check_arguments(section: str, given: Any) -> tuple[dict[str, Any], list[str]]:
    """Return vLLM's arguments with typed values, and a line for each that is unknown or has a wrong value."""
    if not isinstance(given, Mapping):
        return {}, [f"{section}={given!r}: not a mapping; allowed: {section}.NAME=VALUE"]
    known, checked, problems = _catalogue()[section], {}, []
    for name, value in given.items():
        near = [] if name in known else difflib.get_close_matches(name, known, n=3)
        if "api_key" in (name, *near):  # the value is a secret: not shown
            problems.append(f"{section}.{name}: {REFUSED['api_key']}")
            continue
        if name in known and name in REFUSED:
            problems.append(f"{section}.{name}={value!r}: {REFUSED[name]}")
            continue
        if name not in known:
            hint = f"near: {', '.join(near)}; " if near else ""
            problems.append(f"{section}.{name}={value!r}: unknown key; {hint}allowed: vLLM's {section} arguments")
            continue
        try:
            checked[name] = _convert(value, **known[name])
        except ValueError as error:
            problems.append(f"{section}.{name}={value!r}: {error}")
    return checked, problems


def kind(name: str) -> str:
    """Return the type of one of vLLM's arguments, as `dev/engine_arguments.py` names types."""
    return next((arguments[name]["type"] for arguments in _catalogue().values() if name in arguments), "any")


def _convert(value: Any, type: str, choices: list[str] | None = None) -> Any:
    """Return `value` as vLLM's argument type; a word from the command line is parsed. Raises ValueError."""
    if value is None or value == "None":
        return None
    word = str(value)
    if choices and word not in choices:
        raise ValueError(f"allowed: {', '.join(choices)}")
    if type == "bool":
        if word.lower() not in ("true", "false"):
            raise ValueError("allowed: true or false")
        return word.lower() == "true"
    if type == "int" and not re.fullmatch(r"[+-]?\d+", word):
        raise ValueError("allowed: a whole number")
    if type == "float":
        try:
            return float(word)
        except ValueError:
            raise ValueError("allowed: a number") from None
    if type == "size_or_auto" and word in ("auto", "-1"):
        return value
    if type.startswith("size") and not re.fullmatch(r"\d+|\d+(\.\d+)?[kKmMgGtT]", word):
        raise ValueError("allowed: a whole number, or one with a unit such as 32k" + (", or auto" * (type != "size")))
    if type in ("json_list", "repeated") and not isinstance(value, list) and not word.startswith("["):
        return [value]
    if type not in ("int", "str") and isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"not valid JSON ({error}); allowed: JSON") from None
    return int(word) if type != "any" and re.fullmatch(r"[+-]?\d+", word) else value
