"""Asking, and what is seen of the reply."""

import json

import pytest
from playwright.sync_api import Locator, Route, expect

from tests.support.page import QUESTION, Chat, Opened
from tests.support.scripted_api import Background, ScriptedApi


def test_nothing_is_loaded_from_elsewhere(chat: Chat, ui: Background) -> None:
    chat.ask()
    chat.answered()
    assert len(chat.requests) > 20
    assert [url for url in chat.requests if not url.startswith((ui.url, "data:", "blob:"))] == []


def test_the_reply_grows_before_it_ends(chat: Chat, api: ScriptedApi) -> None:
    api.gate.close()
    chat.ask()
    expect(chat.replies).to_contain_text("waiting for the first words")
    api.gate.open(3)
    expect(chat.steps).to_have_count(1)
    expect(chat.steps.first).to_contain_text("First the product")
    api.gate.open(17)
    expect(chat.steps).to_have_count(2)
    expect(chat.replies).to_have_attribute("aria-busy", "true")
    api.gate.open()
    chat.answered()
    expect(chat.replies).to_have_attribute("aria-busy", "false")


def test_steps_are_told_apart_by_word_colour_and_icon(chat: Chat) -> None:
    chat.ask()
    chat.answered()
    expect(chat.panel.locator(".thought")).not_to_have_attribute("open", "")  # folded away by the answer
    chat.panel.locator(".thought > summary").click()
    expect(chat.steps).to_have_count(4)
    words = chat.steps.locator(".word").all_inner_texts()
    assert words == ["Continue", "Reflect", "Explore", "Continue"]
    looks = [
        (step.locator(".icon path").first.get_attribute("d"), step.locator(".word").evaluate("e => getComputedStyle(e).color"))
        for step in chat.steps.all()
    ]
    assert looks[0] == looks[3]
    assert len({look[0] for look in looks}) == len({look[1] for look in looks}) == 3
    expect(chat.steps.nth(0)).to_contain_text("17 tokens")
    chat.steps.nth(1).locator("summary").click()
    expect(chat.steps.nth(1).locator(".written")).to_be_hidden()


def test_the_answer_is_set_apart_and_copied(chat: Chat) -> None:
    chat.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.ask("half of one")
    chat.answered()
    expect(chat.panel.locator(".answer output .katex")).to_be_visible()
    chat.button("Copy answer").click()
    expect(chat.button("Copied")).to_be_visible()
    assert chat.page.evaluate("navigator.clipboard.readText()") == "\\frac{1}{2}"


def test_math_is_rendered(chat: Chat) -> None:
    chat.ask()
    chat.answered()
    chat.panel.locator(".thought > summary").click()
    expect(chat.steps.nth(0).locator(".katex")).to_have_count(2)  # \(..\) and $..$
    expect(chat.steps.nth(1).locator(".katex-display")).to_have_count(1)  # \[..\]
    assert "\\" not in chat.steps.nth(1).locator(".written").inner_text()
    chat.page.evaluate("document.fonts.ready.then(() => true)")
    fonts = chat.page.evaluate("[...document.fonts].filter(f => f.status === 'loaded').map(f => f.family)")
    assert any("KaTeX" in font for font in fonts)


def test_the_servers_own_figures(chat: Chat, api: ScriptedApi) -> None:
    api.pace_s = 0.005  # all at once has no rate
    chat.ask()
    chat.answered()
    stats = chat.panel.locator(".stats")
    for text in ("Tokens70", "Tokens of thought64", "Reflections1", "Explorations1", "First token after", "Tokens/s"):
        expect(stats).to_contain_text(text)


def test_stop_keeps_what_came_and_retry_asks_again(chat: Chat, api: ScriptedApi) -> None:
    api.gate.close()
    api.gate.open(5)
    chat.ask()
    expect(chat.steps.first).to_contain_text("First the product")
    chat.button("Stop").click()
    expect(chat.replies).to_contain_text("Stopped")
    expect(chat.replies).to_contain_text("First the product")
    chat.until(lambda: api.open_streams == 0, "the server is told to stop")
    api.gate.open()
    chat.button("Try again").click()
    chat.answered()
    assert len(api.asked) == 2


def test_stop_is_not_lost_on_a_slow_connection(chat: Chat, api: ScriptedApi) -> None:
    """The user stops a reply before its question has arrived."""
    api.gate.close()
    held: list[Route] = []
    chat.page.route("**/ui/ask", lambda route: held.append(route), times=1)
    chat.ask()
    chat.until(lambda: len(held) == 1, "the question is on its way")
    asked_id = json.loads(held[0].request.post_data or "")["id"]
    with chat.page.expect_response(lambda heard: asked_id in (heard.request.post_data or "")):  # the server knows of the stop
        chat.button("Stop").click()
    expect(chat.replies).to_contain_text("Stopped")
    held[0].fetch()  # it arrives all the same
    assert (api.asked, api.open_streams) == ([], 0)
    api.gate.open()
    chat.button("Try again").click()
    chat.answered()
    assert len(api.asked) == 1


