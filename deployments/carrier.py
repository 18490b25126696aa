"""Requests on their way to LLM replicas, without a handle call for each.

A handle call costs Python's time at both ends: 0.6 ms in the ingress and 0.7 in the replica (dev/LOG.md), as much as a
few tokens of a small model. So an ingress holds one call open to each replica that it uses, and that one carries: requests go
over the replica's lane of the token channel (see `deployments.channel`), where their tokens come back. To Serve the replica is busy
as long as the call is open, so it is drained like any other, and the call's failure is that of all it carries.

A request goes by a call of its own where there is no carrier: to a replica just met, and where all are gone or not up yet.
"""

import asyncio
import contextlib
import contextvars
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from ray.serve.exceptions import RequestCancelledError

from deployments import logs
from deployments.channel import CANCEL, HELLO, LAST, REFUSED, REQUEST, Address, Answer
from deployments.errors import EngineUnavailableError

logger = logs.logger("ingress")

IDLE_S = 2.0
"""A carrier without requests is given up after this time: a replica that is to stop waits for it."""
OPEN_S = 10.0
AGAIN_S = 10.0
"""How long a replica may take to take the call, and for how long it is not asked again after one that failed."""


class Calls(Protocol):
    """The handle calls of LLM replicas, and which replica a request is to go to. Request ids are those of attempts."""

    async def generate(self, group: str, request_id: str, address: Address, encoded: list[bytes], client: str | None) -> None:
        """Run a request on a replica to its end; waits for one."""

    async def carry(self, replica: str, address: Address) -> None:
        """Have a replica take requests over its lane, until it is told that there will be no more."""

    def choose(self, group: str) -> str | None:
        """Return the id of the replica that should get a request, None if there is none."""

    def assign(self, request_id: str, replica: str, group: str) -> None:
        """Count a request on a replica."""


@dataclass
class Carrier:
    """The way to one replica, with the requests on it; `answer` sends there, when it has said that it listens."""

    replica: str
    answer: Answer | None = None
    open: bool = True
    requests: set[asyncio.Future[bool]] = field(default_factory=set)
    closing: asyncio.TimerHandle | None = None
    call: asyncio.Task[None] | None = None

    @property
    def usable(self) -> bool:
        """Whether it takes requests now."""
        return self.open and self.answer is not None

    def send(self, *frames: bytes) -> None:
        """Send to the replica. Raises EngineUnavailableError where its lane has ended; nothing more is then sent."""
        try:
            if self.answer is None:
                raise EngineUnavailableError("the replica does not listen yet")
            self.answer(list(frames))
        except EngineUnavailableError:
            self.open = False
            raise

    def rest(self, seconds: float) -> None:
        """Close it after this time, unless it gets a request before."""
        self.stir()
        self.closing = asyncio.get_running_loop().call_later(seconds, self.close)

    def stir(self) -> None:
        """Do not close it."""
        if self.closing is not None:
            self.closing.cancel()
            self.closing = None

    def close(self) -> None:
        """Tell the replica that no more will come, or end the call where it cannot be told."""
        self.stir()
        try:
            self.send(LAST)
        except EngineUnavailableError:
            if self.call is not None:
                self.call.cancel()
        self.open = False


class Carriers:
    """All carriers of an ingress. `address` is where it receives; `calls` are what it does without them."""

    def __init__(self, calls: Calls, address: Address) -> None:
        self._calls = calls
        self._address = address
        self._carriers: dict[str, Carrier] = {}
        self._carried: dict[str, asyncio.Future[bool]] = {}

    @property
    def usable(self) -> int:
        """How many there are that take requests."""
        return sum(carrier.usable for carrier in self._carriers.values())

    async def generate(self, group: str, request_id: str, encoded: list[bytes], client: str | None) -> None:
        """Run a request on a replica to its end; see `Calls`."""
        if (replica := self._calls.choose(group)) is not None:
            if (carrier := self._carriers.get(replica)) is None:
                self._open(replica)
            elif carrier.usable:
                self._calls.assign(request_id, replica, group)
                if await self._carry(carrier, request_id, encoded, client):
                    return
        await self._calls.generate(group, request_id, self._address, encoded, client)

    def hear(self, kind: bytes, frames: list[bytes], answer: Answer) -> None:
        """Take what a replica says over its lane, other than steps; see `deployments.channel.Receiver`."""
        said = frames[0].decode()
        if kind == REFUSED:
            self._settle(said, taken=False)
        elif kind == HELLO and (carrier := self._carriers.get(said)) is not None and carrier.answer is None:
            carrier.answer = answer
            carrier.rest(IDLE_S)

    def ended(self, request_id: str) -> None:
        """Hear that a request's last token is here."""
        self._settle(request_id, taken=True)

    def shutdown(self) -> None:
        """End all calls."""
        for carrier in self._carriers.values():
            carrier.stir()
            if carrier.call is not None:
                carrier.call.cancel()

    def _settle(self, request_id: str, taken: bool) -> None:
        if (future := self._carried.get(request_id)) is not None and not future.done():
            future.set_result(taken)

    async def _carry(self, carrier: Carrier, request_id: str, encoded: list[bytes], client: str | None) -> bool:
        """Run a request by a carrier; return whether it has ended there, rather than been refused."""
        carrier.stir()
        future = self._carried[request_id] = asyncio.get_running_loop().create_future()
        carrier.requests.add(future)
        try:
            carrier.send(REQUEST, msgspec.msgpack.encode((request_id, client)), *encoded)
            return await future
        except asyncio.CancelledError:
            with contextlib.suppress(EngineUnavailableError):
                carrier.send(CANCEL, request_id.encode())
            raise
        finally:
            del self._carried[request_id]
            carrier.requests.remove(future)
            if not carrier.requests:
                carrier.rest(IDLE_S)

    def _open(self, replica: str) -> None:
        carrier = self._carriers[replica] = Carrier(replica)
        # In a context of its own, as all calls (see `deployments.client`).
        carrier.call = asyncio.create_task(self._call(carrier), context=contextvars.Context())
        carrier.rest(OPEN_S)

    async def _call(self, carrier: Carrier) -> None:
        """Hold the call of a carrier; when it ends, so does the carrier, and with it what is left on it."""
        error: Exception | None = None
        try:
            await self._calls.carry(carrier.replica, self._address)
        except asyncio.CancelledError:
            error = RequestCancelledError(carrier.replica)
        except Exception as failure:
            error = failure
        carrier.open = False
        carrier.stir()
        for future in carrier.requests:
            if not future.done():
                future.set_exception(error or EngineUnavailableError("the replica takes no more requests"))
        if error is None:
            del self._carriers[carrier.replica]
        else:
            logger.info("the carrier to replica %s has ended: %s", carrier.replica, type(error).__name__)
            asyncio.get_running_loop().call_later(AGAIN_S, self._carriers.pop, carrier.replica)
