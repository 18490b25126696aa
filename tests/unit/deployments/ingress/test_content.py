"""Texts in parts, through the ingress' real app: the prompt is that of the whole text, for each API."""

from typing import Any

import pytest
from vllm.tokenizers import get_tokenizer

from deployments.ingress.content import joined
from tests.support.in_process import Server, served
from tests.support.paths import ROOT

TOKENIZER: Any = get_tokenizer(str(ROOT / "models" / "nano"))
PARTS = ["What is 12", " + 30?", "\n"]


def texts(kind: str = "text") -> list[dict[str, Any]]:
    return [{"type": kind, "text": text} for text in PARTS]


async def prompt(server: Server, path: str, **fields: Any) -> str:
    """Return the text of the prompt that the engine gets."""
    reply = await server.http.post(path, json={"model": "nano", "max_tokens": 2, "max_output_tokens": 2} | fields)
    assert reply.status_code == 200, reply.text
    return str(TOKENIZER.decode(server.core.requests[-1].prompt_token_ids))


async def test_texts_in_parts_are_one_text_in_each_api() -> None:
    async with served() as server:
        whole = await prompt(server, "/v1/chat/completions", messages=[{"role": "user", "content": "".join(PARTS)}])
        assert "What is 12 + 30?\n<|im_end|>" in whole
        parts: list[Any] = [texts(), [{**texts()[0], "cache_control": {"type": "ephemeral"}}, *texts()[1:]]]
        for content in parts:
            assert await prompt(server, "/v1/chat/completions", messages=[{"role": "user", "content": content}]) == whole
        assert await prompt(server, "/v1/messages", messages=[{"role": "user", "content": texts()}]) == whole
        assert await prompt(server, "/v1/responses", input=[{"role": "user", "content": texts("input_text")}]) == whole


async def test_a_former_reply_in_parts_is_read_whole() -> None:
    said: list[Any] = [{"type": "output_text", "text": "42", "annotations": []}, {"type": "refusal", "refusal": ", no more."}]
    again = {"role": "user", "content": "Why?"}
    async with served() as server:
        whole = await prompt(server, "/v1/responses", input=[{"role": "assistant", "content": "42, no more."}, again])
        assert "assistant\n42, no more.<|im_end|>" in whole
        former = {"type": "message", "role": "assistant", "content": said}
        assert await prompt(server, "/v1/responses", input=[former, again]) == whole
        image = {"role": "assistant", "content": [{"type": "input_image", "image_url": "data:,", "detail": "auto"}]}
        refused = await server.http.post("/v1/responses", json={"model": "nano", "input": [image, again]})
        assert refused.status_code == 400, refused.text


async def test_messages_of_other_forms_stay_as_they_are() -> None:
    """Those of openai-harmony are objects, which vLLM takes, too."""
    harmony = {"role": "user", "content": [{"type": "text", "text": "1+1"}], "channel": "final", "recipient": "all"}
    async with served() as server:
        assert (await server.chat(harmony)).status_code == 200
    other = object()
    assert joined([other]) == [other]


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
MARKED = {"type": "text", "text": "c", "mark": 1}


@pytest.mark.parametrize(
    ("content", "made"),
    [
        ("plain", "plain"),
        (None, None),
        ([], []),
        (["a", {"type": "text", "text": "b"}], [{"type": "text", "text": "ab"}]),
        (["a", "b", IMAGE, "c", "d"], [{"type": "text", "text": "ab"}, IMAGE, {"type": "text", "text": "cd"}]),
        (["a", MARKED, "b"], [{"type": "text", "text": "a"}, MARKED, {"type": "text", "text": "b"}]),
        ([{"type": "text"}, {"type": 1}, 5], [{"type": "text"}, {"type": 1}, 5]),
    ],
)
def test_only_texts_that_follow_each_other_are_joined(content: Any, made: Any) -> None:
    given = [{"role": "user", "content": content}]
    kept = repr(given)
    assert joined(given) == [{"role": "user", "content": made}]
    assert repr(given) == kept
