"""Fifty users of one UI process: each has a reply of their own, and only those with trouble have trouble."""

import asyncio
import json
from typing import Any

import httpx

from tests.scripted_api import Background, ScriptedApi
from ui.app import asgi

USERS = 50
TROUBLED = 7  # each seventh


async def ask0(http: httpx.AsyncClient) -> tuple[int, int]:
    """Return the number of the event by which the chat asks, and of the component that triggers it."""
    config = (await http.get("/ui/config")).json()
    for dependency in config["dependencies"]:
        for component, event in dependency["targets"]:
            if event == "ask0":
                return dependency["id"], component
    raise AssertionError("the page has no event ask0")


async def use(http: httpx.AsyncClient, event: tuple[int, int], user: int) -> list[Any]:
    """Ask as the page does; return all messages about the reply."""
    text = f"What is {user} + 1?" + (" trouble: failed" if user % TROUBLED == 0 else "")
    question = {"id": f"turn-{user}", "messages": [{"role": "user", "content": text}]}
    number, component = event
    session = f"session-{user}"
    body = {"data": [], "event_data": question, "fn_index": number, "trigger_id": component, "session_hash": session}
    (await http.post("/ui/gradio_api/queue/join", json=body)).raise_for_status()
    outputs = []
    async with http.stream("GET", "/ui/gradio_api/queue/data", params={"session_hash": session}) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            message = json.loads(line.removeprefix("data:"))
            if message["msg"] == "process_generating":
                outputs.append(message["output"]["data"][0])
            if message["msg"] == "close_stream":
                return outputs
    raise AssertionError("the stream ended without its end")


async def test_fifty_users_at_once() -> None:
    api = ScriptedApi()
    api.gate.close()
    server = Background(api.app)
    ui = Background(asgi(server.url))
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=ui.url, timeout=60, limits=limits, trust_env=False) as http:
        event = await ask0(http)
        users = [asyncio.create_task(use(http, event, user)) for user in range(USERS)]
        fine = USERS - len(range(0, USERS, TROUBLED))
        async with asyncio.timeout(60):
            while api.open_streams < fine:  # all at the same time
                await asyncio.sleep(0.01)
        api.gate.open()
        replies = await asyncio.gather(*users)
    for user, outputs in enumerate(replies):
        text = json.dumps(outputs)
        assert outputs[0]["id"] == f"turn-{user}"
        assert sum(f"turn-{other}" in text for other in range(USERS) if not f"turn-{user}".startswith(f"turn-{other}")) == 0
        assert ("the engine fell over" in text) == (user % TROUBLED == 0)
        assert ("boxed" in text) == (user % TROUBLED != 0)
    assert sorted(asked["messages"][0]["content"].split(" trouble")[0] for asked in api.asked) == sorted(
        f"What is {user} + 1?" for user in range(USERS)
    )
    ui.stop()
    server.stop()
