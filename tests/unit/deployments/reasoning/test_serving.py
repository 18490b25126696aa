"""What each API says of the same chain: the ingress' real app in this process, on a core that writes the chains of a script."""

import asyncio
import json
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason

from deployments.observability import metrics
from deployments.reasoning import serving
from deployments.reasoning.answers.comparer import Comparer
from tests.support.in_process import Server, served
from tests.support.paths import NANO
from tests.support.until import until_async

TOKENIZER = AutoTokenizer.from_pretrained(NANO)
QUESTION = {"role": "user", "content": "What is 47 * 6 - 100?"}
STEPS = "47×6: 7×6=42 → 282\n", "The answer is \\boxed{282}.", "Let me check.\n282-100 → 182 Wrong,", "282-100   \n"
THOUGHT = f"<|continue|>{STEPS[0]}{STEPS[1]}<|reflect|>{STEPS[2]}<|explore|>{STEPS[3]}"
ANSWER = "\\[\nx = \\boxed {182}\n\\]"
SHOWN = STEPS[0] + "\n".join(STEPS[1:])
END = TOKENIZER.eos_token_id
STEP = 3
"""Tokens that the core writes at a time."""


class SameText(Comparer):
    """Compares answers as text, without another process."""

    def __init__(self) -> None: ...

    def prepare(self) -> None: ...

    def close(self) -> None: ...

    async def key(self, answer: str) -> str:
        return answer


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "Comparer", SameText)