def test_leaving_the_page_stops_the_request(opened: Opened, api: ScriptedApi) -> None:
    leaver, other = opened(), opened()
    api.gate.close()
    api.gate.open(5)
    leaver.ask()
    leaver.steps.first.wait_for()
    leaver.page.close()
    other.until(lambda: api.open_streams == 0, "the server is told to stop")


def test_edit_and_resubmit(chat: Chat, api: ScriptedApi) -> None:
    chat.ask()
    chat.answered()
    chat.button("Edit").click()
    box = chat.panel.locator(".question textarea")
    expect(box).to_have_value(QUESTION)
    box.fill("half of one")
    box.press("Enter")
    expect(chat.panel.locator(".bubble")).to_have_text("half of one")
    expect(chat.panel.locator(".answer output .katex")).to_be_visible()
    assert [asked["messages"][-1]["content"] for asked in api.asked] == [QUESTION, "half of one"]


def test_enter_sends_and_shift_enter_begins_a_line(chat: Chat, api: ScriptedApi) -> None:
    chat.box.press_sequentially("one")
    chat.box.press("Shift+Enter")
    chat.box.press_sequentially("two")
    expect(chat.box).to_have_value("one\ntwo")
    chat.box.press("Enter")
    expect(chat.box).to_have_value("")
    chat.answered()
    assert api.asked[0]["messages"][-1]["content"] == "one\ntwo"


def test_model_and_user_text_is_never_markup(chat: Chat) -> None:
    chat.ask("<img src=x onerror=window.evil=1> evil")
    chat.answered()
    chat.panel.locator(".thought > summary").click()
    expect(chat.steps.first).to_contain_text("<script>window.evil=1</script>")
    expect(chat.panel.locator(".answer output")).to_have_text("<img src=x onerror=window.evil=1>")
    assert chat.page.locator(".satori img, .satori script, .satori a").count() == 0
    assert chat.page.evaluate("window.evil") is None


def test_settings_reach_the_request(chat: Chat, api: ScriptedApi) -> None:
    chat.page.locator("header .settings").click()
    panel = chat.page.locator("#settings")
    panel.get_by_role("radio", name="Custom").check()
    panel.get_by_label("Tokens of thought, at most").fill("50")
    panel.get_by_label("Maximum tokens").fill("200")
    panel.get_by_label("Temperature").fill("1.5")
    panel.get_by_label("Votes").fill("3")
    panel.get_by_label("API key").fill("secret")
    chat.page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    chat.ask()
    chat.answered()
    [asked] = api.asked
    assert asked["model"] == "nano"
    assert (asked["temperature"], asked["max_tokens"]) == (1.5, 200)
    assert asked["coat"] == {"max_reasoning_tokens": 50, "vote": {"samples": 3, "temperature": 1.5, "chains": True}}
    assert api.keys == ["Bearer secret"]
    chat.page.reload()
    expect(chat.button("Settings: Custom · temperature 1.5 · 3 votes · 200 tokens")).to_be_visible()


def ask_by_vote(chat: Chat, question: str) -> Locator:
    """Ask for a vote of eight; return its chains, which are shown with the reply."""
    chat.page.locator("header .settings").click()
    chat.page.locator("#chat-votes").fill("8")
    chat.page.keyboard.press("Escape")
    expect(chat.button("Settings: Normal · 8 votes")).to_be_visible()  # which have a temperature of their own
    chat.ask(question)
    chat.answered()
    return chat.panel.locator(".chains")


