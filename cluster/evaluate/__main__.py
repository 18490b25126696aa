"""Accuracy of a served model on a benchmark, over any endpoint with OpenAI's API. Prints a table and writes JSON.

Each sample is a separate request, so that the server's usage is that of one reply. Finished replies are kept in OUT.jsonl, beside
the JSON file. A run that was interrupted, or had failed requests, continues from there when it is started again. The exit status is
0, or 1 if requests failed, 2 if the run could not start, 130 if it was interrupted. With `--batch` the server gets all requests as
batches (OpenAI's `/v1/batches`), works on them in the time that others leave it, and goes on while this command does not run.

    python -m cluster.evaluate gsm8k [--url http://127.0.0.1:8000/v1] [--samples 8 --temperature 0.6] [--out FILE.json] [--help]
"""

import argparse
import asyncio
import contextlib
import functools
import json
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import openai
from tqdm import tqdm

from cluster.evaluate import batches, benchmarks, judge, scores
from cluster.evaluate.benchmarks import BENCHMARKS, MODELS, Question
from cluster.evaluate.scores import ACTIONS, Judged, Marked
from deployments.errors import SatoriError
from deployments.reasoning import coat
from deployments.settings import ROOT

HEAD = b'{"settings": '
"""The first bytes of a file of replies."""
TIMEOUT_S = 3600
"""The time limit of one reply. A full server may take long, and giving up a request wastes the work done on it."""


class EvaluationError(SatoriError):
    """The run cannot start: there is no server, or the file of replies belongs to another run. The message says which."""

    code: ClassVar[str] = "invalid_evaluation"


class ReplyError(SatoriError):
    """A response without a reply, or with one that the server broke off."""

    status: ClassVar[int] = 502
    code: ClassVar[str] = "bad_reply"
    retryable: ClassVar[bool] = True


@dataclass(frozen=True)
class Settings:
    """The settings of a run. All replies in a file have the same ones. `data` is a digest of all questions."""

    benchmark: str
    model: str
    temperature: float
    max_tokens: int
    samples: int
    seed: int
    data: str


@dataclass(frozen=True)
class Reply:
    """A finished reply. `text` is reasoning, then content; `box` is its answer.

    `tokens` and `actions` are None if the server does not tell them.
    """

    question: str
    sample: int
    text: str
    finish_reason: str
    tokens: int | None
    actions: dict[str, int] | None
    box: str | None


@dataclass(frozen=True)
class Run:
    """A run that has ended: the JSON file to write, all replies of the file beside it, and the failed requests by message."""

    settings: Settings
    out: Path
    replies: dict[tuple[str, int], Reply]
    failures: Counter[str]


def parse(body: Any, question: str, sample: int) -> Reply:
    """Return the reply in the JSON of a response to a chat or a completion. Raises ReplyError if there is no complete one.

    The answer and the actions are those of `message.coat` if the server sends them, else those in the text.
    """
    try:
        choice = body["choices"][0]
        message = choice.get("message") or {"content": choice["text"]}
        reasoning = message.get("reasoning") or message.get("reasoning_content") or ""
        text, reason = reasoning + (message.get("content") or ""), choice.get("finish_reason")
        told = message.get("coat") or {}
        box = told["answer"] if "answer" in told else box_in(text)
        segments = told.get("segments")
        found = [str(segment["action"]).strip("<|>") for segment in segments] if segments is not None else None
        tokens = (body.get("usage") or {}).get("completion_tokens")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ReplyError(f"the response is no completion: {type(error).__name__} {error}") from error
    if reason not in ("stop", "length"):
        raise ReplyError(f"the server broke a reply off with finish_reason {reason!r}")
    counts = {action: found.count(action) if found is not None else text.count(f"<|{action}|>") for action in ACTIONS}
    return Reply(question, sample, text, reason, tokens, counts if found is not None or any(counts.values()) else None, box)


