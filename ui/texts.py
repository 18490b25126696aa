"""The words of the page, by language and key. The page's own scripts read the same files."""

import json
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "zh")
FOLDER = Path(__file__).parent / "page" / "texts"


@cache
def texts(language: str) -> dict[str, str]:
    """Return all words of a language; the English ones where there are none in it."""
    name = language if language in LANGUAGES else LANGUAGES[0]
    words: dict[str, str] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return words
