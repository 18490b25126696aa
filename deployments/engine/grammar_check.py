"""What is wrong with a grammar, regex or schema for structured output: found before a request that has one begins.

This runs in a process of its own, which imports llguidance (1.7.6) alone: no event loop waits until a text is compiled. Its matcher
finds what cannot be compiled, and what can match nothing at its beginning. What it finds too late, in the middle of a reply, is
found here in the grammar's text: rules that can never end, terminals that match nothing, and tokens that no text has.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

FORCED = 64
"""So many tokens are followed where a grammar allows only one at a time."""
PROBES = 256
"""So many terminals and regexes of a grammar are tried by themselves."""
WORDS = 300
"""So many characters are repeated of what llguidance says."""

_TOKEN = re.compile(
    r"""
      (?P<comment>(?://|\#)[^\n]*)
    | (?P<string>"(?:\\.|[^"\\\n])*"i?)
    | (?P<regex>/(?!/)(?:\\.|[^/\\\n])+/[imslux]*)
    | (?P<special><[^<>\s]+>)
    | (?P<directive>%[a-z]+)
    | (?P<name>[!?]*_?[A-Za-z][\w-]*(?:\.[A-Za-z]\w*)*|@\w+)
    | (?P<repeat>[*+?]|\{\d*,?\d*\}|~\s*\d+(?:\s*\.\.\s*\d+)?)
    | (?P<newline>\n)
    | (?P<space>[^\S\n]+)
    | (?P<sign>->|::|\.\.|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_BRACKETS = {"(": ")", "[": "]", "{": "}"}

Item = tuple[str, Any, bool]
"""A part of a rule: its kind ("name", "text", "group"), what it is, and whether it may be left out. A group is its alternatives."""


def load() -> None:
    """Import what checks need."""
    import llguidance  # noqa: F401


def fault(kind: str, spec: str) -> str | None:
    """Return what is wrong with a specification of vLLM's kind (JSON, REGEX, GRAMMAR, ...); None where it can be followed."""
    import llguidance

    try:
        grammar = serialized(kind, spec)
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        return f"it cannot be read: {_short(str(error))}"
    tokenizer = llguidance.LLTokenizer("byte")
    if kind == "GRAMMAR" and (found := _Lark(grammar).fault(tokenizer)):
        return found
    if said := llguidance.LLMatcher.validate_grammar(grammar, tokenizer):
        return _short(said)
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    for _ in range(FORCED):
        allowed = _allowed(matcher)
        if matcher.is_error() or (matcher.is_stopped() and not matcher.is_accepting()):
            return "no text can match it"
        if matcher.is_stopped() or len(allowed) != 1:
            return None
        matcher.consume_token(allowed[0])
    return None


def serialized(kind: str, spec: str) -> str:
    """Return the grammar as llguidance takes it. Raises ValueError, KeyError or TypeError."""
    import llguidance

    def schema(given: Any) -> str:
        text = given if isinstance(given, str) else json.dumps(given)
        return str(llguidance.LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_flexible": False}))

    if kind in ("JSON", "JSON_OBJECT"):
        return schema(spec if kind == "JSON" else {"type": "object"})
    if kind == "STRUCTURAL_TAG":
        given = json.loads(spec)
        tags = []
        for structure in given["structures"]:
            begin = structure["begin"]
            trigger = next((trigger for trigger in given["triggers"] if begin.startswith(trigger)), None)
            if trigger is None:
                raise ValueError(f"no trigger is the beginning of {begin!r}")
            grammar = schema(structure["schema"])
            tags.append(llguidance.StructTag(trigger=trigger, begin=begin, grammar=grammar, end=structure["end"]))
        return str(llguidance.StructTag.to_grammar(tags))
    return str(llguidance.grammar_from(kind.lower(), spec))  # type: ignore[arg-type]


def _allowed(matcher: Any) -> list[int]:
    """Return the first two tokens that may come next."""
    found = []
    for token, bias in enumerate(matcher.compute_logit_bias()):
        if bias:
            found.append(token)
            if len(found) == 2:
                break
    return found


def _short(message: str) -> str:
    """Return what llguidance says in one line: it goes on with its own state, or with the text and then the error."""
    first, *others = message.strip().split("\n")
    return " ".join([first, *(line for line in others if line.startswith("error: "))])[:WORDS]


class _Lark:
    """The rules of a grammar in Lark's notation, as llguidance takes it (it makes Lark of EBNF itself).

    What this reader does not know counts as text that can be matched: llguidance says whether it is allowed.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [(found.lastgroup or "", found.group(), found.start()) for found in _TOKEN.finditer(text)]
        self._tokens = [token for token in self._tokens if token[0] not in ("comment", "space")]
        self._rules: dict[str, list[list[Item]]] = {}
        self._kept: list[str] = []  # terminals and directives, as they are
        for statement in self._statements():
            self._read(statement)

    def fault(self, tokenizer: Any) -> str | None:
        """Return what is wrong with the grammar, where this reader finds it."""
        for kind, token, _ in self._tokens:
            if kind == "special":
                return f"{token[:WORDS]}: tokens by name or number are not followed; write their text"
        ending = self._ending()
        for name in self._rules:
            if name not in ending:
                return f"the rule {name[:WORDS]!r} can never end"
        for probe in self._probes():
            if _matches_nothing("\n".join([*self._kept, f"start: {probe}"]), tokenizer):
                return f"{probe[:WORDS]} matches no text"
        return None

    def _statements(self) -> Iterator[list[tuple[str, str, int]]]:
        """Yield the tokens of each definition and directive: it ends with its line, unless the next one begins with `|`."""
        statement: list[tuple[str, str, int]] = []
        for kind, token, at in [*self._tokens, ("newline", "\n", len(self._text))]:
            new_line = bool(statement) and statement[-1][0] == "newline"
            if kind == "newline" or token == "|" or not new_line or self._open(statement):
                statement.append((kind, token, at))
            else:
                yield statement
                statement = [(kind, token, at)]
        yield statement

    @staticmethod
    def _open(statement: Sequence[tuple[str, str, int]]) -> bool:
        """Return whether a JSON object of a statement goes on."""
        signs = [token for kind, token, _ in statement if kind == "sign"]
        return signs.count("{") > signs.count("}")

    def _read(self, statement: Sequence[tuple[str, str, int]]) -> None:
        shown = [token for token in statement if token[0] != "newline"]
        if not shown:
            return
        colon = next((index for index, token in enumerate(shown) if token[1] == ":"), None)
        name = shown[0][1].lstrip("!?")
        if shown[0][0] != "name" or colon is None or name.lstrip("_")[:1].isupper():
            last = shown[-1]
            if name != "%ignore":
                self._kept.append(self._text[shown[0][2] : last[2] + len(last[1])])
            return
        body = shown[colon + 1 :]
        if body and body[-1][0] == "name" and len(body) > 1 and body[-2][1] == "->":
            body = body[:-2]
        self._rules.setdefault(name, []).extend(_alternatives(body, 0, "")[0])

    def _ending(self) -> set[str]:
        """Return the rules that can end: those of whose alternatives one consists of text and such rules."""
        users: dict[str, set[str]] = {}
        for name, alternatives in self._rules.items():
            for used in _names(alternatives):
                users.setdefault(used, set()).add(name)
        ending: set[str] = set()
        waiting = list(self._rules)
        while waiting:
            name = waiting.pop()
            if name not in ending and _ends(self._rules[name], lambda used: used in ending or used not in self._rules):
                ending.add(name)
                waiting += users.get(name, ())
        return ending

    def _probes(self) -> list[str]:
        """Return the terminals and regexes of the rules."""
        found = [token for kind, token, _ in self._tokens if kind == "regex"]
        for alternatives in self._rules.values():
            found += [name for name in _names(alternatives) if name not in self._rules and name.lstrip("_")[:1].isupper()]
        return list(dict.fromkeys(found))[:PROBES]


def _alternatives(tokens: Sequence[tuple[str, str, int]], at: int, closing: str) -> tuple[list[list[Item]], int]:
    """Return the alternatives that begin at a place, and the place behind the bracket that ends them."""
    found: list[list[Item]] = [[]]
    while at < len(tokens):
        kind, token, _ = tokens[at]
        at += 1
        if token == closing:
            break
        if token == "|":
            found.append([])
        elif token in ("(", "["):
            inner, at = _alternatives(tokens, at, _BRACKETS[token])
            found[-1].append(("group", inner, token == "["))
        elif token == "{":  # parameters of a rule, or JSON
            at = _behind(tokens, at)
        elif kind == "repeat":
            if found[-1] and _may_be_none(token):
                item, value, _ = found[-1][-1]
                found[-1][-1] = (item, value, True)
        else:
            found[-1].append(("name", token.lstrip("!?"), False) if kind == "name" else ("text", token, False))
    return found, at


def _behind(tokens: Sequence[tuple[str, str, int]], at: int) -> int:
    depth = 1
    while at < len(tokens) and depth:
        depth += (tokens[at][1] == "{") - (tokens[at][1] == "}")
        at += 1
    return at


def _may_be_none(repeat: str) -> bool:
    least = re.search(r"\d+", repeat.partition(",")[0])
    return repeat in "*?" or (repeat[0] in "{~" and (least is None or int(least.group()) == 0))


def _names(alternatives: list[list[Item]]) -> set[str]:
    found: set[str] = set()
    for sequence in alternatives:
        for kind, value, _ in sequence:
            found |= {value} if kind == "name" else _names(value) if kind == "group" else set()
    return found


def _ends(alternatives: list[list[Item]], ends: Any) -> bool:
    """Return whether one of the alternatives can end, where `ends` says so of a name."""
    return any(
        all(
            optional or kind == "text" or (ends(value) if kind == "name" else _ends(value, ends))
            for kind, value, optional in sequence
        )
        for sequence in alternatives
    )


def _matches_nothing(lark: str, tokenizer: Any) -> bool:
    import llguidance

    grammar = llguidance.LLMatcher.grammar_from_lark(lark)
    if llguidance.LLMatcher.validate_grammar(grammar, tokenizer):
        return False  # the whole grammar's check says what is wrong
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    matcher.compute_bitmask()
    return bool(matcher.is_error()) or (matcher.is_stopped() and not matcher.is_accepting())
