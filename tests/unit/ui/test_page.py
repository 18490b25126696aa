"""What can be told of the page without a browser: contrast, files, Gradio's parts that it relies on."""

import re
from hashlib import sha256
from pathlib import Path

import pytest

import ui
from ui.app import ASSETS

PAGE = Path(ui.__file__).parent / "page"
CSS = (PAGE / "page.css").read_text()
TEXT = ("ink", "soft", "primary", "continue", "reflect", "explore", "none", "answer", "danger")
VENDORED = {  # markdown-it 15.0.3 and DOMPurify 3.5.0, by npm
    "markdown-it.umd.min.js": "391f2aa638e75e6c7859d0a5c5650ef0956722a45998f17e05b83bc655778e1e",
    "purify.min.js": "f69a46022ab1f53e969c8ebbca98172c8995785a9b3be72ea4a12d25b1a1bf67",
}
GROUND = ("paper", "surface", "sunk")


def colours(theme: str) -> dict[str, str]:
    block = re.search(re.escape(theme) + r" \{(.*?)\}", CSS, re.DOTALL)
    assert block
    return dict(re.findall(r"--([\w-]+): (#\w{6})", block[1]))


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours (WCAG 2.2, relative luminance)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [":root", ':root[data-theme="dark"]'])
def test_text_can_be_read(theme: str) -> None:
    shades = colours(theme)
    pairs = [(text, ground) for text in TEXT for ground in GROUND]
    pairs += [("on-primary", "primary"), ("answer", "answer-paper"), ("danger", "danger-paper")]
    pairs += [("ink", "answer-paper"), ("ink", "danger-paper"), ("soft", "danger-paper"), ("soft", "answer-paper")]
    low = {pair: round(contrast(shades[pair[0]], shades[pair[1]]), 2) for pair in pairs}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}
    assert contrast(shades["edge"], shades["surface"]) >= 3  # borders of fields


def test_no_address_of_another_host() -> None:
    files = [path for path in PAGE.rglob("*.*") if path.is_file() and path.parent.name != "vendor"]
    assert {".js", ".css", ".json"} <= {path.suffix for path in files}
    found = {(path.name, address) for path in files for address in re.findall(r"https?://[^\s\"']+", path.read_text())}
    assert {address for _, address in found} == {"http://www.w3.org/2000/svg"}, found


def test_the_libraries_are_as_published() -> None:
    """Each with its licence. What they load from elsewhere, the browser tests would see."""
    files = {path.name: path for path in (PAGE / "vendor").iterdir()}
    assert {name: sha256(files[name].read_bytes()).hexdigest() for name in VENDORED} == VENDORED
    assert files.keys() - VENDORED.keys() == {"markdown-it.LICENSE", "purify.LICENSE"}


def test_gradio_brings_katex() -> None:
    [script], [style] = ASSETS.glob("katex-*.js"), ASSETS.glob("katex-*.css")
    assert re.search(r"export\{\w+ as default\}", script.read_text()[-200:])
    assert "KaTeX_Main" in style.read_text()
