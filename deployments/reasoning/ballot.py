"""A vote over the samples of one chat request, while they are generated: what each has answered, and when to stop."""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vllm.entrypoints.openai.responses.protocol import ResponseUsage
from vllm.entrypoints.serve.engine.protocol import CompletionTokenUsageInfo, UsageInfo
from vllm.outputs import CompletionOutput, RequestOutput

from deployments.observability import metrics, record
from deployments.reasoning.answers.comparer import Comparer
from deployments.reasoning.parser import count
from deployments.reasoning.reading import Reading, Vocabulary
from deployments.reasoning.vote import Election

if TYPE_CHECKING:
    from deployments.reasoning.formatted import FormattedAnswers
    from deployments.reasoning.request import Vote


class Sample:
    """One chain as far as it has been generated."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.ids: list[int] = []
        self.logprobs: list[Any] = []
        self.last: CompletionOutput | None = None

    def add(self, output: CompletionOutput) -> None:
        """Add the next tokens."""
        self.text.append(output.text)
        self.ids += output.token_ids
        self.logprobs += output.logprobs or []
        self.last = output

    @property
    def finished(self) -> bool:
        """Whether the chain has ended."""
        return self.last is not None and self.last.finish_reason is not None

    def read(self, reading: Reading) -> Reading:
        """Return a new reading after what has been generated."""
        reading.feed("".join(self.text), self.ids)
        reading.finish()
        return reading

    def whole(self) -> CompletionOutput:
        """Return the chain as the first and only choice of a reply."""
        assert self.last is not None
        self.last.index = 0
        self.last.text, self.last.token_ids, self.last.logprobs = "".join(self.text), self.ids, self.logprobs or None
        return self.last


class Ballot:
    """Counts the votes of one request's samples. Stops the other samples when the vote is decided, if the request wants that.

    `answers` reads the answers of replies in a format; without it, an answer is what is in the box. Where the request wants all
    chains, those are told without their segments if not `thoughts`.
    """

    def __init__(
        self,
        vote: "Vote",
        model: str,
        comparer: Comparer,
        vocabulary: Vocabulary,
        answers: "FormattedAnswers | None" = None,
        *,
        thoughts: bool = True,
    ) -> None:
        self._stop = vote.stop_when_decided
        self._model, self._vocabulary = model, vocabulary
        self._comparer, self._answers = comparer, answers
        self._keys: dict[str, str] = {}
        self._tells_chains, self._thoughts = vote.chains, thoughts
        self._chains: dict[int, dict[str, Any]] = {}  # by index, where they are to be told
        self._samples = [Sample() for _ in range(vote.samples)]
        self._election = Election(vote.samples)
        self._reply: RequestOutput | None = None
        self._saved = 0
        self._reasoning_tokens = 0

    async def count(self, results: AsyncIterator[RequestOutput]) -> AsyncGenerator[dict[str, Any], None]:
        """Read the results of all samples until the vote is over; yield its progress whenever a sample has ended.

        Where chains are told, each progress has the one that has just ended.

        At its end, this closes `results`, which aborts the samples that still run.
        """
        self._comparer.prepare()
        try:
            async for result in results:
                self._reply = result
                for output in result.outputs:
                    sample = self._samples[output.index]
                    sample.add(output)
                    if output.finish_reason is not None:
                        reading = self._read(sample, result.prompt_token_ids or ())
                        answer = self._answer(sample, reading)
                        await self._add(output.index, answer)
                        self._keep_chain(output.index, reading, answer)
                        yield self._progress() | self._told([output.index])
                if self._stop and self._election.decided:
                    break
        finally:
            await results.aclose()  # type: ignore[attr-defined]  # AsyncLLM.generate is a generator
        done = [len(sample.ids) for sample in self._samples if sample.finished]
        early = bool(done) and len(done) < len(self._samples)
        if early:
            mean = sum(done) / len(done)
            self._saved = round(sum(max(mean - len(sample.ids), 0) for sample in self._samples if not sample.finished))
            metrics.VOTE_TOKENS_SAVED.labels(self._model).inc(self._saved)
        metrics.VOTES.labels(self._model, "early" if early else "complete").inc()
        self._count_tokens()

    def _read(self, sample: Sample, prompt: Sequence[int]) -> Reading:
        new = self._answers.reading(prompt) if self._answers else Reading(self._vocabulary, self._vocabulary.planted(prompt))
        return sample.read(new)

    def _answer(self, sample: Sample, reading: Reading) -> str | None:
        """Return a finished sample's answer; None without one, or with one in a format that is not complete."""
        if self._answers is None:
            return reading.answer
        complete = sample.last is not None and sample.last.finish_reason == "stop"
        return reading.content if complete else None

    async def _add(self, number: int, answer: str | None) -> None:
        """Count a sample. The same text has the same key in all of a vote, also where it was not read in time once."""
        if answer is not None and answer not in self._keys:
            key = self._answers.key(answer) if self._answers else None
            self._keys[answer] = key or await self._comparer.key(answer)
        self._election.add(number, answer, None if answer is None else self._keys[answer])

    @property
    def tokens(self) -> int:
        """Tokens generated by all samples."""
        return sum(len(sample.ids) for sample in self._samples)

    def count_into(self, usage: UsageInfo) -> None:
        """Make a reply's usage that of all samples."""
        usage.completion_tokens = self.tokens
        usage.total_tokens = usage.prompt_tokens + self.tokens
        usage.completion_tokens_details = CompletionTokenUsageInfo(reasoning_tokens=self._reasoning_tokens)

    def count_into_response(self, usage: ResponseUsage) -> None:
        """Make a response's usage that of all samples."""
        usage.output_tokens = self.tokens
        usage.total_tokens = usage.input_tokens + self.tokens
        usage.output_tokens_details.reasoning_tokens = self._reasoning_tokens

    async def winner(self) -> AsyncGenerator[RequestOutput, None]:
        """Yield one result with one choice: a sample with the winning answer, or the first sample if none has an answer."""
        if self._reply is None:
            return
        self._reply.outputs, self._reply.finished = [self._samples[self._winner].whole()], True
        yield self._reply

    @property
    def _winner(self) -> int:
        leader = self._election.leader
        return leader.sample if leader else 0

    def result(self) -> dict[str, Any]:
        """Return the outcome for the client, with the tokens that stopping early saved (an estimate).

        Where chains are told, it has all of them, and the winner's index.
        """
        told = {"winner": self._winner} if self._tells_chains else {}
        return self._progress() | {"tokens": self.tokens, "tokens_saved": self._saved} | told | self._told(sorted(self._chains))

    def _progress(self) -> dict[str, Any]:
        """Return the vote so far; where chains are told, each answer has the indices of those that gave it."""
        progress = self._election.progress()
        if self._tells_chains:
            for entry, group in zip(progress["votes"], self._election.groups, strict=True):
                entry["indices"] = sorted(group.answers)
        return progress

    def _told(self, indices: Iterable[int]) -> dict[str, Any]:
        return {"chains": [self._chains[index] for index in indices]} if self._tells_chains else {}

    def _keep_chain(self, index: int, reading: Reading, answer: str | None) -> None:
        """Keep what the client gets of a chain that has ended or was stopped."""
        if not self._tells_chains:
            return
        last = self._samples[index].last
        chain = {"index": index, "finish_reason": last.finish_reason if last else None, "answer": answer}
        if self._thoughts:
            chain["segments"] = reading.segments()
        self._chains[index] = chain | {"content": reading.content}

    def _count_tokens(self) -> None:
        """Count the tokens of all samples, in the metrics too: those of stopped ones were generated, and their chains are told."""
        prompt = (self._reply.prompt_token_ids if self._reply else None) or ()
        answers = 0
        for index, sample in enumerate(self._samples):
            reading = self._read(sample, prompt)
            if not sample.finished:
                self._keep_chain(index, reading, None)
            answers += count(self._model, reading, complete=sample.finished)
            self._reasoning_tokens += reading.thought_tokens
        if (request := record.current.get()) is not None:
            request.answer_tokens += answers

    def with_usage(self, chunk: str) -> str:
        """Return a chunk of the winner's stream: the last one carries the outcome, and a usage counts the tokens of all samples.

        Of the chains, it has those that were stopped: the progress has told the others.
        """
        if '"finish_reason":null' in chunk or not chunk.startswith("data: {"):
            return chunk
        data = json.loads(chunk.removeprefix("data: "))
        for choice in data["choices"]:
            if choice.get("finish_reason"):
                stopped = [index for index, sample in enumerate(self._samples) if not sample.finished]
                choice["delta"].setdefault("coat", {})["vote"] = self.result() | self._told(stopped)
        if data.get("usage"):
            usage = UsageInfo.model_validate(data["usage"])
            self.count_into(usage)
            data["usage"] = usage.model_dump(exclude_none=True)
        return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def progress_chunk(request_id: str, model: str, progress: dict[str, Any]) -> str:
    """Return a chunk without choices that carries a vote's progress."""
    chunk = {"id": request_id, "object": "chat.completion.chunk", "created": int(time.time()), "model": model, "choices": []}
    return f"data: {json.dumps(chunk | {'coat': {'vote': progress}}, ensure_ascii=False)}\n\n"