def tokens(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def write(server: Server, text: str, step: int = STEP) -> None:
    """Have the core answer each request with this text, within its limits."""

    def answer(request: EngineCoreRequest) -> None:
        params = request.sampling_params
        assert params is not None
        ids = [*tokens(text), END, *tokens(text)] if params.ignore_eos else [*tokens(text), END]
        cut = params.ignore_eos or len(ids) > (params.max_tokens or 0)
        reason = FinishReason.LENGTH if cut else FinishReason.STOP
        ids = ids[: params.max_tokens]
        for first in range(0, len(ids), step):
            ended = reason if first + step >= len(ids) else None
            output = EngineCoreOutput(request.request_id, ids[first : first + step], finish_reason=ended)
            server.core._outputs.put_nowait(EngineCoreOutputs(outputs=[output]))

    server.core.answer = answer  # type: ignore[method-assign]


async def stream(server: Server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    reply = await server.http.post(path, json=body | {"stream": True})
    assert reply.status_code == 200, reply.text
    return [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]


Read = tuple[str, str, int, int]
"""A reply's thought and answer, the tokens of its thought, and all its tokens."""


async def chat(server: Server, body: dict[str, Any], choices: int = 1) -> Read:
    """Ask for a chat, whole and streamed. Return what each of its choices says, and its share of the usage."""
    body = {"model": "nano", "messages": [QUESTION]} | body
    reply = (await server.http.post("/v1/chat/completions", json=body)).json()
    usage = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = await stream(server, "/v1/chat/completions", body | {"stream_options": usage})
    assert last["usage"] == {name: value for name, value in reply["usage"].items() if value is not None}
    reads = set()
    for choice in reply["choices"]:
        message, found = choice["message"], dict[str, Any]()
        deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"] and c["choices"][0]["index"] == choice["index"]]
        counts = [c["usage"]["completion_tokens_details"]["reasoning_tokens"] for c in chunks if c["choices"]]
        assert counts == sorted(counts) or choices > 1
        for name in ("reasoning", "content"):
            assert "".join(delta.get(name) or "" for delta in deltas) == (message[name] or "")
        for delta in deltas:
            found = found | (delta.get("coat") or {})
        assert {name: value for name, value in found.items() if name in message["coat"]} == message["coat"]
        begun = [action for delta in deltas for action in (delta.get("coat") or {}).get("actions", [])]
        assert begun == [segment["action"] for segment in message["coat"]["segments"]]
        thought = sum(segment["tokens"] for segment in message["coat"]["segments"])
        reads.add((message["reasoning"] or "", message["content"] or "", thought, reply["usage"]["completion_tokens"] // choices))
    [read] = reads
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == choices * read[2]
    return read


async def response(server: Server, body: dict[str, Any], choices: int = 1) -> set[Read]:
    """Ask for a response, whole and streamed. Return what it says, and the share of its usage that each of its choices has."""
    asked = {"model": "nano", "input": QUESTION["content"]} | {key: value for key, value in body.items() if key != "max_tokens"}
    asked |= {"max_output_tokens": body["max_tokens"]}
    whole = (await server.http.post("/v1/responses", json=asked)).json()
    events = await stream(server, "/v1/responses", asked)
    reads = set()
    for done in (whole, events[-1]["response"]):
        texts = {item["type"]: "".join(part["text"] for part in item["content"]) for item in done["output"]}
        used = done["usage"]
        thought = used["output_tokens_details"]["reasoning_tokens"]
        reads.add((texts.get("reasoning", ""), texts.get("message", ""), thought // choices, used["output_tokens"] // choices))
        assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"]
    return reads


async def responses(server: Server, **body: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask for a response, and for its events."""
    asked = {"model": "nano", "input": QUESTION["content"], "max_output_tokens": 400} | body
    whole = await server.http.post("/v1/responses", json=asked)
    return whole.json(), await stream(server, "/v1/responses", asked)


@pytest.mark.parametrize(
    ("options", "text", "shown", "content"),
    [
        ({}, THOUGHT + ANSWER, SHOWN, ANSWER),
        ({"include_stop_str_in_output": True}, THOUGHT + ANSWER, SHOWN, ANSWER),
        ({}, THOUGHT, SHOWN, ""),  # no answer
        ({"max_tokens": 12}, THOUGHT + ANSWER, None, ""),
        ({"stop": ["me check"]}, THOUGHT + ANSWER, f"{STEPS[0]}{STEPS[1]}\nLet ", ""),
        ({"stop": ["<|reflect|>"]}, THOUGHT + ANSWER, STEPS[0], STEPS[1]),
        ({"stop": ["182}"], "include_stop_str_in_output": True}, THOUGHT + ANSWER, SHOWN, ANSWER[:-3]),
        ({"ignore_eos": True}, THOUGHT + ANSWER, f"{SHOWN}{ANSWER}\n{SHOWN}", ANSWER),
        ({}, "Hello.", "", "Hello."),
    ],
)
async def test_a_chain_is_read_alike_by_every_api(options: dict[str, Any], text: str, shown: str | None, content: str) -> None:
    body = {"max_tokens": 400} | options
    vote = {"vote": {"samples": 2, "stop_when_decided": False}}
    async with served() as server:
        write(server, text, 1)
        reads = {await chat(server, body), await chat(server, body | {"n": 2}, 2), await chat(server, body | {"coat": vote}, 2)}
        reads |= await response(server, body)
        reads |= await response(server, body | {"coat": vote}, 2)
        for step in (3, 1000) if "stop" not in options else ():  # an engine goes on after a stop string until the step's end
            write(server, text, step)
            reads.add(await chat(server, body))
    [read] = reads
    assert read[0] == shown or shown is None
    assert read[1] == content
    assert "<|" not in read[0] + read[1]
    if not content:
        assert read[2] == read[3]
    elif options.keys() <= {"include_stop_str_in_output"} and text != "Hello.":
        assert read[2] == len(tokens(THOUGHT))
        assert read[3] == len(tokens(THOUGHT + ANSWER)) + 1


@pytest.mark.parametrize("options", [{}, {"include_stop_str_in_output": True}, {"n": 2, "include_stop_str_in_output": True}])
async def test_raw_text_has_no_other_special_token(options: dict[str, Any]) -> None:
    body = {"model": "nano", "messages": [QUESTION], "max_tokens": 400, "coat": {"parse": False}} | options
    async with served() as server:
        write(server, THOUGHT + ANSWER)
        reply = (await server.http.post("/v1/chat/completions", json=body)).json()
        chunks = await stream(server, "/v1/chat/completions", body)
    assert {choice["message"]["content"] for choice in reply["choices"]} == {THOUGHT + ANSWER}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"] and chunk["choices"][0]["index"] == 0]
    assert "".join(delta.get("content") or "" for delta in deltas) == THOUGHT + ANSWER


async def test_messages_are_read_alike() -> None:
    body = {"model": "nano", "messages": [QUESTION], "max_tokens": 400}
    async with served() as server:
        write(server, THOUGHT + ANSWER)
        whole = (await server.http.post("/v1/messages", json=body)).json()
        events = await stream(server, "/v1/messages", body)
    assert [part.get("thinking") or part.get("text") for part in whole["content"]] == [SHOWN, ANSWER]
    deltas = [event.get("delta") or {} for event in events]
    assert "".join(delta.get("thinking") or "" for delta in deltas) == SHOWN
    assert "".join(delta.get("text") or "" for delta in deltas) == ANSWER


async def test_a_planted_chain_goes_on_as_thought_and_its_actions_count() -> None:
    planted = "<|continue|>47×6<|reflect|>Let me"
    body = {
        "messages": [QUESTION, {"role": "assistant", "content": planted}],
        "max_tokens": 400,
        "add_generation_prompt": False,
        "continue_final_message": True,
        "coat": {"max_reflections": 1},
    }
    async with served() as server:
        write(server, " check.\n" + ANSWER)
        read = await chat(server, body)
        [request, *_] = server.core.requests
        write(server, " check.\n" + ANSWER)
        echoed = (await server.http.post("/v1/chat/completions", json=body | {"model": "nano", "echo": True})).json()
        chunks = await stream(server, "/v1/chat/completions", body | {"model": "nano", "echo": True})
    assert read == (" check.\n", ANSWER, len(tokens(" check.\n")), len(tokens(" check.\n" + ANSWER)) + 1)
    assert request.sampling_params is not None
    assert (request.sampling_params.extra_args or {})["coat"]["planted"] == tokens(planted)
    message = echoed["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("47×6\nLet me check.\n", ANSWER)
    assert [segment["action"] for segment in message["coat"]["segments"]] == ["continue", "reflect"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == message["reasoning"]
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "queued"])
async def test_a_response_tells_of_its_chain_as_a_chat_does(direct: bool) -> None:
    async with served(ingress__direct_streams=direct) as server:
        write(server, THOUGHT + ANSWER, 1)
        message = (await server.chat(QUESTION, max_tokens=400)).json()["choices"][0]["message"]
        whole, events = await responses(server)
        hidden, _ = await responses(server, include_reasoning=False)
    assert whole["coat"] == events[-1]["response"]["coat"] == message["coat"]
    assert hidden["coat"] == {"answer": "182"}
    deltas = [event for event in events if event["type"] == "response.reasoning_text.delta"]
    assert [action for event in deltas for action in event["coat"].get("actions", [])] == ["continue", "reflect", "explore"]
    indices = [event["coat"]["index"] for event in deltas]
    assert indices == sorted(indices)


async def test_a_response_has_the_limits_and_the_planted_chain_of_its_request() -> None:
    planted = "<|continue|>47×6<|reflect|>Let me"
    begun = {"type": "message", "role": "assistant", "status": "in_progress", "id": "msg_1"}
    begun |= {"content": [{"type": "output_text", "text": planted, "annotations": []}]}
    async with served() as server:
        write(server, " check.\n" + ANSWER)
        whole, _ = await responses(server, input=[QUESTION, begun], coat={"max_reflections": 1}, reasoning={"effort": "minimal"})
        [asked, streamed] = server.core.requests
    assert [segment["action"] for segment in whole["coat"]["segments"]] == ["reflect"]  # its own; nothing is echoed
    for request in (asked, streamed):
        assert request.sampling_params is not None
        limits = (request.sampling_params.extra_args or {})["coat"]
        assert limits["planted"] == tokens(planted)
        assert (limits["max_reflections"], limits["max_explorations"], limits["max_reasoning_tokens"]) == (1, 0, 200)


async def test_a_response_by_vote_tells_its_progress() -> None:
    async with served() as server:
        write(server, THOUGHT + ANSWER)
        whole, events = await responses(server, coat={"vote": {"samples": 3, "stop_when_decided": False}})
    vote = {"samples": 3, "counted": 3, "votes": [{"answer": "182", "votes": 3}], "decided": True}
    used = whole["usage"]["output_tokens"]
    assert whole["coat"]["vote"] == events[-1]["response"]["coat"]["vote"] == vote | {"tokens": used, "tokens_saved": 0}
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    begun = [event["response"] for event in events if event["type"] == "response.in_progress"]
    told = [response["coat"]["vote"] for response in begun if "coat" in response]
    assert [progress["counted"] for progress in told] == [1, 2, 3]
    assert told[-1] == vote


@pytest.mark.parametrize("shown", [True, False])
async def test_a_vote_tells_its_chains_as_the_reply_tells_its_own(shown: bool) -> None:
    asked = {
        "model": "nano",
        "include_reasoning": shown,
        "coat": {"vote": {"samples": 3, "stop_when_decided": False, "chains": True}},
    }
    chat = asked | {"messages": [QUESTION], "max_tokens": 400}
    async with served() as server:
        write(server, THOUGHT + ANSWER)
        message = (await server.http.post("/v1/chat/completions", json=chat)).json()["choices"][0]["message"]
        chunks = await stream(server, "/v1/chat/completions", chat)
        response, events = await responses(server, **asked)
    chains = message["coat"]["vote"]["chains"]
    own = {name: message["coat"][name] for name in ("answer", "segments") if name in message["coat"]}
    assert chains == [{"index": index, "finish_reason": "stop", "content": message["content"]} | own for index in range(3)]
    assert ("segments" in own) == shown
    assert message["coat"]["vote"]["winner"] == 0
    assert message["coat"]["vote"]["votes"] == [{"answer": "182", "votes": 3, "indices": [0, 1, 2]}]
    assert [chain for chunk in chunks if "coat" in chunk for chain in chunk["coat"]["vote"]["chains"]] == chains
    [last] = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert last["delta"]["coat"]["vote"] == message["coat"]["vote"] | {"chains": []}
    begun = [event["response"] for event in events if event["type"] == "response.in_progress"]
    assert [chain for told in begun if "coat" in told for chain in told["coat"]["vote"]["chains"]] == chains
    assert response["coat"]["vote"]["chains"] == events[-1]["response"]["coat"]["vote"]["chains"] == chains


async def test_a_raw_reply_may_be_voted_for() -> None:
    vote = {"samples": 2, "stop_when_decided": False}
    body = {"model": "nano", "messages": [QUESTION], "max_tokens": 400, "coat": {"parse": False, "vote": vote}}
    async with served() as server:
        write(server, THOUGHT + ANSWER)
        reply = (await server.http.post("/v1/chat/completions", json=body)).json()
    message = reply["choices"][0]["message"]
    assert message["content"] == THOUGHT + ANSWER
    assert message["coat"].keys() == {"vote"}
    assert message["coat"]["vote"]["votes"] == [{"answer": "182", "votes": 2}]


async def test_a_vote_over_responses_stops_when_it_is_decided() -> None:
    async with served() as server:
        server.core.holds = True
        asked = {"model": "nano", "input": "1 + 1", "coat": {"vote": {"samples": 3}}}
        asking = asyncio.create_task(server.http.post("/v1/responses", json=asked))
        await until_async(lambda: len(server.core.requests) == 3, "three samples to be asked for")
        write(server, THOUGHT + ANSWER)
        for request in server.core.requests[:2]:
            server.core.answer(request)
        reply = (await asking).json()
        await until_async(lambda: not server.engine.output_processor.request_states, "the third to be stopped")
    assert reply["coat"]["vote"]["counted"] == 2
    assert reply["coat"]["vote"]["votes"] == [{"answer": "182", "votes": 2}]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_a_raw_vote_counts_all_its_samples(path: str) -> None:
    asked = {"model": "nano", "coat": {"parse": False, "vote": {"samples": 2, "stop_when_decided": False}}}
    asked |= {"input": QUESTION["content"]} if path == "/v1/responses" else {"messages": [QUESTION]}
    async with served() as server:
        write(server, THOUGHT + ANSWER)
        reply = (await server.http.post(path, json=asked)).json()
    coat = reply["coat"] if path == "/v1/responses" else reply["choices"][0]["message"]["coat"]
    used = reply["usage"]
    assert coat.keys() == {"vote"}
    assert coat["vote"]["votes"] == [{"answer": "182", "votes": 2}]
    assert (
        used.get("output_tokens", used.get("completion_tokens")) == coat["vote"]["tokens"] == 2 * len(tokens(THOUGHT + ANSWER)) + 2
    )


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_vote_for_which_there_is_no_room_is_refused(streamed: bool) -> None:
    """Before its stream begins, so that clients ask again."""
    asked = {"model": "nano", "stream": streamed, "coat": {"vote": {"samples": 3}}}
    async with served() as server:
        write(server, THOUGHT + ANSWER)
        server.engine.scheduler_config.max_num_queued_reqs = 2
        for path, more in (("/v1/responses", {"input": "1 + 1"}), ("/v1/chat/completions", {"messages": [QUESTION]})):
            reply = await server.http.post(path, json=asked | more)
            assert (reply.status_code, reply.json()["error"]["code"]) == (429, 429)
            assert "the queue is full (engine.max_num_queued_reqs=2)" in reply.json()["error"]["message"]


async def test_a_raw_response_has_no_other_special_token_and_its_format_at_once() -> None:
    async with served() as server:
        write(server, THOUGHT + ANSWER)
        whole, events = await responses(server, coat={"parse": False})
        write(server, '{"x": 1}')
        schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
        formatted, _ = await responses(server, coat={"parse": False}, text={"format": schema})
        [*_, request] = server.core.requests
    assert [item["type"] for item in whole["output"]] == ["message"]
    assert whole["output"][0]["content"][0]["text"] == THOUGHT + ANSWER
    assert "coat" not in whole
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == THOUGHT + ANSWER
    assert formatted["output"][0]["content"][0]["text"] == '{"x": 1}'
    assert request.reasoning_ended


@pytest.mark.parametrize(
    ("coat", "words"),
    [
        ({"reflections": 1}, ["coat.reflections", "not permitted"]),
        ({"vote": {"samples": 1}}, ["coat.vote.samples", "1"]),
        ({"eta": True}, ["coat.eta is told in a stream"]),
    ],
)
async def test_what_a_response_cannot_have_is_named(coat: dict[str, Any], words: list[str]) -> None:
    async with served() as server:
        reply = await server.http.post("/v1/responses", json={"model": "nano", "input": "1 + 1", "coat": coat})
    assert reply.status_code == 400
    assert all(word in reply.json()["error"]["message"] for word in words)


async def test_a_model_without_chains_has_no_coat() -> None:
    async with served(engine__reasoning_parser="qwen3") as server:
        for path, asked in (("/v1/responses", {"input": "1 + 1"}), ("/v1/chat/completions", {"messages": [QUESTION]})):
            limited, plain = [
                await server.http.post(path, json={"model": "nano", "coat": coat} | asked) for coat in ({"max_reflections": 1}, {})
            ]
            assert limited.status_code == 400
            assert "writes no Chain of Action-Thought; leave coat out" in limited.json()["error"]["message"]
            assert plain.status_code == 200


async def test_every_token_of_a_chain_is_counted_once() -> None:
    def counted() -> dict[str, float]:
        names = ("continue", "reflect", "explore", "answer")
        return {name: metrics.COAT_TOKENS.labels("nano", name)._value.get() for name in names}

    bodies: list[dict[str, Any]] = [
        {},
        {"n": 2},
        {"coat": {"vote": {"samples": 3, "stop_when_decided": False}}},
        {"max_tokens": 30},
    ]
    async with served() as server:
        write(server, THOUGHT + ANSWER)
        for body in bodies:
            for streamed in (False, True):
                before = counted()
                asked = {"model": "nano", "messages": [QUESTION], "max_tokens": 400} | body
                reply = (await server.http.post("/v1/chat/completions", json=asked)).json()
                usage = reply["usage"]
                if streamed:
                    before = counted()
                    await stream(server, "/v1/chat/completions", asked)
                grown = {name: value - before[name] for name, value in counted().items()}
                assert sum(grown.values()) == usage["completion_tokens"]
                assert usage["completion_tokens"] - grown["answer"] == usage["completion_tokens_details"]["reasoning_tokens"]
