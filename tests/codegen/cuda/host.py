"""Generated CUDA C++ compiled for the CPU with `shim.h`, whose functions stand for the PTX instructions."""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

SHIM = Path(__file__).with_name("shim.h")
_PTX_FUNCTION = re.compile(r"^__device__ __forceinline__ [^\n]* ptx_\w+\([^\n]*\{\n(?:  [^\n]*\n)*\}\n", re.MULTILINE)


def portable(text: str) -> str:
    """Return CUDA text without its type names and PTX functions: the shim has others in their place."""
    text = _PTX_FUNCTION.sub("", text)
    assert "asm" not in text
    return "\n".join(line for line in text.splitlines() if not line.startswith("using ")) + "\n"


FLAGS = ["-O1", "-std=c++17", "-shared", "-fPIC", "-w", "-fwrapv", "-ffp-contract=off"]


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with the shim, compiled once for all kernels."""
    folder = tempfile.TemporaryDirectory(prefix="tilus-host-")
    shutil.copy(SHIM, folder.name)
    run_compiler("-x", "c++-header", "-o", f"{folder.name}/shim.h.gch", f"{folder.name}/shim.h")
    return folder


def run_compiler(*arguments: str) -> None:
    done = subprocess.run(["g++", *FLAGS, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


@lru_cache(maxsize=512)
def compile_host(source: str) -> ctypes.CDLL:
    """Compile C++ that includes the shim, and load it."""
    folder = Path(_folder().name)
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    path, library = folder / f"{name}.cpp", folder / f"{name}.so"
    path.write_text(f'#include "shim.h"\n{source}')
    run_compiler("-o", str(library), str(path))
    return ctypes.CDLL(str(library))
