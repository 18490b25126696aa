"""Measures the stages of the nano model: `python -m models.recipe.measure OUT [--each 200]` writes `OUT/stages.json`.

It has the greedy accuracies of each stage that is in `OUT`, by kind (see `models.recipe.rollout.evaluate`).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer

from models.recipe import rollout

STAGES = ("templates", "imitated", "reinforced")


def main() -> None:
    """Measure all stages, each in a process of its own, or the one that is named."""
    parser = argparse.ArgumentParser(prog="python -m models.recipe.measure", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of checkpoints")
    parser.add_argument("--each", type=int, default=200, help="problems of each kind (default: %(default)s)")
    parser.add_argument("--stage", choices=STAGES, help="print this stage's accuracies as JSON, and write nothing")
    given = parser.parse_args()
    if given.stage:
        words = Tokenizer.from_file(str(given.out / given.stage / "tokenizer.json"))
        print(json.dumps(rollout.evaluate(rollout.Sampler(given.out / given.stage, words, 1), words, given.each)))
        return
    stages = {}
    for stage in STAGES:
        if (given.out / stage).is_dir():
            command = [sys.executable, "-m", "models.recipe.measure", str(given.out), "--each", str(given.each), "--stage", stage]
            stages[stage] = json.loads(
                subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            )
            print(stage, stages[stage], flush=True)
    (given.out / "stages.json").write_text(json.dumps(stages, indent=2) + "\n")


if __name__ == "__main__":
    main()
