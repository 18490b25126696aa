"""What a reply costs, for keys with a price: `usage.cost`, in replies and in the events of streams that say the whole usage.

All APIs say usage in JSON that vLLM's server makes, each in models of its own. So the cost is written where all of them pass, and
replies to keys without a price do not pass here.
"""

import json
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from deployments.access.keys import Key

MARK = b'"usage":'


class Priced:
    """One response to a key with a price. Events of a stream pass at once; other JSON passes when it is whole."""

    def __init__(self, key: Key, send: Send) -> None:
        self._key, self._send = key, send
        self._start: Message | None = None
        self._body = b""
        self._streams = False

    async def send(self, message: Message) -> None:
        """Send a message, with the cost where it says a usage."""
        if message["type"] == "http.response.start":
            kind = MutableHeaders(raw=list(message["headers"])).get("content-type", "")
            self._streams = kind.startswith("text/event-stream")
            if message["status"] == 200 and kind == "application/json":
                self._start = message
                return
        elif self._start is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_whole(self._start, message)
            return
        elif self._streams and MARK in (piece := message.get("body", b"")):
            message = {**message, "body": b"\n\n".join(map(self._event, piece.split(b"\n\n")))}
        await self._send(message)

    async def _send_whole(self, start: Message, message: Message) -> None:
        body = self._with_cost(self._body)
        headers = MutableHeaders(raw=list(start["headers"]))
        if "content-length" in headers:
            headers["content-length"] = str(len(body))
        await self._send({**start, "headers": headers.raw})
        await self._send({**message, "body": body})

    def _event(self, event: bytes) -> bytes:
        head, data, text = event.partition(b"data: ")
        return head + data + self._with_cost(text) if data else event

    def _with_cost(self, text: bytes) -> bytes:
        """Return JSON with the cost in its usage, or in that of the response that it holds; anything else as it is."""
        if MARK not in text:
            return text
        try:
            said = json.loads(text)
        except ValueError:
            return text
        within = said.get("response", said) if isinstance(said, dict) else None
        usage = within.get("usage") if isinstance(within, dict) else None
        if not isinstance(usage, dict) or (cost := self._cost(usage)) is None:
            return text
        usage["cost"] = cost
        return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()

    def _cost(self, usage: dict[str, Any]) -> float | None:
        prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
        completion = usage.get("completion_tokens", usage.get("output_tokens", 0))
        return self._key.cost(prompt, completion or 0) if isinstance(prompt, int) else None
