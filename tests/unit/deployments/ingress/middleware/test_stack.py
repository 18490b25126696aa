"""The list of middleware: its order, what measuring adds, and that no middleware is shared between two servers."""

import argparse
import ast
import importlib
import logging
import pkgutil
import re
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from vllm.entrypoints.serve.middleware.register import init_entrypoints_middleware

from deployments.access.keys import KeyStore, digest
from deployments.access.usage import client_name
from deployments.ingress import middleware as package
from deployments.ingress.error_handlers import Misread
from deployments.ingress.middleware.access import Access, Guard
from deployments.ingress.middleware.body import BodyLimit
from deployments.ingress.middleware.deadline import Deadline
from deployments.ingress.middleware.dialects import Dialects
from deployments.ingress.middleware.draining import Draining, Ongoing
from deployments.ingress.middleware.hosts import Hosts
from deployments.ingress.middleware.intake import Intake
from deployments.ingress.middleware.keepalive import KeepAlive
from deployments.ingress.middleware.measuring import Measuring
from deployments.ingress.middleware.prefix import Prefix, Rooted
from deployments.ingress.middleware.response_headers import ResponseHeaders
from deployments.ingress.middleware.stack import stack
from deployments.observability import metrics
from deployments.observability.writer import Writer
from deployments.settings import HttpSettings, SloSettings
from tests.support.in_process import served

SECRET = "sk-satori-alice"
BEFORE = [ResponseHeaders, Dialects, Access, Draining, KeepAlive, Deadline, Intake]
AFTER = [BodyLimit, Misread, Rooted]


def stacked(theirs: list[Middleware], **parts: Any) -> list[Middleware]:
    known = {"http": HttpSettings(), "guard": Guard(None), "ongoing": Ongoing(), "pace_s": lambda: 0.0, "writer": None}
    return stack(theirs, **known | parts)


def classes(middleware: list[Middleware]) -> list[Any]:
    return [each.cls for each in middleware]


def test_a_request_meets_them_in_this_order() -> None:
    """Measured first, so that refusals count; the key and draining before any work; the body innermost, after vLLM's own."""
    metrics.keep(metrics.INGRESS)
    writer = Writer("of-this-test", SloSettings())
    theirs = [Middleware(CORSMiddleware), Middleware(GZipMiddleware)]
    made = stacked(theirs, writer=writer)
    assert classes(made) == [Hosts, Prefix, Measuring, *BEFORE, CORSMiddleware, GZipMiddleware, *AFTER]
    assert made[2].kwargs == {"writer": writer, "tracer": None}
    assert [each for each in made if each in theirs] == theirs


def test_nothing_is_measured_without_a_writer() -> None:
    assert classes(stacked([])) == [Hosts, Prefix, *BEFORE, *AFTER]


def test_each_is_given_what_it_needs() -> None:
    http, guard, ongoing = HttpSettings(max_body_bytes=7), Guard(None), Ongoing()

    def pace_s() -> float:
        return 1.0

    made = {each.cls: each.kwargs for each in stacked([], http=http, guard=guard, ongoing=ongoing, pace_s=pace_s)}
    assert made[ResponseHeaders] == {"pace_s": pace_s}
    assert made[Access] == {"guard": guard}
    assert made[Draining] == {"ongoing": ongoing}
    assert made[BodyLimit] == {"settings": http}


async def test_the_ingress_has_them_around_vllms_own() -> None:
    async with served() as server:
        found = classes(server.app.user_middleware)
    assert found[: 3 + len(BEFORE)] == [Hosts, Prefix, Measuring, *BEFORE]
    assert found[-len(AFTER) :] == AFTER
    assert CORSMiddleware in found[3 + len(BEFORE) : -len(AFTER)]


async def test_access_comes_before_vllms_own_middleware_and_lets_preflights_through() -> None:
    app = FastAPI()
    app.post("/v1/chat/completions")(lambda: client_name())
    arguments = argparse.Namespace(
        allowed_origins=["*"],
        allow_credentials=False,
        allowed_methods=["*"],
        allowed_headers=["*"],
        api_key=None,
        enable_request_id_headers=True,
        middleware=[],
    )
    init_entrypoints_middleware(arguments, app, ("generate",))
    theirs = classes(app.user_middleware)
    assert CORSMiddleware in theirs
    store = KeyStore(None, f"alice:{digest(SECRET)}")
    app.user_middleware = stacked(app.user_middleware, guard=Guard(store))
    assert classes(app.user_middleware) == [Hosts, Prefix, *BEFORE, *theirs, *AFTER]
    headers = {"origin": "http://elsewhere"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers) as http:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        preflight = await http.options("/v1/chat/completions", headers=asked)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, "*")
        refused = await http.post("/v1/chat/completions")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (refused.json()["error"]["type"], refused.headers["www-authenticate"]) == ("AuthenticationError", "Bearer")
        reply = await http.post("/v1/chat/completions", headers={"authorization": f"Bearer {SECRET}"})
    assert (reply.status_code, reply.json(), reply.headers["access-control-allow-origin"]) == (200, "alice", "*")


MODULES = sorted(f"{package.__name__}.{found.name}" for found in pkgutil.iter_modules(package.__path__))
IMMUTABLE = (str, bytes, int, float, frozenset, tuple, MappingProxyType, re.Pattern, type(None), ContextVar, logging.Logger)
"""What a module may keep: values that do not change, values of one request, and a logger."""


def kept(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Give what a module, and each class of its own, keeps under a name that it assigns to itself."""
    tree = ast.parse(Path(str(module.__file__)).read_text())
    bodies = [(module, tree.body)]
    bodies += [(getattr(module, node.name), node.body) for node in tree.body if isinstance(node, ast.ClassDef)]
    for owner, body in bodies:
        for node in body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            yield from ((name.id, vars(owner).get(name.id)) for name in targets if isinstance(name, ast.Name))


def shared(tree: ast.Module) -> Iterator[str]:
    """Give what code changes of a module or of a class: by `global`, or by the class's name."""
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef)} | {"cls"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del) and ast.unparse(node.value) in names:
            yield ast.unparse(node)


@pytest.mark.parametrize("name", MODULES)
def test_no_middleware_keeps_state_for_the_whole_process(name: str) -> None:
    module = importlib.import_module(name)
    assert {name: value for name, value in kept(module) if not isinstance(value, IMMUTABLE)} == {}
    assert list(shared(ast.parse(Path(str(module.__file__)).read_text()))) == []


def test_the_scan_looks_at_all_modules_and_finds_what_it_should() -> None:
    assert {name.rpartition(".")[2] for name in MODULES} >= {"access", "body", "draining", "intake", "measuring", "stack"}
    assert "AT_ONCE" in dict(kept(importlib.import_module(f"{package.__name__}.intake")))
    code = "class A:\n    def f(self):\n        global x\n        A.active += 1\n        self.fine = 1"
    assert list(shared(ast.parse(code))) == ["x", "A.active"]
