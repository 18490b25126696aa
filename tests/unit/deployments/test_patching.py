"""Changes to libraries: each fails loudly where it no longer fits, and all of them are listed here."""

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.patching import extend, patch, patched
from tests.support.paths import ROOT

WHY = {"why": "the library lacks something", "until": "it has that"}
DEPLOYMENTS = ROOT / "deployments"
PATCHES = {
    ("application.py", "patch", "HTTPOptions.model_fields[name]", "default"),
    ("autoscaling/downscaling.py", "patch", "DeploymentScheduler", "_get_replicas_to_stop"),
    ("autoscaling/scaler.py", "patch", "autoscaling_policy", "_get_cold_start_scale_up_replicas"),
    ("engine/cache_events.py", "patch", "BlockPool", "emit_cached_block_events"),
    ("engine/drafts.py", "patch", "ngram", "NgramGPUSpeculator"),
    ("engine/grammar_budget.py", "patch", "grammar", "accept_tokens"),
    ("engine/grammar_budget.py", "patch", "grammar", "fill_bitmask"),
    ("engine/guidance.py", "patch", "backend_guidance", "validate_guidance_grammar"),
    ("engine/guidance.py", "patch", "backend_guidance.GuidanceBackend", "compile_grammar"),
    ("engine/guidance.py", "patch", "backend_guidance.GuidanceBackend", "_build_ll_tokenizer"),
    ("engine/kv_cache.py", "patch", "gpu_model_runner", "allocate_kv_cache"),
    ("engine/kv_cache.py", "patched", "torch", "zeros"),
    ("engine/pointed_masks.py", "patch", "StructuredOutputManager", "grammar_bitmask"),
    ("engine/pointed_masks.py", "patch", "structured_outputs.StructuredOutputsWorker", "apply_grammar_bitmask"),
    ("engine/process.py", "extend", "EngineCoreProc", "satori_gauges"),
    ("engine_client/client.py", "patched", "EngineCoreClient", "make_async_mp_client"),
    ("host/loopback.py", "patch", "tls_utils", "add_port_to_grpc_server"),
    ("host/proxy.py", "patch", "application_state.ApplicationStateManager", "get_ingress_deployment_name"),
    ("host/proxy.py", "patch", "controller", "HAProxyManager"),
    ("host/proxy.py", "patch", "haproxy", "HAPROXY_CONFIG_TEMPLATE"),
    ("host/proxy.py", "patch", "haproxy", "HAProxyApi"),
    ("ingress/direct.py", "patch", "chat", "_make_parser"),
    ("ingress/direct.py", "patch", "chat", "chat_completion_stream_generator"),
    ("ingress/direct.py", "patch", "completion", "completion_stream_generator"),
    ("ingress/direct.py", "patch", "engine.output_processor", "__class__"),
    ("ingress/direct.py", "patch", "state.queue", "__class__"),
    ("ingress/direct_responses.py", "patch", "module", "SimpleStreamingEventProcessor"),
    ("ingress/direct_responses.py", "patch", "responses", "_process_simple_streaming_events"),
    ("ingress/endpoints.py", "patch", "ResponsesResponse", "from_request"),
    ("ingress/endpoints.py", "patch", "messages", "create_messages"),
    ("ingress/endpoints.py", "patch", "messages", "message_stream_converter"),
    ("ingress/endpoints.py", "patch", "module", "get_max_tokens"),
    ("ingress/endpoints.py", "patch", "responses", "_construct_message_from_response_item"),
    ("ingress/endpoints.py", "patch", "responses", "_generate_with_builtin_tools"),
    ("ingress/endpoints.py", "patch", "renderer", "create_error_response"),
    ("ingress/endpoints.py", "patch", "tokenization", "create_detokenize"),
    ("ingress/frontend.py", "patch", "arguments[-1]", "__class__"),
    ("ingress/grammars.py", "patch", "renderer", "name"),
    ("ingress/outlet.py", "patch", "cycles", "run_asgi"),
    ("ingress/responses.py", "patch", "module", "random_uuid"),
    ("ingress/special_tokens.py", "patch", "BaseRenderer", "_tokenize_prompt"),
    ("ingress/server.py", "patch", "decorators", "model_validators"),
    ("launch/driver.py", "patch", "RayParams", "__init__"),
    ("launch/driver.py", "patch", "services", "start_api_server"),
    ("launch/driver.py", "patch", "services", "start_ray_process"),
    ("observability/vllm_metrics.py", "patched", "loggers", "unregister_vllm_metrics"),
    ("reasoning/serving.py", "patch", "server", "__class__"),
}
"""All changes to the insides of libraries: file, how, owner as it is written there, and name. Look at each with a new version."""
OTHER_CHANGES = {
    ("engine/guidance.py", "backend_guidance.satori_installed"),
    ("ingress/direct_responses.py", "module.satori_installed"),
    ("host/lean.py", "sys.modules['pandas']"),
    ("engine/forkserver.py", "sys.modules['ray']"),
    ("engine/forkserver.py", "sys.argv"),
    ("engine/forkserver.py", "sys.path[0]"),
    ("engine/forkserver.py", "sys.path[1:1]"),
    ("ingress/special_tokens.py", "RENDERER_REGISTRY.renderers[mode]"),
    ("ingress/special_tokens.py", "self.tokenizer.__class__"),
}
"""What is set on objects of libraries without `patch`: names of our own, and what the library keeps for others to set."""


