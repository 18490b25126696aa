"""Keys as text."""

import hashlib
from typing import Any

SHOWN = 200
"""Keys of more characters are given by their digest."""


def short(key: tuple[Any, ...]) -> str:
    """Return a key as text, a long one by its digest."""
    text = repr(key)
    return text if len(text) <= SHOWN else f"{key[0]} {hashlib.sha256(text.encode(errors='backslashreplace')).hexdigest()}"


def text_key(answer: str) -> str:
    """Return the key of an answer as it is written, for one that takes too long to read."""
    return short(("as written", " ".join(answer.split())))
