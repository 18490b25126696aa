"""All dashboards (`BOARD` of each module here), and the events that are drawn over all of them."""

from deployments.observability import metrics
from monitoring.board import Board
from monitoring.boards import autoscaling, engines, latency, nodes, overview, reasoning, resilience

BOARDS: tuple[Board, ...] = tuple(
    module.BOARD for module in (overview, latency, reasoning, autoscaling, resilience, engines, nodes)
)

ANNOTATIONS = {
    "Scaling": (f"max by (deployment) (changes({metrics.REPLICAS_TARGET.name}[1m])) > 0", "blue"),
    "Fail-over": (f"sum(increase({metrics.FAILOVER_REQUESTS.name}[1m])) > 0", "red"),
    "Start": ('max by (deployment) (time() - process_start_time_seconds{job="satori"} < 60)', "green"),
}
"""Events that are drawn over all boards: the wanted number of replicas changed, requests moved, a replica started."""
