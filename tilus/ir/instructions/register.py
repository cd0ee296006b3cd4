"""Instructions on register tensors, the matrix product and debugging."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tilus.dtypes import DataType, boolean
from tilus.errors import VerifyError
from tilus.ir.expr import Expr, Tensor, dtype_of
from tilus.ir.instructions.base import Instruction, instruction
from tilus.ir.instructions.memory import register_type, require
from tilus.ir.operators import OPERATORS
from tilus.ir.types import RegisterType
from tilus.layouts import BitLayout, RegisterLayout

REDUCTIONS = ("sum", "max", "min")


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the common shape: aligned at the last dimension, extents equal or 1."""
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(s)) + s for s in shapes]
    out = tuple(max(extents) for extents in zip(*padded, strict=True))
    for s in padded:
        if any(n not in (1, m) for n, m in zip(s, out, strict=True)):
            raise VerifyError(f"shapes {' and '.join(map(str, shapes))} do not broadcast")
    return out


@instruction("full", "register", result=lambda i: RegisterType(dtype_of(i.value), i.shape))
@dataclass(frozen=True, slots=True)
class Full(Instruction):
    """A tile with every element equal to a scalar."""

    value: Expr
    shape: tuple[int, ...]


def _arange(i: Arange) -> RegisterType:
    require(0 <= i.dim < len(i.shape), f"dim {i.dim} is outside the shape {i.shape}")
    require(dtype_of(i.start).is_integer, "start must be an integer")
    return RegisterType(dtype_of(i.start), i.shape)


@instruction("arange", "register", result=_arange)
@dataclass(frozen=True, slots=True)
class Arange(Instruction):
    """A tile whose elements count along `dim`: `start + index[dim]`."""

    start: Expr
    shape: tuple[int, ...]
    dim: int


@instruction("copy", "register", result=lambda i: RegisterType(register_type(i.x).dtype, register_type(i.x).shape))
@dataclass(frozen=True, slots=True)
class Copy(Instruction):
    """The same tile in another variable."""

    x: Tensor


@instruction("cast", "register", result=lambda i: RegisterType(i.dtype, register_type(i.x).shape))
@dataclass(frozen=True, slots=True)
class Cast(Instruction):
    """Convert every element.

    To a float: nearest even, saturating where the type has no infinity. Float to integer: towards zero, saturating,
    NaN to 0. Integer to integer: the low bits. A codebook or a narrow float decodes to exactly its value. NaN becomes
    the greatest value of a type that has none (PTX ISA, `cvt` with `.satfinite`); to a boolean: whether it is not 0.
    """

    x: Tensor
    dtype: DataType


def _view(i: View) -> RegisterType:
    x = register_type(i.x)
    if x.layout is not None:
        require(
            x.layout.num_threads == i.layout.num_threads
            and x.layout.local_size * x.dtype.nbits == i.layout.local_size * i.dtype.nbits,
            f"view must keep threads and bits per thread: {x.layout.num_threads} threads with {x.layout.local_size} "
            f"{x.dtype} each became {i.layout.num_threads} threads with {i.layout.local_size} {i.dtype} each",
        )
    if i.bits is not None:
        _check_bits(i.bits, i.dtype, i.layout)
    return RegisterType(i.dtype, tuple(i.layout.shape), i.layout)


def _check_bits(bits: BitLayout, dtype: DataType, layout: RegisterLayout) -> None:
    require(
        bits.nbits == dtype.nbits and bits.num_elements == layout.local_size,
        f"{bits} places {bits.num_elements} codes of {bits.nbits} bits in each thread, the result has "
        f"{layout.local_size} {dtype}",
    )


@instruction("view", "register", result=_view)
@dataclass(frozen=True, slots=True)
class View(Instruction):
    """Reinterpret each thread's bits: local element i of n-bit elements is bits [i*n, (i+1)*n). Costs nothing.

    With a bit layout, local element i is the code that has its bits where that says.
    """

    x: Tensor
    dtype: DataType
    layout: RegisterLayout
    bits: BitLayout | None = None


