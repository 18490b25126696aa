"""The evaluation as a command, against a small server on loopback that speaks OpenAI's API and answers from a script."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cluster.evaluate import batches, benchmarks
from cluster.evaluate.__main__ import ReplyError, main, parse

Body = dict[str, Any]
Answer = Callable[[Body], Body | web.StreamResponse]


def reply(text: str | None, tokens: int = 10, finish: str = "stop", **message: Any) -> Body:
    """Return the JSON of a chat completion."""
    return {
        "choices": [{"message": {"role": "assistant", "content": text} | message, "finish_reason": finish}],
        "usage": {"completion_tokens": tokens},
    }


def refusal(status: int, **headers: str) -> web.Response:
    """Return an error that the client does not try again."""
    headers = {"x-should-retry": "false"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return web.json_response({"error": {"message": "out of order"}}, status=status, headers=headers)


class Server:
    """A server in a thread of its own: `answer` makes the response to each request, `requests` are the bodies, as they came."""

    def __init__(self) -> None:
        self.requests: list[Body] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.models = ["nano", "other"]
        self.answer: Answer = lambda body: reply("\\boxed{1}")
        self.files: dict[str, str] = {}
        self.uploads: list[str] = []
        self.batches: dict[str, Body] = {}
        self.made: Body | None = {"status": "in_progress"}
        self.lines: int | None = None
        self.together: asyncio.Barrier | None = None
        self.ongoing = self.most = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    async def _start(self) -> str:
        app = web.Application()
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{id}/content", self._content)
        app.router.add_delete("/v1/files/{id}", self._delete)
        app.router.add_post("/v1/batches", self._make_batch)
        app.router.add_get("/v1/batches/{id}", self._batch)
        app.router.add_post("/v1/{path:.*}", self._complete)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _list(self, request: web.Request) -> web.Response:
        data = [{"id": model, "object": "model", "created": 0, "owned_by": "test"} for model in self.models]
        return web.json_response({"object": "list", "data": data})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.paths.append(request.path)
        self.keys.append(request.headers.get("Authorization"))
        self.ongoing += 1
        self.most = max(self.most, self.ongoing)
        try:
            if self.together:
                await self.together.wait()
            answer = self.answer(body)
        finally:
            self.ongoing -= 1
        return web.json_response(answer) if isinstance(answer, dict) else answer

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        name = f"file-{len(self.uploads)}"
        self.uploads.append(self.files.setdefault(name, form["file"].file.read().decode()))  # type: ignore[union-attr]
        return web.json_response({"id": name, "object": "file"})

    async def _content(self, request: web.Request) -> web.Response:
        found = self.files.get(request.match_info["id"])
        return refusal(404) if found is None else web.Response(text=found)

    async def _delete(self, request: web.Request) -> web.Response:
        if self.files.pop(request.match_info["id"], None) is None:
            return refusal(404)
        return web.json_response({"id": request.match_info["id"], "object": "file", "deleted": True})

    async def _make_batch(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if self.made is None:
            return refusal(404)
        name = f"batch_{len(self.batches)}"
        self.batches[name] = {"id": name, "object": "batch", "looks": 0} | self.made | asked
        return web.json_response(self.batches[name])

    async def _batch(self, request: web.Request) -> web.Response:
        """The batch ends when it is looked at for the second time."""
        batch = self.batches.get(request.match_info["id"])
        if batch is None:
            return refusal(404)
        batch["looks"] += 1
        if batch["looks"] == 2 and batch["status"] == "in_progress":
            ends = {True: list[str](), False: list[str]()}
            for line in map(json.loads, self.files[batch["input_file_id"]].splitlines()[: self.lines]):
                assert line["url"] == batch["endpoint"]
                self.requests.append(line["body"])
                answer = self.answer(line["body"])
                good = isinstance(answer, dict)
                response = {"status_code": 200, "body": answer} if good else None
                error = None if good else {"code": "overloaded", "message": "out of order"}
                ends[good].append(json.dumps({"custom_id": line["custom_id"], "response": response, "error": error}))
            for good, kind in ((True, "output"), (False, "error")):
                if ends[good]:
                    batch[f"{kind}_file_id"] = f"{kind}-{batch['id']}"
                    self.files[f"{kind}-{batch['id']}"] = "\n".join(ends[good])
            batch |= {
                "status": "completed",
                "request_counts": {"completed": len(ends[True]), "failed": len(ends[False]), "total": 0},
            }
        return web.json_response(batch)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.close()


def asked(body: Body) -> str:
    """Return the question in a request."""
    return str(body["messages"][0]["content"].rpartition("Problem: ")[2])


def rows(path: Path, answers: dict[str, str]) -> Path:
    """Write questions and their answers as rows of GSM8K."""
    lines = [{"question": question, "answer": f"Easy.\n#### {answer}"} for question, answer in answers.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Command:
    """The command on questions q0, q1, ... whose answers are 0, 1, ..."""

    def __init__(self, server: Server, directory: Path, questions: int) -> None:
        self.data = rows(directory / "rows.jsonl", {f"q{i}": str(i) for i in range(questions)})
        self.out, self.journal = directory / "out.json", directory / "out.jsonl"
        self._url = server.url

    def __call__(self, *words: str) -> int:
        return main(["gsm8k", "--url", self._url, "--data", str(self.data), "--out", str(self.out), *words])

    @property
    def result(self) -> dict[str, Any]:
        return dict(json.loads(self.out.read_text()))

    @property
    def kept(self) -> list[Body]:
        """The replies in the journal."""
        return [json.loads(line) for line in self.journal.read_text().splitlines()[1:]]


def right(body: Body) -> Body:
    return reply(f"It is \\boxed{{{asked(body).removeprefix('q')}}}.")


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "POLL_S", 0.01)


@pytest.mark.usefixtures("quickly")
def test_a_run_by_batches_is_as_any_other_and_leaves_no_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "LINES", 4)
    server.answer = right
    (tmp_path / "alone").mkdir()
    alone, command = Command(server, tmp_path / "alone", 5), Command(server, tmp_path, 5)
    words = ("--samples", "2", "--temperature", "0.5")
    assert alone(*words) == 0
    bodies, server.requests = server.requests, []
    assert command(*words, "--batch") == 0
    assert sorted(map(json.dumps, server.requests)) == sorted(map(json.dumps, bodies))
    assert command.result["score"] == alone.result["score"]
    assert [len(upload.splitlines()) for upload in server.uploads] == [4, 4, 2]
    assert server.files == {}


@pytest.mark.usefixtures("quickly")
def test_lines_that_fail_are_told_and_asked_again(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = Command(server, tmp_path, 4)
    server.answer = lambda body: refusal(503) if asked(body) == "q1" else right(body)
    assert command("--batch") == 1
    assert "1 requests failed: status 0: {'code': 'overloaded', 'message': 'out of order'}" in capsys.readouterr().err
    server.answer, server.requests = right, []
    assert command("--batch") == 0
    assert [asked(body) for body in server.requests] == ["q1"]


@pytest.mark.usefixtures("quickly")
def test_lines_that_a_batch_did_not_come_to_are_failures(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.lines, server.answer = 3, right
    assert Command(server, tmp_path, 4)("--batch") == 1
    assert "1 requests failed: the batch ended before its request was worked on" in capsys.readouterr().err


@pytest.mark.usefixtures("quickly")
def test_an_interrupted_run_goes_on_with_its_batches(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of which is still there; the other's results are gone, and its lines are asked again."""
    command = Command(server, tmp_path, 4)
    server.answer = right
    monkeypatch.setattr(batches, "LINES", 2)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(batches, "finish", lambda *words: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command("--batch")
    del server.batches["batch_1"]
    assert command("--batch") == 0
    assert len(server.requests) == 4
    assert [json.loads(line)["body"]["messages"][0]["content"][-2:] for line in server.uploads[2].splitlines()] == ["q2", "q3"]


@pytest.mark.usefixtures("quickly")
def test_a_batch_that_is_refused_ends_the_run(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = Command(server, tmp_path, 1)
    reason = {"object": "list", "data": [{"code": "invalid", "message": "line 1: no such model"}]}
    server.made = {"status": "failed", "errors": reason}
    assert command("--batch") == 2
    assert "refused batch batch_0: line 1: no such model" in capsys.readouterr().err


def test_a_server_without_batches_is_told(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.made = None
    assert Command(server, tmp_path, 1)("--batch") == 2
    assert "does not work on batches" in capsys.readouterr().err


def test_a_run_asks_judges_prints_and_saves(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = Command(server, tmp_path, 4)
    replies = {
        "q0": reply("<|continue|>a<|reflect|>b<|continue|>\\boxed{0.0}", 30),
        "q1": reply("<|continue|>\\boxed{7}", 10),
        "q2": reply("It is 2.", 20),
        "q3": reply("It is \\boxed{3", 100, "length"),
    }
    server.answer = lambda body: replies[asked(body)]
    assert command("--max-tokens", "100") == 0
    score = command.result["score"]
    assert (score["accuracy"], score["questions"], score["replies"]) == (0.25, 4, 4)
    assert (score["low"], score["high"]) == (pytest.approx(0.0456, abs=1e-4), pytest.approx(0.6994, abs=1e-4))
    assert (score["tokens_mean"], score["tokens_median"], score["tokens_p95"]) == (40, 25, 100)
    assert (score["cut_off"], score["no_box"]) == (0.25, 0.5)
    assert score["actions"] == {"continue": 0.75, "reflect": 0.25, "explore": 0}
    assert score["pass_at"] == {"1": 0.25}
    assert command.result["published_percent"] == {"Satori-Qwen-7B (Round 2)": 93.9, "Qwen-2.5-Math-7B-Instruct": 95.2}
    assert command.result["failed_requests"] == 0
    assert command.result["questions"][1]["answer"] == "1"
    assert command.result["questions"][1]["replies"][0]["box"] == "7"
    printed = capsys.readouterr().out
    assert "gsm8k: 4 of 4 questions, 1 samples each, temperature 0, at most 100 tokens a reply" in printed
    assert "| nano | 25.0 | 4.6 to 69.9 | 40 | 25 | 100 | 25.0 | 50.0 | 0.75 | 0.25 | 0.00 |" in printed
    assert "| Satori-Qwen-7B (Round 2), published | 93.9 |" in printed


def test_requests_are_greedy_chats_with_special_tokens_shown(server: Server, tmp_path: Path) -> None:
    command = Command(server, tmp_path, 1)
    assert command("--max-tokens", "64") == 0
    prompt = benchmarks.load("gsm8k", command.data)[0].prompt
    assert server.paths == ["/v1/chat/completions"]
    assert server.keys == ["Bearer none"]
    assert server.requests == [
        {
            "model": "nano",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 64,
            "temperature": 0.0,
            "skip_special_tokens": False,
        }
    ]


def test_samples_have_seeds_of_their_own_and_give_pass_at_k_and_maj_at_k(server: Server, tmp_path: Path) -> None:
    command = Command(server, tmp_path, 2)
    boxes = {
        "q0": {5: "0", 6: "9", 7: "0.0", 8: "8"},  # the majority is right, written in two ways
        "q1": {5: "1", 6: "2", 7: "4/2", 8: None},  # the majority is wrong; no box has no vote
    }

    def answer(body: Body) -> Body:
        box = boxes[asked(body)][body["seed"]]
        return reply("I do not know." if box is None else f"\\boxed{{{box}}}")

    server.answer = answer
    assert command("--samples", "4", "--temperature", "0.8", "--seed", "5", "--model", "mine") == 0
    assert sorted(body["seed"] for body in server.requests) == [5, 5, 6, 6, 7, 7, 8, 8]
    assert {body["model"] for body in server.requests} == {"mine"}
    score = command.result["score"]
    assert score["accuracy"] == pytest.approx(3 / 8)
    assert score["pass_at"] == {"1": pytest.approx(3 / 8), "2": pytest.approx((5 / 6 + 1 / 2) / 2), "4": pytest.approx(1.0)}
    assert score["majority"] == 0.5
    assert [question["majority"] for question in command.result["questions"]] == [True, False]
    assert [one["sample"] for one in command.result["questions"][0]["replies"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_a_reply_in_parts_counts_whole(server: Server, tmp_path: Path, field: str) -> None:
    command = Command(server, tmp_path, 2)
    parts = {
        "q0": reply("So \\boxed{0}.", **{field: "<|continue|>\\boxed{5}"}),
        "q1": reply(None, finish="length", **{field: "<|reflect|>\\boxed{1}"}),
    }
    server.answer = lambda body: parts[asked(body)]
    assert command() == 0
    assert command.result["score"]["accuracy"] == 1.0
    assert command.result["score"]["actions"] == {"continue": 0.5, "reflect": 0.5, "explore": 0}


def test_actions_come_from_the_segments_where_the_server_sends_them(server: Server, tmp_path: Path) -> None:
    segments = [{"action": action, "text": "", "tokens": 3} for action in ("continue", "explore", "continue", None)]
    server.answer = lambda body: reply("<|reflect|>\\boxed{0}", coat={"segments": segments, "answer": "0"})
    command = Command(server, tmp_path, 1)
    assert command() == 0
    assert command.result["score"]["actions"] == {"continue": 2, "reflect": 0, "explore": 1}


@pytest.mark.parametrize(
    ("message", "box"),
    [
        ({"content": "So \\boxed{1}", "coat": {"segments": [], "answer": "2"}}, "2"),
        ({"content": None, "reasoning": "\\boxed{1}", "coat": {"segments": [], "answer": None}}, None),
        ({"content": "<|continue|>\\boxed{1}<|reflect|>No: \\boxed {2}"}, "2"),
        ({"content": "<|continue|>\\boxed{1}<|reflect|>No,"}, None),
        ({"content": None, "reasoning": "\\boxed{1}"}, "1"),
    ],
)
def test_the_answer_is_read_as_the_server_reads_it(message: dict[str, Any], box: str | None) -> None:
    body = {"choices": [{"message": message, "finish_reason": "stop"}]}
    assert parse(body, "q", 0).box == box


def test_what_the_server_does_not_tell_is_left_open(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.answer = lambda body: {"choices": reply("\\boxed{0}")["choices"]}
    command = Command(server, tmp_path, 1)
    assert command() == 0
    assert (command.result["score"]["tokens_mean"], command.result["score"]["actions"]) == (None, None)
    assert "| nano | 100.0 | 20.7 to 100.0 |  |  |  | 0.0 | 0.0 |  |  |  |" in capsys.readouterr().out


def test_concurrency_is_bounded(server: Server, tmp_path: Path) -> None:
    server.together = asyncio.Barrier(3)  # which opens only when three are there
    command = Command(server, tmp_path, 12)
    server.answer = right
    assert command("--concurrency", "3") == 0
    assert server.most == 3
    assert command.result["score"]["accuracy"] == 1.0


def test_a_limit_takes_the_first_questions(server: Server, tmp_path: Path) -> None:
    command = Command(server, tmp_path, 5)
    server.answer = right
    assert command("--limit", "2") == 0
    assert sorted(map(asked, server.requests)) == ["q0", "q1"]
    assert command("--limit", "4") == 0
    assert sorted(map(asked, server.requests)) == [f"q{i}" for i in range(4)], "the first two were there"
    assert command.result["score"]["questions"] == 4


def test_a_run_whose_server_fails_half_way_goes_on(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = Command(server, tmp_path, 6)
    server.answer = lambda body: right(body) if len(server.requests) <= 3 else refusal(500)
    assert command("--concurrency", "1") == 1
    assert [one["question"] for one in command.kept] == ["gsm8k-0", "gsm8k-1", "gsm8k-2"], "failed requests are no replies"
    assert command.result["failed_requests"] == 3
    assert (command.result["score"]["questions"], command.result["score"]["accuracy"]) == (3, 1.0), "nor wrong answers"
    captured = capsys.readouterr()
    assert "gsm8k: 3 of 6 questions" in captured.out
    assert "3 requests failed: Error code: 500" in captured.err

    server.requests.clear()
    server.answer = right
    assert command("--concurrency", "1") == 0
    assert [asked(body) for body in server.requests] == [f"q{i}" for i in (3, 4, 5)]
    assert (command.result["score"]["questions"], command.result["failed_requests"]) == (6, 0)

    server.requests.clear()
    assert command() == 0, "and is only judged again when all is there"
    assert server.requests == []


def test_a_run_that_gets_no_reply_saves_nothing(server: Server, tmp_path: Path) -> None:
    command = Command(server, tmp_path, 2)
    server.answer = lambda body: refusal(404)
    assert command() == 1
    assert not command.out.exists()


def test_an_interrupted_run_goes_on(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in a shell's background job
    command = Command(server, tmp_path, 20)

    def interrupt(body: Body) -> Body:
        if len(server.requests) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return right(body)

    server.answer = interrupt
    assert command("--concurrency", "1") == 130
    assert "the same command goes on" in capsys.readouterr().err
    kept = len(command.kept)
    assert 2 <= kept < 20, "the third reply and the signal race"
    assert not command.out.exists()
    server.requests.clear()
    server.answer = right
    assert command() == 0
    assert len(server.requests) == 20 - kept
    assert command.result["score"]["accuracy"] == 1.0


@pytest.mark.parametrize("cut", [1, 30])
def test_a_torn_last_line_is_asked_again(server: Server, tmp_path: Path, cut: int) -> None:
    command = Command(server, tmp_path, 3)
    server.answer = right
    assert command("--concurrency", "1") == 0
    command.journal.write_bytes(command.journal.read_bytes()[:-cut])
    server.requests.clear()
    assert command() == 0
    assert [asked(body) for body in server.requests] == ["q2"]
    assert len(command.kept) == 3
    assert command.result["score"]["accuracy"] == 1.0


def test_a_torn_first_line_begins_anew(server: Server, tmp_path: Path) -> None:
    command = Command(server, tmp_path, 1)
    command.journal.write_text('{"settings": {"bench')
    assert command() == 0
    assert len(command.kept) == 1
    assert json.loads(command.journal.read_text().splitlines()[0])["settings"]["benchmark"] == "gsm8k"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "other"], "replies with model 'nano', but this run has model 'other'"),
        (["--temperature", "0.5"], "replies with temperature 0.0, but this run has temperature 0.5"),
        (["--max-tokens", "5"], "replies with max_tokens 4096, but this run has max_tokens 5"),
        (["--samples", "2"], "replies with samples 1, but this run has samples 2"),
        (["--seed", "1"], "replies with seed 0, but this run has seed 1"),
    ],
)
def test_other_settings_do_not_mix(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    command = Command(server, tmp_path, 1)
    assert command() == 0
    before = command.journal.read_bytes()
    assert command(*words) == 2
    assert message in capsys.readouterr().err
    assert command.journal.read_bytes() == before
    assert len(server.requests) == 1


def test_other_questions_or_another_benchmark_do_not_mix(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command(server, tmp_path, 1)
    assert command() == 0
    rows(command.data, {"q0": "7"})
    assert command() == 2
    assert "replies with data '" in capsys.readouterr().err
    assert main(["nano", "--url", server.url, "--out", str(command.out)]) == 2
    assert "replies with benchmark 'gsm8k', but this run has benchmark 'nano'" in capsys.readouterr().err


def test_a_file_of_something_else_is_not_touched(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = Command(server, tmp_path, 1)
    command.out = command.data.with_suffix(".json")  # beside which the rows themselves lie
    before = command.data.read_bytes().rstrip(b"\n")
    command.data.write_bytes(before)
    assert command() == 2
    assert "holds no replies of an evaluation" in capsys.readouterr().err
    assert command.data.read_bytes() == before


def test_a_failed_request_is_tried_again_by_the_client(server: Server, tmp_path: Path) -> None:
    command = Command(server, tmp_path, 1)
    busy = {"x_should_retry": "true", "retry_after_ms": "1"}
    server.answer = lambda body: refusal(503, **busy) if len(server.requests) == 1 else right(body)
    assert command() == 0
    assert len(server.requests) == 2
    assert command.result["score"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (reply("\\boxed{0}", finish="error"), "the server broke a reply off with finish_reason 'error'"),
        (reply("\\boxed{0}", finish="abort"), "the server broke a reply off with finish_reason 'abort'"),
        ({"choices": []}, "the response is no completion: IndexError"),
        ({}, "the response is no completion: KeyError"),
        ({"choices": [{"finish_reason": "stop"}]}, "the response is no completion: KeyError"),
        ({"choices": None}, "the response is no completion: TypeError"),
    ],
)
def test_a_response_without_a_whole_reply_has_failed(answer: Body, message: str) -> None:
    with pytest.raises(ReplyError, match=message):
        parse(answer, "q", 0)


def test_a_broken_response_counts_as_failed_and_is_not_kept(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command(server, tmp_path, 2)
    broken = [web.Response(text="<html>", content_type="text/html"), web.Response(text="{", content_type="application/json")]
    server.answer = lambda body: broken.pop()
    assert command() == 1
    assert command.kept == []
    assert "the response is no JSON" in capsys.readouterr().err


def test_replies_of_any_characters_are_kept(server: Server, tmp_path: Path) -> None:
    command = Command(server, tmp_path, 1)
    text = "答案\u2028\r\n\ud800 \\boxed{0}"
    server.answer = lambda body: reply(text)
    assert command() == 0
    assert command() == 0
    assert [one["text"] for one in command.kept] == [text]
    assert command.result["score"]["accuracy"] == 1.0


def test_the_nano_set_is_scored_by_kind(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = {question.prompt: question for question in benchmarks.nano(each=2)}

    def answer(body: Body) -> Body:
        question = questions[body["messages"][0]["content"]]
        if question.group == "one":
            return reply("\\boxed{-1}")
        return reply(question.answer if question.kind == "refuse" else f"<|continue|>…\\boxed{{{question.answer}}}")

    server.answer = answer
    out = tmp_path / "nano.json"
    assert main(["nano", "--url", server.url, "--limit", "14", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    accuracy = {name: group["accuracy"] for name, group in result["groups"].items()}
    assert accuracy == {"one": 0, "two": 1, "three": 1, "comparison": 1, "equation": 1, "word": 1, "unknown": 1}
    assert result["score"]["accuracy"] == pytest.approx(12 / 14)
    assert result["published_percent"] == {}
    assert "| comparison | 2 | 100.0 | 34.2 to 100.0 |" in capsys.readouterr().out


def test_an_answer_to_an_unknown_question_is_wrong(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "nano.json"
    assert main(["nano", "--url", server.url, "--limit", "7", "--samples", "3", "--temperature", "1", "--out", str(out)]) == 0
    unknown = json.loads(out.read_text())["questions"][6]
    assert (unknown["group"], unknown["majority"]) == ("unknown", False)
    assert [one["right"] for one in unknown["replies"]] == [False] * 3


def test_repairs_go_on_from_a_wrong_step(server: Server, tmp_path: Path) -> None:
    questions = benchmarks.nano_repair(each=1)
    answers = {question.prompt: question.answer for question in questions}
    server.answer = lambda body: {
        "choices": [{"text": f"<|reflect|>x<|explore|>\\boxed{{{answers[body['prompt']]}}}", "finish_reason": "stop"}],
        "usage": {"completion_tokens": 9},
    }
    out = tmp_path / "repair.json"
    assert main(["nano-repair", "--url", server.url, "--limit", str(len(questions)), "--out", str(out)]) == 0
    assert set(server.paths) == {"/v1/completions"}
    assert {body["prompt"] for body in server.requests} == set(answers)
    assert all("<|continue|>" in body["prompt"] and not body["skip_special_tokens"] for body in server.requests)
    score = json.loads(out.read_text())["score"]
    assert score["accuracy"] == 1.0
    assert score["actions"] == {"continue": 0, "reflect": 1, "explore": 1}, "of what the model wrote"


def test_the_key_is_taken_from_the_environment(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALUATE_KEY", "sesame")
    assert Command(server, tmp_path, 1)("--api-key-env", "EVALUATE_KEY") == 0
    assert server.keys == ["Bearer sesame"]


def test_a_run_that_cannot_start_says_why(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = Command(server, tmp_path, 1)
    assert command("--api-key-env", "NO_SUCH_KEY") == 2
    assert "the environment has no NO_SUCH_KEY" in capsys.readouterr().err
    assert main(["gsm9k", "--url", server.url]) == 2
    assert (
        "no benchmark 'gsm9k'; there are nano, nano-repair, nano-forms, nano-follow-ups, nano-outside, gsm8k"
        in capsys.readouterr().err
    )
    server.models = []
    assert command() == 2
    assert "lists no model; name one with --model" in capsys.readouterr().err
    assert main(["gsm8k", "--url", server.url + "/none", "--data", str(command.data), "--out", str(command.out)]) == 2
    assert "/none/ does not list its models" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--samples", "0"], ["--concurrency", "0"], ["--out", "run.jsonl"], []])
def test_options_that_make_no_sense_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["gsm8k", *words] if words else [])
    assert "error: " in capsys.readouterr().err