def box_in(text: str) -> str | None:
    """Return the answer in a reply's text: in a chain the one that was not taken back, else the last box."""
    return coat.answer(coat.read(text)) if any(action in text for action in coat.ACTIONS) else coat.boxed(text)


class Journal:
    """The replies of a run in a file: the settings in the first line, then a reply or the id of a batch in each.

    Each line is flushed at once.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        """Read the file if there is one, drop an incomplete last line, and open it for appending.

        Raises EvaluationError if the file is of a run with other settings, which it names, or is no file of replies.
        """
        self.replies: dict[tuple[str, int], Reply] = {}
        self.batches: list[str] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.read_bytes() if path.exists() else b""
        if not there.startswith(HEAD[: len(there)]):
            raise EvaluationError(f"{path} holds no replies of an evaluation: give another --out")
        whole = there[: there.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            self._read(f"{path}:{number}", json.loads(line), settings)
        self._file = path.open("ab")
        self._file.truncate(len(whole))
        if not whole:
            self._write({"settings": asdict(settings)})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def add(self, reply: Reply) -> None:
        """Keep a reply, and write it to the file."""
        self.replies[reply.question, reply.sample] = reply
        self._write(asdict(reply))

    def add_batch(self, batch: str) -> None:
        """Note a batch that the server works on."""
        self.batches.append(batch)
        self._write({"batch": batch})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def _read(self, place: str, line: dict[str, Any], settings: Settings) -> None:
        if "batch" in line:
            self.batches.append(line["batch"])
            return
        if "settings" not in line:
            reply = Reply(**{"box": box_in(line["text"])} | line)  # older files have no box
            self.replies[reply.question, reply.sample] = reply
            return
        for key, value in asdict(settings).items():
            if (old := line["settings"].get(key)) != value:
                advice = "give another --out, or remove the file"
                raise EvaluationError(f"{place}: replies with {key} {old!r}, but this run has {key} {value!r}; {advice}")


def request(settings: Settings, question: Question, sample: int) -> tuple[str, dict[str, Any]]:
    """Return the endpoint below /v1 and the body of a request.

    It asks for special tokens in the text, since they are the actions. The server parses those in a raw prompt.
    """
    body: dict[str, Any] = {
        "model": settings.model,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "skip_special_tokens": False,
    }
    if settings.temperature > 0:
        body["seed"] = settings.seed + sample
    body |= {"prompt": question.prompt} if question.raw else {"messages": [{"role": "user", "content": question.prompt}]}
    return "/completions" if question.raw else "/chat/completions", body


async def ask(client: openai.AsyncOpenAI, settings: Settings, question: Question, sample: int) -> Reply:
    """Return one reply. Raises openai.OpenAIError after the client's retries, and ReplyError."""
    path, body = request(settings, question, sample)
    # As text: the client's types lack the fields that servers add, and do not allow their finish reasons.
    response = await client.post(path, cast_to=str, body=body)
    try:
        return parse(json.loads(response), question.id, sample)
    except json.JSONDecodeError as error:
        raise ReplyError(f"the response is no JSON: {error}") from error


def bar_of(settings: Settings, total: int, there: int) -> Any:
    """Return the bar of progress of a run that has so many of its replies."""
    return tqdm(total=total, initial=there, unit="reply", desc=settings.benchmark, disable=None)


async def collect(
    client: openai.AsyncOpenAI, settings: Settings, questions: Sequence[Question], concurrency: int, journal: Journal
) -> Counter[str]:
    """Request the replies that the journal lacks, at most `concurrency` at a time; return the failed requests by message."""
    wanted = [(question, sample) for question in questions for sample in range(settings.samples)]
    missing = [(question, sample) for question, sample in wanted if (question.id, sample) not in journal.replies]
    failures, left = Counter[str](), iter(missing)
    with bar_of(settings, len(wanted), len(wanted) - len(missing)) as bar:

        async def worker() -> None:
            for question, sample in left:
                try:
                    journal.add(await ask(client, settings, question, sample))
                except (openai.OpenAIError, ReplyError) as error:
                    failures[str(error)] += 1
                    bar.set_postfix(failed=failures.total())
                bar.update()

        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(missing))):
                group.create_task(worker())
    return failures