def _unpack(i: Unpack) -> RegisterType:
    x = register_type(i.x)
    _check_bits(i.bits, i.source, i.layout)
    if x.layout is not None:
        have, want = x.layout.local_size * x.dtype.nbits, i.layout.local_size * i.source.nbits
        require(
            x.layout.num_threads == i.layout.num_threads and have == want,
            f"the codes take {want} bits in each of {i.layout.num_threads} threads, {i.x.name} has {have} in each of "
            f"{x.layout.num_threads}",
        )
    slots = 0 if i.form == "value" else i.bits.num_slots
    require(len(i.positions) == slots, f"{i.bits} needs {slots} positions for form {i.form!r}, got {len(i.positions)}")
    return RegisterType(i.dtype, tuple(i.layout.shape), i.layout)


@instruction("unpack", "register", result=_unpack)
@dataclass(frozen=True, slots=True)
class Unpack(Instruction):
    """Spell codes of type `source`, which lie as `bits` says, in another type: values, or numbers related to them.

    With form "value" it is a view and a cast. The other forms are those of `tilus.casts`: what comes out is the number
    whose pattern in the wider type holds the code's bits from `positions[slot]` on. Its value is a multiple of that
    number plus a constant, both known at compile time, which what follows takes into account.
    """

    x: Tensor
    source: DataType
    dtype: DataType
    layout: RegisterLayout
    bits: BitLayout
    form: str
    positions: tuple[int, ...] = ()


def _convert_layout(i: ConvertLayout) -> RegisterType:
    x = register_type(i.x)
    require(tuple(i.layout.shape) == x.shape, f"layout of shape {i.layout.shape} for a tile of shape {x.shape}")
    return RegisterType(x.dtype, x.shape, i.layout)


@instruction("convert_layout", "register", result=_convert_layout)
@dataclass(frozen=True, slots=True)
class ConvertLayout(Instruction):
    """Move elements between threads and registers so that the tile has another layout; values stay."""

    x: Tensor
    layout: RegisterLayout


def _elementwise(i: Elementwise) -> RegisterType:
    op = OPERATORS.get(i.op)
    require(op is not None and op.arity == len(i.args), f"no operator {i.op!r} with {len(i.args)} operands")
    assert op is not None
    tensors = [register_type(a) for a in i.args if isinstance(a, Tensor)]
    require(bool(tensors), "at least one operand must be a tensor")
    dtypes = [a.type.dtype if isinstance(a, Tensor) else dtype_of(a) for a in i.args]
    if i.op == "where":
        require(dtypes[0] == boolean, f"the condition must be boolean, it is {dtypes[0]}")
        dtypes = dtypes[1:]
    require(len(set(dtypes)) == 1, f"operands of {i.op} have different types: {', '.join(map(str, dtypes))}")
    check_domain(i.op, dtypes[0])
    return RegisterType(boolean if op.result == "bool" else dtypes[0], broadcast_shapes(*(t.shape for t in tensors)))


def check_domain(op: str, dtype: DataType) -> None:
    """Check that an operator takes a type."""
    allowed = {
        "any": True,
        "number": dtype != boolean,
        "integer": dtype.is_integer and dtype != boolean,
        "float": dtype.is_float,
        "bits": dtype.is_integer or dtype == boolean,
    }
    domain = OPERATORS[op].domain
    require(allowed[domain], f"{op} takes {domain} operands, not {dtype}")


@instruction("elementwise", "register", result=_elementwise)
@dataclass(frozen=True, slots=True)
class Elementwise(Instruction):
    """An operator of `tilus.ir.operators` on every element; tiles broadcast, scalars fill."""

    op: str
    args: tuple[Tensor | Expr, ...]


def _reduce(i: Reduce) -> RegisterType:
    x = register_type(i.x)
    require(i.op in REDUCTIONS, f"no reduction {i.op!r}: one of {', '.join(REDUCTIONS)}")
    require(0 <= i.dim < len(x.shape), f"dim {i.dim} is outside the shape {x.shape}")
    tail = (1,) if i.keepdims else ()
    return RegisterType(x.dtype, (*x.shape[: i.dim], *tail, *x.shape[i.dim + 1 :]))


