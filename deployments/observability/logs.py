"""The application's own log lines, written to the process's standard error at once, as `LEVEL time name: message`.

They do not use Serve's logger, which holds a thousand lines back in throughput mode (Ray 2.60.0). Ray keeps a worker's standard
error in its logs and shows it in the terminal of `serve run`. Request ids are logged; the contents of requests are not.

Each ended request has a line in a file of the process instead, `requests_*.log` beside Serve's own logs
(`/tmp/ray/session_latest/logs/serve`). From standard error, Ray would forward these lines to the terminal, at a cost, and drop
those that look alike. A line is a JSON object, written by a thread.
"""

import atexit
import json
import logging
import logging.handlers
import os
import queue
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

FORMAT = logging.Formatter("%(levelname)s %(asctime)s %(name)s: %(message)s")
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


_requests = logging.getLogger("satori-requests")
_requests.propagate = False
_requests.setLevel(logging.INFO)


class _JsonFormatter(logging.Formatter):
    """Formats a record's fields as a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": when, "level": record.levelname, **record.__dict__["fields"]})


def ended(request_id: str, how: str, **fields: float | str) -> None:
    """Write the line of a request that has ended."""
    if _requests.handlers:
        _requests.info("", extra={"fields": {"request_id": request_id, "ended": how, **fields}})


def write_requests(deployment: str) -> logging.handlers.QueueListener:
    """Start this replica's log of requests and return its writer. Without this call, no such log is kept."""
    from ray.serve._private.logging_utils import get_serve_logs_dir

    path = Path(get_serve_logs_dir()) / f"requests_{deployment}_{os.getpid()}.log"
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(lines)
    handler.setFormatter(_JsonFormatter())
    listener = logging.handlers.QueueListener(lines, RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES_KEPT))
    listener.start()
    atexit.register(listener.stop)
    _requests.handlers[:] = [handler]
    return listener
