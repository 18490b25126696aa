"""The page goes on with its replies: after a lost connection, a reload, a server that is started anew, and in another tab."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.page import CONVERSATIONS, QUESTION, Chat, Opened
from tests.support.scripted_api import Background, ScriptedApi
from tests.support.until import until
from tests.support.wire import Wire
from ui.app import asgi

LOST = "The connection is lost. The reply goes on as soon as it is back."
UNSENT = "The connection is lost. Your question is sent as soon as it is back."


class Tab(Chat):
    """Another tab of the same browser."""

    def __init__(self, first: Chat) -> None:
        self.context, self.requests, self.errors = first.context, first.requests, first.errors
        self.page: Page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.load(first.url)


@pytest.fixture
def api() -> ScriptedApi:
    """An API that stores replies."""
    api = ScriptedApi()
    api.stores = True
    return api


@pytest.fixture
def wired(browser: Browser, ui: Background) -> Iterator[tuple[Chat, Wire]]:
    """Open the page over a wire."""
    wire = Wire(ui.url)
    chat = Chat(browser, f"{wire.url}/ui/")
    yield chat, wire
    chat.context.close()
    wire.stop()
    assert chat.errors == []


def gone(chat: Chat) -> None:
    """Take the network away. Chromium's emulation leaves connections open, and does not tell the page."""
    chat.context.set_offline(True)
    chat.page.evaluate("dispatchEvent(new Event('offline'))")


def back(chat: Chat) -> None:
    """Give the network back."""
    chat.context.set_offline(False)
    chat.page.evaluate("dispatchEvent(new Event('online'))")


def begun(chat: Chat, api: ScriptedApi, pieces: int = 20, text: str = QUESTION) -> None:
    """Have a reply stop in its second step, with more to come."""
    api.gate.close()
    api.gate.open(pieces)
    chat.ask(text)
    chat.steps.nth(1).wait_for()


def replies(chat: Chat) -> list[dict[str, Any]]:
    """Return the replies that the browser keeps, without what depends on time."""
    chat.all_kept()
    found = [turn["reply"] for kept in json.loads(chat.page.evaluate(CONVERSATIONS)) for turn in kept["turns"]]
    for reply in found:
        for name in ("id", "elapsed_s", "progress"):
            del reply[name]
        for step in reply["steps"]:
            del step["seconds"]
        reply["stats"] = {name: value for name, value in reply["stats"].items() if not name.endswith("_s") and name != "seconds"}
    return found


def whole(chat: Chat, api: ScriptedApi) -> None:
    """Let the reply end; the same question, asked again without trouble, has the same one."""
    api.gate.open()
    chat.answered()
    assert len(api.asked) == 1, "nothing is asked twice"
    chat.ask()
    chat.answered(2)
    first, second = replies(chat)
    assert first == second


@pytest.mark.timeout(240)
@pytest.mark.parametrize("outage_s", [1, 10, 60])
def test_a_reply_goes_on_after_the_network_was_gone(chat: Chat, api: ScriptedApi, outage_s: int) -> None:
    begun(chat, api)
    gone(chat)
    note = chat.replies.get_by_role("status")
    expect(note).to_have_text(LOST)
    expect(chat.page.locator(".status")).to_contain_text("No connection to the server")
    chat.box.press_sequentially("half")
    api.gate.open(6)
    chat.page.wait_for_timeout(outage_s * 1000)
    expect(note).to_have_text(LOST)
    expect(chat.steps).to_have_count(2)
    back(chat)
    expect(note).to_have_text("", timeout=5_000)
    expect(chat.page.locator(".status")).to_be_hidden()
    expect(chat.box).to_be_focused()
    chat.box.press_sequentially(" typed")
    expect(chat.box).to_have_value("half typed")
    whole(chat, api)


def test_a_network_that_carries_nothing_is_noticed(wired: tuple[Chat, Wire], api: ScriptedApi) -> None:
    """Without an end of any connection, and without the browser's knowing."""
    chat, wire = wired
    begun(chat, api)
    wire.hold()
    expect(chat.replies.get_by_role("status")).to_have_text(LOST, timeout=30_000)
    wire.mend()
    expect(chat.replies.get_by_role("status")).to_have_text("")
    whole(chat, api)


def test_pauses_between_attempts_grow_and_end_when_the_browser_is_online(wired: tuple[Chat, Wire], api: ScriptedApi) -> None:
    chat, wire = wired
    begun(chat, api)
    chat.page.clock.install()
    wire.cut()
    note = chat.replies.get_by_role("status")
    expect(note).to_have_text(LOST)

    def tries(seconds: int) -> int:
        before = len(asks())
        for _ in range(2 * seconds):
            chat.page.clock.run_for(500)
            chat.page.evaluate("fetch('state').catch(() => 0)")  # as long as an attempt takes
        return len(asks()) - before

    def asks() -> list[str]:
        return [url for url in chat.requests if url.endswith("/ui/ask")]

    assert tries(10) >= 2
    assert tries(30) <= 3
    wire.mend()
    chat.page.evaluate("dispatchEvent(new Event('online'))")
    expect(note).to_have_text("")
    chat.page.clock.resume()
    whole(chat, api)


