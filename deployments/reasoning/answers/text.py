r"""The text of an answer with one spelling of each sign: without dollars, fonts and spacing, with Unicode and LaTeX made the same.

What is left of LaTeX: \frac, \sqrt, names of functions and Greek letters, environments. Words that stood in \text{...} are in
⟦...⟧, braces of sets are ⟪...⟫, and {...} only groups.
"""

import re
import unicodedata

SIGNS = {
    **dict.fromkeys("−–—‒﹣－", "-"),
    **dict.fromkeys("×⋅·∙•∗＊⨯", "*"),
    **dict.fromkeys("÷∕⁄／", "/"),
    **dict.fromkeys("⩽≦", "≤"),
    **dict.fromkeys("⩾≧", "≥"),
    **dict.fromkeys("º˚", "°"),
    **dict.fromkeys("′’‘ʹ", "'"),
    **dict.fromkeys("“”„″", '"'),
    **dict.fromkeys("（", "("),
    **dict.fromkeys("）", ")"),
    **dict.fromkeys("，、", ", "),
    **dict.fromkeys("。", "."),
    **dict.fromkeys("：∶", ":"),
    **dict.fromkeys("；", ";"),
    **dict.fromkeys("＝", "="),
    **dict.fromkeys("％", "%"),
    **dict.fromkeys("＋", "+"),
    **dict.fromkeys("⌀Øø", "∅"),
    **dict.fromkeys("∣｜", "|"),
    **dict.fromkeys("〈⟨", "⟨"),
    **dict.fromkeys("〉⟩", "⟩"),
    **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u2061\u2062", ""),
    "√": "\\sqrt ",
    "∛": "\\sqrt[3]",
    "∜": "\\sqrt[4]",
    "…": "…",
    "⋯": "…",
    "℃": "°⟦C⟧",
    "℉": "°⟦F⟧",
    "≡": "≡",
    "∠": "\\angle ",
    "△": "\\triangle ",
    "≅": "≈",
    "≃": "≈",
    "µ": "μ",
    "℅": "%",
}
FRACTIONS = {
    character: unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    for character in map(chr, (*range(0xBC, 0xBF), *range(0x2150, 0x215F)))
}
"""½ and the like as 1/2."""
GREEK = {
    unicodedata.lookup(f"GREEK {size} LETTER {name.upper()}"): "\\" + (name.lower() if size == "SMALL" else name.capitalize()) + " "
    for size in ("SMALL", "CAPITAL")
    for name in (
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lamda mu nu xi omicron pi rho sigma tau upsilon phi chi psi omega"
    ).split()
}
GREEK = {letter: name.replace("amda", "ambda") for letter, name in GREEK.items()}
SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿˣⁱ", "0123456789+-()nxi", strict=True))
SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₐₓₙ", "0123456789+-axn", strict=True))
TRANSLATED = str.maketrans(SIGNS | GREEK)

