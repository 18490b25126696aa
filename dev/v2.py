"""Run a command so that vLLM takes its Model Runner V2 on a host without a GPU: `python dev/v2.py COMMAND...`

vLLM takes V2 on GPUs. Its kernels need Triton, which has no backend for CPUs, so `dev/triton_cpu` stands in for one and Triton's
interpreter runs the kernels as Python: the tokens are right, the speed says nothing. Triton of the gpu lock's version, for whose
interpreter vLLM's kernels work, is installed into a folder of its own: with Triton in it, the environment of the tests would be
another one.

    .venv/bin/python dev/v2.py .venv/bin/python -m deployments.launch engine.max_model_len=2048
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BACKEND = ROOT / "dev" / "triton_cpu"


def requirement() -> str:
    """Return Triton as the gpu lock has it."""
    lock = (ROOT / "dev" / "locks" / "gpu.txt").read_text().splitlines()
    [found] = [line for line in lock if line.startswith("triton==")]
    return found.partition(";")[0].strip()


def install() -> Path:
    """Return the folder with Triton and the backend, after installing them where they are not there yet."""
    source = b"".join(path.read_bytes() for path in sorted(BACKEND.glob("*.*")))
    folder = ROOT / ".run" / f"{requirement().replace('==', '-')}-{hashlib.sha256(source).hexdigest()[:8]}"
    if folder.exists():
        return folder
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    subprocess.run([*pip, "--target", str(unfinished), requirement(), str(BACKEND)], check=True)
    for left in ("build", "satori_triton_cpu.egg-info"):
        shutil.rmtree(BACKEND / left, ignore_errors=True)
    unfinished.rename(folder)
    return folder


def environment() -> dict[str, str]:
    """Return the environment variables that the command and all its processes need."""
    path = os.pathsep.join(filter(None, (str(install()), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}


if __name__ == "__main__":
    os.execvpe(sys.argv[1], sys.argv[1:], os.environ | environment())
