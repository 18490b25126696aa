"""Makes the nano model from nothing: `python -m models.recipe [OUT]`. An interrupted run continues from its last checkpoint."""

import argparse
import subprocess
import sys

STAGES = (("sft",), ("sft", "--ways"), ("rl",), ("measure",), ("export",))


def main() -> None:
    """Run all stages, each in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m models.recipe", description="Makes the nano model from nothing.")
    parser.add_argument("out", nargs="?", default=".run/nano", metavar="OUT", help="folder of checkpoints (default: %(default)s)")
    out = parser.parse_args().out
    for stage, *options in STAGES:
        print("==", stage, *options, flush=True)
        subprocess.run([sys.executable, "-m", f"models.recipe.{stage}", out, *options], check=True)


if __name__ == "__main__":
    main()
