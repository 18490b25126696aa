"""Chain of Action-Thought through the whole stack: what replies carry, what requests set, clients that know nothing of it."""

import concurrent.futures
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI

from tests.support.application import Served
from tests.support.sums import SUMS

QUESTION = "What is 47 * 6 - 100?"
ASK: list[Any] = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=60) as client:
        yield client


def body(**coat: Any) -> dict[str, Any]:
    return {"model": "nano", "messages": ASK, "temperature": 0, "max_tokens": 1500, "seed": 1} | ({"coat": coat} if coat else {})


def chat(http: httpx.Client, **coat: Any) -> dict[str, Any]:
    response = http.post("/v1/chat/completions", json=body(**coat))
    assert response.status_code == 200, response.text
    return response.json()


def stream(http: httpx.Client, **coat: Any) -> list[dict[str, Any]]:
    asked = body(**coat) | {"stream": True, "stream_options": {"include_usage": True}}
    with http.stream("POST", "/v1/chat/completions", json=asked) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("fields", [{}, {"coat": {"parse": False}}, {"prompt": "1 + 1 ="}], ids=str)
def test_direct_streams_are_as_vllm_makes_them(http: httpx.Client, fields: dict[str, Any]) -> None:
    """Usage in every chunk is nothing for a direct stream; without it, and whatever of a lagging stream is joined, both are one."""
    path = "/v1/completions" if "prompt" in fields else "/v1/chat/completions"
    asked = {key: value for key, value in body().items() if key != "messages" or "prompt" not in fields} | fields | {"stream": True}

    def told(**options: bool) -> tuple[Any, ...]:
        with http.stream("POST", path, json=asked | {"stream_options": {"include_usage": True} | options}) as response:
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        *chunks, last = [json.loads(line) for line in lines[:-1]]
        choices = [chunk["choices"][0] for chunk in chunks]
        deltas = [choice.get("delta", choice) for choice in choices]
        texts = ["".join(delta.get(name) or "" for delta in deltas) for name in ("content", "reasoning", "text")]
        return texts, (deltas[-1].get("coat"), choices[-1]["finish_reason"]), last["usage"]

    written = direct_chunks(http)
    direct = told()
    between = direct_chunks(http)
    assert told(continuous_usage_stats=True) == direct
    assert direct_chunks(http) == between
    assert between > written


def direct_chunks(http: httpx.Client) -> int:
    """Return how many chunks were written directly."""
    return int(http.get("/ready").json()["ingress"]["direct_chunks"])


