r"""The grammar of formulas as models write them, in LaTeX or plain text: text in, nodes out.

The text comes from `deployments.reasoning.answers.text`, which leaves one spelling of each sign.
"""

import re
from fractions import Fraction
from typing import Any, NamedTuple

Node = tuple[Any, ...]
"""An operation and its operands."""

EXACT_BITS = 14_000
"""Rational numbers of more bits are no longer kept exactly: Python writes no longer ones."""
DEPTH = 60
"""How deep a formula may be nested."""


class UnreadError(ValueError):
    """The text is no formula of this grammar."""


class TooLargeError(ArithmeticError):
    """The formula stands for a number that is too large to compute."""


class Token(NamedTuple):
    """A piece of a formula; `spaced` tells that a space comes before it."""

    kind: str
    text: str
    spaced: bool


TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)|(?P<command>\\[A-Za-z]+)|(?P<word>⟦[^⟦⟧]*⟧)"
    r"|(?P<letters>[A-Za-z]+)|(?P<sign>[-+*/^_(){}\[\]|!%°'⌊⌋⌈⌉∞,])"
)
GREEK = set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi varphi"
    " chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar omicron".split()
)
FUNCTIONS = set(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth arcsinh arccosh arctanh exp ln".split()
)
NAMES = {
    "tg": "tan",
    "ctg": "cot",
    "arctg": "arctan",
    "cosec": "csc",
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "arsinh": "arcsinh",
    "arcosh": "arccosh",
    "artanh": "arctanh",
    "asinh": "arcsinh",
    "acosh": "arccosh",
    "atanh": "arctanh",
    "lg": "log",
}
"""Other names of functions."""
CALLS = {
    "sqrt": "sqrt",
    "cbrt": "cbrt",
    "abs": "abs",
    "floor": "floor",
    "ceil": "ceil",
    "gcd": "gcd",
    "lcm": "lcm",
    "max": "max",
    "min": "min",
}
"""Functions that plain text calls with parentheses."""
CIRCULAR = {"sin", "cos", "tan", "cot", "sec", "csc"}
INVERSES = {name: f"arc{name}" for name in (*CIRCULAR, "sinh", "cosh", "tanh")}
WORDS = set(
    "no on so is it in at by he we me be to do go up us or of as an am if my ok hi bad dad add dab cab ad sad mad man men may"
    " saw say yes not new now own won one two six ten the and for are but all can had has him his how its let old out see who"
    " did get use was any day way boy few far put red top low mid max min odd".split()
)


def tokens(text: str) -> list[Token]:
    """Return the tokens of a formula. Raises UnreadError."""
    found, at, spaced = [], 0, False
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise UnreadError(text[at])
        at = match.end()
        kind = str(match.lastgroup)
        if kind == "space":
            spaced = True
            continue
        if kind == "word":
            found.append(_worded(match[0][1:-1].strip(), spaced))
        elif kind == "letters":
            found += _letters(match[0], spaced, len(match[0]) == len(text.strip()))
        else:
            found.append(Token(kind, match[0], spaced))
        spaced = False
    return found


def _worded(word: str, spaced: bool) -> Token:
    """Return the token of an upright word: a single letter is a variable."""
    if len(word) == 1 and word.isalpha():
        return Token("name", word, spaced)
    if word in FUNCTIONS or word in NAMES or word in CALLS or word in ("log", "pi"):
        return Token("command", f"\\{word}", spaced)
    raise UnreadError(word)


def _letters(run: str, spaced: bool, alone: bool) -> list[Token]:
    """Return the tokens of letters without spaces: a name, or variables that are multiplied. Raises UnreadError for a word."""
    if len(run) == 1:
        return [Token("name", run, spaced)]
    if run in FUNCTIONS or run in NAMES or run in CALLS or run in ("log", "pi") or run in GREEK:
        return [Token("command", f"\\{run}", spaced)]
    for name in sorted({*FUNCTIONS, *NAMES, "log", "sqrt", "pi"}, key=len, reverse=True):
        if run.startswith(name) and len(run) == len(name) + 1 and run not in WORDS:  # sinx
            return [Token("command", f"\\{name}", spaced), Token("name", run[-1], False)]
    if is_word(run, alone):
        raise UnreadError(run)
    return [Token("name", letter, spaced and at == 0) for at, letter in enumerate(run)]


def is_word(run: str, alone: bool) -> bool:
    """Return whether some letters are a word and not a product of variables: such as xy, abc; more freely within a formula."""
    if run.lower() in WORDS or len(set(run)) < len(run) or not run.islower():
        return True
    if alone:
        return len(run) > 4 or ord(max(run)) - ord(min(run)) > len(run)
    return len(run) > 4 or (len(run) > 2 and ord(max(run)) - ord(min(run)) > len(run) and any(letter in "eiou" for letter in run))


