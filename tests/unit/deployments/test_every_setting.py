"""Each setting that is listed is read by what it is for, or refused with a reason; none is skipped."""

import ast
import json
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext

from deployments import engine_arguments
from deployments.engine.arguments import server_arguments
from deployments.ingress import server as server_module
from deployments.settings import Settings, load
from tests.support.in_process import served
from tests.support.paths import ROOT

LISTED: dict[str, dict[str, Any]] = json.loads(engine_arguments.ARGUMENTS.read_text())
BY_THE_FRONTEND = {"disable_log_stats", "enable_log_requests"}
"""What the ingress gives vLLM's frontend by name; no configuration has it."""


def accepted(section: str) -> set[str]:
    return set(LISTED[section]) - engine_arguments.REFUSED.keys()


def test_each_setting_of_the_engine_is_read_when_its_configuration_is_made() -> None:
    read: set[str] = set()

    class Noting(AsyncEngineArgs):
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    Noting.from_cli_args(server_arguments(load({"preset": "nano-cpu"}))).create_engine_config(UsageContext.OPENAI_API_SERVER)
    assert accepted("engine") - read == BY_THE_FRONTEND


class NotingNamespace(Namespace):
    """Arguments that know which of them were asked for."""

    read: set[str] = set()  # noqa: RUF012

    def __getattribute__(self, name: str) -> Any:
        NotingNamespace.read.add(name)
        return super().__getattribute__(name)


async def test_each_setting_of_the_api_is_read_by_the_server_or_at_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "server_arguments", lambda settings: NotingNamespace(**vars(server_arguments(settings))))
    NotingNamespace.read.clear()
    async with served(engine__enable_log_requests=True) as server:
        question = {"role": "user", "content": "1+1"}
        assert (await server.chat(question, stream=True)).status_code == 200
        assert (await server.chat(question, model="none")).status_code == 404
    assert accepted("api") | BY_THE_FRONTEND <= NotingNamespace.read


def fields(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, str]]:
    """Give each setting of ours by its path, with its name."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{path}{name}.")
        else:
            yield f"{path}{name}", name


def test_each_setting_of_ours_is_read_somewhere() -> None:
    trees = [ast.parse(file.read_text()) for file in (ROOT / "deployments").rglob("*.py")]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert [path for path, name in fields(Settings) if name not in read] == []
