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


def build(source: DataType, pairs: list[tuple[DataType, int]], arch: str) -> list:
    """Return functions `f(d, s, rows)` that convert rows of so many elements, for pairs of a type and a number."""
    ctx = Context(target(arch), 32, 0)
    names = [cast_function(ctx, source, to, n) for to, n in pairs]
    entries = "".join(
        f'extern "C" void run_{i}(u32* d, const u32* s, int m) {{ for (int i = 0; i < m; ++i) '
        f"{name}(d + i * {word_count(to.nbits, n)}, s + i * {word_count(source.nbits, n)}); }}\n"
        for i, (name, (to, n)) in enumerate(zip(names, pairs, strict=True))
    )
    library = compile_host(portable(functions_text(ctx)) + entries)
    return [getattr(library, f"run_{i}") for i in range(len(pairs))]


def streams(source: DataType, codes: np.ndarray, count: int) -> np.ndarray:
    """Pack rows of `count` codes as words; spare bits are ones."""
    rows = np.ascontiguousarray(codes.reshape(-1, count), "<u8")
    bits = np.unpackbits(rows.view(np.uint8).reshape(len(rows), count, 8), axis=2, bitorder="little")
    padded = np.ones((len(rows), word_count(source.nbits, count) * 32), np.uint8)
    padded[:, : count * source.nbits] = bits[:, :, : source.nbits].reshape(len(rows), -1)
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint32)


def run(function, words: np.ndarray, to: DataType, count: int) -> np.ndarray:
    """Return the codes of the results, rows of `count`."""
    out = np.zeros((len(words), word_count(to.nbits, count)), np.uint32)
    pointer = ctypes.POINTER(ctypes.c_uint32)
    function(out.ctypes.data_as(pointer), words.ctypes.data_as(pointer), len(words))
    bits = np.unpackbits(out.view(np.uint8), axis=1, bitorder="little")[:, : count * to.nbits]
    whole = np.zeros((len(words), count, 64), np.uint8)
    whole[:, :, : to.nbits] = bits.reshape(len(words), count, to.nbits)
    return np.packbits(whole, axis=2, bitorder="little").view("<u8")[:, :, 0]


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


SUBSET = [t for t in NARROW if t.name in ("f8e4m3", "f8e5m2", "u3")]


@pytest.mark.parametrize(
    ("source", "arch"), [*((t, "sm_80") for t in (*NARROW, *EXTRA)), *((t, "sm_90a") for t in SUBSET)], ids=str
)
def test_narrow_to_float(source: DataType, arch: str) -> None:
    kinds = [dtype(n) for n in ("f16", "bf16", "f32")]
    functions = iter(build(source, [(to, n) for to in kinds for n in (COUNT, 1, 3)], arch))
    whole = every_position(source)
    single = np.arange(source.num_codes, dtype=np.uint64)
    triple = np.resize(np.arange(source.num_codes * 3, dtype=np.uint64) % source.num_codes, (source.num_codes, 3))
    for to in kinds:
        for codes, count in ((whole, COUNT), (single, 1), (triple, 3)):
            got = run(next(functions), streams(source, codes, count), to, count)
            same(to, got, expected(source, to, codes.reshape(-1, count)))


WIDE = [dtype(n) for n in ("f16", "bf16", "f32", "tf32", "f64", "i16", "u16", "i32", "u32", "i64", "u64", "bool")]
SOME = [dtype(n) for n in ("u3", "i5", "u8", "f4e2m1", "f6e3m2", "f8e4m3", "f8e5m2", "f7e6m0", "e8m0", "nf4", "t2")]
TARGETS = [*ALL, codebook("cb32", list(np.linspace(-2, 3, 32) ** 3)), EXTRA[2]]


def interesting(source: DataType) -> np.ndarray:
    """All codes where they are few; else random ones, small integers, and values on and beside rounding borders."""
    if source.nbits <= 8 and not source.is_boolean:
        return np.resize(np.arange(source.num_codes, dtype=np.uint64), max(source.num_codes, 64))
    if source.is_boolean:
        return np.array([0, 1, 1, 0] * 16, np.uint64)
    if source.nbits == 16:
        return np.arange(1 << 16, dtype=np.uint64)
    rng = np.random.default_rng(5)
    codes = [rng.integers(0, 1 << 62, 4096).astype(np.uint64) % np.uint64(1 << min(source.nbits, 62))]
    if source.is_integer:
        edges = [s * ((1 << b) + d) for b in range(source.nbits - 1) for d in (-1, 0, 1) for s in (1, -1)]
        codes.append(np.array([e % (1 << source.nbits) for e in edges], np.uint64))
        codes.append(rng.integers(0, 2048, 2048).astype(np.uint64))
    else:
        codes.append(borders(source))
    found = np.concatenate(codes)
    return np.resize(found, -(-len(found) // 4) * 4)


def borders(source: DataType) -> np.ndarray:
    """Values halfway between neighbours of the narrow floats and codebooks, their neighbours, and specials."""
    values = [0.0, -0.0, np.inf, -np.inf, 2.0**31, -(2.0**31), 2.0**63, 255.5, -128.5, 1e-45, 1e38, 65519.9, 65520.0]
    for to in TARGETS:
        if to.nbits <= 16 and not to.is_integer and not to.is_boolean:
            codes = np.arange(min(to.num_codes, 4096))
            found = np.unique(to.decode(codes))
            found = found[np.isfinite(found)]
            values += list((found[1:] + found[:-1]) / 2) + list(found)
    array = np.array(values)
    exact = source.numpy_dtype.type
    near = array.astype(exact)
    around = np.concatenate(
        [near, np.nextafter(near, exact(np.inf)), np.nextafter(near, exact(-np.inf)), [exact(np.nan)]]
    )
    return np.asarray(source.encode(around)).astype(np.uint64)


@pytest.mark.parametrize("source", [*WIDE, *SOME, EXTRA[3]], ids=str)
def test_to_every_type(source: DataType) -> None:
    targets = [t for t in TARGETS if t != source]
    functions = build(source, [(to, 4) for to in targets], "sm_80")
    codes = interesting(source).reshape(-1, 4)
    words = streams(source, codes, 4)
    if source.nbits == 64 and source.is_integer:
        # The reference goes through f64, where greater integers are rounded once too often.
        small = np.where(np.abs(source.decode(codes).astype(np.float64)) < 2.0**53, codes, codes & np.uint64(2**50))
        small_words = streams(source, small, 4)
    for function, to in zip(functions, targets, strict=True):
        if to.name == "t1.6" or source.name == "t1.6":
            continue
        if source.nbits == 64 and source.is_integer and not to.is_integer:
            given, given_words = small, small_words
        else:
            given, given_words = codes, words
        got = run(function, given_words, to, 4)
        try:
            same(to, got, expected(source, to, given))
        except AssertionError as error:
            raise AssertionError(f"{source} -> {to}: {error}") from None
