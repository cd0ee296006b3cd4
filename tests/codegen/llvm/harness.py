"""Run lowered programs, written as text, on the CPU: the emitter and LLVM alone, without passes."""

import ctypes

import numpy as np

from tilus.codegen.llvm import emit
from tilus.ir.parser import parse
from tilus.ir.target import target
from tilus.runtime.llvm_jit import compile_object, load_object

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)


def run(text, arguments, grid=(1, 1, 1), features=()):
    """Compile and run; returns the fault record (8 integers)."""
    source = emit(parse(text), target("cpu"), features)
    kernel = load_object(compile_object(source.text), source.kernel_name)
    slots = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
    packed = (ctypes.c_int64 * (len(slots) + 3))(*slots, *grid)
    scratch, fault = np.zeros(source.scratch_bytes + 64, np.uint8), np.zeros(8, np.int64)
    _KERNEL(kernel.address)(ctypes.addressof(packed), 0, int(np.prod(grid)), scratch.ctypes.data, fault.ctypes.data)
    return fault


def lowered(body, params, grid="1", shared=0, lanes=8):
    """Return the text of a lowered program, by default of 8 lanes."""
    return f"""program p({params}) {{
  grid ({grid})
  warps 1
  threads {lanes}
  shared {shared}
{body}
}}"""
