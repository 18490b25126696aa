"""A user of the web UI without a browser: the requests that Gradio's page makes."""

import json
from typing import Any

import httpx


async def ask0(http: httpx.AsyncClient) -> tuple[int, int]:
    """Return the number of the event by which the chat asks, and of the component that triggers it."""
    config = (await http.get("/ui/config")).json()
    for dependency in config["dependencies"]:
        for component, event in dependency["targets"]:
            if event == "ask0":
                return dependency["id"], component
    raise AssertionError("the page has no event ask0")


async def use(http: httpx.AsyncClient, event: tuple[int, int], user: int, text: str) -> list[Any]:
    """Ask as the page does; return all messages about the reply."""
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
