"""A packed tensor is a little-endian stream of bits: element i is bits [i*nbits, (i+1)*nbits).

Bit j of the stream is bit j % 8 (counted from the least significant) of byte j // 8. The unused bits of the last
byte are written as zero and are not read. Eight codes of n bits fill exactly n bytes, whatever n is: so up to
8 bits a group of eight codes is put together in one 64-bit word, and the stream is the low n bytes of every word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_GROUP = 8  # codes


def packed_nbytes(count: int, nbits: int) -> int:
    """Return how many bytes `count` codes of `nbits` bits take, the last byte filled up with zero bits."""
    return (count * nbits + 7) // 8


def pack_bits(codes: NDArray[Any], nbits: int) -> NDArray[np.uint8]:
    """Pack codes into a bit stream.

    Parameters
    ----------
    codes : unsigned integers, any shape
        Read in row-major order; each below 2**nbits.
    nbits : int
        1 to 8, or 16, 32, 64.

    Returns
    -------
    uint8, shape (packed_nbytes(codes.size, nbits),)
    """
    flat = np.ascontiguousarray(codes).reshape(-1)
    if nbits >= 8:
        return flat.astype(f"<u{nbits // 8}").view(np.uint8)
    groups = -(-flat.size // _GROUP)
    padded = np.zeros((groups, _GROUP), np.uint8)
    padded.reshape(-1)[: flat.size] = flat
    words = np.zeros(groups, "<u8")
    for i in range(_GROUP):
        words |= padded[:, i].astype("<u8") << np.uint64(i * nbits)
    stream: NDArray[np.uint8] = words.view(np.uint8).reshape(groups, 8)[:, :nbits].reshape(-1)
    return np.array(stream[: packed_nbytes(flat.size, nbits)])


def unpack_bits(stream: NDArray[np.uint8], nbits: int, count: int) -> NDArray[Any]:
    """Read `count` codes back from a bit stream of exactly `packed_nbytes(count, nbits)` bytes.

    Returns
    -------
    unsigned integers of the smallest type that holds a code, shape (count,)
    """
    if nbits >= 8:
        return np.ascontiguousarray(stream).view(f"<u{nbits // 8}").astype(f"u{nbits // 8}")
    groups = -(-count // _GROUP)
    padded = np.zeros((groups, 8), np.uint8)
    body = np.zeros(groups * nbits, np.uint8)
    body[: stream.size] = stream
    padded[:, :nbits] = body.reshape(groups, nbits)
    words = padded.view("<u8").reshape(-1)
    codes = np.empty((groups, _GROUP), np.uint8)
    mask = np.uint64((1 << nbits) - 1)
    for i in range(_GROUP):
        codes[:, i] = (words >> np.uint64(i * nbits)) & mask
    return codes.reshape(-1)[:count]
