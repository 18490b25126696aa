"""The Serve application: `serve run deployments.config`.

`deployments.config` is the application builder, and `deployments.default` the application it builds of this machine's default
preset (`serve build` takes no builder). Both are resolved on first use, so that the leaves of this package (`settings`,
`errors`, `phases`) can be imported without Ray.
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
