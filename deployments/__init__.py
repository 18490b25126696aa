"""The Serve application: `serve run deployments.config`.

`deployments.config` is the application builder. It is resolved on first use, so that the leaves of this package
(`settings`, `errors`, `routing`'s policy) can be imported without Ray.
"""

from typing import Any

__all__ = ["config"]


def __getattr__(name: str) -> Any:
    if name == "config":
        from deployments.application import config

        return config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
