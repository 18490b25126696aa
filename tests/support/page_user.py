"""A user of the web UI without a browser: the requests that the page makes."""

import json
from typing import Any

import httpx


async def use(http: httpx.AsyncClient, question_id: str, text: str) -> list[dict[str, Any]]:
    """Ask as the page does, with an id that nobody has used; return all changes of the reply's state."""
    question = {"id": question_id, "messages": [{"role": "user", "content": text}]}
    async with http.stream("POST", "/ui/ask", json=question) as response:
        response.raise_for_status()
        return [json.loads(line.removeprefix("data: ")) async for line in response.aiter_lines() if line]
