"""`serve run`, the driver of Ray that `make serve` starts: the same command, with fewer of Ray's processes around it.

    python -m deployments.launch.driver run deployments.config [key=value ...]

Of Ray's dashboard only the API that `serve status`, `serve deploy` and `serve shutdown` ask is left, and Ray's autoscaler, which
starts hosts, is left out: `make serve` is one machine. On a cluster (`ray start`) both are as Ray has them.
"""

import os
import sys
from pathlib import Path
from typing import Any

from ray._private import services
from ray._private.parameter import RayParams
from ray._private.ray_constants import PROCESS_TYPE_DASHBOARD

from deployments.host.run import FOLDER, dashboard
from deployments.patching import patch

MODULES = "ServeHead"
"""What is left of Ray's dashboard; each module is a process."""


def install() -> None:
    """Have `ray.init` start fewer processes in this process's cluster."""
    initialize, start_ray_process, start_api_server = RayParams.__init__, services.start_ray_process, services.start_api_server

    def without_autoscaler(self: Any, *values: Any, **options: Any) -> None:
        initialize(self, *values, **options)
        self.no_monitor = True

    def with_fewer_modules(command: list[str], process_type: str, **options: Any) -> Any:
        if process_type == PROCESS_TYPE_DASHBOARD:
            command = [*command, f"--modules-to-load={MODULES}"]
        return start_ray_process(command, process_type, **options)

    patch(
        RayParams,
        "__init__",
        without_autoscaler,
        why="`ray.init` of Ray 2.60.0 starts its autoscaler's monitor always",
        until="it can be told not to",
    )

    def with_address_kept(*values: Any, **options: Any) -> Any:
        url, process = start_api_server(*values, **options)
        if url and (folder := os.environ.get(FOLDER)):
            dashboard(Path(folder)).write_text(f"http://{url}")
        return url, process

    patch(
        services,
        "start_api_server",
        with_address_kept,
        why="another application's dashboard may have port 8265, and only `ray.init` of Ray 2.60.0 knows which one it took",
        until="Ray writes the address into its session's folder",
    )
    patch(
        services,
        "start_ray_process",
        with_fewer_modules,
        why="the dashboard of Ray 2.60.0 has nine modules, a process each: 0.2 GiB, 2 s of CPU at a start, 2 % of a core when idle",
        until="`ray.init` can choose the modules",
    )


def main(words: list[str]) -> None:
    """Run Serve's command with these words."""
    import deployments.host.lean  # noqa: F401  # before anything else of Serve

    install()
    from ray.serve.scripts import cli

    cli(words, prog_name="serve")


if __name__ == "__main__":
    main(sys.argv[1:])
