"""When Python collects garbage: never while a process imports vLLM, and seldom once it serves."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collecting() -> Iterator[None]:
    """Collect no garbage inside the `with` block, and leave the objects of the block out of later collections.

    An import makes objects that stay. As their number grows, Python traverses all of them again and again, which takes a fifth of
    the CPU time of vLLM's import. It traverses them once more whenever vLLM itself collects, five times while an engine starts.
    So they are left out afterwards, too, and so is the garbage that exists by then (16 MB from vLLM's import).
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
