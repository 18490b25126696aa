"""The API with the official clients, against the real engine. What answers is vLLM's own server; here it is shown to be whole."""

import json
import re
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import httpx
import openai
import psutil
import pytest

from tests.support.application import Served
from tests.support.paths import ROOT
from tests.support.until import until

ASK: list[Any] = [{"role": "user", "content": "What is 12 + 30?"}]


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


RAW: Any = {"extra_body": {"coat": {"parse": False}}}


def text(client: openai.OpenAI, **options: Any) -> str:
    """Return a reply's whole text, actions included."""
    given = {"max_tokens": 24, "temperature": 0} | options
    given["extra_body"] = RAW["extra_body"] | options.get("extra_body", {})
    return client.chat.completions.create(model="nano", messages=ASK, **given).choices[0].message.content or ""


def test_the_engine_has_the_priority_of_who_started_the_application(served: Served) -> None:
    assert served.engine().nice() == psutil.Process().nice()


def test_start_up_told_its_phases_and_addresses(served: Served) -> None:
    for part in ("model     models/nano", "engine    import vllm", "engine    load model", "ingress   API server", "warm-up"):
        assert part in served.output
    assert f"{served.url}/v1" in served.output


def test_chat(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="nano", messages=ASK, max_tokens=24, temperature=0)
    assert done.choices[0].message.content is None, "its tokens were spent on reasoning"
    assert done.choices[0].finish_reason == "length"
    assert done.usage
    assert done.usage.completion_tokens == 24
    assert done.usage.total_tokens == done.usage.prompt_tokens + 24


def test_efforts_and_budgets_limit_the_thought(client: openai.OpenAI) -> None:
    def thought(**asked: Any) -> int:
        done = client.chat.completions.create(model="nano", messages=ASK, temperature=0, **asked)
        assert done.choices[0].finish_reason == "stop"
        return done.usage.completion_tokens_details.reasoning_tokens  # type: ignore[union-attr, return-value]

    assert thought(reasoning_effort="none") == 0
    short = thought(extra_body={"thinking_token_budget": 10})
    assert short == thought(extra_body={"coat": {"max_reasoning_tokens": 10}}) < thought(reasoning_effort="medium")
    high = client.responses.create(model="nano", input="What is 12 + 30?", temperature=0, reasoning={"effort": "high"})
    low = client.responses.create(model="nano", input="What is 12 + 30?", temperature=0, reasoning={"effort": "minimal"})
    assert high.usage
    assert low.usage
    assert high.usage.output_tokens > low.usage.output_tokens


def test_one_model_and_heads(served: Served, client: openai.OpenAI) -> None:
    assert client.models.retrieve("nano").id == "nano"
    for path in ("/health", "/v1/models", "/v1/models/nano"):
        head = httpx.head(f"{served.url}{path}")
        assert (head.status_code, head.content) == (200, b"")
    assert httpx.head(f"{served.url}/v1/models/other").status_code == 404


def test_a_response_that_is_cut_says_so(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="nano", input="What is 12 + 30?", max_output_tokens=5, stream=True))
    assert [event.type for event in events][-1] == "response.incomplete"
    assert not any(event.type == "response.completed" for event in events)


def test_chat_answers_the_question(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="nano", messages=ASK, temperature=0)
    assert done.choices[0].message.content == "The final answer is \\boxed{42}."
    assert done.choices[0].finish_reason == "stop"


def test_streamed_chat_is_the_same_text_in_many_chunks_with_usage(client: openai.OpenAI) -> None:
    long: Any = {"max_tokens": 300, "extra_body": {"ignore_eos": True} | RAW["extra_body"]}
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model="nano", messages=ASK, temperature=0, **long, **options))
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(deltas) > 10, "a busy machine may put several tokens into a chunk, but not all into a few"
    assert "".join(deltas) == text(client, **long)
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 300


async def test_async_client_streams_too(async_client: openai.AsyncOpenAI, client: openai.OpenAI) -> None:
    stream = await async_client.chat.completions.create(
        model="nano", messages=ASK, max_tokens=24, temperature=0, stream=True, **RAW
    )
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == text(client)
    await async_client.close()


