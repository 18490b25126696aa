"""HAProxy as Ray Serve's manager runs it in our environment: clients notice neither its replacement nor other ingresses."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deployments.host import environment
from deployments.host.environment import HARD_STOP, SERVING, hard_stop
from tests.support.haproxy import HAProxy, haproxy
from tests.support.until import until_async

CHANGES = 10
CLIENTS = 12
REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n" + b"x" * 100
STREAMING = REQUEST.replace(b"POST / ", b"POST /stream ")
ENDLESS = REQUEST.replace(b"POST / ", b"POST /long ")
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK, END = b"1\r\nx\r\n", b"0\r\n\r\n"
LONGEST_S = 4


class Ingress:
    """A server that answers requests and checks with its port.

    A request for `/stream` gets a stream of `LONGEST_S`, one for `/long` a stream that ends when `over` is set.
    """

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.answered = 0

    async def __aenter__(self) -> "Ingress":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def answers(self) -> None:
        """Wait until it answers a request."""
        before = self.answered
        await until_async(lambda: self.answered > before, "it answers")

    async def die(self) -> None:
        """Listen no more, and close all connections, as a killed process does."""
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"POST"):
                    await reader.readexactly(100)
                    await asyncio.sleep(0.003)
                    self.answered += 1
                if head.startswith(b"POST /silent"):
                    await asyncio.sleep(2)
                if head.startswith(b"POST /stream"):
                    await self._stream(writer)
                elif head.startswith(b"POST /long"):
                    writer.write(STREAM + CHUNK)
                    await self.over.wait()
                    writer.write(END)
                else:
                    name = str(self.port).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(name), name))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for number in range(LONGEST_S * 10):
            writer.write(CHUNK)
            await asyncio.sleep(begun + (number + 1) / 10 - loop.time())  # a late one delays no other
        writer.write(END)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, bool]:
    """Send a request and read its reply; return who answered, and whether the connection goes on."""
    writer.write(REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    return int(await reader.readexactly(length)), b"connection: close" not in head.lower()


class Clients:
    """Clients that ask all the time, half of them on connections that they keep."""

    def __init__(self, proxy: HAProxy) -> None:
        self._proxy = proxy
        self._over = False
        self.answered = 0

    async def _ask(self, keep: bool) -> None:
        while not self._over:
            reader, writer = await self._proxy.connect()
            while (await ask(reader, writer))[1] and keep and not self._over:
                self.answered += 1
                await asyncio.sleep(0.001)
            self.answered += 1
            writer.close()

    async def more(self) -> None:
        """Wait until each may have got an answer since."""
        wanted = self.answered + CLIENTS
        await until_async(lambda: self.answered, f"{wanted} answers", holds=lambda count: count >= wanted, every_s=0.001)

    @asynccontextmanager
    async def asking(self) -> AsyncIterator["Clients"]:
        async with asyncio.TaskGroup() as tasks:
            for number in range(CLIENTS):
                tasks.create_task(self._ask(keep=bool(number % 2)))
            yield self
            self._over = True


async def begin(proxy: HAProxy, request: bytes = STREAMING) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return the connection of a stream that has begun."""
    reader, writer = await proxy.connect()
    writer.write(request)
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def test_no_request_is_lost_when_haproxy_is_replaced(tmp_path: Path) -> None:
    """Neither on a new connection nor on one that has been used before."""
    async with Ingress() as only, haproxy(tmp_path, [only.port]) as proxy, Clients(proxy).asking() as clients:
        for _ in range(CHANGES):
            before = proxy.pid
            await proxy.replace()
            assert proxy.pid != before
            await clients.more()


