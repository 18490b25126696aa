"""A real Prometheus on the real stack under load: what it finds, and that no expression comes back empty."""

import asyncio
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from monitoring import report, rules
from monitoring.board import Panel
from monitoring.boards.catalogue import ANNOTATIONS, BOARDS
from monitoring.serve import PROMETHEUS_PORT, Prometheus, get, taken
from tests.support.application import Served
from tests.support.paths import ROOT
from tests.support.ports import free_ports
from tests.support.processes import output_until
from tests.support.programs import needs, require
from tests.support.until import until, until_async

WINDOW = "20s"
PANELS = [pytest.param(panel, id=f"{board.uid}: {panel.title}") for board in BOARDS for panel in board.panels]
QUESTION = [{"role": "user", "content": "What is 47 * 6 - 100?"}]
VLLMS = """
vllm:num_requests_running vllm:num_requests_waiting vllm:kv_cache_usage_perc vllm:cache_config_info
vllm:prompt_tokens_total vllm:generation_tokens_total vllm:request_success_total vllm:num_preemptions_total
vllm:prefix_cache_hits_total vllm:prefix_cache_queries_total vllm:iteration_tokens_total_bucket
vllm:e2e_request_latency_seconds_bucket vllm:time_to_first_token_seconds_bucket vllm:inter_token_latency_seconds_bucket
vllm:request_queue_time_seconds_sum vllm:request_prefill_time_seconds_sum vllm:request_decode_time_seconds_sum
vllm:request_inference_time_seconds_sum vllm:request_prompt_tokens_bucket vllm:request_generation_tokens_bucket
vllm:request_params_max_tokens_bucket vllm:request_max_num_generation_tokens_bucket
""".split()
"""What vLLM's published dashboards ask for (vllm-project/vllm, examples/observability, November 2026)."""
DCGM = "DCGM_FI_DEV_XID_ERRORS"


def filled(expr: str) -> str:
    """Return an expression with Grafana's variables as they are with everything chosen."""
    return re.sub(r"\$(model|deployment|replica|node|model_name)\b", ".*", expr.replace("$__rate_interval", WINDOW))


async def stream(http: httpx.AsyncClient, **fields: Any) -> None:
    body = {"model": "nano", "messages": QUESTION, "stream": True} | fields
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        async for _ in response.aiter_lines():
            pass


async def leave(http: httpx.AsyncClient) -> None:
    """Ask for a long reply and go away when it has begun."""
    body = {"model": "nano", "messages": QUESTION, "stream": True, "max_tokens": 2000, "ignore_eos": True}
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        async for _ in response.aiter_lines():
            return


async def load(http: httpx.AsyncClient) -> None:
    """Ask for a bit of everything."""
    await asyncio.gather(
        *(stream(http) for _ in range(6)), stream(http, coat={"vote": {"samples": 3, "temperature": 0.5}}), leave(http)
    )
    await http.post("/v1/chat/completions", json={"model": "nano", "messages": QUESTION})
    await http.post("/v1/completions", json={"model": "nano", "prompt": "1", "max_tokens": 4})
    stored = {"model": "nano", "input": "What is 47 * 6 - 100?", "max_output_tokens": 8, "store": True}
    assert (await http.post("/v1/responses", json=stored)).status_code == 200
    assert (await http.post("/v1/completions", json={"model": "nano", "prompt": 7.5})).status_code == 400


