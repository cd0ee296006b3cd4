"""What a kernel is called with: NumPy arrays, torch tensors and numbers, described without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import isfinite
from typing import Any, NamedTuple

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


class Buffer(NamedTuple):
    """An array in memory (a tuple, which is made in a quarter of a dataclass's time: six for each launch).

    Attributes
    ----------
    address, nbytes : int
    dtype : DataType
    device : str
        `cpu` or `cuda:N`.
    contiguous : bool
        Whether elements lie in row-major order without gaps, each aligned to its size.
    """

    address: int
    nbytes: int
    dtype: DataType
    device: str
    contiguous: bool


_IS_TORCH: dict[type, bool] = {}


def is_torch(x: Any) -> bool:
    """Whether `x` is a torch tensor, told without importing torch."""
    cls = type(x)
    known = _IS_TORCH.get(cls)
    if known is None:
        known = _IS_TORCH[cls] = any(c.__module__ == "torch" and c.__name__ == "Tensor" for c in cls.__mro__)
    return known


_ELEMENT_TYPES: dict[Any, DataType | None] = {}


def element_type(kind: Any) -> DataType | None:
    """Return our data type for the `dtype` of a NumPy array or torch tensor; None if there is none."""
    try:
        return _ELEMENT_TYPES[kind]
    except KeyError:
        if isinstance(kind, np.dtype):
            found = DTYPES.get(kind.name) if kind.isnative else None
        else:
            found = DTYPES.get(str(kind).removeprefix("torch."))
        _ELEMENT_TYPES[kind] = found
        return found


def describe(x: Any) -> Buffer | None:
    """Describe an array; None for anything else, and for arrays of elements that we have no type for."""
    if isinstance(x, np.ndarray):
        kind = element_type(x.dtype)
        if kind is None:
            return None
        flags = x.flags
        return Buffer(x.__array_interface__["data"][0], x.nbytes, kind, "cpu", flags.c_contiguous and flags.aligned)
    return _describe_tensor(x) if is_torch(x) else None


def _describe_tensor(x: Any) -> Buffer | None:
    kind = element_type(x.dtype)
    if kind is None:
        return None
    place = x.device.type
    if str(x.layout) != "torch.strided" or place == "meta":
        raise LaunchError(
            f"a tensor of layout {x.layout} on device {x.device} has no rows of elements to work on",
            hint="pass a dense tensor on the CPU or a GPU",
        )
    address, size = x.data_ptr(), x.element_size()
    device = "cpu" if place == "cpu" else f"{place}:{x.device.index or 0}"
    plain = x.is_contiguous() and address % size == 0 and not x.is_neg()
    return Buffer(address, x.numel() * size, kind, device, plain)


Checker = Callable[[Any], "Buffer | int | float"]


def argument_checker(name: str, kind: PointerType | ScalarType) -> Checker:
    """Return `check_argument` for one parameter, with what is known of the parameter worked out beforehand."""
    if isinstance(kind, PointerType):
        fitting = {given for given in DTYPES.values() if _carries(given, kind.dtype)}

        def array(value: Any) -> Buffer | int | float:
            buffer = describe(value)
            return buffer if buffer is not None and buffer.dtype in fitting else check_argument(name, kind, value)

        return array
    (low, high), plain = _limits(kind.dtype), float if kind.dtype.is_float else int

    def number(value: Any) -> Buffer | int | float:
        fits = value.__class__ is plain and low <= value <= high
        return value if fits else check_argument(name, kind, value)

    return number


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
    # Torch has few operations on unsigned integers; codes of a byte or of a type that no library has are integers too.
    as_integers = wanted.is_integer or wanted.numpy_dtype is None or wanted.nbits == 8
    return given == wanted or (as_integers and given.is_integer and given.nbits == wanted.nbits)


@cache
def _limits(kind: DataType) -> tuple[float, float]:
    """Return the least and greatest value of a type: decoding them would cost each launch a hundred microseconds."""
    return kind.min_value, kind.max_value


def _number(name: str, kind: DataType, value: Any) -> int | float:
    whole = isinstance(value, (int, np.integer, np.bool_))
    number: int | float
    if whole and (kind.is_integer or kind.is_boolean):
        number = int(value)
    elif kind.is_float and (whole or isinstance(value, (float, np.floating))):
        number = float(value)
    else:
        raise LaunchError(f"argument {name!r} must be a number of type {kind}, got {value!r}")
    low, high = _limits(kind)
    if isfinite(number) and not low <= number <= high:
        wider = "i64" if kind.is_integer else "f64"
        raise LaunchError(
            f"argument {name!r} does not fit {kind}: {value}", hint=f"annotate the parameter with {wider}"
        )
    return number


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
        arrays[i] = _contiguous_copy(args[i])
        copy = describe(arrays[i])
        assert copy is not None
        values[i] = copy
    return arrays, values, copies


def _contiguous_copy(x: Any) -> Any:
    return x.new_empty(x.shape).copy_(x.detach()) if is_torch(x) else np.array(x, order="C")


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


def check_writable(name: str, x: Any) -> None:
    """Refuse an array that a kernel must not write to: read-only, or with elements that share memory."""
    if isinstance(x, np.ndarray):
        if not x.flags.writeable:
            raise LaunchError(
                f"argument {name!r} is a read-only array, but the kernel writes to it", hint="pass a copy"
            )
        strides, plain = x.strides, x.flags.c_contiguous
    else:
        strides, plain = x.stride(), x.is_contiguous()
    if not plain and any(step == 0 and size > 1 for step, size in zip(strides, x.shape, strict=True)):
        raise LaunchError(
            f"argument {name!r} repeats elements that share memory, but the kernel writes to it", hint="pass a copy"
        )
