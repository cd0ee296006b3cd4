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

SHIM = Path(__file__).with_name("shim.h")
_PTX_FUNCTION = re.compile(r"^__device__ __forceinline__ [^\n]* ptx_\w+\([^\n]*\{\n(?:  [^\n]*\n)*\}\n", re.MULTILINE)


def portable(text: str) -> str:
    """Return CUDA text without its type names and PTX functions: the shim has others in their place."""
    text = _PTX_FUNCTION.sub("", text)
    assert "asm" not in text
    return "\n".join(line for line in text.splitlines() if not line.startswith("using ")) + "\n"


FLAGS = ["-O0", "-std=c++17", "-shared", "-fPIC", "-w", "-fwrapv", "-ffp-contract=off"]


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
        f"{loads}run_grid(grid, threads, shared, backwards, [=]() {{ {found[1]}({names}); }});\n}}\n"
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
    library.get_failure.restype = library.get_printed.restype = ctypes.c_char_p
    copies: list[tuple[np.ndarray, np.ndarray]] = []
    slots = []
    library.forget_buffers()
    for arg in args:
        if isinstance(arg, np.ndarray):
            padded = np.zeros(arg.nbytes + 256 + _PADDING, np.uint8)
            start = -padded.ctypes.data % 256
            held = padded[start : start + arg.nbytes]
            held[:] = np.ascontiguousarray(arg).reshape(-1).view(np.uint8)
            copies.append((arg, held))
            # Only a buffer of less than whole words may be touched beyond its end.
            library.add_buffer(ctypes.c_uint64(held.ctypes.data), ctypes.c_uint64(-(-arg.nbytes // 4) * 4))
            slots.append(held.ctypes.data)
        else:
            slots.append(int.from_bytes(np.asarray(arg).tobytes().ljust(8, b"\0"), "little"))
    extents = (ctypes.c_uint32 * 3)(*(*grid, 1, 1)[:3])
    packed = (ctypes.c_uint64 * max(len(slots), 1))(*slots)
    library.run(packed, extents, threads, source.dynamic_shared_bytes, backwards)
    failure = library.get_failure().decode()
    if failure:
        raise HostFault(failure)
    for array, held in copies:
        array.reshape(-1).view(np.uint8)[:] = held
    return str(library.get_printed().decode())


class HostFault(AssertionError):
    """A fault of generated code."""
