"""A soak's judgement: which lost requests may be lost, and what fails it."""

import json
import math
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.bench import mixed, soak
from cluster.bench.growth import LIMITS, Watch
from cluster.bench.mixed import ABORT, KINDS, Clients, Outcome
from cluster.bench.soak import NOTICED_S, Kill, Soak, report, write
from cluster.bench.stack import Stack
from tests.unit.cluster.bench.test_growth import series


def made(*outcomes: Outcome, kills: tuple[Kill, ...] = ()) -> Soak:
    clients = Clients("", "m", 1, 1, list(outcomes))
    return Soak(Watch(Stack("", psutil.Process()), []), clients, list(kills))


def broken(kind: str, began: float, ended: float) -> Outcome:
    return Outcome(kind, began, ended, "ReadError", broken=True)


@pytest.mark.parametrize(
    ("outcome", "allowed"),
    [
        (broken("chat stream", 99, 101), True),
        (broken(ABORT, 99, 101), True),
        (broken("chat", 99, 101), False),
        (broken("chat stream", 101, 102), False),
        (broken("chat stream", 99, 101 + NOTICED_S), False),
        (broken("chat stream", 98, 99), False),
        (Outcome("chat stream", 99, 101, "500"), False),
    ],
    ids=["stream", "aborted", "whole", "after", "late", "before", "refused"],
)
def test_which_requests_may_be_lost_with_an_ingress(outcome: Outcome, allowed: bool) -> None:
    run = made(outcome, Outcome("chat", 0, 1), kills=(Kill("ingress", 10, 100, 5), Kill("LLM replica", 20, 150, 5)))
    assert run.lost == (([outcome], []) if allowed else ([], [outcome]))
    assert bool(run.failures) != allowed


def test_what_fails_a_run() -> None:
    run = made(kills=(Kill("ingress", 10, 100, 5), Kill("LLM replica", 20, 150)))
    assert run.failures == []
    run.kills.append(Kill("ingress", 30, 200, math.inf))
    run.left.append("left in ingress a")
    grown = series(2 * LIMITS["memory"], 3600)
    run.watch._series["ingress", 1, "memory"] = grown
    assert [failure[:12] for failure in run.failures] == ["ingress 1: m", "not replaced", "left in ingr"]


def test_the_report_and_the_picture(tmp_path: Path) -> None:
    run = made(Outcome("chat", 0, 1), broken("chat stream", 99, 101), kills=(Kill("ingress", 10, 100, 5),))
    run.watch._series["ingress", 1, "memory"] = series(0, 3600)
    run.watch._series["/tmp", 0, "disk"] = series(0, 3600, "disk", "/tmp", 0)
    write(run, "a machine", tmp_path)
    text = (tmp_path / "soak.md").read_text()
    assert text == report(run, "a machine")
    assert "| chat stream | 1 | 1 | 0 |" in text
    assert "| **all** | 2 | 1 | 0 |" in text
    assert "Killed: ingress after 10 s (whole after 5 s)." in text
    assert "Failed" not in text
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
    assert {one["role"] for one in json.loads((tmp_path / "soak.json").read_text())} == {"ingress", "/tmp"}


def reply(kind: str, body: dict[str, Any], text: str) -> httpx.Response:
    """Return a reply as a server would give it."""
    whole = json.dumps({"choices": [{"message": {"content": text}, "text": text}]})
    last = (KINDS[kind].last or ("",))[-1]
    return httpx.Response(200, text=f"data: {whole}\n\n{last}\n\n" if body["stream"] else whole)


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_of_request(kind: str) -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == KINDS[kind].path
        bodies.append(json.loads(request.content))
        return reply(kind, bodies[-1], "well" if len(bodies) < 3 else "otherwise")

    clients = Clients("http://test", "m", 1, 1)
    async with httpx.AsyncClient(base_url="http://test", transport=httpx.MockTransport(answer)) as http:
        wrong = [await clients._complete(http, kind, 5) for _ in range(3)]
    assert wrong[:2] == ["", ""]
    assert wrong[2].startswith("another text") == KINDS[kind].repeats
    assert {body["model"] for body in bodies} == {"m"}
    assert bodies[0]["stream"] == (kind.endswith("stream") or "samples" in kind)


@pytest.mark.parametrize(
    ("response", "wrong"),
    [
        (httpx.Response(503, text="busy"), "503 busy"),
        (httpx.Response(200, text='data: {"choices": []}\n\n'), "its stream ended with"),
        (httpx.Response(200, text='data: {"error": {}}\n\ndata: [DONE]\n\n'), 'data: {"error"'),
        (httpx.Response(200, text="data: [DONE]\n\n"), "an empty reply"),
    ],
    ids=["refused", "short", "an error in it", "empty"],
)
async def test_what_is_wrong_with_a_reply(response: httpx.Response, wrong: str) -> None:
    clients = Clients("http://test", "m", 1, 1)
    async with httpx.AsyncClient(base_url="http://test", transport=httpx.MockTransport(lambda request: response)) as http:
        assert (await clients._complete(http, "chat stream", 5)).startswith(wrong)
        assert bool(await clients._page(http, mixed.PAGES[0])) == (response.status_code != 200)


def test_the_arguments_are_settings() -> None:
    assert soak.settings_module.load(dict(word.split("=", 1) for word in soak.ARGUMENTS)).ingress.num_replicas == 2
