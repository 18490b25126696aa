"""A model's text on the page: Markdown, LaTeX as models write it, code, print; whole and while it grows."""

import pytest
from playwright.sync_api import expect

from tests.support.page import Chat, Opened
from tests.support.scripted_api import MARKDOWN, ScriptedApi

# The formulas that are found in a text, as they stand in it; [] where dollars are money or just text.
FORMULAS = {
    "so $x$ and \\(y\\) and $ z = 5 $.": ["x", "y", "z = 5"],
    "$5 and $6, or $7.50 for two ($8)": [],
    "pay $ 5 now and $ 6 then, in US$ or CA$": [],
    "it costs \\$5, so $2 \\cdot 5 = \\$10$": ["2 \\cdot 5 = \\$10"],
    "from $5-$10 to $5/$6": [],
    "a $ here and a $ there": [],
    "$5$ apples, $ 7 $ pears": ["5", "7"],
    "$$a\n+ b$$": ["a\n+ b"],
    "\\[\na\n\n+ b\n\\].": ["a\n\n+ b."],
    "so \\begin{cases} a \\\\ b \\end{cases} holds": ["\\begin{cases} a \\\\ b \\end{cases}"],
    "- one\n  \\[\n  a\n  \\]\n- two": ["a"],
    "\\boxed{\\frac{1}{2}} `$x$`": ["\\boxed{\\frac{1}{2}}"],
    "an open \\( and \\[ and $$ and \\begin{align} end nothing": [],
}
# Runs `body` with the page's own Prose and the argument `given`.
WITH_PROSE = """async (given) => {{
    const {{Prose}} = await import(new URL("page/markup.js", location.href).href);
    const made = () => new Prose(document.createElement("div"));
    {body}
}}"""


def test_markdown_is_rendered_whole(chat: Chat) -> None:
    chat.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.ask("markdown")
    chat.answered()
    chat.panel.locator(".thought > summary").click()
    text = chat.steps.first.locator(".written")
    for part in (
        "em",
        "s",
        "strong",
        "p > code",
        "ul ul ol li",
        "td .katex",
        "blockquote .katex",
        "h3",
        ".math.display .katex-display",
    ):
        expect(text.locator(part).first).to_be_visible()
    expect(text.locator(".math.display")).to_have_count(3)
    expect(text).to_contain_text("four costs $5, and six $7 or $8 each")
    expect(text).to_contain_text("<u>not markup</u>")
    assert text.locator("img, u, b").count() == 0
    for link in text.get_by_role("link").all():
        assert (link.get_attribute("href") or "").startswith("https://example.org")
        assert (link.get_attribute("target"), link.get_attribute("rel")) == ("_blank", "noopener noreferrer")
    assert text.locator("p, li, td").evaluate_all("all => all.every(one => one.dir === 'auto')")
    code = text.locator(".code")
    expect(code).to_contain_text("python")
    code.get_by_role("button", name="Copy").click()
    expect(code.get_by_role("button", name="Copied")).to_be_visible()
    assert chat.page.evaluate("navigator.clipboard.readText()") == 'print("<b>1 * 2 * 3</b>")\n'


def test_latex_is_told_from_money(chat: Chat) -> None:
    body = """return given.map((text) => {
        const prose = made();
        prose.write(text, false);
        const formulas = [...prose.element.querySelectorAll(".math")];
        return formulas.map((one) => one.querySelector("annotation")?.textContent ?? `not LaTeX: ${one.textContent}`);
    });"""
    found = chat.page.evaluate(WITH_PROSE.format(body=body), list(FORMULAS))
    assert dict(zip(FORMULAS, found, strict=True)) == FORMULAS


def test_a_growing_text_is_as_one_drawn_at_once(chat: Chat) -> None:
    """Also where a later character changes what an earlier one means. What is settled is not drawn again."""
    body = """const growing = made(), differ = [];
    for (let length = 1; length <= given.length; length++) {
        const once = made(), text = given.slice(0, length);
        growing.write(text, true);
        once.write(text, true);
        if (growing.element.innerHTML !== once.element.innerHTML) differ.push([text, growing.element.innerHTML]);
    }
    const first = growing.element.firstChild;
    growing.write(`${given}.`, true);
    return [differ, first === growing.element.firstChild];"""
    texts = [
        MARKDOWN,
        "1. a\n\n2. b\n\n* c\n\n*d*\n\ne\n| f |\n|--|\n| g |\n\n\\[\n\nh\n\n\\]\n\ni\n---\nj\n\n```\nk\n\n\nl\n```\nm",
    ]
    for text in texts:
        differ, kept = chat.page.evaluate(WITH_PROSE.format(body=body), text)
        assert differ == []
        assert kept


def test_a_formula_that_grows_shows_its_source(chat: Chat, api: ScriptedApi) -> None:
    before = MARKDOWN[: MARKDOWN.index("a &= 1") + 3]
    api.gate.close()
    api.gate.open(len(before.split()))
    chat.ask("markdown")
    pending = chat.steps.first.locator(".math.pending")
    expect(pending).to_contain_text("\\begin{align*}")
    api.gate.open()
    chat.answered()
    expect(pending).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_print(opened: Opened, scheme: str) -> None:
    chat = opened(scheme=scheme)
    for number, question in enumerate(("markdown", "half of one"), 1):
        chat.ask(question)
        chat.answered(number)
    chat.panel.locator(".thought > summary").first.click()
    chat.page.emulate_media(media="print")
    for part in ("header", "#sidebar", ".composer", ".actions", ".code button"):
        expect(chat.page.locator(f".satori {part}").first).to_be_hidden()
    cut = (
        "[...document.querySelectorAll('.satori, .satori .scroller')].filter(one => one.scrollHeight > one.clientHeight + 1).length"
    )
    assert chat.page.evaluate(cut) == 0
    colours = chat.panel.locator(".written > p, .bubble").evaluate_all(
        "all => [...new Set(all.map(one => getComputedStyle(one).color))]"
    )
    assert colours == ["rgb(0, 0, 0)"]