@instruction("reduce", "register", result=_reduce)
@dataclass(frozen=True, slots=True)
class Reduce(Instruction):
    """Sum, maximum or minimum along one dimension; the order of a floating-point sum is not fixed."""

    x: Tensor
    op: Literal["sum", "max", "min"]
    dim: int
    keepdims: bool = False


def _transpose(i: Transpose) -> RegisterType:
    x = register_type(i.x)
    require(sorted(i.perm) == list(range(len(x.shape))), f"{i.perm} is no permutation of {len(x.shape)} dimensions")
    return RegisterType(x.dtype, tuple(x.shape[d] for d in i.perm))


@instruction("transpose", "register", result=_transpose)
@dataclass(frozen=True, slots=True)
class Transpose(Instruction):
    """Reorder dimensions: dimension d of the result is dimension `perm[d]` of `x`. Costs nothing."""

    x: Tensor
    perm: tuple[int, ...]


def _reshape(i: Reshape) -> RegisterType:
    x = register_type(i.x)
    require(math.prod(i.shape) == math.prod(x.shape), f"cannot reshape {x.shape} to {i.shape}: sizes differ")
    return RegisterType(x.dtype, i.shape)


@instruction("reshape", "register", result=_reshape)
@dataclass(frozen=True, slots=True)
class Reshape(Instruction):
    """The same elements in row-major order under another shape."""

    x: Tensor
    shape: tuple[int, ...]


def _slice(i: Slice) -> RegisterType:
    x = register_type(i.x)
    require(
        len(i.offset) == len(i.shape) == len(x.shape),
        f"slice of a {len(x.shape)}-dimensional tile needs as many offsets and extents",
    )
    inside = all(o >= 0 and n > 0 and o + n <= e for o, n, e in zip(i.offset, i.shape, x.shape, strict=True))
    require(inside, f"slice {i.offset} + {i.shape} leaves the shape {x.shape}")
    return RegisterType(x.dtype, i.shape)


@instruction("slice", "register", result=_slice)
@dataclass(frozen=True, slots=True)
class Slice(Instruction):
    """A rectangular part at a constant offset."""

    x: Tensor
    offset: tuple[int, ...]
    shape: tuple[int, ...]


def _dot(i: Dot) -> RegisterType:
    a, b, c = register_type(i.a), register_type(i.b), register_type(i.c)
    require(len(a.shape) == len(b.shape) in (2, 3), "dot takes matrices, or batches of them")
    require(a.shape[:-2] == b.shape[:-2], f"batches differ: {a.shape} x {b.shape}")
    require(a.shape[-1] == b.shape[-2], f"inner extents differ: {a.shape} x {b.shape}")
    expected = (*a.shape[:-1], b.shape[-1])
    require(c.shape == expected, f"the accumulator has shape {c.shape}, expected {expected}")
    require(a.dtype == b.dtype, f"dot operands have different types: {a.dtype} and {b.dtype}")
    require(not c.dtype.is_integer or a.dtype.is_integer, f"dot of {a.dtype} cannot accumulate in {c.dtype}")
    return RegisterType(c.dtype, c.shape)


@instruction("dot", "matrix", result=_dot)
@dataclass(frozen=True, slots=True)
class Dot(Instruction):
    """Matrix product `a @ b + c`, products exact, sums in the type of `c` in no fixed order.

    With three dimensions, the first counts the matrices of a batch.
    """

    a: Tensor
    b: Tensor
    c: Tensor


def _print(i: Print) -> None:
    slots = i.format.replace("{{", "").replace("}}", "").count("{}")
    require(slots == len(i.args), f"format {i.format!r} has {slots} slots for {len(i.args)} values")


@instruction("print", "control", check=_print)
@dataclass(frozen=True, slots=True)
class Print(Instruction):
    """Print once per block; `{}` stands for the next scalar or tile."""

    format: str
    args: tuple[Tensor | Expr, ...] = ()


def _assert(i: Assert) -> None:
    require(dtype_of(i.cond) == boolean, f"the condition must be boolean, it is {dtype_of(i.cond)}")


@instruction("assert_", "control", check=_assert)
@dataclass(frozen=True, slots=True)
class Assert(Instruction):
    """Stop the kernel with a message unless a scalar condition holds."""

    cond: Expr
    message: str
