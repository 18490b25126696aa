"""Triton's kernels compiled for a GPU, on a machine without one: the wheel has the assembler."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def compiled(kernel, arguments, **constants):
    signature = arguments | dict.fromkeys(constants, "constexpr")
    made = triton.compile(ASTSource(kernel, signature=signature, constexprs=constants), target=GPUTarget("cuda", 89, 32))
    print(len(made.asm["cubin"]))
"""
"""Compute capability 8.9 is the RTX 4090's."""


def sizes(program: str, cache: Path) -> list[int]:
    """Return the bytes of each kernel that a program compiles with `compiled(kernel, arguments, **constants)`.

    It runs in a process without Triton's interpreter, which takes what the compiler refuses.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ["PYTHONPATH"]))}
    done = subprocess.run([sys.executable, "-c", COMPILE + program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]
