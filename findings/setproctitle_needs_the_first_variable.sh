#!/usr/bin/env bash
# A process whose first environment variable has been set anew cannot change its title any more, and nothing says so.
#
# Versions: setproctitle 1.3.8, with which vLLM names its engines and workers, on Linux (CPython 3.11).
#
# Expected: what is in os.environ has nothing to do with the title of a process.
# Instead: the library finds the place of the arguments by the address of the first variable, when it is first used. Setting that
#   variable to another value, or clearing and filling the environment, moves it. From then on setproctitle() does nothing, raises
#   nothing, and getproctitle() returns an empty text. Setting any other variable does no harm.
# Hurt: who finds processes by their titles ("VLLM::EngineCore") in ps, metrics or health checks. Which variable is the first
#   depends on the shell or the supervisor that started the process, so it happens on one host and not on another.
#   A first call of getproctitle(), before the environment changes, prevents it.
#
# Seen:
#   untouched: title
#   last variable set: title
#   first variable set: no title
#   cleared and filled: no title
#   first variable set, but after a call of getproctitle(): title
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check setproctitle==1.3.8

cat >"$folder/finding.py" <<'PYTHON'
import os
import subprocess
import sys

import setproctitle


def assign(place):
    """Set the variable at a place of the environment to another value."""
    name = list(os.environ)[place]
    os.environ[name] = "another value"


def refill():
    """Clear the environment, and fill it with what was there."""
    kept = dict(os.environ)
    os.environ.clear()
    os.environ.update(kept)


def early():
    """Use the library first."""
    setproctitle.getproctitle()
    assign(0)


CASES = {
    "untouched": (lambda: None, "title"),
    "last variable set": (lambda: assign(-1), "title"),
    "first variable set": (lambda: assign(0), "no title"),
    "cleared and filled": (refill, "no title"),
    "first variable set, but after a call of getproctitle()": (early, "title"),
}


def show(case):
    """Change the environment, then the title; print whether others see the new one."""
    CASES[case][0]()
    setproctitle.setproctitle("the new title")
    with open("/proc/self/cmdline") as line:
        print("title" if line.read().startswith("the new title") else "no title")


if len(sys.argv) > 1:
    show(sys.argv[1])
    sys.exit()
wrong = []
for case, (_, wanted) in CASES.items():
    environment = {"FIRST": "value", "MIDDLE": "value", "LAST": "value"}
    found = subprocess.run([sys.executable, __file__, case], env=environment, capture_output=True, text=True, check=True).stdout.strip()
    print(f"{case}: {found}")
    wrong += [case] if found != wanted else []
sys.exit(f"not as described: {wrong}" if wrong else 0)
PYTHON
"$folder/venv/bin/python" "$folder/finding.py"