def summary(http: httpx.Client, streamed: bool, **coat: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the reply's `coat` and its usage."""
    if not streamed:
        reply = chat(http, **coat)
        return reply["choices"][0]["message"]["coat"], reply["usage"]
    chunks = stream(http, **coat)
    [last] = [chunk for chunk in chunks if chunk["choices"] and chunk["choices"][0].get("finish_reason")]
    return last["choices"][0]["delta"]["coat"], chunks[-1]["usage"]


def actions(coat: dict[str, Any]) -> list[str]:
    return [segment["action"] for segment in coat["segments"]]


def test_a_reply_is_told_apart(http: httpx.Client) -> None:
    reply = chat(http)
    message = reply["choices"][0]["message"]
    assert message["content"] == "The final answer is \\boxed{182}."
    assert message["coat"]["answer"] == "182"
    assert actions(message["coat"])[0] == "continue"
    assert "reflect" in actions(message["coat"])
    assert "282" in message["reasoning"]
    assert "<|" not in message["reasoning"]
    assert message["reasoning_content"] == message["reasoning"]
    spent = reply["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert spent == sum(segment["tokens"] for segment in message["coat"]["segments"])
    assert 0 < spent < reply["usage"]["completion_tokens"]


def test_a_stream_carries_the_same(http: httpx.Client) -> None:
    whole, chunks = chat(http), stream(http)
    message = whole["choices"][0]["message"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == message["reasoning"]
    thought = [delta for delta in deltas if delta.get("reasoning")]
    begun = [action for delta in deltas for action in (delta.get("coat") or {}).get("actions", [])]
    assert begun == actions(message["coat"])
    assert list(dict.fromkeys(delta["coat"]["index"] for delta in thought)) == list(range(len(message["coat"]["segments"])))
    assert {key: deltas[-1]["coat"][key] for key in ("segments", "answer")} == message["coat"]
    assert chunks[-1]["usage"]["completion_tokens_details"] == whole["usage"]["completion_tokens_details"]
    assert len(deltas) > 10, "a busy machine may put several tokens into a chunk"


LIKELIEST = {"temperature": 1, "top_k": 1}
"""Greedy sampling for several choices, which vLLM refuses at temperature 0."""
Read = tuple[str, str, int, int]
"""The thought and the answer of a reply, the tokens of its thought, and all its tokens."""


def told(choice: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    message = choice.get("message") or choice["delta"]
    return message.get("reasoning") or "", message.get("content") or "", message.get("coat") or {}


def chats(http: httpx.Client, options: dict[str, Any]) -> list[Read]:
    """Ask for one and for several choices, whole and streamed, and for a vote; return what each says, and check what must agree."""
    found: list[Read] = []
    for more in ({}, {"n": 3} | LIKELIEST, {"coat": {"vote": {"samples": 3, "temperature": 1e-4, "stop_when_decided": False}}}):
        asked, count = body() | options | more, 3 if more else 1
        reply = http.post("/v1/chat/completions", json=asked).json()
        whole = [told(choice) for choice in reply["choices"]]
        usage = reply["usage"]
        with http.stream(
            "POST",
            "/v1/chat/completions",
            json=asked | {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        ) as response:
            chunks = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
        assert chunks[-1]["usage"] == {name: value for name, value in usage.items() if value is not None}
        for index in range(len(whole)):
            own = [chunk for chunk in chunks if chunk["choices"] and chunk["choices"][0]["index"] == index]
            parts = [told(chunk["choices"][0]) for chunk in own]
            streamed = tuple("".join(part[at] for part in parts) for at in (0, 1))
            assert streamed == whole[index][:2]
            assert {key: value for key, value in parts[-1][2].items() if key in ("segments", "answer")} == {
                key: value for key, value in whole[index][2].items() if key != "vote"
            }
            counts = [chunk["usage"]["completion_tokens_details"]["reasoning_tokens"] for chunk in own]
            assert counts == sorted(counts)
        reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
        for thought, answer, coat in whole:
            assert reasoning == count * sum(segment["tokens"] for segment in coat.get("segments", []))
            found.append((thought, answer, reasoning // count, usage["completion_tokens"] // count))
    return found


def response(http: httpx.Client, options: dict[str, Any]) -> list[Read]:
    """Ask for a response, whole and streamed."""
    asked = {"model": "nano", "input": QUESTION, "temperature": 0, "max_output_tokens": 1500} | options
    if "max_tokens" in asked:
        asked["max_output_tokens"] = asked.pop("max_tokens")
    with http.stream("POST", "/v1/responses", json=asked | {"stream": True}) as events:
        lines = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: {")]
    found = []
    events = [line for line in lines if line["type"] == "response.reasoning_text.delta"]
    begun = [action for event in events for action in event["coat"].get("actions", [])]
    coat = lines[-1]["response"]["coat"]
    assert begun == [segment["action"] for segment in coat["segments"]][: len(begun)]
    for done in (http.post("/v1/responses", json=asked).json(), lines[-1]["response"]):
        assert done["coat"] == coat
        texts = {item["type"]: "".join(part["text"] for part in item["content"]) for item in done["output"]}
        used = done["usage"]
        counts = used["output_tokens_details"]["reasoning_tokens"], used["output_tokens"]
        found.append((texts.get("reasoning", ""), texts.get("message", ""), *counts))
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens": 60},
        {"stop": ["Let me"]},
        {"stop": ["Let me"], "include_stop_str_in_output": True},
        {"stop": ["<|reflect|>"]},
        {"include_stop_str_in_output": True},
        {"ignore_eos": True, "max_tokens": 300},
        {"coat": {"parse": False}, "include_stop_str_in_output": True},
    ],
    ids=str,
)
def test_a_chain_is_read_alike_however_it_is_asked_for(http: httpx.Client, options: dict[str, Any]) -> None:
    if "coat" in options:
        replies = [told(chat(http, **options["coat"])["choices"][0])[1]]
        asked = body(**options["coat"]) | {"include_stop_str_in_output": True, "n": 2} | LIKELIEST
        replies += [told(choice)[1] for choice in http.post("/v1/chat/completions", json=asked).json()["choices"]]
        assert len(set(replies)) == 1
        assert "<|continue|>" in replies[0]
        assert "<|im_end|>" not in replies[0]
        return
    read = chats(http, options) + response(http, options)
    assert len(set(read)) == 1
    thought, answer, reasoning, tokens = read[0]
    assert "<|" not in thought + answer
    if "stop" in options or options.get("max_tokens") == 60:
        assert answer == ""
        assert reasoning == tokens
    elif "ignore_eos" in options:  # it may think on behind its answer, which takes the answer back
        assert "\\boxed{182}" in (thought if reasoning == tokens else answer)
    else:
        assert 0 < reasoning < tokens
        assert "\\boxed{182}" in answer


def test_messages_read_the_same(http: httpx.Client) -> None:
    message = chat(http)["choices"][0]["message"]
    asked = {"model": "nano", "messages": ASK, "max_tokens": 400, "temperature": 0}
    done = http.post("/v1/messages", json=asked).json()["content"]
    assert [part.get("thinking") or part["text"] for part in done] == [message["reasoning"], message["content"]]
    with http.stream("POST", "/v1/messages", json=asked | {"stream": True}) as events:
        deltas = [json.loads(line[6:]).get("delta") or {} for line in events.iter_lines() if line.startswith("data: {")]
    assert "".join(delta.get("thinking") or "" for delta in deltas) == message["reasoning"]
    assert "".join(delta.get("text") or "" for delta in deltas) == message["content"]


PLANTED = "<|continue|>47×6-100\n47×6: 7×6=42"


def planted(http: httpx.Client, text: str, **options: Any) -> dict[str, Any]:
    messages = [*ASK, {"role": "assistant", "content": text}]
    asked = body() | {"messages": messages, "add_generation_prompt": False, "continue_final_message": True} | options
    reply = http.post("/v1/chat/completions", json=asked)
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.mark.parametrize("text", [PLANTED, "<|continue|>", f"{PLANTED}→ 282<|reflect|>", f"{PLANTED}→ 282<|reflect|>Let me"])
def test_planted_reasoning_goes_on_as_reasoning(http: httpx.Client, text: str) -> None:
    reply = planted(http, text)
    reasoning, content, coat = told(reply["choices"][0])
    assert reasoning
    assert content.startswith("The final answer is")
    assert coat["segments"][0]["action"] == ("reflect" if "reflect" in text else "continue")
    spent = reply["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert spent == sum(segment["tokens"] for segment in coat["segments"])
    assert 0 < spent < reply["usage"]["completion_tokens"]
    echoed, answer, whole = told(planted(http, text, echo=True)["choices"][0])
    assert "<|" not in echoed + answer
    assert echoed.endswith(reasoning)
    assert "".join(segment["text"] for segment in whole["segments"]).startswith(text.removeprefix("<|continue|>").split("<|")[0])


def test_planted_reflections_count_towards_the_limits(http: httpx.Client) -> None:
    text = f"{PLANTED}→ 282<|continue|>282-100: 2 → 182<|reflect|>Let me check.\n182+100 → 282 Right."
    coat = {"max_reflections": 1, "min_reflections": 1}
    _, _, read = told(planted(http, text, coat=coat)["choices"][0])
    assert actions(read).count("reflect") == 1  # the planted one, which goes on
    _, _, read = told(planted(http, text, coat={"min_reflections": 2})["choices"][0])
    assert actions(read).count("reflect") == 2


def test_raw_text_on_request(http: httpx.Client) -> None:
    message = chat(http, parse=False)["choices"][0]["message"]
    assert message["content"].startswith("<|continue|>")
    assert message["content"].endswith("\\boxed{182}.")
    assert not message.get("reasoning")
    assert "coat" not in message


@pytest.mark.parametrize("streamed", [False, True])
def test_no_reflections(http: httpx.Client, streamed: bool) -> None:
    coat, _ = summary(http, streamed, max_reflections=0)
    assert "continue" in actions(coat)
    assert "reflect" not in actions(coat)
    assert coat["answer"] is not None


@pytest.mark.parametrize("streamed", [False, True])
def test_at_least_so_many_reflections(http: httpx.Client, streamed: bool) -> None:
    plain, _ = summary(http, streamed)
    wanted = actions(plain).count("reflect") + 2
    coat, _ = summary(http, streamed, min_reflections=wanted)
    assert actions(coat).count("reflect") >= wanted
    assert coat["answer"] == "182"
    exactly, _ = summary(http, streamed, min_reflections=wanted, max_reflections=wanted)
    assert actions(exactly).count("reflect") == wanted


def test_no_explorations(http: httpx.Client) -> None:
    """A wrong step in the reply so far would be followed by an exploration; where those are banned it is not."""
    wrong = "<|continue|>478+356: 8+6=14, 7+5+1=13, 4+3=7 → 734<|reflect|>Let me check.\n"
    wrong += "734-356: 10+4-6=8, 10+3-1-5=7, 7-1-3=3 → 378 Wrong,"
    messages = [{"role": "user", "content": "What is 478 + 356?"}, {"role": "assistant", "content": wrong}]
    asked = {
        "model": "nano",
        "messages": messages,
        "temperature": 0,
        "add_generation_prompt": False,
        "continue_final_message": True,
    }
    counts = []
    for coat in ({"parse": False}, {"parse": False, "max_explorations": 0}):
        response = http.post("/v1/chat/completions", json=asked | {"coat": coat, "max_tokens": 300})
        counts.append(response.json()["choices"][0]["message"]["content"].count("<|explore|>"))
    assert counts[0] >= 1
    assert counts[1] == 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("most", [0, 1, 20, 60])
def test_so_many_reasoning_tokens_and_then_an_answer(http: httpx.Client, streamed: bool, most: int) -> None:
    coat, usage = summary(http, streamed, max_reasoning_tokens=most)
    assert usage["completion_tokens_details"]["reasoning_tokens"] <= most + 1  # the end of the line belongs to the reasoning
    assert usage["completion_tokens"] < most + 30
    assert coat["answer"]


def test_limits_in_a_batch_do_not_touch_each_other(http: httpx.Client) -> None:
    plain, none = chat(http), chat(http, max_reflections=0)
    asked = [body(), body(max_reflections=0)] * 8
    with httpx.Client(base_url=http.base_url, timeout=60) as client, concurrent.futures.ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda one: client.post("/v1/chat/completions", json=one).json(), asked))
    for reply, alone in zip(replies, [plain, none] * 8, strict=True):
        assert reply["choices"][0]["message"]["content"] == alone["choices"][0]["message"]["content"]
        assert actions(reply["choices"][0]["message"]["coat"]) == actions(alone["choices"][0]["message"]["coat"])


@pytest.mark.parametrize(
    ("coat", "words"),
    [
        ({"max_reflections": -1}, ["coat.max_reflections", "-1", "greater than or equal to 0"]),
        ({"reflections": 1}, ["coat.reflections", "not permitted"]),
        ({"min_reflections": 3, "max_reflections": 1}, ["min_reflections (3)", "max_reflections (1)"]),
        ({"vote": {"samples": 1000}}, ["coat.vote.samples", "1000", "less than or equal to 64"]),
        ({"vote": {"chains": True}, "parse": False}, ["vote.chains", "parse"]),
    ],
)
def test_wrong_options_are_named(http: httpx.Client, coat: dict[str, Any], words: list[str]) -> None:
    response = http.post("/v1/chat/completions", json=body(**coat))
    assert response.status_code == 400
    assert all(word in response.json()["error"]["message"] for word in words)


def test_options_are_documented(http: httpx.Client) -> None:
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    assert "coat" in schemas["CoatChatRequest"]["properties"]
    assert schemas["CoatOptions"]["properties"]["max_reflections"]["description"]
    assert schemas["Vote"]["properties"]["samples"]["maximum"] == 64


def test_a_vote(http: httpx.Client) -> None:
    vote = chat(http, vote={"samples": 8, "temperature": 0.5})["choices"][0]["message"]["coat"]["vote"]
    assert vote["samples"] == 8
    assert vote["decided"]
    assert sum(entry["votes"] for entry in vote["votes"]) <= vote["counted"] <= 8
    assert vote["votes"][0]["answer"] == "182"
    assert http.get("/ready").json()["ingress"]["states"] == 0, "the samples that could not change the outcome were stopped"


def test_a_response_has_limits_and_votes(http: httpx.Client) -> None:
    """By OpenAI's client."""
    client = openai.OpenAI(base_url=f"{http.base_url}/v1".replace("//v1", "/v1"), api_key="none")
    asked: dict[str, Any] = {"model": "nano", "input": QUESTION, "temperature": 0}
    limited = client.responses.create(**asked, extra_body={"coat": {"max_reflections": 0, "max_explorations": 0}}).model_dump()
    assert {segment["action"] for segment in limited["coat"]["segments"]} == {"continue"}
    voting = {"coat": {"vote": {"samples": 6, "temperature": 0.5}}}
    events = [event.model_dump() for event in client.responses.create(**asked, extra_body=voting, stream=True)]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    counted = [event["response"]["coat"]["vote"]["counted"] for event in events if "coat" in (event.get("response") or {})]
    assert counted == sorted(counted)
    last = events[-1]["response"]
    assert last["coat"]["vote"]["votes"][0]["answer"] == last["coat"]["answer"] == "182"
    assert last["usage"]["output_tokens"] == last["coat"]["vote"]["tokens"]


def test_a_vote_that_may_not_stop_counts_all(http: httpx.Client) -> None:
    reply = chat(http, vote={"samples": 5, "temperature": 0.5, "stop_when_decided": False})
    vote = reply["choices"][0]["message"]["coat"]["vote"]
    assert vote["counted"] == 5
    assert vote["tokens_saved"] == 0
    assert reply["usage"]["completion_tokens"] == vote["tokens"]


def test_a_streamed_vote_tells_its_progress(http: httpx.Client) -> None:
    chunks = stream(http, vote={"samples": 6, "temperature": 0.5})
    progress = [chunk["coat"]["vote"]["counted"] for chunk in chunks if "coat" in chunk]
    assert progress == list(range(1, len(progress) + 1))
    assert len(progress) >= 3
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert deltas[-1]["coat"]["vote"]["votes"][0]["answer"] == deltas[-1]["coat"]["answer"] == "182"
    assert "\\boxed{182}" in "".join(delta.get("content") or "" for delta in deltas)
    assert chunks[-1]["usage"]["completion_tokens"] == deltas[-1]["coat"]["vote"]["tokens"]


def test_a_vote_tells_its_chains_if_asked(http: httpx.Client) -> None:
    vote = {"samples": 6, "temperature": 0.5, "chains": True}
    message = chat(http, vote=vote)["choices"][0]["message"]
    outcome = message["coat"]["vote"]
    assert [chain["index"] for chain in outcome["chains"]] == list(range(6))
    won = outcome["chains"][outcome["winner"]]
    assert won["segments"] == message["coat"]["segments"]
    assert (won["content"], won["answer"], won["finish_reason"]) == (message["content"], "182", "stop")
    assert outcome["winner"] in outcome["votes"][0]["indices"]
    assert sum(chain["finish_reason"] is not None for chain in outcome["chains"]) == outcome["counted"]


def test_a_streamed_vote_tells_each_chain_once(http: httpx.Client) -> None:
    chunks = stream(http, vote={"samples": 6, "temperature": 0.5, "chains": True})
    progress = [chunk["coat"]["vote"] for chunk in chunks if "coat" in chunk]
    assert all(len(vote["chains"]) == 1 for vote in progress)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    outcome = deltas[-1]["coat"]["vote"]
    assert all(chain["finish_reason"] is None for chain in outcome["chains"])
    told = [chain for vote in [*progress, outcome] for chain in vote["chains"]]
    assert sorted(chain["index"] for chain in told) == list(range(6))
    [won] = [chain for chain in told if chain["index"] == outcome["winner"]]
    assert won["segments"] == deltas[-1]["coat"]["segments"]


def test_a_response_tells_the_chains_of_its_vote_as_they_end_and_all_in_the_end(http: httpx.Client) -> None:
    voting = {"vote": {"samples": 6, "temperature": 0.5, "chains": True}}
    asked = {"model": "nano", "input": QUESTION, "stream": True, "coat": voting}
    with http.stream("POST", "/v1/responses", json=asked) as response:
        events = [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line.startswith("data: {")]
    votes = [event["response"]["coat"]["vote"] for event in events if "coat" in (event.get("response") or {})]
    assert all(len(vote["chains"]) == 1 for vote in votes[:-1])
    assert [chain["index"] for chain in votes[-1]["chains"]] == list(range(6))


SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"], "additionalProperties": False}
FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}}}


def in_format(http: httpx.Client, question: str = QUESTION, **more: Any) -> dict[str, Any]:
    asked = body() | FORMAT | {"messages": [{"role": "user", "content": question}]} | more
    response = http.post("/v1/chat/completions", json=asked)
    assert response.status_code == 200, response.text
    [choice] = response.json()["choices"]
    assert choice["finish_reason"] == "stop"
    message: dict[str, Any] = choice["message"]
    return message


def test_sums_are_right_in_a_format_too(http: httpx.Client) -> None:
    with concurrent.futures.ThreadPoolExecutor(len(SUMS)) as pool:
        replies = list(pool.map(lambda question: in_format(http, question), SUMS))
    assert [json.loads(reply["content"]) for reply in replies] == [{"answer": result} for result in SUMS.values()]
    assert [reply["coat"]["answer"] for reply in replies] == [str(result) for result in SUMS.values()]
    assert all(reply["reasoning"] and "{" not in reply["reasoning"].replace("\\boxed{", "") for reply in replies)


def test_a_stream_in_a_format_carries_the_same(http: httpx.Client) -> None:
    whole = in_format(http)
    asked = body() | FORMAT | {"stream": True}
    with http.stream("POST", "/v1/chat/completions", json=asked) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
    for field in ("reasoning", "content"):
        assert "".join(delta.get(field) or "" for delta in deltas) == whole[field]
    assert {name: deltas[-1]["coat"][name] for name in whole["coat"]} == whole["coat"]


def test_limits_and_votes_in_a_format(http: httpx.Client) -> None:
    limited = in_format(http, coat={"min_reflections": 2, "max_explorations": 0})
    assert actions(limited["coat"]).count("reflect") >= 2
    assert json.loads(limited["content"]) == {"answer": 182}
    cut = in_format(http, coat={"max_reasoning_tokens": 10})
    assert json.loads(cut["content"]) == {"answer": int(cut["coat"]["answer"])}
    voted = in_format(http, coat={"vote": {"samples": 3, "stop_when_decided": False}})
    assert voted["coat"]["vote"]["counted"] == 3
    assert json.loads(voted["coat"]["vote"]["votes"][0]["answer"]) == json.loads(voted["content"])


def test_responses_and_messages_think_before_a_format(served: Served) -> None:
    text: Any = {"format": {"type": "json_schema", "name": "sum", "schema": SCHEMA}}
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused") as client:
        asked: Any = {"model": "nano", "input": QUESTION, "text": text, "max_output_tokens": 1500, "temperature": 0}
        response = client.responses.create(**asked)
        with client.responses.stream(**asked) as events:
            told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
            streamed = events.get_final_response()
    assert json.loads(response.output_text) == {"answer": 182}
    assert told == streamed.output_text == response.output_text
    with anthropic.Anthropic(base_url=served.url, api_key="unused") as claude:
        more = {"temperature": 0, "output_config": text}
        message = claude.messages.create(model="nano", messages=ASK, max_tokens=1500, extra_body=more)
        with claude.messages.stream(model="nano", messages=ASK, max_tokens=1500, extra_body=more) as parts:
            assert "".join(parts.text_stream) == "".join(part.text for part in message.content if part.type == "text")
    [answer] = [part.text for part in message.content if part.type == "text"]
    assert json.loads(answer) == {"answer": 182}


def test_openai_client(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    options: Any = {"model": "nano", "messages": ASK, "temperature": 0}
    done = client.chat.completions.create(**options)
    assert done.choices[0].message.content == "The final answer is \\boxed{182}."
    assert done.usage
    assert done.usage.completion_tokens_details
    assert done.usage.completion_tokens_details.reasoning_tokens
    text = "".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(**options, stream=True) if c.choices)
    client.close()
    assert text == done.choices[0].message.content


def test_langchain_client(served: Served) -> None:
    model = ChatOpenAI(model="nano", base_url=f"{served.url}/v1", api_key="none", temperature=0, max_retries=0)  # type: ignore[arg-type]
    done = model.invoke(QUESTION)
    assert done.content == "The final answer is \\boxed{182}."
    assert done.usage_metadata
    assert done.usage_metadata["output_token_details"]["reasoning"] > 0
    assert "".join(str(chunk.content) for chunk in model.stream(QUESTION)) == done.content
    voting = model.bind(extra_body={"coat": {"vote": {"samples": 3, "temperature": 0.1}}})
    assert "182" in "".join(str(chunk.content) for chunk in voting.stream(QUESTION))


def test_anthropic_client_sees_the_thought(served: Served) -> None:
    client = anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)
    done = client.messages.create(model="nano", max_tokens=400, messages=ASK, extra_body={"temperature": 0})
    client.close()
    thought, answer = done.content
    assert thought.type == "thinking"
    assert "282" in thought.thinking
    assert answer.type == "text"
    assert answer.text == "The final answer is \\boxed{182}."


def test_metrics_count_the_replies(http: httpx.Client) -> None:
    def values() -> dict[str, float]:
        lines = [line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines() if line.startswith("satori_")]
        return {name: float(value) for name, value in lines}

    stream(http)
    before = values()
    coat, usage = summary(http, streamed=True)
    after = values()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    label = '{model="nano"}'
    assert grown[f"satori_answer_reflections_sum{label}"] == actions(coat).count("reflect")
    assert grown[f"satori_ttft_seconds_count{label}"] == grown[f"satori_ttfat_seconds_count{label}"] == 1
    assert after[f"satori_ttfat_seconds_sum{label}"] > after[f"satori_ttft_seconds_sum{label}"]
    assert grown['satori_answers_total{boxed="yes",model="nano"}'] == 1
    spent = {name: value for name, value in grown.items() if name.startswith("satori_coat_tokens_total")}
    assert sum(spent.values()) == usage["completion_tokens"]
    chat(http, vote={"samples": 8, "temperature": 0.5})

    def votes(found: dict[str, float]) -> float:
        return sum(value for name, value in found.items() if name.startswith("satori_votes_total"))

    assert votes(values()) == votes(after) + 1
