"""Direct streams: every byte as vLLM's own way makes it, and everything else about a stream, too."""

import asyncio
import gzip
import itertools
import json
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from transformers import AutoTokenizer
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from vllm.v1.engine import EngineCoreRequest, FinishReason

from deployments.access.keys import digest
from deployments.engine_client.client import ServeEngineClient
from deployments.errors import EngineLostError
from deployments.ingress import outlet
from deployments.ingress.direct import DirectStream
from deployments.ingress.middleware import keepalive
from deployments.ingress.middleware.deadline import _Timed
from deployments.observability import metrics
from deployments.reasoning.parser import CoatReasoningParser
from deployments.transport.channel import Address
from tests.support.paths import NANO
from tests.support.scripted_replicas import ScriptedReplicas
from tests.support.streams import Script, Streams, rounds, streaming
from tests.support.until import until_async

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENIZER = AutoTokenizer.from_pretrained(NANO)
RECORDED = json.loads(gzip.decompress((Path(__file__).parents[1] / "reasoning" / "chains.json.gz").read_bytes()))
CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
REQUESTS, AT_ONCE = 500, 50
QUESTION = {"messages": [{"role": "user", "content": "1 + 1"}]}
PROMPT = {"prompt": "1 + 1", "max_tokens": 1000}
PAIR = ["4 + 4", "5 + 5"]
TEXTS = [
    '<|continue|>A "quote", a \\ and\ttabs.\n<|reflect|>检查 😀 \u2028 \x7f\x1b done\nThe final answer is \\boxed{1}.',
    "<|continue|>x<|reflect|><|reflect|><|explore|>y\n\\[\\boxed{2}\\]<|continue|>z",
    "no action at all: \\boxed{3} </s> <b>",
]
TOKENS = [*TOKENIZER.encode("1 and 2 are 3, and 4 are 7; so it is 7", add_special_tokens=False), TOKENIZER.eos_token_id]
BOTH = pytest.mark.parametrize("direct", [True, False], ids=["direct", "queued"])


def encoded(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def script(rng: random.Random) -> Script:
    """Return a reply: a chain as the model wrote it, one of `TEXTS`, or any tokens at all; mostly a token a step."""
    kind = rng.random()
    if kind < 0.6:
        tokens = list(rng.choice(RECORDED))[:40]
    elif kind < 0.8:
        tokens = encoded(rng.choice(TEXTS))
    else:
        tokens = [rng.randrange(len(TOKENIZER)) for _ in range(rng.randint(1, 40))]
    ends = rng.choice([FinishReason.STOP, FinishReason.LENGTH])
    if ends is FinishReason.STOP and tokens[-1] != TOKENIZER.eos_token_id:
        tokens.append(TOKENIZER.eos_token_id)
    steps, at = [], 0
    while at < len(tokens):
        size = 1 if rng.random() < 0.85 else rng.randint(2, 5)
        steps.append(tokens[at : at + size])
        at += size
    return Script(steps, ends)


def request(rng: random.Random, name: str) -> tuple[str, dict[str, Any]]:
    """Return a path and a body: of plain requests in all their kinds, and of those that are not plain."""
    body: dict[str, Any] = {"request_id": name}
    if rng.random() < 0.4:
        body["stream_options"] = {"include_usage": True} | rng.choice([{}, {}, {"continuous_usage_stats": True}])
    path = rng.choice([CHAT, CHAT, CHAT, COMPLETIONS, RESPONSES, MESSAGES])
    if path == RESPONSES:
        body.pop("stream_options", None)
        schema = {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}}
        body |= {"input": name, "max_output_tokens": 100}
        return path, body | rng.choice(
            [
                *([{}] * 8),
                {"include_reasoning": False},
                {"instructions": "Think."},
                {"stop": ["7"]},
                schema,
                {"coat": {"max_reflections": 1}},
                {"coat": {"parse": False}},
                {"coat": {"eta": True}},
            ]
        )
    if path == MESSAGES:
        body = {"messages": [{"role": "user", "content": f"{name[4:]} + 0"}], "max_tokens": 100}
    if path == COMPLETIONS:
        body |= {"prompt": rng.choice(["1 + 1", encoded("2 + 2 = "), ["3 + 3"], PAIR]), "max_tokens": 100}
        rare = [{"n": 2}, {"stop": ["x"]}, {"return_token_ids": True}, {"response_format": {"type": "json_object"}}]
        return path, body | rng.choice([*([{}] * 8), {"echo": True}, {"skip_special_tokens": False}, {"ignore_eos": True}, *rare])
        return path, body
    chain = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "<|continue|>One and one"}]
    going_on = {"messages": chain, "add_generation_prompt": False, "continue_final_message": True, "echo": rng.random() < 0.5}
    body |= {"messages": [{"role": "user", "content": "1 + 1"}]}
    plain = [
        {"coat": {"parse": False}},
        {"include_reasoning": False},
        {"coat": {"max_reflections": 1}},
        {"ignore_eos": True},
        going_on,
    ]
    rare = [
        {"n": 2},
        {"stop": ["ab", "7"]},
        {"return_token_ids": True},
        {"response_format": {"type": "json_object"}},
        {"coat": {"eta": True}},
    ]
    return path, body | rng.choice([*([{}] * 8), *plain, *plain, *rare])