def test_all_chains_of_a_vote_are_opened_by_answer(chat: Chat) -> None:
    """Nothing of a chain is drawn until it is opened; where it parts from the winner is told in words."""
    chains = ask_by_vote(chat, f"{QUESTION} You may stop early.")
    groups = chains.locator(".group > summary")
    expect(groups).to_have_text(["1825 votes · 83 %", "1811 vote · 17 %", "Without a vote2 attempts"])
    expect(chains.locator(".chain")).to_have_count(0)
    groups.nth(0).click()
    heads = chains.locator(".chain > summary")
    expect(heads).to_have_count(5)
    expect(heads.nth(0)).to_contain_text("Attempt 1the reply above · 4 steps")
    expect(heads.nth(1)).to_contain_text("Attempt 2the same steps · 4 steps")
    groups.nth(1).click()
    expect(heads.nth(5)).to_contain_text("Attempt 3parts at step 2 · 2 steps")
    expect(chains.locator(".step")).to_have_count(0)
    heads.nth(5).click()
    steps = chains.locator(".step")
    expect(steps).to_have_count(2)
    expect(steps.nth(1).locator("summary")).to_contain_text("Continueparts here")
    expect(steps.nth(0).locator("summary")).not_to_contain_text("parts here")
    expect(chains.locator(".chain[open] .content")).to_contain_text("181")
    groups.nth(2).click()
    expect(heads.nth(6)).to_contain_text("Attempt 7the same so far · stopped early · 1 step")
    chat.reload()
    expect(groups).to_have_count(3)
    groups.nth(2).click()
    heads.nth(1).click()
    expect(steps).to_have_count(1)


@pytest.mark.parametrize(
    ("chain", "stopped", "at"),
    [
        ("a b", False, None),
        ("a c", False, 1),
        ("a", False, 1),
        ("", False, 0),
        ("a", True, None),
        ("a b c", False, 2),
        ("a bb", False, 1),
        ("bb", True, 0),
        ("", True, None),
        ("A", True, 0),
    ],
)
def test_where_a_chain_parts(chat: Chat, chain: str, stopped: bool, at: int | None) -> None:
    """From "a b", a word a step, each behind another blank. One that ends earlier parts where it answers."""
    script = """async ([chain, stopped]) => {
        const {parting} = await import(new URL("page/chains.js", location.href).href);
        const steps = (text, blank) => text.split(" ").filter(Boolean).map((word) => ({action: "continue", text: blank + word}));
        return parting(steps(chain, " "), steps("a b", "\\n"), stopped); }"""
    assert chat.page.evaluate(script, [chain, stopped]) == at


def test_votes_are_shown_as_they_are_counted(chat: Chat, api: ScriptedApi) -> None:
    chat.page.locator("header .settings").click()
    chat.page.locator("#chat-votes").fill("8")
    chat.page.keyboard.press("Escape")
    api.gate.close()
    api.gate.open(3)
    chat.ask()
    votes = chat.panel.locator(".votes")
    expect(votes).to_contain_text("3 of 8 attempts counted")
    expect(votes.locator("li")).to_have_count(2)
    expect(votes.locator("li").first).to_contain_text("2 votes")
    api.gate.open()
    chat.answered()
    expect(votes).to_contain_text("Decided after 8 of 8")
    answer = chat.panel.locator(".answer")
    expect(answer).to_have_attribute("data-sure", "strong")
    expect(answer).to_contain_text("6 of 8 attempts agree · checked itself once · one mistake found and another way taken")
    expect(chat.panel.locator(".stats")).not_to_contain_text("Tokens/s")  # its chains are not streamed
    chat.panel.locator(".thought > summary").click()
    assert chat.steps.locator(".word").all_inner_texts() == ["Continue", "Reflect", "Explore", "Continue"]
    expect(chat.steps.nth(1)).to_contain_text("Let me check that")
    expect(chat.steps.nth(1)).not_to_contain_text("First the product")


def test_earlier_turns_go_along_when_asked_for(chat: Chat, api: ScriptedApi) -> None:
    chat.ask()
    chat.answered()
    chat.ask("And half of it?")
    chat.answered(2)
    chat.page.locator("header .settings").click()
    chat.page.locator("#settings").get_by_label("Include earlier turns").check()
    chat.page.keyboard.press("Escape")
    chat.ask("And 9.11?")
    chat.answered(3)
    assert [len(asked["messages"]) for asked in api.asked] == [1, 1, 5]
    assert api.asked[2]["messages"][1] == {"role": "assistant", "content": "The final answer is \\boxed{182}."}


@pytest.mark.parametrize("models", [["nano"], ["nano", "satori-7b"]])
def test_a_model_picker_where_there_are_several(opened: Opened, api: ScriptedApi, models: list[str]) -> None:
    api.models = models
    chat = opened()
    chat.page.locator("header .settings").click()
    picker = chat.page.locator("#settings").get_by_label("Model", exact=True)
    expect(picker).to_have_count(len(models) - 1)
    if len(models) > 1:
        picker.select_option("satori-7b")
    chat.page.keyboard.press("Escape")
    chat.ask()
    chat.answered()
    assert api.asked[0]["model"] == models[-1]
    assert ("Problem:" in api.asked[0]["messages"][0]["content"]) == (len(models) > 1)  # as on Satori's model card
