"""Which JSON schemas are followed: every keyword of JSON Schema 2020-12, alone and in pairs, on the real matcher of the backend.

`jsonschema` says which instances are valid. Each schema is refused, or followed: no invalid instance passes.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import llguidance
import pytest
from jsonschema import Draft202012Validator

from deployments.errors import SchemaNotFollowedError
from deployments.ingress.json_schema import FORMATS, check_followed, exact
from tests.support.paths import ROOT

Schema = dict[str, Any]
TYPES = ("string", "integer", "number", "boolean", "null", "object", "array")
KEYWORDS: dict[str, list[Schema]] = {
    "type": [*({"type": name} for name in TYPES), {"type": ["string", "null"]}],
    "enum": [{"enum": [1, "a", None]}, {"enum": ["ab", "b"]}, {"enum": []}],
    "const": [{"const": 5}, {"const": "ab"}, {"const": {"a": 1}}],
    "multipleOf": [{"multipleOf": 5}, {"multipleOf": 0.5}],
    "minimum": [{"minimum": 3}, {"minimum": 2.5}],
    "maximum": [{"maximum": 7}, {"maximum": 7.5}],
    "exclusiveMinimum": [{"exclusiveMinimum": 3}, {"exclusiveMinimum": 2.5}],
    "exclusiveMaximum": [{"exclusiveMaximum": 7}],
    "minLength": [{"minLength": 2}],
    "maxLength": [{"maxLength": 3}],
    "pattern": [{"pattern": "^a+$"}, {"pattern": "b"}, {"pattern": "^ab"}],
    "format": [{"format": "date"}, {"format": "email"}, {"format": "ipv4"}, {"format": "strange"}],
    "contentEncoding": [{"contentEncoding": "base64"}],
    "strict": [{"strict": True}],
    "items": [{"items": {"type": "integer"}}, {"items": False}],
    "prefixItems": [{"prefixItems": [{"type": "integer"}, {"type": "string"}]}],
    "minItems": [{"minItems": 1}],
    "maxItems": [{"maxItems": 2}],
    "uniqueItems": [{"uniqueItems": True}],
    "contains": [{"contains": {"const": 5}}],
    "minContains": [{"contains": {"const": 5}, "minContains": 2}],
    "maxContains": [{"contains": {"const": 5}, "maxContains": 1}],
    "unevaluatedItems": [{"unevaluatedItems": False}],
    "properties": [{"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}],
    "required": [{"required": ["a"]}],
    "additionalProperties": [{"additionalProperties": False}, {"additionalProperties": {"type": "integer"}}],
    "patternProperties": [{"patternProperties": {"^a": {"type": "integer"}}}],
    "propertyNames": [{"propertyNames": {"pattern": "^a"}}],
    "minProperties": [{"minProperties": 1}],
    "maxProperties": [{"maxProperties": 1}],
    "dependentRequired": [{"dependentRequired": {"a": ["b"]}}],
    "dependentSchemas": [{"dependentSchemas": {"a": {"required": ["b"]}}}],
    "unevaluatedProperties": [{"unevaluatedProperties": False}],
    "allOf": [{"allOf": [{"minimum": 3}]}, {"allOf": [{"type": "integer"}, {"minimum": 3}]}],
    "anyOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"anyOf": [{"minimum": 3}, {"type": "string"}]}, {"anyOf": []}],
    "oneOf": [{"oneOf": [{"type": "integer"}, {"type": "string"}]}, {"oneOf": [{"type": "integer"}, {"minimum": 3}]}],
    "not": [{"not": {"type": "string"}}, {"not": {}}],
    "if": [{"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"minimum": 3}}],
    "then": [{"then": {"minLength": 2}}],
    "else": [{"else": {"minLength": 2}}],
    "$ref": [{"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}],
    "$defs": [{"$defs": {"s": {"type": "string"}}}],
    "$dynamicRef": [{"$dynamicRef": "#n"}],
    "$anchor": [{"$anchor": "n"}],
    "title": [{"title": "A", "description": "a", "default": 5, "examples": [1], "deprecated": True, "$comment": "a"}],
}
SCALARS = [None, True, 0, 1, 3, 4, 5, 7, 8, 10, -1, 2.5, 3.5, 0.49, 7.5, 0.5]
STRINGS = ["", "a", "aa", "ab", "b", "abb", "abcd", "aaaa", "xbx", "2023-02-29", "2024-02-29", "a@b.co", "1.2.3.4", "999.2.3.4"]
ARRAYS = [[], [1], [5], [5, 5], [1, "a"], ["a"], [1, 2, 3], [1, "a", 2], [1, 1]]
OBJECTS = [{}, {"a": 1}, {"a": "x"}, {"b": "x"}, {"a": 1, "b": "x"}, {"c": 1}, {"ab": 1}, {"ab": "x"}, {"a": 1, "c": "x"}]
INSTANCES = [*SCALARS, *STRINGS, *ARRAYS, *OBJECTS]
BYTES = llguidance.LLTokenizer("byte")
CHECKER = jsonschema.FormatChecker(("date", "email", "ipv4"))


def matcher(schema: Schema) -> Callable[[Any], bool] | None:
    """Return whether the backend lets an instance pass, as a function; None for a schema that is refused."""
    try:
        check_followed(schema, "schema")
    except SchemaNotFollowedError:
        return None
    grammar = llguidance.LLMatcher.grammar_from_json_schema(exact(schema), defaults={"whitespace_flexible": False})
    made = llguidance.LLMatcher(BYTES, grammar, log_level=0)
    if made.is_error():
        return None

    def passes(instance: Any) -> bool:
        text = list(json.dumps(instance, separators=(",", ":"), ensure_ascii=False).encode())
        copy = made.deep_copy()
        return copy.try_consume_tokens(text) == len(text) and copy.is_accepting()

    return passes


def verdict(schema: Schema) -> str:
    """Return "refused"; "exact"; "narrow" where valid instances do not pass; or "lax" with the invalid instances that pass."""
    passes = matcher(schema)
    if passes is None:
        return "refused"
    valid = Draft202012Validator(schema, format_checker=CHECKER).is_valid
    wrong = [instance for instance in INSTANCES if not valid(instance) and passes(instance)]
    if wrong:
        return f"lax: {wrong}"
    return "exact" if all(passes(instance) for instance in INSTANCES if valid(instance)) else "narrow"


def merged(*schemas: Schema) -> Schema | None:
    """Return one schema with the keywords of all; None where two have another value for one."""
    whole: Schema = {}
    for schema in schemas:
        for keyword, value in schema.items():
            if keyword == "$defs":
                value = whole.get(keyword, {}) | value
            elif whole.get(keyword, value) != value:
                return None
            whole[keyword] = value
    return whole


def pairs() -> Iterator[Schema]:
    for first, second in itertools.combinations(KEYWORDS, 2):
        for one, other in itertools.product(KEYWORDS[first], KEYWORDS[second]):
            if (whole := merged(one, other)) is not None:
                yield whole


def documented(schemas: str) -> dict[str, int]:
    """Return a row of the table in the docs that counts schemas."""
    table = (ROOT / "docs" / "reading.md").read_text().partition("| schemas of | exact |")[2]
    [row] = [line for line in table.splitlines() if line.startswith(f"| {schemas} |")]
    exact_, narrow, refused, lax, total = (int(cell.strip().replace(",", "")) for cell in row.split("|")[2:7])
    return {"exact": exact_, "narrow": narrow, "refused": refused, "lax": lax, "total": total}


def counts(verdicts: list[str]) -> dict[str, int]:
    found = Counter(one.partition(":")[0] for one in verdicts)
    return {name: found[name] for name in ("exact", "narrow", "refused", "lax")} | {"total": len(verdicts)}


def test_every_keyword_alone_is_refused_or_followed() -> None:
    found = {keyword: [verdict(schema) for schema in schemas] for keyword, schemas in KEYWORDS.items()}
    assert [(keyword, verdicts) for keyword, verdicts in found.items() if any("lax" in each for each in verdicts)] == []
    refused = {keyword for keyword, verdicts in found.items() if set(verdicts) == {"refused"}}
    assert refused == set(
        "uniqueItems contains minContains maxContains unevaluatedItems propertyNames dependentRequired dependentSchemas"
        " unevaluatedProperties not if then else $dynamicRef".split()
    )
    assert counts(list(itertools.chain(*found.values()))) == documented("one keyword")


def test_every_pair_of_keywords_is_refused_or_followed() -> None:
    found = [(schema, verdict(schema)) for schema in pairs()]
    assert [(schema, one) for schema, one in found if "lax" in one] == []
    assert [schema for schema, one in found if one == "narrow" and "multipleOf" not in schema] == [], "negative multiples alone"
    assert counts([one for _, one in found]) == documented("two keywords")


N = {"$defs": {"n": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "number", "multipleOf": 5}, [0, 10], [0.49, 7]),
        ({"type": "string", "minLength": 8, "pattern": "^a*$"}, ["aaaaaaaa"], ["", "aaaaaaa"]),
        ({"type": "string", "maxLength": 3, "pattern": "^a"}, ["ab"], ["abcd", "b"]),
        ({"allOf": [{"type": "number"}, {"minimum": 3}]}, [3, 4.5], [2]),
        ({"$ref": "#/$defs/n", "minimum": 100} | N, [100], [0, 99]),
        ({"type": "string", "enum": [1, "a"]}, ["a"], [1]),
        ({"type": "string", "pattern": "b"}, ["b", "abc"], ["a"]),
        ({"type": "integer", "minimum": 1.5, "maximum": 3.5}, [2, 3], [1, 4]),
        (
            {"properties": {"a": {"type": "integer"}}, "required": ["a"], "anyOf": [{"required": ["b"]}], "type": "object"},
            [{"a": 1, "b": 2}],
            [{}, {"a": 1}, {"b": 1}],
        ),
        ({"type": "string", "format": "time"}, ["10:00:00Z", "10:00:00+01:00"], ["10:00:60Z", "25:00:00Z", "10:00:00"]),
        ({"type": "string", "format": "date-time"}, ["2024-02-29T10:00:00Z"], ["2023-02-29T10:00:00Z", "2024-01-01T10:00:60Z"]),
    ],
)
def test_what_other_backends_read_over_is_followed(schema: Schema, valid: list[Any], invalid: list[Any]) -> None:
    passes = matcher(schema)
    assert passes is not None
    assert [passes(instance) for instance in valid] == [True] * len(valid)
    assert [passes(instance) for instance in invalid] == [False] * len(invalid)


def test_a_date_is_a_day_of_the_calendar() -> None:
    passes, valid = matcher({"type": "string", "format": "date"}), CHECKER.conforms
    assert passes is not None
    years = ("0000", "0004", "1900", "2000", "2023", "2024")
    days = [f"{year}-{month:02}-{day:02}" for year in years for month in range(14) for day in range(33)]
    assert [day for day in days if passes(day) != valid(day, "date")] == []


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "string", "const": 5}, "const"),
        ({"type": "string", "enum": [1, 2]}, "enum"),
        ({"enum": []}, "enum"),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, "exclusiveMinimum"),
        ({"type": "integer", "minimum": 7.2, "maximum": 7.5}, "minimum"),
        ({"type": "integer", "maximum": -74, "multipleOf": 2}, "multipleOf"),
        ({"type": "number", "exclusiveMaximum": 0, "multipleOf": 2}, "multipleOf"),
        ({"allOf": [{"multipleOf": 2}, {"maximum": -1}]}, "multipleOf"),
        ({"not": {}}, "not"),
        ({"anyOf": []}, "anyOf"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "items": [{"type": "integer"}]}, "items"),
        ({"type": "object", "properties": {"a": {"type": "integer", "minumum": 3}}}, "properties.a.minumum"),
        ({"type": "object", "properties": {"a": {"type": "object", "required": True}}}, "properties.a.required"),
        ({"type": "string", "format": "strange"}, "format"),
        ({"minLength": 1.5}, "minLength"),
        ({"minLength": True}, "minLength"),
        ({"multipleOf": 0}, "multipleOf"),
        ({"type": "strange"}, "type"),
        ({"type": []}, "type"),
        ({"$ref": "https://example.com/schema"}, "$ref"),
        ({"$ref": "#/$defs/m"} | N, "$ref"),
        ({"$ref": 5}, "$ref"),
        ({"$ref": "#"}, None),
        ({"anyOf": [{"$ref": "#"}]}, None),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, None),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, None),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, None),
        (5, None),
    ],
)
def test_what_is_refused_is_named(schema: Any, keyword: str | None) -> None:
    with pytest.raises(SchemaNotFollowedError) as caught:
        check_followed(schema, "schema")
    assert caught.value.param == ("schema" if keyword is None else f"schema.{keyword}")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]},
        {"type": "array", "items": {"$ref": "#"}},
        {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}}}},
        {"x-order": 3, "title": "T", "type": "string", "$schema": "https://json-schema.org/draft/2020-12/schema"},
    ],
)
def test_schemas_that_refer_to_themselves_and_notes_are_followed(schema: Schema) -> None:
    check_followed(schema, "schema")
    assert matcher(schema) is not None


def test_formats_are_tightened_wherever_they_stand_and_once() -> None:
    day, tighter = {"format": "date"}, {"format": "date", "allOf": [{"pattern": FORMATS["date"]}]}
    schema = {"properties": {"a": day}, "items": day, "anyOf": [day], "$defs": {"d": day}, "enum": [day], "default": day}
    once = exact(schema)
    assert once == {
        "properties": {"a": tighter},
        "items": tighter,
        "anyOf": [tighter],
        "$defs": {"d": tighter},
        "enum": [day],
        "default": day,
    }
    assert exact(once) == once
    assert schema["items"] == {"format": "date"}
