"""Bounds on what a request may ask for, checked before vLLM's server parses it. A refusal names the field.

vLLM has bounds of its own and checks most fields against the model. What is refused here, vLLM (0.32.0) lets through, or refuses
only after work that blocks all requests, or after a stream has begun.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from deployments.errors import OutOfBoundsError
from deployments.ingress.grammar_limits import check_choices, check_grammar, check_regex, check_schema
from deployments.ingress.json_schema import check_followed

PROMPTS = 1024
"""Bound on prompts times choices of a completions request."""
ITEMS = {
    "messages": 2048,
    "input": 2048,
    "tools": 128,
    "documents": 128,
    "stop": 16,
    "stop_sequences": 16,
    "bad_words": 128,
    "logit_bias": 1024,
    "stop_token_ids": 1024,
    "allowed_token_ids": 200_000,
}
CHARACTERS = {"stop": 1024, "stop_sequences": 1024, "bad_words": 256}
"""Bounds on the characters of each item."""
NAMES = ("model", "request_id", "session_id", "user", "cache_salt", "previous_response_id")
NAME_CHARACTERS = 256
DEPTH = 64
CONTAINERS = 20_000
PATTERN = 1024
"""Bound on each number in `repetition_detection`, which looks back that far at every token."""
NOT_FOR_CLIENTS = ("kv_transfer_params", "ec_transfer_params")
FORCED = frozenset({"function", "tool", "any"})
"""Types of `tool_choice`, of OpenAI's and Anthropic's APIs, that ask for calls."""
RESERVED = frozenset({*NOT_FOR_CLIENTS, "kv_cache_report_mode", "coat", "satori_repeat", "satori_thought"})
"""Extra arguments of the engine that clients may not set."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Whose messages a chat can have. vLLM leaves it to templates, and most leave out what they do not know."""
EMPTY = ("assistant",)
"""Whose messages may have no content, such as one that only calls tools."""

_NAME = re.compile(r"[!-~]*")
_LONG_NUMBER = re.compile(rb"\d{19}")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_INT64 = range(-(2**63), 2**63)


def check(body: bytes, headers: Mapping[str, str], choices: int, path: str = "/v1/chat/completions") -> None:
    """Raise OutOfBoundsError for a request to `path` that asks for too much, such as more than `choices` replies.

    A body that is not a JSON object passes: vLLM says what is wrong with it.
    """
    _check_headers(headers)
    request = _parsed(body)
    if not isinstance(request, dict):
        return
    if path == "/v1/chat/completions":
        _check_messages(request.get("messages"))
    if path == "/tokenize" and request.get("prompt") is not None and request.get("messages") is not None:
        _refuse("messages", "it cannot be combined with prompt")
    if request.get("background") and path != "/v1/responses":
        _refuse("background", "replies of this API are not kept, so none can be written in the background; leave it out")
    for name in NOT_FOR_CLIENTS:
        if request.get(name) is not None:
            _refuse(name, "not supported here; leave it out")
    for name in RESERVED & _mapping(request, "vllm_xargs").keys():
        _refuse(f"vllm_xargs.{name}", "clients may not set it; leave it out")
    for name in NAMES:
        if isinstance(value := request.get(name), str):
            _check_name(name, value)
    _check_choices(request, choices)
    _check_items(request)
    for name, value in _mapping(request, "repetition_detection").items():
        if _number(value) > PATTERN:
            _refuse(f"repetition_detection.{name}", f"at most {PATTERN} is allowed")
    _check_grammars(request)


def _parsed(body: bytes) -> Any:
    if not json.detect_encoding(body).startswith("utf-8"):
        _refuse(None, "the body is not UTF-8")
    if (containers := _containers(body)) > CONTAINERS and _containers(_STRING.sub(b"", body)) > CONTAINERS:
        _refuse(None, f"the body has more than {CONTAINERS} objects and arrays")
    try:
        parsed = json.loads(body, parse_constant=_not_finite, parse_int=_int64 if _LONG_NUMBER.search(body) else None)
        if _SURROGATE.search(body):
            json.dumps(parsed, ensure_ascii=False).encode()
    except RecursionError:
        _too_deep()
    except UnicodeError:
        _refuse(None, "the body is not valid Unicode text")
    except json.JSONDecodeError:
        return None
    if containers > DEPTH and is_deep(parsed):
        _too_deep()
    return parsed


