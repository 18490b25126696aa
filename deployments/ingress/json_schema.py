r"""JSON schemas that the engine follows exactly: an allow-list, walked over a whole schema. All else is refused, by its keyword.

The backend is llguidance (1.7.6). It refuses some schemas itself; its unit test drives it with every keyword of JSON Schema
2020-12, alone and in pairs. What it would read over in silence is refused here: keywords that it does not know, and the forms of
older drafts. `exact` tightens the formats in which it is lax.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from deployments.errors import SchemaNotFollowedError

TYPES = frozenset("string integer number boolean null object array".split())
ANNOTATIONS = frozenset(
    """
    title description default examples example deprecated readOnly writeOnly nullable discriminator $comment $schema $id $anchor
    $dynamicAnchor $vocabulary contentEncoding contentMediaType contentSchema strict
    """.split()
)
"""Keywords that ask nothing of a value. (`nullable` allows more than is written; `strict` belongs beside a schema, and many write
it into one.)"""
_DAY = (
    r"(?:(?!0000)[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)"
).replace("(?!0000)[0-9]{4}", "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)")
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
FORMATS: dict[str, str | None] = {
    "date": f"^{_DAY}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DAY}[Tt]{_TIME}$",
    **dict.fromkeys("duration email hostname ipv4 ipv6 uuid uri".split()),
}
"""The formats that are followed, with a pattern where llguidance's own is lax: it has 29 February in all years, and second 60."""

MAPS = frozenset("properties patternProperties $defs definitions".split())
LISTS = frozenset("prefixItems allOf anyOf oneOf".split())
SCHEMAS = frozenset("items additionalProperties".split())
COUNTS = frozenset("minLength maxLength minItems maxItems minProperties maxProperties".split())
BOUNDS = frozenset("minimum maximum exclusiveMinimum exclusiveMaximum".split())
PASSES = 64
"""How deeply schemas may depend on each other by `$ref`."""
_POINTER = re.compile(r"#(?:/.*)?")


def check_followed(schema: Any, where: str) -> None:
    """Raise SchemaNotFollowedError for a schema that the engine would not follow exactly, or that no finite value can meet."""
    if not isinstance(schema, dict):
        _refuse(where, "a schema is an object here")
    pending, schemas = [(schema, where)], []
    while pending:
        node, path = pending.pop()
        schemas.append(node)
        for keyword, value in node.items():
            _check(keyword, value, node, f"{path}.{keyword}")
            pending += [
                (child, below) for child, below in _children(keyword, value, f"{path}.{keyword}") if isinstance(child, dict)
            ]
        _check_together(node, path)
        if (reference := node.get("$ref")) is not None and not isinstance(_resolve(schema, reference), dict | bool):
            _refuse(f"{path}.$ref", f"{reference!r} is not in the schema")
    _check_multiples(schemas, where)
    if not _has_finite_value(schema, schemas):
        _refuse(where, "no finite value can meet it ($ref, required)")


def _check_multiples(schemas: Sequence[dict[str, Any]], where: str) -> None:
    """Refuse multiples below zero: the backend writes none, and its text would end where one is due."""
    combined = any(keyword in node for node in schemas for keyword in ("allOf", "anyOf", "oneOf", "$ref"))
    below = [node for node in schemas if node.get("maximum", 0) < 0 or node.get("exclusiveMaximum", 1) <= 0]
    for node in schemas:
        if "multipleOf" in node and below and (combined or node in below):
            _refuse(f"{where}.multipleOf", "multiples are written without a minus sign; a maximum below zero leaves none")


def followed(schema: Any) -> Any:
    """Return the schema as the engine follows it exactly; that of any object where it cannot."""
    try:
        check_followed(schema, "")
    except SchemaNotFollowedError:
        return {"type": "object"}
    return exact(schema)


def exact(schema: Any) -> Any:
    """Return the schema with patterns beside the formats that llguidance follows only roughly. The argument stays as it is."""
    if not isinstance(schema, dict):
        return schema
    changed = dict(schema)
    for keyword, value in schema.items():
        if keyword in MAPS and isinstance(value, dict):
            changed[keyword] = {name: exact(child) for name, child in value.items()}
        elif keyword in LISTS and isinstance(value, list):
            changed[keyword] = [exact(child) for child in value]
        elif keyword in SCHEMAS:
            changed[keyword] = exact(value)
    format_ = schema.get("format")
    if isinstance(format_, str) and (pattern := FORMATS.get(format_)):
        tighter = {"pattern": pattern}
        changed["allOf"] = [*(part for part in changed.get("allOf", ()) if part != tighter), tighter]
    return changed


