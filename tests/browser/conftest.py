"""What the browser tests share: Debian's Chromium, the page before a scripted API, and a way to ask."""

import shutil
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Playwright, sync_playwright

from tests.scripted_api import Background, ScriptedApi
from ui.app import asgi

QUESTION = "What is 47 * 6 - 100?"
CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 20_000


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture
def api() -> ScriptedApi:
    return ScriptedApi()


@pytest.fixture
def server(api: ScriptedApi) -> Iterator[Background]:
    """The scripted API's server."""
    server = Background(api.app)
    yield server
    api.gate.open()
    server.stop()


@pytest.fixture
def ui(server: Background) -> Iterator[Background]:
    """The UI's server."""
    ui = Background(asgi(server.url))
    yield ui
    ui.stop()


Opened = Callable[..., "Chat"]


class Chat:
    """The page in one browser context, with what a user does on it."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page: Page = context.new_page()
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

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what is not seen on the page."""
        end = time.monotonic() + PATIENCE_MS / 1000
        while not condition():
            assert time.monotonic() < end
            self.page.wait_for_timeout(10)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)


@pytest.fixture
def opened(browser: Browser, ui: Background) -> Iterator[Opened]:
    """Open the page in a context of its own: size, language and colours may be given."""
    contexts = []

    def opened(width: int = 1280, height: int = 900, locale: str = "en-US", scheme: str = "light") -> Chat:
        context = browser.new_context(viewport={"width": width, "height": height}, locale=locale, color_scheme=scheme)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        return Chat(context, f"{ui.url}/ui/")

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def chat(opened: Opened) -> Iterator[Chat]:
    """The page at a desk, in English. Fails where a script of the page does."""
    chat = opened()
    yield chat
    assert chat.errors == []
