"""Every word of the page in every language, and no word that nobody uses."""

import re
from pathlib import Path

import pytest

import ui
from ui import errors
from ui.question import EFFORTS
from ui.reply import Reply
from ui.texts import LANGUAGES, texts

PAGE = Path(ui.__file__).parent / "page"
SOURCES = "".join(path.read_text() for path in [*PAGE.glob("*.js"), *PAGE.parent.glob("*.py")])


def used(key: str) -> bool:
    """Tell whether a key, or a template that makes it, is in the sources."""
    if f'"{key}"' in SOURCES or f"'{key}'" in SOURCES or key.endswith(".one"):
        return True
    parts = key.split(".")
    made = [".".join([*parts[:at], "${}", *parts[at + 1 :]]) for at in range(len(parts))]
    plain = re.sub(r"\$\{[^}]*\}", "${}", SOURCES)
    return any(f"`{template}`" in plain for template in made) or f"'{parts[0]}.'" in SOURCES


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_empty(language: str) -> None:
    words = texts(language)
    assert len(words) > 50
    assert [key for key, text in words.items() if not text.strip()] == []


def filled_in(words: dict[str, str]) -> dict[str, set[str]]:
    """Return what is filled into each text."""
    return {key: set(re.findall(r"\{(\w+)\}", text)) for key, text in words.items() if not key.endswith(".one")}


def test_all_languages_have_the_same_words_to_fill_in() -> None:
    assert len(LANGUAGES) > 1
    for language in LANGUAGES[1:]:
        assert texts(language).keys() == texts("en").keys()
        assert filled_in(texts(language)) == filled_in(texts("en"))


def test_every_word_is_used() -> None:
    assert [key for key in texts("en") if not used(key)] == []


def test_every_word_that_is_used_is_there() -> None:
    found = set(re.findall(r'\bt\("([\w.]+)"', SOURCES))
    assert len(found) > 20
    assert found - texts("en").keys() == set()


def test_every_kind_of_error_has_its_help() -> None:
    kinds = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, errors.ApiError)]
    assert {errors.ApiError, errors.LostError} < set(kinds)
    for kind in kinds:
        assert {f"error.{kind.kind}.title", f"error.{kind.kind}.help"} <= texts("en").keys()


def test_every_measurement_and_effort_has_its_word() -> None:
    stats = Reply("q")._stats()
    assert "ttft_s" in stats
    assert {f"stats.{name}" for name in stats} <= texts("en").keys()
    assert {f"effort.{name}.hint" for name in [*EFFORTS, "custom"]} <= texts("en").keys()


def test_an_unknown_language_is_english() -> None:
    assert texts("fr") == texts("en")
