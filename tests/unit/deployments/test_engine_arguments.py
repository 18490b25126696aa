"""The catalogue of vLLM's arguments."""

import importlib.util
import json

import pytest

from deployments import engine_arguments
from tests.support.paths import ROOT


def test_the_list_of_arguments_is_that_of_the_installed_vllm() -> None:
    spec = importlib.util.spec_from_file_location("engine_arguments", ROOT / "dev" / "engine_arguments.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert json.loads(engine_arguments.ARGUMENTS.read_text()) == module.catalogue()


@pytest.mark.parametrize("name", sorted(engine_arguments.REFUSED))
def test_what_would_do_nothing_is_refused_and_says_why(name: str) -> None:
    [section] = [section for section, known in json.loads(engine_arguments.ARGUMENTS.read_text()).items() if name in known]
    checked, [problem] = engine_arguments.check_arguments(section, {name: "x"})
    assert checked == {}
    assert engine_arguments.REFUSED[name] in problem
    assert problem.startswith(f"{section}.{name}")
