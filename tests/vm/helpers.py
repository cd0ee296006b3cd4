"""Small programs for the reference machine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tilus import vm
from tilus.dtypes import DataType
from tilus.errors import VMError
from tilus.ir.builder import Builder
from tilus.ir.expr import Tensor, const
from tilus.ir.instructions import GlobalView, LoadGlobal, StoreGlobal
from tilus.ir.parser import parse
from tilus.ir.verify import verify


def as_buffer(kind: DataType, codes: np.ndarray) -> np.ndarray:
    """The array that a pointer to `kind` takes."""
    codes = np.asarray(codes, kind.code_dtype)
    return kind.pack(codes) if kind.nbits < 8 else codes.reshape(-1).view(kind.numpy_dtype or kind.code_dtype)


def evaluate(
    build: Callable[..., Tensor], *inputs: tuple[DataType, np.ndarray], layouts: tuple[object, ...] | None = None
) -> np.ndarray:
    """Codes of the tile that `build(builder, *tiles)` returns, for inputs given as (type, codes).

    Every input is loaded whole from a buffer of its own, and the result stored to another.
    """
    b = Builder("test")
    tiles = []
    for i, (kind, codes) in enumerate(inputs):
        layout = None if layouts is None else layouts[i]
        tiles.append(b.inst(LoadGlobal(*whole(b, f"x{i}", kind, codes.shape)), f"t{i}", layout=layout))
    result = build(b, *tiles)
    kind, shape = result.type.dtype, result.type.shape
    view, offset, _, dims = whole(b, "y", kind, shape)
    b.inst(StoreGlobal(view, result, offset, dims))
    program = b.program()
    verify(program)
    # Ones everywhere, so that what is not written is seen.
    out = as_buffer(kind, np.full(shape, kind.num_codes - 1))
    vm.run(program, [*(as_buffer(k, c) for k, c in inputs), out])
    count = int(np.prod(shape))
    return (kind.unpack(out, count) if kind.nbits < 8 else out.view(kind.code_dtype)).reshape(shape)


def whole(b: Builder, name: str, kind: DataType, shape: tuple[int, ...]) -> tuple[Tensor, tuple, tuple, tuple]:
    """A view of a new buffer of a shape, and the other fields of an access to all of it."""
    strides = [int(np.prod(shape[d + 1 :])) for d in range(len(shape))]
    pointer = b.pointer(name, kind)
    view = b.inst(GlobalView(pointer, tuple(map(const, shape)), tuple(map(const, strides))), f"g_{name}")
    return view, tuple(const(0) for _ in shape), tuple(shape), tuple(range(len(shape)))


def run_text(text: str, *args: object, **options: object) -> None:
    """Run a program given as text."""
    program = parse(text, "p.tilus")
    verify(program)
    vm.run(program, list(args), **options)


def fault(text: str, *args: object, **options: object) -> VMError:
    """The fault that a program ends with."""
    with pytest.raises(VMError) as error:
        run_text(text, *args, **options)
    return error.value
