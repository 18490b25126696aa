"""The dashboards. Each module has one, `BOARD`."""

from monitoring.board import Board
from monitoring.boards import autoscaling, engines, latency, nodes, overview, reasoning, resilience

BOARDS: tuple[Board, ...] = tuple(
    module.BOARD for module in (overview, latency, reasoning, autoscaling, resilience, engines, nodes)
)
