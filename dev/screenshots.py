"""Take the README's screenshots of a running application: `python dev/screenshots.py [URL]` (needs Debian's chromium)."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

FOLDER = Path(__file__).parent / "screenshots"
QUESTION = "What is 47 * 6 - 100?"
CHINESE = "哪个数字更大? 是 9.11 还是 9.9?"


def ask(page: Page, question: str) -> None:
    """Ask in the chat, wait for the answer and unfold the thought."""
    page.locator("#chat-question").fill(question)
    page.locator("#chat-question").press("Enter")
    page.locator("#panel-chat .reply[data-phase=done] .answer").last.wait_for()
    page.locator("#panel-chat .thought > summary").last.click()
    expect(page.locator("#panel-chat .thought .step").last).to_be_visible()


def main(url: str) -> None:
    """Write a PNG each for a desk, a dark desk and a phone."""
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, question, options in (
            ("desk", QUESTION, {"viewport": {"width": 1280, "height": 900}, "locale": "en-US"}),
            ("dark", QUESTION, {"viewport": {"width": 1280, "height": 900}, "locale": "en-US", "color_scheme": "dark"}),
            ("phone", CHINESE, {"viewport": {"width": 390, "height": 844}, "locale": "zh-CN"}),
        ):
            context = browser.new_context(**options)  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(f"{url}/ui/")
            page.locator("#chat-question").wait_for()
            ask(page, question)
            page.screenshot(path=FOLDER / f"{name}.png")
            context.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
