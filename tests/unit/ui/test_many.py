"""Fifty users of one UI process: each has a reply of their own, and only those with trouble have trouble."""

import asyncio
import json

import httpx

from tests.support.page_user import use
from tests.support.scripted_api import Background, ScriptedApi
from tests.support.until import until_async
from ui.app import asgi

USERS = 50
TROUBLED = 7  # each seventh


def asks(user: int) -> str:
    return f"What is {user} + 1?" + (" trouble: failed" if user % TROUBLED == 0 else "")


async def test_fifty_users_at_once() -> None:
    api = ScriptedApi()
    api.gate.close()
    server = Background(api.app)
    ui = Background(asgi(server.url))
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=ui.url, timeout=60, limits=limits, trust_env=False) as http:
        users = [asyncio.create_task(use(http, f"turn-{user}", asks(user))) for user in range(USERS)]
        fine = USERS - len(range(0, USERS, TROUBLED))
        what = f"{fine} streams at the same time"
        await until_async(lambda: api.open_streams, what, 60, holds=lambda streams: streams == fine)
        api.gate.open()
        replies = await asyncio.gather(*users)
    for user, outputs in enumerate(replies):
        text = json.dumps(outputs)
        assert outputs[0]["="]["id"] == f"turn-{user}"
        assert sum(f"turn-{other}" in text for other in range(USERS) if not f"turn-{user}".startswith(f"turn-{other}")) == 0
        assert ("the engine fell over" in text) == (user % TROUBLED == 0)
        assert ("boxed" in text) == (user % TROUBLED != 0)
    assert sorted(asked["messages"][0]["content"].split(" trouble")[0] for asked in api.asked) == sorted(
        f"What is {user} + 1?" for user in range(USERS)
    )
    ui.stop()
    server.stop()