def test_a_reply_goes_on_after_a_reload(chat: Chat, api: ScriptedApi) -> None:
    begun(chat, api)
    chat.keeps("Let me check")
    chat.page.reload()
    expect(chat.replies).to_have_attribute("aria-busy", "true")
    expect(chat.steps).to_have_count(2)
    expect(chat.page.locator("#sidebar").get_by_role("img", name="Being answered")).to_have_count(1)
    api.gate.open(20)
    expect(chat.steps).to_have_count(3)
    whole(chat, api)
    expect(chat.page.locator("#sidebar").get_by_role("img", name="Being answered")).to_have_count(0)


@pytest.mark.parametrize("which", ["ui", "api", "both"])
def test_a_reply_goes_on_after_servers_were_started_anew(
    chat: Chat, api: ScriptedApi, server: Background, ui: Background, which: str
) -> None:
    begun(chat, api)
    new: list[Background] = []
    if which != "api":
        ui.stop()
    if which != "ui":
        server.stop()
        new.append(Background(api.app, server.port))
    if which != "api":
        expect(chat.replies.get_by_role("status")).to_have_text(LOST)
        new.append(Background(asgi(server.url), ui.port))
    whole(chat, api)
    api.gate.open()
    for one in new:
        one.stop()


def test_the_page_says_that_the_api_is_lost(chat: Chat, api: ScriptedApi, server: Background) -> None:
    begun(chat, api)
    facts = chat.replies.locator(".thought > summary .facts")
    expect(facts).to_contain_text("3–21 s left")
    server.stop()
    expect(chat.replies.get_by_role("status")).to_have_text(LOST)
    expect(facts).not_to_contain_text("left")
    again = Background(api.app, server.port)
    expect(chat.replies.get_by_role("status")).to_have_text("")
    expect(facts).to_contain_text("3–21 s left")
    whole(chat, api)
    again.stop()


@pytest.mark.parametrize("reloaded", [False, True])
def test_a_stop_while_offline_reaches_the_server_later(
    chat: Chat, api: ScriptedApi, ui: Background, server: Background, reloaded: bool
) -> None:
    begun(chat, api)
    if reloaded:  # the page loads, and does not reach what stops replies
        chat.page.route("**/ui/stop", lambda route: route.abort())
    else:
        gone(chat)
        expect(chat.replies.get_by_role("status")).to_have_text(LOST)
    chat.button("Stop").click()
    expect(chat.replies).to_contain_text("Stopped")
    expect(chat.replies.get_by_role("status")).to_have_text("")
    assert api.deleted == []
    if reloaded:
        chat.all_kept()
        chat.page.unroute("**/ui/stop")
        chat.page.reload()
    back(chat)
    chat.until(lambda: len(api.deleted) == 1, "the server is told to stop")
    chat.until(lambda: api.open_streams == 0, "the reply is written no more")
    expect(chat.replies).to_contain_text("Stopped")
    chat.until(lambda: chat.page.evaluate("localStorage['satori.stops']") is None, "the page knows that")


def test_a_question_asked_offline_is_sent_once_when_the_network_is_back(chat: Chat, api: ScriptedApi) -> None:
    gone(chat)
    chat.ask()
    expect(chat.replies.get_by_role("status")).to_have_text(UNSENT)
    chat.ask("half of one")
    expect(chat.replies.nth(1)).to_contain_text("Waits until the reply before it has ended")
    chat.keeps("half of one")
    back(chat)
    chat.answered(2)
    assert [asked["messages"][-1]["content"] for asked in api.asked] == [QUESTION, "half of one"]


def test_a_question_whose_arrival_the_page_did_not_hear_of_is_asked_once(wired: tuple[Chat, Wire], api: ScriptedApi) -> None:
    chat, wire = wired
    api.gate.close()
    chat.ask()
    chat.until(lambda: len(api.stored) == 1, "the API has it")
    wire.cut()
    expect(chat.replies.get_by_role("status")).to_have_text(UNSENT)
    wire.mend()
    whole(chat, api)


def test_another_tab_follows_when_the_first_is_closed(chat: Chat, api: ScriptedApi) -> None:
    begun(chat, api)
    other = Tab(chat)
    elsewhere = other.panel.get_by_text("This reply is written for another tab")
    expect(elsewhere).to_be_visible()
    assert api.reading == 1, "one tab follows the reply"
    chat.page.close()
    expect(elsewhere).to_be_hidden()
    other.until(lambda: api.reading == 1, "the other tab follows it")
    whole(other, api)


