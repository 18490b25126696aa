"""Speculation turns itself off: a batch for which nothing is drafted takes the steps that it takes without speculation."""

import json
import subprocess
import sys


def test_a_step_without_drafts_launches_the_same_kernels() -> None:
    command = [sys.executable, "-m", "cluster.bench.full_batch", "--json", "--requests", "4", "--tokens", "30"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert found["equal texts"]
    assert found["equal kernels"]
    assert found["kernels"]["_gumbel_sample_kernel"] == 1  # the kernels were counted
    assert len(found["ratios"]) == 20
