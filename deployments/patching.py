"""Patches to the internals of libraries: each goes through here, says why, and fails loudly when its target no longer exists."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def patch(owner: Any, name: str, replacement: Any, *, why: str, until: str) -> Any:
    """Replace `owner.name`, a name inside a library, with `replacement`; return the original.

    `why` says what the library does without the patch, and `until` says when the patch can go: only people and the test that lists
    all patches read them. Raises AttributeError when this version of the library has no such name.
    """
    if not hasattr(owner, name):
        raise AttributeError(f"{owner!r} has no {name!r} to patch ({why}); was it written for another version?")
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    return original


@contextmanager
def patched(owner: Any, name: str, replacement: Any, *, why: str, until: str) -> Iterator[None]:
    """Apply `patch` for the duration of a `with` block."""
    original = patch(owner, name, replacement, why=why, until=until)
    try:
        yield
    finally:
        setattr(owner, name, original)


def extend(owner: Any, name: str, addition: Any, *, why: str, until: str) -> None:
    """Add `owner.name` to a class inside a library. Raises AttributeError when the library already has that name."""
    if hasattr(owner, name):
        raise AttributeError(f"{owner!r} has a {name!r} of its own ({why})")
    setattr(owner, name, addition)