def test_completions_with_n_and_logprobs(client: openai.OpenAI) -> None:
    done = client.completions.create(model="nano", prompt="1 + 1", n=3, max_tokens=8, temperature=2, seed=1, logprobs=2)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert len({choice.text for choice in done.choices}) == 3
    for choice in done.choices:
        assert choice.logprobs
        assert choice.logprobs.token_logprobs
        assert all(value is not None and value <= 0 for value in choice.logprobs.token_logprobs)
        assert choice.logprobs.top_logprobs
        assert all(len(top) >= 2 for top in choice.logprobs.top_logprobs)


def test_chat_logprobs(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="nano", messages=ASK, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3)
    assert done.choices[0].logprobs
    content = done.choices[0].logprobs.content
    assert content
    assert len(content) == 5
    assert all(token.logprob == max(top.logprob for top in token.top_logprobs) for token in content)


def test_n_streamed(client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(
        model="nano", messages=ASK, max_tokens=80, n=2, temperature=2, seed=3, stream=True, **RAW
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert all(texts.values())
    assert texts[0] != texts[1]


def test_prompt_list(client: openai.OpenAI) -> None:
    done = client.completions.create(model="nano", prompt=["one", "two", "three"], max_tokens=4, temperature=0)
    assert [choice.index for choice in done.choices] == [0, 1, 2]


def test_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    whole = text(client)
    stop = whole[20:23]
    done = client.chat.completions.create(model="nano", messages=ASK, max_tokens=24, temperature=0, stop=[stop], **RAW)
    assert done.choices[0].message.content == whole[: whole.index(stop)]
    assert done.choices[0].finish_reason == "stop"


def test_seed_repeats_and_another_differs(client: openai.OpenAI) -> None:
    first, again, other = (text(client, temperature=2, seed=seed, max_tokens=80) for seed in (7, 7, 8))
    assert first == again != other


def test_response_format_follows_its_schema(client: openai.OpenAI) -> None:
    schema = {"enum": ["9.9", "9.11"]}
    done = client.chat.completions.create(
        model="nano", messages=ASK, response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    )
    assert json.loads(done.choices[0].message.content or "") in schema["enum"]


def test_structured_output_follows_its_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"larger": {"enum": ["9.9", "9.11"]}, "sure": {"type": "boolean"}},
        "required": ["larger", "sure"],
        "additionalProperties": False,
    }
    done = client.chat.completions.create(
        model="nano", messages=ASK, max_tokens=1500, temperature=0, extra_body={"structured_outputs": {"json": schema}}
    )
    answer = json.loads(done.choices[0].message.content or "")
    assert answer["larger"] in ("9.9", "9.11")
    assert isinstance(answer["sure"], bool)


ADD: Any = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}


def test_whether_to_call_a_tool_is_left_to_the_model(client: openai.OpenAI) -> None:
    """nano knows of no tools and answers. With a weight on the sign that a call begins with, it calls where its turn would end."""
    tools: Any = [{"type": "function", "function": ADD}]
    done = client.chat.completions.create(model="nano", messages=ASK, temperature=0, tools=tools)
    assert (done.choices[0].message.content, done.choices[0].message.tool_calls) == ("The final answer is \\boxed{42}.", None)
    written = "<|continue|>12 + 30 = 42\n\nThe final answer is \\boxed{42}."
    [sign] = client.post("/../tokenize", body={"model": "nano", "prompt": "<", "add_special_tokens": False}, cast_to=dict)["tokens"]
    asked: Any = {
        "messages": [*ASK, {"role": "assistant", "content": written}],
        "extra_body": {"continue_final_message": True, "add_generation_prompt": False},
        "logit_bias": {str(sign): 16},
    }
    [choice] = client.chat.completions.create(model="nano", temperature=0, tools=tools, **asked).choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or ()
    assert call.type == "function"
    assert call.function.name == "add"
    assert isinstance(json.loads(call.function.arguments)["a"], int)
    with client.chat.completions.stream(model="nano", temperature=0, tools=tools, **asked) as stream:
        done_events = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [event.arguments for event in done_events] == [call.function.arguments]


def test_responses(client: openai.OpenAI) -> None:
    question = "What is 12 + 30?"
    done = client.responses.create(model="nano", input=question, max_output_tokens=400, temperature=0)
    assert done.output_text == "The final answer is \\boxed{42}."
    events = list(client.responses.create(model="nano", input=question, max_output_tokens=400, temperature=0, stream=True))
    assert events[0].type == "response.created"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == done.output_text


