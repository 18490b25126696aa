#!/usr/bin/env bash
# OpenAI's client does not raise for the error event of a Responses stream, and has no final response of one that was cut.
#
# Versions: openai 3.57.0 (Python client), with the events as OpenAI's API reference writes them.
#
# Expected: a stream of /v1/responses that ends with the event `error` raises, as one of /v1/chat/completions with an error does, and
#   `responses.stream(...).get_final_response()` returns the response of whichever event ends the stream.
# Instead: the client looks for a key `error` in each event's data. The documented error event has code and message at its top level, so
#   it is one more event, and the loop over the stream ends as if all were well: who prints text deltas shows a truncated reply. And
#   the helper knows `response.completed` alone as an end: after `response.incomplete` (max_output_tokens) it raises RuntimeError.
# Hurt: servers of this API that follow its reference, and their users. A server can send both shapes in one event, which this client
#   raises for; who reads a cut response with the helper finds it in the last event.
#
# Seen:
#   openai 3.57.0
#   error event, code and message at the top level: events response.created, error
#   error event, below the key `error`: APIError
#   error event, both: APIError
#   final response after response.completed: completed
#   final response after response.incomplete: RuntimeError
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0

cat >"$folder/finding.py" <<'PYTHON'
import json
import sys

import httpx2
import openai

RESPONSE = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "output": [], "tools": [], "tool_choice": "auto"}
RESPONSE |= {"parallel_tool_calls": True, "status": "in_progress"}
CREATED = {"type": "response.created", "sequence_number": 0, "response": RESPONSE}
WRONG = {"code": "server_error", "message": "the engine is gone", "param": None}
FLAT = {"type": "error", "sequence_number": 1} | WRONG
NESTED = {"type": "error", "sequence_number": 1, "error": WRONG | {"type": "server_error"}}
CUT = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}


def client(*events):
    """Return a client of a server that streams these events."""
    body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    answer = httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=body)
    transport = httpx2.MockTransport(lambda request: answer)
    return openai.OpenAI(api_key="none", base_url="http://server/v1", http_client=httpx2.Client(transport=transport), max_retries=0)


def read(last):
    """Read a stream to its end."""
    try:
        events = [event.type for event in client(CREATED, last).responses.create(model="m", input="x", stream=True)]
    except openai.APIError as error:
        return type(error).__name__
    return "events " + ", ".join(events)


def final(status, **more):
    """Read a stream with the helper, and ask it for the response."""
    last = {"type": f"response.{status}", "sequence_number": 1, "response": RESPONSE | {"status": status} | more}
    with client(CREATED, last).responses.stream(model="m", input="x") as stream:
        for _ in stream:
            pass
        try:
            return stream.get_final_response().status
        except RuntimeError as error:
            return type(error).__name__


print("openai", openai.__version__)
seen = {
    "error event, code and message at the top level": read(FLAT),
    "error event, below the key `error`": read(NESTED),
    "error event, both": read(FLAT | NESTED),
    "final response after response.completed": final("completed"),
    "final response after response.incomplete": final(**CUT),
}
for what, came in seen.items():
    print(f"{what}: {came}")
wanted = ["events response.created, error", "APIError", "APIError", "completed", "RuntimeError"]
sys.exit(0 if list(seen.values()) == wanted else "different from what was seen")
PYTHON
"$folder/venv/bin/python" "$folder/finding.py"
