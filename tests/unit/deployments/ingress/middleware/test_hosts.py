"""Names by which the application may be asked for."""

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from deployments.errors import SettingsError
from deployments.ingress.middleware.hosts import Hosts, Names, name_in
from deployments.settings import HttpSettings, load

OURS = ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "10.1.2.3", "a.localhost", "localhost."]
OTHERS = [
    "evil.example",
    "evil.example:8000",
    "gpu1",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "",
    "[evil.example]:8000",
    "x[::1]",
]


@pytest.mark.parametrize("host", OURS)
def test_addresses_and_localhost_are_allowed(host: str) -> None:
    assert Names(HttpSettings()).allow(name_in(host))


@pytest.mark.parametrize("host", OTHERS)
def test_other_names_are_not(host: str) -> None:
    assert not Names(HttpSettings()).allow(name_in(host))


@pytest.mark.parametrize(
    ("host", "allowed_hosts", "name", "allowed"),
    [
        ("0.0.0.0", [], "gpu1:8000", True),
        ("0.0.0.0", [], "gpu1.lab.example", False),
        ("gpu1.lab.example", [], "GPU1.lab.example:8000", True),
        ("127.0.0.1", ["chat.example.com"], "chat.example.com", True),
        ("127.0.0.1", ["chat.example.com"], "other.chat.example.com", False),
        ("127.0.0.1", ["*.Example.com"], "chat.example.com:443", True),
        ("127.0.0.1", ["*.example.com"], "example.com", False),
        ("127.0.0.1", ["*.example.com"], "badexample.com", False),
        ("127.0.0.1", ["*"], "any.example", True),
    ],
)
def test_settings_allow_more(host: str, allowed_hosts: list[str], name: str, allowed: bool) -> None:
    assert Names(HttpSettings(host=host, allowed_hosts=allowed_hosts)).allow(name_in(name)) is allowed


async def test_a_request_for_another_name_is_told_how_to_allow_it() -> None:
    app = Hosts(Starlette(routes=[Route("/", lambda request: PlainTextResponse("mine"))]), HttpSettings())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        for _ in range(2):
            assert (await http.get("/")).text == "mine"
            refused = await http.get("/", headers={"host": "evil.example:8000"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (421, "unknown_host")
            assert "http.allowed_hosts=evil.example" in refused.json()["error"]["message"]


def test_the_setting_is_words_or_a_list() -> None:
    for given in ("a.example, *.b.example", ["a.example", "*.b.example"], '["a.example", "*.b.example"]'):
        assert load({"preset": "nano-cpu", "http.allowed_hosts": given}).http.allowed_hosts == ["a.example", "*.b.example"]
    for wrong in ("https://a.example", "a.example:443", "*a.example", "a b"):
        with pytest.raises(SettingsError, match=r"http\.allowed_hosts.*allowed: names without a port"):
            load({"preset": "nano-cpu", "http.allowed_hosts": wrong})
