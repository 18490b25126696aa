"""The application's own log lines: to the process's standard error, at once, as `LEVEL time name: message`.

Not by Serve's logger: in throughput mode it holds a thousand lines back (Ray 2.60.0). Ray keeps a worker's standard error in its
logs and shows it in the terminal of `serve run`. Request ids are logged, what is in requests is not.
"""

import logging
import os


class _FileDescriptor(logging.Handler):
    """Writes whole lines to file descriptor 2, which Serve does not replace."""

    def emit(self, record: logging.LogRecord) -> None:
        os.write(2, (self.format(record) + "\n").encode(errors="backslashreplace"))


def logger(name: str) -> logging.Logger:
    """Return the logger `satori.NAME`."""
    parent = logging.getLogger("satori")
    if not parent.handlers:
        handler = _FileDescriptor()
        handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s %(name)s: %(message)s"))
        parent.addHandler(handler)
        parent.setLevel(logging.INFO)
        parent.propagate = False
    return parent.getChild(name)
