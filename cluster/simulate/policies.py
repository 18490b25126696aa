"""The policies that the simulator compares: ours, Ray Serve's, by queue or KV cache alone, a fixed number, and an oracle."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from cluster.simulate.replica_model import Floats, ReplicaModel
from deployments.autoscaling.memory import Memory
from deployments.autoscaling.policy import Decision, decide
from deployments.autoscaling.signals import Signals
from deployments.settings import AutoscalingSettings


@dataclass
class Ours:
    """The application's own policy, `deployments.autoscaling.policy.decide`."""

    settings: AutoscalingSettings
    memory: Memory = field(default_factory=Memory)
    last: Decision | None = None

    def replicas(self, signals: Signals) -> int:
        """Return the policy's decision."""
        self.last = decide(signals, self.settings, self.memory)
        self.memory = self.last.memory
        return self.last.replicas


@dataclass
class RequestCount:
    """Ray Serve's default policy: Ray 2.60's own functions, on the mean number of requests in the last `look_back_period_s`."""

    target_ongoing_requests: float
    max_replicas: int
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0
    look_back_period_s: float = 30.0
    _seen: deque[tuple[float, float]] = field(default_factory=deque)
    _state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from ray.serve.config import AutoscalingConfig

        self._config = AutoscalingConfig(
            min_replicas=1,
            max_replicas=self.max_replicas,
            target_ongoing_requests=self.target_ongoing_requests,
            upscale_delay_s=self.upscale_delay_s,
            downscale_delay_s=self.downscale_delay_s,
            upscaling_factor=self.upscaling_factor,
            downscaling_factor=self.downscaling_factor,
            look_back_period_s=self.look_back_period_s,
        )

    def replicas(self, signals: Signals) -> int:
        """Return the number that Ray's controller would set."""
        from ray.serve.autoscaling_policy import (
            _apply_delay_logic,
            _apply_scaling_factors,
            replica_queue_length_autoscaling_policy,
        )

        self._seen.append((signals.now_s, signals.ongoing))
        while self._seen[0][0] < signals.now_s - self.look_back_period_s:
            self._seen.popleft()
        context = SimpleNamespace(
            config=self._config,
            current_num_replicas=signals.ready,
            target_num_replicas=signals.target,
            total_num_requests=sum(ongoing for _, ongoing in self._seen) / len(self._seen),
            policy_state=self._state,
        )
        desired, _ = replica_queue_length_autoscaling_policy(context)
        scaled = max(0, _apply_scaling_factors(desired, signals.ready, self._config))
        if signals.ready:
            scaled, self._state = _apply_delay_logic(scaled, signals.target, self._config, self._state, _now=signals.now_s)
        return min(max(scaled, 1), self.max_replicas)


@dataclass
class Hpa:
    """Kubernetes' horizontal pod autoscaler, as KEDA drives it.

    It decides every 15 s. Upwards, it at most doubles the replicas or adds four. Downwards, it takes the largest number of the last
    `stabilization_s` (https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/). With `by="queue"` it wants a
    replica for each `target` waiting requests, with `by="kv_cache"` a mean use of the KV caches of `target`, give or take 10 %.
    """

    by: str
    target: float
    max_replicas: int
    stabilization_s: float = 300.0
    _last_s: float = -math.inf
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)

    def replicas(self, signals: Signals) -> int:
        """Return the autoscaler's number of replicas."""
        if signals.now_s - self._last_s < 15:
            return signals.target
        self._last_s = signals.now_s
        if self.by == "queue":
            wanted = math.ceil((signals.waiting + signals.unplaced) / self.target)
        else:
            ratio = signals.kv_cache_usage / max(signals.reporting, 1) / self.target
            wanted = signals.target if abs(ratio - 1) <= 0.1 else math.ceil(signals.reporting * ratio)
        wanted = min(max(wanted, 1), self.max_replicas)
        self._wanted.append((signals.now_s, wanted))
        while self._wanted[0][0] < signals.now_s - self.stabilization_s:
            self._wanted.popleft()
        if wanted > signals.target:
            return min(wanted, max(2 * signals.target, signals.target + 4))
        return min(signals.target, max(count for _, count in self._wanted))


@dataclass
class Static:
    """Always `count` replicas."""

    count: int

    def replicas(self, signals: Signals) -> int:
        """Return the count."""
        return self.count


class Oracle:
    """Knows all requests in advance. It starts replicas early enough, and keeps none longer than needed.

    It needs a replica for each `per_replica` requests, where a request runs as long as it does on a replica with that many.
    """

    def __init__(
        self, workload: Iterable[Floats], model: ReplicaModel, per_replica: float, duration_s: float, max_replicas: int
    ) -> None:
        need = np.zeros(int(duration_s) + 7200)
        for arrived, prompt, reply in (chunk.T for chunk in workload):
            kv = min(per_replica * float((prompt + reply / 2).mean()), model.kv_tokens) if len(reply) else 0.0
            token_s = float(model.step(np.array(per_replica), np.array(kv)))
            need += np.bincount(np.minimum(arrived, len(need) - 1).astype(int), minlength=len(need))
            left = arrived + prompt / model.prefill_tokens_per_s + reply * token_s
            need -= np.bincount(np.minimum(left + 1, len(need) - 1).astype(int), minlength=len(need))
        need = np.ceil(np.cumsum(need) / per_replica)
        lead = math.ceil(model.startup_s * (1 + model.startup_spread)) + 6
        windows = np.lib.stride_tricks.sliding_window_view(np.append(need, np.zeros(lead)), lead + 1)
        self._target = np.clip(windows.max(axis=1), 1, max_replicas).astype(int)

    def replicas(self, signals: Signals) -> int:
        """Return the most replicas that are needed from now until a replica that starts now would be up."""
        return int(self._target[min(int(signals.now_s), len(self._target) - 1)])
