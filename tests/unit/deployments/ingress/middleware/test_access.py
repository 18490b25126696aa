"""Access: who gets in, who is told why not, and that a key's limits hold while its requests are served."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from deployments.access.keys import KeyStore, digest
from deployments.access.usage import client_name
from deployments.ingress.middleware.access import OPEN, Access, Guard

SECRET = "sk-satori-alice"
ALICE = {"authorization": f"Bearer {SECRET}"}
BOB = {"x-api-key": "sk-satori-bob"}


class App:
    """An API with a UI mounted beside it, and keys in a file that a test may change."""

    def __init__(self, path: Path) -> None:
        self.path, self.now = path, 0.0
        self.served: list[str] = []
        self.going = asyncio.Event()
        self.release = asyncio.Event()
        self.write()
        self.store = KeyStore(str(path), None, lambda: self.now)
        self.guard = Guard(self.store)
        api = [Route(path, self.api, methods=["GET", "POST"]) for path in [*OPEN, "/v1/chat/completions", "/v1/models", "/uix"]]
        ways = [Route("/fails", self.fails, methods=["POST"]), Route("/stream", self.stream, methods=["POST"])]
        self.asgi = Access(Starlette(routes=[*api, *ways, Mount("/ui", app=self.ui)]), self.guard)

    def write(self, **limits: int) -> None:
        alice = {"name": "alice", "sha256": digest(SECRET), **limits}
        self.path.write_text(yaml.safe_dump({"keys": [alice, {"name": "bob", "sha256": digest(BOB["x-api-key"])}]}))

    def limit(self, **limits: int) -> None:
        """Give Alice these limits, read at once; Bob has none."""
        self.write(**limits)
        self.now += 1
        self.store.find("")

    def client(self, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.asgi, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)

    async def post(self, path: str = "/v1/chat/completions", headers: dict[str, str] = ALICE) -> httpx.Response:
        async with self.client() as http:
            return await http.post(path, headers=headers)

    async def api(self, request: Request) -> Response:
        self.served.append("api")
        return PlainTextResponse(client_name())

    async def ui(self, scope: Any, receive: Any, send: Any) -> None:
        self.served.append("ui")
        await PlainTextResponse(client_name())(scope, receive, send)

    async def fails(self, request: Request) -> Response:
        raise ValueError(request.url.path)

    async def stream(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[str]:
            yield "begun"
            self.going.set()
            await self.release.wait()
            yield client_name()

        return StreamingResponse(pieces())


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path / "keys.yaml")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the time by which the limits go. It begins at the start of a minute."""
    now = [60_000_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def refused(response: httpx.Response, status: int, code: str) -> str:
    """Return the message of an error after a look at the rest of it."""
    error = response.json()["error"]
    kind = {401: "AuthenticationError", 429: "RateLimitError"}[status]
    assert (response.status_code, error["type"], error["param"], error["code"]) == (status, kind, None, code)
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    return str(error["message"])


def limited(response: httpx.Response, limit: str) -> int:
    """Return the seconds to wait of a request that was one too many."""
    assert limit in refused(response, 429, "rate_limit_exceeded")
    assert re.fullmatch("[1-9][0-9]*", response.headers["retry-after"])
    return int(response.headers["retry-after"])


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        (ALICE, "alice"),
        (BOB, "bob"),
        ({"authorization": f"bearer  {SECRET} "}, "alice"),
        ({"authorization": "Bearer sk-satori-bob"}, "bob"),
        (BOB | {"authorization": "Basic abc"}, "bob"),
        (BOB | {"authorization": "Bearer none"}, "bob"),
        (ALICE | BOB, "alice"),
    ],
)
async def test_a_key_lets_in_and_names_the_client(app: App, headers: dict[str, str], name: str) -> None:
    response = await app.post(headers=headers)
    assert (response.status_code, response.text) == (200, name)
    assert client_name() == "", "and nobody else"


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "an API key is needed"),
        ({"authorization": "Bearer "}, "an API key is needed"),
        ({"authorization": SECRET}, "an API key is needed"),
        ({"authorization": f"Basic {SECRET}"}, "an API key is needed"),
        ({"x-api-key": ""}, "an API key is needed"),
        ({"authorization": "Bearer sk-guessed"}, "the API key is not known"),
        ({"authorization": f"Bearer {SECRET}x"}, "the API key is not known"),
        ({"authorization": f"Bearer {digest(SECRET)}"}, "the API key is not known"),
        ({"x-api-key": "sk-guessed"}, "the API key is not known"),
    ],
)
async def test_others_are_told_what_is_missing(
    app: App, headers: dict[str, str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    response = await app.post(headers=headers)
    assert refused(response, 401, "invalid_api_key").startswith(message)
    assert app.served == []
    said = response.text + str(response.headers) + "".join(capfd.readouterr())
    assert not [word for word in ("sk-guessed", SECRET, digest(SECRET)) if word in said]


async def test_a_header_of_any_bytes_is_only_a_wrong_key(app: App) -> None:
    async with app.client() as http:
        response = await http.post("/v1/chat/completions", headers=[(b"authorization", b"Bearer \xff\xfe\xc3\xa4")])
    refused(response, 401, "invalid_api_key")


async def ask(app: App, path: str, method: str = "GET", root_path: str = "", **scope: Any) -> tuple[int, str]:
    """Send a request whose path is exactly this, as a server decodes it; return status and body."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    whole = {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": [], "query_string": b""}
    await app.asgi(whole | {"raw_path": path.encode(), "server": ("test", 80), "scheme": "http"} | scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode()


@pytest.mark.parametrize("path", sorted(OPEN))
async def test_open_paths_need_no_key(app: App, path: str) -> None:
    assert await ask(app, path) == (200, "")
    assert app.served == ["api"]


@pytest.mark.parametrize(
    "path", ["/ui/", "/ui/x", "/ui//", "/ui/../v1/chat/completions", "/ui/..", "/ui/../", "/ui//v1/models", "/ui/."]
)
async def test_what_is_below_the_ui_is_the_uis(app: App, path: str) -> None:
    assert await ask(app, path) == (200, "")
    assert app.served == ["ui"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "//v1/chat/completions",
        "/v1/chat/completions/",
        "/V1/chat/completions",
        "/v1/../ui/",
        "/v1/models",
        "/uix",
        "/UI/",
        "/Ui",
        "/ui;/v1/models",
        "/ui\\..\\v1",
        "//ui/",
        "/./ui/",
        "/ui%2f..%2fv1/models",  # a server decodes once; what is left is not decoded again
        "/health/",
        "/health/../v1/models",
        "/HEALTH",
        "/docs/x",
        "/metrics/",
        "//",
        "ui/",
        "",
        "*",
        "http://test/ui/",
        "/ui\n/../v1/models",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE", "options", "TRACE"])
async def test_everything_else_needs_one(app: App, path: str, method: str) -> None:
    status, _ = await ask(app, path, method)
    assert (status, app.served) == (401, [])


async def test_a_percent_encoded_slash_does_not_lead_out_of_the_ui(app: App) -> None:
    async with app.client() as http:  # which decodes as servers do
        response = await http.get("/ui%2f..%2fv1%2fmodels")
    assert (response.status_code, app.served) == (200, ["ui"])


@pytest.mark.parametrize(
    ("path", "status", "served"),
    [
        ("/base/health", 200, ["api"]),
        ("/base/ui/x", 200, ["ui"]),
        ("/base/v1/models", 401, []),
        ("/base", 401, []),
        ("/basement/health", 401, []),
        ("/health", 200, ["api"]),
    ],
)
async def test_paths_go_as_the_router_reads_them_below_a_root(app: App, path: str, status: int, served: list[str]) -> None:
    assert (await ask(app, path, root_path="/base"))[0] == status
    assert app.served == served


async def test_web_sockets_need_a_key_too(app: App) -> None:
    sent: list[Any] = []
    passed: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        passed.append(client_name())

    scope: dict[str, Any] = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    guarded = Access(inner, app.guard)
    await guarded(scope, send, send)  # type: ignore[arg-type]
    assert (sent, passed) == ([{"type": "websocket.close", "code": 1008}], [])
    await guarded(scope | {"headers": [(b"x-api-key", SECRET.encode())]}, send, send)  # type: ignore[arg-type]
    assert passed == ["alice"]


async def test_without_keys_everything_is_open(app: App) -> None:
    guard = Guard(None)
    app.asgi = Access(Starlette(routes=[Route("/v1/models", app.api)]), guard)
    async with app.client(**ALICE) as http:
        response = await http.get("/v1/models")
    assert (response.status_code, response.text) == (200, "")
    guard.charge("alice", 5)
    guard.charge("", 5)


def test_nobody_leaves_the_guard_out() -> None:
    with pytest.raises(TypeError, match="guard"):
        Access(Starlette())  # type: ignore[call-arg]


async def test_a_withdrawn_key_is_refused(app: App) -> None:
    app.path.write_text("keys: []")
    app.now += 1
    refused(await app.post(), 401, "invalid_api_key")


async def test_concurrent_requests_are_held_to_the_limit_until_their_streams_end(app: App) -> None:
    app.limit(concurrent_requests=1)
    streaming = asyncio.create_task(app.post("/stream"))
    await app.going.wait()
    for path in ("/stream", "/v1/chat/completions"):
        assert limited(await app.post(path), "concurrent_requests=1") == 1
    assert (await app.post(headers=BOB)).status_code == 200, "others have limits of their own"
    async with app.client(**ALICE) as http:
        assert (await http.get("/v1/models")).text == "alice"
        assert (await http.post("/health")).text == ""
    app.release.set()
    assert (await streaming).text == "begunalice"
    assert (await app.post()).status_code == 200


async def test_a_request_that_fails_or_is_cancelled_leaves_its_place(app: App) -> None:
    app.limit(concurrent_requests=1)
    assert [(await app.post("/fails")).status_code for _ in range(3)] == [500] * 3
    streaming = asyncio.create_task(app.post("/stream"))
    await app.going.wait()
    streaming.cancel()
    await asyncio.wait([streaming])
    assert (await app.post()).status_code == 200


async def test_requests_a_minute_are_counted_over_any_sixty_seconds(app: App, clock: Callable[[float], None]) -> None:
    app.limit(requests_per_minute=2)
    clock(50)
    assert (await app.post()).status_code == 200
    clock(20.5)
    assert (await app.post()).status_code == 200
    assert limited(await app.post(), "requests_per_minute=2") == 40
    clock(39)
    assert limited(await app.post(), "requests_per_minute=2") == 1, "those refused do not count"
    assert (await app.post(headers=BOB)).status_code == 200
    clock(1)
    assert (await app.post()).status_code == 200


async def test_spent_tokens_refuse_a_request_until_they_are_worked_off(app: App, clock: Callable[[float], None]) -> None:
    app.limit(tokens_per_minute=100)
    app.guard.charge("alice", 99)
    assert (await app.post()).status_code == 200
    app.guard.charge("alice", 301)
    wait = limited(await app.post(), "tokens_per_minute=100")
    assert wait == 180
    clock(wait - 0.5)
    assert limited(await app.post(), "tokens_per_minute=100") == 1
    clock(0.6)
    assert (await app.post()).status_code == 200


async def test_tokens_of_a_request_belong_to_the_minute_in_which_it_ended(app: App, clock: Callable[[float], None]) -> None:
    app.limit(tokens_per_minute=100)
    streaming = asyncio.create_task(app.post("/stream"))
    await app.going.wait()
    app.guard.charge("alice", 1)
    app.guard.charge("alice", 200)
    app.release.set()
    await streaming
    clock(150)
    assert (await app.post()).status_code == 200


async def test_who_has_no_limit_of_tokens_is_not_counted(app: App, clock: Callable[[float], None]) -> None:
    app.guard.charge("alice", 1000)
    app.guard.charge("nobody", 1000)
    app.limit(tokens_per_minute=100)
    assert (await app.post()).status_code == 200


async def test_a_request_already_there_counts_under_a_limit_that_comes_later(app: App) -> None:
    streaming = asyncio.create_task(app.post("/stream"))
    await app.going.wait()
    app.limit(concurrent_requests=1)
    limited(await app.post(), "concurrent_requests=1")
    app.release.set()
    await streaming
    assert (await app.post()).status_code == 200
