"""What the browser keeps: in several tabs, where it is full, forbidden or damaged, in a backup, and from an older page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.support.page import Chat, Opened
from tests.support.scripted_api import ScriptedApi

FULL = """
const put = IDBObjectStore.prototype.put;
IDBObjectStore.prototype.put = function (...all) {
  if (window.roomAgain) return put.apply(this, all);
  throw new DOMException("no space", "QuotaExceededError");
};
Storage.prototype.setItem = () => { throw new DOMException("no space", "QuotaExceededError"); };
"""
FORBIDDEN = """
for (const name of ["localStorage", "sessionStorage", "indexedDB"]) {
  Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError"); } });
}
"""
HELD = """
const { set } = Object.getOwnPropertyDescriptor(IDBTransaction.prototype, "oncomplete");
window.held = null;
Object.defineProperty(IDBTransaction.prototype, "oncomplete", { set(told) {
  set.call(this, (event) => (window.held ? window.held.push(() => told(event)) : told(event)));
} });
"""
WITHOUT_LOCKS = "Object.defineProperty(Navigator.prototype, 'locks', { value: undefined });"  # as over plain http from another host

LATE = """() => {
const post = BroadcastChannel.prototype.postMessage;
BroadcastChannel.prototype.postMessage = function (told) { setTimeout(() => post.call(this, told), told.has ? 1500 : 0); };
}"""  # as a busy tab tells others what it claims


class Tab(Chat):
    """Another tab of the same browser."""

    def __init__(self, first: Chat) -> None:
        self.context, self.requests, self.errors = first.context, [], first.errors
        self.page: Page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.load(first.page.url)


@pytest.fixture
def prepared(opened: Opened) -> Callable[[str], Chat]:
    """Open the page after a script has run in it."""

    def prepared(script: str) -> Chat:
        chat = opened()
        chat.context.add_init_script(script)
        chat.page.reload()
        chat.box.wait_for()
        return chat

    return prepared


@pytest.mark.parametrize("script", ["", WITHOUT_LOCKS], ids=["locks", "no locks"])
def test_two_tabs_have_one_conversation(prepared: Callable[[str], Chat], api: ScriptedApi, script: str) -> None:
    chat = prepared(script)
    chat.page.evaluate(LATE)
    api.gate.close()
    api.gate.open(20)
    chat.ask()
    chat.steps.nth(1).wait_for()
    other = Tab(chat)
    expect(other.replies).to_have_attribute("aria-busy", "true")
    expect(other.panel).to_contain_text("This reply is written for another tab")
    expect(other.steps.first).to_contain_text("First the product")
    other.ask("half of one")
    expect(other.replies.nth(1)).to_contain_text("Waits until the reply before it has ended")
    expect(chat.replies.nth(1)).to_contain_text("Waits until the reply before it has ended")
    api.gate.open()
    for tab in (chat, other):
        tab.answered(2)
        expect(tab.panel.locator(".answer output").first).to_have_text("182")
        expect(tab.panel.locator(".bubble")).to_have_text(["What is 47 * 6 - 100?", "half of one"])
    assert [asked["messages"][-1]["content"] for asked in api.asked] == ["What is 47 * 6 - 100?", "half of one"]
    chat.reload()
    chat.answered(2)


def test_a_title_is_written_while_the_list_changes(chat: Chat) -> None:
    """A conversation that moves up in the list keeps the title that is being written."""
    chat.ask("half of one")
    chat.answered()
    chat.button("New conversation").click()
    chat.ask()
    chat.answered()
    chat.all_kept()
    titles = chat.page.locator("#sidebar .title")
    expect(titles.last).to_have_text("half of one")
    other = Tab(chat)
    chat.on_row("half of one", "Rename")
    title = chat.page.get_by_role("textbox", name="Rename")
    title.fill("Mi")
    other.page.locator("#sidebar .title").get_by_text("half of one", exact=True).click()
    other.ask("9.11")
    other.answered(2)
    expect(other.page.locator("#sidebar .title").first).to_have_text("half of one")
    chat.all_kept()
    title.fill("Mine")
    title.press("Enter")
    expect(titles).to_have_text(["Mine", "What is 47 * 6 - 100?"])


def test_a_tab_stops_what_another_one_receives(chat: Chat, api: ScriptedApi) -> None:
    api.gate.close()
    api.gate.open(4)
    chat.ask()
    chat.steps.first.wait_for()
    other = Tab(chat)
    other.button("Stop").click()
    for tab in (chat, other):
        expect(tab.replies).to_contain_text("Stopped")
    chat.until(lambda: api.open_streams == 0, "the server is told to stop")


def test_a_held_question_is_asked_once(opened: Opened, api: ScriptedApi) -> None:
    """Two more tabs see it wait. When its own tab is closed, one of them asks it."""
    api.ready = False
    chat = opened()
    chat.ask()
    expect(chat.replies).to_contain_text("goes out by itself")
    second, third = Tab(chat), Tab(chat)
    for tab in (second, third):
        expect(tab.replies).to_contain_text("goes out by itself")
        tab.page.evaluate("sessionStorage.setItem('satori.key', 'left')")  # the API sees which tabs ask
    chat.page.close()
    second.until(lambda: "Bearer left" in api.keys, "a tab that is left asks")
    api.ready = True
    for tab in (second, third):
        tab.answered()
        tab.all_kept()
    # Not of all: the server asks for the closed tab until it notices, a moment later, that it is gone.
    assert api.taken.count("Bearer left") == 1
    assert second.panel.locator(".turn").count() == third.panel.locator(".turn").count() == 1


def test_a_question_asked_again_before_its_error_is_kept(prepared: Callable[[str], Chat], api: ScriptedApi) -> None:
    chat = prepared(HELD)
    api.trouble = "failed"
    chat.page.evaluate("window.held = []")
    chat.ask()
    again = chat.panel.get_by_role("button", name="Try again")
    again.wait_for()
    api.trouble = None
    again.click()
    again.wait_for(state="hidden")
    chat.page.evaluate("{ const told = window.held; window.held = null; told.forEach((one) => one()); }")
    chat.answered()
    chat.all_kept()


def test_what_cannot_be_kept_is_not_asked_again(chat: Chat, api: ScriptedApi) -> None:
    """The browser is full when the reply ends: the other tab does not know the reply, but that this tab has it."""
    api.gate.close()
    chat.ask()
    expect(chat.replies).to_contain_text("waiting for the first words")
    other = Tab(chat)
    expect(other.replies).to_contain_text("waiting for the first words")
    chat.page.evaluate(f"() => {{ {FULL} }}")
    api.gate.open()
    chat.answered()
    expect(chat.page.locator(".storage")).to_contain_text("storage is full")
    chat.page.evaluate("window.roomAgain = true")
    chat.ask("half of one")
    chat.answered(2)
    other.answered(2)
    other.all_kept()
    assert len(api.asked) == 2


def test_a_deleted_question_is_not_asked(opened: Opened, api: ScriptedApi) -> None:
    """Neither by the tab that waits for the one in which it is deleted."""
    api.ready = False
    chat = opened()
    chat.ask()
    expect(chat.replies).to_contain_text("goes out by itself")
    other = Tab(chat)
    expect(other.replies).to_contain_text("goes out by itself")
    other.page.evaluate("sessionStorage.setItem('satori.key', 'left')")
    chat.on_row("What is 47 * 6 - 100?", "Delete")
    chat.button("Delete for good").click()
    expect(other.page.locator("#sidebar li")).to_have_count(0)
    other.all_kept()
    assert "Bearer left" not in api.keys


def test_a_deleted_conversation_stays_deleted(chat: Chat, api: ScriptedApi) -> None:
    api.gate.close()
    api.gate.open(4)
    chat.ask()
    chat.steps.first.wait_for()
    other = Tab(chat)
    expect(other.steps.first).to_contain_text("First the product")
    other.on_row("What is 47 * 6 - 100?", "Delete")
    other.button("Delete for good").click()
    for tab in (chat, other):
        expect(tab.page.locator("#sidebar li")).to_have_count(0)
        expect(tab.panel).to_contain_text("What shall we work out?")
    chat.until(lambda: api.open_streams == 0, "the server is told to stop")
    api.gate.open()
    chat.ask("half of one")
    chat.answered()
    chat.reload()
    expect(chat.page.locator("#sidebar .title")).to_have_text(["half of one"])


@pytest.mark.parametrize(("script", "told"), [(FULL, "storage is full"), (FORBIDDEN, "does not let this page keep anything")])
def test_without_storage_the_page_goes_on(prepared: Callable[[str], Chat], tmp_path: Path, script: str, told: str) -> None:
    chat = prepared(script)
    chat.ask()
    chat.answered()
    warning = chat.page.locator(".storage")
    expect(warning).to_contain_text(told)
    chat.page.locator("header .settings").click()
    chat.page.locator("#settings input[value=quick]").check()
    chat.page.keyboard.press("Escape")
    expect(chat.page.locator(".composer:visible .summary")).to_contain_text("Quick")
    with chat.page.expect_download() as download:
        warning.get_by_role("button", name="Save everything").click()
    download.value.save_as(tmp_path / "all.json")
    saved = json.loads((tmp_path / "all.json").read_text())
    assert [turn["reply"]["answer"] for kept in saved["conversations"] for turn in kept["turns"]] == ["182"]
    if script == FULL:  # what was not kept is kept with the next change, once there is room
        chat.page.evaluate("window.roomAgain = true")
        chat.ask("half of one")
        chat.answered(2)
        kept = "new Promise(done => indexedDB.open('satori').onsuccess = ({target}) => target.result.transaction('index')"
        count = f"{kept}.objectStore('index').count().onsuccess = (event) => done(event.target.result))"
        chat.until(lambda: chat.page.evaluate(count) == 1, "it is kept")


def old(kept_id: str, question: str, answer: str) -> dict[str, Any]:
    """A conversation as an older page kept it, in localStorage."""
    reply = {
        "id": "r",
        "phase": "done",
        "steps": [],
        "content": "Yes.",
        "answer": answer,
        "vote": None,
        "finish": "stop",
        "error": None,
    }
    turns = [{"id": f"{kept_id}{at}", "question": f"{question}{at}", "reply": reply | {"stats": None}} for at in (1, 2)]
    return {"id": kept_id, "title": question, "turns": turns}


def test_what_an_older_page_kept(prepared: Callable[[str], Chat], tmp_path: Path) -> None:
    """It is taken over once. What is damaged is kept aside, and is in the backup."""
    entries = {
        "satori.conversations": [{"id": "b", "title": "Renamed", "updated": 2}, {"id": "a", "title": "First", "updated": 1}],
        "satori.conversation.a": old("a", "First", "1"),
        "satori.conversation.b": old("b", "Second", "2"),
    }
    texts = {key: json.dumps(value) for key, value in entries.items()}
    texts |= {"satori.conversation.c": '{"id": "c", "turns": [', "satori.settings.chat": "{oops", "satori.current": "b"}
    texts |= {"satori.conversation.d": '{"id": "d", "turns": [{"id": 1}]}', "satori.theme": "mauve"}
    left = f"if (!localStorage.left) Object.assign(localStorage, {json.dumps(texts | {'left': '1'})});"
    script = f"{left} sessionStorage.clear();"
    chat = prepared(script)
    titles = chat.page.locator("#sidebar .title")
    expect(titles).to_have_text(["Renamed", "First"])
    expect(chat.panel.locator(".bubble")).to_have_text(["Second1", "Second2"])
    expect(chat.page.locator(".storage")).to_contain_text("could not be read")
    with chat.page.expect_download() as download:
        chat.button("Save everything").click()
    download.value.save_as(tmp_path / "all.json")
    saved = json.loads((tmp_path / "all.json").read_text())
    assert {entry["id"].removeprefix("satori.aside.") for entry in saved["damaged"]} == {
        "satori.conversation.c",
        "satori.conversation.d",
        "satori.settings.chat",
    }
    assert chat.page.evaluate("Object.keys(localStorage).filter(key => key.startsWith('satori.conversation'))") == []
    chat.on_row("First", "Delete")
    chat.button("Delete for good").click()
    chat.reload()
    expect(titles).to_have_text(["Renamed"])
    expect(chat.page.locator(".storage")).to_be_hidden()


def test_a_damaged_entry_of_the_database(chat: Chat) -> None:
    chat.ask()
    chat.answered()
    damage = """new Promise(done => indexedDB.open('satori').onsuccess = ({target}) => {
        const all = target.result.transaction('conversations', 'readwrite');
        const kept = all.objectStore('conversations');
        kept.getAll().onsuccess = ({target}) => kept.put({...target.result[0], turns: 5});
        all.oncomplete = () => done(0); })"""
    chat.all_kept()
    chat.page.evaluate(damage)
    chat.page.reload()
    expect(chat.page.locator(".storage")).to_contain_text("could not be read")
    chat.ask("half of one")
    chat.answered()


def test_a_backup_is_taken_back(opened: Opened, tmp_path: Path) -> None:
    chat, other = opened(), opened()
    chat.ask()
    chat.answered()
    chat.button("New conversation").click()
    chat.ask("half of one")
    chat.answered()
    with chat.page.expect_download() as download:
        chat.button("Save all").click()
    download.value.save_as(tmp_path / "all.json")
    with chat.page.expect_download() as download:
        chat.button("JSON").click()
    download.value.save_as(tmp_path / "one.json")
    (tmp_path / "none.json").write_text('{"turns": 1}')
    notice, titles = other.page.locator(".notice:not(.storage)"), other.page.locator("#sidebar .title")
    for name, told in (
        ("none", "none.json has no conversations"),
        ("one", "1 conversation added"),
        ("all", "1 conversation added"),
        ("all", "0 conversations"),
    ):
        other.page.locator("input[type=file]").set_input_files(tmp_path / f"{name}.json")
        expect(notice).to_contain_text(told)
    expect(titles).to_have_text(["half of one", "What is 47 * 6 - 100?"])
    titles.nth(1).click()
    expect(other.panel.locator(".answer output")).to_have_text("182")
    other.reload()
    expect(titles).to_have_count(2)


def chatgpt() -> list[dict[str, Any]]:
    """Return an export of ChatGPT: a second question was edited, and its answer written twice, the first time in two messages."""

    def node(name: str, parent: str | None, role: str, *parts: Any, hidden: bool = False) -> tuple[str, dict[str, Any]]:
        metadata = {"is_visually_hidden_from_conversation": True} if hidden else {}
        content = {"content_type": "text", "parts": list(parts)}
        message = {"author": {"role": role}, "content": content, "recipient": "all", "metadata": metadata}
        return name, {"id": name, "parent": parent, "children": [], "message": message}

    mapping = dict(
        [
            ("root", {"id": "root", "parent": None, "children": [], "message": None}),
            node("system", "root", "system", "", hidden=True),
            node("q1", "system", "user", "Half of one?"),
            node("a1", "q1", "assistant", "It is $\\frac{1}{2}$."),
            node("q2", "a1", "user", "And a third?"),
            node("q2b", "a1", "user", {"content_type": "image_asset_pointer"}, "And a quarter?"),
            node("a2", "q2b", "assistant", "Let me see."),
            node("a2tool", "a2", "tool", "0.25"),
            node("a2more", "a2tool", "assistant", "It is 0.25."),
            node("a2b", "q2b", "assistant", "A quarter is 1/4."),
            node("a2c", "a2b", "assistant", ""),
        ]
    )
    whole = {"title": "Halves", "create_time": 1700000000.0, "mapping": mapping, "current_node": "a2more"}
    return [whole, {"title": "Torn", "create_time": 1700000001.0, "mapping": None, "current_node": None}]


def open_webui() -> list[dict[str, Any]]:
    """Return an export of Open WebUI: a conversation with two answers, and an old one, which is a list."""
    messages = {
        "q": {"id": "q", "parentId": None, "childrenIds": ["a", "b"], "role": "user", "content": "Two?"},
        "a": {"id": "a", "parentId": "q", "childrenIds": [], "role": "assistant", "content": "It is **2**."},
        "b": {"id": "b", "parentId": "q", "childrenIds": [], "role": "assistant", "content": "It is II."},
    }
    old = [{"role": "user", "content": "Three?"}, {"role": "assistant", "content": "3"}]
    return [
        {"id": "1", "updated_at": 1700000002, "chat": {"title": "Twos", "history": {"messages": messages, "currentId": "a"}}},
        {"id": "2", "updated_at": 1700000001, "chat": {"title": "Threes", "messages": old}},
    ]


def test_conversations_of_other_programs(chat: Chat, api: ScriptedApi, tmp_path: Path) -> None:
    notice, titles = chat.page.locator(".notice:not(.storage)"), chat.page.locator("#sidebar .title")
    bubbles, contents = chat.panel.locator(".bubble"), chat.panel.locator(".content")

    def take(name: str, text: str, told: str) -> None:
        (tmp_path / name).write_text(text)
        chat.page.locator("input[type=file]").set_input_files(tmp_path / name)
        expect(notice).to_contain_text(told)

    take("torn.json", json.dumps(chatgpt())[:-9], "torn.json is not whole, or no JSON")
    take("other.json", '[{"mapping": {}}, {"name": 1}]', "other.json has no conversations of this page, ChatGPT or Open WebUI")
    expect(titles).to_have_count(0)
    take("conversations.json", json.dumps(chatgpt()), "1 conversation added. 1 message without")
    expect(notice).to_contain_text("These conversations in conversations.json cannot be read: Torn")
    take("chats.json", json.dumps(open_webui()), "2 conversations added")
    expect(titles).to_have_text(["Twos", "Threes", "Halves"])
    titles.nth(0).click()
    expect(contents).to_have_text("It is 2.")
    chat.button("Next version").click()
    expect(contents).to_have_text("It is II.")
    titles.nth(1).click()
    expect(contents).to_have_text("3")
    titles.nth(2).click()
    expect(bubbles).to_have_text(["Half of one?", "[image_asset_pointer]\n\nAnd a quarter?"])
    expect(contents.nth(1).locator("p")).to_have_text(["Let me see.", "It is 0.25."])
    expect(contents.first.locator(".katex")).to_have_count(1)
    expect(chat.panel.locator(".versions").nth(1)).to_contain_text("2/3")
    chat.button("Previous version").click()
    expect(bubbles.nth(1)).to_have_text("And a third?")
    chat.reload()
    expect(titles).to_have_text(["Twos", "Threes", "Halves"])
    chat.ask()
    chat.answered(2)


def test_finding_a_conversation(chat: Chat) -> None:
    chat.ask()
    chat.answered()
    chat.button("New conversation").click()
    chat.ask("half of one")
    chat.answered()
    chat.page.keyboard.press("Control+k")
    found = chat.page.locator("#finder .title")
    expect(found).to_have_count(2)
    chat.page.keyboard.type("going BACK")  # in a step of the first one
    expect(found).to_have_text(["What is 47 * 6 - 100?"])
    chat.page.keyboard.press("Enter")
    expect(chat.panel.locator(".bubble")).to_have_text("What is 47 * 6 - 100?")
    expect(chat.box).to_be_focused()