COMMANDS = {
    **dict.fromkeys(("cdot", "times", "ast", "bullet", "cdotp"), "*"),
    "div": "/",
    **dict.fromkeys(("le", "leq", "leqslant", "leqq"), "≤"),
    **dict.fromkeys(("ge", "geq", "geqslant", "geqq"), "≥"),
    **dict.fromkeys(("ne", "neq"), "≠"),
    "lt": "<",
    "gt": ">",
    "in": "∈",
    "cup": "∪",
    "cap": "∩",
    **dict.fromkeys(("setminus", "backslash", "smallsetminus"), "∖"),
    "infty": "∞",
    "pm": "±",
    "mp": "∓",
    **dict.fromkeys(("approx", "approxeq", "simeq", "cong", "thickapprox"), "≈"),
    **dict.fromkeys(("dots", "ldots", "cdots", "dotsc", "dotsb", "dotso"), "…"),
    "lfloor": "⌊",
    "rfloor": "⌋",
    "lceil": "⌈",
    "rceil": "⌉",
    "langle": "⟨",
    "rangle": "⟩",
    **dict.fromkeys(("vert", "lvert", "rvert", "mid"), "|"),
    **dict.fromkeys(("lbrace", "{"), "⟪"),
    **dict.fromkeys(("rbrace", "}"), "⟫"),
    "lbrack": "[",
    "rbrack": "]",
    **dict.fromkeys(("emptyset", "varnothing", "O"), "∅"),
    **dict.fromkeys(("wedge", "land"), "∧"),
    **dict.fromkeys(("vee", "lor"), "∨"),
    "colon": ":",
    "equiv": "≡",
    **dict.fromkeys(("bmod", "mod"), " mod "),
    "prime": "'",
    **dict.fromkeys(("degree", "degrees", "textdegree"), "°"),
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "sfrac", "nicefrac"), "\\frac "),
    **dict.fromkeys(("dbinom", "tbinom"), "\\binom "),
    **dict.fromkeys(
        "displaystyle textstyle scriptstyle limits nolimits left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr"
        " mathstrut bf it rm sf tt large Large normalsize centering noindent".split(),
        "",
    ),
    **dict.fromkeys((",", ";", ":", " ", ">", "quad", "qquad", "enspace", "enskip", "thinspace", "space", "nobreakspace"), " "),
    "!": "",
    "$": "$",
    "%": "%",
    "#": "#",
    "&": "&",
    "_": "_",
    **dict.fromkeys(("euro", "EUR"), "€"),
    **dict.fromkeys(("pounds", "textsterling"), "£"),
    "yen": "¥",
    "lim": "\\lim ",
    "arg": "\\arg ",
    "leftrightarrow": "↔",
}
"""LaTeX's commands that are another spelling of a sign."""
COMMAND = re.compile(r"\\([A-Za-z]+|[^A-Za-z])\s*")
UPRIGHT = set(
    "text textbf textit textrm textsf texttt textnormal textup textmd emph mbox hbox mathrm operatorname operatorname*"
    " mathop".split()
)
FONTS = set(
    "mathbf mathit mathsf mathtt mathcal mathnormal mathscr mathfrak boldsymbol bm pmb symbf underline ensuremath"
    " vec hat boxed fbox".split()
)
WRAPPER = re.compile(rf"\\({'|'.join(map(re.escape, sorted((*UPRIGHT, *FONTS, 'mathbb'), key=len, reverse=True)))})\s*(?=\{{)")
SETS = {"R": "ℝ", "Z": "ℤ", "N": "ℕ", "Q": "ℚ", "C": "ℂ"}
PAIRS = [
    ("$$", "$$"),
    ("$", "$"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("**", "**"),
    ("*", "*"),
    ("__", "__"),
    ("```", "```"),
    ("`", "`"),
    ('"', '"'),
    ("'", "'"),
]
TRAILING = re.compile(r"(?:(?<!\.)\.|[,;:!?]+(?<!\d!)(?<![a-z)}\]]!)|\\\\|\\[ ,;]|~)\s*$")


def clean(answer: str) -> str:
    """Return the text of an answer with one spelling of each sign."""
    text = _unwrapped(answer.translate(TRANSLATED))
    text = re.sub(r"(\d)[\u0305\u0304](?=\d|$|\W)", r"\\overline{\1}", text)
    text = re.sub(
        "[" + "".join(SUPERSCRIPTS) + "]+", lambda match: "^{" + "".join(map(SUPERSCRIPTS.__getitem__, match[0])) + "}", text
    )
    text = re.sub("[" + "".join(SUBSCRIPTS) + "]+", lambda match: "_{" + "".join(map(SUBSCRIPTS.__getitem__, match[0])) + "}", text)
    text = re.sub(rf"(\d?)\s*([{''.join(FRACTIONS)}])", lambda match: _fraction(match[1], FRACTIONS[match[2]]), text)
    text = re.sub(r"(\d)\{,\}(?=\d{3}(?!\d))", r"\1,", text)  # a comma as a sign, not as punctuation
    text = re.sub(r"(\d)\{,\}(?=\d)", r"\1.", text)
    text = re.sub(r"\\(?:hspace|vspace|phantom|hphantom|label|tag)\*?\s*\{[^{}]*\}", " ", text)
    text = re.sub(r"\\(left|right)\s*\.", "", text)
    text = re.sub(r"\\(math[a-z]+|text[a-z]*|boldsymbol|bm)\s+([A-Za-z0-9])(?![A-Za-z{])", r"\\\1{\2}", text)
    text = re.sub(r"\\pmod\s*(?:\{([^{}]*)\}|(\w))", lambda match: f" mod {match[1] or match[2]}", text)
    text = re.sub(r"(?:^|(?<=\s))\*\*([^*]*[A-Za-z]{2}[^*]*)\*\*", r"\1", text)
    text = _fonts(text)
    text = COMMAND.sub(_command, text.replace("\\\\", "\\newline "))
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ|\{\s*°\s*\}|°)", "°", text).replace("\\circ", "°")
    text = text.replace("~", " ").replace("...", "…").replace("**", "^")
    text = re.sub(r"\\frac \{\s*⟦([^⟦⟧]*)⟧\s*\}\{\s*⟦([^⟦⟧]*)⟧\s*\}", r"⟦\1⟧/⟦\2⟧", text)
    text = re.sub(r"(?<=\d)\s*\\frac \{(k?m|cm|mi|ft)\}\{(s|h|hr|min|s\^2)\}", r" ⟦\1⟧/⟦\2⟧", text)
    text = re.sub(r"(?<![A-Za-z])log(2|10)\s*\(", r"log_{\1}(", text)
    text = re.sub(r"<\s*=|=\s*<", "≤", text)
    text = re.sub(r">\s*=", "≥", text)
    text = re.sub(r"!=|<>|=/=", "≠", text)
    text = re.sub(r"^<([^<>=]+,[^<>=]+)>$", r"⟨\1⟩", text)
    text = re.sub(r"(?<![A-Za-z\\])(d\w?)\s*/\s*(d[a-z])(?=\s*=)", r"\\frac {\1}{\2}", text)
    text = re.sub(r"(?<=[\d)\]}°])\s*(?:和|与|及|以及)\s*(?=[\d(\[{\\a-z-])", " and ", text)
    text = re.sub(r"(?<=[\d)\]}°])\s*或者?\s*(?=[\d(\[{\\a-z-])", " or ", text)
    text = re.sub(r"\+\s*/?\s*-(?=\s*[\d\\(])", lambda match: "±" if "/" in match[0] else match[0], text)
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", "*", text)
    return re.sub(r"\s+", " ", _unwrapped(text)).strip()


