"""The page around the chat: languages, sizes, loading, errors, conversations, comparison."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.support.page import Chat, Opened
from tests.support.scripted_api import Background, ScriptedApi
from ui.app import asgi

HELP = {
    "queue_full": ("The server is busy", "Wait about 7 s", "服务器繁忙"),
    "too_long": ("This is too long", "Shorten the question", "内容太长"),
    "key": ("The API key is missing or wrong", "Enter it in the settings", "API 密钥缺失或有误"),
    "failed": ("Something went wrong", "the engine fell over", "出错了"),
    "broken": ("The connection was lost", "What had arrived is kept", "连接中断"),
}


def fits(chat: Chat) -> bool:
    """Tell whether nothing is wider than the window."""
    return chat.page.evaluate(
        "[document.documentElement, ...document.querySelectorAll('.satori, .satori .main, .satori .scroller, .satori .drawer')]"
        ".every(element => element.scrollWidth <= Math.max(element.clientWidth, 0) || !element.clientWidth)"
    )


def test_the_browsers_language_and_the_other_one(opened: Opened) -> None:
    chat = opened(locale="zh-CN")
    expect(chat.box).to_have_attribute("placeholder", "输入问题")
    assert chat.page.evaluate("document.documentElement.lang") == "zh-Hans"
    chat.ask("哪个数字更大? 是 9.11 还是 9.9?")
    chat.answered()
    expect(chat.panel.locator(".answer output")).to_have_text("9.9")
    chat.button("English").click()
    expect(chat.panel.locator(".answer")).to_contain_text("Copy answer")
    chat.reload()
    expect(chat.box).to_have_attribute("placeholder", "Ask a question")


def test_colours_follow_the_system_until_chosen(opened: Opened) -> None:
    chat = opened(scheme="dark")
    root = chat.page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    chat.button("Colours: as the system. Change to light").click()
    expect(root).to_have_attribute("data-theme", "light")
    chat.page.reload()
    chat.box.wait_for()
    expect(root).to_have_attribute("data-theme", "light")


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_phone(opened: Opened, api: ScriptedApi, locale: str) -> None:
    chat = opened(390, 844, locale)
    assert fits(chat)
    api.gate.close()
    api.gate.open(30)
    chat.ask("What is 47 * 6 - 100? " + "verylongword" * 20)
    chat.steps.nth(1).wait_for()
    assert fits(chat)
    api.gate.open()
    chat.answered()
    chat.panel.locator(".thought > summary").click()
    assert fits(chat)
    chat.page.locator("header .settings").click()
    chat.page.locator("#settings input[value=custom]").check()
    assert fits(chat)
    chat.page.keyboard.press("Escape")
    chat.page.locator("header .menu").click()
    expect(chat.page.locator("#sidebar .chosen .title")).to_be_visible()
    chat.page.keyboard.press("Escape")
    expect(chat.page.locator("#sidebar")).to_be_hidden()
    chat.page.locator("#tab-compare").click()
    assert fits(chat)


def test_a_question_waits_while_the_model_loads(opened: Opened, api: ScriptedApi) -> None:
    api.ready = False
    chat = opened()
    status = chat.page.locator(".status")
    expect(status).to_contain_text("The model is loading")
    expect(status.locator("[aria-current=step]")).to_have_text("Model loads")
    expect(status).to_contain_text("Ready to answer")  # what comes next
    expect(status.locator(".facts")).to_have_text(re.compile(r"^[1-9]\d* s$"), timeout=30_000)
    chat.ask()
    expect(chat.replies).to_contain_text("Your question goes out by itself")
    api.ready = True
    chat.answered()
    expect(status).to_be_hidden()


def test_before_the_api_listens(opened: Opened, api: ScriptedApi, server: Background) -> None:
    server.stop()
    chat = opened()
    expect(chat.page.locator(".status")).to_contain_text("The server is starting")
    chat.ask()
    expect(chat.replies).to_contain_text("goes out by itself as soon as it answers")
    again = Background(api.app, server.port)
    chat.answered()
    expect(chat.page.locator(".status")).to_be_hidden()
    again.stop()


@pytest.mark.parametrize("trouble", HELP)
def test_errors_read_like_help(opened: Opened, api: ScriptedApi, trouble: str) -> None:
    title, text, chinese = HELP[trouble]
    api.trouble = trouble
    chat = opened()
    chat.ask()
    problem = chat.panel.get_by_role("alert")
    expect(problem).to_contain_text(title)
    expect(problem).to_contain_text(text)
    expect(chat.panel.locator(".bubble")).to_have_text("What is 47 * 6 - 100?")
    if trouble == "broken":
        expect(chat.steps.first).to_contain_text("First the product")
    chat.button("中文").click()
    expect(problem).to_contain_text(chinese)
    api.trouble = None
    problem.get_by_role("button", name="重试").click()
    chat.answered()


def test_one_users_error_is_not_anothers(opened: Opened, api: ScriptedApi) -> None:
    first, second = opened(), opened()
    api.gate.close()
    api.gate.open(4)
    first.ask()
    first.steps.first.wait_for()
    second.ask("trouble: failed")
    expect(second.panel.get_by_role("alert")).to_contain_text("Something went wrong")
    api.gate.open()
    first.answered()


def test_a_restart_of_the_ui_is_a_lost_connection(opened: Opened, api: ScriptedApi, server: Background, ui: Background) -> None:
    chat = opened()
    api.gate.close()
    api.gate.open(5)
    chat.ask()
    expect(chat.steps.first).to_contain_text("First the product")
    ui.stop()
    expect(chat.panel.get_by_role("alert")).to_contain_text("The connection was lost")
    expect(chat.steps.first).to_contain_text("First the product")
    expect(chat.page.locator(".status")).to_contain_text("No connection to the server")
    again = Background(asgi(server.url), ui.port)
    api.gate.open()
    chat.button("Try again").click()
    chat.answered()
    expect(chat.page.locator(".status")).to_be_hidden()
    again.stop()


def test_two_conversations_survive_a_reload(chat: Chat) -> None:
    chat.ask("half of one")
    chat.answered()
    chat.button("New conversation").click()
    expect(chat.replies).to_have_count(0)
    chat.ask()
    chat.answered()
    chat.reload()
    titles = chat.page.locator("#sidebar .title")
    expect(titles).to_have_text(["What is 47 * 6 - 100?", "half of one"])
    expect(chat.panel.locator(".answer output")).to_have_text("182")
    titles.nth(1).click()
    expect(chat.panel.locator(".bubble")).to_have_text("half of one")
    titles.nth(1).hover()
    chat.button("Rename half of one").click()
    chat.page.get_by_role("textbox", name="Rename").fill("Halves")
    chat.page.keyboard.press("Enter")
    expect(titles).to_have_text(["What is 47 * 6 - 100?", "Halves"])
    titles.nth(0).hover()
    chat.button("Delete What is 47 * 6 - 100?").click()
    chat.button("Delete for good").click()
    expect(titles).to_have_text(["Halves"])
    chat.reload()
    expect(titles).to_have_text(["Halves"])
    expect(chat.panel.locator(".bubble")).to_have_text("half of one")


def test_a_reload_in_mid_stream_keeps_what_came(chat: Chat, api: ScriptedApi) -> None:
    api.gate.close()
    api.gate.open(24)
    chat.ask()
    chat.keeps("First the product")
    chat.page.reload()
    expect(chat.panel.get_by_role("alert")).to_contain_text("The connection was lost")
    expect(chat.steps.first).to_contain_text("First the product")
    expect(chat.panel.locator(".bubble")).to_have_text("What is 47 * 6 - 100?")
    api.gate.open()
    chat.button("Try again").click()
    chat.answered()


def test_a_reload_before_the_first_word_asks_again(opened: Opened, api: ScriptedApi) -> None:
    api.ready = False
    chat = opened()
    chat.ask()
    expect(chat.replies).to_contain_text("goes out by itself")
    chat.keeps('"phase":"waiting"')
    chat.page.reload()
    expect(chat.replies).to_contain_text("goes out by itself")
    api.ready = True
    chat.answered()


def test_a_page_at_rest_asks_for_no_frames(chat: Chat) -> None:
    """Gradio's loader does, for ever, if it is let."""
    chat.context.add_init_script("""{
        const frames = window.requestAnimationFrame;
        window.asked = 0;
        window.requestAnimationFrame = (draw) => { window.asked += 1; return frames.call(window, draw); };
    }""")
    chat.page.reload()
    chat.box.wait_for()

    def rests() -> bool:
        before = chat.page.evaluate("asked")
        chat.page.wait_for_timeout(300)
        return bool(before == chat.page.evaluate("asked") > 0)

    chat.until(rests, "no more frames are asked for")


