"""Texts in parts: a message's consecutive texts are one text, joined as they are, as with OpenAI and Anthropic.

vLLM (0.32.0) puts a line break between them where a template takes a message's content as one text, so that "What is 12" and
" + 30?" were two lines; and of a former reply in a Responses request it reads the first part only.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from openai.types.responses import ResponseReasoningItem
from vllm.exceptions import VLLMValidationError

TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""The kinds of parts that are texts, each with the field of its text."""
BESIDE = frozenset({"type", "annotations", "logprobs", "cache_control", "prompt_cache_breakpoint"})
"""What may stand beside a text, and is not read here. A template may read other fields, so parts with such stay apart."""


def joined(messages: Iterable[Any]) -> list[Any]:
    """Return a chat's messages, with the consecutive texts of each as one. The argument stays as it is."""
    return [
        {**message, "content": _parts(message["content"])}
        if isinstance(message, Mapping) and _is_parts(message.get("content"))
        else message  # vLLM takes objects of openai-harmony, too
        for message in messages
    ]


def _is_parts(content: Any) -> bool:
    """Return whether a content is in parts; pydantic may have made an iterator of them, which vLLM reads once."""
    return isinstance(content, Iterable) and not isinstance(content, str | Mapping)


def _parts(parts: Iterable[Any]) -> list[Any]:
    made: list[Any] = []
    follows = False
    for part in parts:
        text = _text(part)
        alone = isinstance(part, Mapping) and part.keys() - BESIDE - {"text", "refusal"}
        if text is None or alone:
            made.append(part)
        elif follows:
            made[-1]["text"] += text
        else:
            made.append({"type": "text", "text": text})
        follows = text is not None and not alone
    return made


def _text(part: Any) -> str | None:
    """Return the text of a part, and None for what is no text."""
    text = part.get(TEXTS.get(str(part.get("type")), "")) if isinstance(part, Mapping) else part
    return text if isinstance(text, str) else None


def reading_all_parts(construct: Callable[..., Any]) -> Callable[..., Any]:
    """Return vLLM's `_construct_message_from_response_item`, made to read all parts of a former reply and of its thought."""

    def constructed(item: Any, *arguments: Any, **options: Any) -> Any:
        plain = item if isinstance(item, Mapping) else item.model_dump()
        content = plain.get("content")
        if isinstance(content, list) and plain.get("role") == "assistant":
            item = {"role": "assistant", "content": "".join(map(_reply_text, content))}
        elif isinstance(item, ResponseReasoningItem) and item.content:
            whole = "".join(part.text for part in item.content)
            item = item.model_copy(update={"content": [item.content[0].model_copy(update={"text": whole})]})
        return construct(item, *arguments, **options)

    return constructed


def _reply_text(part: Any) -> str:
    if (text := _text(part)) is None:
        raise VLLMValidationError("input: a message of the assistant has texts only", parameter="input")
    return text
