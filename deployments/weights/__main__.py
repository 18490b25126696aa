"""Downloads a model's files to this host: `python -m deployments.weights MODEL`."""

import argparse
import re
import sys

from deployments.errors import WeightsError
from deployments.settings import MODEL_FILES
from deployments.weights.fetch import from_hub, paced
from deployments.weights.hub import Hub
from deployments.weights.store import Store


def main(arguments: list[str]) -> int:
    """Download what this host lacks of a model's files and print their directory; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deployments.weights", description="Downloads a model's files to this host.")
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face id, owner/name")
    model = parser.parse_args(arguments).model
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        parser.error(f"{model!r}: allowed: a Hugging Face id, owner/name")
    try:
        print(from_hub(Store(model), Hub(model), MODEL_FILES, paced(lambda progress: print(progress, flush=True))))
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
