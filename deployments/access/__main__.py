"""Makes an API key: `python -m deployments.access NAME`."""

import argparse
import sys

import yaml

from deployments.access.keys import NAMES, is_name, make


def main(arguments: list[str]) -> int:
    """Make a key and print it; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deployments.access", description="Makes an API key.")
    parser.add_argument("name", metavar="NAME", help=f"whose it is: {NAMES}")
    known, others = parser.parse_known_args(arguments)
    name = known.name
    if others or not is_name(name):  # not shown: a key may have been typed here
        parser.error(f"NAME: allowed: {NAMES}")
    secret, key = make(name)
    entry = yaml.safe_dump([{"name": key.name, "sha256": key.sha256}], sort_keys=False).rstrip()
    print(f"The key, shown only now:\n\n{secret}\n\nAdd this below `keys:` in the file that access.keys names:\n\n{entry}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
