"""Units as answers carry them: which words are one, and what is left of an answer without it."""

import re
from typing import NamedTuple

_PREFIXES = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "c": -2, "d": -1, "m": -3, "u": -6, "μ": -6, "n": -9, "p": -12, "h": 2}
_PREFIXED = "m g s L l N J W V A Hz Pa eV K mol F C bar cal B b Wh T H rad Ω t".split()
_METRIC = (
    "meter metre gram liter litre second newton joule watt volt amp ampere hertz pascal calorie byte bit ohm mole ton tonne".split()
)
_LONG = {"": 0, "kilo": 3, "mega": 6, "giga": 9, "centi": -2, "milli": -3, "micro": -6, "nano": -9, "deci": -1, "hecto": 2}
_WORDS = """
    inch inches in foot feet ft yard yards yd mile miles mi nmi mph kph kmph kmh fps rpm psi acre acres hectare hectares ha
    pound pounds lb lbs ounce ounces oz stone tonnes gallon gallons gal quart quarts qt pint pints pt cup cups tablespoon
    tablespoons tbsp teaspoon teaspoons tsp sec secs second seconds minute minutes min mins hour hours hr hrs day days week
    weeks month months year years yr yrs decade decades century centuries degree degrees deg radian radians rad arcsec arcmin
    celsius fahrenheit kelvin dollar dollars cent cents euro euros eur usd gbp cny jpy inr rmb yuan yen rupee rupees peso pesos
    franc francs pence penny pennies unit units u point points people person persons student students child children boy boys
    girl girls man men woman women book books apple apples orange oranges way ways time times item items piece pieces number
    integers solution solutions square squares cubic sq cu atm knots knot light-year light-years parsec
    元 角 块 美元 欧元 个 只 本 人 次 种 条 张 台 件 名 位 岁 天 日 周 月 年 小时 分钟 分 秒 度 米 厘米 毫米 千米 公里
    克 千克 公斤 吨 升 毫升 平方米 平方厘米 平方千米 立方米 立方厘米
""".split()
_SIGNS = set("€£¥₹¢°$")
CURRENCY = "€£¥₹$"
_SHORT = {"m", "g", "s", "h", "L", "l", "N", "J", "W", "V", "K"}
"""Single letters that are a unit after a number and a space: 5 m."""
_GLUE = {"square", "cubic", "sq", "cu", "per", "a", "an", "each", "of"}

FACTORS: dict[str, tuple[str, float]] = {}
"""Units that are converted to each other, where both answers have one: the dimension, and how many of its base unit."""


def _declare() -> set[str]:
    names = set(_WORDS)
    for base in _PREFIXED:
        names |= {prefix + base for prefix in _PREFIXES if len(prefix + base) > 1}
    for base in _METRIC:
        names |= {prefix + base + end for prefix in _LONG for end in ("", "s")}
    lengths = {"m": "m meter metre meters metres", "g": "g gram grams", "L": "L l liter litre liters litres"}
    for dimension, spellings in lengths.items():
        for name in spellings.split():
            for prefix, exponent in (_PREFIXES if len(name) == 1 else _LONG).items():
                FACTORS[prefix + name] = (dimension, 10.0**exponent)
    for dimension, table in (
        ("m", {"in inch inches": 0.0254, "ft foot feet": 0.3048, "yd yard yards": 0.9144, "mi mile miles": 1609.344}),
        ("g", {"lb lbs pound pounds": 453.59237, "oz ounce ounces": 28.349523125, "tonne tonnes": 1e6}),
        (
            "s",
            {
                "s sec secs second seconds": 1.0,
                "min mins minute minutes": 60.0,
                "h hr hrs hour hours": 3600.0,
                "day days": 86400.0,
                "week weeks": 604800.0,
                "ms millisecond milliseconds": 1e-3,
            },
        ),
        ("$", {"$ dollar dollars usd": 1.0, "¢ cent cents": 0.01}),
    ):
        for spellings, factor in table.items():
            FACTORS.update(dict.fromkeys(spellings.split(), (dimension, factor)))
    return names


NAMES = _declare()

