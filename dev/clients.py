"""Make the environments of the client tests, `.run/clients/GROUP`, one for each dependency group: `python dev/clients.py`.

Libraries for clients need different versions of openai's, so one environment cannot hold all. Their locks are complete.
"""

import subprocess
import sys
import venv
from pathlib import Path

from install import hashed

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".run" / "clients"


def main() -> None:
    """Make the environments. Where the packages are installed already, pip asks no package index."""
    for lock in sorted((ROOT / "dev" / "locks").glob("clients-*.txt")):
        environment = FOLDER / lock.stem.removeprefix("clients-")
        venv.create(environment, with_pip=False, clear=False)
        print(f"  install   {environment.relative_to(ROOT)}", flush=True)
        pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "-qq", "--no-deps"]
        with hashed(lock.read_text().splitlines()) as wanted:
            subprocess.run([*pip, "--disable-pip-version-check", *wanted], check=True)


if __name__ == "__main__":
    main()
