"""Recording rules and alerts, from declared metrics and the objectives in `slo`. `runbook.md` says what to do about each alert."""

from typing import Any

from deployments.observability import metrics
from monitoring import slo
from monitoring.queries import quantile, rate, ratio, select, total

RUNBOOK = "monitoring/runbook.md"
GOOD, ASKED, WAITING, GPUS = "satori:good:rate", "satori:asked:rate", "satori:waiting:sum", "satori:cluster_gpus:max"
RUNNING = "max(" + select(metrics.REPLICAS, 'deployment="LLM"', 'state="RUNNING"', of=()) + ")"
STARTING = select(metrics.REPLICAS, 'state="STARTING"', of=())
TARGET = "max(" + select(metrics.REPLICAS_TARGET, 'deployment="LLM"', of=()) + ")"


def bad(window: str) -> str:
    """Return the name of the recorded series: the share of bad requests over a window."""
    return f"satori:bad:ratio_rate{window}"


def slo_rate(window: str, *where: str) -> str:
    """Return the rate of requests that count for goodput, by model."""
    return rate(metrics.SLO_REQUESTS, "model", where=where, of=(), window=window)


def recording() -> dict[str, Any]:
    """Return the recording rules, for what alerts and boards need over long windows or as a single series."""
    rules = [_record(bad(window), ratio(slo_rate(window, 'met="no"'), slo_rate(window))) for window in slo.WINDOWS]
    for window in ("5m", "1h"):
        rules += [_record(GOOD + window, slo_rate(window, 'met="yes"')), _record(ASKED + window, slo_rate(window))]
    in_engines = total("vllm:num_requests_waiting", "model", of=())
    rules.append(_record(WAITING, f"{in_engines} + on (model) {total(metrics.UNASSIGNED, 'model', of=())}"))
    rules.append(_record(GPUS, f"max({select(metrics.CLUSTER_GPUS, of=())})"))
    return {"groups": [{"name": "satori", "rules": rules}]}


def alerts() -> dict[str, Any]:
    """Return the alerts."""
    budget = f"{1 - slo.OBJECTIVE:.2f}"
    rules = [
        _alert(
            f"SatoriErrorBudgetBurn{burn.name}",
            f"{bad(burn.long)} > {burn.rate:g} * {budget} and {bad(burn.short)} > {burn.rate:g} * {budget}",
            burn.lasting,
            burn.severity,
            f"{{{{ $value | humanizePercentage }}}} of the requests of {{{{ $labels.model }}}} are late or fail: the error budget"
            f" is spent {burn.rate:g} times as fast as {slo.PERIOD_DAYS} days allow.",
        )
        for burn in slo.BURNS
    ]
    return {"groups": [{"name": "satori-alerts", "rules": rules + _availability() + _capacity()}]}


def _availability() -> list[dict[str, Any]]:
    return [
        _alert("SatoriNoIngress", 'absent(up{job="satori", deployment="Ingress"} == 1)', "1m", "page", "No ingress answers."),
        _alert(
            "SatoriNoLLMReplica",
            f"{RUNNING} == 0 and {TARGET} > 0",
            "2m",
            "page",
            "No LLM replica is running, though some are wanted: requests wait.",
        ),
        _alert(
            "SatoriTargetDown",
            'up{job="satori"} == 0',
            "2m",
            "ticket",
            "{{ $labels.deployment }} {{ $labels.replica }} on {{ $labels.node }} is running, but its metrics cannot be scraped.",
        ),
        _alert(
            "SatoriStartupTooLong",
            f"max by (deployment) ({STARTING}) > 0",
            f"{slo.STARTUP_S // 60}m",
            "ticket",
            "A replica of {{ $labels.deployment }} has been starting for too long, or replicas fail to start one after the other.",
        ),
        _alert(
            "SatoriFailovers",
            f"sum by (model) (increase({select(metrics.FAILOVER_REQUESTS, of=())}[10m])) >= {slo.FAILOVERS}",
            "0m",
            "ticket",
            "{{ $value | humanize }} requests of {{ $labels.model }} have moved away from lost LLM replicas within 10 minutes.",
        ),
        _alert(
            "SatoriStoreFailing",
            f"sum(increase({select(metrics.STORE_FAILURES, of=())}[5m])) >= {slo.STORE_FAILURES}",
            "1m",
            "ticket",
            "The store has failed {{ $value | humanize }} times within 5 minutes: stored responses wait.",
        ),
        _alert(
            "SatoriGPULost",
            f"{GPUS} < max_over_time({GPUS}[1h]) or DCGM_FI_DEV_XID_ERRORS == 79",
            "1m",
            "page",
            "The cluster has fewer GPUs than it had within the last hour, or a GPU has fallen off its bus.",
        ),
    ]


def _capacity() -> list[dict[str, Any]]:
    full = f"max by (model, engine) ({select('vllm:kv_cache_usage_perc', of=())}) > {slo.KV_FULL}"
    preempting = rate("vllm:num_preemptions_total", "model", "engine", of=(), window="5m")
    busy = rate("process_cpu_seconds_total", "replica", where=['deployment="Ingress"'], of=(), window="5m")
    late = quantile(0.9, metrics.LOOP_LAG, "replica", of=(), window="5m")
    return [
        _alert(
            "SatoriQueueGrowing",
            f"{WAITING} > {slo.QUEUE_PER_REPLICA} * scalar(clamp_min({RUNNING}, 1)) and deriv({WAITING}[10m]) > 0",
            "5m",
            "page",
            "{{ $value }} requests of {{ $labels.model }} are waiting, and their number is growing.",
        ),
        _alert(
            "SatoriKVCacheFull",
            f"{full} and on (model, engine) {preempting} > 0",
            "5m",
            "ticket",
            "The KV cache of engine {{ $labels.engine }} is full, and requests are preempted.",
        ),
        _alert(
            "SatoriGoodputFalling",
            f"{GOOD}5m < {slo.GOODPUT_DROP} * {GOOD}1h and {ASKED}5m > 0.8 * {ASKED}1h",
            "10m",
            "page",
            "Good replies of {{ $labels.model }} have fallen to {{ $value | humanize }} per second, at the same demand as before.",
        ),
        _alert(
            "SatoriStrayStates",
            f"{select(metrics.STRAYS, of=())} > 0",
            "1m",
            "ticket",
            "Ingress {{ $labels.replica }} keeps {{ $value }} states of requests that no engine has: a bug.",
        ),
        _alert(
            "SatoriIngressSaturated",
            f"{busy} > {slo.INGRESS_CPU} or {late} > {slo.LOOP_LAG_S}",
            "5m",
            "ticket",
            "Ingress {{ $labels.replica }} is at its limit: every token waits for it.",
        ),
    ]


def _record(name: str, expr: str) -> dict[str, Any]:
    return {"record": name, "expr": expr}


def _alert(name: str, expr: str, lasting: str, severity: str, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expr,
        "for": lasting,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "runbook_url": f"{RUNBOOK}#{name.lower()}"},
    }
