"""Formats are checked before a reply begins, by a process that nothing of a request can stop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio
from vllm.sampling_params import StructuredOutputsParams

from deployments.engine import guidance
from deployments.errors import GrammarNotFollowedError, GrammarTooComplexError, OverloadedError
from deployments.ingress import grammars as module
from deployments.ingress.grammars import Grammars
from deployments.reasoning.answers.comparer import NotStarted, Undecided
from tests.support.in_process import Server, served

ENDLESS = {"grammar": 'root ::= "x" root | "y" root'}
LOOK_AROUND = {"type": "string", "pattern": "a(?=b)"}


class Asked:
    """Stands for the process: `answer` says what a check finds."""

    def __init__(self, answer: Callable[[str, str], str | None]) -> None:
        self.answer = answer
        self.specs: list[str] = []

    def ask(self, function: str, kind: str, spec: str) -> str | None:
        assert function == "fault"
        self.specs.append(spec)
        return self.answer(kind, spec)

    def close(self) -> None: ...


@pytest.fixture
def checked() -> Iterator[Callable[..., tuple[Grammars, Asked]]]:
    made: list[Grammars] = []
    guidance.PASSED.clear()

    def make(answer: Callable[[str, str], str | None] = lambda kind, spec: None) -> tuple[Grammars, Asked]:
        asked = Asked(answer)
        made.append(Grammars(asked))  # type: ignore[arg-type]
        return made[-1], asked

    yield make
    for one in made:
        one.close()


def regex(text: str) -> StructuredOutputsParams:
    return StructuredOutputsParams(regex=text)


async def test_each_format_is_checked_once_and_then_known(checked: Any) -> None:
    grammars, asked = checked()
    for _ in range(2):
        await grammars.check(None)
        await grammars.check(regex("a"))
        await grammars.check(StructuredOutputsParams(json={"format": "date"}))
    assert asked.specs[0] == "a"
    assert "pattern" in asked.specs[1], "as the engine gets it"
    assert len(asked.specs) == 2
    assert list(guidance.PASSED) == [("REGEX", "a"), ("JSON", asked.specs[1])], "vLLM does not check them again"


async def test_a_fault_is_told_with_the_part_that_has_it(checked: Any) -> None:
    grammars, asked = checked(lambda kind, spec: "it is bad")
    for _ in range(2):
        with pytest.raises(GrammarNotFollowedError, match="tools: it is bad"):
            await grammars.check(regex("a"), "tools")
    assert asked.specs == ["a"]
    assert not guidance.PASSED


async def test_what_takes_too_long_is_refused_and_not_remembered(checked: Any) -> None:
    def die(kind: str, spec: str) -> None:
        raise Undecided("its process died")

    grammars, asked = checked(die)
    for _ in range(2):
        with pytest.raises(GrammarTooComplexError, match="too much time or memory"):
            await grammars.check(regex("a"))
    assert len(asked.specs) == 2


async def test_without_a_process_vllm_checks(checked: Any) -> None:
    def missing(kind: str, spec: str) -> None:
        raise NotStarted("the process did not start")

    grammars, _ = checked(missing)
    await grammars.check(regex("a"))
    assert not guidance.PASSED


async def test_few_checks_wait(checked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE", 0)
    with pytest.raises(OverloadedError):
        await checked()[0].check(regex("a"))


async def test_few_results_are_kept(checked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    monkeypatch.setattr(guidance, "KEPT", 2)
    grammars, asked = checked()
    for text in ("a", "b", "c", "a"):
        await grammars.check(regex(text))
    assert asked.specs == ["a", "b", "c", "a"]
    assert [spec for _, spec in guidance.PASSED] == ["c", "a"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with served() as server:
        yield server


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "structured_outputs": ENDLESS},
            "structured_outputs",
        ),
        ("/v1/completions", {"prompt": "x", "structured_outputs": ENDLESS}, "structured_outputs"),
        ("/v1/completions", {"prompt": "x", "structured_outputs": {"grammar": "start: <[5]>"}}, "structured_outputs"),
        ("/v1/responses", {"input": "x", "structured_outputs": ENDLESS}, "structured_outputs"),
        (
            "/v1/responses",
            {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": LOOK_AROUND}}},
            "text.format",
        ),
        (
            "/v1/messages",
            {
                "max_tokens": 5,
                "messages": [{"role": "user", "content": "x"}],
                "output_config": {"format": {"type": "json_schema", "schema": LOOK_AROUND}},
            },
            None,
        ),
    ],
    ids=range(6),
)
async def test_no_reply_begins_with_a_format_that_cannot_be_followed(
    server: Server, path: str, body: dict[str, Any], param: str | None, stream: bool
) -> None:
    answer = await server.http.post(path, json={"model": "nano", "stream": stream} | body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith("grammar_not_followed: ")
    assert error.get("param") == param
    assert not server.core.requests, "nothing reaches the engine"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("tools", ["x", {"metadata": "x"}])
async def test_a_field_that_completions_do_not_have_is_nothing_to_them(server: Server, tools: object) -> None:
    answer = await server.http.post("/v1/completions", json={"model": "nano", "prompt": "x", "max_tokens": 2, "tools": tools})
    assert answer.status_code == 200, answer.text
    server.core.requests.clear()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_check_holds_up_nobody(server: Server) -> None:
    """While one format is checked, another request is answered."""
    checking, release = asyncio.Event(), asyncio.Event()
    grammars = server.app.state.grammars

    async def slow(key: Any, part: str) -> None:
        checking.set()
        await release.wait()

    ask, grammars._ask = grammars._ask, slow
    chat = {"model": "nano", "messages": [{"role": "user", "content": "x"}]}
    try:
        waiting = asyncio.create_task(
            server.http.post("/v1/chat/completions", json=chat | {"structured_outputs": {"regex": "new"}})
        )
        await checking.wait()
        assert (await server.http.post("/v1/chat/completions", json=chat)).status_code == 200
        assert not waiting.done()
    finally:
        grammars._ask = ask
        release.set()
    assert (await waiting).status_code == 200
