"""Packing against a stream that is built and read one bit at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilus
from tilus.errors import DTypeError

WIDTHS = [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64]
cases = st.sampled_from(WIDTHS).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.integers(0, 2**n - 1), max_size=40))
)


def pack_bit_by_bit(codes: list[int], nbits: int) -> list[int]:
    stream = [0] * ((len(codes) * nbits + 7) // 8)
    for i, code in enumerate(codes):
        for j in range(nbits):
            place = i * nbits + j
            stream[place // 8] |= (code >> j & 1) << place % 8
    return stream


@given(cases)
def test_pack_and_unpack(case: tuple[int, list[int]]) -> None:
    nbits, codes = case
    dtype = tilus.dtype(f"u{nbits}")
    stream = dtype.pack(np.asarray(codes, dtype.code_dtype))
    assert stream.dtype == np.uint8
    assert stream.tolist() == pack_bit_by_bit(codes, nbits)
    assert dtype.nbytes(len(codes)) == len(stream)
    again = dtype.unpack(stream, len(codes))
    assert again.dtype == dtype.code_dtype
    assert again.tolist() == codes
    assert dtype.unpack(stream.tobytes(), len(codes)).tolist() == codes


@pytest.mark.parametrize("nbits", WIDTHS)
def test_long_streams_of_every_remainder(nbits: int) -> None:
    dtype = tilus.dtype(f"u{nbits}")
    rng = np.random.default_rng(nbits)
    for count in range(1000, 1009):
        codes = rng.integers(0, 2**nbits, count, dtype=np.uint64).astype(dtype.code_dtype)
        stream = dtype.pack(codes)
        assert stream.tolist() == pack_bit_by_bit([int(c) for c in codes], nbits)
        np.testing.assert_array_equal(dtype.unpack(stream, count), codes)


@pytest.mark.parametrize("name", ["i3", "f6e3m2", "nf4", "t2", "bf16", "tf32", "e8m0", "bool"])
def test_other_kinds_pack_the_same_bits(name: str) -> None:
    dtype = tilus.dtype(name)
    codes = np.random.default_rng(0).integers(0, 2**dtype.nbits, 77, dtype=np.uint64)
    assert dtype.pack(codes).tolist() == tilus.dtype(f"u{dtype.nbits}").pack(codes).tolist()


def test_pack_reads_in_row_major_order_whatever_the_strides() -> None:
    codes = np.arange(24).reshape(4, 6) % 8
    assert tilus.u3.pack(codes.T).tolist() == tilus.u3.pack(codes.T.copy().reshape(-1)).tolist()
    assert tilus.u3.unpack(tilus.u3.pack(codes)[::1], 24).tolist() == codes.reshape(-1).tolist()
    padded = np.repeat(tilus.u3.pack(codes), 2)
    assert tilus.u3.unpack(padded[::2], 24).tolist() == codes.reshape(-1).tolist()


def test_the_last_byte_is_filled_with_zeros_that_are_not_read() -> None:
    assert tilus.u3.pack([7]).tolist() == [7]
    assert tilus.u3.unpack(bytes([0xFF]), 1).tolist() == [7]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: tilus.u3.pack([8]), r"codes of u3 lie in \[0, 8\), got 8 to 8"),
        (lambda: tilus.u3.pack([0, -1]), r"lie in \[0, 8\), got -1 to 0"),
        (lambda: tilus.u3.decode([256]), r"lie in \[0, 8\), got 256"),
        (lambda: tilus.f4e2m1.decode([0.5]), r"are unsigned integers, got NumPy type float64\nhint: .*encode"),
        (lambda: tilus.u3.unpack(bytes(4), 8), "8 elements of u3 take 3 bytes, got 4"),
        (lambda: tilus.u3.unpack(bytes(2), 8), "8 elements of u3 take 3 bytes, got 2"),
        (lambda: tilus.u3.unpack(bytes(1), -1), "-1 elements"),
        (lambda: tilus.u3.unpack(np.zeros(3, np.int8), 8), "array of uint8, got NumPy type int8"),
    ],
)
def test_wrong_input(action, message: str) -> None:
    with pytest.raises(DTypeError, match=message):
        action()


def test_nothing_packs_to_nothing() -> None:
    assert tilus.u3.pack([]).shape == (0,)
    assert tilus.u3.unpack(b"", 0).shape == (0,)
    assert tilus.u3.decode(np.zeros((0, 4), np.uint8)).shape == (0, 4)
