"""The autoscaling policy on Ray Serve: Serve's controller calls it all the time with what replicas and ingresses report.

It makes signals of the reports, asks `deployments.autoscaling` for a number, and writes down each change: in the log, as metrics of
the controller's process, and in Ray's key-value store, from which the ingress' route `/status` has it.

Serve sends this module to the controller by value (Ray 2.60.0), with its globals; what it imports, the controller imports itself.
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

from deployments import exposition, leaving, logs, metrics
from deployments.autoscaling import Decision, Report, decide, gather
from deployments.learned import Memory
from deployments.settings import Settings

NAMESPACE, KEY = "satori-autoscaling", "status"
DECISIONS_KEPT = 20
WRITE_S = 2.0

logger = logs.logger("autoscaling")


class Counts:
    """The counts of all replicas as they were last seen (see `deployments.reporting`), of which rates are made."""

    def __init__(self) -> None:
        self._seen: dict[Any, tuple[float, dict[str, float]]] = {}
        self._reports: dict[Any, Report] = {}

    def reports(self, raw: Mapping[str, Mapping[Any, Any]]) -> list[Report]:
        """Return a report a replica. `raw` is what Serve has: names of counts, ids of replicas, and (timestamp, value) series."""
        latest: dict[Any, dict[str, float]] = {}
        times: dict[Any, float] = {}
        for name, of_replicas in raw.items():
            for replica, series in of_replicas.items():
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
        """Return the requests that a replica had when it reported last; None when it never did."""
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
    )


class Scaler:
    """Serve's autoscaling policy for the deployment of LLM replicas; `settings` is a dump of all settings."""

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
        _decide_from_zero_too()
        leaving.install(self._counts.load)

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
            # One that gets a replica leaves here and arrives there: both together count it once.
            arrivals_unplaced_per_s=(unplaced - before) / (now_s - before_s) if now_s > before_s > 0 else 0.0,
        )
        decision = decide(signals, self._settings, self._memory)
        self._memory = decision.memory
        changed = decision.replicas != context.target_num_replicas
        if changed:
            self._note(decision, context.target_num_replicas, now_s)
        name = context.deployment_name
        metrics.AUTOSCALING_DESIRED.labels(name).set(decision.replicas)
        metrics.AUTOSCALING_ACTUAL.labels(name).set(context.current_num_replicas)
        if changed:
            metrics.AUTOSCALING_DECISIONS.labels(name, decision.reason).inc()
        if changed or now_s - self._written_s > WRITE_S:
            self._written_s = now_s
            self._write(decision, asdict(signals))
        return decision.replicas, {}

    def _note(self, decision: Decision, before: int, now_s: float) -> None:
        at = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="seconds")
        inputs = {name: round(value, 4) for name, value in decision.inputs.items()}
        self._decisions.append(
            {"at": at, "from": before, "to": decision.replicas, "reason": str(decision.reason), "inputs": inputs}
        )
        logger.info("LLM replicas %d -> %d: %s; %s", before, decision.replicas, decision.reason, json.dumps(inputs))

    def _write(self, decision: Decision, signals: dict[str, float]) -> None:
        """Let the ingresses know."""
        status = {
            "desired": decision.replicas,
            "reason": str(decision.reason),
            "startup_s": round(decision.inputs["startup_s"], 1),
            "signals": {name: round(value, 4) for name, value in signals.items()},
            "inputs": {name: round(value, 4) for name, value in decision.inputs.items()},
            "decisions": list(self._decisions),
        }
        internal_kv._internal_kv_put(KEY, json.dumps(status), namespace=NAMESPACE)


def _decide_from_zero_too() -> None:
    """Have Serve ask the policy also when there is no replica.

    Serve (Ray 2.60.0) answers for every policy then, until one is up: it starts one, of which the policy would not hear. Goes when
    a policy can say no to that.
    """
    theirs = autoscaling_policy._get_cold_start_scale_up_replicas

    def none_for_ours(context: AutoscalingContext) -> int | None:
        return None if context.deployment_name == "LLM" else theirs(context)

    autoscaling_policy._get_cold_start_scale_up_replicas = none_for_ours


def status() -> dict[str, Any] | None:
    """Return what the policy wrote last; None where autoscaling is off."""
    written = internal_kv._internal_kv_get(KEY, namespace=NAMESPACE)
    return None if written is None else json.loads(written)
