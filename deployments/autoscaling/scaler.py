"""The autoscaling policy on Ray Serve: Serve's controller calls it all the time with what replicas and ingresses report.

It turns the reports into signals, asks `deployments.autoscaling.policy` for a number of replicas, and records each change: in the
log, as metrics of the controller's process, and in Ray's key-value store, where the ingress' route `/status` reads it.

Serve (Ray 2.60.0) sends this module to the controller by value, with its globals. The modules that it imports are imported there.
"""

import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from ray.experimental import internal_kv
from ray.serve import autoscaling_policy
from ray.serve.config import AutoscalingContext

from deployments.autoscaling import downscaling
from deployments.autoscaling.memory import Memory
from deployments.autoscaling.policy import Decision, decide
from deployments.autoscaling.signals import Report, gather
from deployments.observability import exposition, logs, metrics
from deployments.patching import patch
from deployments.settings import Settings

NAMESPACE, KEY = "satori-autoscaling", "status"
DECISIONS_KEPT = 20
WRITE_S = 2.0

logger = logs.logger("autoscaling")


class Counts:
    """The last counts of all replicas (see `deployments.replica.meter`), from which rates are computed."""

    def __init__(self) -> None:
        self._seen: dict[Any, tuple[float, dict[str, float]]] = {}
        self._reports: dict[Any, Report] = {}

    def reports(self, raw: Mapping[str, Mapping[Any, Any]]) -> list[Report]:
        """Return one report per replica. `raw` is what Serve has: by count name and replica id, a series of (timestamp, value)."""
        latest: dict[Any, dict[str, float]] = {}
        times: dict[Any, float] = {}
        for name, by_replica in raw.items():
            for replica, series in by_replica.items():
                if series:
                    latest.setdefault(replica, {})[name] = series[-1].value
                    times[replica] = series[-1].timestamp
        for replica, counts in latest.items():
            before_s, before = self._seen.get(replica, (times[replica] - WRITE_S, dict.fromkeys(counts, 0.0)))
            if "running" in counts and times[replica] > before_s:
                self._reports[replica] = _report(times[replica], times[replica] - before_s, counts, before)
                self._seen[replica] = times[replica], counts
        for gone in self._seen.keys() - latest.keys():
            del self._seen[gone], self._reports[gone]
        return list(self._reports.values())

    def load(self, replica: Any) -> float | None:
        """Return the requests that a replica had in its last report; None if it has never reported."""
        report = self._reports.get(replica)
        return None if report is None else report.running + report.waiting


def _report(at_s: float, passed_s: float, now: dict[str, float], before: dict[str, float]) -> Report:
    def rate(name: str) -> float:
        return max(0.0, now[name] - before.get(name, 0.0)) / passed_s

    started = now["started"] - before.get("started", 0.0)
    return Report(
        at_s=at_s,
        running=now["running"],
        waiting=now["waiting"],
        queued_prompt_tokens=now["queued_prompt_tokens"],
        kv_cache_usage=now["kv_cache_usage"],
        preemptions_per_s=rate("preempted"),
        decode_tokens_per_s=rate("generated"),
        prefill_tokens_per_s=rate("read"),
        arrivals_per_s=rate("arrived"),
        ended_per_s=rate("ended"),
        queue_time_s=(now["queued_s"] - before.get("queued_s", 0.0)) / started if started > 0 else 0.0,
        deferred_running=now.get("deferred_running", 0.0),
        deferred_waiting=now.get("deferred_waiting", 0.0),
    )


class Scaler:
    """Serve's autoscaling policy for the LLM deployment; `settings` is a dump of all settings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        loaded = Settings.model_validate(settings)
        seqs = {"max_num_seqs": loaded.engine["max_num_seqs"]} if "max_num_seqs" in loaded.engine else {}
        self._settings = loaded.autoscaling.model_copy(update=seqs)
        self._memory = Memory()
        self._counts = Counts()
        self._unplaced = (0.0, 0.0)
        self._decisions: deque[dict[str, Any]] = deque(maxlen=DECISIONS_KEPT)
        self._written_s = 0.0
        exposition.show(metrics.CONTROLLER, loaded)
        _decide_from_zero()
        downscaling.install(self._counts.load)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return how many replicas there should be, and nothing for Serve to remember."""
        now_s = context.current_time or time.time()
        unplaced = context.total_queued_requests or 0.0
        before_s, before = self._unplaced
        self._unplaced = now_s, unplaced
        signals = gather(
            self._counts.reports(context.raw_metrics or {}),
            now_s=now_s,
            target=context.target_num_replicas,
            ready=context.current_num_replicas,
            unplaced=unplaced,
            # A request that gets a replica leaves this count and arrives at the replica: together, they count it once.
            arrivals_unplaced_per_s=(unplaced - before) / (now_s - before_s) if now_s > before_s > 0 else 0.0,
        )
        decision = decide(signals, self._settings, self._memory)
        self._memory = decision.memory
        changed = decision.replicas != context.target_num_replicas
        if changed:
            self._record(decision, context.target_num_replicas, now_s)
        name = context.deployment_name
        metrics.AUTOSCALING_DESIRED.labels(name).set(decision.replicas)
        metrics.AUTOSCALING_ACTUAL.labels(name).set(context.current_num_replicas)
        if changed:
            metrics.AUTOSCALING_DECISIONS.labels(name, decision.reason).inc()
        if changed or now_s - self._written_s > WRITE_S:
            self._written_s = now_s
            self._write(decision, asdict(signals))
        return decision.replicas, {}

    def _record(self, decision: Decision, before: int, now_s: float) -> None:
        at = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="seconds")
        inputs = {name: round(value, 4) for name, value in decision.inputs.items()}
        self._decisions.append(
            {"at": at, "from": before, "to": decision.replicas, "reason": str(decision.reason), "inputs": inputs}
        )
        logger.info("LLM replicas %d -> %d: %s; %s", before, decision.replicas, decision.reason, json.dumps(inputs))

    def _write(self, decision: Decision, signals: dict[str, float]) -> None:
        """Write the status that the ingresses read."""
        status = {
            "desired": decision.replicas,
            "reason": str(decision.reason),
            "startup_s": round(decision.inputs["startup_s"], 1),
            "signals": {name: round(value, 4) for name, value in signals.items()},
            "inputs": {name: round(value, 4) for name, value in decision.inputs.items()},
            "decisions": list(self._decisions),
        }
        internal_kv._internal_kv_put(KEY, json.dumps(status), namespace=NAMESPACE)


def _decide_from_zero() -> None:
    """Make Serve ask the policy even when there is no replica."""

    def none_for_ours(context: AutoscalingContext) -> int | None:
        return None if context.deployment_name == "LLM" else original(context)

    original = patch(
        autoscaling_policy,
        "_get_cold_start_scale_up_replicas",
        none_for_ours,
        why="Serve (Ray 2.60.0) decides for every policy when there is no replica: it starts one without asking the policy",
        until="a policy can decline that",
    )


def status() -> dict[str, Any] | None:
    """Return the status that the policy wrote last; None if autoscaling is off."""
    written = internal_kv._internal_kv_get(KEY, namespace=NAMESPACE)
    return None if written is None else json.loads(written)
