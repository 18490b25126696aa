"""A vote over the samples of one request, with scripted results in the place of the engine's."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from vllm.outputs import CompletionOutput, RequestOutput

from deployments.observability import metrics
from deployments.reasoning.answers.comparer import Comparer, Process
from deployments.reasoning.ballot import Ballot, progress_chunk
from deployments.reasoning.equality import key
from deployments.reasoning.reading import Vocabulary
from deployments.reasoning.request import Vote

MODEL = "of-this-test"
CONTINUE, OTHER = 8, 7
VOCABULARY = Vocabulary({CONTINUE: "continue"}, {CONTINUE: "<|continue|>"}, lambda ids: "??" * len(ids))
Step = tuple[int, str, int, str | None]
"""A sample's number, its new text, how many tokens that has, and how the sample ends, if it does."""


def ends(sample: int, answer: str | None, tokens: int = 10) -> Step:
    """A whole chain in one step, with this answer."""
    return sample, f"<|continue|>1+1: 2\nThe final answer is \\boxed{{{answer}}}." if answer else "Hm.", tokens, "stop"


def result(*steps: Step) -> RequestOutput:
    def ids(text: str, tokens: int) -> list[int]:
        return [CONTINUE if "<|continue|>" in text else OTHER, *[OTHER] * (tokens - 1)]

    outputs = [
        CompletionOutput(number, text, ids(text, tokens), None, None, finish_reason=end) for number, text, tokens, end in steps
    ]
    return RequestOutput("r", None, [1, 2, 3], None, outputs, finished=False)


class Results:
    """An engine's results, one a step. `taken` of them were read; `closed` tells that the rest was aborted."""

    def __init__(self, *steps: RequestOutput | Exception) -> None:
        self.taken, self.closed = 0, False
        self.stream = self._stream(steps)

    async def _stream(self, steps: tuple[RequestOutput | Exception, ...]) -> AsyncGenerator[RequestOutput, None]:
        try:
            for step in steps:
                self.taken += 1
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            self.closed = True


class InProcess(Comparer):
    """Makes keys without another process. `undecided` are answers that are not read in time the first time."""

    def __init__(self, *undecided: str) -> None:
        self.undecided = list(undecided)

    def prepare(self) -> None:
        pass

    async def key(self, answer: str) -> str:
        if answer in self.undecided:
            self.undecided.remove(answer)
            return f"text {answer}"
        return key(answer)


def ballot(
    samples: int, stop: bool = True, comparer: Comparer | None = None, *, chains: bool = False, thoughts: bool = True
) -> Ballot:
    asked = Vote(samples=samples, stop_when_decided=stop, chains=chains)
    return Ballot(asked, MODEL, comparer or InProcess(), VOCABULARY, thoughts=thoughts)


async def counted(vote: Ballot, results: Results) -> list[dict[str, Any]]:
    return [progress async for progress in vote.count(results.stream)]


async def winner(vote: Ballot) -> CompletionOutput:
    [reply] = [reply async for reply in vote.winner()]
    assert reply.finished
    [output] = reply.outputs
    assert output.index == 0
    return output


def metric(which: metrics.Metric, *labels: str) -> float:
    return float(which.labels(MODEL, *labels)._value.get())


async def test_votes_are_counted_as_samples_end() -> None:
    complete = metric(metrics.VOTES, "complete")
    vote = ballot(3, stop=False)
    results = Results(
        result((0, "<|continue|>", 1, None), (1, "<|continue|>", 1, None)),
        result((1, "x\nThe answer is \\boxed{0.5}.", 5, "stop"), (2, "<|continue|>", 1, None)),
        result((0, "y\nThe answer is \\boxed{3}.", 4, "stop")),
        result((2, "z\nThe answer is \\boxed{1/2}.", 6, "stop")),
    )
    progress = await counted(vote, results)
    assert [now["counted"] for now in progress] == [1, 2, 3]
    assert progress[1]["votes"] == [{"answer": "0.5", "votes": 1}, {"answer": "3", "votes": 1}]
    assert vote.result() == {
        "samples": 3,
        "counted": 3,
        "votes": [{"answer": "0.5", "votes": 2}, {"answer": "3", "votes": 1}],
        "decided": True,
        "tokens": 18,
        "tokens_saved": 0,
    }
    won = await winner(vote)
    assert (won.text, len(won.token_ids)) == ("<|continue|>x\nThe answer is \\boxed{0.5}.", 6), "the first with that answer, whole"
    assert metric(metrics.VOTES, "complete") == complete + 1


