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
def test_all_languages_have_the_same_words_to_fill_in(language: str) -> None:
    english, words = texts("en"), texts(language)
    assert words.keys() == english.keys()
    for key, text in words.items():
        assert text.strip()
        if not key.endswith(".one"):
            assert set(re.findall(r"\{(\w+)\}", text)) == set(re.findall(r"\{(\w+)\}", english[key])), key


def test_every_word_is_used() -> None:
    assert [key for key in texts("en") if not used(key)] == []


def test_every_word_that_is_used_is_there() -> None:
    assert {key for key in re.findall(r'\bt\("([\w.]+)"', SOURCES) if key not in texts("en")} == set()


def test_every_kind_of_error_has_its_help() -> None:
    kinds = [errors.ApiError, *errors.ApiError.__subclasses__()]
    for kind in kinds:
        assert {f"error.{kind.kind}.title", f"error.{kind.kind}.help"} <= texts("en").keys()


def test_every_measurement_and_effort_has_its_word() -> None:
    assert {f"stats.{name}" for name in Reply("q")._stats()} <= texts("en").keys()
    assert {f"effort.{name}.hint" for name in [*EFFORTS, "custom"]} <= texts("en").keys()


def test_an_unknown_language_is_english() -> None:
    assert texts("fr") == texts("en")
