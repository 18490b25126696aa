"""Reading and typing: versions, the place in a conversation, dialogs, the focus, sizes of what is touched."""

import re

import pytest
from playwright.sync_api import Locator, expect

from tests.support.page import QUESTION, Chat, Opened
from tests.support.scripted_api import ScriptedApi

SMALL = """[...document.querySelectorAll('.satori :is(button, summary, select, textarea, input)')]
    .filter(one => !['radio', 'checkbox'].includes(one.type))
    .filter(one => one.checkVisibility({visibilityProperty: true, opacityProperty: true}))
    .map(one => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()])
    .filter(([, box]) => box.width && (box.width < 43.5 || box.height < 43.5)).map(([name]) => name)"""


def in_page(chat: Chat) -> bool:
    """Tell whether something has the focus."""
    return chat.page.evaluate("document.activeElement !== document.body")


def test_an_edit_and_another_try_make_versions(chat: Chat, api: ScriptedApi) -> None:
    chat.ask()
    chat.answered()
    chat.ask("half of one")
    chat.answered(2)
    bubbles, first = chat.panel.locator(".bubble"), chat.panel.locator(".turn").first
    first.get_by_role("button", name="Edit").click()
    first.locator("textarea").fill("9.11 or 9.9?")
    first.locator("textarea").press("Enter")
    expect(bubbles).to_have_text(["9.11 or 9.9?"])
    chat.answered()
    expect(first.locator(".versions")).to_have_text("2/2")
    first.get_by_role("button", name="Try again").click()
    expect(first.locator(".versions")).to_have_text("3/3")
    chat.answered()
    assert len(api.asked) == 4
    for _ in range(2):
        first.get_by_role("button", name="Previous version").click()
    expect(bubbles).to_have_text([QUESTION, "half of one"])
    expect(first.get_by_role("button", name="Next version")).to_be_focused()
    expect(first.locator(".answer output")).to_have_text("182")
    chat.reload()
    expect(bubbles).to_have_text([QUESTION, "half of one"])
    expect(first.locator(".versions")).to_have_text("1/3")


def test_the_model_goes_on_from_a_step_that_was_changed(chat: Chat, api: ScriptedApi) -> None:
    chat.ask()
    chat.answered()
    first = chat.panel.locator(".turn").first
    first.locator(".thought > summary").click()
    change = chat.steps.nth(1).get_by_role("button", name="Change it and go on")
    change.click()
    box = chat.steps.nth(1).get_by_role("textbox", name="The step's text")
    expect(box).to_be_focused()
    expect(box).to_have_value(re.compile(r"Going back, \\\(182 \+ 100 = 282\\\)"))
    box.fill("never asked")
    box.press("Escape")
    expect(change).to_be_focused()
    expect(chat.steps.nth(1)).to_contain_text("That is right.")
    change.click()
    box.fill("Let me check that. Is 282 right?")
    chat.button("Go on from here").click()
    expect(first.locator(".versions")).to_have_text("2/2")
    expect(first).to_contain_text("Goes on from 2 steps of an earlier reply")
    chat.answered()
    first.locator(".thought > summary").click()
    expect(chat.steps.nth(1)).to_contain_text("Is 282 right?")
    expect(chat.steps).to_have_count(4)
    planted = api.asked[1]["messages"][-1]
    assert planted["role"] == "assistant"
    assert planted["content"].startswith("<|continue|>First the product")
    assert planted["content"].endswith("<|reflect|>Let me check that. Is 282 right?")
    chat.reload()
    expect(first).to_contain_text("Goes on from 2 steps of an earlier reply")
    first.get_by_role("button", name="Try again").click()
    expect(first.locator(".versions")).to_have_text("3/3")
    chat.answered()
    assert api.asked[2]["messages"] == api.asked[1]["messages"]


