"""The application behind nginx and Caddy: the API streams, and the page works."""

import asyncio
import uuid
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from cluster.bench import chaos
from tests.support.application import Served
from tests.support.page import Chat, chromium
from tests.support.page_user import use
from tests.support.proxies import DOCUMENTED, PREFIX, PROXIES, in_front
from tests.support.status import ready
from tests.support.until import until_async

STEPS = 3
"""By so many tokens one of two streams may be ahead, if its request was read sooner."""


@pytest.mark.parametrize("name", PROXIES)
async def test_a_stream_and_the_pages_events_pass_as_they_come(served: Served, tmp_path: Path, name: str) -> None:
    """A stream has brought as much through the proxy as past it when the engine stops in its midst."""
    body = chaos.question(0) | {"max_tokens": 1500}
    engine = served.engine()
    with in_front(name, tmp_path, served.url.removeprefix("http://")) as url:
        through = httpx.AsyncClient(base_url=url, verify=False, trust_env=False, timeout=60, headers={"accept-encoding": "gzip"})
        async with through as http, chaos.client(served.url) as past:
            replies = [chaos.Reply(), chaos.Reply()]
            engine.suspend()  # both begin in the same step
            reading = asyncio.gather(replies[0].read(http, body), replies[1].read(past, body))
            try:

                async def held() -> int:
                    return int((await ready(past))["ingress"]["open"])

                await until_async(held, "the engine has both", holds=lambda count: count == 2)
            finally:
                engine.resume()
            await until_async(lambda: min(reply.chunks for reply in replies), "both stream", holds=lambda n: n > 20, every_s=0.001)
            engine.suspend()
            try:
                await until_async(
                    lambda: abs(replies[0].chunks - replies[1].chunks), "as much has come", holds=lambda ahead: ahead <= STEPS
                )
                assert not reading.done()
            finally:
                engine.resume()
            await reading
            assert replies[0].well
            assert replies[0].same(replies[1])
            states = await use(http, uuid.uuid4().hex, "What is 100 + 5?")
            assert [state["answer"] for state in states if "answer" in state] == [{"=": "105"}]


@pytest.mark.parametrize("below", [False, True], ids=["at the root", "below a path"])
@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_page_in_a_browser(served: Served, tmp_path: Path, name: str, below: bool) -> None:
    """Everything that it asks for comes through the proxy, and from below its path."""
    with in_front(name, tmp_path, served.url.removeprefix("http://"), below) as url, chromium() as browser:
        chat = Chat(browser, f"{url}/", ignore_https_errors=True)
        assert chat.page.url == f"{url}/ui/"
        chat.ask()
        expect(chat.panel.locator(".reply .answer output").last).to_have_text("182", timeout=60_000)
        chat.answered()
        assert [asked for asked in chat.requests if not asked.startswith((f"{url}/", "data:", "blob:"))] == []
        assert [cookie["path"] for cookie in chat.context.cookies()] == [f"{PREFIX * below}/ui"]
        moved = httpx.get(f"{url}/ui", verify=False)
        assert str(moved.url.join(moved.headers["location"])) == f"{url}/ui/"
        docs = httpx.get(f"{url}/docs", verify=False)
        assert f"'{PREFIX * below}/openapi.json'" in docs.text
        assert chat.errors == []
        chat.context.close()
