"""Launch machine code on a GPU, through CuPy's binding of the driver. CuPy is imported at the first launch.

Kernels run on the stream that the caller's framework uses: torch's current stream where torch has begun to use CUDA,
else CuPy's. Nothing is allocated and nothing waits, so launches may be captured into a CUDA graph.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

from tilus.dtypes import DataType
from tilus.errors import LaunchError
from tilus.ir.target import TARGETS, Target
from tilus.runtime.knobs import knobs
from tilus.runtime.launch_ex import launch_dependent
from tilus.runtime.toolchain import INSTALL_HINT

Argument = int | float | np.generic | bytes

_SLOT = 8  # bytes kept per argument; the driver reads as many of them as the parameter has
_NO_DEVICE_HINT = "compile(target=...) works without one; to run on the CPU, pass CPU arrays or set TILUS_TARGET=cpu"
_SCALARS: dict[str, Any] = {
    "bool": np.bool_, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64,
    "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64,
}  # fmt: skip


def pack_arguments(args: Sequence[Argument]) -> bytes:
    """Return the arguments as slots of 8 bytes, each value in the low bytes of its slot, little-endian.

    Parameters
    ----------
    args : sequence
        Python integers (64 bits: addresses), Python floats (64 bits), NumPy scalars (their own size), or the bytes of
        a value.
    """
    return b"".join(_slot(index, value) for index, value in enumerate(args))


def _slot(index: int, value: Argument) -> bytes:
    match value:
        case bytes():
            data = value
        case np.generic():
            data = value.tobytes()
        case bool():
            data = bytes([value])
        case int() if -(1 << 63) <= value < 1 << 64:
            data = (value & (1 << 64) - 1).to_bytes(_SLOT, "little")
        case float():
            data = np.float64(value).tobytes()
        case _:
            raise LaunchError(f"argument {index}: expected a number of at most 64 bits, got {value!r}")
    if len(data) > _SLOT:
        raise LaunchError(f"argument {index}: expected at most {_SLOT} bytes, got {len(data)}")
    return data.ljust(_SLOT, b"\0")


@lru_cache(maxsize=1)
def load_cupy() -> Any:
    """Return CuPy, or raise `LaunchError` where it is missing or finds no device."""
    try:
        import cupy
    except ImportError as error:
        raise LaunchError(f"CuPy, which launches kernels, cannot be imported: {error}", hint=INSTALL_HINT) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except RuntimeError as error:
        raise LaunchError(f"no CUDA device: {error}", hint=_NO_DEVICE_HINT) from error
    if count == 0:
        raise LaunchError("no CUDA device: the driver finds none", hint=_NO_DEVICE_HINT)
    return cupy


def device_number(device: str) -> int:
    """Return N of `cuda:N`; `cuda` alone means 0."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdecimal():
        raise LaunchError(f"expected a CUDA device such as cuda:0, got {device!r}", hint=_NO_DEVICE_HINT)
    return int(number or "0")


@lru_cache(maxsize=64)
def device_target(device: str) -> Target:
    """Return the target whose machine code a device runs.

    Raises
    ------
    LaunchError
        If there is no such device, or no target for it.
    """
    number = device_number(device)
    return target_of_capability(int(load_cupy().cuda.Device(number).compute_capability))


@lru_cache(maxsize=64)
def device_name(device: str) -> str:
    """Return what the driver calls a device: `NVIDIA H100 80GB HBM3`."""
    properties = load_cupy().cuda.runtime.getDeviceProperties(device_number(device))
    name: bytes = properties["name"]
    return name.decode()


def target_of_capability(capability: int) -> Target:
    """Return the target for a compute capability (times ten).

    Machine code runs on later devices of the same major version, unless it uses features of one device (`sm_90a`).
    """
    targets = [
        target
        for target in TARGETS.values()
        if target.kind == "cuda"
        and target.capability // 10 == capability // 10
        and (target.capability == capability or (target.capability < capability and target.name[-1].isdigit()))
    ]
    if not targets:
        known = ", ".join(name for name, target in TARGETS.items() if target.kind == "cuda")
        raise LaunchError(
            f"no target for compute capability {capability // 10}.{capability % 10}",
            hint=f"there are {known}; to run on the CPU, set TILUS_TARGET=cpu",
        )
    return max(targets, key=lambda target: target.capability)