def test_a_thought_is_a_tree_and_a_reflection_leads_to_what_it_checks(chat: Chat) -> None:
    chat.ask("set aside")
    chat.answered()
    chat.panel.locator(".thought > summary").click()
    refuted = [bool(re.search("refuted", one.get_attribute("class") or "")) for one in chat.steps.all()]
    assert refuted == [True, True] + 6 * [False]
    expect(chat.steps.nth(0)).to_contain_text("set aside")
    depths = chat.panel.locator(".step").evaluate_all("all => all.map(one => getComputedStyle(one).marginLeft)")
    assert len(set(depths)) == 3, "each exploration opens a branch"
    assert depths == sorted(depths, key=lambda depth: float(depth.removesuffix("px")))
    chat.steps.nth(0).locator("summary").click()  # folds it
    chat.steps.nth(2).get_by_role("button", name="Checks steps 1 to 2").click()
    expect(chat.steps.nth(0).locator("summary")).to_be_focused()
    expect(chat.steps.nth(0).locator(".written")).to_be_visible()
    expect(chat.steps.nth(5).get_by_role("button", name="Checks steps 4 to 5")).to_be_visible()


def test_a_very_long_thought_has_an_overview_that_leads_to_each_step(chat: Chat) -> None:
    chat.ask("a hundred steps")
    chat.answered()
    chat.panel.locator(".thought > summary").click()
    marks = chat.panel.locator(".overview span")
    expect(marks).to_have_count(100)
    chat.panel.locator(".filters button").first.click()
    hidden = chat.steps.nth(62)
    expect(hidden).to_be_hidden()
    marks.nth(62).click()
    expect(hidden).to_be_in_viewport()
    expect(hidden.locator("summary")).to_be_focused()


def test_no_step_is_changed_while_the_reply_is_written(chat: Chat, api: ScriptedApi) -> None:
    api.gate.close()
    api.gate.open(8)
    chat.ask()
    chat.steps.first.wait_for()
    expect(chat.steps.first.locator(".go-on")).to_have_count(0)
    api.gate.open()
    chat.answered()
    chat.panel.locator(".thought > summary").click()
    expect(chat.steps.first.locator(".go-on")).to_be_visible()


def test_a_question_typed_while_busy_waits_and_escape_stops(chat: Chat, api: ScriptedApi) -> None:
    api.gate.close()
    api.gate.open(4)
    chat.ask()
    chat.steps.first.wait_for()
    chat.ask("half of one")
    expect(chat.replies.nth(1)).to_contain_text("Waits until the reply before it has ended")
    chat.page.keyboard.press("Escape")
    expect(chat.replies.first).to_contain_text("Stopped")
    api.gate.open()
    chat.answered()
    expect(chat.panel.locator(".answer output .katex")).to_be_visible()
    assert len(api.asked) == 2


def top(element: Locator) -> float:
    """Return where an element is in the window."""
    return float(element.evaluate("one => one.getBoundingClientRect().top"))


def test_the_reading_position_stays(opened: Opened) -> None:
    """Through a reload, another language, other colours, another tab of the page, and an edit that is given up."""
    chat = opened(1000, 420)
    for number in (1, 2, 3):
        chat.ask()
        chat.answered(number)
    turn = chat.panel.locator(".turn").nth(1)
    turn.locator(".thought > summary").click()
    third = turn.locator(".step").nth(2)
    third.evaluate("one => { one.scrollIntoView({block: 'start'}); one.closest('.scroller').scrollTop += 20; }")
    place = top(third)
    saved = "JSON.parse(sessionStorage.getItem('satori.place')).part"
    chat.until(lambda: chat.page.evaluate(saved) == 3, "the place is kept")

    def stays(what: str) -> None:
        chat.until(lambda: abs(top(third) - place) <= 2, f"{what} keeps the place: {top(third)}, was {place}")

    chat.reload()
    third.wait_for()
    stays("a reload")
    chat.page.locator(".language").click()
    expect(chat.page.locator("html")).to_have_attribute("lang", "zh-Hans")
    stays("another language")
    chat.page.locator("[data-focus=theme]").click()
    stays("another theme")
    chat.page.locator("#tab-compare").click()
    chat.page.locator("#tab-chat").click()
    stays("another tab of the page")
    question = turn.locator(".question")
    question.evaluate("one => one.scrollIntoView({block: 'start'})")
    place, third = top(question), question
    question.locator(".edit").click()
    question.locator("textarea").press("Escape")
    stays("an edit that is given up")