async def collect_by_batches(
    client: openai.AsyncOpenAI, settings: Settings, questions: Sequence[Question], journal: Journal
) -> Counter[str]:
    """Have the server work on what the journal lacks; return the failed requests by message.

    Batches of an earlier run that the journal names are waited for first. Raises EvaluationError when the server makes no batch.
    """
    wanted = {f"{sample}:{question.id}": (question, sample) for question in questions for sample in range(settings.samples)}
    failures: Counter[str] = Counter()

    def missing() -> dict[str, tuple[Question, int]]:
        return {name: one for name, one in wanted.items() if (one[0].id, one[1]) not in journal.replies}

    def take(name: str, status: int, body: Any) -> None:
        if name not in wanted:
            return
        question, sample = wanted[name]
        try:
            if status != HTTPStatus.OK:
                raise ReplyError(f"status {status}: {body}")
            journal.add(parse(body, question.id, sample))
        except ReplyError as error:
            failures[str(error)] += 1

    try:
        for batch in journal.batches:
            await batches.finish(client, batch, take, lambda lines: None)
        failures.clear()  # they are asked again
        left, earlier = missing(), len(journal.batches)
        lines = dict[str, list[dict[str, Any]]]()
        for name, (question, sample) in left.items():
            path, body = request(settings, question, sample)
            url = f"/v1{path}"
            lines.setdefault(url, []).append({"custom_id": name, "method": "POST", "url": url, "body": body})
        with bar_of(settings, len(wanted), len(wanted) - len(left)) as bar:
            await batches.start(client, lines, journal.add_batch)
            for batch in journal.batches[earlier:]:
                for reason in await batches.finish(client, batch, take, bar.update):
                    raise EvaluationError(f"{client.base_url} refused batch {batch}: {reason}")
    except openai.OpenAIError as error:
        raise EvaluationError(f"{client.base_url} does not work on batches: {error}") from error
    if lost := len(missing()) - failures.total():
        failures["the batch ended before its request was worked on"] += lost
    return failures


def mark(questions: Sequence[Question], samples: int, replies: Mapping[tuple[str, int], Reply]) -> list[Marked]:
    """Return the questions that have replies, judged."""
    marked = []
    for question in tqdm(questions, unit="question", desc="judging", disable=None):
        judged = []
        for reply in (replies[question.id, sample] for sample in range(samples) if (question.id, sample) in replies):
            right = judge.right(question.kind, question.answer, reply.box)
            judged.append(Judged(reply.sample, reply.box, right, reply.finish_reason == "length", reply.tokens, reply.actions))
        # A reply without a box has no vote, unless having none is the answer.
        votes = [one.box for one in judged if one.box is not None or question.kind == "refuse"]
        most = scores.majority(votes, functools.partial(judge.key, question.kind))
        right = bool(votes) and judge.right(question.kind, question.answer, most)
        if judged:
            marked.append(Marked(question.id, question.group, question.answer, right, tuple(judged)))
    return marked


async def run(options: argparse.Namespace, questions: Sequence[Question]) -> Run:
    """Request all replies that are missing. Raises EvaluationError if the run cannot start."""
    key = os.environ.get(options.api_key_env) if options.api_key_env else "none"
    if key is None:
        raise EvaluationError(f"the environment has no {options.api_key_env}, which --api-key-env names")
    async with openai.AsyncOpenAI(base_url=options.url, api_key=key, timeout=TIMEOUT_S) as client:
        settings = Settings(
            benchmark=options.benchmark,
            model=options.model or await first_model(client),
            temperature=options.temperature,
            max_tokens=options.max_tokens,
            samples=options.samples,
            seed=options.seed,
            data=benchmarks.digest(questions),
        )
        name = re.sub(r"[^\w.-]+", "-", f"{settings.benchmark}-{settings.model}")
        out = options.out or ROOT / ".run" / "evaluate" / f"{name}.json"
        with contextlib.closing(Journal(out.with_suffix(".jsonl"), settings)) as journal:
            chosen = questions[: options.limit]
            if options.batch:
                failures = await collect_by_batches(client, settings, chosen, journal)
            else:
                failures = await collect(client, settings, chosen, options.concurrency, journal)
    return Run(settings, out, journal.replies, failures)


