"""When Python collects garbage: never while a process imports vLLM, and seldom once it serves."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collecting() -> Iterator[None]:
    """Collect nothing for a while.

    An import makes objects that stay. Python looks at all of them again and again as they grow in number, which takes a fifth of
    the CPU time of vLLM's import; and once more whenever vLLM collects by itself, five times while an engine starts. So they are
    left out afterwards, too, and with them the garbage that there is by then (16 MB of vLLM's import).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def collect_less() -> None:
    """Collect garbage less often. Call it when start-up is done.

    A token makes dozens of short-lived objects; at Python's default threshold of 700, collections that find nothing run all
    the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