@pytest.mark.parametrize("whole", [True, False])
async def test_a_stream_outlasts_a_replaced_haproxy_as_long_as_the_settings_allow(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of which nobody has thought, shorter than the stream, it is cut."""
    monkeypatch.setattr(environment, "MARGIN_S", 1)
    limit = hard_stop(LONGEST_S) if whole else {HARD_STOP: "2"}
    async with Ingress() as only, haproxy(tmp_path, [only.port], SERVING | limit) as proxy:
        assert f"hard-stop-after {limit[HARD_STOP]}s" in (tmp_path / "haproxy.cfg").read_text()
        reader, writer = await begin(proxy, STREAMING if whole else ENDLESS)
        for _ in range(2):
            await proxy.replace()
        received = await asyncio.wait_for(reader.readuntil(END) if whole else reader.read(), 30)
        writer.close()
        assert received.endswith(END) == whole
        assert (received.count(b"x") == LONGEST_S * 10) == whole  # HAProxy joins chunks


@pytest.mark.parametrize("ours", [True, False])
async def test_ingresses_come_and_go_and_the_streams_of_the_others_go_on(ours: bool, tmp_path: Path) -> None:
    """The stream takes longer than a replaced HAProxy has; as Serve does it, it is cut. Ingresses leave, come and die."""
    limit = SERVING | {HARD_STOP: "2"}
    async with Ingress() as stays, Ingress() as second, haproxy(tmp_path, [stays.port], limit, ours) as proxy:
        first = proxy.pid
        reader, writer = await begin(proxy, STREAMING if ours else ENDLESS)
        if not ours:
            await proxy.use(stays.port, second.port)
            assert END not in await asyncio.wait_for(reader.read(), 30)
            writer.close()
            return
        async with Clients(proxy).asking() as clients:
            for number in range(CHANGES // 2):
                async with Ingress() as other:
                    await proxy.use(stays.port, other.port)
                    await until_async(lambda: other.answered, "the new one answers")
                    if number % 2:
                        await other.die()
                        await clients.more()
                    await proxy.use(stays.port)
                    before = other.answered
                    await clients.more()
                    assert other.answered - before <= CLIENTS, "the one that left gets no new requests"
        received = await asyncio.wait_for(reader.readuntil(END), 30)
        writer.close()
        assert received.count(b"x") == LONGEST_S * 10
        assert (proxy.pid, proxy.processes) == (first, 1)


async def test_ingresses_that_leave_and_come_back_go_on_with_their_streams(tmp_path: Path) -> None:
    """As Serve does it while it builds an application anew: it names no ingress, and then the same ones again."""
    limit = SERVING | {HARD_STOP: "1"}
    async with Ingress() as fallback, Ingress() as leaves, haproxy(tmp_path, [leaves.port], limit) as proxy:
        pid = proxy.pid
        streams = [await begin(proxy) for _ in range(4)]
        async with Clients(proxy).asking() as clients:
            for _ in range(2):
                await proxy.use(fallback.port)
                before = leaves.answered
                await clients.more()
                assert leaves.answered - before <= CLIENTS, "it gets no new requests"
                await proxy.use(leaves.port)
                await leaves.answers()
        for reader, writer in streams:
            assert (await reader.readuntil(END)).count(b"x") == LONGEST_S * 10
            writer.close()
        assert proxy.pid == pid


async def test_servers_that_cannot_be_changed_are_those_of_a_new_haproxy(tmp_path: Path) -> None:
    """One that left and is still at work has its name; when that comes back with another address, it gets requests all the same."""
    async with Ingress() as stays, Ingress() as other, Ingress() as moved, haproxy(tmp_path, [other.port]) as proxy:
        first = proxy.pid
        reader, writer = await begin(proxy)
        await proxy.use(stays.port)
        await proxy.use(stays=stays.port, **{f"ingress-{other.port}": moved.port})
        assert proxy.pid != first
        async with Clients(proxy).asking() as clients:
            await until_async(lambda: moved.answered, "the one that came back answers")
            await clients.more()
        await reader.readuntil(END)
        writer.close()


async def test_a_reply_may_be_silent_for_longer_than_a_client_may(tmp_path: Path) -> None:
    """HAProxy's `timeout client` is for clients that neither send nor read; one that waits for its reply does neither."""
    quick = SERVING | {"RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "1"}
    async with Ingress() as only, haproxy(tmp_path, [only.port], quick) as proxy:
        assert "timeout client 1s" in (tmp_path / "haproxy.cfg").read_text()
        reader, writer = await proxy.connect()
        writer.write(REQUEST.replace(b"POST / ", b"POST /silent "))
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize("ours", [True, False])
async def test_a_replaced_haproxy_passes_requests_on(ours: bool, tmp_path: Path) -> None:
    """All the ingresses that it knew may have gone by the time at which a client asks again on its connection."""
    async with Ingress() as old, Ingress() as new, haproxy(tmp_path, [old.port], ours=ours) as proxy:
        reader, writer = await begin(proxy)
        await proxy.replace()
        await proxy.use(new.port)
        await reader.readuntil(END)
        await old.die()
        if ours:
            assert await ask(reader, writer) == (new.port, False), "it answers, and closes its connection"
        else:
            with pytest.raises((AssertionError, asyncio.IncompleteReadError)):  # a status 500, or a connection that closes
                await ask(reader, writer)
        writer.close()
        reader, writer = await proxy.connect()
        assert (await ask(reader, writer))[0] == new.port
        writer.close()


async def test_replies_outlast_many_replacements(tmp_path: Path) -> None:
    """Each HAProxy but the last has a reply when it is replaced; all of them end well."""
    async with Ingress() as only, haproxy(tmp_path, [only.port]) as proxy:
        streams = []
        for _ in range(CHANGES):
            streams.append(await begin(proxy, REQUEST.replace(b"POST / ", b"POST /long ")))
            await proxy.replace()
        assert proxy.processes == CHANGES + 1
        only.over.set()
        for reader, writer in streams:
            assert await reader.readuntil(END)
            writer.close()


async def test_replaced_haproxies_are_few(tmp_path: Path) -> None:
    """Of more than it may have, the oldest end, with what they carry."""
    async with Ingress() as only, haproxy(tmp_path, [only.port], most_old=2) as proxy:
        streams = []
        for _ in range(4):
            streams.append(await begin(proxy, ENDLESS))
            await proxy.replace()
        for reader, _ in streams[:2]:
            assert END not in await asyncio.wait_for(reader.read(), 30)
        only.over.set()
        for reader, _ in streams[2:]:
            assert await reader.readuntil(END)
        for _, writer in streams:
            writer.close()


async def test_half_a_request_is_ended_and_a_reply_is_not(tmp_path: Path) -> None:
    async with Ingress() as only, haproxy(tmp_path, [only.port], request_s=1) as proxy:
        reader, writer = await begin(proxy)
        for half in (REQUEST[:20], REQUEST[:-1], b""):
            slow, sender = await proxy.connect()
            sender.write(half)
            said = await asyncio.wait_for(slow.read(), 30)
            sender.close()
            assert said.startswith(b"HTTP/1.1 408"), half
        assert (await reader.readuntil(END)).count(b"x") == LONGEST_S * 10
        writer.close()


async def test_room_is_kept_for_health_checks_and_the_rest_are_told(tmp_path: Path) -> None:
    """Of 500 connections. One address has a quarter of them at most, unless it is this host's: a proxy may be there."""
    few = SERVING | {"RAY_SERVE_HAPROXY_MAXCONN": "500"}
    async with Ingress() as only, haproxy(tmp_path, [only.port], few) as proxy:
        held = [await proxy.connect() for _ in range(440)]
        reader, writer = await proxy.connect()
        assert (await ask(reader, writer))[0] == only.port
        held += [(reader, writer), *[await proxy.connect() for _ in range(12)]]
        reader, writer = await proxy.connect()
        writer.write(REQUEST)
        reply = await asyncio.wait_for(reader.read(), 30)
        assert reply.startswith(b"HTTP/1.1 503 ")
        assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == "connections_full"
        writer.close()
        reader, writer = await proxy.connect()
        writer.write(b"GET /-/healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        for _, kept in [*held, (reader, writer)]:
            kept.close()
    config = (tmp_path / "haproxy.cfg").read_text()
    assert "reject if { sc0_conn_cur(addresses) gt 125 } !{ src 127.0.0.0/8 ::1 }" in config
    assert "mode 600 level admin" in config
    assert [line.strip() for line in config.splitlines() if "bind " in line] == [f"bind 127.0.0.1:{proxy.port}"]
