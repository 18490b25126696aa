"""What vLLM's endpoints answered wrongly: in its real app on a scripted core."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.support.in_process import Core, Server, served

pytestmark = pytest.mark.asyncio(loop_scope="module")
CONTEXT = 4096


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with served() as server:
        yield server


async def test_one_model(server: Server) -> None:
    gpt = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=server.http)
    listed = (await gpt.models.list()).data[0]
    found = await gpt.models.retrieve("nano")
    assert (found.id, found.object, found.owned_by) == (listed.id, listed.object, listed.owned_by)
    with pytest.raises(openai.NotFoundError, match="`other/nano` does not exist"):
        await gpt.models.retrieve("other/nano")


async def test_models_show_no_path_of_the_host(server: Server) -> None:
    assert (await server.http.get("/v1/models")).json()["data"][0]["root"] == "nano"


@pytest.mark.parametrize(("tokens", "status"), [([0, 1023], 200), ([5, 1024], 400), ([10**6], 400), ([], 200)])
async def test_what_is_no_token_has_no_text(server: Server, tokens: list[int], status: int) -> None:
    answer = await server.http.post("/detokenize", json={"model": "nano", "tokens": tokens})
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["param"] == "tokens"
        assert f"{tokens[-1]} is no token" in answer.json()["error"]["message"]


async def test_a_prompt_and_messages_are_not_both_tokenized(server: Server) -> None:
    body = {"model": "nano", "prompt": "1", "messages": [{"role": "user", "content": "1"}]}
    answer = await server.http.post("/tokenize", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


@pytest.mark.parametrize("asked", [{"max_tokens": 1}, {}])
async def test_a_full_context(server: Server, asked: dict[str, int]) -> None:
    question = {"model": "nano", "prompt": [5] * CONTEXT} | asked
    answer = await server.http.post("/v1/completions", json=question)
    assert answer.status_code == 400
    assert "fills the model's context of 4096 tokens" in answer.json()["error"]["message"]
    body = {"role": "user", "content": "7" * (CONTEXT - await empty(server))}
    answer = await server.chat(body, **asked)
    assert answer.status_code == 400
    assert "fills the model's context of 4096 tokens" in answer.json()["error"]["message"]
    question["prompt"] = [5] * (CONTEXT - 1)
    assert (await server.http.post("/v1/completions", json=question)).status_code == 200


async def empty(server: Server) -> int:
    """Return how many tokens the template adds to a message; a digit is one."""
    body = {"model": "nano", "messages": [{"role": "user", "content": "7"}]}
    return int((await server.http.post("/tokenize", json=body)).json()["count"]) - 1


class Raising(Core):
    """Fails when it is given the last of a request's samples, for a reason that nobody foresaw."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.added = self.samples = 0

    async def add_request_async(self, request: Any) -> None:
        self.holds = True
        self.added += 1
        if self.added == self.samples:
            raise OverflowError("integer out of range")
        await super().add_request_async(request)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "samples"),
    [
        ("/v1/chat/completions", {}, 1),
        ("/v1/chat/completions", {"n": 2}, 2),
        ("/v1/chat/completions", {"n": 2}, 1),
        ("/v1/chat/completions", {"coat": {"vote": {"samples": 3}}}, 2),
        ("/v1/completions", {"n": 2}, 2),
        ("/v1/completions", {}, 1),
        ("/v1/responses", {}, 1),
        ("/v1/messages", {"max_tokens": 3}, 1),
    ],
)
async def test_a_request_that_fails_on_its_way_leaves_nothing(path: str, body: dict[str, Any], samples: int, stream: bool) -> None:
    async with served(Raising) as server:
        server.core.samples = samples  # type: ignore[attr-defined]
        question = {"messages": [{"role": "user", "content": "1"}], "prompt": "1", "input": "1"}
        keep = {"/v1/completions": "prompt", "/v1/responses": "input"}.get(path, "messages")
        answer = await server.http.post(path, json={"model": "nano", "stream": stream, keep: question[keep]} | body)
        assert "error" in answer.text
        assert answer.status_code in (200, 500)
        assert server.engine.get_num_unfinished_requests() == 0
        assert not server.engine.output_processor.external_req_ids


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value"), [("seed", "9" * 20), ("seed", 1e30), ("top_k", 1e25), ("min_tokens", "9" * 25), ("stop_token_ids", [1e20])]
)
async def test_a_number_that_does_not_fit_into_the_request(server: Server, field: str, value: Any, stream: bool) -> None:
    answer = await server.chat({"role": "user", "content": "1"}, stream=stream, **{field: value})
    assert answer.status_code == 400, answer.text
    assert field in answer.json()["error"]["message"]
    assert server.engine.get_num_unfinished_requests() == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_an_empty_list_of_tools_is_none(server: Server, path: str, stream: bool) -> None:
    question = {"input": "1"} if "responses" in path else {"messages": [{"role": "user", "content": "1"}], "max_tokens": 9}
    auto = {"type": "auto"} if "messages" in path else "auto"
    answer = await server.http.post(path, json={"model": "nano", "tools": [], "tool_choice": auto, "stream": stream} | question)
    assert answer.status_code == 200, answer.text
