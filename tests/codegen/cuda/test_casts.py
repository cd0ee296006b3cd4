"""Casts: every code of every type at every position, run on the CPU and compared with `dtype.decode` and `encode`."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from tests.codegen.cuda.host import compile_host, portable

from tilus.codegen.cuda.casts import cast_function
from tilus.codegen.cuda.context import Context
from tilus.codegen.cuda.source import functions_text
from tilus.codegen.cuda.words import word_count
from tilus.dtypes import ALL, DataType, codebook, dtype
from tilus.ir.target import target

COUNT = 32  # whole words for every width
NARROW = [t for t in ALL if t.nbits <= 8]
EXTRA = [
    codebook("cb1", [-0.3, 7.0]),
    codebook("cb2", [0.1, -2.0, 1e-3, 5.0]),
    codebook("cb3", [0.0, 1 / 3, -1 / 3, 2, 4, -8, 16, 1e-6]),
    codebook("cb8", list(np.linspace(-3, 4, 256) ** 3)),
]


def build(source: DataType, to: DataType, counts: list[int], arch: str) -> list:
    ctx = Context(target(arch), 32, 0)
    names = [cast_function(ctx, source, to, n) for n in counts]
    entries = "".join(
        f'extern "C" void run_{n}(u32* d, const u32* s, int m) '
        f"{{ for (int i = 0; i < m; ++i) {name}(d + i * {word_count(to.nbits, n)}, s + i * {word_count(source.nbits, n)}); }}\n"
        for n, name in zip(counts, names, strict=True)
    )
    library = compile_host(portable(functions_text(ctx)) + entries)
    return [getattr(library, f"run_{n}") for n in counts]


def streams(source: DataType, codes: np.ndarray, count: int) -> np.ndarray:
    """Pack rows of `count` codes as words; spare bits are ones."""
    rows = codes.reshape(-1, count).astype(object)
    words = np.zeros((len(rows), word_count(source.nbits, count)), np.uint32)
    for r, row in enumerate(rows):
        stream = sum(int(c) << (i * source.nbits) for i, c in enumerate(row))
        used = count * source.nbits
        stream |= ((1 << (words.shape[1] * 32 - used)) - 1) << used
        words[r] = [(stream >> (32 * w)) & 0xFFFFFFFF for w in range(words.shape[1])]
    return words


def run(function, source: DataType, to: DataType, codes: np.ndarray, count: int) -> np.ndarray:
    """Return the codes of the results, shape of `codes`."""
    words = streams(source, codes, count)
    out = np.zeros((len(words), word_count(to.nbits, count)), np.uint32)
    pointer = ctypes.POINTER(ctypes.c_uint32)
    function(out.ctypes.data_as(pointer), words.ctypes.data_as(pointer), len(words))
    bits = np.unpackbits(out.view(np.uint8), axis=1, bitorder="little")[:, : count * to.nbits]
    weights = (1 << np.arange(to.nbits, dtype=np.uint64)).astype(np.uint64)
    return (bits.reshape(len(words), count, to.nbits).astype(np.uint64) * weights).sum(axis=2).reshape(codes.shape)


def expected(source: DataType, to: DataType, codes: np.ndarray) -> np.ndarray:
    values = source.decode(codes)
    if to.is_boolean:
        return (values != 0).astype(np.uint64)
    if to.is_integer and values.dtype.kind == "f":
        values = np.trunc(np.where(np.isnan(values), 0, values))
    if to.is_integer and values.dtype.kind in "iub":
        return values.astype(np.uint64) & np.uint64(to.num_codes - 1)
    if not getattr(to, "has_nan", True) or to.is_codebook:
        values = np.where(np.isnan(values), to.max_value, values)
    if to.name == "e8m0":
        values = np.abs(values)
    return to.encode(values).astype(np.uint64)


def same(to: DataType, got: np.ndarray, want: np.ndarray) -> None:
    """Compare codes; NaN is NaN with any payload."""
    if to.is_float:
        nan = np.isnan(to.decode(want)) & np.isnan(to.decode(got.astype(np.uint64)))
        got, want = np.where(nan, 0, got), np.where(nan, 0, want)
    np.testing.assert_array_equal(got, want)


def every_position(source: DataType) -> np.ndarray:
    """Rows in which every code comes at every position, neighbours differing."""
    n = source.num_codes
    size = max(n, COUNT)
    return np.array([[(i * 7 + r) % n for i in range(COUNT)] for r in range(size)], np.uint64)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("to", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("source", [*NARROW, *EXTRA], ids=str)
def test_narrow_to_float(source: DataType, to: str, arch: str) -> None:
    if arch == "sm_90a" and source.name not in ("f8e4m3", "f8e5m2", "u3"):
        return
    kind = dtype(to)
    counts = [COUNT, 1, 3]
    whole, one, three = build(source, kind, counts, arch)
    codes = every_position(source)
    same(kind, run(whole, source, kind, codes, COUNT), expected(source, kind, codes))
    single = np.arange(source.num_codes, dtype=np.uint64)
    same(kind, run(one, source, kind, single, 1), expected(source, kind, single))
    triple = np.resize(np.arange(source.num_codes * 3, dtype=np.uint64) % source.num_codes, (source.num_codes, 3))
    same(kind, run(three, source, kind, triple, 3), expected(source, kind, triple))