def is_deep(parsed: Any, most: int = DEPTH) -> bool:
    """Return whether objects and arrays are nested deeper than so many levels."""
    level = [parsed]
    for _ in range(most):
        level = [item for value in level for item in _items(value) if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _containers(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _int64(digits: str) -> int:
    if len(digits) > 20 or (number := int(digits)) not in _INT64:
        _refuse(None, f"the body has a number that is out of range: {digits[:20]}...")
    return number


def _not_finite(name: str) -> NoReturn:
    _refuse(None, f"the body has {name}, which is not JSON")


def _check_headers(headers: Mapping[str, str]) -> None:
    for name in ("x-request-id", "x-session-id"):
        _check_name(name, headers.get(name, ""))
    priority = headers.get("x-vllm-priority", "0")
    if not re.fullmatch(r"\s*[+-]?\d{1,18}\s*", priority):
        _refuse("x-vllm-priority", "allowed: a whole number")


def _check_name(name: str, value: str) -> None:
    if len(value) > NAME_CHARACTERS:
        _refuse(name, f"{len(value)} characters; at most {NAME_CHARACTERS} are allowed")
    if name.endswith("id") and not _NAME.fullmatch(value):
        _refuse(name, "allowed: printable ASCII characters without spaces")


def _check_choices(request: dict[str, Any], limit: int) -> None:
    for name in ("n", "best_of"):
        if _number(value := request.get(name)) > limit:
            _refuse(name, f"{value}; at most {limit} are allowed (http.max_choices)")
    prompts, n = request.get("prompt"), max(1, _number(request.get("n")))
    if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int) and len(prompts) * n > PROMPTS:
        _refuse("prompt", f"{len(prompts) * n:g} prompts times choices (n); at most {PROMPTS} are allowed")


def _check_messages(messages: Any) -> None:
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        role = message.get("role")
        if isinstance(role, str) and role not in ROLES:
            _refuse(f"messages.{number}.role", f"{role[:NAME_CHARACTERS]!r}; allowed: {', '.join(ROLES)}")
        if role in ROLES and role not in EMPTY and message.get("content") is None:
            _refuse(f"messages.{number}.content", "a message of this role needs content")


def _number(value: Any) -> float:
    """Return a number in any form that vLLM's models take for one (129, 129.0, "129"), and 0 for anything else."""
    try:
        return float(value) if isinstance(value, str | int | float) else 0
    except (ValueError, OverflowError):
        return 0


def _check_items(request: dict[str, Any]) -> None:
    for name, limit in ITEMS.items():
        value = request.get(name)
        if isinstance(value, list | dict) and len(value) > limit:
            _refuse(name, f"{len(value)} items; at most {limit} are allowed")
    for name, limit in CHARACTERS.items():
        value = request.get(name)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and len(text) > limit:
                _refuse(name, f"an item has {len(text)} characters; at most {limit} are allowed")


def _check_grammars(request: dict[str, Any]) -> None:
    outputs = _mapping(request, "structured_outputs")
    check_schema(outputs.get("json"), "structured_outputs.json")
    check_schema(outputs.get("structural_tag"), "structured_outputs.structural_tag")
    _check_tag(outputs.get("structural_tag"), "structured_outputs.structural_tag")
    check_regex(outputs.get("regex"), "structured_outputs.regex")
    check_regex(outputs.get("whitespace_pattern"), "structured_outputs.whitespace_pattern")
    check_choices(outputs.get("choice"), "structured_outputs.choice")
    check_grammar(outputs.get("grammar"), "structured_outputs.grammar")
    check_schema(request.get("response_format"), "response_format")
    check_schema(_mapping(request, "text").get("format"), "text.format")
    check_schema(_mapping(request, "output_config").get("format"), "output_config.format")
    check_schema(request.get("tools"), "tools")
    answer = _mapping(request, "response_format")
    _check_tag(answer if answer.get("type") == "structural_tag" else None, "response_format")
    for schema, where in (
        (outputs.get("json"), "structured_outputs.json"),
        (_mapping(answer, "json_schema").get("schema"), "response_format.json_schema.schema"),
        (_mapping(_mapping(request, "text"), "format").get("schema"), "text.format.schema"),
        (_mapping(_mapping(request, "output_config"), "format").get("schema"), "output_config.format.schema"),
    ):
        if schema is not None:
            check_followed(_loaded(schema, where), where)
    if outputs.get("whitespace_pattern") is not None:
        _refuse("structured_outputs.whitespace_pattern", "not followed; leave it out")
    forced = _check_tools(request)
    if outputs and answer.get("type", "text") != "text":
        _refuse("structured_outputs", "it cannot be combined with response_format: a reply has one format")
    for name in ("use_beam_search", "echo") if "messages" in request else ("use_beam_search",):
        if request.get(name) and (forced or outputs or answer.get("type", "text") != "text"):
            _refuse(name, "it cannot be combined with structured output (response_format, structured_outputs, tool_choice)")


def _check_tools(request: dict[str, Any]) -> bool:
    """Return whether calls are asked for; check the schemas of their arguments, which they will follow."""
    choice, tools = request.get("tool_choice"), request.get("tools")
    if not isinstance(tools, list) or not (choice == "required" or (isinstance(choice, dict) and choice.get("type") in FORCED)):
        return False
    for name, value in (
        ("response_format", _mapping(request, "response_format")),
        ("structured_outputs", _mapping(request, "structured_outputs")),
        ("text.format", _mapping(_mapping(request, "text"), "format")),
        ("output_config.format", _mapping(_mapping(request, "output_config"), "format")),
    ):
        if value and value.get("type") != "text":
            _refuse(name, "it cannot be combined with tool_choice: a reply is calls or an answer in a format")
    for number, tool in enumerate(tools):
        if isinstance(tool, dict):
            for holder, name in ((_mapping(tool, "function"), "function.parameters"), (tool, "parameters"), (tool, "input_schema")):
                if (schema := holder.get(name.rpartition(".")[2])) is not None:
                    check_followed(schema, f"tools.{number}.{name}")
    return True


def _check_tag(tag: Any, where: str) -> None:
    """Check the schemas in a structural tag of the form that is followed: with `structures` and `triggers`."""
    if tag is None:
        return
    tag = _loaded(tag, where)
    if not isinstance(tag, dict) or not isinstance(structures := tag.get("structures"), list):
        _refuse(where, "only structural tags with `structures` and `triggers` are followed")
    for number, structure in enumerate(structures):
        if isinstance(structure, dict) and isinstance(schema := structure.get("schema"), dict):
            check_followed(schema, f"{where}.structures.{number}.schema")


def _loaded(value: Any, where: str) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        _refuse(where, "it is not JSON")


def _mapping(request: dict[str, Any], name: str) -> dict[str, Any]:
    value = request.get(name)
    return value if isinstance(value, dict) else {}


def _too_deep() -> NoReturn:
    _refuse(None, f"the body is nested deeper than {DEPTH} levels")


def _refuse(param: str | None, message: str) -> NoReturn:
    raise OutOfBoundsError(param, message)
