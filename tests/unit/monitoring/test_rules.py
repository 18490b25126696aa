"""Every alert is silent before, and fires after: promtool runs the committed rules on series of the test's own."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.observability import metrics
from monitoring import rules
from monitoring.generate import HERE
from tests.support.programs import needs

RULES = [str(HERE / "rules" / f"{name}.yaml") for name in ("recording", "alerts")]
GROUPS = [rules.recording()["groups"][0]["name"], rules.alerts()["groups"][0]["name"]]
M = '{model="m"}'


def slo(met: str) -> str:
    return f'satori_slo_requests_total{{model="m", met="{met}"}}'


def llm(name: str, labels: str = "") -> str:
    return f'{name}{{model="m", engine="0"{labels}}}'


def replicas(deployment: str, state: str) -> str:
    return f'satori_replicas{{deployment="{deployment}", state="{state}"}}'


def target(deployment: str) -> str:
    return f'up{{job="satori", deployment="{deployment}", replica="r", node="n"}}'


# Alert -> the minutes between values, the series, the minute at which it is silent yet, and the one at which it fires.
CASES: dict[str, tuple[int, dict[str, str], int, int]] = {
    "SatoriErrorBudgetBurnFast": (1, {slo("yes"): "0+100x120", slo("no"): "0x60 25+25x60"}, 60, 120),
    "SatoriErrorBudgetBurnSlow": (5, {slo("yes"): "0+100x200", slo("no"): "0x100 10+10x100"}, 500, 900),
    "SatoriErrorBudgetBurnCreeping": (60, {slo("yes"): "0+1000x200", slo("no"): "0x80 20+20x120"}, 80 * 60, 180 * 60),
    "SatoriNoIngress": (1, {target("Ingress"): "1x10 0x10"}, 10, 13),
    "SatoriNoLLMReplica": (
        1,
        {replicas("LLM", "RUNNING"): "1x10 0x10", 'satori_replicas_target{deployment="LLM"}': "1x20"},
        11,
        14,
    ),
    "SatoriTargetDown": (1, {target("LLM"): "1x10 0x10"}, 11, 14),
    "SatoriStartupTooLong": (1, {replicas("LLM", "STARTING"): "0x5 1x30"}, 18, 25),
    "SatoriFailovers": (1, {f"satori_failover_requests_total{M}": "0x20 5x5"}, 20, 22),
    "SatoriStoreFailing": (1, {f"satori_store_failures_total{M}": "0x10 4x10 14x5"}, 20, 23),
    "SatoriGPULost": (1, {"satori_cluster_gpus": "8x20 7x10"}, 20, 24),
    "SatoriQueueGrowing": (
        1,
        {
            llm("vllm:num_requests_waiting"): "5x20 25+10x20",
            f"satori_unassigned_requests{M}": "0x40",
            replicas("LLM", "RUNNING"): "1x40",
        },
        20,
        30,
    ),
    "SatoriKVCacheFull": (
        1,
        {llm("vllm:kv_cache_usage_perc"): "0.5x10 0.99x20", llm("vllm:num_preemptions_total"): "0x10 1+1x20"},
        14,
        22,
    ),
    "SatoriGoodputFalling": (1, {slo("yes"): "0+100x60 6010+10x60", slo("no"): "0x60 90+90x60"}, 60, 85),
    "SatoriStrayStates": (1, {'satori_stray_states{deployment="Ingress", replica="r"}': "0x10 1x5"}, 10, 13),
    "SatoriIngressSaturated": (
        1,
        {'process_cpu_seconds_total{deployment="Ingress", replica="r"}': "0+30x20 660+59x20"},
        20,
        34,
    ),
}

with_promtool = needs("promtool")


def run_suite(folder: Path, step: int, case: dict[str, Any]) -> None:
    """Evaluate the rules every `step` minutes: what is recorded before the alerts on it, which promtool else does in any order.

    With steps longer than five minutes (Prometheus' look-back) an alert that came first would see nothing recorded.
    """
    suite = folder / "suite.yaml"
    every = f"{step}m"
    tests = [{"interval": every} | case]
    suite.write_text(
        yaml.safe_dump({"rule_files": RULES, "evaluation_interval": every, "group_eval_order": GROUPS, "tests": tests})
    )
    promtool("test", "rules", str(suite))


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def firing(alert: str, minute: int, count: int) -> dict[str, Any]:
    expr = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)'
    return {"expr": expr, "eval_time": f"{minute}m", "exp_samples": [{"labels": "{}", "value": count}]}


@with_promtool
@pytest.mark.parametrize("alert", CASES)
def test_an_alert_is_silent_and_then_fires(alert: str, tmp_path: Path) -> None:
    step, series, silent, loud = CASES[alert]
    case = {
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [firing(alert, silent, 0), firing(alert, loud, 1)],
    }
    run_suite(tmp_path, step, case)


def test_each_alert_has_a_case_and_a_runbook_entry() -> None:
    declared = [rule["alert"] for rule in rules.alerts()["groups"][0]["rules"]]
    assert sorted(declared) == sorted(CASES)
    headings = re.findall(r"^## (\w+)$", (HERE / "runbook.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(declared)


@with_promtool
def test_the_configuration_and_the_rules_are_valid() -> None:
    promtool("check", "config", str(HERE / "prometheus.yml"))
    promtool("check", "rules", *RULES)


def test_the_images_are_pinned() -> None:
    services = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]
    assert set(services) == {"prometheus", "alertmanager", "grafana"}
    assert services["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer", "who needs no password changes nothing"
    for service in services.values():
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+@sha256:[0-9a-f]{64}", service["image"])


@with_promtool
def test_scaled_to_zero_on_purpose_is_no_alarm(tmp_path: Path) -> None:
    series = {replicas("LLM", "RUNNING"): "1x10 0x60", 'satori_replicas_target{deployment="LLM"}': "1x9 0x61"}
    case = {
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [firing("SatoriNoLLMReplica", 60, 0)],
    }
    run_suite(tmp_path, 1, case)


def test_rules_name_declared_metrics_only() -> None:
    text = "".join(Path(path).read_text() for path in RULES)
    recorded = {rule["record"] for rule in rules.recording()["groups"][0]["rules"]}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bsatori_\w+", text)}
    assert ours
    assert ours <= {metric.name for metric in metrics.ALL}
    assert set(re.findall(r"\bsatori:[\w:]+", text)) == recorded
