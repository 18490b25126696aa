"""What axe finds in every state of the page (`axe/axe.min.js`: axe-core 4.14.1, MPL 2.0): nothing above minor."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.support.page import Chat, Opened
from tests.support.scripted_api import ScriptedApi

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text()
FOUND = """axe.run(document, {resultTypes: ['violations'], rules: {'target-size': {enabled: true}}}).then(
    ({passes, violations}) => [passes.length, violations.filter(({impact}) => impact !== 'minor')
        .map(({id, nodes}) => [id, nodes.map(({target, failureSummary}) => [target, failureSummary])])])"""
LOOKS = {"desk": {}, "dark": {"scheme": "dark"}, "phone": {"width": 390, "height": 844}}


def sound(chat: Chat, state: str) -> None:
    """Check the page as it is now."""
    ends = "Promise.all(document.getAnimations().filter(one => one.effect.getTiming().iterations === 1).map(one => one.finished))"
    chat.page.evaluate(f"{ends}.then(() => true)")
    if not chat.page.evaluate("'axe' in window"):
        chat.page.evaluate(AXE)
    passed, found = chat.page.evaluate(FOUND)
    assert found == [], state
    assert passed > 20, state


@pytest.mark.parametrize("look", LOOKS)
def test_every_state(opened: Opened, api: ScriptedApi, look: str) -> None:
    chat = opened(**LOOKS[look])
    sound(chat, "empty")
    api.gate.close()
    chat.ask()
    expect(chat.replies).to_have_attribute("data-phase", "sent")
    sound(chat, "sent")
    api.gate.open(20)
    chat.steps.nth(1).wait_for()
    sound(chat, "streaming")
    api.gate.open()
    chat.answered()
    chat.panel.locator(".thought > summary").click()
    sound(chat, "answer")
    chat.ask("markdown")
    chat.answered(2)
    chat.panel.locator(".thought > summary").last.click()
    sound(chat, "Markdown")
    chat.panel.locator(".question .edit").first.click()
    sound(chat, "edit")
    chat.page.keyboard.press("Escape")
    chat.page.locator("header .settings").click()
    chat.page.locator("#settings input[value=custom]").check()
    chat.page.locator("#chat-votes").fill("8")
    sound(chat, "settings")
    chat.page.keyboard.press("Escape")
    api.gate.close()
    api.gate.open(3)
    chat.ask("half of one")
    chat.panel.locator(".votes li").first.wait_for()
    sound(chat, "voting")
    api.gate.open()
    chat.answered(3)
    sound(chat, "voted")
    for opened_one in (".group", ".chain"):
        for summary in chat.panel.locator(f".chains {opened_one} > summary").all():
            summary.click()
            summary.locator("xpath=following-sibling::*/*").first.wait_for(state="attached")  # drawn when it is opened
    chat.panel.locator(".chains .parts").first.wait_for()
    sound(chat, "chains")
    api.trouble = "failed"
    chat.ask()
    chat.panel.get_by_role("alert").wait_for()
    sound(chat, "error")
    chat.page.keyboard.press("Control+k")
    chat.page.locator("#finder .title").wait_for()
    sound(chat, "find")
    chat.page.keyboard.press("Escape")
    menu = chat.page.locator("header .menu")
    if menu.is_visible():
        menu.click()
    chat.page.locator("#sidebar .title").hover()
    chat.page.locator("#sidebar [data-focus^=delete]").click()
    sound(chat, "deletion")
    chat.button("Cancel").click()
    if chat.page.locator(".menu-drawer[open]").count():
        chat.page.keyboard.press("Escape")
    chat.page.locator("#tab-compare").click()
    sound(chat, "compare")


def test_loading(opened: Opened, api: ScriptedApi) -> None:
    api.ready = False
    chat = opened()
    chat.page.locator(".status strong").wait_for()
    sound(chat, "loading")
