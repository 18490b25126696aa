"""The lines of a batch's input: read as a stream, checked before the first of them is run."""

import hashlib
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any, NamedTuple

from deployments.ingress.bounds import DEPTH, is_deep

LINES = 50_000
ERRORS = 100
"""How many errors of an input are told."""
ID_CHARACTERS = 512
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
SHOWN = 80
WINDOW_BYTES = 4 * 2**20
"""How much of an input is ordered at a time."""
PROMPTS = ("messages", "prompt", "input")
PREFIX_CHARACTERS = 2**16
TOO_DEEP = ("line_too_deep", f"the body is nested deeper than {DEPTH} levels", None)


class Line(NamedTuple):
    """A line, by its number from 1; `text` is None where it is too long."""

    number: int
    text: bytes | None


async def split(pieces: AsyncIterator[bytes], most: int) -> AsyncIterator[list[Line]]:
    """Yield the lines of a file in groups as they come, without empty ones. A line may have `most` bytes."""
    number, rest, too_long = 1, b"", False
    async for piece in pieces:
        *whole, last = piece.split(b"\n")
        if whole:
            whole[0] = rest + whole[0]
            found = [Line(number + at, text) for at, text in enumerate(whole)]
            if too_long:
                found[0] = Line(number, None)
            number, rest, too_long = number + len(whole), b"", False
            yield [
                line if line.text is None or len(line.text) <= most else Line(line.number, None) for line in found if _counts(line)
            ]
        rest += last
        if len(rest) > most:
            rest, too_long = b"", True
    if _counts(end := Line(number, None if too_long else rest)):
        yield [end]


async def windows(groups: AsyncIterator[list[Line]]) -> AsyncIterator[list[Line]]:
    """Yield the same lines in groups of `WINDOW_BYTES` and somewhat more; the last one may have less."""
    window: list[Line] = []
    size = 0
    async for group in groups:
        window += group
        size += sum(len(line.text or b"") for line in group)
        if size >= WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window


def by_prefix(lines: Iterable[Line]) -> list[Line]:
    """Return the lines in an order in which those whose prompts begin alike follow each other: each finds the KV cache of the last.

    Among equal ones, and where a body has no prompt, it is the order in which they came.
    """
    return sorted(lines, key=_prompt)


def _prompt(line: Line) -> str:
    try:
        body = json.loads(line.text or b"")["body"]
        return json.dumps([body.get("instructions"), *(body.get(name) for name in PROMPTS)])[:PREFIX_CHARACTERS]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):  # it is told when the line is asked for
        return ""


def _counts(line: Line) -> bool:
    return line.text is None or bool(line.text.strip())


class Check:
    """The check of a batch's input. `errors` are what is wrong, `count` is the number of lines."""

    def __init__(self, endpoint: str, most: int) -> None:
        self._endpoint, self._most = endpoint, most
        self._ids: set[bytes] = set()
        self.errors: list[dict[str, Any]] = []
        self.count = 0

    @property
    def full(self) -> bool:
        """Whether there are so many errors or lines that nobody needs to read on."""
        return len(self.errors) >= ERRORS or self.count > LINES

    def take(self, lines: list[Line]) -> None:
        """Check some lines."""
        for line in lines:
            self.count += 1
            if self.full:
                return
            if (wrong := self._wrong(line)) is not None:
                code, message, param = wrong
                self.errors.append(error(code, message, line.number, param))

    def end(self) -> None:
        """Check the whole."""
        if self.count > LINES:
            self.errors.append(error("too_many_lines", f"the file has more than {LINES} lines"))
        if not self.count:
            self.errors.append(error("empty_file", "the file has no lines"))

    def _wrong(self, line: Line) -> tuple[str, str, str | None] | None:
        if line.text is None:
            return "line_too_long", f"the line has more than {self._most} bytes (http.max_body_bytes)", None
        try:
            request = json.loads(line.text)
        except RecursionError:
            return TOO_DEEP
        except ValueError:
            return "invalid_json_line", "the line is not JSON", None
        if is_deep(request, DEPTH + 1):
            return TOO_DEEP
        if not isinstance(request, dict):
            return "invalid_json_line", "the line is not a JSON object", None
        custom_id = request.get("custom_id")
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= ID_CHARACTERS:
            return "invalid_custom_id", f"allowed: a text of 1 to {ID_CHARACTERS} characters", "custom_id"
        digest = hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=16).digest()
        if digest in self._ids:
            return "duplicate_custom_id", f"{custom_id[:SHOWN]!r} is another line's, too", "custom_id"
        self._ids.add(digest)
        if request.get("method") != "POST":
            return "invalid_method", f"{str(request.get('method'))[:SHOWN]!r}; allowed: POST", "method"
        if request.get("url") != self._endpoint:
            return "mismatched_url", f"{str(request.get('url'))[:SHOWN]!r}; the batch's endpoint is {self._endpoint}", "url"
        if not isinstance(request.get("body"), dict):
            return "invalid_body", "allowed: a JSON object", "body"
        return None


def error(code: str, message: str, line: int | None = None, param: str | None = None) -> dict[str, Any]:
    """Return an error as a batch has it."""
    return {"code": code, "message": message, "line": line, "param": param}