NOT_UNITS = set(
    """
    or and to more less than least most mod modulo rem remainder r base am pm bc ad bce ce of over plus minus divided by
    factorial squared cubed odd even prime composite positive negative true false yes no not none undefined dne infinity
    infinite north south east west left right up down above below half halves third thirds quarter quarters fourth fourths fifth
    fifths sixth sixths eighth eighths tenth tenths hundredth hundredths thousandth thousandths pi sqrt sin cos tan log ln exp
    if when where with without is are only at from until between x y z january february march april june july august september
    october november december jan feb mar apr jun jul aug sep sept oct nov dec
    """.split()
)
"""Words after a number that say something else than what is counted."""
QUANTIFIERS = set("no not all any some every each both many few several most infinitely".split())
"""Words before a noun that are no number of it."""
MULTIPLES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "mn": 10**6,
    "bn": 10**9,
}
_TAIL = re.compile(
    r"(?P<tail>(?:[\s*/·]|⟦[^⟦⟧]*⟧|[^\W\d_]|\.|[€£¥₹¢$°]|\^\s*\{?\s*-?\d+\s*\}?|-(?=[^\W\d_])|\{\s*(?:⟦[^⟦⟧]*⟧|[A-Za-z]+)\s*\}"
    r"|\((?:[A-Za-z]+|⟦[^⟦⟧]*⟧)\))+)$"
)


class Split(NamedTuple):
    """An answer without its unit, and the unit in one spelling."""

    head: str
    unit: str


def is_unit(word: str) -> bool:
    """Return whether a word, or an abbreviation, is a unit's name."""
    return word in NAMES or word.lower() in NAMES or word.rstrip(".") in NAMES or word.removesuffix("s") in NAMES


def words_of(tail: str) -> list[str]:
    """Return the words of a unit, without exponents and signs."""
    return re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*|[€£¥₹¢$°]", tail)


def split(text: str, counted: bool) -> Split | None:
    """Return an answer without the unit at its end or the currency at its beginning; None where it has none.

    With `counted`, any noun may be a unit: 12 ducks. Then what comes before must be a number.
    """
    if text[:1] in CURRENCY and len(text) > 1:
        return Split(text[1:].strip(), text[0])
    if currency := re.match(
        r"^(-?)\s*(?:⟦?\s*(?:US|USD|EUR|GBP|Rs\.?|CAD|AUD)\s*⟧?\s*)?([€£¥₹$])\s*(?=[\d.\\])|^(?:USD|EUR|GBP|INR|Rs\.?)\s+(?=\d)",
        text,
    ):
        return Split((currency[1] or "") + text[currency.end() :].strip(), currency[2] or text[:3].lower())
    match = _TAIL.search(text)
    if not match:
        return None
    # A number's end belongs to the number: the longest tail that is a unit is taken.
    for start in _starts(text, match.start()):
        head, tail = text[:start].strip(), text[start:]
        if head and _is_tail(head, tail, counted, spaced=text[start - 1] == " "):
            return Split(head.rstrip("*").strip(), _spelling(tail))
    return None


def _starts(text: str, first: int) -> list[int]:
    """Return where a unit may begin, from the left: at a word, or at a sign."""
    return [
        match.start() + first
        for match in re.finditer(r"\{?\s*⟦|\{\s*(?=[A-Za-z])|(?<![^\W\d_])[^\W\d_]|[€£¥₹¢$°]|\(", text[first:])
    ]


def _is_tail(head: str, tail: str, counted: bool, spaced: bool) -> bool:
    words = words_of(tail)
    if "°" in tail and re.search(r"(?:sin|cos|tan|cot|sec|csc)(?![a-z])", head):
        return False  # an angle's
    if head.strip("⟦⟧ ").lower() in QUANTIFIERS:
        return False  # no solutions
    if not words or head[-1] in "^_+-/*=<>≤≥≠±(,\\" or any(word.lower() in NOT_UNITS for word in words):
        return False
    ends_in_number = head[-1].isdigit() or head[-1] in ")}°" or re.search(r"\\(?:pi|infty) ?$", head) is not None
    upright, spaced = "⟦" in tail, spaced or tail[0] in "{⟦(" or head[-1] == "°"
    known = all(_is_name(word, upright, tail) for word in words)
    if known:
        first = words[0]
        if first in _SIGNS or upright:
            return True
        if (len(first) == 1 and first.isascii()) or first in ("in", "pt", "u", "mi", "ha", "min", "a", "an", "of"):
            return ends_in_number and (spaced or "/" in tail) and first in (*_SHORT, "in", "pt", "mi", "ha", "min", "u")
        return ends_in_number or spaced
    plain = re.fullmatch(r"-?[\d.,/\s]+%?", head) is not None
    nouns = all(len(word) > 2 and word.isalpha() for word in words) and len(words) <= 3 and not re.search(r"[\d^/*({]", tail)
    return counted and plain and nouns and (spaced or upright)


def _is_name(word: str, upright: bool, tail: str) -> bool:
    """Return whether a word is part of a unit's name; the letters of SI alone where they are upright, those of degrees after °."""
    if is_unit(word) or word in _SIGNS or word.lower() in _GLUE or word in _SHORT:
        return True
    return (upright and word in _PREFIXED) or (word in "CFK" and "°" in tail)


def _spelling(tail: str) -> str:
    return re.sub(r"[\s⟦⟧{}()]+", "", tail)
