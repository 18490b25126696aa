"""Requests that are left to a server as batches: OpenAI's `/v1/files` and `/v1/batches`."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import openai

LINES = 10_000
"""Of a batch, at most. OpenAI's API allows 50,000 lines in 200 MB; a smaller batch has its results sooner."""
RUNNING = ("validating", "in_progress", "finalizing", "cancelling")
POLL_S = 2.0
Take = Callable[[str, int, Any], None]
"""Takes the result of a line: its `custom_id`, the HTTP status and the body of the response; without one, 0 and the error."""


async def start(client: openai.AsyncOpenAI, lines: Mapping[str, Sequence[Mapping[str, Any]]], note: Callable[[str], None]) -> None:
    """Make batches of the lines of each endpoint, and `note` the id of each at once. Raises openai.OpenAIError."""
    for endpoint, all_ in lines.items():
        for some in (all_[first : first + LINES] for first in range(0, len(all_), LINES)):
            with tempfile.TemporaryFile() as file:
                file.writelines(json.dumps(line).encode() + b"\n" for line in some)
                file.seek(0)
                uploaded = await client.files.create(file=("evaluation.jsonl", file), purpose="batch")
            options: Any = {"input_file_id": uploaded.id, "endpoint": endpoint, "completion_window": "24h"}
            made = await client.batches.create(**options)
            note(made.id)


async def finish(client: openai.AsyncOpenAI, batch: str, take: Take, progress: Callable[[int], object]) -> list[str]:
    """Wait until a batch has ended, take its results, delete its files, and return why it was not accepted, if it was not.

    A batch that is no longer there has no results. `progress` gets how many more lines have ended. Raises openai.OpenAIError.
    """
    seen = 0
    while True:
        try:
            now = await client.batches.retrieve(batch)
        except openai.NotFoundError:
            return []
        if now.request_counts is not None:
            ended = now.request_counts.completed + now.request_counts.failed
            progress(ended - seen)
            seen = ended
        if now.status not in RUNNING:
            break
        await asyncio.sleep(POLL_S)
    for name in filter(None, (now.output_file_id, now.error_file_id)):
        with contextlib.suppress(openai.NotFoundError):  # taken before
            async with client.files.with_streaming_response.content(name) as content:
                async for line in content.iter_lines():
                    result = json.loads(line)
                    response = result.get("response") or {"status_code": 0, "body": result.get("error")}
                    take(result["custom_id"], response["status_code"], response["body"])
    for name in filter(None, (now.input_file_id, now.output_file_id, now.error_file_id)):
        with contextlib.suppress(openai.NotFoundError):
            await client.files.delete(name)
    return [str(error.message) for error in (now.errors and now.errors.data) or ()]
