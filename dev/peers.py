"""Make the environment of the load bench's peers, `.run/peers`: this project's packages, and what the peers need in addition.

    python dev/peers.py

A path file in it points to the packages of the environment that runs this script, so ray.serve.llm gets the same Ray and vLLM.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".run" / "peers"
PACKAGES = ["vllm-router==0.1.17"]


def main() -> None:
    """Make the environment. Where the packages are installed already, pip asks no package index."""
    venv.create(FOLDER, with_pip=False, clear=False)
    [packages] = FOLDER.glob("lib/python*/site-packages")
    (packages / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(FOLDER / "bin" / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, *PACKAGES], check=True)


if __name__ == "__main__":
    main()
