r"""Bounds on structured output: what a schema, regex or grammar may contain, so that it is cheap to compile and to follow.

As measured with xgrammar 0.2.8, counts (`a{1000000000}`, `maxItems`) cost nothing. What costs is the length of the text, the
number of quantifiers (`.*` 200 times compiles for 20 s), items in a row that may be empty (`.?` 20 times: 5 s per token with a
large vocabulary) and repeated repetitions (`(a*)*`), which stall the engine at every token. Whatever passes these bounds has a
budget in the engine (`deployments.engine.grammar_budget`).
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from deployments.errors import GrammarTooComplexError

MOST_CHARACTERS = 32_768
MOST_CHOICES = 1_000
MOST_REGEX_CHARACTERS = 4_096
MOST_QUANTIFIERS = 50
MOST_OPTIONAL = 10
MOST_DEPTH = 32
MOST_VALUES = 4_000
MOST_COUNT = 1_000_000
COUNTS = frozenset("minLength maxLength minItems maxItems minProperties maxProperties minContains maxContains".split())


def check_choices(choices: Any, where: str) -> None:
    """Raise GrammarTooComplexError for too many choices."""
    if isinstance(choices, list):
        if len(choices) > MOST_CHOICES:
            _refuse(where, f"{len(choices)} choices", MOST_CHOICES)
        _check_length("".join(choice for choice in choices if isinstance(choice, str)), where)


def check_grammar(grammar: Any, where: str) -> None:
    """Raise GrammarTooComplexError for a grammar (EBNF, Lark) that is too long or too deep."""
    if isinstance(grammar, str):
        _check_length(grammar, where)
        depth = deepest = 0
        for character in grammar:
            depth += (character in "([{") - (character in ")]}")
            deepest = max(deepest, depth)
        if deepest > MOST_DEPTH:
            _refuse(where, f"{deepest} nested brackets", MOST_DEPTH)


def check_schema(schema: Any, where: str) -> None:
    """Raise GrammarTooComplexError for a JSON schema, given as one or as its text, or for a list of them."""
    if isinstance(schema, str):
        _check_length(schema, where)
        try:
            schema = json.loads(schema)
        except RecursionError:
            _refuse(where, "too many levels", MOST_DEPTH)
        except ValueError:
            return  # vLLM says what is wrong with it
    characters = 0
    for values, (key, value, depth) in enumerate(_walk(schema), 1):
        characters += len(key) + (len(value) if isinstance(value, str) else 4)
        if depth > MOST_DEPTH:
            _refuse(where, "too many levels", MOST_DEPTH)
        if values > MOST_VALUES:
            _refuse(where, "too many values", MOST_VALUES)
        if characters > MOST_CHARACTERS:
            _refuse(where, "too many characters", MOST_CHARACTERS)
        if key in COUNTS and isinstance(value, int | float) and value > MOST_COUNT:
            _refuse(f"{where}.{key}", "the count is too large", MOST_COUNT)
        if key == "pattern" and isinstance(value, str):
            check_regex(value, f"{where}.pattern")
        if key == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                check_regex(pattern, f"{where}.patternProperties")


def _walk(value: Any) -> Iterator[tuple[str, Any, int]]:
    """Yield each value in a structure with its key and depth, without recursion."""
    pending = [("", value, 1)]
    while pending:
        key, value, depth = pending.pop()
        yield key, value, depth
        if isinstance(value, dict):
            pending += [(name, item, depth + 1) for name, item in value.items()]
        elif isinstance(value, list):
            pending += [("", item, depth + 1) for item in value]


@dataclass
class _Group:
    """What has been read of a group: its current alternative so far, and the alternatives before."""

    items: int = 0
    empty: bool = True  # this alternative may match nothing
    empty_before: bool = True  # the same without its last item
    repeated: bool = False  # the last item of this alternative is repeated
    may_be_empty: bool = False  # an alternative before may match nothing
    one_repetition: bool = False  # an alternative before is a single repeated item
    row: int = 0  # how many of the last items in a row may match nothing
    row_before: int = 0  # the same without the last item
    longest_row: int = 0

    def add(self, empty: bool, row: int = 1) -> None:
        self.items += 1
        self.empty_before, self.empty, self.repeated = self.empty, self.empty and empty, False
        self.row_before, self.row = self.row, self.row + row if empty else 0
        self.longest_row = max(self.longest_row, self.row)

    def quantify(self, minimum: int, maximum: float) -> None:
        self.repeated |= maximum > 1
        if minimum == 0:
            self.empty = self.empty_before
            self.row = self.row or self.row_before + 1
            self.longest_row = max(self.longest_row, self.row)

    def end_alternative(self) -> None:
        self.may_be_empty |= self.empty
        self.one_repetition |= self.items == 1 and self.repeated
        self.items, self.empty, self.empty_before, self.repeated = 0, True, True, False
        self.row = self.row_before = 0


_QUANTIFIER = re.compile(r"(?:([*+?])|\{(\d*)(,?)(\d*)\})[?+]?")
_OPENING = re.compile(r"\((?:\?(?::|=|!|<=|<!|P?<\w*>|[a-z-]*:?))?")
_ATOM = re.compile(r"\\(?:[pPuk]\{[^}]*\}|.)|\[\^?\]?(?:\\.|[^\]\\])*\]?|.", re.DOTALL)


def check_regex(pattern: Any, where: str) -> None:
    """Raise GrammarTooComplexError for a regex that is too long or too complex.

    A repeated group may neither be empty nor be itself one repetition: `(a*)*` and `(a+)+` match a text in more ways than can be
    followed. Dialects differ; what is misread here is only miscounted.
    """
    if not isinstance(pattern, str):
        return
    if len(pattern) > MOST_REGEX_CHARACTERS:
        _refuse(where, f"{len(pattern)} characters", MOST_REGEX_CHARACTERS)
    groups, quantifiers, at = [_Group()], 0, 0
    ended: _Group | None = None  # the group that has just ended
    while at < len(pattern):
        group, closed = groups[-1], None
        if group.items and (found := _QUANTIFIER.match(pattern, at)):
            minimum, maximum = _counts(found)
            if maximum > 1 and ended is not None and (ended.may_be_empty or ended.one_repetition):
                raise GrammarTooComplexError(
                    where, "a repeated group may neither be empty nor be one repetition itself, as in (a*)*"
                )
            quantifiers += 1
            group.quantify(minimum, maximum)
        elif pattern[at] == "(":
            found = _OPENING.match(pattern, at)
            groups.append(_Group())
        elif pattern[at] == ")" and len(groups) > 1:
            closed, found = groups.pop(), None
            closed.end_alternative()
            groups[-1].add(closed.may_be_empty, max(closed.longest_row, 1))
        elif pattern[at] == "|":
            group.end_alternative()
            found = None
        else:
            found = _ATOM.match(pattern, at)
            if pattern[at] not in "^$":
                group.add(False)
        ended = closed
        at = found.end() if found else at + 1
        if quantifiers > MOST_QUANTIFIERS:
            _refuse(where, "too many quantifiers", MOST_QUANTIFIERS)
        if len(groups) > MOST_DEPTH:
            _refuse(where, "too many levels of groups", MOST_DEPTH)
        if groups[-1].longest_row > MOST_OPTIONAL:
            _refuse(where, "too many items in a row that may be empty", MOST_OPTIONAL)


def _counts(quantifier: re.Match[str]) -> tuple[int, float]:
    sign, minimum, comma, maximum = quantifier.groups()
    if sign:
        return {"*": (0, math.inf), "+": (1, math.inf), "?": (0, 1)}[sign]
    low = int(minimum[:10] or 0)
    return low, int(maximum[:10]) if maximum else (math.inf if comma else low)


def _check_length(text: str, where: str) -> None:
    if len(text) > MOST_CHARACTERS:
        _refuse(where, f"{len(text)} characters", MOST_CHARACTERS)


def _refuse(where: str, found: str, limit: int) -> NoReturn:
    raise GrammarTooComplexError(where, f"{found}; at most {limit} are allowed")
