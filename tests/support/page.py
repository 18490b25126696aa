"""The page as a user meets it in Chromium, and what they do on it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from tests.support.programs import require
from tests.support.until import until

QUESTION = "What is 47 * 6 - 100?"
CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 30_000
CONVERSATIONS = """new Promise((done) => { indexedDB.open("satori").onsuccess = ({target: {result: database}}) => {
    const kept = database.transaction("conversations").objectStore("conversations").getAll();
    kept.onsuccess = () => { database.close(); done(JSON.stringify(kept.result)); }; }; })"""
# A transaction begins when those before it have ended.
BEHIND_ALL = """new Promise((done) => { indexedDB.open("satori").onsuccess = ({target: {result: database}}) => {
    const last = database.transaction([...database.objectStoreNames], "readwrite");
    last.oncomplete = () => { database.close(); done(); }; }; })"""
Opened = Callable[..., "Chat"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Debian's Chromium; skip the test where there is none."""
    require("chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Chat:
    """The page in a browser context of its own, with what a user does on it. `options` are the context's."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        desk = {"locale": "en-US", "viewport": {"width": 1280, "height": 900}}
        self.context: BrowserContext = browser.new_context(**desk | options)
        self.context.set_default_timeout(PATIENCE_MS)
        self.url = url
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page: Page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.load(url)

    def load(self, url: str) -> None:
        self.page.goto(url)
        self.box.wait_for()

    @property
    def box(self) -> Locator:
        return self.page.locator("#chat-question")

    @property
    def panel(self) -> Locator:
        return self.page.locator("#panel-chat")

    @property
    def replies(self) -> Locator:
        return self.panel.locator(".reply")

    @property
    def steps(self) -> Locator:
        return self.panel.locator(".thought .step")

    def ask(self, text: str = QUESTION) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def answered(self, count: int = 1) -> None:
        """Wait for so many complete replies."""
        self.panel.locator(".reply[data-phase=done]").nth(count - 1).wait_for()

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_MS / 1000) -> None:
        """Wait for what is not seen on the page, which goes on meanwhile."""
        until(condition, what, timeout_s, pause=lambda seconds: self.page.wait_for_timeout(seconds * 1000))

    def all_kept(self) -> None:
        """Wait until no tab receives a reply, or waits for one that another tab receives, and all changes are kept."""
        claims = "navigator.locks ? navigator.locks.query().then(({held, pending}) => held.length + pending.length) : 0"
        self.until(lambda: self.page.evaluate(claims) == 0, "all replies are kept")
        self.page.evaluate(BEHIND_ALL)

    def keeps(self, text: str) -> None:
        """Wait until the browser keeps conversations with this text: those of a reply that is still written lag behind."""
        self.until(lambda: text in self.page.evaluate(CONVERSATIONS), f"{text!r} is kept")

    def reload(self) -> None:
        """Reload the page once it keeps all that is seen."""
        self.all_kept()
        self.page.reload()

    def on_row(self, title: str, action: str) -> None:
        """Press "Rename" or "Delete" on a conversation's row, which has the focus: under a mouse it may move away."""
        self.page.locator("#sidebar .title").get_by_text(title, exact=True).focus()
        self.button(f"{action} {title}").click()

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)
