"""How data types live in LLVM values.

A register tensor is a list of vectors, one lane per thread of the block. Types of 8 bits and more: one vector per local
element, of the *storage* type. Narrower types: vectors of 32-bit words, each lane a little-endian stream of its codes,
as `view` wants them. `bf16` and the narrow floats are stored as their bits, f16 as `half`.

To compute, an element is brought to its *compute* type: integers below 32 bits to i32, floats below 64 to f32.
"""

from __future__ import annotations

from tilus.dtypes import DataType

_NATIVE_FLOATS = {"f16": "half", "f32": "float", "f64": "double", "tf32": "float"}


def is_packed(dtype: DataType) -> bool:
    """Whether elements are stored as codes in words."""
    return dtype.nbits < 8 and not dtype.is_boolean


def storage(dtype: DataType) -> str:
    """Return the LLVM type of one stored element (of a code, for packed types)."""
    if dtype.is_boolean:
        return "i1"
    if is_packed(dtype):
        return "i32"
    return _NATIVE_FLOATS.get(dtype.name, f"i{dtype.nbits}")


def compute(dtype: DataType) -> str:
    """Return the LLVM type that arithmetic on the data type uses."""
    if dtype.is_boolean:
        return "i1"
    if dtype.is_integer:
        return "i64" if dtype.nbits > 32 else "i32"
    return "double" if dtype.nbits == 64 else "float"


def words(dtype: DataType, count: int) -> int:
    """Return how many 32-bit words `count` packed elements take."""
    return -(-count * dtype.nbits // 32)
