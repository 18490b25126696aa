"""The application behind nginx and Caddy, as docs/proxies configures them: the API streams, and the page works."""

import asyncio
from pathlib import Path

import httpx
import pytest

from cluster.bench import chaos
from tests.support.application import Served
from tests.support.page_user import ask0, use
from tests.support.proxies import PROXIES, in_front
from tests.support.status import ready
from tests.support.until import until_async


@pytest.mark.parametrize("name", PROXIES)
async def test_streams_and_the_page_behind_a_proxy(served: Served, tmp_path: Path, name: str) -> None:
    """A stream has brought as much through the proxy as past it when the engine stops in its midst."""
    body = chaos.question(0) | {"max_tokens": 1500}
    engine = served.engine()
    with in_front(name, tmp_path, served.url.removeprefix("http://")) as url:
        async with (
            httpx.AsyncClient(base_url=url, verify=False, trust_env=False, timeout=60) as http,
            chaos.client(served.url) as past,
        ):
            replies = [chaos.Reply(), chaos.Reply()]
            engine.suspend()  # both begin in the same step
            reading = asyncio.gather(replies[0].read(http, body), replies[1].read(past, body))
            try:

                async def held() -> int:
                    return int((await ready(past))["ingress"]["open"])

                await until_async(held, "the engine has both", holds=lambda count: count == 2)
            finally:
                engine.resume()
            await until_async(
                lambda: min(reply.chunks for reply in replies), "both stream", holds=lambda chunks: chunks > 20, every_s=0.001
            )
            engine.suspend()
            try:
                most = 3  # steps, if one request was read before the other
                await until_async(
                    lambda: abs(replies[0].chunks - replies[1].chunks), "as much has come", holds=lambda more: more <= most
                )
                assert not reading.done()
            finally:
                engine.resume()
            await reading
            assert replies[0].well
            assert replies[0].same(replies[1])
            page = (await http.get("/ui/config")).json()
            assert page["root"] == f"{url}/ui"
            reply = await use(http, await ask0(http), 1, "What is 100 + 5?")
            assert '["answer"], "105"]' in str(reply).replace("'", '"')