def current_stream(device: int) -> int:
    """Return the handle of the stream on which the caller's framework works now."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.current_stream(device).cuda_stream)
    return int(load_cupy().cuda.get_current_stream(device).ptr)


class CudaKernel:
    """One kernel of a cubin, loaded on each device at its first launch there.

    Parameters
    ----------
    cubin : bytes
    name : str
        Of the kernel, as the cubin has it (`extern "C"`).
    dynamic_shared : int
        Bytes of dynamic shared memory per block.
    dependent : bool
        The kernel waits for earlier ones itself: it is started before they have ended.
    """

    def __init__(self, cubin: bytes, name: str, dynamic_shared: int = 0, dependent: bool = False) -> None:
        self.cubin = cubin
        self.name = name
        self.dynamic_shared = dynamic_shared
        self.dependent = dependent
        self._functions: dict[int, Any] = {}
        self._lock = threading.Lock()

    @staticmethod
    def argument(kind: DataType, value: float, pointer: bool = False) -> Argument:
        """Return an address or a number as a parameter takes it; `kind` is what it points to, or its own type."""
        if pointer:
            return int(value)
        if kind.name not in _SCALARS:
            raise LaunchError(f"a number of type {kind} cannot be passed to a kernel", hint="pass it in an array")
        scalar: np.generic = _SCALARS[kind.name](value)
        return scalar

    def launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Argument],
        stream: int | None = None,
        device: int | None = None,
    ) -> None:
        """Start the kernel; does not wait for it.

        Parameters
        ----------
        grid, block : sequence of int
            One to three extents: blocks, and threads of a block.
        args : sequence
            See `pack_arguments`.
        stream : int, optional
            Handle of a CUDA stream; by default `current_stream`.
        device : int, optional
            By default the current device.

        Raises
        ------
        LaunchError
            If there is no device, if it does not run this machine code, or if the driver refuses the launch.
        """
        slots = pack_arguments(args)
        here = load_cupy().cuda.runtime.getDevice()
        number = here if device is None else device
        with _on(number, here):
            self._start(
                self._function(number), grid, block, slots, current_stream(number) if stream is None else stream
            )

    def _start(self, function: Any, grid: Sequence[int], block: Sequence[int], slots: bytes, stream: int) -> None:
        from cupy_backends.cuda.api import driver

        buffer = ctypes.create_string_buffer(slots, max(len(slots), 1))
        base = ctypes.addressof(buffer)
        pointers = (ctypes.c_void_p * max(len(slots) // _SLOT, 1))(*range(base, base + len(slots), _SLOT))
        shared, where = self.dynamic_shared, ctypes.addressof(pointers)
        try:
            if self.dependent and knobs.dependent_launch:
                status = launch_dependent(function.ptr, _extents(grid), _extents(block), shared, stream, where)
                if status:
                    raise driver.CUDADriverError(status)
            else:
                driver.launchKernel(function.ptr, *_extents(grid), *_extents(block), shared, stream, where, 0)
        except driver.CUDADriverError as error:
            raise LaunchError(
                f"the driver refused kernel {self.name!r} with grid {tuple(grid)}, block {tuple(block)} and {shared} "
                f"bytes of dynamic shared memory: {error}"
            ) from error

    def _function(self, device: int) -> Any:
        function = self._functions.get(device)
        if function is None:
            with self._lock:
                function = self._functions.get(device) or self._load()
                self._functions[device] = function
        return function

    def _load(self) -> Any:
        from cupy_backends.cuda.api import driver

        module = load_cupy().cuda.function.Module()
        try:
            module.load(self.cubin)
            function = module.get_function(self.name)
            if self.dynamic_shared > 0:  # more than 48 KiB must be asked for, and asking for less does no harm
                attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                driver.funcSetAttribute(function.ptr, attribute, self.dynamic_shared)
        except driver.CUDADriverError as error:
            raise LaunchError(
                f"the device does not take kernel {self.name!r}: {error}",
                hint="compile it for this device's architecture, with shared memory within the device's limit",
            ) from error
        return function


def _on(device: int, current: int) -> AbstractContextManager[Any]:
    return nullcontext() if device == current else load_cupy().cuda.Device(device)


def _extents(sizes: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z
