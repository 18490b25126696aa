r"""Parts of answers, separated outside of brackets; numbers without separators of thousands, repeating decimals as fractions."""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from deployments.reasoning.answers import formula, grammar, regions
from deployments.reasoning.answers.formula import Key, UndefinedError
from deployments.reasoning.answers.grammar import Node, UnreadError
from deployments.reasoning.answers.regions import INFINITY

OPENING, CLOSING = "([{⟪⟨⌊⌈", ")]}⟫⟩⌋⌉"


class Inner:
    """Makes the keys of an answer's parts, which are answers that are nested one deeper. `depth` is the answer's own."""

    def __init__(self, key_of: Callable[[str, int], Key], depth: int) -> None:
        self._key_of, self.depth = key_of, depth

    def __call__(self, text: str) -> Key:
        """Return the key of a part."""
        return self._key_of(text, self.depth + 1)


def scan(text: str, at: int = 0) -> list[tuple[int, str]]:
    """Return the positions and characters that are in no brackets and no words."""
    found, depth, word, bars = [], 0, False, False
    for position in range(at, len(text)):
        character = text[position]
        if character == "⟦":
            word = True
        elif character == "⟧":
            word = False
        elif word:
            continue
        elif character in OPENING:
            if depth == 0:
                found.append((position, character))
            depth += 1
        elif character in CLOSING:
            depth -= 1
            if depth <= 0:
                depth = 0
                found.append((position, character))
        elif character == "|":
            bars = not bars
            if depth == 0:
                found.append((position, character))
        elif depth == 0:
            found.append((position, character))
    return found


def split(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Return the parts of a text between separators that are in no brackets, and the separators."""
    outside = {position for position, _ in scan(text)}
    parts, signs, at = [], [], 0
    for match in separator.finditer(text):
        if match.start() in outside and match.start() >= at:
            parts.append(text[at : match.start()].strip())
            signs.append(match[0].strip())
            at = match.end()
    return [*parts, text[at:].strip()], signs


def joined(text: str, commas: bool) -> str:
    """Return a text with the separators of thousands taken out; commas only if they separate nothing else here."""
    text = re.sub(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d]|[ ,]\d)", lambda match: match[0].replace(" ", ""), text)
    text = re.sub(r"(?<![\d.])\d{1,3}(?:['_]\d{3})+(?!\d)", lambda match: re.sub("['_]", "", match[0]), text)
    if commas:
        text = re.sub(
            r"(?<![\d,.])[1-9]\d{0,2}(?:\.\d{3})+,\d{1,2}(?!\d)", lambda match: match[0].replace(".", "").replace(",", "."), text
        )
        text = re.sub(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)", lambda match: match[0].replace(",", ""), text)
        text = re.sub(r"(?<![\d,.])[1-9]\d?(?:,\d{2})+,\d{3}(?!\d|,\d)", lambda match: match[0].replace(",", ""), text)
    return re.sub(r"(?<![\d,.])[1-9]\d{0,2}(?:\.\d{3}){2,}(?![\d.])", lambda match: match[0].replace(".", ""), text)


def repeated(text: str) -> str:
    r"""Return a text with repeating decimals as fractions: 0.\overline{3}, 0.(3), 0.333…"""

    def fraction(whole: str, fixed: str, block: str) -> str:
        value = Fraction(int(whole + fixed + block) - int(whole + fixed or "0"), (10 ** len(block) - 1) * 10 ** len(fixed))
        return f"({value})"

    text = re.sub(
        r"(\d+)\.(\d*)\\(?:overline|bar|dot|overbar) ?\{?\s*(\d+)\s*\}?", lambda match: fraction(match[1], match[2], match[3]), text
    )
    text = re.sub(r"(?<![\w.])(\d+)\.(\d*)\((\d+)\)(?!\w)", lambda match: fraction(match[1], match[2], match[3]), text)
    if "…" not in text:
        return text
    return re.sub(r"(?<![\w.])(\d+)\.(\d*?)(\d+?)\3{2,}…", lambda match: fraction(match[1], match[2], match[3]), text)


def value_of(text: str) -> Any:
    """Return the number that a text stands for, exact where it can be: plus and minus infinity, too. None for what is no number."""
    text = joined(repeated(text), True).strip()
    if re.fullmatch(r"\+?\s*(?:∞|infinity|inf)", text):
        return INFINITY
    if re.fullmatch(r"-\s*(?:∞|infinity|inf)", text):
        return -INFINITY
    try:
        node = grammar.parse(text)
        return None if grammar.names_of(node) else formula.constant(node)
    except (UnreadError, UndefinedError):
        return None


def number(value: Any) -> Key:
    """Return the key of a number."""
    return ("number", regions.end(value))


def node_of(text: str) -> Node | None:
    """Return a formula's node; None for what is no formula."""
    try:
        return grammar.parse(joined(repeated(text), True))
    except UnreadError:
        return None


def several(keys: list[Key]) -> Key:
    """Return the key of answers in any order, without brackets: that of a set, where no answer comes twice."""
    ordered = sorted(keys, key=repr)
    if len(ordered) == 1:
        return ordered[0]
    return ("set" if len(set(ordered)) == len(ordered) else "list", *ordered)


def set_of(keys: list[Key]) -> Key:
    """Return the key of a set; that of its element where there is one."""
    return several(list(set(keys))) if keys else ("set",)


def closed(text: str) -> bool:
    """Return whether the bracket that begins a text is closed at its very end."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in OPENING) - (character in CLOSING)
        if depth == 0:
            return position == len(text) - 1
    return False


def comma_separated(inside: str) -> list[str]:
    """Return the parts between commas in brackets: 1,234 is one number only where other commas have a space behind them."""
    spaced = any(inside[position + 1 : position + 2] == " " for position, character in scan(inside) if character == ",")
    return split(joined(inside, spaced), re.compile(r"[,;]"))[0]
