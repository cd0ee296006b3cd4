"""Arguments of a launch, in memory: arrays as buffers of global memory, numbers as bytes of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilus.errors import LaunchError
from tilus.simt.formats import Array
from tilus.simt.memory import GlobalMemory, Memory
from tilus.simt.program import Program
from tilus.simt.syntax import Symbol, Variable
from tilus.simt.tensormap import TensorMap


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a kernel is called with.

    Attributes
    ----------
    memory : GlobalMemory
        The arrays, and the module's variables.
    params : Memory
        The bytes of the parameters; `symbols` says where each begins.
    maps : tuple of TensorMap
        And in which buffer the tensor of each lies: `map_buffers`.
    """

    memory: GlobalMemory
    params: Memory
    symbols: Mapping[str, int]
    maps: tuple[TensorMap, ...]
    map_buffers: tuple[int, ...]


def bind(program: Program, args: Sequence[Any]) -> Arguments:
    """Put arguments where the kernel finds them.

    Raises
    ------
    LaunchError
        If they do not fit the parameters.
    """
    if len(args) != len(program.params):
        raise LaunchError(f"kernel {program.name!r} takes {len(program.params)} arguments, got {len(args)}")
    arrays: list[tuple[str, Array]] = []
    numbers = [_buffer(arrays, p.name, value) for p, value in zip(program.params, args, strict=True)]
    memory = GlobalMemory([*arrays, *((v.name, bytes(v.nbytes or 0)) for v in program.data)])
    _initialize(program, memory, len(arrays))
    maps = [(value, number) for value, number in zip(args, numbers, strict=True) if isinstance(value, TensorMap)]
    symbols, data, map_number = dict[str, int](), b"", 0
    for param, value, number in zip(program.params, args, numbers, strict=True):
        data = data.ljust(-(-len(data) // param.align) * param.align, b"\0")
        symbols[param.name] = len(data)
        if isinstance(value, TensorMap):
            value, map_number = value.encode(map_number), map_number + 1
        data += _value(memory.address(number) if number is not None and not isinstance(value, bytes) else value, param)
    params = Memory(len(data))
    params.bytes[: len(data)] = np.frombuffer(data, np.uint8)
    return Arguments(memory, params, symbols, tuple(m for m, _ in maps), tuple(n for _, n in maps if n is not None))


def _buffer(arrays: list[tuple[str, Array]], name: str, value: object) -> int | None:
    """Return the number of the buffer that an argument needs; the same array passed twice is one buffer."""
    array = value.array if isinstance(value, TensorMap) else value
    if not isinstance(array, np.ndarray):
        return None
    if not array.flags.c_contiguous:
        raise LaunchError(f"parameter {name}: the array is not contiguous", hint="pass a contiguous copy")
    for number, (other_name, other) in enumerate(arrays):
        if array.ctypes.data == other.ctypes.data and array.nbytes == other.nbytes:
            return number
        if np.may_share_memory(array, other):
            raise LaunchError(f"parameters {other_name} and {name}: the arrays overlap in part")
    arrays.append((name, array))
    return len(arrays) - 1


def _initialize(program: Program, memory: GlobalMemory, first: int) -> None:
    """Write the initial values of the module's variables."""
    addresses = {v.name: memory.address(first + i) for i, v in enumerate(program.data)}
    for i, variable in enumerate(program.data):
        content = _initial(variable, addresses)
        start = memory.buffers[first + i].start
        memory.bytes[start : start + len(content)] = np.frombuffer(content, np.uint8)


def _initial(variable: Variable, addresses: Mapping[str, int]) -> bytes:
    parts = []
    for value in variable.initial:
        number = addresses.get(value.name, 0) + value.offset if isinstance(value, Symbol) else value
        parts.append((number % (1 << 8 * variable.element)).to_bytes(variable.element, "little"))
    return b"".join(parts)[: variable.nbytes]


def _value(value: Any, param: Variable) -> bytes:
    nbytes = param.nbytes or 0
    match value:
        case bytes():
            data = value
        case np.generic():
            data = value.tobytes()
        case int():
            data = (value % (1 << 8 * nbytes)).to_bytes(nbytes, "little")
        case float() if nbytes in (2, 4, 8):
            data = np.asarray(value, f"f{nbytes}").tobytes()
        case _:
            kind = type(value).__name__
            raise LaunchError(f"parameter {param.name}: expected an array, a number or bytes, got {kind}")
    if len(data) != nbytes:
        raise LaunchError(f"parameter {param.name}: expected {nbytes} bytes, got {len(data)}")
    return data
