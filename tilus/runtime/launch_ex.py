"""Launches with attributes: `cuLaunchKernelEx` of the driver, which CuPy's binding does not have.

The structures are those of `cuda.h`, version 12 and later; a test compiles that file and compares.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any

_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CUlaunchAttributeID


class _Attribute(ctypes.Structure):
    """`CUlaunchAttribute`; its value is a union of 64 bytes."""

    _fields_ = (("id", ctypes.c_uint64), ("value", ctypes.c_uint64 * 8))


class _Config(ctypes.Structure):
    """`CUlaunchConfig`."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


@lru_cache(maxsize=1)
def load_driver() -> Any:
    """Return the driver's library, which CuPy has loaded before."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def launch_dependent(
    function: int,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared: int,
    stream: int,
    pointers: int,
) -> int:
    """Start a kernel that waits for earlier ones itself, before they have ended; return the driver's status.

    Parameters
    ----------
    function, stream : int
        Handles.
    grid, block : tuple of int
    shared : int
        Bytes of dynamic shared memory.
    pointers : int
        Address of the array of addresses of arguments.
    """
    attribute = _Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION)
    attribute.value[0] = 1
    config = _Config(grid, block, shared, stream, ctypes.pointer(attribute), 1)
    status: int = load_driver().cuLaunchKernelEx(
        ctypes.byref(config), ctypes.c_void_p(function), ctypes.c_void_p(pointers), None
    )
    return status
