"""The signals that stop a command which has started other processes."""

import signal

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The last one comes from a terminal that closes."""


def interrupt_by_signals() -> None:
    """Let all of `STOPS` raise KeyboardInterrupt, as Ctrl-C does, so that no process is left behind."""
    for number in STOPS:  # SIGINT too: a shell's background job ignores it
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # under `nohup`, it outlives its terminal
            signal.signal(number, signal.default_int_handler)