def test_a_draft_survives_a_reload(chat: Chat) -> None:
    chat.box.fill("half typed")
    chat.page.reload()
    expect(chat.box).to_have_value("half typed")


def test_several_conversations_are_answered_at_once(chat: Chat, api: ScriptedApi) -> None:
    """Three of them; within one, a question waits for the reply before it."""
    api.gate.close()
    api.gate.open(2)
    for question in ("half of one", "What is 47 * 6 - 100?", "9.11"):
        chat.button("New conversation").click()
        chat.ask(question)
        chat.steps.first.wait_for()
    chat.ask("markdown")
    expect(chat.replies.nth(1)).to_contain_text("Waits until the reply before it has ended")
    chat.button("New conversation").click()
    chat.ask("set aside")
    expect(chat.replies).to_contain_text("Waits until the reply before it has ended")
    assert api.open_streams == 3
    api.gate.open()
    chat.answered()
    titles = chat.page.locator("#sidebar .title")
    for title, answer in (("9.11", "9.9"), ("What is 47 * 6 - 100?", "182")):
        titles.get_by_text(title, exact=True).click()
        expect(chat.panel.locator(".answer output").first).to_have_text(answer)


@pytest.mark.parametrize("form", ["Markdown", "JSON"])
def test_export(chat: Chat, tmp_path: Path, form: str) -> None:
    chat.ask()
    chat.answered()
    with chat.page.expect_download() as download:
        chat.button(form).click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    text = path.read_text()
    if form == "JSON":
        assert path.name == "What-is-47-6-100.json"
        [turn] = json.loads(text)["turns"]
        assert (turn["question"], turn["reply"]["answer"]) == ("What is 47 * 6 - 100?", "182")
    else:
        assert path.name == "What-is-47-6-100.md"
        assert text.startswith("# What is 47 * 6 - 100?\n\n## Question\n\nWhat is 47 * 6 - 100?\n\n### Reasoning\n")


