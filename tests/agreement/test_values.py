"""Casts between all types and operators on all types, compiled for this CPU and on the reference machine: equal bits.

The operands are hard ones: limits, subnormals, ties between neighbours, zeros of both signs, infinities and NaN.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tests.agreement.machines import on_cpu, on_vm
from tests.vm.helpers import as_buffer
from tilus.dtypes import DataType, dtype
from tilus.ir.builder import Builder, op
from tilus.ir.expr import BlockId, Tensor, const
from tilus.ir.instructions import Cast, Elementwise, GlobalView, LoadGlobal, StoreGlobal
from tilus.ir.operators import OPERATORS
from tilus.runtime.targets import find_target

WIDE = ["f16", "bf16", "f32", "f64", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "bool"]
NARROW = ["u1", "i1", "u3", "i4", "i7", "f3e1m1", "f4e2m1", "f6e3m2", "f8e4m3", "f8e5m2", "f8e3m4", "f6e5m0", "f8e7m0"]
TABLES = ["nf4", "t2"]  # these can be read only
# Rounded once on every machine. Others are a library's, and bounds for them are tested elsewhere.
EXACT = ["add", "sub", "mul", "div", "floordiv", "mod", "min", "max", "and", "or", "xor", "not", "shl", "shr"]
EXACT += ["lt", "le", "eq", "ne", "neg", "abs", "sqrt", "floor", "ceil", "round", "where"]
CPU = find_target("cpu")
TILE = 32  # elements of a block: two for each lane of the widest vectors
OFFSET = (op("mul", BlockId(0), const(TILE)),)


def hard_codes(kind: DataType) -> np.ndarray:
    """All codes of a narrow type; of a wide one those that roundings and overflows go wrong at."""
    if kind.nbits <= 8:
        return np.arange(2**kind.nbits if not kind.is_boolean else 2).astype(kind.code_dtype)
    rng = np.random.default_rng(kind.nbits)
    if kind.is_integer:
        powers = [2**i + d for i in range(kind.nbits) for d in (-1, 0, 1)]
        # Around ties of f16, bf16 and f32, from just below to just above.
        powers += [
            (2**i + 1) * 2**j + d for i in (8, 11, 24, 53) for j in range(1, kind.nbits - i - 1) for d in (-1, 0, 1)
        ]
        values = {v % 2**kind.nbits for p in powers for v in (p, -p)}
        return np.array(sorted(values), np.uint64).astype(kind.code_dtype)
    one = np.ldexp(1.0, np.arange(-150 if kind.nbits >= 32 else -26, 129 if kind.nbits >= 32 else 18))
    steps = [1, 1 + 2**-8, 1 + 2**-9, 1 + 2**-11, 1 + 2**-12, 1 + 2**-11 + 2**-22, 1 + 2**-24, 1 + 2**-24 + 2**-50, 1.5]
    values = np.concatenate([one * s for s in steps] + [[0, np.inf, np.nan, 65504, 65520, 3.4e38, 448, 464, 2.5, 0.1]])
    with np.errstate(all="ignore"):
        codes = kind.encode(np.concatenate([values, -values]))
    random = rng.integers(0, 2**kind.nbits, 200, np.uint64, endpoint=False) if kind.nbits < 64 else []
    return np.unique(np.concatenate([codes, np.asarray(random, kind.code_dtype)]).astype(kind.code_dtype))


def tiled(codes: np.ndarray) -> np.ndarray:
    """Repeat codes to whole tiles, a vector of lanes and more."""
    return np.resize(codes, -(-codes.size // TILE) * TILE)


def vector(b: Builder, name: str, kind: DataType, count: int) -> Tensor:
    """Return a view of a new buffer."""
    return b.inst(GlobalView(b.pointer(name, kind), (const(count),), (const(1),)), f"g_{name}")


def load(b: Builder, name: str, kind: DataType, count: int) -> Tensor:
    """Return the block's part of a new buffer."""
    return b.inst(LoadGlobal(vector(b, name, kind, count), OFFSET, (TILE,), (0,)), name)


def compare(b: Builder, inputs: list[np.ndarray], results: list[Tensor]) -> None:
    """Store the results and run on both machines; they must have equal bits, or both be NaN."""
    count, kinds = inputs[0].size, [r.type.dtype for r in results]
    for i, result in enumerate(results):
        b.inst(StoreGlobal(vector(b, f"r{i}", result.type.dtype, count), result, OFFSET, (0,)))
    program = b.program((const(count // TILE),))
    buffers = [as_buffer(p.var.type.dtype, c) for p, c in zip(program.params, inputs, strict=False)]
    buffers += [as_buffer(k, np.full(count, k.num_codes - 1 if not k.is_boolean else 1)) for k in kinds]
    runs = [run[len(inputs) :] for run in (on_vm(program, buffers), on_cpu(program, CPU, buffers))]
    for result, kind, *found in zip(results, kinds, *runs, strict=True):
        codes = [kind.unpack(r, count) if kind.nbits < 8 else r.view(kind.code_dtype) for r in found]
        if kind.is_float:
            values = [np.asarray(kind.decode(c), np.float64) for c in codes]
            codes = [np.where(np.isnan(v), 0, c) for c, v in zip(codes, values, strict=True)]
        np.testing.assert_array_equal(codes[1], codes[0], err_msg=f"{result.name} to {kind}")


@pytest.mark.parametrize("source", [*WIDE, *NARROW, *TABLES])
def test_casts(source: str) -> None:
    kind, b = dtype(source), Builder("casts")
    codes = tiled(hard_codes(kind))
    x = load(b, "x", kind, codes.size)
    targets = [dtype(name) for name in [*WIDE, *NARROW] if name != source]
    compare(b, [codes], [b.inst(Cast(x, target), "cast") for target in targets])


def fits(name: str, kind: DataType) -> bool:
    """Whether a type has the operator."""
    domain = OPERATORS[name].domain
    return {
        "any": True,
        "number": not kind.is_boolean,
        "integer": kind.is_integer and not kind.is_boolean,
        "float": kind.is_float,
        "bits": kind.is_integer or kind.is_boolean,
    }[domain]


@pytest.mark.parametrize("type_", [*WIDE, *NARROW])
def test_operators(type_: str) -> None:
    kind, b = dtype(type_), Builder("operators")
    codes = hard_codes(kind)
    some = np.random.default_rng(0).choice(codes, min(40, codes.size), replace=False)
    pairs = np.array(list(product(some, codes if codes.size < 70 else np.resize(codes[::5], 70))))
    left, right = tiled(pairs[:, 0]), tiled(pairs[:, 1])
    inputs = {"x": left, "y": right}
    if fits("mod", kind):
        inputs |= {"amount": right % min(kind.nbits, 2 ** (kind.nbits - 1)), "divisor": np.where(right == 0, 1, right)}
    tiles = {n: load(b, n, kind, left.size) for n in inputs}
    x, y = tiles["x"], tiles["y"]
    results = []
    for name in (name for name in EXACT if fits(name, kind)):
        second = {"shl": "amount", "shr": "amount", "floordiv": "divisor", "mod": "divisor"}.get(name, "y")
        args = (x, tiles[second])[: OPERATORS[name].arity]
        if name == "where":
            args = (b.inst(Elementwise("eq", (x, y))), y, x)
        results.append(b.inst(Elementwise(name, args), name))
    compare(b, list(inputs.values()), results)
