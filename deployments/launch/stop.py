"""`make stop`: stops what `make serve` has started from this checkout, from another terminal.

    python -m deployments.launch.stop [http.port=8001]

It sends `serve shutdown` to the Ray of that application, and to no other of this host.
"""

import argparse
import os
import sys

from deployments import settings as settings_module
from deployments.errors import SatoriError, SettingsError
from deployments.host.run import dashboard
from deployments.launch.serve_run import own_file


def address(port: int) -> str:
    """Return where Serve's API of the application on this port is. Raises SettingsError when none runs from this checkout."""
    try:
        return dashboard(own_file("run", port)).read_text()
    except OSError:
        hint = "" if (others := running()) == [] else f"; running: http.port={', '.join(map(str, others))}"
        raise SettingsError(f"no application of this checkout runs on port {port}{hint}") from None


def running() -> list[int]:
    """Return the ports of the applications of this checkout that run."""
    ports = []
    for link in own_file("run", 0).parent.glob("run*"):
        if dashboard(link).exists():
            ports.append(int(link.name.partition("-")[2] or settings_module.HttpSettings().port))
    return sorted(ports)


def main(arguments: list[str]) -> int:
    """Stop it; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deployments.launch.stop", description="Stops an application of this checkout.")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings; of these, http.port says which application")
    words = parser.parse_args(arguments).settings
    try:
        settings = settings_module.load({key: value for key, _, value in (word.partition("=") for word in words)})
        url = address(settings.http.port)
    except SatoriError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    os.environ["RAY_AUTH_MODE"] = "token"  # as Ray protects a cluster of its own
    from ray.serve.scripts import cli

    cli(["shutdown", "--yes", "--address", url], prog_name="serve", standalone_mode=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
