"""How values are held while they are computed with: the C++ type for each data type.

Integers of 32 and 64 bits are held as their bits, unsigned, because they wrap, and signed overflow has no meaning in
C++; where the sign matters an operation says so. Narrower integers are held as their values. Narrow floats are f32
values that are exactly theirs.
"""

from __future__ import annotations

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.cpp import Expr
from tilus.dtypes import DataType


def c_type(dtype: DataType) -> str:
    """Return the C++ type that values are computed in."""
    if dtype.is_boolean:
        return "bool"
    if dtype.is_integer:
        if dtype.nbits >= 32:
            return f"u{dtype.nbits}"
        return "i32" if dtype.is_signed else "u32"
    return "double" if dtype.name == "f64" else "float"


def code_type(dtype: DataType) -> str:
    """Return the C++ type of codes."""
    return "u64" if dtype.nbits == 64 else "u32"


def signed(dtype: DataType, value: Expr) -> Expr:
    """Return a value as a C++ integer with the right sign."""
    if dtype.is_integer and dtype.is_signed and dtype.nbits in (32, 64):
        return cpp.convert(f"i{dtype.nbits}", value)
    return value


def unsigned(dtype: DataType, value: Expr) -> Expr:
    """Return a signed C++ integer as values of the type are held."""
    if dtype.is_integer and dtype.is_signed and dtype.nbits in (32, 64):
        return cpp.convert(f"u{dtype.nbits}", value)
    return value


def literal(dtype: DataType, value: float) -> Expr:
    """Return a constant as values of the type are held, rounded to the type."""
    if dtype.is_boolean:
        return cpp.TRUE if value else cpp.FALSE
    if dtype.is_integer:
        return cpp.Int(int(value))
    if dtype.name == "f64":
        return cpp.double_literal(float(value))
    rounded = float(value) if value != value else float(dtype.decode(dtype.encode(value)))
    return cpp.float_literal(rounded)