def test_a_reply_that_ended_meanwhile_is_fetched_whole(chat: Chat, api: ScriptedApi) -> None:
    begun(chat, api)
    chat.keeps("Let me check")
    chat.page.close()
    api.gate.open()
    [stored] = api.stored.values()
    until(lambda: stored.ended, "the reply has ended", 30)
    assert api.reading == 0, "nobody reads it"
    late = Tab(chat)
    late.answered()
    expect(late.page.locator("#sidebar").get_by_role("img", name="Being answered")).to_have_count(0)
    whole(late, api)


def test_a_reply_of_which_the_server_knows_nothing_more(chat: Chat, api: ScriptedApi) -> None:
    begun(chat, api)
    chat.keeps("Let me check")
    chat.page.reload()
    chat.steps.nth(1).wait_for()
    chat.until(lambda: api.reading == 1, "it is followed")
    gone(chat)
    expect(chat.replies.get_by_role("status")).to_have_text(LOST)
    api.stored.clear()
    back(chat)
    problem = chat.panel.get_by_role("alert")
    expect(problem).to_contain_text("The reply is not on the server any more")
    expect(chat.replies).to_have_attribute("aria-busy", "false")
    expect(chat.steps.first).to_contain_text("First the product")
    chat.page.reload()
    expect(problem).to_contain_text("The reply is not on the server any more")
    api.gate.open()
    problem.get_by_role("button", name="Try again").click()
    chat.answered()
    assert len(api.asked) == 2


def test_the_pages_key_reads_and_stops(chat: Chat, api: ScriptedApi) -> None:
    chat.page.evaluate("sessionStorage.setItem('satori.key', 'secret')")
    begun(chat, api)
    chat.page.reload()
    chat.until(lambda: api.read_by == ["Bearer secret"], "it is read again")
    expect(chat.steps).to_have_count(2)
    chat.button("Stop").click()
    chat.until(lambda: len(api.deleted) == 1, "it is deleted")


def test_what_is_answered_in_the_background_is_listed_and_followed_a_few_at_a_time(chat: Chat, api: ScriptedApi) -> None:
    api.gate.close()
    api.gate.open(20)
    count = 4
    tabs = [chat, *(Tab(chat) for _ in range(count - 1))]
    for number, tab in enumerate(tabs):
        tab.button("New conversation").click()
        tab.ask(f"Question {number}")
        tab.steps.nth(1).wait_for()
    running = tabs[0].page.locator("#sidebar").get_by_role("img", name="Being answered")
    expect(running).to_have_count(count)
    for tab in tabs[1:]:
        tab.page.close()
    chat.until(lambda: api.reading == 3, "its own and two more are followed")
    chat.button("New conversation").click()
    chat.page.reload()
    expect(running).to_have_count(count)
    chat.until(lambda: api.reading == 2, "two are followed")
    api.most_reading = 0
    api.gate.open()
    expect(running).to_have_count(0)
    assert 1 <= api.most_reading <= 2
    assert len(api.asked) == count
    for number in range(count):
        chat.page.locator("#sidebar .title").get_by_text(f"Question {number}").click()
        chat.answered()


def test_a_deleted_conversation_is_answered_no_more(chat: Chat, api: ScriptedApi) -> None:
    begun(chat, api)
    chat.page.reload()
    chat.steps.nth(1).wait_for()
    chat.on_row(QUESTION, "Delete")
    chat.button("Delete for good").click()
    chat.until(lambda: len(api.deleted) == 1, "the server is told to stop")


def test_a_comparison_goes_on_after_a_reload(chat: Chat, api: ScriptedApi) -> None:
    chat.page.locator("#tab-compare").click()
    api.gate.close()
    api.gate.open(20)
    chat.page.locator("#compare-question").fill(QUESTION)
    chat.page.locator("#compare-question").press("Enter")
    for side in ("a", "b"):
        expect(chat.page.locator(f".side.{side} .step")).to_have_count(2)
    chat.page.reload()
    chat.page.locator("#tab-compare").click()
    api.gate.open()
    for side in ("a", "b"):
        expect(chat.page.locator(f".side.{side} .answer output")).to_have_text("182")
    assert len(api.asked) == 2


def test_a_vote_ends_with_its_connection(opened: Opened, api: ScriptedApi) -> None:
    """Its chains are not stored."""
    chat = opened()
    chat.page.locator("header .settings").click()
    chat.page.locator("#chat-votes").fill("8")
    chat.page.keyboard.press("Escape")
    api.gate.close()
    api.gate.open(3)
    chat.ask()
    expect(chat.panel.locator(".votes")).to_contain_text("3 of 8 attempts counted")
    gone(chat)
    expect(chat.panel.get_by_role("alert")).to_contain_text("The connection was lost")
    expect(chat.panel.locator(".votes")).to_contain_text("3 of 8 attempts counted")
    back(chat)


def test_chinese(opened: Opened, api: ScriptedApi) -> None:
    chat = opened(locale="zh-CN")
    begun(chat, api)
    gone(chat)
    expect(chat.replies.get_by_role("status")).to_have_text(re.compile("连接已断开"))
    expect(chat.page.locator(".status")).to_contain_text("无法连接服务器")
    back(chat)
    api.gate.open()
    chat.answered()
