"""The UI deployment: the Gradio app of the package `ui`, as a client of the public API."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from deployments.host.garbage import no_collecting
from deployments.observability import exposition
from deployments.settings import Settings


class WebUI:
    """Holds the app; the ingress passes browsers' requests on to it (see `deployments.ui.bridge`)."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        with no_collecting():
            from ui.app import asgi

        exposition.show("UI", settings)
        self._app: Any = await asyncio.to_thread(asgi, settings.ui.api_url or f"http://127.0.0.1:{settings.http.port}")
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()

    async def request(self, session: str, scope: dict[str, Any], body: bytes) -> AsyncIterator[dict[str, Any]]:
        """Yield the ASGI messages of the response to a request; `session` is for the router. Closing this ends the request."""
        messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        bodies = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            if (message := next(bodies, None)) is None:
                await asyncio.Event().wait()  # nothing more comes; a browser that leaves cancels this request
                raise AssertionError
            return message

        async def answer() -> None:
            try:
                await self._app(scope, receive, messages.put)
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(answer())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task
        finally:
            task.cancel()