@pytest.mark.parametrize("width", [390, 1280])
def test_dialogs_hold_the_focus_and_give_it_back(opened: Opened, width: int) -> None:
    chat = opened(width, 844)
    chat.ask()
    chat.answered()
    for opener, dialog in (("header .settings", "#settings"), ("header .menu", ".menu-drawer"))[: 2 if width < 860 else 1]:
        chat.page.locator(opener).click()
        inside = f"document.querySelector('{dialog}').contains(document.activeElement) || document.activeElement === document.body"
        for _ in range(14):
            chat.page.keyboard.press("Tab")
            assert chat.page.evaluate(inside)
        chat.page.keyboard.press("Escape")
        expect(chat.page.locator(dialog)).to_be_hidden()
        expect(chat.page.locator(opener)).to_be_focused()


def test_the_focus_is_never_lost(chat: Chat, api: ScriptedApi) -> None:
    chat.button("If 3x + 7 = 25, what is x?").click()
    assert in_page(chat)
    chat.answered()
    chat.page.locator("#sidebar .title").focus()
    api.trouble = "failed"
    chat.ask("half of one")
    chat.panel.get_by_role("alert").get_by_role("button", name="Try again").click()
    assert in_page(chat)
    chat.page.locator("#sidebar .title").focus()
    chat.page.keyboard.press("Tab")
    chat.page.keyboard.press("Enter")  # rename
    chat.page.keyboard.press("Enter")
    assert in_page(chat)
    for name in ("中文", "English", "Colours: as the system. Change to light"):
        chat.button(name).click()
        assert in_page(chat), name
    chat.page.locator("#sidebar .title").hover()
    chat.page.locator("#sidebar [data-focus^=delete]").click()
    chat.button("Cancel").click()
    assert in_page(chat)
    chat.page.locator("#sidebar [data-focus^=delete]").click()
    chat.button("Delete for good").click()
    expect(chat.panel).to_contain_text("What shall we work out?")
    assert in_page(chat)


def test_a_long_thought_is_filtered_and_folded_and_has_an_end(chat: Chat) -> None:
    chat.ask("hundred")
    chat.answered()
    chat.panel.locator(".thought > summary").click()
    expect(chat.steps).to_have_count(100)
    tools = chat.panel.locator(".tools")
    expect(tools.locator(".filters button")).to_have_text(["Continue60", "Reflect20", "Explore20"])
    reflect = tools.get_by_role("button", name="Reflect 20")
    reflect.click()
    expect(reflect).to_have_attribute("aria-pressed", "true")
    expect(chat.panel.locator(".thought .step:visible")).to_have_count(20)
    tools.get_by_role("button", name="To the last step").click()
    last = chat.steps.nth(97)  # the last reflection
    expect(last.locator("summary")).to_be_focused()
    expect(last).to_be_in_viewport()
    tools.get_by_role("button", name="Fold all").click()
    expect(last.locator(".written")).to_be_hidden()
    tools.get_by_role("button", name="Unfold all").click()
    expect(last.locator(".written")).to_be_visible()
    reflect.click()
    expect(chat.panel.locator(".thought .step:visible")).to_have_count(100)


def test_questions_have_headings(chat: Chat) -> None:
    chat.ask()
    chat.answered()
    chat.ask("half of one")
    chat.answered(2)
    expect(chat.panel.get_by_role("heading", level=2)).to_have_text(["Question 1", "Question 2"])


@pytest.mark.parametrize("width", [390, 1280])
def test_what_is_touched_is_large_enough(opened: Opened, width: int) -> None:
    chat = opened(width, 844)
    assert chat.page.evaluate(SMALL) == []
    chat.ask()
    chat.answered()
    chat.panel.locator(".thought > summary").click()
    assert chat.page.evaluate(SMALL) == []
    chat.page.locator("header .settings").click()
    chat.page.locator("#settings input[value=custom]").check()
    assert chat.page.evaluate(SMALL) == []
    chat.page.keyboard.press("Escape")
    chat.page.keyboard.press("Control+k")
    assert chat.page.evaluate(SMALL) == []


def test_enter_that_ends_chinese_input_does_not_send(chat: Chat, api: ScriptedApi) -> None:
    """Safari says only by the key code that a key belongs to the composition."""
    chat.box.fill("er")
    chat.box.dispatch_event("keydown", {"key": "Enter", "keyCode": 229, "bubbles": True, "cancelable": True})
    expect(chat.box).to_have_value("er")
    chat.box.press("Enter")
    chat.answered()
    assert len(api.asked) == 1