def test_a_conversation_as_a_document(opened: Opened, api: ScriptedApi, tmp_path: Path) -> None:
    """It shows the version that is seen, in a browser without scripts and without a network."""
    chat = opened()
    for number, question in enumerate(("evil", "a hundred steps", "What is 47 * 6 - 100?"), 1):
        chat.ask(question)
        chat.answered(number)
    chat.replies.nth(2).get_by_role("button", name="Try again").click()
    chat.panel.locator(".versions").get_by_text("2/2").wait_for()
    chat.answered(3)
    with chat.page.expect_download() as download:
        chat.button("HTML").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.name == "evil.html"
    browser = chat.context.browser
    assert browser is not None
    reader = browser.new_context(java_script_enabled=False)
    page, requests = reader.new_page(), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    expect(page.locator(".bubble")).to_have_text(["evil", "a hundred steps", "What is 47 * 6 - 100?"])
    expect(page.locator(".answer output").last).to_have_text("182")
    last = page.locator(".thought").last
    expect(last.locator(".step").first).to_be_hidden()
    last.locator("summary").first.click()
    expect(last.locator(".step")).to_have_count(4)
    expect(last.locator(".step").first).to_contain_text("First the product")
    expect(last.locator(".katex-html").first).to_be_visible()
    expect(last.locator(".katex").first).to_have_css("font-family", re.compile("KaTeX_Main"))
    expect(last.locator(".katex-mathml").first).to_have_css("position", "absolute")  # for screen readers only
    expect(page.locator("button, script, img, [onclick], a[href^=javascript]")).to_have_count(0)
    assert [one for one in requests if not one.startswith(("file:", "data:"))] == []
    reader.close()


