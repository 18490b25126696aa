"""The middleware of the ingress, in the order in which a request meets it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.middleware import Middleware

from deployments.ingress.error_handlers import Misread
from deployments.ingress.middleware.access import Access, Guard
from deployments.ingress.middleware.body import BodyLimit
from deployments.ingress.middleware.deadline import Deadline
from deployments.ingress.middleware.dialects import Dialects
from deployments.ingress.middleware.draining import Draining, Ongoing
from deployments.ingress.middleware.hosts import Hosts
from deployments.ingress.middleware.intake import Intake
from deployments.ingress.middleware.keepalive import KeepAlive
from deployments.ingress.middleware.measuring import Measuring
from deployments.ingress.middleware.prefix import Prefix, Rooted
from deployments.ingress.middleware.response_headers import ResponseHeaders
from deployments.observability.writer import Writer
from deployments.settings import HttpSettings

if TYPE_CHECKING:
    from deployments.observability.tracing import Tracer


def stack(
    theirs: list[Middleware],
    *,
    http: HttpSettings,
    guard: Guard,
    ongoing: Ongoing,
    pace_s: Callable[[], float],
    writer: Writer | None,
    tracer: "Tracer | None" = None,
) -> list[Middleware]:
    """Return all middleware, the outermost first, with vLLM's own (`theirs`) between ours.

    Without a `writer`, nothing is measured. `pace_s` returns how long recent requests took.
    """
    return [
        Middleware(Hosts, http=http),
        Middleware(Prefix, root_path=http.root_path or ""),
        *([Middleware(Measuring, writer=writer, tracer=tracer)] if writer is not None else []),
        Middleware(ResponseHeaders, pace_s=pace_s),
        Middleware(Dialects),
        Middleware(Access, guard=guard),
        Middleware(Draining, ongoing=ongoing),
        Middleware(KeepAlive),
        Middleware(Deadline),
        Middleware(Intake),
        *theirs,
        Middleware(BodyLimit, settings=http),
        Middleware(Misread),
        Middleware(Rooted),
    ]
