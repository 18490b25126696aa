"""What replies cost: in the usage of each API, and nowhere else."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from deployments.access.keys import KeyStore, digest
from deployments.ingress.middleware.access import Access, Guard

CHAT = {"prompt_tokens": 1000, "total_tokens": 1500, "completion_tokens": 500}
OTHER = {"input_tokens": 1000, "output_tokens": 500}
COST = 0.0015
"""At 0.5 for a million tokens of prompts, and 2 for completions."""


def event(data: Any, name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


async def answer(tmp_path: Path, key: str, *pieces: bytes, kind: str = "text/event-stream", status: int = 200) -> httpx.Response:
    """Answer a request of Alice, whose key has prices, or of Bob, whose key has none; several pieces are a stream."""

    async def endpoint(request: Request) -> Response:
        async def stream() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return (
            StreamingResponse(stream(), media_type=kind) if kind != "application/json" else Response(pieces[0], status, None, kind)
        )

    alice = {"name": "alice", "sha256": digest("alice"), "prompt_price": 0.5, "completion_price": 2}
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump({"keys": [alice, {"name": "bob", "sha256": digest("bob")}]}))
    app = Access(Starlette(routes=[Route("/v1", endpoint, methods=["POST"])]), Guard(KeyStore(str(path), None)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        return await http.post("/v1", headers={"x-api-key": key})


@pytest.mark.parametrize("usage", [CHAT, OTHER])
async def test_a_reply_says_what_it_costs(tmp_path: Path, usage: dict[str, int]) -> None:
    body = {"text": '"usage":{"prompt_tokens":1} 检查', "usage": usage, "metadata": None}
    given = JSONResponse(body).body
    response = await answer(tmp_path, "alice", bytes(given), kind="application/json")
    assert response.json() == body | {"usage": usage | {"cost": COST}}
    assert int(response.headers["content-length"]) == len(response.content)
    unpriced = await answer(tmp_path, "bob", bytes(given), kind="application/json")
    assert unpriced.content == given


@pytest.mark.parametrize(
    ("usage", "with_cost"),
    [
        (event({"choices": [], "usage": CHAT}), event({"choices": [], "usage": CHAT | {"cost": COST}})),
        (
            event({"type": "x", "response": {"id": "r", "usage": OTHER}}, "response.completed"),
            event({"type": "x", "response": {"id": "r", "usage": OTHER | {"cost": COST}}}, "response.completed"),
        ),
        (
            event({"delta": {}, "usage": OTHER}, "message_delta") + event({}, "message_stop"),
            event({"delta": {}, "usage": OTHER | {"cost": COST}}, "message_delta") + event({}, "message_stop"),
        ),
    ],
)
async def test_the_event_with_the_usage_says_what_a_stream_costs(tmp_path: Path, usage: bytes, with_cost: bytes) -> None:
    """All others pass as they are: those without, those that only write about it, and comments."""
    others = [
        event({"choices": [{"delta": '"usage":{"prompt_tokens":1}'}], "usage": None}),
        b": a comment\n\n",
        b"data: [DONE]\n\n",
    ]
    response = await answer(tmp_path, "alice", *others, usage, *others)
    assert response.content == b"".join([*others, with_cost, *others])
    unpriced = await answer(tmp_path, "bob", *others, usage)
    assert unpriced.content == b"".join([*others, usage])


@pytest.mark.parametrize("body", [b'{"usage":', b'{"usage":7}', b'["usage":]', b'{"usage":{"total":1}}', b'"usage":', b""])
async def test_what_says_no_usage_passes_as_it_is(tmp_path: Path, body: bytes) -> None:
    assert (await answer(tmp_path, "alice", body, kind="application/json")).content == body
    assert (await answer(tmp_path, "alice", b"data: " + body)).content == b"data: " + body


async def test_errors_and_other_kinds_pass_as_they_are(tmp_path: Path) -> None:
    body = json.dumps({"usage": CHAT}).replace(" ", "").encode()
    refused = await answer(tmp_path, "alice", body, kind="application/json", status=400)
    assert (refused.status_code, refused.content) == (400, body)
    assert (await answer(tmp_path, "alice", body, body, kind="text/plain")).content == body + body
