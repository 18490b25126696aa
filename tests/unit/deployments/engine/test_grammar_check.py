"""What is wrong with a grammar is found in its text, whatever llguidance finds only later; what is right passes."""

import random
import re

import pytest

from deployments.engine.grammar_check import fault

JSON_GRAMMAR = r"""
root   ::= object
value  ::= object | array | string | ("true" | "false" | "null")   # a comment: ::= | "x"
object ::= "{" (string ":" value ("," string ":" value)*)? "}"
array  ::= "[" (value ("," value)*)? "]"
string ::= "\"" [^"]* "\""
"""
SUMS = """
start: sum
sum: product | sum "+" product -> add   // a comment: start | "x"
    | sum /-/ product
product: ATOM | "(" sum ")" | [ATOM] product ATOM{2,3}
ATOM: /[0-9]+/i
%ignore /[ ]+/
"""


@pytest.mark.parametrize(
    "grammar",
    [
        JSON_GRAMMAR,
        SUMS.strip(),
        'root ::= "a" | "b" root',
        'root ::= root "a" | "a"',
        'root ::= "x" root{0,1}',
        'root ::= "x" ("y" root)*',
        'start: x\nx: %json {\n"type": "integer"}\n',
        'start: x\nx[stop="."]: /.*/',
        "%import common.INT\nstart: INT",
        'start: ""',
    ],
)
def test_a_grammar_that_can_end_passes(grammar: str) -> None:
    assert fault("GRAMMAR", grammar) is None


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ('root ::= "x" root | "y" root', "'start' can never end"),
        ('root ::= "x" | a\na ::= ("y" | "z") (a)+', "'a' can never end"),
        ('start: "x" a\na: "y" b{1,2} | a\nb: "z" a', "can never end"),
        ("start: start", "'start' can never end"),
        ('start: "x" <[5]>', r"<\[5\]>: tokens by name or number"),
        ("start: <|x|>", r"<\|x\|>: tokens by name or number"),
        ('start: "a" | "b" T\nT: /c+/ & /d+/', "T matches no text"),
        ('start: "a" /[^\\s\\S]/', "matches no text"),
        ("root ::= other", "other"),
        ("root ::= (", "cannot be read"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_told_why(grammar: str, words: str) -> None:
    found = fault("GRAMMAR", grammar)
    assert found is not None
    assert re.search(words, found), found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        ("REGEX", r"\d+", None),
        ("REGEX", "", None),
        ("REGEX", r"a[^\s\S]", "no text can match"),
        ("REGEX", "a(?=b)", "look"),
        ("JSON", '{"type": "integer"}', None),
        ("JSON", '{"$ref": "#"}', "no text can match"),
        ("JSON", "[", "cannot be read"),
        ("JSON_OBJECT", "", None),
        ("CHOICE", '["yes", "no"]', None),
        ("STRUCTURAL_TAG", '{"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a"]}', None),
        ("STRUCTURAL_TAG", '{"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<b"]}', "no trigger"),
        ("STRUCTURAL_TAG", '{"structures": [], "triggers": ["<b"]}', "cannot be read"),
    ],
)
def test_other_formats(kind: str, spec: str, words: str | None) -> None:
    found = fault(kind, spec)
    assert found is None if words is None else words in str(found)


@pytest.mark.parametrize("seed", range(40))
def test_rules_that_end_are_told_from_rules_that_do_not(seed: int) -> None:
    """Random grammars whose rules are known to end or not: a rule ends if it has text alone, or only rules that do."""
    choose = random.Random(seed)
    names = ["root", *(f"r{number}" for number in range(choose.randint(0, 5)))]
    rules = {name: [choose.choices([*names, '"x"'], k=choose.randint(1, 2)) for _ in range(choose.randint(1, 2))] for name in names}
    ending: set[str] = {'"x"'}
    for _ in names:
        ending |= {name for name, parts in rules.items() if any(ending.issuperset(part) for part in parts)}
    text = "\n".join(f"{name} ::= {' | '.join(' '.join(part) for part in parts)}" for name, parts in rules.items())
    assert (fault("GRAMMAR", text) is None) == ending.issuperset(names), text
