"""Two UI and two ingress replicas on the real stack: fifty users at once, each on the UI replica that knows their session."""

import asyncio
import contextlib
import json

import httpx
import psutil
from conftest import Served

from tests.page_user import ask0, use

ARGUMENTS = ("ui.num_replicas=2", "ingress.num_replicas=2", "llm.num_cpus=0.4", "ingress.num_cpus=0.4")
USERS = 50


def ui_seconds(served: Served) -> dict[int, float]:
    """Return the CPU seconds of each UI replica by process id."""
    found = {}
    for process in served.processes():
        with contextlib.suppress(psutil.Error):
            if "ServeReplica:default:UI" in " ".join(process.cmdline()):
                found[process.pid] = process.cpu_times().user
    return found


async def ask(served: Served, user: int) -> str:
    """Ask as one browser, with cookies of its own; return the states of the reply, as Gradio sends their changes."""
    async with httpx.AsyncClient(base_url=served.url, timeout=120, trust_env=False) as http:
        (await http.get("/ui/")).raise_for_status()
        event = await ask0(http)
        return json.dumps(await use(http, event, user, f"What is {100 + user} + 5?"))


async def test_fifty_users_of_two_replicas(served: Served) -> None:
    before = ui_seconds(served)
    assert len(before) == 2
    replies = await asyncio.gather(*(ask(served, user) for user in range(USERS)))
    for user, reply in enumerate(replies):
        assert f'["answer"], "{105 + user}"]' in reply, reply
    after = ui_seconds(served)
    assert all(after[process] > before[process] for process in before), "both replicas had users"