class Library:
    """Stands for a class of a library."""

    def answer(self) -> str:
        return "theirs"


def test_a_patch_takes_the_place_of_a_name_and_gives_it_back() -> None:
    class Owner(Library):
        def answer(self) -> str:
            return "theirs"

    theirs = Owner.answer
    assert patch(Owner, "answer", lambda self: "ours", **WHY) is theirs
    assert Owner().answer() == "ours"


def test_a_patch_of_a_name_that_is_not_there_fails_loudly() -> None:
    owner = SimpleNamespace(answer=1)
    with pytest.raises(AttributeError, match=r"has no 'anser' to patch \(the library lacks something\).*another version"):
        patch(owner, "anser", 2, **WHY)
    with pytest.raises(AttributeError, match="has no 'anser' to patch"), patched(owner, "anser", 2, **WHY):
        pytest.fail("the block is not entered")
    assert vars(owner) == {"answer": 1}


@pytest.mark.parametrize("fails", [False, True])
def test_a_patch_for_a_block_ends_with_it(fails: bool) -> None:
    owner = SimpleNamespace(answer=1)
    try:
        with patched(owner, "answer", 2, **WHY):
            assert owner.answer == 2
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert owner.answer == 1


def test_an_extension_of_a_name_that_is_taken_fails_loudly() -> None:
    class Owner(Library): ...

    extend(Owner, "ours", lambda self: "added", **WHY)
    assert Owner().ours() == "added"  # type: ignore[attr-defined]
    for taken in ("ours", "answer"):
        with pytest.raises(AttributeError, match=rf"has a '{taken}' of its own \(the library lacks something\)"):
            extend(Owner, taken, None, **WHY)
    assert Owner().answer() == "theirs"


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Give each file of the product by its path, but the one that patches."""
    for path in sorted(DEPLOYMENTS.rglob("*.py")):
        if (name := path.relative_to(DEPLOYMENTS).as_posix()) != "patching.py":
            yield name, ast.parse(path.read_text())


def calls(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Give each call of `deployments.patching`: how, owner, and name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            how = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            method_of_a_list = how == "extend" and isinstance(node.func, ast.Attribute)
            if how in ("patch", "patched", "extend") and not method_of_a_list:
                owner, name = node.args[:2]
                yield how, ast.unparse(owner), name.value if isinstance(name, ast.Constant) else ast.unparse(name)


def imports(tree: ast.Module) -> dict[str, str]:
    """Return the names that a file imports, wherever in it, with the module that each comes from."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.asname or alias.name).split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node.module or "" for alias in node.names}
    return found


