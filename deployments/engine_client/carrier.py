"""Carriers, which send requests to LLM replicas without a handle call for each request.

A handle call costs Python time at both ends: 0.6 ms in the ingress and 0.7 ms in the replica (dev/LOG.md), as much as a few tokens
of a small model. So an ingress holds one call open to each replica that it uses, and that call carries its requests. They travel
over the replica's lane of the token channel (see `deployments.transport.channel`), on which their tokens come back. While the call
is open, Serve considers the replica busy, so it drains the replica like any other. When the call fails, all requests that it
carries fail.

A request gets a handle call of its own when there is no usable carrier: its replica has not been used before or cannot be reached
this way now, or no replica is up.
"""

import asyncio
import contextlib
import contextvars
from dataclasses import dataclass, field

import msgspec
from ray.serve.exceptions import RequestCancelledError

from deployments.engine_client.replicas import LLMReplicas
from deployments.errors import EngineUnavailableError
from deployments.observability import logs
from deployments.transport.channel import CANCEL, HELLO, LAST, REFUSED, REQUEST, Address, Send

logger = logs.logger("ingress")

IDLE_S = 2.0
"""A carrier without requests is closed after this time, because a replica that is to stop waits for its open calls."""
OPEN_S = 10.0
AGAIN_S = 10.0
"""How long a replica may take to accept the call, and how long no other call is tried after one has failed."""


@dataclass
class Carrier:
    """The open call to one replica, with the requests that it carries.

    `to_replica` sends over the lane; it is None until the replica has sent HELLO.
    """

    replica: str
    to_replica: Send | None = None
    open: bool = True
    requests: set[asyncio.Future[bool]] = field(default_factory=set)
    closing: asyncio.TimerHandle | None = None
    call: asyncio.Task[None] | None = None

    @property
    def usable(self) -> bool:
        """Whether it can carry requests now."""
        return self.open and self.to_replica is not None

    def send(self, *frames: bytes) -> None:
        """Send a message to the replica. Raises EngineUnavailableError when its lane has ended; the carrier then sends no more."""
        try:
            if self.to_replica is None:
                raise EngineUnavailableError("the replica cannot receive requests yet")
            self.to_replica(list(frames))
        except EngineUnavailableError:
            self.open = False
            raise

    def close_later(self, seconds: float) -> None:
        """Close the carrier after this time, unless it gets a request first."""
        self.keep_open()
        self.closing = asyncio.get_running_loop().call_later(seconds, self.close)

    def keep_open(self) -> None:
        """Cancel a scheduled close."""
        if self.closing is not None:
            self.closing.cancel()
            self.closing = None

    def close(self) -> None:
        """Tell the replica that no more requests will come; cancel the call if the replica cannot be told."""
        self.keep_open()
        try:
            self.send(LAST)
        except EngineUnavailableError:
            if self.call is not None:
                self.call.cancel()
        self.open = False


class Carriers:
    """All carriers of an ingress, which receives at `address`."""

    def __init__(self, replicas: LLMReplicas, address: Address) -> None:
        self._replicas = replicas
        self._address = address
        self._carriers: dict[str, Carrier] = {}
        self._carried: dict[str, asyncio.Future[bool]] = {}

    @property
    def usable(self) -> int:
        """The number of carriers that can carry requests now."""
        return sum(carrier.usable for carrier in self._carriers.values())

    async def generate(self, group: str, request_id: str, encoded: list[bytes], client: str | None) -> None:
        """Run a request on a replica to its end, by a carrier or by a call of its own."""
        if (replica := self._replicas.choose(group, request_id)) is not None:
            if (carrier := self._carriers.get(replica)) is None:
                self._open(replica)
            elif carrier.usable:
                self._replicas.assign(request_id, replica, group)
                if await self._carry(carrier, request_id, encoded, client):
                    return
        await self._replicas.generate(group, request_id, self._address, encoded, client)

    def on_message(self, kind: bytes, frames: list[bytes], reply: Send) -> None:
        """Receive a message of a replica that is not a step (see `deployments.transport.receiver`)."""
        subject = frames[0].decode()  # of REFUSED a request's id, of HELLO the replica's
        if kind == REFUSED:
            self._settle(subject, ended=False)
        elif kind == HELLO and (carrier := self._carriers.get(subject)) is not None and carrier.to_replica is None:
            carrier.to_replica = reply
            carrier.close_later(IDLE_S)

    def ended(self, request_id: str) -> None:
        """Record that a request's last token has arrived."""
        self._settle(request_id, ended=True)

    def shutdown(self) -> None:
        """Cancel all calls."""
        for carrier in self._carriers.values():
            carrier.keep_open()
            if carrier.call is not None:
                carrier.call.cancel()

    def _settle(self, request_id: str, ended: bool) -> None:
        if (future := self._carried.get(request_id)) is not None and not future.done():
            future.set_result(ended)

    async def _carry(self, carrier: Carrier, request_id: str, encoded: list[bytes], client: str | None) -> bool:
        """Run a request by a carrier; return True when it has ended, False when the replica refused it."""
        carrier.keep_open()
        future = self._carried[request_id] = asyncio.get_running_loop().create_future()
        carrier.requests.add(future)
        try:
            carrier.send(REQUEST, msgspec.msgpack.encode((request_id, client, self._replicas.unread(request_id))), *encoded)
            return await future
        except asyncio.CancelledError:
            with contextlib.suppress(EngineUnavailableError):
                carrier.send(CANCEL, request_id.encode())
            raise
        finally:
            del self._carried[request_id]
            carrier.requests.remove(future)
            if not carrier.requests:
                carrier.close_later(IDLE_S)

    def _open(self, replica: str) -> None:
        carrier = self._carriers[replica] = Carrier(replica)
        # In a context of its own, like all handle calls (see `deployments.engine_client.client`).
        carrier.call = asyncio.create_task(self._call(carrier), context=contextvars.Context())
        carrier.close_later(OPEN_S)

    async def _call(self, carrier: Carrier) -> None:
        """Hold a carrier's call. When the call ends, so do the carrier and the requests still on it."""
        error: Exception | None = None
        try:
            await self._replicas.carry(carrier.replica, self._address)
        except asyncio.CancelledError:
            error = RequestCancelledError(carrier.replica)
        except Exception as failure:
            error = failure
        carrier.open = False
        carrier.keep_open()
        for future in carrier.requests:
            if not future.done():
                future.set_exception(error or EngineUnavailableError("the replica takes no more requests"))
        if error is None:
            del self._carriers[carrier.replica]
        else:
            logger.info("the carrier to replica %s has ended: %s", carrier.replica, type(error).__name__)
            asyncio.get_running_loop().call_later(AGAIN_S, self._carriers.pop, carrier.replica)
