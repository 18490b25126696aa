"""Random JSON schemas on the real matcher, with the embedded model's tokens: random texts that it ends parse, and are valid.

They are the same in every run; SCHEMAS=1000 tries so many others. The seed is in the message of a failure; SCHEMAS_SEED=... repeats
a run.
"""

import json
import os
import random
from types import SimpleNamespace
from typing import Any

import jsonschema
from vllm.tokenizers import get_tokenizer
from vllm.v1.structured_output import backend_guidance
from vllm.v1.structured_output.backend_types import StructuredOutputOptions

from deployments.engine import guidance
from deployments.errors import SchemaNotFollowedError
from deployments.ingress.json_schema import FORMATS, check_followed, exact
from tests.support.paths import ROOT

NUMBER = int(os.environ.get("SCHEMAS", "20"))
SEED = int(os.environ.get("SCHEMAS_SEED", random.randrange(10**6) if "SCHEMAS" in os.environ else 1))
LONG, LONGEST = 40, 400
"""After so many tokens a text goes to its end; one that has not ended after the second number is left."""
CHECKER = jsonschema.FormatChecker(("date", "email", "ipv4", "ipv6", "uuid"))
WORDS = ["a", "steps", "a b", "é", '"', "\\", "<|continue|>", "<|im_end|>", "", "答案"]


def schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """Return a random schema; also of keywords that are refused."""
    kinds = [integer, number, string, matched, formatted, constant, enumerated, lambda _: {"type": rng.choice(["boolean", "null"])}]
    deeper = [array, items, mapping, alternatives, referring, both]
    kind = rng.choice(kinds + deeper * (depth < 3))
    return kind(rng, depth + 1) if kind in deeper else kind(rng)


def some(rng: random.Random, **keywords: Any) -> dict[str, Any]:
    return {name: value for name, value in keywords.items() if rng.random() < 0.5}


def integer(rng: random.Random) -> dict[str, Any]:
    low = rng.randrange(-200, 200)
    return (
        {"type": "integer"}
        | some(rng, minimum=low, maximum=low + rng.choice([0, 3, 5000]))
        | some(rng, multipleOf=rng.choice([2, 7]))
    )


def number(rng: random.Random) -> dict[str, Any]:
    return {"type": "number"} | some(rng, exclusiveMinimum=rng.choice([-1, 0, 2.5]), maximum=rng.choice([3, 99.75]))


def string(rng: random.Random) -> dict[str, Any]:
    return {"type": "string"} | some(rng, minLength=rng.randrange(8), maxLength=rng.randrange(8, 20))


def matched(rng: random.Random) -> dict[str, Any]:
    return string(rng) | {"pattern": rng.choice(["^[a-c]+$", r"^\d{3}-\d{4}$", "b", r"^\w", "^(ab|cd)*$", r"\.$"])}


def formatted(rng: random.Random) -> dict[str, Any]:
    return {"type": "string", "format": rng.choice([*FORMATS, "strange"])}


def value(rng: random.Random, depth: int = 0) -> Any:
    if depth < 2 and rng.random() < 0.3:
        return rng.choice([[value(rng, depth + 1)], {rng.choice(WORDS): value(rng, depth + 1)}])
    return rng.choice([None, True, 0, -7, 1.5, *WORDS])


def constant(rng: random.Random) -> dict[str, Any]:
    return {"const": value(rng)} | some(rng, type=rng.choice(["string", "integer"]))


def enumerated(rng: random.Random) -> dict[str, Any]:
    return {"enum": [value(rng) for _ in range(rng.randrange(1, 4))]}


def array(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randrange(3)
    return {"type": "array", "items": schema(rng, depth)} | some(rng, minItems=least, maxItems=least + rng.randrange(3))


def items(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "array", "prefixItems": [schema(rng, depth), schema(rng, depth)], "items": False} | some(rng, minItems=2)


def mapping(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(WORDS, rng.randrange(1, 4))
    required = [name for name in names if rng.random() < 0.6]
    more = rng.choice([False, {"type": "integer"}, True])
    return {"type": "object", "properties": {name: schema(rng, depth) for name in names}, "required": required} | some(
        rng, additionalProperties=more, minProperties=1
    )


def alternatives(rng: random.Random, depth: int) -> dict[str, Any]:
    return {rng.choice(["anyOf", "anyOf", "oneOf"]): [schema(rng, depth) for _ in range(rng.randrange(1, 4))]}


def referring(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"$ref": "#/$defs/d"} | some(rng, minimum=3, minLength=2)


def both(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"allOf": [schema(rng, depth), schema(rng, depth)]}


def written(rng: random.Random, matcher: Any, end: int) -> list[int] | None:
    """Return random tokens that a matcher allows, until it ends; None for a text that grows too long."""
    tokens: list[int] = []
    while not matcher.is_stopped():
        allowed = [token for token, bias in enumerate(matcher.compute_logit_bias()) if bias]
        assert allowed, (tokens, matcher.get_error())
        if end in allowed and (len(tokens) > LONG or len(allowed) == 1 or rng.random() < 0.3):
            return tokens
        ordinary = [token for token in allowed if token != end]
        closing = [token for token in ordinary if CLOSING[token]] if len(tokens) > LONG else []
        token = rng.choice(closing or ordinary)
        tokens.append(token)
        assert matcher.consume_token(token), matcher.get_error()
        if len(tokens) > LONGEST:
            return None
    return [token for token in tokens if token != end]


TOKENIZER: Any = get_tokenizer(str(ROOT / "models" / "nano"))
CLOSING = [TOKENIZER.decode([token]).strip()[-1:] in set('"]}') for token in range(len(TOKENIZER))]


def test_what_ends_is_valid() -> None:
    guidance.install()
    rng = random.Random(SEED)
    config = SimpleNamespace(
        structured_outputs_config=SimpleNamespace(disable_any_whitespace=True, disable_additional_properties=False)
    )
    backend = backend_guidance.GuidanceBackend(config, tokenizer=TOKENIZER, vocab_size=len(TOKENIZER))
    ended = 0
    for number_ in range(NUMBER * 20):
        asked = schema(rng) | {"$defs": {"d": schema(rng, 3)}}
        try:
            check_followed(asked, "schema")
            matcher = backend.compile_grammar(StructuredOutputOptions.JSON, json.dumps(exact(asked))).ll_matcher
        except (SchemaNotFollowedError, ValueError):
            continue
        tokens = written(rng, matcher, TOKENIZER.eos_token_id)
        if tokens is None:
            continue
        text = TOKENIZER.decode(tokens)
        where = f"SCHEMAS_SEED={SEED}, schema {number_}: {json.dumps(asked)} {text!r}"
        assert not set(tokens) & set(TOKENIZER.all_special_ids), where
        try:
            jsonschema.Draft202012Validator(asked, format_checker=CHECKER).validate(json.loads(text))
        except (ValueError, jsonschema.ValidationError) as error:
            raise AssertionError(where) from error
        ended += 1
        if ended == NUMBER:
            return
    raise AssertionError(f"SCHEMAS_SEED={SEED}: only {ended} texts ended")