async def first_model(client: openai.AsyncOpenAI) -> str:
    """Return the first model that the server lists. Raises EvaluationError if there is no server or no model."""
    try:
        models = (await client.models.list()).data
    except openai.OpenAIError as error:
        raise EvaluationError(f"{client.base_url} does not list its models: {error}") from error
    if not models:
        raise EvaluationError(f"{client.base_url} lists no model; name one with --model")
    return models[0].id


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""

    def positive(word: str) -> int:
        if int(word) < 1:
            raise argparse.ArgumentTypeError(f"{word} is not above 0")
        return int(word)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", metavar="BENCHMARK", help=", ".join(benchmarks.NAMES))
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="default: the first that the server lists")
    parser.add_argument("--samples", type=positive, default=1, metavar="K", help="replies to each question: gives pass@k and maj@k")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-tokens", type=positive, default=4096, help="of each reply")
    parser.add_argument("--concurrency", type=positive, default=32, help="requests at a time")
    parser.add_argument(
        "--batch", action="store_true", help="leave the requests to the server, as batches; --concurrency is its own"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N questions")
    parser.add_argument("--seed", type=int, default=0, help="sample i of each question has this seed + i, above temperature 0")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="default: .run/evaluate/BENCHMARK-MODEL.json")
    parser.add_argument("--data", type=Path, metavar="FILE.jsonl", help="the dataset's rows, in place of the Hugging Face hub")
    parser.add_argument("--api-key-env", metavar="NAME", help="the environment variable that holds the API key")
    options = parser.parse_args(arguments)
    if options.out and options.out.suffix != ".json":
        parser.error(f"argument --out: {options.out} does not end in .json")  # beside it lies FILE.jsonl, which must be another
    return options


def report(done: Run, questions: Sequence[Question]) -> None:
    """Judge the replies, write the JSON file and print the table. Do nothing if there is no reply."""
    settings, failures = done.settings, done.failures
    marked = mark(questions, settings.samples, done.replies)
    if not marked:
        return
    total = scores.score(marked, settings.samples)
    names = sorted({one.group for one in marked})
    groups = {
        name: scores.score([one for one in marked if one.group == name], settings.samples) for name in names if len(names) > 1
    }
    known = BENCHMARKS[settings.benchmark].published if settings.benchmark in BENCHMARKS else None
    published = dict(zip(MODELS, known, strict=True)) if known else {}
    result = {
        "settings": asdict(settings),
        "versions": {name: version(name) for name in ("math-verify", "openai")} | {"python": platform.python_version()},
        "score": asdict(total),
        "groups": {name: asdict(group) for name, group in groups.items()},
        "published_percent": published,
        "failed_requests": failures.total(),
        "failures": dict(failures),
        "questions": [asdict(one) for one in marked],
    }
    done.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{settings.benchmark}: {len(marked)} of {len(questions)} questions, {settings.samples} samples each,", end=" ")
    print(f"temperature {settings.temperature:g}, at most {settings.max_tokens} tokens a reply\n")
    print(f"{scores.table(settings.model, published, total, groups)}\n\n{done.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and report; return the exit status."""
    options = options_of(arguments)
    try:
        questions = benchmarks.load(options.benchmark, options.data)
        done = asyncio.run(run(options, questions))
        report(done, questions[: options.limit])
    except SatoriError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate: interrupted; the same command goes on with the replies that are missing", file=sys.stderr)
        return 130
    for message, count in done.failures.most_common(5):
        print(f"evaluate: {count} requests failed: {message}", file=sys.stderr)
    return 1 if done.failures else 0


if __name__ == "__main__":
    sys.exit(main())
