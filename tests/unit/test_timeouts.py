"""The table of time limits, docs/timeouts.md, and the files and the code that set them."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deployments.host.environment import HARD_STOP, SERVING
from deployments.settings import IngressSettings, LLMSettings
from tests.support.paths import ROOT

TEXT = (ROOT / "docs" / "timeouts.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in TEXT.splitlines() if line.startswith("| ")]
CONFIG = """
import sys
from ray.serve._private import haproxy
from deployments.host import proxy
proxy.prepare()
servers = [haproxy.ServerConfig("one", "127.0.0.1", 30000)]
backend = haproxy.BackendConfig(name="all", path_prefix="/", app_name="all", servers=servers)
folder = sys.argv[1]
config = haproxy.HAProxyConfig(socket_path=f"{folder}/admin.sock", server_state_base=folder, server_state_file=f"{folder}/state")
haproxy.HAProxyApi(config, {"all": backend}, f"{folder}/haproxy.cfg")._generate_config_file_internal()
"""
SECONDS = {"ms": 0.001, "s": 1}
LINE = re.compile(r"(\S+) (\d+(?:ms|s|m|h))\b")
"""A word and a time, as HAProxy, nginx and Caddy write them."""
SET = re.compile(r"`([\w/]+\.py): ([A-Z_]+)`")
LINKED = re.compile(r"\[`([^`]+)`\]\(([^)]+)\)")


def seconds(value: str) -> float:
    """Return a cell's value, such as `10 s` or `250ms`."""
    number, unit = re.fullmatch(r"([\d.]+) ?(ms|s)", value).groups()  # type: ignore[union-attr]
    return float(number) * SECONDS[unit]


def section(title: str) -> list[list[str]]:
    """Return the rows of a section, without the heads of its tables."""
    part = TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return [row for row in ROWS if f"| {' | '.join(row)}"[:40] in part and row[0] != "limit"]


def constant(path: str, name: str) -> float:
    """Return the value that a file assigns to a name, without importing it."""
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names, values = (target.elts, node.value.elts) if isinstance(target, ast.Tuple) else ([target], [node.value])  # type: ignore[attr-defined]
                for one, value in zip(names, values, strict=True):
                    if isinstance(one, ast.Name) and one.id == name:
                        return float(ast.literal_eval(value))
    raise AssertionError(f"{path} has no {name}")


def test_every_time_in_haproxys_file_is_in_the_table(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", CONFIG, str(tmp_path)], env=os.environ | SERVING, cwd=ROOT, check=True, timeout=120)
    lines = [line.split("#")[0].strip() for line in (tmp_path / "haproxy.cfg").read_text().splitlines()]
    found = {}
    for line in lines:
        for word, value in LINE.findall(line):
            found[f"{line.split()[0]} {word}" if line.startswith(("timeout", "stats")) else word] = value
    table = {row[0].strip("`"): row[1] for row in section("HAProxy")}
    assert table.pop("timeout server") == "none"
    assert found == table


def test_the_limits_of_proxies_are_those_of_our_configurations() -> None:
    written = {LINKED.search(f"[`{found[0]}`]({found[1]})").groups() for found in LINKED.findall(TEXT)}  # type: ignore[union-attr]
    for name in ("nginx.conf", "Caddyfile"):
        config = "\n".join(line.split("#")[0] for line in (ROOT / "docs" / "proxies" / name).read_text().splitlines())
        times = {f"{word} {value}" for word, value in LINE.findall(config) if not word.endswith("_size")}
        assert times == {words for words, path in written if path == f"proxies/{name}"}


def test_the_limits_of_kubernetes_are_those_of_our_file() -> None:
    written = {words for words, path in LINKED.findall(TEXT) if path == "../cluster/kuberay.yaml"}
    text = (ROOT / "cluster" / "kuberay.yaml").read_text()
    assert {words for words in written if words not in text} == set()
    named = re.findall(r"(?<![\w-])(\w+Seconds: \d+|[\w-]+-timeout: \S+|--\S+-seconds \d+)", text)
    assert set(named) == written
    [linked] = [words for words, path in LINKED.findall(TEXT) if path == "../cluster/4090.yaml"]
    assert linked in (ROOT / "cluster" / "4090.yaml").read_text()


@pytest.mark.parametrize("row", [row for row in ROWS if SET.search(row[-1])], ids=lambda row: row[0])
def test_the_constants_have_these_values(row: list[str]) -> None:
    path, name = SET.search(row[-1]).groups()  # type: ignore[union-attr]
    unit = 0.001 if name.endswith("_MS") else 1
    assert constant(path, name) * unit == seconds(row[1])


@pytest.mark.parametrize(("name", "section"), [("ingress", IngressSettings), ("llm", LLMSettings)])
def test_every_setting_of_a_time_is_in_the_table_with_its_default(name: str, section: type[IngressSettings | LLMSettings]) -> None:
    defaults = {f"`{name}.{key}`": field.default for key, field in section.model_fields.items() if key.endswith("_s")}
    assert {row[-1]: seconds(row[1]) for row in ROWS if row[-1] in defaults} == defaults


def test_the_longest_limit_covers_what_a_leaving_ingress_has() -> None:
    """A port is used again only when no HAProxy that knows it is left, and ports do not run out."""
    from ray.serve._private import constants

    longest = int(SERVING[HARD_STOP])
    assert longest >= 2 * IngressSettings().graceful_shutdown_timeout_s
    [port] = [row for row in ROWS if row[0] == "the port of an ingress that has left"]
    assert seconds(port[1]) == longest + 30
    assert "float(RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S + 30)" in Path(constants.__file__).read_text()
    ports = constants.RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT - constants.RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT
    assert ports == 1000
    assert seconds(port[1]) / 5 < ports, "an ingress that dies every five seconds"
    grace = yaml.safe_load(re.search(r"terminationGracePeriodSeconds: (\d+)", (ROOT / "cluster/kuberay.yaml").read_text())[1])  # type: ignore[index]
    assert grace > IngressSettings().graceful_shutdown_timeout_s
