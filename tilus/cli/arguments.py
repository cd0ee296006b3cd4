"""Arguments of a kernel from the command line: numbers, arrays out of files, and arrays of random numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tilus
from tilus.dtypes import DataType
from tilus.errors import TilusError
from tilus.ir.expr import Var
from tilus.ir.instructions import GlobalView
from tilus.ir.node import walk
from tilus.ir.program import Program
from tilus.ir.types import PointerType, ScalarType
from tilus.runtime.arguments import describe
from tilus.runtime.bounds import array_sizes
from tilus.runtime.grid import grid_function

_RANDOM = re.compile(r"([\w.]*)\[([\d, ]*)\](?::(-?\d+)\.\.(-?\d+))?")
_EXAMPLE = "for instance --arg {0}=f16[5,1000], --arg {0}=i32[100]:0..99 or --arg {0}=data.npy"


def make_arguments(program: Program, given: Mapping[str, str], seed: int) -> list[Any]:
    """Return arguments for a program; what is not given is inferred, as far as it can be.

    An integer that is an extent of the view of a given array is that array's; an array gets as many elements as views
    and elements of it need. A float is 1; arrays hold normal numbers, or any codes where their type is no float.

    Raises
    ------
    TilusError
        For what cannot be read, and what cannot be inferred.
    """
    names = [p.var.name for p in program.params]
    unknown = sorted(given.keys() - set(names))
    if unknown:
        raise TilusError(
            f"kernel {program.name!r} has no parameter {unknown[0]!r}", hint=f"its parameters are {', '.join(names)}"
        )
    rng = np.random.default_rng(seed)
    kinds = [p.var.type for p in program.params]
    values = [_read(n, k, given[n], rng) if n in given else None for n, k in zip(names, kinds, strict=True)]
    _infer_extents(program, values)
    for i, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        if values[i] is None and isinstance(kind, ScalarType):
            if not kind.dtype.is_float:
                raise TilusError(
                    f"no value of {name!r} is known",
                    hint=f"--arg {name}=1000, or an array whose view has this extent: --arg x=f16[5,1000]",
                )
            values[i] = 1.0
    grid = grid_function(program)(values)
    if min(grid) < 1:
        raise TilusError(f"kernel {program.name!r} has no blocks for these arguments", hint=summary(names, values))
    sizes = array_sizes(program, values, grid)
    for i, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        if values[i] is None:
            if i not in sizes:
                raise TilusError(f"the size of {name!r} is not known", hint=_EXAMPLE.format(name))
            values[i] = random_array(kind.dtype, (sizes[i],), rng)
    return values


def _infer_extents(program: Program, values: list[Any]) -> None:
    """Fill in the integers that are extents of views of given arrays."""
    position = {p.var: i for i, p in enumerate(program.params)}
    for view in walk(program):
        if isinstance(view, GlobalView):
            array = values[position[view.ptr]] if view.ptr in position else None
            if isinstance(array, np.ndarray) and array.ndim == len(view.shape):
                for extent, size in zip(view.shape, array.shape, strict=True):
                    if isinstance(extent, Var) and extent in position and values[position[extent]] is None:
                        values[position[extent]] = size


def _read(name: str, kind: PointerType | ScalarType, text: str, rng: np.random.Generator) -> Any:
    if isinstance(kind, ScalarType):
        return _number(name, kind.dtype, text)
    match = _RANDOM.fullmatch(text)
    if match is None:
        return _load(name, kind.dtype, Path(text))
    given, extents, low, high = match.groups()
    element = tilus.dtype(given) if given else kind.dtype
    shape = tuple(int(n) for n in extents.split(",") if n.strip())
    return random_array(element, shape, rng, None if low is None else (int(low), int(high)))


def _number(name: str, kind: DataType, text: str) -> int | float:
    try:
        return float(text) if kind.is_float else int(text, 0)
    except ValueError:
        raise TilusError(f"{name!r} must be a number of type {kind}, got {text!r}") from None


def _load(name: str, kind: DataType, path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise TilusError(f"cannot read {name!r} from {path}: {error}", hint=_EXAMPLE.format(name)) from error
    theirs = kind.numpy_dtype
    if theirs is not None and array.dtype.kind == "V" and array.dtype.itemsize == theirs.itemsize:
        return array.view(theirs)  # NumPy's files do not know the types of ml_dtypes
    return array


def random_array(
    kind: DataType, shape: Sequence[int], rng: np.random.Generator, limits: tuple[int, int] | None = None
) -> np.ndarray:
    """Return an array of random numbers: normal ones for floats, else any code, or integers within limits.

    Codes of less than a byte are packed; their array has one dimension.
    """
    if limits is not None:
        codes = kind.encode(rng.integers(*limits, shape, endpoint=True))
    elif kind.is_float:
        codes = kind.encode(rng.standard_normal(shape))
    else:
        codes = rng.integers(0, 2 if kind.is_boolean else 1 << kind.nbits, shape, np.uint64).astype(kind.code_dtype)
    if kind.nbits < 8:
        return kind.pack(codes.reshape(-1))
    return codes if kind.numpy_dtype is None else codes.view(kind.numpy_dtype)


def product_shape(text: str) -> tuple[int, int, int]:
    """Read the extents M, N and K of a product."""
    extents = text.split(",")
    if len(extents) != 3 or not all(part.strip().isdecimal() and int(part) for part in extents):
        raise TilusError(f"expected three positive extents M,N,K, got {text!r}", hint="for instance 16,64,512")
    m, n, k = map(int, extents)
    return m, n, k


def summary(names: Sequence[str], values: Sequence[Any]) -> str:
    """Return arguments as text: `x = f16[5, 1000], n = 1000`."""
    return ", ".join(f"{name} = {_text(value)}" for name, value in zip(names, values, strict=True))


def _text(value: Any) -> str:
    found = describe(value)
    return str(value) if found is None else f"{found.dtype}{list(value.shape)}"
