"""Generated CUDA C++ compiled for the CPU with `shim.h`, whose functions stand for the PTX instructions."""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tilus.codegen.cuda import CudaSource

HERE = Path(__file__).parent
_PTX_FUNCTION = re.compile(r"^__device__ __forceinline__ [^\n]* ptx_\w+\([^\n]*\{\n(?:  [^\n]*\n)*\}\n", re.MULTILINE)


def portable(text: str) -> str:
    """Return CUDA text without its type names and PTX functions: the shim has others in their place."""
    text = _PTX_FUNCTION.sub("", text)
    assert "asm" not in text
    return "\n".join(line for line in text.splitlines() if not line.startswith("using ")) + "\n"


FLAGS = ["-std=c++17", "-shared", "-fPIC", "-w", "-fwrapv", "-ffp-contract=off"]


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with the machine, compiled once for all kernels."""
    folder = tempfile.TemporaryDirectory(prefix="tilus-host-")
    shutil.copy(HERE / "shim.h", folder.name)
    run_compiler("-O2", "-o", f"{folder.name}/libshim.so", str(HERE / "shim.cpp"))
    return folder


@lru_cache(maxsize=1)
def machine() -> ctypes.CDLL:
    """Load the machine, which all kernels run on."""
    library = ctypes.CDLL(f"{_folder().name}/libshim.so")
    library.get_failure.restype = library.get_printed.restype = ctypes.c_char_p
    return library


def run_compiler(*arguments: str) -> None:
    compiler = shutil.which("g++")
    assert compiler, "these tests compile generated code with g++, which was not found: install a C++ compiler"
    done = subprocess.run([compiler, *FLAGS, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


@lru_cache(maxsize=512)
def compile_host(source: str) -> ctypes.CDLL:
    """Compile C++ that includes the shim, and load it."""
    folder = Path(_folder().name)
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    path, library = folder / f"{name}.cpp", folder / f"{name}.so"
    path.write_text(f'#include "shim.h"\n{source}')
    run_compiler("-O0", "-nostdlib", f"-Wl,-rpath,{folder}", "-o", str(library), str(path), f"{folder}/libshim.so")
    return ctypes.CDLL(str(library))


# --- whole kernels --------------------------------------------------------------------------------------------------

_SIGNATURE = re.compile(r'^extern "C" __global__ void __launch_bounds__\(\d+\) (\w+)\(\n    (.*)\) \{$', re.MULTILINE)
_PADDING = 16  # elements of less than a byte are stored by whole words, of which a buffer on a GPU always has all


def entry(text: str) -> str:
    """Return a C function `run(slots, grid, threads, shared, backwards)` that runs a kernel's blocks."""
    found = _SIGNATURE.search(text)
    assert found is not None
    params = [p for p in found[2].split(", ") if p]
    types = [p.rpartition(" ")[0] for p in params]
    loads = "".join(f"{t} a{i}; memcpy(&a{i}, slots + {i}, sizeof a{i});\n" for i, t in enumerate(types))
    names = ", ".join(f"a{i}" for i in range(len(types)))
    return (
        'extern "C" void run(const u64* slots, const u32* grid, u32 threads, u32 shared, bool backwards) {\n'
        "run_grid(grid, threads, shared, backwards, [](const u64* slots) {\n"
        f"{loads}{found[1]}({names});\n}}, slots);\n}}\n"
    )


def run_kernel(
    source: CudaSource, threads: int, grid: Sequence[int], args: Sequence[Any], *, backwards: bool = False
) -> str:
    """Run generated code on arrays, which it changes in place, and numbers (NumPy scalars); return what it prints.

    Raises
    ------
    HostFault
        For a fault that the shim has found.
    """
    library = compile_host(portable(source.text) + entry(source.text))
    host = machine()
    copies: list[tuple[np.ndarray, np.ndarray]] = []
    slots = []
    host.forget_buffers()
    for arg in args:
        if isinstance(arg, np.ndarray):
            padded = np.zeros(arg.nbytes + 256 + _PADDING, np.uint8)
            start = -padded.ctypes.data % 256
            held = padded[start : start + arg.nbytes]
            held[:] = np.ascontiguousarray(arg).reshape(-1).view(np.uint8)
            copies.append((arg, held))
            # Only a buffer of less than whole words may be touched beyond its end.
            host.add_buffer(ctypes.c_uint64(held.ctypes.data), ctypes.c_uint64(-(-arg.nbytes // 4) * 4))
            slots.append(held.ctypes.data)
        else:
            slots.append(int.from_bytes(np.asarray(arg).tobytes().ljust(8, b"\0"), "little"))
    extents = (ctypes.c_uint32 * 3)(*(*grid, 1, 1)[:3])
    packed = (ctypes.c_uint64 * max(len(slots), 1))(*slots)
    library.run(packed, extents, threads, source.dynamic_shared_bytes, backwards)
    failure = host.get_failure().decode()
    if failure:
        raise HostFault(failure)
    for array, held in copies:
        array.reshape(-1).view(np.uint8)[:] = held
    return str(host.get_printed().decode())


class HostFault(AssertionError):
    """A fault of generated code."""