def _children(keyword: str, value: Any, path: str) -> list[tuple[dict[str, Any], str]]:
    """Return the schemas in a keyword's value, each with its path."""
    found: Iterable[tuple[Any, str]] = [(value, path)] if keyword in SCHEMAS else []
    if keyword in MAPS:
        found = ((child, f"{path}.{name}") for name, child in value.items())
    elif keyword in LISTS:
        found = ((child, f"{path}.{index}") for index, child in enumerate(value))
    return [(child, below) for child, below in found if isinstance(child, dict)]


def _check(keyword: str, value: Any, node: Mapping[str, Any], path: str) -> None:
    if keyword in ANNOTATIONS or keyword.startswith("x-"):
        return
    if keyword not in VALUES:
        _refuse(path, "the engine cannot enforce this keyword; leave it out")
    allowed, holds = VALUES[keyword]
    if not holds(value):
        _refuse(path, f"allowed: {allowed}")


def _check_together(node: Mapping[str, Any], path: str) -> None:
    types = node.get("type")
    types = {types} if isinstance(types, str) else set(types) if types else TYPES
    for keyword in ("const", "enum"):
        values = node["enum"] if keyword == "enum" and keyword in node else [node["const"]] if keyword in node else None
        if values is not None and not any(_types(value) & types for value in values):
            _refuse(f"{path}.{keyword}", f"no value of it is of the type beside it ({', '.join(sorted(types))})")
    if types == {"integer"}:
        low = max([-(2**63), *(-(-node[name] // 1) for name in ("minimum",) if name in node)])
        high = min([2**63, *(node[name] // 1 for name in ("maximum",) if name in node)])
        if low > high:
            _refuse(f"{path}.minimum", f"no integer is between {node.get('minimum')} and {node.get('maximum')} (maximum)")


def _types(value: Any) -> set[str]:
    """Return the types of JSON Schema that a value has."""
    if value is None or isinstance(value, bool):
        return {"null" if value is None else "boolean"}
    if isinstance(value, int | float):
        return {"number", "integer"} if value == value // 1 else {"number"}
    return {"string"} if isinstance(value, str) else {"array"} if isinstance(value, list) else {"object"}


def _resolve(schema: Any, reference: str) -> Any:
    """Return what a JSON pointer (`#/$defs/x`) names in a schema; None if nothing."""
    found = schema
    for part in reference.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def _has_finite_value(root: dict[str, Any], schemas: Sequence[dict[str, Any]]) -> bool:
    """Return whether some finite value may meet `root`, as far as references and required parts decide it.

    `schemas` are all that are in it, outer ones first. Those that may be met become known in passes, the simplest first.
    """
    known: set[int] = set()

    def of(schema: Any) -> bool:
        return id(schema) in known if isinstance(schema, dict) else schema is not False

    for _ in range(PASSES):
        before = len(known)
        known.update(id(schema) for schema in reversed(schemas) if id(schema) not in known and _met(root, schema, of))
        if id(root) in known or len(known) == before:
            break
    return id(root) in known


def _met(root: dict[str, Any], schema: dict[str, Any], of: Callable[[Any], bool]) -> bool:
    parts = list(schema.get("allOf", ()))
    if "$ref" in schema:
        parts.append(_resolve(root, schema["$ref"]))
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        parts += [properties[name] for name in schema.get("required", ()) if name in properties]
    if schema.get("type") == "array" and schema.get("minItems", 0) > len(schema.get("prefixItems", ())):
        parts.append(schema.get("items"))
    return all(map(of, parts)) and all(any(map(of, schema[name])) for name in ("anyOf", "oneOf") if name in schema)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


def _pointer(value: Any) -> bool:
    return isinstance(value, str) and bool(_POINTER.fullmatch(value))


def _schema_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_schema, value))


def _schema_map(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_schema, value.values()))


def _format(value: Any) -> bool:
    return isinstance(value, str) and value in FORMATS


VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "type": (f"one or some of {', '.join(sorted(TYPES))}", _type),
    "enum": ("a list of at least one value", lambda value: isinstance(value, list) and bool(value)),
    "const": ("a value", lambda value: True),
    "multipleOf": ("a number above 0", lambda value: _number(value) and value > 0),
    "pattern": ("a regex", lambda value: isinstance(value, str)),
    "format": (", ".join(sorted(FORMATS)), _format),
    "required": ("a list of names", _strings),
    "$ref": ("a pointer into this schema, such as #/$defs/name", _pointer),
    **dict.fromkeys(COUNTS, ("a whole number, 0 or more", _count)),
    **dict.fromkeys(BOUNDS, ("a number", _number)),
    **dict.fromkeys(SCHEMAS, ("a schema", _schema)),
    **dict.fromkeys(LISTS, ("a list of at least one schema", _schema_list)),
    **dict.fromkeys(MAPS, ("schemas by name", _schema_map)),
}
"""The keywords that are followed: what their values may be, in words and as a check."""


def _refuse(where: str, message: str) -> NoReturn:
    raise SchemaNotFollowedError(where, message)
