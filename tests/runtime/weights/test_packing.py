"""The packed order of weights, judged bit by bit by its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.cases import TYPES
from tilus.dtypes import codebook, dtype
from tilus.errors import TilusError
from tilus.layouts import local, spatial
from tilus.runtime.weights import PackLayout, WeightFormat, native_pack

DEVICES = ("cpu", "cuda")


def brute(pack, codes):
    """Place every bit of every code where the docstring of the module says it lies."""
    n, k = codes.shape
    height, width = pack.tile
    words = np.zeros(pack.packed_shape(n, k), np.uint64)
    bits, codes = pack.dtype.nbits, stored_codes(pack, codes)
    for tile_n, tile_k in np.ndindex(*words.shape[:2]):
        for thread, slot in np.ndindex(pack.fragment.num_threads, pack.fragment.local_size):
            row, column = pack.fragment(thread, slot)
            row, column = tile_n * height + row, tile_k * width + column
            code = int(codes[row, column]) if row < n and column < k else 0
            if pack.bits is not None:
                code ^= pack.bits.inverted(slot)
            for bit in range(bits):
                word, place = pack.bits.locate(slot, bit) if pack.bits else divmod(slot * bits + bit, 32)
                value = (code >> bit & 1) << place
                words[tile_n, tile_k, word // pack.vector, thread, word % pack.vector] |= np.uint64(value)
    return words.astype(np.uint32)


def stored_codes(pack, codes):
    """Return what the words hold: two's complement of the magnitude of codes with a sign and a number."""
    if pack.stored is None:
        return codes
    sign, codes = 1 << (pack.dtype.nbits - 1), codes.astype(int)
    return np.where(codes < sign, codes, -(codes % sign) % (2 * sign))


def canonical(pack, codes):
    """Return the codes that come back: fixed-point numbers have one zero."""
    minus_zero = 1 << (pack.dtype.nbits - 1)
    return codes if pack.stored is None else np.where(codes == minus_zero, 0, codes)


def codes_of(kind, n, k):
    return np.random.default_rng([n, k]).integers(0, kind.num_codes, (n, k)).astype(np.uint8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["u1", "u2", "u3", "i4", "u5", "f5e1m3", "f6e3m2", "u7", "i8", "nf4", "t2"])
def test_every_bit_lies_where_the_layout_says(name, device):
    pack = native_pack(dtype(name), device)
    n, k = (5, 130) if device == "cpu" else (65, pack.tile[1] + 3)
    codes = codes_of(dtype(name), n, k)
    words = pack.pack(codes)
    assert words.dtype == np.uint32
    assert words.flags.c_contiguous
    np.testing.assert_array_equal(words, brute(pack, codes))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TYPES)
def test_unpack_undoes_pack_and_reads_are_whole_vectors(name, device):
    kind = dtype(name)
    pack = native_pack(kind, device)
    for n, k in ((1, 1), (64, 256), (67, 300), (4, 128), (0, 5), (5, 0)):
        codes = codes_of(kind, n, k)
        words = pack.pack(codes)
        assert words.shape == pack.packed_shape(n, k)
        np.testing.assert_array_equal(pack.unpack(words, n, k), canonical(pack, codes))
    assert pack.vector * 4 == (4 if device == "cpu" else 16)
    tile = pack.tile[0] * pack.tile[1]
    assert np.prod(pack.words.shape) * 32 == tile * kind.nbits
    assert pack.words.num_threads == pack.fragment.num_threads


def test_codes_beyond_the_matrix_are_zero():
    pack = native_pack(dtype("u4"), "cuda")
    words = pack.pack(np.full((3, 5), 15, np.uint8))
    codes = pack.unpack(words, *pack.tile)
    assert (codes[:3, :5] == 15).all()
    assert codes.sum() == 15 * 15


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TYPES)
def test_text_round_trip(name, device):
    pack = native_pack(dtype(name), device)
    assert PackLayout.parse(str(pack)) == pack
    assert pack.device == device


@given(
    st.integers(1, 8), st.integers(1, 4), st.integers(0, 2), st.integers(0, 3), st.sampled_from((1, 2, 4)), st.data()
)
@settings(max_examples=60)
def test_any_fragment_round_trips(bits, rows, threads_n, threads_k, vector, data):
    # Any order of modes whose codes fill whole vectors.
    kind = dtype(f"u{bits}")
    fragment = local(rows, 32) * spatial(2**threads_n, 2**threads_k) * local(1, vector)
    pack = PackLayout(kind, fragment, vector)
    n, k = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 200))
    codes = codes_of(kind, n, k)
    np.testing.assert_array_equal(pack.unpack(pack.pack(codes), n, k), codes)


def test_what_cannot_be_packed():
    with pytest.raises(TilusError, match=r"6 bits, no multiple of 4 words of 32 bits"):
        PackLayout(dtype("u3"), local(1, 2) * spatial(4, 8), 4)
    with pytest.raises(TilusError, match=r"expected 'type \| layout \| words'"):
        PackLayout.parse("u4 | local(1, 32)")
    with pytest.raises(TilusError):
        PackLayout.parse("u4 | sideways(1, 32) | 4")
    for text in ("f4e2m1 as i4", "f4e1m2 as i5", "u4 as i4", "t1.6 as i2"):
        with pytest.raises(TilusError, match="are not stored as"):
            PackLayout.parse(f"{text} | local(1, 32) | 4")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_floats_with_one_bit_of_exponent_are_multiplied_as_integers(bits, device):
    form = WeightFormat(native_pack(dtype(f"f{bits}e1m{bits - 2}"), device), 128, "none")
    kernels = form.of_stored
    assert kernels.pack == native_pack(dtype(f"i{bits}"), device)
    codes = np.arange(2**bits, dtype=np.uint8)[None]
    stored = kernels.pack.unpack(form.pack.pack(codes), *codes.shape)
    np.testing.assert_array_equal(kernels.dtype.decode(stored) * kernels.tensor_scale, form.dtype.decode(codes))
    assert kernels.of_stored is kernels


def test_a_codebook_of_the_user_has_a_text_with_its_table():
    for name in ("b1", "a | b", 'q"(uo)te', "levels as i4"):
        pack = native_pack(codebook(name, [-1, 1]), "cuda")
        assert PackLayout.parse(str(pack)) == pack
