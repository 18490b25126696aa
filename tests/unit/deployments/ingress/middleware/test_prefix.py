"""The application below a path of a proxy: what it links to, redirects to and sets cookies for has that prefix."""

import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.middleware import Middleware
from starlette.responses import RedirectResponse
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from deployments.errors import SettingsError
from deployments.ingress import docs
from deployments.ingress.deployment import _to_the_page
from deployments.ingress.middleware.prefix import Prefix, Rooted
from deployments.settings import load
from deployments.ui.bridge import COOKIE, UIBridge
from tests.unit.deployments.ui.test_bridge import Handle

ASKED = {"x-forwarded-prefix": "/satori"}


class Noting:
    """ASGI middleware that keeps the path that others between the two see."""

    paths: list[str] = []  # noqa: RUF012

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        await self._app(scope, receive, send)


async def page(request: Request) -> RedirectResponse:
    return RedirectResponse(str(request.url_for("page")))


def client(root_path: str = "") -> httpx.AsyncClient:
    ui = FastAPI(routes=[Mount("/ui", routes=[Route("/", page, name="page")])])
    app = FastAPI(middleware=[Middleware(Prefix, root_path=root_path), Middleware(Noting), Middleware(Rooted)], docs_url=None)
    docs.mount(app)
    app.get("/v1/models")(lambda: {"data": []})
    app.get("/")(_to_the_page)
    app.mount("/ui", UIBridge(Handle(ui)))  # type: ignore[arg-type]
    Noting.paths.clear()
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://host")


@pytest.mark.parametrize(
    ("root_path", "headers", "before", "prefix"),
    [
        ("", {}, "", ""),
        ("", ASKED, "", "/satori"),
        ("", {"x-forwarded-prefix": "/satori/"}, "", "/satori"),
        ("", {"x-forwarded-prefix": "/ui"}, "", "/ui"),
        ("/a/b", {}, "", "/a/b"),
        ("/a/b", {}, "/a/b", "/a/b"),
        ("/a", ASKED, "", "/satori"),
    ],
)
async def test_all_that_leads_on_has_the_prefix(root_path: str, headers: dict[str, str], before: str, prefix: str) -> None:
    async with client(root_path) as http:
        http.headers.update(headers)
        assert (await http.get(f"{before}/v1/models")).json() == {"data": []}
        assert Noting.paths == ["/v1/models"]
        assert (await http.get(f"{before}/")).headers["location"] == f"{prefix}/ui/"
        assert (await http.get(f"{before}/v1/models/")).headers["location"] == f"http://host{prefix}/v1/models"
        shown = (await http.get(f"{before}/docs")).text
        assert f"'{prefix}/openapi.json'" in shown
        loaded = re.findall(r'(?:src|href)="([^"]+)"', shown)
        assert loaded == [f"{prefix}/docs/assets/swagger-ui.css", "data:,", f"{prefix}/docs/assets/swagger-ui-bundle.js"]
        for path in (loaded[0], loaded[2]):
            assert (await http.get(before + path.removeprefix(prefix))).status_code == 200
        servers = (await http.get(f"{before}/openapi.json")).json().get("servers", [])
        assert servers == ([{"url": prefix}] if prefix else [])
        theirs = await http.get(f"{before}/ui/")
        assert theirs.headers["location"] == f"http://host{prefix}/ui/"
        [cookie] = [cookie for cookie in http.cookies.jar if cookie.name == COOKIE]
        assert cookie.path == f"{prefix}/ui"


async def test_redirects_keep_the_scheme_that_the_client_used() -> None:
    async with client() as http:
        for told, kept in (("https", "https"), ("http", "http"), ("javascript", "http")):
            moved = await http.get("/v1/models/", headers=ASKED | {"x-forwarded-proto": told})
            assert moved.headers["location"] == f"{kept}://host/satori/v1/models"


@pytest.mark.parametrize("given", ["satori", "//evil.example", "/a b", "/<script>", "/a//b", "https://a.example", "/" + "a" * 256])
async def test_a_prefix_that_is_no_path_is_refused(given: str) -> None:
    async with client() as http:
        refused = await http.get("/v1/models", headers={"x-forwarded-prefix": given})
        assert refused.status_code == 400
        assert "x-forwarded-prefix" in refused.json()["error"]["message"]


@pytest.mark.parametrize("given", ["satori", "/satori/", "/", "/ui", "/v1/a", "//a", ""])
def test_a_setting_that_is_no_path_is_refused(given: str) -> None:
    with pytest.raises(SettingsError, match=r"http\.root_path.*allowed"):
        load({"preset": "nano-cpu", "http.root_path": given})
