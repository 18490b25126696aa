"""A wire between a browser and a server: what goes over it can be held back, or cut off."""

import asyncio
import threading
from contextlib import suppress
from urllib.parse import urlsplit

from tests.support.until import until


class Wire:
    """Carries connections to the server at `url`, from a port of its own."""

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._passing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut = False
        self.url = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        until(lambda: self.url, "the wire is there")

    def hold(self) -> None:
        """Carry nothing from now on; connections stay."""
        self._loop.call_soon_threadsafe(self._passing.clear)

    def cut(self) -> None:
        """End all connections, and each new one."""
        self._loop.call_soon_threadsafe(self._end)

    def mend(self) -> None:
        """Carry all again."""
        self._cut = False
        self._loop.call_soon_threadsafe(self._passing.set)

    def stop(self) -> None:
        """End it."""
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        listening = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        self._loop.run_forever()
        listening.close()
        self._loop.run_until_complete(self._rest())
        self._loop.close()

    async def _rest(self) -> None:
        """Wait until all connections are closed."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # transports close in the next round

    def _end(self) -> None:
        self._cut = True
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        assert self._server.hostname
        there, back = await asyncio.open_connection(self._server.hostname, self._server.port)
        ends = {writer, back}
        self._writers |= ends
        try:
            await asyncio.gather(self._carry(reader, back), self._carry(there, writer))
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
