"""The comparison of routes: `python -m cluster.simulate routing [WORKLOAD ...]` prints its tables as Markdown.

`--ingresses` compares how ours does with several ingresses; `--seeds` are those that nothing was tuned on by default.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

from cluster.simulate.routing.policies import POLICIES, Name, Ours
from cluster.simulate.routing.simulation import simulate
from cluster.simulate.routing.workloads import WORKLOADS
from deployments.routing.placement import Placement
from deployments.routing.score import Work

SEEDS = (1, 2, 3)
INGRESSES = (1, 2, 4)
BASE = "least requests"

Row = dict[str, float]


def rows(workload: str, policy: Callable[[int], Any], seeds: list[int]) -> Row:
    """Return the means over seeds of the figures of a workload with a policy, and the worst share of the fullest replica."""
    runs = [simulate(WORKLOADS[workload], policy(seed), seed).row() for seed in seeds]
    return {name: statistics.fmean(one[name] for one in runs) for name in runs[0]} | {"most": max(one["most"] for one in runs)}


def compared(names: list[str], policies: Mapping[str, Callable[[int], Any]], seeds: list[int]) -> dict[tuple[str, str], Row]:
    """Return the figures by workload and policy, and say on the error output what is done."""
    found = {}
    for workload in names:
        for policy, make in policies.items():
            began = time.process_time()
            found[workload, policy] = rows(workload, make, seeds)
            print(f"{workload}, {policy}: {time.process_time() - began:.1f} s of CPU", file=sys.stderr, flush=True)
    return found


def table(found: dict[tuple[str, str], Row]) -> str:
    """Return the figures as Markdown: times in seconds, prompt tokens computed in millions."""
    lines = [
        "| workload | policy | TTFT p50 | TTFT p95 | E2E p50 | E2E p95 | prompt tokens computed | cached | fullest replica |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (workload, policy), row in found.items():
        lines.append(
            f"| {workload} | {policy} | {row['ttft_p50']:.2f} | {row['ttft_p95']:.2f} | {row['e2e_p50']:.1f} | {row['e2e_p95']:.1f}"
            f" | {row['prefilled'] / 1e6:.2f} | {100 * row['cached']:.0f} % | {row['most']:.2f} |"
        )
    return "\n".join(lines)


def ratios(found: dict[tuple[str, str], Row], policy: str = "ours") -> str:
    """Return as Markdown how a policy does beside least requests, and beside the oracle."""
    lines = ["| workload | TTFT p95 | E2E mean | E2E p95 | prompt tokens, of the oracle's |", "|---|---|---|---|---|"]
    for workload in dict.fromkeys(workload for workload, _ in found):
        row, base, best = found[workload, policy], found[workload, BASE], found[workload, "oracle"]
        lines.append(
            f"| {workload} | {row['ttft_p95'] / base['ttft_p95']:.2f} | {row['e2e_mean'] / base['e2e_mean']:.2f}"
            f" | {row['e2e_p95'] / base['e2e_p95']:.2f} | {row['prefilled'] / best['prefilled']:.2f} |"
        )
    return "\n".join(lines)


def cost_s(replicas: int = 100, requests: int = 2000, times: int = 30) -> float:
    """Return the least CPU time that it took to choose one of so many replicas for a request, and to count it there."""
    placement, handles = Placement(), [SimpleNamespace(replica_id=Name(f"replica-{number}")) for number in range(replicas)]
    placement.update(cast(Any, handles))
    cached = {str(handle.replica_id): float(number % 7 * 100) for number, handle in enumerate(handles)}
    placement.cached = lambda blocks: cached

    def place(request_id: str) -> None:
        placement.expect(request_id, Work(1000, 500))
        chosen = placement.choose(request_id, cast(Any, handles), request_id)
        assert chosen is not None
        placement.assign(request_id, chosen.replica_id, request_id)

    for number in range(requests):
        place(f"open-{number}")
    taken = []
    for _ in range(times):
        began = time.thread_time()
        for number in range(100):
            place(f"{number}")
        taken.append((time.thread_time() - began) / 100)
        for number in range(100):
            placement.left(f"{number}")
    return min(taken)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m cluster.simulate routing", description=(__doc__ or "").split(":")[0])
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; all by default")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--ingresses", action="store_true", help=f"ours with {', '.join(map(str, INGRESSES))} ingresses instead")
    parser.add_argument("--cost", action="store_true", help="what a choice among 100 replicas costs instead")
    given = parser.parse_args(arguments)
    if given.cost:
        print(f"{cost_s() * 1e6:.0f} µs of CPU to place a request on one of 100 replicas with 2,000 requests, caches looked up")
        return
    if unknown := set(given.workloads) - set(WORKLOADS):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    names = given.workloads or list(WORKLOADS)
    if given.ingresses:
        several = {f"ours, ingresses: {count}": functools.partial(Ours, ingresses=count) for count in INGRESSES}
        print(table(compared(names, several, given.seeds)))
        return
    found = compared(names, {name: POLICIES[name] for name in given.policies}, given.seeds)
    print(table(found))
    if {"ours", BASE, "oracle"} <= set(given.policies):
        print("\nOurs, as multiples of least requests:\n")
        print(ratios(found))
