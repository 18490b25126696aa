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
import threading
import time
from datetime import UTC, datetime
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


_ended: queue.SimpleQueue[tuple[float, dict[str, float | str]]] | None = None


def ended(request_id: str, how: str, **fields: float | str) -> None:
    """Write the line of a request that has ended."""
    if _ended is not None:
        _ended.put((time.time(), {"request_id": request_id, "ended": how, **fields}))


def write_requests(deployment: str) -> None:
    """Begin this replica's log of requests. Without it, none is kept."""
    from ray.serve._private.logging_utils import get_serve_logs_dir

    global _ended
    path = Path(get_serve_logs_dir()) / f"requests_{deployment}_{os.getpid()}.log"
    file = logging.handlers.RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES_KEPT)
    _ended = queue.SimpleQueue()
    threading.Thread(target=_write, args=(_ended, file), daemon=True).start()


def _write(lines: queue.SimpleQueue[tuple[float, dict[str, float | str]]], file: logging.Handler) -> None:
    while True:
        at_s, fields = lines.get()
        when = datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")
        file.emit(logging.makeLogRecord({"msg": json.dumps({"time": when, "level": "INFO", **fields})}))
