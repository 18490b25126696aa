"""The web UI on the real stack, in Debian's Chromium: through proxy, ingress and Serve handle to the Gradio app, and back."""

import os
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from conftest import Served
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cluster.chaos import words

QUESTION = "What is 47 * 6 - 100?"
CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 30_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(served: Served, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, opened at `/`; an indirect parameter gives the browser's options."""
    options: dict[str, Any] = {"locale": "en-US", "viewport": {"width": 1280, "height": 900}} | getattr(request, "param", {})
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(served.url + "/")
    page.locator("#chat-question").wait_for()
    yield page
    context.close()


def ask(page: Page, question: str = QUESTION) -> None:
    page.locator("#chat-question").fill(question)
    page.locator("#chat-question").press("Enter")


def answered(page: Page, answer: str) -> None:
    page.locator("#panel-chat .reply[data-phase=done]").last.wait_for()
    expect(page.locator("#panel-chat .reply .answer output").last).to_have_text(answer)


def test_the_start_tells_the_address_and_the_root_leads_there(served: Served, page: Page) -> None:
    assert f"UI    {served.url}/ui" in served.output
    assert page.url == f"{served.url}/ui/"


def test_a_question_is_answered_in_steps_with_the_servers_figures(served: Served, page: Page) -> None:
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    ask(page)
    answered(page, "182")
    page.locator("#panel-chat .thought > summary").click()
    words = page.locator("#panel-chat .thought .step .word").all_inner_texts()
    assert words[0] == "Continue"
    assert "Reflect" in words
    body = {"model": "nano", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    usage = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).json()["usage"]
    spent = usage["completion_tokens_details"]["reasoning_tokens"]
    for figure in (f"Tokens{usage['completion_tokens']}", f"Tokens of thought{spent}", f"Reflections{words.count('Reflect')}"):
        expect(page.locator("#panel-chat .stats")).to_contain_text(figure)
    assert [url for url in seen if not url.startswith((served.url, "data:", "blob:"))] == []


@pytest.mark.parametrize("page", [{"locale": "zh-CN"}], indirect=True)
def test_chinese_and_the_references_own_question(page: Page) -> None:
    ask(page, "哪个数字更大? 是 9.11 还是 9.9?")
    answered(page, "9.9")
    page.locator("#panel-chat .thought > summary").click()
    expect(page.locator("#panel-chat .thought .step .word").first).to_have_text("继续")


@pytest.mark.parametrize("page", [{"viewport": {"width": 390, "height": 844}}], indirect=True)
def test_a_phone(page: Page) -> None:
    ask(page)
    answered(page, "182")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_stop_frees_the_engine_and_retry_asks_again(served: Served, page: Page) -> None:
    frozen = served.engine()
    frozen.suspend()  # so that there is something to stop, however quick the machine
    try:
        ask(page)
        page.get_by_role("button", name="Stop", exact=True).click()
        page.get_by_role("button", name="Try again", exact=True).last.wait_for()
        for _ in range(300):
            if httpx.get(f"{served.url}/ready").json()["ingress"]["states"] == 0:
                break
            page.wait_for_timeout(50)
        ingress = httpx.get(f"{served.url}/ready").json()["ingress"]
        assert (ingress["states"], ingress["open"]) == (0, 0)
    finally:
        frozen.resume()
    page.get_by_role("button", name="Try again", exact=True).last.click()
    answered(page, "182")
    for _ in range(300):
        if httpx.get(f"{served.url}/ready").json()["replica"]["running"] == 0:
            break
        page.wait_for_timeout(50)
    assert httpx.get(f"{served.url}/ready").json()["replica"]["open"] == 0


def test_many_at_once_each_get_their_own(served: Served, browser: Browser) -> None:
    pages = []
    for number in range(6):
        context = browser.new_context(locale="en-US")
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(served.url + "/ui/")
        page.locator("#chat-question").wait_for()
        pages.append((number, page))
    for number, page in pages:
        ask(page, f"What is {40 + number} + 5?")
    for number, page in pages:
        answered(page, str(45 + number))
        page.context.close()


@pytest.mark.timeout(240)
def test_it_keeps_working_while_the_llm_replica_is_replaced(served: Served, page: Page) -> None:
    def replicas() -> set[int]:
        return {process.pid for process in served.processes() if "ServeReplica:default:LLM" in words(process)}

    [replica] = replicas()
    os.kill(replica, signal.SIGSTOP)  # not killed yet: its successor could be up before the page looks
    status = page.locator(".status")
    expect(status).to_be_visible(timeout=60_000)
    expect(status).to_contain_text("loading")
    os.kill(replica, signal.SIGKILL)
    for _ in range(600):
        if replicas() - {replica}:
            break
        page.wait_for_timeout(100)
    ask(page)
    expect(status).to_be_hidden(timeout=120_000)
    answered(page, "182")
