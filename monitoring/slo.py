"""The objectives, and how fast a missed one is noticed: every objective, window and limit of rules and boards, written once.

A request is good when it is answered within the settings `slo.ttft_s` and `slo.tpot_s` (`satori_slo_requests_total`); `OBJECTIVE`
is the share of requests that should be good. Burn rates and their windows are those of Google's SRE Workbook, chapter 5,
"6: Multiwindow, Multi-Burn-Rate Alerts" (https://sre.google/workbook/alerting-on-slos/).
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
"""A replica that takes longer than this to start is stuck: to download and load a 7B model takes minutes."""
QUEUE_PER_REPLICA = 20
"""Waiting requests per LLM replica, above which a growing queue is an alert."""
KV_FULL = 0.95
"""Share of the KV cache above which preemptions are expected."""
FAILOVERS = 3
"""Requests moved within ten minutes, from which on it is an alert."""
STORE_FAILURES = 10
"""Failed transactions of the store within five minutes, from which on it is an alert: a restart of the database makes a few."""
GOODPUT_DROP = 0.5
"""Share of the last hour's rate of good requests, below which it is an alert if the demand has not fallen."""
INGRESS_CPU = 0.9
"""CPU seconds per second above which an ingress is saturated: it has one event loop."""
LOOP_LAG_S = 0.1
"""Lag of an ingress' event loop (90th percentile) above which the ingress is saturated."""