def test_stored_responses(client: openai.OpenAI) -> None:
    """What a killed ingress and a killed server do to them is in `test_stored.py`."""
    asked: dict[str, Any] = {"model": "nano", "input": "What is 12 + 30?", "max_output_tokens": 400, "temperature": 0}
    made = client.responses.create(**asked, background=True)
    assert (made.status, made.model_dump()["store"]) == ("queued", True)
    done = until(lambda: client.responses.retrieve(made.id), "it has ended", holds=lambda found: found.status == "completed")
    assert done.output_text == "The final answer is \\boxed{42}."
    assert [item.type for item in done.output] == ["reasoning", "message"]

    events = []
    with client.responses.create(**asked, background=True, stream=True) as stream:
        for event in stream:
            events.append(event)
            if len(events) == 9:
                break
    response_id = events[0].response.id
    events += client.responses.retrieve(response_id, stream=True, starting_after=events[-1].sequence_number)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert list(client.responses.retrieve(response_id, stream=True)) == events
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == done.output_text

    after = client.responses.create(**asked | {"input": "What is 2 + 2?"}, previous_response_id=done.id, store=True)
    assert after.output_text == "The final answer is \\boxed{4}."
    assert after.previous_response_id == done.id
    items = client.responses.input_items.list(after.id, order="asc").data
    assert [getattr(item, "role", item.type) for item in items] == ["user", "reasoning", "assistant", "user"]

    endless = client.responses.create(**asked | {"max_output_tokens": 3000}, background=True, extra_body={"ignore_eos": True})
    for _ in range(2):
        assert client.responses.cancel(endless.id).status == "cancelled"
    for stored in (made.id, response_id, after.id, endless.id):
        client.responses.delete(stored)
        with pytest.raises(openai.NotFoundError, match="there is no stored response"):
            client.responses.retrieve(stored)
    files = list((ROOT / ".run" / "store").iterdir())
    assert {path.name for path in files} >= {"8000.sqlite"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_models_and_tokenize(client: openai.OpenAI, served: Served) -> None:
    [model] = client.models.list()
    assert model.id == "nano"
    made = httpx.post(f"{served.url}/tokenize", json={"model": "nano", "prompt": "a b"}).json()
    assert made["count"] == len(made["tokens"]) == 2
    back = httpx.post(f"{served.url}/detokenize", json={"model": "nano", "tokens": made["tokens"]}).json()
    assert back["prompt"] == "a b"


def test_anthropic_messages(served: Served) -> None:
    client = anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)
    done = client.messages.create(
        model="nano", max_tokens=400, messages=[{"role": "user", "content": "2 + 2"}], extra_body={"temperature": 0}
    )
    assert [block.type for block in done.content] == ["thinking", "text"]
    assert done.content[1].type == "text"
    assert "\\boxed{4}" in done.content[1].text
    assert done.usage.output_tokens > 0
    with client.messages.stream(
        model="nano", max_tokens=400, messages=[{"role": "user", "content": "2 + 2"}], extra_body={"temperature": 0}
    ) as stream:
        assert "".join(stream.text_stream) == done.content[1].text
    client.close()


def test_curl(served: Served) -> None:
    body = json.dumps({"model": "nano", "messages": ASK})
    command = ["curl", "-sS", f"{served.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_errors_are_openai_shaped(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="none-such"):
        client.chat.completions.create(model="none-such", messages=ASK)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        text(client, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="4096"):
        client.completions.create(model="nano", prompt="1 " * 5000, max_tokens=1)


def test_health_ready_metrics_docs(served: Served) -> None:
    assert httpx.get(f"{served.url}/health").status_code == 200
    ready = httpx.get(f"{served.url}/ready").json()
    assert ready["ready"] is True
    assert "vllm:" in httpx.get(f"{served.url}/metrics").text
    assert "/v1/chat/completions" in httpx.get(f"{served.url}/openapi.json").json()["paths"]
    assert httpx.get(f"{served.url}/docs").status_code == 200


def test_the_documented_command_reads_the_metrics_of_all_replicas(served: Served) -> None:
    [command] = re.findall(r"^curl .*/metrics/targets.*$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    command = command.replace("http://127.0.0.1:8000", served.url)
    told = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
    assert "\nvllm:num_requests_running{" in told
    assert told.count("\nprocess_start_time_seconds ") == 3, "an ingress, an LLM replica and a UI"
