"""Grammars, regexes and schemas are checked before a reply begins, in a process of their own that has limits of time and memory.

vLLM (0.32.0) compiles them in the event loop, where all streams wait for it, and finds some of their faults in the engine only.
"""

import asyncio
import copy
import json
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.structured_output.request import get_structured_output_key

from deployments.engine import guidance
from deployments.errors import GrammarNotFollowedError, GrammarTooComplexError, OverloadedError, SatoriError
from deployments.ingress.json_schema import exact
from deployments.observability.record import failed
from deployments.patching import patch
from deployments.reasoning.answers.comparer import NotStarted, Process, Undecided
from deployments.reasoning.formatted import has_format

log = logging.getLogger(__name__)

MODULE = "deployments.engine.grammar_check"
WALL_S = 20.0
"""Seconds that a check may take on a busy machine; its CPU has a far lower limit (`deployments.reasoning.answers.worker`)."""
QUEUE = 64
"""Checks that may wait at a time."""
KEPT = 1024
"""Results that are remembered."""
RENDERS = ("render_chat", "render_completion", "render_responses")


class Grammars:
    """Checks the formats that requests ask for, one at a time. Its process starts with the first one."""

    def __init__(self, process: Process | None = None) -> None:
        self._process = process or Process(MODULE, WALL_S)
        self._thread = ThreadPoolExecutor(1, "grammars")
        self._waiting = 0
        self._known: OrderedDict[tuple[str, str], str | None] = OrderedDict()

    def check_before(self, renderer: Any) -> None:
        """Have vLLM's renderer check requests: when it has made the prompt of one, its format is known, and nothing is sent yet."""
        for name in RENDERS:
            patch(
                renderer,
                name,
                self._checked(getattr(renderer, name)),
                why="vLLM 0.32.0 compiles grammars in its event loop, and finds some faults in the engine, behind a stream's start",
                until="it compiles them elsewhere, and before it answers",
            )

    def _checked(self, render: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def checked(request: Any, *arguments: Any, **options: Any) -> Any:
            made = await render(request, *arguments, **options)
            if isinstance(made, ErrorResponse):
                return made
            try:
                await self.check(request.extract_structured_outputs(), _part(request))
            except SatoriError as error:
                failed(error.code)
                kind, message = type(error).__name__, f"{error.code}: {error}"
                return ErrorResponse(error=ErrorInfo(message=message, type=kind, param=error.param, code=error.status))
            return made

        return checked

    async def check(self, asked: StructuredOutputsParams | None, part: str = "structured_outputs") -> None:
        """Raise GrammarNotFollowedError, GrammarTooComplexError or OverloadedError where a format cannot be followed.

        `part` is the part of the request that asks for it.
        """
        if asked is None or not has_format(asked):
            return
        kind, spec = get_structured_output_key(_exact(asked))
        if guidance.is_xgrammars(kind, spec):
            return
        key = (kind.name, spec)
        if key not in self._known:
            try:
                self._keep(key, await self._ask(key, part))
            except NotStarted as error:
                log.warning("a grammar is checked in the event loop: %s", error)
                return
        if (fault := self._known[key]) is not None:
            raise GrammarNotFollowedError(part, fault)
        guidance.passed(*key)

    async def _ask(self, key: tuple[str, str], part: str) -> str | None:
        if self._waiting >= QUEUE:
            raise OverloadedError(f"{self._waiting} requests wait for a check of their format; try again after a moment")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            found: str | None = await loop.run_in_executor(self._thread, self._process.ask, "fault", *key)
        except NotStarted:
            raise
        except Undecided as error:
            raise GrammarTooComplexError(part, f"to compile it takes too much time or memory ({error})") from error
        finally:
            self._waiting -= 1
        return found

    def _keep(self, key: tuple[str, str], fault: str | None) -> None:
        self._known[key] = fault
        if len(self._known) > KEPT:
            self._known.popitem(last=False)

    def close(self) -> None:
        """End the process."""
        self._thread.submit(self._process.close)
        self._thread.shutdown()


def _exact(asked: StructuredOutputsParams) -> StructuredOutputsParams:
    """Return the format as the engine gets it (see `deployments.ingress.frontend`). The argument stays as it is."""
    if asked.json is None:
        return asked
    changed = copy.copy(asked)
    changed.json = exact(json.loads(asked.json) if isinstance(asked.json, str) else asked.json)
    return changed


def _part(request: Any) -> str:
    """Return the part of a request, one of vLLM's, that asks for a format. Its further fields, unknown to vLLM, may be anything."""
    known = type(request).model_fields
    if "tool_choice" in known and request.tools and request.tool_choice not in (None, "none"):
        return "tools"
    if getattr(request, "response_format", None) is not None:
        return "response_format"
    return "structured_outputs" if getattr(request, "structured_outputs", None) is not None else "text.format"