def _fraction(before: str, fraction: str) -> str:
    return f"{before} {fraction}" if before else f"({fraction})"


def _command(match: re.Match[str]) -> str:
    name = match[1]
    if name in COMMANDS:
        return COMMANDS[name]
    return f"\\{name} " if name.isalpha() else name


def _unwrapped(text: str) -> str:
    """Return the text without what may stand around all of it: dollars, stars, quotes, a full stop."""
    before = None
    while before != text:
        before, text = text, text.strip()
        text = TRAILING.sub("", text) if not text.endswith(("...", "…")) else text
        for opening, closing in PAIRS:
            if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
                inside = text[len(opening) : -len(closing)]
                if opening not in inside and not inside.endswith("\\"):
                    text = inside
    return text


def _fonts(text: str) -> str:
    r"""Return the text without commands for fonts; upright words are in ⟦...⟧."""
    for _ in range(200):
        match = WRAPPER.search(text)
        end = match and _end_of_group(text, match.end())
        if not match or not end:
            return text
        inside = text[match.end() + 1 : end - 1]
        text = text[: match.start()] + _styled(match[1], inside) + text[end:]
    return text


def _styled(command: str, inside: str) -> str:
    if command == "mathbb":
        return SETS.get(inside.strip(), f"{{{inside}}}")
    if command in UPRIGHT and re.search(r"[^\W\d_]", inside) and "$" not in inside and not re.search(r"\\(?!\s|text|math)", inside):
        spaces = inside[: len(inside) - len(inside.lstrip())], inside[len(inside.rstrip()) :]
        return f"{spaces[0]}⟦{inside.strip()}⟧{spaces[1]}" if "⟦" not in inside else inside
    inside = inside.strip("$ ") if command in UPRIGHT else inside
    return f"{{{inside}}}" if command in FONTS and command != "boxed" else inside


def _end_of_group(text: str, at: int) -> int | None:
    """Return where the group ends that begins at `at`; None where it is not closed."""
    depth = 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return None
