"""What the browser tests share: Debian's Chromium, and the page before a scripted API."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.page import Chat, Opened, chromium
from tests.support.scripted_api import Background, ScriptedApi
from ui.app import asgi


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


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


@pytest.fixture
def opened(browser: Browser, ui: Background) -> Iterator[Opened]:
    """Open the page in a context of its own: size, language and colours may be given. Fails where a script of a page does."""
    chats: list[Chat] = []

    def opened(width: int = 1280, height: int = 900, locale: str = "en-US", scheme: str = "light") -> Chat:
        options = {"viewport": {"width": width, "height": height}, "locale": locale, "color_scheme": scheme}
        chats.append(Chat(browser, f"{ui.url}/ui/", **options))
        return chats[-1]

    yield opened
    for chat in chats:
        chat.context.close()
    assert [error for chat in chats for error in chat.errors] == []


@pytest.fixture
def chat(opened: Opened) -> Chat:
    """The page at a desk, in English."""
    return opened()
