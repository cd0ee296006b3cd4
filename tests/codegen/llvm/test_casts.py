"""Casts on the CPU: every code of every type of 1 to 8 bits, at every position of a word, to the bit."""

import numpy as np
import pytest

from tests.codegen.llvm.harness import lowered, run
from tilus.dtypes import dtype
from tilus.runtime.cpu_features import host_cpu

FLOATS = [f"f{1 + x + y}e{x}m{y}" for x in range(1, 8) for y in range(7) if 2 <= 1 + x + y <= 8]
INTEGERS = [f"{s}{n}" for s in "ui" for n in range(1, 9)]
BLOCK = 64
LOCALS = 32  # of codes of n bits: n words, so every position that a code may have in a word


def packed_program(source, target):
    """Words loaded as they are, viewed as codes, cast: how the library's kernels read weights."""
    words = LOCALS * dtype(source).nbits // 32
    layout = f"local({LOCALS}, 1) * spatial(1, 8)"
    return lowered(
        f"""  gx: global[u32, 2] = global_view(ptr=x, shape=({words}, 8), strides=(8, 1))
  gy: global[{target}, 2] = global_view(ptr=y, shape=({LOCALS}, 8), strides=(8, 1))
  w: register[u32, ({words}, 8), local({words}, 1) * spatial(1, 8)] = load_global(view=gx, offset=(0, 0), shape=({words}, 8), dims=(0, 1), other=0.0)
  c: register[{source}, ({LOCALS}, 8), {layout}] = view(x=w, dtype={source}, layout={layout})
  f: register[{target}, ({LOCALS}, 8), {layout}] = cast(x=c, dtype={target})
  store_global(view=gy, tile=f, offset=(0, 0), dims=(0, 1))""",
        f"x: ptr[u32], y: ptr[{target}]",
    )


def plain_program(source, target):
    """Elements loaded from and stored to memory one by one, of narrow types bit by bit, from every bit of a byte on."""
    layout = f"local({BLOCK // 8}) * spatial(8)"
    return lowered(
        f"""  gx: global[{source}, 1] = global_view(ptr=x, shape=(n), strides=(1))
  gy: global[{target}, 1] = global_view(ptr=y, shape=(n), strides=(1))
  c: register[{source}, ({BLOCK}), {layout}] = load_global(view=gx, offset=(block_id(0) * {BLOCK}), shape=({BLOCK}), dims=(0), other=0.0)
  f: register[{target}, ({BLOCK}), {layout}] = cast(x=c, dtype={target})
  store_global(view=gy, tile=f, offset=(block_id(0) * {BLOCK}), dims=(0))""",
        f"x: ptr[{source}], y: ptr[{target}], n: i32",
        grid=f"n // {BLOCK}",
    )


def assert_same_bits(got, expected):
    """Compare bit patterns, any NaN equal to any other."""
    bits = f"u{got.dtype.itemsize}"
    nan = np.isnan(got.astype(np.float64)) & np.isnan(expected.astype(np.float64))
    np.testing.assert_array_equal(np.where(nan, 0, got.view(bits)), np.where(nan, 0, expected.view(bits)))


@pytest.mark.parametrize("target", ["f32", "f16", "bf16", "i32"])
@pytest.mark.parametrize("source", [*INTEGERS, *FLOATS, "nf4", "t2"])
def test_from_narrow(source, target):
    check_from_narrow(source, "f64" if target == "i32" and not dtype(source).is_integer else target)


@pytest.mark.skipif("avx2" not in host_cpu().present, reason="the CPU has no permutations")
@pytest.mark.parametrize("source", [name for name in (*INTEGERS, *FLOATS, "nf4", "t2") if dtype(name).nbits <= 6])
def test_from_narrow_by_permutations(source):
    check_from_narrow(source, "f32", host_cpu().present)


def check_from_narrow(source, target, features=()):
    s, t = dtype(source), dtype(target)
    codes = np.arange(256, dtype=np.uint8)
    if s.nbits < 8:
        # Every lane goes on with the codes where the one before it ends, rotated by its number.
        streams = np.arange(8 * LOCALS).reshape(8, LOCALS) % s.num_codes
        codes = np.stack([np.roll(stream, lane) for lane, stream in enumerate(streams)]).astype(np.uint8)
        words = s.pack(codes.ravel()).view(np.uint32).reshape(8, -1)
        got = np.zeros((LOCALS, 8), t.numpy_dtype)
        run(packed_program(source, target), [np.ascontiguousarray(words.T), got], features=features)
        got = np.ascontiguousarray(got.T)
    else:
        got = np.zeros(codes.shape, t.numpy_dtype)
        run(plain_program(source, target), [codes, got, codes.size], (codes.size // BLOCK, 1, 1))
    with np.errstate(all="ignore"):
        assert_same_bits(got, t.encode(s.decode(codes)).view(t.numpy_dtype))
    assert set(codes.ravel().tolist()) == set(range(2**s.nbits))


@pytest.mark.parametrize("target", [*INTEGERS, *FLOATS])
def test_to_narrow(target):
    t = dtype(target)
    values = np.unique(t.decode(np.arange(t.num_codes)).astype(np.float64))
    values = values[np.isfinite(values)]
    middle = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    x = np.concatenate(
        [
            values,
            middle,
            np.nextafter(middle, np.float32(np.inf)),
            np.nextafter(middle, np.float32(-np.inf)),
            [0.0, -0.0, 1e30, -1e30, 1e-40, np.inf, -np.inf],
            np.random.default_rng(0).normal(size=300) * float(t.max_value or 1),
        ]
    ).astype(np.float32)
    x = np.concatenate([x, np.array([np.nan, -np.nan], np.float32)])
    x = np.resize(x, -(-x.size // BLOCK) * BLOCK)
    stored = np.zeros(t.nbytes(x.size), np.uint8)
    run(plain_program("f32", target), [x, stored, x.size], (x.size // BLOCK, 1, 1))
    number = x.astype(np.float64)
    if t.is_integer:
        number = np.clip(np.trunc(np.nan_to_num(number, nan=0.0)), t.min_value, t.max_value)
    elif not t.has_nan:
        number = np.where(np.isnan(number), t.max_value, number)
    expected = t.encode(number)
    np.testing.assert_array_equal(t.unpack(stored, x.size), expected)


@pytest.mark.parametrize("target", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("source", ["f64", "f32", "i32", "i64", "u32"])
def test_between_wide_types(source, target):
    """Doubles and wide integers are rounded once, not twice."""
    s, t = dtype(source), dtype(target)
    rng = np.random.default_rng(1)
    if s.is_float:
        x = (rng.normal(size=4096) * 10.0 ** rng.uniform(-45, 37, 4096)).astype(s.numpy_dtype)
        x.view(f"u{x.itemsize}")[:4] |= np.array(0x7FF << 52 if source == "f64" else 0xFF << 23, f"u{x.itemsize}")
        x.view(f"u{x.itemsize}")[4] = x.dtype.type(np.inf).view(f"u{x.itemsize}") + 1  # NaN by its lowest bit alone
    else:
        x = (rng.integers(0 if source == "u32" else -(2**31), 2**31, 4096) >> rng.integers(0, 31, 4096)).astype(
            s.numpy_dtype
        )
    got = np.zeros(4096, t.numpy_dtype)
    with np.errstate(all="ignore"):
        run(plain_program(source, target), [x, got, 4096], (4096 // BLOCK, 1, 1))
        assert_same_bits(got, t.encode(x).view(t.numpy_dtype))
