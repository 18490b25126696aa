"""The Serve application: `serve run deployments.config`.

`deployments.config` is the application builder. `deployments.default` is the application that it builds from this machine's
default preset, because `serve build` takes no builder. Both are resolved on first use, so the leaves of this package (`settings`,
`errors`, `observability.startup`) can be imported without Ray.
"""

from typing import Any

__all__ = ["config", "default"]


def __getattr__(name: str) -> Any:
    if name == "config":
        from deployments.application import config

        return config
    if name == "default":
        from deployments.application import config

        return config({})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
