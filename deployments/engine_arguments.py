"""vLLM's own arguments as settings (`engine.*`, `api.*`): the catalogue of all arguments, and the check of the given ones."""

import difflib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ARGUMENTS = Path(__file__).parent / "engine_arguments.json"
REFUSED = {
    "api_key": "vLLM would keep and log keys in the clear; allowed: access.keys, a file of keys' digests",
    "cohere_format": "Cohere's API is not served here",
    "cohere_is_reasoning_model": "Cohere's API is not served here",
    "enable_flash_late_interaction": "it is for pooling models, which are not served here",
    "enable_scale_out": "its routes control the engine; allowed: autoscaling.* and llm.num_replicas",
    "tool_server": "tools that the server itself runs are not supported here",
}
"""Arguments of vLLM's API server that would do nothing here, or harm, each with why and what to set instead."""


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
        if section == "api" and name in REFUSED:
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
