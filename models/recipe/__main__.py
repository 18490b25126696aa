"""Make the nano model from nothing: `python -m models.recipe [OUT]`. An interrupted run goes on from its last checkpoint."""

import subprocess
import sys

OUT = sys.argv[1] if len(sys.argv) > 1 else ".run/nano"

for stage in ("imitate", "reinforce", "package"):
    print(f"== {stage}", flush=True)
    subprocess.run([sys.executable, "-m", f"models.recipe.{stage}", OUT], check=True)