async def test_a_decided_vote_aborts_the_samples_that_still_run() -> None:
    early, saved = metric(metrics.VOTES, "early"), metric(metrics.VOTE_TOKENS_SAVED)
    vote = ballot(5)
    results = Results(
        result(ends(0, "4", 20), (3, "<|continue|>", 8, None)),
        result(ends(1, "4", 30)),
        result((4, "<|continue|>", 26, None)),
        result(ends(2, "4", 25)),
        result(ends(3, "5", 90)),
    )
    progress = await counted(vote, results)
    assert [now["decided"] for now in progress] == [False, False, True]
    assert (results.taken, results.closed) == (4, True)
    assert vote.tokens == 20 + 8 + 30 + 26 + 25
    assert vote.result()["tokens_saved"] == 25 - 8, "to the mean of those that ended; one was longer already"
    assert metric(metrics.VOTES, "early") == early + 1
    assert metric(metrics.VOTE_TOKENS_SAVED) == saved + 17
    assert (await winner(vote)).text == ends(0, "4")[1]


async def test_a_vote_that_may_not_stop_counts_all() -> None:
    vote = ballot(3, stop=False)
    results = Results(*(result(ends(sample, "4")) for sample in range(3)))
    assert [now["decided"] for now in await counted(vote, results)] == [False, True, True]
    assert results.taken == 3
    assert vote.result()["tokens_saved"] == 0


async def test_all_that_end_in_one_step_are_counted() -> None:
    vote = ballot(3)
    assert len(await counted(vote, Results(result(*(ends(sample, "4") for sample in range(3)))))) == 3


async def test_without_an_answer_the_first_sample_is_the_reply() -> None:
    vote = ballot(2)
    await counted(vote, Results(result(ends(1, None)), result((0, "So.", 2, "length"))))
    assert vote.result()["votes"] == []
    won = await winner(vote)
    assert (won.text, won.finish_reason) == ("So.", "length")


async def test_without_a_result_there_is_no_reply() -> None:
    assert [reply async for reply in ballot(2).winner()] == []


async def test_results_that_end_before_any_sample_are_no_early_stop() -> None:
    early, complete = metric(metrics.VOTES, "early"), metric(metrics.VOTES, "complete")
    vote = ballot(2)
    assert await counted(vote, Results(result((0, "So.", 2, None)))) == []
    assert vote.result()["tokens_saved"] == 0
    assert (metric(metrics.VOTES, "early"), metric(metrics.VOTES, "complete")) == (early, complete + 1)


async def test_the_same_text_has_one_key_in_a_vote_also_where_it_was_not_read_in_time_once() -> None:
    vote = ballot(3, stop=False, comparer=InProcess("1/2"))
    await counted(vote, Results(*(result(ends(sample, "1/2")) for sample in range(3))))
    assert vote.result()["votes"] == [{"answer": "1/2", "votes": 3}]


@pytest.mark.parametrize("answer", ["sleep", "allocate", "die"])
async def test_an_answer_that_cannot_be_read_is_its_text_and_the_vote_goes_on(answer: str) -> None:
    comparer = Comparer(Process("tests.support.stand_ins", 0.5))
    vote = ballot(4, stop=False, comparer=comparer)
    await counted(vote, Results(*(result(ends(sample, said)) for sample, said in enumerate([answer, "5", answer, "5"]))))
    comparer.close()
    votes = vote.result()["votes"]
    assert sorted((vote["answer"], vote["votes"]) for vote in votes) == [("5", 2), (answer, 2)]


async def test_a_client_that_leaves_aborts_the_samples() -> None:
    results = Results(result(ends(0, "4")), result(ends(1, "4")))
    counting = ballot(2, stop=False).count(results.stream)
    await anext(counting)
    assert not results.closed
    await counting.aclose()
    assert (results.taken, results.closed) == (1, True)


async def test_an_error_of_the_engine_goes_to_the_caller() -> None:
    results = Results(result(ends(0, "4")), ValueError("the engine is dead"))
    with pytest.raises(ValueError, match="the engine is dead"):
        await counted(ballot(3), results)
    assert results.closed


async def test_log_probabilities_are_the_winners() -> None:
    vote = ballot(2, stop=False)
    first, second = result((0, "a", 1, None)), result((0, " \\boxed{1}", 1, "stop"), ends(1, None))
    first.outputs[0].logprobs, second.outputs[0].logprobs = [{7: "one"}], [{7: "two"}]  # type: ignore[dict-item]
    await counted(vote, Results(first, second))
    assert (await winner(vote)).logprobs == [{7: "one"}, {7: "two"}]


def told(index: int, answer: str | None, finish: str | None = "stop") -> dict[str, Any]:
    """What a client gets of a chain of `ends`, or of one without an answer."""
    if answer is None:
        return {"index": index, "finish_reason": finish, "answer": None, "segments": [], "content": "Hm."}
    segments = [{"action": "continue", "text": "1+1: 2\n", "tokens": 4}]
    content = f"The final answer is \\boxed{{{answer}}}."
    return {"index": index, "finish_reason": finish, "answer": answer, "segments": segments, "content": content}


