"""`make serve`: run `serve run deployments.config` with a fast environment, show what happens, and leave nothing behind.

    python -m deployments.launch [key=value ...]

It first checks settings, ports and model. Then it starts `serve run` in a process group of its own and shows the start-up phases
with their seconds. It shows the addresses when the first answer has come through the whole path.

Ctrl-C, SIGTERM or a terminal that closes stops it as soon as the ongoing requests are answered, or after
`llm.graceful_shutdown_timeout_s`; new requests are refused meanwhile. A second signal, or `serve shutdown`, stops it at once.

All processes that it starts carry the environment variable SATORI_RUN. By this variable, it finds and ends those that would stay
behind, as `haproxy` and `VLLM::*` processes can with Ray 2.60. All output of Ray and vLLM is in `.run/serve.log`
(for another port than 8000, `.run/serve-PORT.log`).
"""

import argparse
import os
import sys

from deployments import settings as settings_module
from deployments.access import keys
from deployments.errors import SatoriError, SettingsError
from deployments.host.cards import cards
from deployments.host.signals import interrupt_by_signals
from deployments.launch.preflight import check_gpus, fetch_model
from deployments.launch.serve_run import Application, environment
from deployments.launch.terminal import warn, write


def main(arguments: list[str]) -> int:
    """Serve until stopped; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deployments.launch", description="Starts the application.")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, by their dotted names (docs/settings.md)")
    arguments = parser.parse_args(arguments).settings
    interrupt_by_signals()
    try:
        words = {key: value for key, _, value in (word.partition("=") for word in arguments)}
        settings = settings_module.load(words)
        write(f"satori-serve: {settings.served_model_name}, preset {settings.preset}")
        guarded = keys.open_store(settings.access.keys, os.environ.get(keys.ENVIRONMENT)) is not None
        if (exposed := keys.exposed(settings.http, guarded)) and not settings.access.open:
            raise SettingsError("\n".join([*exposed, "Or set access.open=true, if that is meant."]))
        warn(exposed)
        variables = check_gpus(settings, environment()["RAY_ADDRESS"], gpus=cards())
        fetch_model(settings)
        application = Application(arguments, settings, guarded, variables)
    except SatoriError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    status, now = 0, False
    try:
        try:
            application.wait_ready()
            application.wait_gone()
        except KeyboardInterrupt:
            write()  # below the ^C of a terminal
            application.drain()
    except KeyboardInterrupt:
        now = True
    except SatoriError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    application.stop(now)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