def test_compare_streams_side_by_side(chat: Chat, api: ScriptedApi) -> None:
    chat.page.locator("#tab-compare").click()
    chat.page.locator(".side.b .setup > summary").click()
    chat.page.locator(".side.b").get_by_role("radio", name="Thorough").check()
    box = chat.page.locator("#compare-question")
    api.gate.close()
    api.gate.open(6)
    box.fill("What is 47 * 6 - 100?")
    box.press("Enter")
    for side in ("a", "b"):
        expect(chat.page.locator(f".side.{side} .step")).to_have_count(1)
        expect(chat.page.locator(f".side.{side} .reply")).to_have_attribute("aria-busy", "true")
        expect(chat.page.locator(f".side.{side} .thought > summary .facts")).to_contain_text("3–21 s left")
    api.gate.open()
    for side in ("a", "b"):
        expect(chat.page.locator(f".side.{side} .answer output")).to_have_text("182")
        expect(chat.page.locator(f".side.{side} .thought > summary .facts")).not_to_contain_text("left")
    chat.page.reload()
    chat.page.locator("#tab-compare").click()
    expect(chat.page.locator(".side.b .answer output")).to_have_text("182")
    assert sorted(str(asked.get("coat")) for asked in api.asked) == ["{'eta': True}", "{'min_reflections': 2, 'eta': True}"]


def test_all_is_named_for_a_screen_reader(chat: Chat) -> None:
    chat.ask()
    chat.answered()
    live = chat.page.locator(".satori > [aria-live=polite]")
    expect(live).to_have_text("The answer is 182")
    chat.page.locator("header .settings").click()
    controls = chat.page.evaluate(
        """[...document.querySelectorAll('.satori :is(button, input, select, textarea)')].map(element => [element.outerHTML,
            Boolean(element.getAttribute('aria-label') || element.textContent.trim() || element.labels?.length)])"""
    )
    assert len(controls) > 20
    assert [control for control, named in controls if not named] == []


def test_the_keyboard_reaches_everything(chat: Chat) -> None:
    seen = []
    chat.page.locator("#tab-chat").focus()
    for _ in range(24):
        chat.page.keyboard.press("Tab")
        focused = chat.page.locator(":focus")
        seen.append(focused.get_attribute("aria-label") or focused.inner_text())
        outline, around = focused.evaluate("e => [getComputedStyle(e).outlineStyle, getComputedStyle(e.parentElement).boxShadow]")
        assert outline != "none" or around != "none"
        if seen[-1] == "Your question":
            break
    assert {"中文", "Settings", "New conversation"} <= set(seen)
    chat.page.locator("#tab-chat").press("ArrowRight")
    expect(chat.page.locator("#panel-compare")).to_be_visible()


def test_a_new_title_stays(chat: Chat, api: ScriptedApi, tmp_path: Path) -> None:
    """Also where the conversation is not shown and its reply is still written, or waits for its turn."""
    titles = chat.page.locator("#sidebar .title")
    api.gate.close()
    api.gate.open(4)
    for question in ("first", "second", "half of one", "What is 47 * 6 - 100?", "9.11"):
        chat.button("New conversation").click()
        chat.ask(question)
    for old, new in (("half of one", "Running"), ("What is 47 * 6 - 100?", "Waiting"), ("9.11", "Shown")):
        chat.on_row(old, "Rename")
        chat.page.get_by_role("textbox", name="Rename").fill(new)
        chat.page.keyboard.press("Enter")
    api.gate.open()
    chat.answered()
    for _ in range(2):
        for title in ("Shown", "Waiting", "Running"):
            expect(titles.get_by_text(title, exact=True)).to_have_count(1)
        expect(titles).to_have_count(5)
        chat.reload()
    titles.get_by_text("Running").click()
    expect(chat.panel.locator(".answer output")).to_be_visible()
    with chat.page.expect_download() as download:
        chat.button("JSON").click()
    download.value.save_as(tmp_path / "kept.json")
    assert download.value.suggested_filename == "Running.json"
    assert json.loads((tmp_path / "kept.json").read_text())["title"] == "Running"


def test_clearing_a_conversation(chat: Chat) -> None:
    chat.ask()
    chat.answered()
    chat.button("Clear").click()
    chat.button("Clear for good?").click()
    expect(chat.replies).to_have_count(0)
    expect(chat.page.locator("#sidebar .title")).to_have_text(["New conversation"])
    chat.reload()
    expect(chat.panel).to_contain_text("What shall we work out?")
