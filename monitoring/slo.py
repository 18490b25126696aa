"""What is promised, and how fast a broken promise is noticed: every objective, window and limit of rules and boards, once.

A request is good when it is answered within the settings `slo.ttft_s` and `slo.tpot_s` (`satori_slo_requests_total`); `OBJECTIVE`
is the share that shall be. Burn rates and their windows are those of Google's SRE Workbook, chapter 5, "6: Multiwindow,
Multi-Burn-Rate Alerts" (https://sre.google/workbook/alerting-on-slos/).
"""

from dataclasses import dataclass

OBJECTIVE = 0.99
PERIOD_DAYS = 30


@dataclass(frozen=True)
class Burn:
    """An alert on the speed at which the error budget is spent: `rate` times what the period allows, over both windows."""

    name: str
    rate: float
    long: str
    short: str
    lasting: str
    severity: str


BURNS = (
    Burn("Fast", 14.4, "1h", "5m", "2m", "page"),
    Burn("Slow", 6, "6h", "30m", "15m", "page"),
    Burn("Creeping", 1, "3d", "6h", "1h", "ticket"),
)
WINDOWS = ("5m", "30m", "1h", "6h", "3d", f"{PERIOD_DAYS}d")

STARTUP_S = 900
"""A replica that starts for longer than this is stuck: a download and a load of a 7B model take minutes."""
QUEUE_PER_REPLICA = 20
"""Requests that wait, for each LLM replica, before a growing queue is told."""
KV_FULL = 0.95
"""Share of the KV cache from which preemptions are expected."""
FAILOVERS = 3
"""Requests that moved within ten minutes before it is told."""
GOODPUT_DROP = 0.5
"""Share of the last hour's rate of good requests below which it is told that they fall, while as many are asked."""
INGRESS_CPU = 0.9
"""CPU seconds a second of one ingress, which has one event loop, from which it is saturated."""
LOOP_LAG_S = 0.1
"""How late an ingress' event loop may be, in nine of ten looks."""