class Parser:
    """Reads tokens into nodes, by descent."""

    def __init__(self, found: list[Token]) -> None:
        self._tokens, self._at, self._bars, self._depth = found, 0, 0, 0

    def whole(self) -> Node:
        """Return the node of all tokens. Raises UnreadError."""
        node = self._sum()
        if self._takes("\\choose"):
            node = ("binomial", node, self._sum())
        if self._at < len(self._tokens):
            raise UnreadError(self._tokens[self._at].text)
        return node

    def _peek(self) -> Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else Token("end", "", False)

    def _take(self, text: str | None = None) -> Token:
        token = self._peek()
        if token.kind == "end" or (text is not None and token.text != text):
            raise UnreadError(f"{token.text} in place of {text}")
        self._at += 1
        return token

    def _takes(self, *texts: str) -> bool:
        if self._peek().text in texts and self._peek().kind != "end":
            self._at += 1
            return True
        return False

    def _sum(self) -> Node:
        self._depth += 1
        if self._depth > DEPTH:
            raise UnreadError("nested too deeply")
        bars, self._bars = self._bars, 0
        node = self._product()
        while self._peek().text in ("+", "-"):
            sign = self._take().text
            right = self._product()
            node = ("+", node, right if sign == "+" else ("neg", right))
        self._bars = bars
        self._depth -= 1
        return node

    def _product(self, stop: bool = False) -> Node:
        """Read factors. With `stop`, those of a function without parentheses: until an operator or another function."""
        node = self._signed() if not stop else self._power()
        while True:
            token = self._peek()
            if token.text in ("*", "/") and not stop:
                self._at += 1
                right = self._signed()
                node = ("*", node, right) if token.text == "*" else ("/", node, right)
            elif self._begins(token) and not (stop and self._is_function(token)):
                if token.kind == "number" and self._tokens[self._at - 1].text != "!":
                    raise UnreadError("two numbers side by side")
                node = ("*", node, self._power())
            else:
                return node

    def _begins(self, token: Token) -> bool:
        """Return whether a factor begins here."""
        if token.kind in ("number", "name"):
            return True
        if token.kind == "command":
            return token.text not in ("\\choose",)
        return token.text in ("(", "{", "[", "⌊", "⌈", "∞") or (token.text == "|" and not self._open_bar())

    def _open_bar(self) -> bool:
        return self._bars > 0

    @staticmethod
    def _is_function(token: Token) -> bool:
        name = token.text.removeprefix("\\")
        return token.kind == "command" and (name in FUNCTIONS or name in NAMES or name == "log")

    def _signed(self) -> Node:
        if self._takes("-"):
            return ("neg", self._signed())
        if self._takes("+"):
            return self._signed()
        return self._power()

    def _power(self) -> Node:
        node = self._postfix(self._atom())
        if self._takes("^"):
            if self._takes("°"):
                return ("degree", node)
            node = self._postfix(("^", node, self._exponent()))
        return node

    def _postfix(self, node: Node) -> Node:
        while self._peek().text in ("!", "%", "°", "'"):
            sign = self._take().text
            if sign == "'":
                if node[0] != "name":
                    raise UnreadError("a prime")
                node = ("name", node[1] + "'")
            else:
                node = ({"!": "factorial", "%": "percent", "°": "degree"}[sign], node)
        return node

    def _exponent(self) -> Node:
        if self._takes("-"):
            return ("neg", self._exponent())
        if self._takes("+"):
            return self._exponent()
        node = self._postfix(self._atom(single=True))
        if self._takes("^"):
            node = ("^", node, self._exponent())
        return node

    def _group(self) -> Node:
        self._take("{")
        node = self._sum()
        self._take("}")
        return node

    def _argument(self) -> Node:
        r"""Read the argument of a LaTeX command: a group, or one digit or name (\frac12)."""
        token = self._peek()
        if token.text == "{":
            return self._group()
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            self._tokens[self._at] = Token("number", token.text[1:], False)
            return ("number", Fraction(int(token.text[0])))
        return self._atom(single=True)

    def _atom(self, single: bool = False) -> Node:
        token = self._take()
        if token.kind == "number":
            return self._mixed(_number(token.text)) if not single else ("number", _number(token.text))
        if token.kind == "name":
            return self._name(token.text)
        if token.kind == "command":
            return self._command(token.text[1:])
        closing = {"(": ")", "{": "}", "[": "]"}.get(token.text)
        if closing:
            node = self._sum()
            if token.text == "{" and self._takes("\\choose"):
                node = ("binomial", node, self._sum())
            self._take(closing)
            return node
        if token.text == "|":
            self._bars += 1
            inside = self._bars_inside()
            self._take("|")
            return ("abs", inside)
        if token.text in ("⌊", "⌈"):
            node = self._sum()
            self._take({"⌊": "⌋", "⌈": "⌉"}[token.text])
            return ("floor", node) if token.text == "⌊" else ("ceil", node)
        if token.text == "∞":
            return ("infinity",)
        raise UnreadError(token.text)

    def _bars_inside(self) -> Node:
        node = self._product()
        while self._peek().text in ("+", "-"):
            sign = self._take().text
            right = self._product()
            node = ("+", node, right if sign == "+" else ("neg", right))
        self._bars -= 1
        return node

    def _mixed(self, whole: Fraction) -> Node:
        r"""Read what comes after a number: 3 1/2 and 3\frac{1}{2} are mixed numbers, where the fraction is a proper one."""
        rest = [token.text for token in self._tokens[self._at : self._at + 7]]
        over: list[str] = []
        if self._peek().spaced and len(rest) >= 3 and rest[1] == "/" and rest[0].isdigit() and rest[2].isdigit():
            over, length = [rest[0], rest[2]], 3
        elif rest[:2] == ["\\frac", "{"] and len(rest) >= 7 and rest[3:5] == ["}", "{"] and rest[6] == "}":
            over, length = [rest[2], rest[5]], 7
        elif rest[:1] == ["\\frac"] and len(rest) >= 2 and rest[1].isdigit() and len(rest[1]) == 2:
            over, length = [rest[1][0], rest[1][1]], 2
        if whole.denominator == 1 and over and all(part.isdigit() for part in over) and int(over[0]) < int(over[1]):
            after = self._tokens[self._at + length].text if self._at + length < len(self._tokens) else ""
            if after != "^":
                self._at += length
                return ("number", whole + Fraction(int(over[0]), int(over[1])))
        return ("number", whole)

    def _name(self, name: str) -> Node:
        if self._takes("_"):
            return ("name", f"{name}_{self._subscript()}")
        return {"e": ("e",), "i": ("i",)}.get(name, ("name", name))

    def _subscript(self) -> str:
        if not self._takes("{"):
            return self._take().text
        parts = []
        while not self._takes("}"):
            token = self._take()
            if token.text in "{_^":
                raise UnreadError("a nested subscript")
            parts.append(token.text)
        return "".join(parts)

    def _command(self, name: str) -> Node:
        name = NAMES.get(name, name)
        if name == "pi":
            return ("pi",)
        if name in GREEK:
            return self._name(f"\\{name}")
        if name == "frac":
            over, under = self._argument(), self._argument()
            if over in (("name", "d"), ("name", "\\partial")) and has(under, "name") and under[1] == over:
                raise UnreadError("a derivative")
            return ("/", over, under)
        if name == "binom":
            return ("binomial", self._argument(), self._argument())
        if name == "sqrt":
            degree = None
            if self._takes("["):
                degree = self._sum()
                self._take("]")
            radicand = self._argument()
            return ("sqrt", radicand) if degree is None else ("root", radicand, degree)
        if name in ("gcd", "lcm", "max", "min"):
            return self._several(name)
        if name in CALLS:
            if self._peek().text != "(":
                raise UnreadError(name)
            return (CALLS[name], self._atom())
        if name in FUNCTIONS or name == "log":
            return self._function(name)
        raise UnreadError(name)

    def _several(self, name: str) -> Node:
        opening = self._take().text
        if opening not in ("(", "{"):
            raise UnreadError(name)
        node = self._sum()
        while self._takes(","):
            node = (name, node, self._sum())
        self._take(")" if opening == "(" else "}")
        return node

    def _function(self, name: str) -> Node:
        base: Node | None = None
        power: Node | None = None
        for _ in range(2):
            if name == "log" and self._takes("_"):
                base = self._argument()
            elif self._takes("^"):
                power = self._exponent()
        if power == ("neg", ("number", Fraction(1))) and name in INVERSES:
            name, power = INVERSES[name], None
        token = self._peek()
        if token.text in ("(", "{", "[", "|"):
            argument = self._power() if token.text in ("{", "|") else self._postfix(self._atom())
        elif token.text == "-":
            self._at += 1
            argument = ("neg", self._product(stop=True))
        elif self._is_function(token):
            argument = self._power()
        else:
            argument = self._product(stop=True)
        node: Node = ("log", argument, base or ("number", Fraction(10))) if name == "log" else ("call", name, argument)
        if power is None and self._takes("^"):
            power = self._exponent()
        return node if power is None else ("^", node, power)


def parse(text: str) -> Node:
    """Return the node of a formula. Raises UnreadError."""
    found = tokens(text)
    if not found:
        raise UnreadError("nothing")
    try:
        return Parser(found).whole()
    except RecursionError:
        raise UnreadError("nested too deeply") from None


def names_of(node: Node) -> set[str]:
    """Return the variables of a formula."""
    if node[0] == "name":
        return {node[1]}
    return set().union(*(names_of(part) for part in node[1:] if isinstance(part, tuple)))


def has(node: Node, what: str) -> bool:
    """Return whether an operation is in a formula."""
    return node[0] == what or any(has(part, what) for part in node[1:] if isinstance(part, tuple))


def _number(text: str) -> Fraction:
    mantissa, _, exponent = text.lower().partition("e")
    if len(exponent) > 8 or abs(int(exponent or 0)) > EXACT_BITS // 3 or len(mantissa) > EXACT_BITS // 3:
        raise TooLargeError(text)
    return Fraction(mantissa.rstrip(".") or "0") * Fraction(10) ** int(exponent or 0)