def choice(chunk: bytes) -> dict[str, Any]:
    """Return the choice of a chunk."""
    [found] = json.loads(chunk[6:])["choices"]
    return dict(found)


def text(chunk: bytes) -> str:
    """Return the text of a chat's chunk; none of an error's."""
    if b'"choices"' not in chunk:
        return ""
    delta = choice(chunk)["delta"]
    return str(delta.get("reasoning") or delta.get("content") or "")


def decoded(tokens: list[int]) -> str:
    return str(TOKENIZER.decode(tokens))


def outcomes() -> dict[str, float]:
    """Return how many requests have ended how."""
    return {how: metrics.REQUESTS.labels("nano", how)._value.get() for how in ("ok", "refused", "failed", "disconnected")}


def samples() -> dict[str, float]:
    """Return all counts of ours, by metric and labels, but those that depend on this machine's speed."""
    found = {}
    for family in (family for metric in metrics.ALL for family in metric.collector.collect()):
        for sample in family.samples:
            if sample.name.endswith(("_total", "_count")) and family.name not in (metrics.ITL.name, "satori_slo_requests"):
                found[f"{sample.name}{sorted(sample.labels.items())}"] = sample.value
    return found


def written(chunk: bytes) -> bytes:
    """Return a chunk without times, and the ids that nobody gives."""
    return re.sub(rb'"(created(?:_at)?|completed_at)": ?\d+(\.\d+)?|(?<=")(?:msg|rs|resp|chatcmpl)[_-][0-9a-f]{16,}', b"-", chunk)


def case(asked: EngineCoreRequest) -> str:
    """Return a request's name, which is in its id, or its number, which is in its prompt."""
    told = f"{asked.external_req_id} {TOKENIZER.decode(asked.prompt_token_ids or [])}"
    found = re.search(r"case(\d+)|(\d+) \+ 0", told)
    assert found, told
    return f"case{found[1] or found[2]}"


