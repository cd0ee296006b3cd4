"""What a kernel is called with: NumPy arrays, torch tensors and numbers, described without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from tilus.dtypes import DataType, dtype
from tilus.errors import LaunchError
from tilus.ir.types import PointerType, ScalarType

# Names that NumPy, ml_dtypes and torch use for an element type, and ours.
DTYPES: dict[str, DataType] = {
    theirs: dtype(ours)
    for theirs, ours in {
        "bool": "bool", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
        "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64",
        "float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64",
        "float8_e4m3fn": "f8e4m3", "float8_e5m2": "f8e5m2", "float8_e8m0fnu": "e8m0",
    }.items()
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Buffer:
    """An array in memory.

    Attributes
    ----------
    address, nbytes : int
    dtype : DataType
    device : str
        `cpu` or `cuda:N`.
    contiguous : bool
        Whether elements lie in row-major order without gaps.
    """

    address: int
    nbytes: int
    dtype: DataType
    device: str
    contiguous: bool


def is_torch(x: Any) -> bool:
    """Whether `x` is a torch tensor, told without importing torch."""
    return any(c.__module__ == "torch" and c.__name__ == "Tensor" for c in type(x).__mro__)


def describe(x: Any) -> Buffer | None:
    """Describe an array; None for anything else."""
    if isinstance(x, np.ndarray):
        kind = DTYPES.get(x.dtype.name)
        if kind is None:
            return None
        return Buffer(x.__array_interface__["data"][0], x.nbytes, kind, "cpu", x.flags.c_contiguous)
    if is_torch(x):
        kind = DTYPES.get(str(x.dtype).removeprefix("torch."))
        if kind is None:
            return None
        device = "cpu" if x.device.type == "cpu" else f"{x.device.type}:{x.device.index or 0}"
        return Buffer(x.data_ptr(), x.numel() * x.element_size(), kind, device, x.is_contiguous())
    return None


def check_argument(name: str, kind: PointerType | ScalarType, value: Any) -> Buffer | int | float:
    """Check one argument against its parameter: the buffer or the number to pass, or a `LaunchError` that says why."""
    if isinstance(kind, ScalarType):
        return _number(name, kind.dtype, value)
    buffer = describe(value)
    if buffer is None:
        came = f"an array of {value.dtype}" if hasattr(value, "dtype") else f"{type(value).__name__}"
        raise LaunchError(
            f"argument {name!r} must be an array of {kind.dtype}, got {came}",
            hint="pass a NumPy array or a torch tensor",
        )
    if not _carries(buffer.dtype, kind.dtype):
        raise LaunchError(
            f"argument {name!r} must be an array of {kind.dtype}, got {buffer.dtype}",
            hint="convert it, or annotate the parameter with the type you pass",
        )
    return buffer


def _carries(given: DataType, wanted: DataType) -> bool:
    """Whether an array holds what a kernel wants: elements of the same bits, or words of packed codes."""
    if wanted.nbits < 8:
        return given.is_integer and given.nbits in (8, 32)
    same_width = given.is_integer and wanted.is_integer and given.nbits == wanted.nbits
    return given == wanted or same_width  # torch has few operations on unsigned integers


def _number(name: str, kind: DataType, value: Any) -> int | float:
    if isinstance(value, (bool, int, np.integer)) and (kind.is_integer or kind == dtype("bool")):
        number = int(value)
        low, high = (-(1 << 31), (1 << 31) - 1) if kind == dtype("i32") else (kind.min_value, kind.max_value)
        if not low <= number <= high:
            raise LaunchError(
                f"argument {name!r} does not fit {kind}: {number}", hint="annotate the parameter with i64"
            )
        return number
    if isinstance(value, (int, float, np.integer, np.floating)) and kind.is_float:
        return float(value)
    raise LaunchError(f"argument {name!r} must be a number of type {kind}, got {value!r}")


def multiple_of(value: Buffer | int | float) -> int:
    """Return the promise a value keeps, as a kernel is specialised by it: 16 or 1.

    Alignment of an address in bytes, or divisibility of an integer.
    """
    number = value.address if isinstance(value, Buffer) else value
    return 16 if isinstance(number, int) and number % 16 == 0 else 1


def slot_format(kind: PointerType | ScalarType) -> str:
    """Return the `struct` code of the 8-byte slot of an argument.

    Integers are extended; a float keeps its own bits in the low bytes.
    """
    if isinstance(kind, PointerType):
        return "Q"
    if kind.dtype.is_float:
        codes = {"f16": "e6x", "f32": "f4x", "f64": "d"}
        if kind.dtype.name not in codes:
            raise LaunchError(f"a scalar argument cannot be {kind.dtype}", hint=f"use one of {', '.join(codes)}")
        return codes[kind.dtype.name]
    return "q" if kind.dtype.is_signed else "Q"


def number_of(value: Buffer | int | float) -> int | float:
    """Return what is passed for a checked argument: the address of a buffer, or the number."""
    return value.address if isinstance(value, Buffer) else value


def as_numpy(x: Any) -> Any:
    """Return a NumPy view of a CPU array, sharing memory (torch bf16 and 8-bit floats by their ml_dtypes names)."""
    if not is_torch(x):
        return x
    name = str(x.dtype).removeprefix("torch.")
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"):
        import torch  # x is a tensor: torch is loaded already

        raw = x.detach().view(torch.int16 if x.element_size() == 2 else torch.int8).numpy()
        return raw.view(getattr(ml_dtypes, name))
    return x.detach().numpy()


def make_contiguous(
    args: Sequence[Any], values: list[Buffer | int | float]
) -> tuple[Sequence[Any], list[Buffer | int | float], list[int]]:
    """Replace arrays with gaps by contiguous copies: (arrays, values, positions to be copied back)."""
    copies = [i for i, v in enumerate(values) if isinstance(v, Buffer) and not v.contiguous]
    if not copies:
        return args, values, copies
    arrays = list(args)
    for i in copies:
        arrays[i] = arrays[i].contiguous() if is_torch(arrays[i]) else np.ascontiguousarray(arrays[i])
        copy = describe(arrays[i])
        assert copy is not None
        values[i] = copy
    return arrays, values, copies


def copy_back(source: Any, target: Any) -> None:
    """Write a contiguous copy back where it came from."""
    if is_torch(target):
        target.detach().copy_(source)
    else:
        target[...] = source


def device_of(values: Sequence[Any]) -> str:
    """Return the one device of all buffers, `cpu` if there are none."""
    devices = {v.device for v in values if isinstance(v, Buffer)}
    if len(devices) > 1:
        raise LaunchError(
            f"arguments live on different devices: {', '.join(sorted(devices))}", hint="move them to one device"
        )
    return devices.pop() if devices else "cpu"


def check_writable(name: str, value: Any) -> None:
    """Refuse a read-only NumPy array where the kernel writes; torch has none."""
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        raise LaunchError(f"argument {name!r} is a read-only array, but the kernel writes to it", hint="pass a copy")
