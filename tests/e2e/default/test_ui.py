"""The web UI on the real stack, in Debian's Chromium: through proxy, ingress and Serve handle to the Gradio app, and back."""

import json
import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, expect

from cluster.bench.stack import command_line
from tests.support.application import Served
from tests.support.page import CONVERSATIONS, QUESTION, Chat, chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def chat(served: Served, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Chat]:
    """The page, opened at `/`; an indirect parameter gives the browser's options."""
    chat = Chat(browser, f"{served.url}/", **getattr(request, "param", {}))
    yield chat
    chat.context.close()


def answered(chat: Chat, answer: str) -> None:
    """Wait for the answer of the last reply."""
    chat.panel.locator(".reply[data-phase=done]").last.wait_for()
    expect(chat.panel.locator(".reply .answer output").last).to_have_text(answer)


def test_the_start_tells_the_address_and_the_root_leads_there(served: Served, chat: Chat) -> None:
    assert f"UI    {served.url}/ui" in served.output
    assert chat.page.url == f"{served.url}/ui/"


def test_a_question_is_answered_in_steps_with_the_servers_figures(served: Served, chat: Chat) -> None:
    chat.ask()
    answered(chat, "182")
    chat.panel.locator(".thought > summary").click()
    words = chat.steps.locator(".word").all_inner_texts()
    assert words[0] == "Continue"
    assert "Reflect" in words
    body = {"model": "nano", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    usage = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).json()["usage"]
    spent = usage["completion_tokens_details"]["reasoning_tokens"]
    for figure in (f"Tokens{usage['completion_tokens']}", f"Tokens of thought{spent}", f"Reflections{words.count('Reflect')}"):
        expect(chat.panel.locator(".stats")).to_contain_text(figure)
    assert len(chat.requests) > 20
    assert [url for url in chat.requests if not url.startswith((served.url, "data:", "blob:"))] == []


@pytest.mark.parametrize("chat", [{"locale": "zh-CN"}], indirect=True)
def test_chinese_and_the_references_own_question(chat: Chat) -> None:
    chat.ask("哪个数字更大? 是 9.11 还是 9.9?")
    answered(chat, "9.9")
    chat.panel.locator(".thought > summary").click()
    expect(chat.steps.locator(".word").first).to_have_text("继续")


@pytest.mark.parametrize("chat", [{"viewport": {"width": 390, "height": 844}}], indirect=True)
def test_a_phone(chat: Chat) -> None:
    chat.ask()
    answered(chat, "182")
    assert chat.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_stop_frees_the_engine_and_retry_asks_again(served: Served, chat: Chat) -> None:
    def requests(part: str) -> dict[str, int]:
        now = httpx.get(f"{served.url}/ready").json()[part]
        return {name: now[name] for name in ("states", "open", "running") if name in now}

    frozen = served.engine()
    frozen.suspend()  # so that there is something to stop, however quick the machine
    try:
        chat.ask()
        chat.until(lambda: requests("ingress")["states"], "the question is in the engine")
        chat.button("Stop").click()
        chat.button("Try again").last.wait_for()
        chat.until(lambda: not any(requests("ingress").values()), "the ingress holds no request")
    finally:
        frozen.resume()
    chat.button("Try again").last.click()
    answered(chat, "182")
    chat.until(lambda: not any(requests("replica").values()), "the replica holds no request")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["reload", "killed ingress"])
def test_a_reply_goes_on_as_if_nothing_had_been(served: Served, chat: Chat, how: str) -> None:
    engine = served.engine()
    engine.suspend()
    try:
        chat.ask()

        def written() -> int:
            """Let the engine write a little."""
            engine.resume()
            time.sleep(0.02)
            engine.suspend()
            chat.page.wait_for_timeout(300)
            return chat.steps.count()

        chat.until(written, "the first words are there")
        chat.keeps('"stored":true')
        if how == "reload":
            chat.page.reload()
            chat.steps.first.wait_for()
        else:
            [ingress] = [process for process in served.processes() if "ServeReplica:default:Ingress" in command_line(process)]
            ingress.kill()
            expect(chat.replies.get_by_role("status")).to_contain_text("The connection is lost")
        expect(chat.replies).to_have_attribute("aria-busy", "true")
    finally:
        engine.resume()
    answered(chat, "182")
    chat.all_kept()
    [kept] = json.loads(chat.page.evaluate(CONVERSATIONS))
    [reply] = [turn["reply"] for turn in kept["turns"]]
    body = {"model": "nano", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    completion = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).json()
    whole = completion["choices"][0]["message"]
    told = [(step["action"], step["text"], step["tokens"]) for step in reply["steps"]]
    assert told == [(segment["action"], segment["text"], segment["tokens"]) for segment in whole["coat"]["segments"]]
    assert reply["content"] == whole["content"]
    assert reply["stats"]["tokens"] == completion["usage"]["completion_tokens"]
    stored = f"{served.url}/v1/chat/completions/{reply['id']}"
    chat.until(lambda: httpx.get(stored).status_code == 404, "the server has it no more")


def test_many_at_once_each_get_their_own(served: Served, browser: Browser) -> None:
    chats = [Chat(browser, f"{served.url}/ui/") for _ in range(6)]
    for number, chat in enumerate(chats):
        chat.ask(f"What is {40 + number} + 5?")
    for number, chat in enumerate(chats):
        answered(chat, str(45 + number))
        chat.context.close()


@pytest.mark.timeout(240)
def test_it_keeps_working_while_the_llm_replica_is_replaced(served: Served, chat: Chat) -> None:
    def replicas() -> set[int]:
        return {process.pid for process in served.processes() if "ServeReplica:default:LLM" in command_line(process)}

    [replica] = replicas()
    os.kill(replica, signal.SIGSTOP)  # not killed yet: its successor could be up before the page looks
    status = chat.page.locator(".status")
    expect(status).to_be_visible(timeout=60_000)
    expect(status).to_contain_text("loading")
    os.kill(replica, signal.SIGKILL)
    chat.until(lambda: replicas() - {replica}, "another LLM replica starts", 60)
    chat.ask()
    expect(status).to_be_hidden(timeout=120_000)
    answered(chat, "182")


def test_a_step_made_wrong_is_found_and_the_answer_is_right(chat: Chat) -> None:
    chat.ask()
    answered(chat, "182")
    chat.panel.locator(".thought > summary").click()
    first = chat.steps.first
    first.get_by_role("button", name="Change it and go on").click()
    box = first.get_by_role("textbox")
    box.fill(box.input_value().replace("282", "283"))
    chat.button("Go on from here").click()
    expect(chat.panel.locator(".versions").first).to_have_text("2/2")
    answered(chat, "182")
    chat.panel.locator(".thought > summary").click()
    expect(chat.steps.first).to_contain_text("283")
    expect(chat.panel.locator(".step.refuted").first).to_contain_text("set aside")
    expect(chat.steps.locator(".word").filter(has_text="Explore")).to_have_count(1)
