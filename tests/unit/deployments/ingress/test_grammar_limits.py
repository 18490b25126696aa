"""Bounds on structured output: what is refused and named, and that ordinary schemas and regexes pass."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import GrammarTooComplexError
from deployments.ingress.grammar_limits import check_choices, check_grammar, check_regex, check_schema


@pytest.mark.parametrize(
    "pattern",
    [
        r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}",
        r"^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2})?)?$",
        r"([a-z]+,)*[a-z]+",
        r"(?:\+\d{1,3} ?)?(\(\d+\)|\d+)([ -]\d+)*",
        r"(?P<year>\d+)|(?<day>[^\]*+(]{3})",
        r"[*+?(]*[]a]+\)\*{2}",
        r"(a+)?(b*)",
        r"(\w+\s)+x{,3}",
        r".{0,100000}",
        r"(\w+\s*){3}",
        r"a?b?c?de?f?g?hi?j?k?lm?n?o?",
        r"(a{1000}b){1000}",
        r"\p{L}+\u{1F600}*",
        "",
        "(",
        "a)b",
        "*",
        "x{",
        "x{a}",
        "[",
        "\\",
    ],
)
def test_ordinary_and_wrong_regexes_pass(pattern: str) -> None:
    check_regex(pattern, "regex")


@pytest.mark.parametrize(
    "pattern",
    [
        "(a*)*b",
        "(a+)+",
        "((a+)+)+$",
        "((a|aa)+){50}",
        "(a?){1000}a{1000}",
        "(?:a*|b)*",
        "(a|b?)+",
        "(|a)+",
        "((a*))+",
        "(?:x*y*)+",
        "(^)*",
        "(a{0,3}){2,}?",
        "(" * 100 + "a" + ")" * 100,
        "(" * 50_000,
        ".*" * 200,
        ".?" * 20,
        "(.?.?.?.?.?.?)(.?.?.?.?.?.?)",
        "x+" * 60,
        "a" * 5_000,
        "|".join(f"w{i}" for i in range(10_000)),
    ],
)
def test_exploding_regexes_are_refused(pattern: str) -> None:
    with pytest.raises(GrammarTooComplexError, match=r"^structured_outputs\.regex: ") as caught:
        check_regex(pattern, "structured_outputs.regex")
    assert caught.value.body()["error"]["param"] == "structured_outputs.regex"
    assert caught.value.body()["error"]["code"] == "grammar_too_complex"
    with pytest.raises(GrammarTooComplexError):
        check_schema({"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}, "schema")
    with pytest.raises(GrammarTooComplexError):
        check_schema({"patternProperties": {pattern: {}}}, "schema")


def nested(levels: int, leaf: Any) -> Any:
    for _ in range(levels):
        leaf = {"anyOf": [leaf, leaf]}
    return leaf


def line(levels: int) -> Any:
    schema: Any = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 100, "pattern": "^[A-Z][a-z]+$"},
        "pattern": {"type": "string"},
        "friends": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1000},
        "kind": {"enum": [f"kind {i}" for i in range(500)]},
    },
    "required": ["name"],
}


def test_ordinary_schemas_pass() -> None:
    check_schema(PERSON, "schema")
    check_schema(json.dumps(PERSON), "schema")
    check_schema([PERSON] * 5, "tools")
    check_schema({"properties": {f"p{i}": {"type": "string"} for i in range(500)}}, "schema")
    for odd in ("{not JSON", None, True, 5, "5"):
        check_schema(odd, "schema")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (nested(14, {"type": "integer"}), "too many values; at most 4000"),
        ({"properties": {f"p{i}": {"type": "string"} for i in range(10_000)}}, "too many "),
        (line(40), "too many levels"),
        (line(900), "too many levels"),
        ("[" * 30_000, "too many levels"),
        ({"enum": ["x" * 40_000]}, "too many characters"),
        ({"properties": {"x" * 40_000: {}}}, "too many characters"),
        (json.dumps({"enum": ["x" * 40_000]}), "40014 characters"),
        ({"items": {"type": "string", "maxLength": 10**9}}, "schema.maxLength: the count is too large; at most 1000000"),
        ({"minItems": 10**400}, "schema.minItems: "),
        ({"minItems": 1e300}, "schema.minItems: "),
    ],
    ids=range(11),
)
def test_exploding_schemas_are_refused_at_once(schema: Any, said: str) -> None:
    with pytest.raises(GrammarTooComplexError, match=said):
        check_schema(schema, "schema")


def test_choices_and_grammars() -> None:
    check_choices(["yes", "no"], "choice")
    check_choices("no list", "choice")
    check_grammar('root ::= ("a" | "b"){3}', "grammar")
    check_grammar(None, "grammar")
    for choices in (["a"] * 100_000, ["a" * 40_000]):
        with pytest.raises(GrammarTooComplexError, match="choice: "):
            check_choices(choices, "choice")
    for grammar in ("x" * 40_000, "root ::= " + "(" * 100 + '"a"' + ")" * 100):
        with pytest.raises(GrammarTooComplexError, match="grammar: "):
            check_grammar(grammar, "grammar")


@given(st.text(alphabet=r"a\[]()*+?{},|^$.0-:<", max_size=60))
def test_any_text_is_read_to_its_end(pattern: str) -> None:
    try:
        check_regex(pattern, "regex")
    except GrammarTooComplexError as error:
        assert any(word in str(error) for word in ("repeated group", "levels", "in a row", "quantifiers"))  # noqa: PT017
