"""The application's own log lines: to the process's standard error, at once, as `LEVEL time name: message`.

Not by Serve's logger: in throughput mode it holds a thousand lines back (Ray 2.60.0). Ray keeps a worker's standard error in its
logs and shows it in the terminal of `serve run`. Request ids are logged, what is in requests is not.

A line for every request, when it has ended, goes to a file of the process instead, `requests_*.log` beside Serve's own logs
(`/tmp/ray/session_latest/logs/serve`): Ray would pass it on to the terminal, at a cost, and leave out what looks alike. It is a
JSON object, written by a thread.
"""

import json
import logging
import logging.handlers
import os
import queue
from datetime import UTC, datetime
from pathlib import Path

FORMAT = logging.Formatter("%(levelname)s %(asctime)s %(name)s: %(message)s")
REQUESTS = logging.getLogger("satori.requests")
REQUESTS.propagate = False
REQUESTS.addHandler(logging.NullHandler())
FILE_BYTES, FILES_KEPT = 50_000_000, 5


class _FileDescriptor(logging.Handler):
    """Writes whole lines to file descriptor 2, which Serve does not replace."""

    def emit(self, record: logging.LogRecord) -> None:
        os.write(2, (self.format(record) + "\n").encode(errors="backslashreplace"))


def logger(name: str) -> logging.Logger:
    """Return the logger `satori.NAME`."""
    parent = logging.getLogger("satori")
    if not parent.handlers:
        handler = _FileDescriptor()
        handler.setFormatter(FORMAT)
        parent.addHandler(handler)
        parent.setLevel(logging.INFO)
        parent.propagate = False
    return parent.getChild(name)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": when, "level": record.levelname, **record.fields})  # type: ignore[attr-defined]


def ended(request_id: str, how: str, **fields: float | str) -> None:
    """Write the line of a request that has ended."""
    if REQUESTS.isEnabledFor(logging.INFO):
        REQUESTS.info("", extra={"fields": {"request_id": request_id, "ended": how, **fields}})


def write_requests(deployment: str) -> None:
    """Begin this replica's log of requests. Without it, lines to `REQUESTS` go nowhere."""
    from ray.serve._private.logging_utils import get_serve_logs_dir

    path = Path(get_serve_logs_dir()) / f"requests_{deployment}_{os.getpid()}.log"
    file = logging.handlers.RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES_KEPT)
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(lines)
    handler.setFormatter(_Json())
    logging.handlers.QueueListener(lines, file).start()
    REQUESTS.addHandler(handler)
    REQUESTS.setLevel(logging.INFO)