def root(node: ast.AST) -> str | None:
    """Return the name that an expression such as `a.b[c].d` begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def parts(node: ast.AST | None) -> list[ast.AST]:
    """Return what a value may be (`a or b`), or what is assigned to at once (`a, b`)."""
    if isinstance(node, ast.BoolOp):
        return node.values  # type: ignore[return-value]
    if isinstance(node, ast.IfExp):
        return [node.body, node.orelse]
    return node.elts if isinstance(node, ast.Tuple | ast.List) else [node] if node is not None else []  # type: ignore[return-value]


def assignments(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST | None]]:
    """Give each target of an assignment or deletion with its value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            yield from ((part, node.value) for target in node.targets for part in parts(target))
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            yield node.target, node.value
        elif isinstance(node, ast.Delete):
            yield from ((part, None) for target in node.targets for part in parts(target))


def changes(tree: ast.Module) -> Iterator[str]:
    """Give what is assigned to attributes or items of what a library has, and to names with underscores of anything.

    A library's are imported names, and names that are given the value of one. The environment of the process is not counted.
    """
    theirs = {name for name, module in imports(tree).items() if module.split(".")[0] != "deployments"}
    for target, value in assignments(tree):
        if isinstance(target, ast.Name) and theirs & {root(part) for part in parts(value)}:
            theirs.add(target.id)
    for target, _ in assignments(tree):
        if not isinstance(target, ast.Attribute | ast.Subscript):
            continue
        special = isinstance(target, ast.Attribute) and target.attr.startswith("__")
        written = ast.unparse(target)
        if (special or root(target) in theirs) and not written.startswith("os.environ["):
            yield written
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            yield ast.unparse(node)


def test_every_patch_is_listed() -> None:
    assert {(file, *call) for file, tree in modules() for call in calls(tree)} == PATCHES


def test_libraries_are_changed_in_no_other_way() -> None:
    assert {(file, change) for file, tree in modules() for change in changes(tree)} == OTHER_CHANGES


def test_nothing_is_mocked_outside_tests() -> None:
    mocking = {file for file, tree in modules() for name in imports(tree).items() if "mock" in " ".join(name)}
    assert mocking == set()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import ray\nray.util.x = 1", ["ray.util.x"]),
        ("from vllm import engine as e\ne.Core.step += 1", ["e.Core.step"]),
        ("from vllm import Core\nmade = other or Core\nmade.a, made.b = 1, 2", ["made.a", "made.b"]),
        ("from vllm import TABLE\nTABLE['x'] = 1\ndel TABLE['y']", ["TABLE['x']", "TABLE['y']"]),
        ("def f(x):\n    x.y.__class__ = int", ["x.y.__class__"]),
        ("def f(x):\n    setattr(x, 'y', 1)", ["setattr(x, 'y', 1)"]),
        ("from deployments import metrics\nmetrics.x = 1", []),
        ("import os\nos.environ['A'] = 'b'", []),
        ("class A:\n    def f(self):\n        self.x = 1", []),
    ],
)
def test_what_the_scan_finds(code: str, found: list[str]) -> None:
    assert list(changes(ast.parse(code))) == found


def test_the_scan_reads_the_product() -> None:
    files = [file for file, _ in modules()]
    assert {"application.py", "ingress/server.py", "engine_client/client.py"} <= set(files)
    assert Path(DEPLOYMENTS, "patching.py").is_file()


def test_a_name_from_a_variable_is_listed_as_it_is_written() -> None:
    tree: Any = ast.parse("patch(owner.field, name, 1)\nlines.extend(more)\npatching.patched(a, 'b', 1)")
    assert list(calls(tree)) == [("patch", "owner.field", "name"), ("patched", "a", "b")]
