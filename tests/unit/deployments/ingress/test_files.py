"""Files, by OpenAI's own client: the real app in this process."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest
import pytest_asyncio

from deployments.access.usage import client as client_of
from deployments.ingress import files
from tests.support.in_process import Server, served
from tests.support.until import until_async

LINE = b'{"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"model": "nano", "prompt": "1"}}\n'
FORM = {"content-type": "multipart/form-data; boundary=b"}
pytestmark = pytest.mark.asyncio(loop_scope="module")


class App:
    """An ingress, and OpenAI's client for it."""

    def __init__(self, server: Server) -> None:
        self.server, self.http = server, server.http
        self.openai = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="x", http_client=server.http, max_retries=0)

    async def upload(self, data: bytes, **options: object) -> openai.types.FileObject:
        return await self.openai.files.create(file=("sums.jsonl", io.BytesIO(data)), purpose="batch", **options)  # type: ignore[arg-type]

    async def refused(self, body: bytes, headers: dict[str, str] = FORM) -> tuple[int, str]:
        answer = await self.http.post("/v1/files", content=body, headers=headers)
        return answer.status_code, answer.json()["error"]["message"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    url = tmp_path_factory.mktemp("store") / "responses.sqlite"
    async with served(store__url=str(url), store__max_bytes="16777216") as server:
        yield App(server)
        server.responses.close()


def part(name: str, value: str, filename: str = "") -> bytes:
    extra = f'; filename="{filename}"' if filename else ""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n{value}\r\n'.encode()


async def test_a_file_is_read_as_it_was_uploaded(app: App) -> None:
    data = LINE * 25_000  # more than one piece
    assert len(data) > 2 * files.PIECE_BYTES
    made = await app.upload(data)
    assert (made.object, made.bytes, made.filename, made.purpose, made.status) == (
        "file",
        len(data),
        "sums.jsonl",
        "batch",
        "processed",
    )
    assert made.expires_at is not None
    assert made.expires_at - made.created_at - 30 * 86400 in (0, 1, 2), "its time begins when it is there"
    assert await app.openai.files.retrieve(made.id) == made
    assert (await app.openai.files.content(made.id)).content == data
    assert (await app.openai.files.delete(made.id)).deleted
    for gone in (app.openai.files.retrieve(made.id), app.openai.files.delete(made.id), app.openai.files.content(made.id)):
        with pytest.raises(openai.NotFoundError, match="there is no file"):
            await gone


async def test_files_are_listed_by_their_time(app: App) -> None:
    made = [await app.upload(LINE) for _ in range(5)]
    mine = {file.id for file in made}
    found = [file async for file in app.openai.files.list(purpose="batch", limit=2)]
    assert [file.id for file in found if file.id in mine] == [file.id for file in reversed(made)]
    page = await app.openai.files.list(order="asc", after=made[2].id)
    assert [file.id for file in page.data] == [made[3].id, made[4].id]
    assert not page.has_more
    assert [file async for file in app.openai.files.list(purpose="batch_output")] == []
    with pytest.raises(openai.NotFoundError):
        await app.openai.files.list(after="file-x")


async def test_another_keys_file_is_not_there(app: App) -> None:
    made = await app.upload(LINE)

    async def ask() -> None:
        client_of.set("eve")
        for asked in (app.openai.files.retrieve(made.id), app.openai.files.delete(made.id), app.openai.files.content(made.id)):
            with pytest.raises(openai.NotFoundError):
                await asked
        assert [file async for file in app.openai.files.list()] == []

    await asyncio.create_task(ask())
    assert await app.openai.files.retrieve(made.id) == made


async def test_what_is_kept_for_less_says_so(app: App) -> None:
    made = await app.upload(LINE, expires_after={"anchor": "created_at", "seconds": 7200})
    assert made.expires_at is not None
    assert made.expires_at - made.created_at == 7200
    with pytest.raises(openai.BadRequestError, match=r"expires_after\.seconds: '9'; allowed: 3600 to 2592000"):
        await app.upload(LINE, expires_after={"anchor": "created_at", "seconds": 9})


async def test_forms_that_are_none_are_refused(app: App) -> None:
    purpose, file = part("purpose", "batch"), part("file", "{}", "x")
    assert (await app.http.post("/v1/files", content=file + purpose + b"--b--\r\n", headers=FORM)).status_code == 200, (
        "in any order"
    )
    for body, said in (
        (file + b"--b--\r\n", "purpose: ''; allowed: batch"),
        (part("purpose", "vision") + file + b"--b--\r\n", "purpose: 'vision'; allowed: batch"),
        (purpose + b"--b--\r\n", "file: the form has no file"),
        (purpose + part("file", "", "x") + b"--b--\r\n", "file: the form has no file, or an empty one"),
        (purpose + file, "the form ends too early"),
        (purpose + file + file + b"--b--\r\n", "file: the form has more than one"),
        (part("purpose", "b" * 2000) + b"--b--\r\n", "purpose: a field of the form has more than 1024 bytes"),
        (b"something else", "the body is not a form as its Content-Type says"),
        (b"", "the form ends too early"),
    ):
        status, message = await app.refused(body)
        assert (status, message[: len(said)]) == (400, said)
    for kind in ("application/json", "multipart/form-data", ""):
        assert (await app.refused(b"{}", {"content-type": kind}))[1].startswith(
            "the body is not a form; allowed: multipart/form-data"
        )
    left = await app.openai.files.list()
    assert {file.filename for file in left.data} <= {"sums.jsonl", "x"}


async def test_a_large_file_is_refused_before_it_is_kept(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FILE_BYTES", 1000)

    async def chunks() -> AsyncIterator[bytes]:
        yield part("purpose", "batch") + part("file", "", "x")[:-2]
        for _ in range(5):
            yield b"x" * 300

    answer = await app.http.post("/v1/files", content=chunks(), headers=FORM)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    answer = await app.http.post("/v1/files", content=b"", headers=FORM | {"content-length": "100000"})
    assert answer.status_code == 413


async def test_files_have_the_stores_bound(app: App) -> None:
    with pytest.raises(openai.APIStatusError, match=r"store\.max_bytes=16777216\); delete some") as refused:
        await app.upload(b"x" * 2**24)
    assert refused.value.status_code == 507
    files_of = app.server.responses.store.files
    await until_async(lambda: files_of._purging is None, "what there was of the other one is gone")
    made = await app.upload(b"x" * 2**22)
    await app.openai.files.delete(made.id)


async def test_a_file_has_a_time_to_arrive_in(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """However its bytes trickle in."""
    now = 0.0
    monkeypatch.setattr(files, "time", SimpleNamespace(monotonic=lambda: now))

    async def trickle() -> AsyncIterator[bytes]:
        nonlocal now
        yield part("purpose", "batch") + part("file", "", "x")[:-2]
        while now < 3 * files.ALL_S:
            now += files.ALL_S / 4
            yield b"x"

    answer = await app.http.post("/v1/files", content=trickle(), headers=FORM)
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "body_timeout")
    assert now <= 1.5 * files.ALL_S, "it is refused then, not at the end"


async def test_a_name_has_no_control_characters(app: App) -> None:
    body = part("purpose", "batch") + part("file", "{}", "a\0b\x7f\u0085.jsonl") + b"--b--\r\n"
    answer = await app.http.post("/v1/files", content=body, headers=FORM)
    assert (answer.status_code, answer.json()["filename"]) == (200, "ab.jsonl")


async def test_only_so_many_are_uploaded_at_a_time(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "UPLOADS", 1)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield part("purpose", "batch")
        begun.set()
        await go_on.wait()
        yield part("file", "{}", "x") + b"--b--\r\n"

    uploading = asyncio.create_task(app.http.post("/v1/files", content=slowly(), headers=FORM))
    await begun.wait()
    with pytest.raises(openai.RateLimitError, match="1 files are being uploaded already"):
        await app.upload(LINE)
    go_on.set()
    assert (await uploading).status_code == 200


async def test_without_a_store_there_are_no_files(tmp_path: Path) -> None:
    async with served(store__enabled="false", store__url=str(tmp_path / "x.sqlite")) as server:
        answer: httpx.Response = await server.http.get("/v1/files")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "files and batches are not kept here (store.url)")
