"""What has changed between two states of a reply, as short as it grows. The page puts it together again (`page/reattach.js`)."""

from typing import Any

Change = dict[str, Any]


def change(old: Any, new: Any) -> Change:
    """Return how JSON value `new` is made of `old`: {"=": value}, {"+": text to append}, or a change for each key or index."""
    if isinstance(old, str) and isinstance(new, str) and new.startswith(old):
        return {"+": new[len(old) :]}
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() <= new.keys():
        return {key: change(old.get(key), value) for key, value in new.items() if key not in old or old[key] != value}
    if isinstance(old, list) and isinstance(new, list) and len(old) <= len(new):
        pairs = zip([*old, *[None] * (len(new) - len(old))], new, strict=True)
        return {str(at): change(*pair) for at, pair in enumerate(pairs) if at >= len(old) or pair[0] != pair[1]}
    return {"=": new}