async def test_a_vote_tells_each_chain_as_it_ends_and_in_the_end_all_of_them() -> None:
    vote = ballot(6, chains=True)
    results = Results(
        result((4, "<|continue|>1+1", 4, None)),
        result(ends(3, "1/2"), ends(1, None)),
        result(ends(0, "7")),
        result(ends(2, "0.5"), (4, ": 2\nThe answer is \\boxed{1", 12, None)),
        result((5, "<|continue|>9 is nine", 9, "length")),
        result(ends(4, "7")),
    )
    progress = await counted(vote, results)
    assert [[chain["index"] for chain in now["chains"]] for now in progress] == [[3], [1], [0], [2], [5]]
    assert progress[0]["chains"] == [told(3, "1/2")]
    assert progress[3]["votes"] == [{"answer": "0.5", "votes": 2, "indices": [2, 3]}, {"answer": "7", "votes": 1, "indices": [0]}]
    outcome = vote.result()
    assert [chain["index"] for chain in outcome["chains"]] == list(range(6))
    assert outcome["chains"][:4] == [told(0, "7"), told(1, None), told(2, "0.5"), told(3, "1/2")]
    cut, stopped = outcome["chains"][5], outcome["chains"][4]
    assert (cut["finish_reason"], cut["answer"], cut["content"]) == ("length", None, "")
    assert (stopped["finish_reason"], stopped["answer"]) == (None, None), "it was stopped in its answer"
    assert (stopped["segments"][0]["text"], stopped["content"]) == ("1+1: 2\n", "The answer is \\boxed{1")
    won = await winner(vote)
    assert won.text == ends(outcome["winner"], outcome["votes"][0]["answer"])[1]
    last = vote.with_usage(chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    [choice] = json.loads(last.removeprefix("data: "))["choices"]
    assert choice["delta"]["coat"]["vote"] == outcome | {"chains": [stopped]}, "the progress has told the others"


async def test_a_sample_without_a_token_is_a_chain_that_was_stopped() -> None:
    vote = ballot(3, chains=True)
    await counted(vote, Results(result(ends(0, "4")), result(ends(1, "4"))))
    assert vote.result()["chains"][2] == {"index": 2, "finish_reason": None, "answer": None, "segments": [], "content": ""}


async def test_chains_are_told_only_if_asked_for_and_without_thoughts_where_those_are_not_shown() -> None:
    steps = [result(ends(0, "4")), result(ends(1, "4"))]
    plain = ballot(2, stop=False)
    assert all("chains" not in now and "indices" not in now["votes"][0] for now in await counted(plain, Results(*steps)))
    assert plain.result().keys() == {"samples", "counted", "votes", "decided", "tokens", "tokens_saved"}
    vote = ballot(2, stop=False, chains=True, thoughts=False)
    await counted(vote, Results(*steps))
    assert [chain.keys() for chain in vote.result()["chains"]] == [{"index", "finish_reason", "answer", "content"}] * 2


def chunk(**fields: Any) -> str:
    return f"data: {json.dumps(fields, separators=(',', ':'))}\n\n"


async def test_the_last_chunk_carries_the_outcome_and_the_usage_is_of_all_samples() -> None:
    vote = ballot(2, stop=False)
    await counted(vote, Results(result(ends(0, "4", 10)), result(ends(1, "4", 20))))
    for same in (chunk(choices=[{"index": 0, "delta": {"content": "4"}, "finish_reason": None}]), "data: [DONE]\n\n"):
        assert vote.with_usage(same) == same
    last = vote.with_usage(chunk(choices=[{"index": 0, "delta": {"coat": {"answer": "4"}}, "finish_reason": "stop"}]))
    [choice] = json.loads(last.removeprefix("data: "))["choices"]
    assert choice["delta"]["coat"] == {"answer": "4", "vote": vote.result()}
    usage = vote.with_usage(chunk(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 10, "total_tokens": 13}))
    assert usage.endswith("\n\n")
    assert json.loads(usage.removeprefix("data: "))["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 30,
        "total_tokens": 33,
        "completion_tokens_details": {"reasoning_tokens": 2 * 4},  # of both: the action, and "1+1: 2" at two characters a token
    }


def test_progress_is_a_chunk_without_choices() -> None:
    text = progress_chunk("chatcmpl-1", "nano", {"counted": 1, "votes": [{"answer": "½", "votes": 1}]})
    assert text.startswith("data: {")
    assert text.endswith("}\n\n")
    made = json.loads(text.removeprefix("data: "))
    assert (made["id"], made["model"], made["object"], made["choices"]) == ("chatcmpl-1", "nano", "chat.completion.chunk", [])
    assert made["coat"] == {"vote": {"counted": 1, "votes": [{"answer": "½", "votes": 1}]}}