@pytest.fixture(scope="module")
def prometheus(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped all replicas before, under and after load, so that it has seen all counters rise."""
    require("prometheus")
    server = Prometheus(served.url, tmp_path_factory.mktemp("prometheus"), free_ports(1)[0], "1s")

    async def fill() -> None:
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as http:
            await load(http)
            await scraped(server, 1)
            for _ in range(3):
                await load(http)
            await scraped(server, 2)

    try:
        server.wait_ready()
        asyncio.run(fill())
        yield server
    finally:
        server.stop()


async def scraped(server: Prometheus, times: int) -> None:
    """Wait until each process has been scraped so often from now on; on a busy machine, a scrape now and then takes too long."""

    async def count() -> int:
        expr = 'min(sum_over_time(up{job="satori"}[1h])) and count(up{job="satori"}) == 3'
        found = await asyncio.to_thread(server.get, "query", query=expr)
        return int(found["result"][0]["value"][1]) if found["result"] else 0

    wanted = await count() + times
    await until_async(count, f"{wanted} scrapes of each process", holds=lambda found: found >= wanted, every_s=0.1)


def numbers(result: list[dict[str, Any]]) -> list[float]:
    return [float(value) for series in result for _, value in series.get("values", [series.get("value", (0, "nan"))])]


def found(prometheus: Prometheus, expr: str) -> list[dict[str, Any]]:
    """Return what an expression finds now. It is asked again: on a busy machine, a scrape now and then takes too long."""
    return until(lambda: list(prometheus.get("query", query=expr)["result"]), expr, 10, every_s=0.5)


def ask(prometheus: Prometheus, panel: Panel, expr: str) -> list[dict[str, Any]]:
    """Ask as Grafana does for this kind of panel."""
    if panel.kind == "stat":
        data = prometheus.get("query", query=filled(expr))
        assert data["resultType"] == "vector"
    else:
        now = float(prometheus.get("query", query="time()")["result"][1])
        data = prometheus.get("query_range", query=filled(expr), start=now - 60, end=now, step=1)
        assert data["resultType"] == "matrix"
    return data["result"]


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_has_data(prometheus: Prometheus, panel: Panel) -> None:
    for query in panel.queries:
        result = ask(prometheus, panel, query.expr)
        if panel.needs and not result:
            continue  # well formed, and of what is not here
        assert any(map(math.isfinite, numbers(result))), query.expr
        if panel.kind == "stat":
            assert len(result) == 1, "one number"
        for label in re.findall(r"{{(\w+)}}", query.legend):
            assert all(series["metric"].get(label) for series in result), f"{query.expr} has no label {label}"


def test_only_these_panels_need_more_than_the_application() -> None:
    found = {(board.title.removeprefix("Satori / "), panel.needs) for board in BOARDS for panel in board.panels if panel.needs}
    assert found == {
        ("Autoscaling", "autoscaling (autoscaling.enabled)"),
        ("Resilience", "several LLM replicas whose caches are followed (routing.cache_events)"),
        ("Overview", "prices of keys (prompt_price, completion_price)"),
        ("Nodes and GPUs", "dcgm-exporter on port 9400 of each GPU node"),
    }


@pytest.mark.parametrize("event", ANNOTATIONS)
def test_annotations_can_be_asked_for(prometheus: Prometheus, event: str) -> None:
    expr, _ = ANNOTATIONS[event]
    assert prometheus.get("query", query=expr)["resultType"] == "vector"
    selectors = re.findall(r"[a-z_:]+(?:{[^}]*}|(?=\[))", expr)
    assert selectors
    for selector in selectors:
        assert found(prometheus, selector)


def test_rules_are_evaluated_and_alerts_have_what_they_look_at(prometheus: Prometheus) -> None:
    loaded = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in loaded} == {"ok"}, [rule for rule in loaded if rule["health"] != "ok"]
    [recording], [alerting] = rules.recording()["groups"], rules.alerts()["groups"]
    assert len(loaded) == len(recording["rules"]) + len(alerting["rules"])
    for rule in recording["rules"]:
        assert any(map(math.isfinite, numbers(found(prometheus, rule["record"])))), rule
    for rule in alerting["rules"]:
        expr = re.sub(r"{[^}]*}", "", rule["expr"])
        names = set(re.findall(r"\b(?:satori|vllm|up|process|DCGM)(?:[:_]\w+)*", expr)) - {DCGM}
        assert names
        for name in names:
            assert found(prometheus, name), rule["alert"]
    assert not [alert for alert in prometheus.get("alerts")["alerts"] if alert["state"] == "firing"]


@pytest.mark.parametrize("name", VLLMS)
def test_vllms_published_dashboards_have_data(prometheus: Prometheus, name: str) -> None:
    model = "" if name.endswith("_info") else ', model_name="nano"'
    selector = f'{name}{{job="satori", instance=~".+", engine="0"{model}}}'
    expr = selector if "_total" not in name and "_seconds" not in name else f"rate({selector}[{WINDOW}])"
    assert found(prometheus, f"sum({expr})")
    assert prometheus.get("query", query="count(vllm:num_requests_running)")["result"][0]["value"][1] == "1", "one engine"


def test_targets_are_found_with_what_tells_them_apart(prometheus: Prometheus) -> None:
    active = [target for target in prometheus.get("targets")["activeTargets"] if target["labels"]["job"] == "satori"]
    assert {target["labels"]["deployment"] for target in active} == {"Ingress", "LLM", "UI"}
    assert {target["health"] for target in active} == {"up"}
    assert all(
        target["labels"]["replica"] and target["labels"]["node"] and target["labels"]["model"] == "nano" for target in active
    )


def test_no_series_is_there_twice(prometheus: Prometheus) -> None:
    """The same metric from two processes, with nothing but the process to tell them apart, would count twice in a sum."""
    expr = 'count by (__name__) (count by (__name__, deployment) ({__name__=~"vllm:.+"}))'
    assert len(prometheus.get("query", query=expr)["result"]) > 20
    assert prometheus.get("query", query=f"{expr} > 1")["result"] == []
    one = (
        'count by (__name__, model_name, engine, le, reason, source, finished_reason, sleep_state) ({__name__=~"vllm:[a-z_]+"}) > 1'
    )
    assert [
        series for series in prometheus.get("query", query=one)["result"] if "tool_call" not in series["metric"]["__name__"]
    ] == []


def test_tokens_add_up(prometheus: Prometheus) -> None:
    """What we count at a request's end is what vLLM counted as it came, up to requests whose client left."""
    ours = float(prometheus.get("query", query='sum(satori_tokens_total{kind!="prompt"})')["result"][0]["value"][1])
    vllms = float(prometheus.get("query", query="sum(vllm:generation_tokens_total)")["result"][0]["value"][1])
    assert ours == pytest.approx(vllms, rel=0.2)


def test_the_report_has_all_boards(prometheus: Prometheus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = report.main(["--prometheus", prometheus.url, "--minutes", "1", "--out", str(tmp_path)])
    assert status == 0, capsys.readouterr().err
    page = (tmp_path / "index.html").read_text()
    for board in BOARDS:
        assert f'<img src="{board.uid}.png"' in page
        assert (tmp_path / f"{board.uid}.png").stat().st_size > 10_000


@needs("prometheus")
async def test_make_monitoring_is_connected(served: Served) -> None:
    if taken(PROMETHEUS_PORT):
        pytest.skip(f"somebody's Prometheus has port {PROMETHEUS_PORT}")
    command = [sys.executable, "-m", "monitoring.serve", "--url", served.url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            said = output_until(process, "Ctrl-C stops it.", 60)
            address = re.search(r"prometheus +(http://\S+)", said)
            assert address, said

            def up() -> list[dict[str, Any]]:
                return list(get(address[1], "query", query='up{job="satori"} == 1')["result"])

            found = await until_async(up, "Prometheus has scraped the application", every_s=0.1)
        finally:
            process.terminate()
    assert found[0]["metric"]["model"] == "nano"
    assert process.returncode == 0