async def replies(streams: Streams, names: list[str]) -> dict[str, list[bytes]]:
    """Return the events of each of these requests, which run together, but for the comments of a crowded machine."""
    streams.core.script = lambda asked: script(random.Random(case(asked)))
    asked = {name: await streams.ask(*request(random.Random(name), name)) for name in names}
    reading = {name: asyncio.create_task(reply.read()) for name, reply in asked.items()}
    await streams.core.run(until=lambda: all(task.done() for task in reading.values()))
    await streams.close()
    return {name: [written(event) for event in task.result() if event != keepalive.COMMENT] for name, task in reading.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both() -> AsyncIterator[dict[bool, Streams]]:
    """Two ingresses: with direct streams, and without."""
    async with streaming(False) as queued, streaming(True) as direct:
        yield {False: queued, True: direct}


@pytest_asyncio.fixture(loop_scope="module")
async def streams(both: dict[bool, Streams], direct: bool, taken: list[DirectStream]) -> AsyncIterator[Streams]:
    """One of them, whose requests get a token a step; at its end it has no request left, and took the way that it should."""
    chosen = both[direct]
    chosen.core.script = lambda asked: Script([[token] for token in TOKENS])
    chosen.core.aborted.clear()
    try:
        yield chosen
    finally:
        await chosen.close()
    await until_async(lambda: chosen.server.ongoing.count, "all requests end", holds=lambda count: not count)
    assert chosen.server.engine.get_num_unfinished_requests() == 0
    assert bool(taken) == direct


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[DirectStream]:
    """The streams that took the direct path, once for each time."""
    found: list[DirectStream] = []
    flush = DirectStream.flush
    monkeypatch.setattr(DirectStream, "flush", lambda self: (found.append(self), flush(self))[1])
    return found


@pytest.mark.timeout(240)  # on a crowded machine
async def test_streams_are_the_same_to_the_byte(both: dict[bool, Streams], taken: list[DirectStream]) -> None:
    """Each request's reply, event by event. Most chunks of one ingress took the direct path."""
    names = [f"case{number}" for number in range(REQUESTS)]
    seen: dict[bool, dict[str, list[bytes]]] = {False: {}, True: {}}
    for at in range(0, REQUESTS, AT_ONCE):
        for direct, streams in both.items():
            before = len(taken)
            seen[direct] |= await replies(streams, names[at : at + AT_ONCE])
            assert (len(taken) > before) == direct
    for name in names:
        path, body = request(random.Random(name), name)
        ordered = sorted if body.get("prompt") == PAIR else list  # vLLM has no order between the streams of two prompts
        assert ordered(seen[True][name]) == ordered(seen[False][name]), (path, body)
    assert len(taken) > 0.5 * sum(map(len, seen[True].values()))


@BOTH
async def test_steps_that_arrive_together_are_a_chunk(streams: Streams) -> None:
    """An ingress that lags sends several tokens in a chunk."""
    reply = await streams.ask(CHAT, QUESTION)
    await streams.opened()
    await streams.core.step()
    await streams.core.step(3)
    await streams.core.step()
    chunks = await reply.read(4)
    assert [text(chunk) for chunk in chunks[1:]] == [decoded(TOKENS[:1]), decoded(TOKENS[1:4]), decoded(TOKENS[4:5])]
    await streams.core.run(until=lambda: not streams.core.open)
    assert "".join(map(text, (await reply.read())[:-1])) == decoded(TOKENS[:-1])


@pytest.mark.parametrize("direct", [True])
async def test_tokens_are_not_held_for_ever(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many steps wait."""
    reply = await streams.ask(CHAT, QUESTION)
    await streams.opened()
    await streams.core.step()
    monkeypatch.setattr(streams.server.engine.output_processor, "behind", lambda: True)
    await streams.core.step()
    await streams.core.step()
    assert len(streams.server.engine.output_processor.held) == 2
    monkeypatch.setattr("deployments.ingress.direct.HELD_S", 0.0)
    await streams.core.step()
    assert [text(chunk) for chunk in await reply.read(3)] == ["", decoded(TOKENS[:1]), decoded(TOKENS[1:4])]
    monkeypatch.undo()
    await streams.core.run(until=lambda: not streams.core.open)


@BOTH
async def test_a_client_that_stops_reading_holds_its_stream_back(streams: Streams) -> None:
    """What it has not read is joined to one chunk, and the others are not held up."""
    slow = await streams.ask(CHAT, QUESTION)
    await streams.opened()
    await streams.core.step(1)
    await streams.core.step(1)
    [connection] = streams.connections()
    connection.pause_writing()  # as the transport does when its buffer is full
    quick = await streams.ask(CHAT, QUESTION)
    await streams.opened(2)
    for _ in range(5):
        await streams.core.step()
    assert len(await quick.read(6)) == 6
    connection.resume_writing()
    await rounds()
    await streams.core.run(until=lambda: not streams.core.open)
    texts = [text(chunk) for chunk in await slow.read()]
    assert texts[1:5] == [decoded(TOKENS[:1]), decoded(TOKENS[1:2]), decoded(TOKENS[2:3]), decoded(TOKENS[3:7])]
    assert "".join(texts[:-1]) == decoded(TOKENS[:-1])
    await quick.read()


@BOTH
async def test_an_idle_stream_gets_comments(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepalive.KeepAlive.__init__, "__defaults__", (0.02,))
    streams.server.app.middleware_stack = None  # made again with it
    reply = await streams.ask(CHAT, QUESTION)
    await streams.opened()
    for _ in range(3):
        await streams.core.step()
    chunks = await reply.read(6)
    assert chunks[-1] == keepalive.COMMENT
    await streams.core.step()
    await until_async(lambda: reply.read(len(reply.events) + 1), "a chunk", holds=lambda found: found[-1] != keepalive.COMMENT)
    await streams.core.run(until=lambda: not streams.core.open)
    events = [chunk for chunk in await reply.read() if chunk != keepalive.COMMENT]
    assert "".join(map(text, events[:-1])) == decoded(TOKENS[:-1])
    monkeypatch.undo()
    streams.server.app.middleware_stack = None


@pytest.mark.parametrize("direct", [True])
async def test_few_messages_pass_all_middleware(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those are the first event, and together all that come with the last token."""
    sent: list[bytes] = []
    send = RequestResponseCycle.send
    monkeypatch.setattr(
        RequestResponseCycle, "send", lambda self, message: (sent.append(message.get("body")), send(self, message))[1]
    )
    reply = await streams.ask(CHAT, QUESTION | {"stream_options": {"include_usage": True}})
    await streams.opened()
    await streams.core.run(until=lambda: not streams.core.open)
    first, *chunks, finish, usage, done = await reply.read()
    assert len(chunks) > 2
    assert sent == [None, first, finish + usage + done, b""]


@BOTH
async def test_a_late_stream_ends_with_the_error(streams: Streams) -> None:
    reply = await streams.ask(CHAT, QUESTION, x_request_timeout_s="0.5")
    await streams.opened()
    for _ in range(3):
        await streams.core.step()
    await until_async(lambda: streams.core.aborted, "the request is aborted")
    *chunks, error, done = await reply.read()
    assert "".join(map(text, chunks)) == decoded(TOKENS[:3])
    assert json.loads(error[6:])["error"]["code"] == 504
    assert done == b"data: [DONE]\n\n"


@BOTH
async def test_nothing_is_written_after_the_deadline(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the deadline and the abort, tokens may come."""
    timed: list[_Timed] = []
    serve = _Timed.serve
    monkeypatch.setattr(_Timed, "serve", lambda self, *words: (timed.append(self), serve(self, *words))[1])
    reply = await streams.ask(CHAT, QUESTION, x_request_timeout_s="1000")
    await streams.opened()
    for _ in range(3):
        await streams.core.step()
    timed[0]._end()
    await streams.core.step()
    *chunks, error, _done = await reply.read()
    assert "".join(map(text, chunks)) == decoded(TOKENS[:3])
    assert b'"error"' in error


@BOTH
async def test_a_client_that_leaves_ends_its_request(streams: Streams) -> None:
    before = outcomes()
    reply = await streams.ask(CHAT, QUESTION)
    await streams.opened()
    for _ in range(3):
        await streams.core.step()
    await reply.read(3)
    reply.writer.close()
    await until_async(lambda: streams.core.aborted, "the request is aborted")
    await until_async(outcomes, "it is counted", holds=lambda found: found["disconnected"] == before["disconnected"] + 1)


@BOTH
async def test_a_drain_lets_streams_end_and_refuses_others(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = await streams.ask(CHAT, QUESTION)
    await streams.opened()
    for _ in range(3):
        await streams.core.step()
    monkeypatch.setattr("deployments.ingress.middleware.draining.draining", lambda: True)
    refused = await streams.ask(CHAT, QUESTION)
    await refused.read()
    assert refused.status == 503
    assert streams.server.ongoing.count == 1
    await streams.core.run(until=lambda: not streams.core.open)
    assert "".join(map(text, (await reply.read())[:-1])) == decoded(TOKENS[:-1])


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "queued"])
async def test_a_stream_whose_replica_dies_goes_on_and_is_logged(
    direct: bool, taken: list[DirectStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real engine client moves it; each time its text is the same, and there is one line of it in the log."""
    logged: list[Any] = []
    monkeypatch.setattr("deployments.observability.logs.ended", lambda *words, tokens, seconds: logged.append((words[1], tokens)))
    fleet = Mortal(lambda position: TOKENS[position % 7])

    def core(*_: Any, hooks: Any, ports: Any, **options: Any) -> ServeEngineClient:
        return ServeEngineClient(fleet, "127.0.0.1", hooks=hooks, **options)  # type: ignore[arg-type]

    said = []
    async with streaming(direct, core) as streams:
        for tokens in (Mortal.NEVER, 1, 20, 59):
            fleet.allowed = tokens
            reply = await streams.ask(CHAT, QUESTION | {"max_tokens": 60})
            if tokens < Mortal.NEVER:
                await until_async(lambda: tokens_of(streams), f"{tokens} tokens are here", holds=lambda here, n=tokens: here == [n])
                fleet.kill()
            said.append("".join(map(text, (await reply.read())[:-1])))
        await until_async(lambda: logged, "all are logged", holds=lambda lines: len(lines) == 4)
    fleet.close()
    assert said == [said[0]] * 4
    assert len(said[0]) > 60
    assert logged == [("ended (length)", 60)] * 4
    assert len(fleet.asked) == 4 + 3
    assert bool(taken) == direct


def tokens_of(streams: Streams) -> list[int]:
    """Return how many tokens each open request of the real engine client has."""
    requests: Any = streams.server.core._requests  # type: ignore[attr-defined]
    return [len(opened.tokens) for opened in requests.by_id.values()]


class Mortal(ScriptedReplicas):
    """Replicas of which the first one that a request is on can be killed; the next one goes on."""

    NEVER = 10**6

    def kill(self) -> None:
        self.deadly, self.allowed = 0, self.NEVER

    async def generate(self, group: str, request_id: str, address: Address, encoded: list[bytes], client: str | None) -> None:
        self.deadly = self.NEVER
        await super().generate(group, request_id, address, encoded, client)


@BOTH
async def test_a_request_that_fails_ends_its_stream_with_the_error(streams: Streams) -> None:
    before = outcomes()
    reply = await streams.ask(CHAT, QUESTION)
    await streams.opened()
    for _ in range(3):
        await streams.core.step()
    [name] = streams.core.open
    [asked] = [one for one in streams.core.requests if one.request_id == name]
    streams.core.open.clear()
    streams.core.fail(asked, EngineLostError("gone"))
    chunks = await reply.read()
    assert "".join(map(text, chunks[:-2])) == decoded(TOKENS[:3])
    assert b"engine_lost: gone" in chunks[-2]
    assert chunks[-1] == b"data: [DONE]\n\n"
    await until_async(outcomes, "it is counted", holds=lambda found: sum(found.values()) == sum(before.values()) + 1)


@pytest.mark.parametrize("direct", [True])
async def test_a_reply_that_cannot_be_read_ends_alone(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = [await streams.ask(CHAT, QUESTION) for _ in range(2)]
    await streams.opened(2)
    await streams.core.step()
    step, calls = CoatReasoningParser.step, itertools.count()
    monkeypatch.setattr(CoatReasoningParser, "step", lambda *words: step(*words) if next(calls) else 1 / 0)
    await streams.core.step()
    await until_async(lambda: streams.core.aborted, "one is aborted")
    await streams.core.run(until=lambda: not streams.core.open)
    replies = sorted([await good.read(), await bad.read()], key=len)
    assert b'"error"' in replies[0][-2]
    assert "".join(map(text, replies[1][:-1])) == decoded(TOKENS[:-1])


async def test_statistics_are_the_same(both: dict[bool, Streams], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of vLLM, of each step, and our own."""
    counted = []
    for direct, streams in both.items():
        steps: list[Any] = []
        monkeypatch.setattr(
            streams.server.engine.logger_manager,
            "record",
            lambda *, iteration_stats, steps=steps, **_: steps.append(iteration_stats),
        )
        streams.core.script = lambda asked: Script([[token] for token in TOKENS])
        before = samples()
        replies = [await streams.ask(CHAT, QUESTION), await streams.ask(COMPLETIONS, PROMPT)]
        await streams.opened(2)
        await streams.core.run(until=lambda streams=streams: not streams.core.open)
        for reply in replies:
            await reply.read()
        await until_async(lambda streams=streams: streams.server.ongoing.count, "they have ended", holds=lambda count: not count)
        ended = [one for stats in steps for one in stats.finished_requests]
        ours = {name: value - before.get(name, 0.0) for name, value in samples().items()}
        counted.append(
            (
                [(s.num_generation_tokens, len(s.inter_token_latencies_iter), len(s.time_to_first_tokens_iter)) for s in steps],
                sorted((one.num_generation_tokens, one.num_prompt_tokens, one.finish_reason) for one in ended),
                {name: value for name, value in ours.items() if value},
            )
        )
        assert ended[0].mean_time_per_output_token > 0, direct
    assert counted[0] == counted[1]
    assert counted[0][2]


async def test_another_uvicorn_is_left_alone(both: dict[bool, Streams], taken: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "EXPECTED", (*outlet.EXPECTED, "something_else"))
    streams = both[True]
    streams.core.script = lambda asked: Script([[token] for token in TOKENS])
    reply = await streams.ask(CHAT, QUESTION)
    await streams.opened()
    await streams.core.run(until=lambda: not streams.core.open)
    assert "".join(map(text, (await reply.read())[:-1])) == decoded(TOKENS[:-1])
    assert not taken


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "queued"])
async def test_all_apis_say_what_a_reply_costs(direct: bool, tmp_path: Path) -> None:
    """To a key with prices, whole and streamed."""
    (tmp_path / "keys.yaml").write_text(f"keys: [{{name: a, sha256: {digest('a')}, prompt_price: 1000, completion_price: 20000}}]")
    told = {"stream_options": {"include_usage": True}}
    asked: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        CHAT: (QUESTION, told),
        COMPLETIONS: (PROMPT, told),
        RESPONSES: ({"input": "1 + 1"}, {}),
        MESSAGES: (QUESTION | {"max_tokens": 100}, {}),
    }
    async with streaming(direct, access__keys=str(tmp_path / "keys.yaml")) as streams:
        streams.core.script = lambda _: Script([[token] for token in TOKENS])
        for path, (body, when_streamed) in asked.items():
            for stream in (True, False):
                options = when_streamed if stream else {}
                reply = await streams.ask(path, body | options | {"stream": stream}, x_api_key="a")
                await streams.opened()
                await streams.core.run(until=lambda: not streams.core.open)
                usage = usages(b"".join(await reply.read()))[-1]
                prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
                output = usage.get("completion_tokens", usage.get("output_tokens"))
                assert prompt
                assert output == len(TOKENS)
                assert usage["cost"] == pytest.approx(prompt / 1000 + output / 50), (path, stream)
        assert bool(getattr(streams.server.engine.output_processor, "written", 0)) == direct


def usages(said: bytes) -> list[dict[str, Any]]:
    """Return what is said of usage in a reply's JSON, or its events."""
    after = said.decode().split('"usage":')[1:]
    return [json.JSONDecoder().raw_decode(text)[0] for text in after]
