"""Conversions between stored elements and compute types, and from any data type to any other.

All are exact or rounded once. They work on scalars and on vectors alike: the shape of the value decides.
"""

from __future__ import annotations

from tilus.codegen.llvm.builder import Builder, Value, constant, lanes_of, vector
from tilus.codegen.llvm.tables import lookup, lookup_cost
from tilus.codegen.llvm.types import compute, is_packed, storage
from tilus.dtypes import DataType, Exponent
from tilus.dtypes.codebooks import Codebook
from tilus.dtypes.floats import Float
from tilus.dtypes.integers import Integer
from tilus.errors import CodegenError

DEAREST_LOOKUP = 6.0  # instructions: about what it takes to move the fields of a float


def _like(value: Value, element: str) -> str:
    return vector(lanes_of(value.type)[0], element)


def decode(b: Builder, dtype: DataType, x: Value) -> Value:
    """Bring a stored element (of a packed type: a code in an i32) to its compute type."""
    target = _like(x, compute(dtype))
    if dtype.is_boolean or (x.type == target and not is_packed(dtype)):
        return x
    if compute(dtype) == "float" and _is_looked_up(b, dtype):
        return _signed(b, dtype, x) if _has_sign(b, dtype) else lookup(b, dtype.decode(range(dtype.num_codes)), x)
    match dtype:
        case Integer():
            return _decode_integer(b, dtype, x, target)
        case Float(name="f16"):
            return b.convert("fpext", x, target)
        case Float(name="bf16"):
            wide = b.convert("zext", x, _like(x, "i32"))
            return b.convert("bitcast", b.op("shl", wide, 16), target)
        case Float():
            return _decode_float(b, dtype, _code(b, dtype, x))
        case Exponent():
            return _decode_exponent(b, _code(b, dtype, x))
        case Codebook():
            return lookup(b, dtype.decode(range(dtype.num_codes)), _code(b, dtype, x))
        case _:
            raise CodegenError(f"no values of {dtype} on the cpu target", hint="use a bit-packed type")


def _is_looked_up(b: Builder, dtype: DataType) -> bool:
    """Whether the f32 that a code stands for is best taken from a table."""
    dearest = 1.0 if dtype.is_integer else DEAREST_LOOKUP
    return is_packed(dtype) and lookup_cost(b, dtype.nbits) <= dearest


def _has_sign(b: Builder, dtype: DataType) -> bool:
    """Whether magnitudes are looked up alone: all codes would take several permutations, which have few ports."""
    return isinstance(dtype, Float) and lookup_cost(b, dtype.nbits) > 1.0


def _signed(b: Builder, dtype: DataType, code: Value) -> Value:
    """Look up a float's magnitude, and put its sign before it."""
    size = lookup(b, dtype.decode(range(dtype.num_codes // 2)), code)
    sign = b.op("and", b.op("shl", code, 32 - dtype.nbits), 1 << 31)
    return b.convert("bitcast", b.op("or", b.convert("bitcast", size, sign.type), sign), size.type)


def _code(b: Builder, dtype: DataType, x: Value) -> Value:
    return x if is_packed(dtype) else b.convert("zext", x, _like(x, "i32"))


def _decode_integer(b: Builder, dtype: Integer, x: Value, target: str) -> Value:
    if not is_packed(dtype):
        return b.convert("sext" if dtype.is_signed else "zext", x, target)
    if not dtype.is_signed:
        return x
    shift = 32 - dtype.nbits
    return b.op("ashr", b.op("shl", x, shift), shift)


def _decode_exponent(b: Builder, code: Value) -> Value:
    """Return the power of two whose exponent an f32 would spell so: 2^-127 is a subnormal, 255 NaN."""
    bits = b.op("shl", code, 23)
    bits = b.select(b.compare("icmp eq", code, 0), constant(bits.type, 1 << 22), bits)
    bits = b.select(b.compare("icmp eq", code, 255), constant(bits.type, 0x7FC00000), bits)
    return b.convert("bitcast", bits, _like(code, "float"))


def _decode_float(b: Builder, dtype: Float, code: Value) -> Value:
    """Lay the magnitude under the exponent of an f32, which spells all but subnormals, and correct those.

    With bits m below exponent e the pattern spells 2^(e-bias) (1 + m), and if e = 0 the value is 2^(1-bias) m instead:
    twice that less 2^(1-bias). Of the two the lesser is the value in either case. Patterns of f32 subnormals would be
    corrected by one multiplication, but an operation on a subnormal takes Intel's CPUs some hundred cycles.
    """
    width, m = dtype.exponent_bits + dtype.mantissa_bits, dtype.mantissa_bits
    sign = b.op("and", b.op("shl", code, 31 - width), 1 << 31)
    magnitude = b.op("and", code, (1 << width) - 1)
    bits = b.op("add", b.op("shl", magnitude, 23 - m), (127 - dtype.bias) << 23)
    normal = b.convert("bitcast", bits, _like(code, "float"))
    least = 2.0 ** (1 - dtype.bias)
    subnormal = b.call(normal.type, "fma", normal, constant(normal.type, 2.0), constant(normal.type, -least))
    size = b.select(b.compare("fcmp olt", normal, subnormal), normal, subnormal)
    result = b.op("or", b.convert("bitcast", size, code.type), sign)
    if dtype.nan_code is not None:
        result = _with_specials(b, dtype, magnitude, sign, result)
    return b.convert("bitcast", result, normal.type)


def _with_specials(b: Builder, dtype: Float, magnitude: Value, sign: Value, finite: Value) -> Value:
    """Return the bits of an f32 with those of NaN, and infinity, where a code stands for them."""
    if not dtype.has_inf:
        top = (1 << (dtype.exponent_bits + dtype.mantissa_bits)) - 1
        return b.select(b.compare("icmp eq", magnitude, top), b.op("or", sign, 0x7FC00000), finite)
    first = dtype.max_code + 1
    infinity = b.compare("icmp eq", magnitude, first)
    special = b.op("or", sign, b.select(infinity, constant(sign.type, 0x7F800000), 0x7FC00000))
    return b.select(b.compare("icmp uge", magnitude, first), special, finite)


def encode(b: Builder, dtype: DataType, x: Value) -> Value:
    """Bring a value of the compute type of `dtype` to storage, floats rounded to nearest even."""
    target = _like(x, storage(dtype))
    if dtype.is_boolean or (x.type == target and not is_packed(dtype)):
        return x
    match dtype:
        case Integer():
            return b.op("and", x, (1 << dtype.nbits) - 1) if is_packed(dtype) else b.convert("trunc", x, target)
        case Float(name="f16"):
            return b.convert("fptrunc", x, target)
        case Float(name="bf16"):
            return b.convert("trunc", _round_bf16(b, x), target)
        case Float():
            code = _encode_float(b, dtype, x)
            return code if is_packed(dtype) else b.convert("trunc", code, target)
        case _:
            raise CodegenError(f"cannot convert to {dtype} in a kernel", hint="encode on the host with dtype.encode")


def _round_bf16(b: Builder, x: Value) -> Value:
    """Return the top half of an f32, rounded to nearest even by integer addition; NaN stays a (quiet) NaN."""
    bits = b.convert("bitcast", x, _like(x, "i32"))
    odd = b.op("and", b.op("lshr", bits, 16), 1)
    rounded = b.op("lshr", b.op("add", b.op("add", bits, 0x7FFF), odd), 16)
    nan = b.op("or", b.op("lshr", bits, 16), 0x40)
    return b.select(b.compare("fcmp uno", x, x), nan, rounded)


def _encode_float(b: Builder, dtype: Float, x: Value) -> Value:
    """Round an f32 to a narrow float: normals by integer addition, subnormals by adding a constant of their ulp."""
    y, width = dtype.mantissa_bits, dtype.exponent_bits + dtype.mantissa_bits
    bits = b.convert("bitcast", x, _like(x, "i32"))
    sign = b.op("shl", b.op("lshr", bits, 31), width)
    magnitude = b.convert("bitcast", b.op("and", bits, 0x7FFFFFFF), x.type)
    limited = b.call(x.type, "minnum", magnitude, constant(x.type, dtype.max_value)) if dtype.saturates else magnitude
    raw = b.convert("bitcast", limited, bits.type)
    shift = 23 - y
    # Without a mantissa bit there is no even significand, and ties go up (IEEE 754-2019, 4.3.1).
    tie = constant(bits.type, 1) if y == 0 else b.op("and", b.op("lshr", raw, shift), 1)
    rounded = b.op("add", b.op("add", raw, (1 << (shift - 1)) - 1), tie)
    normal = b.op("sub", b.op("lshr", rounded, shift), (127 - dtype.bias) << y)
    ulp = 2.0 ** (1 - dtype.bias - y)
    magic = constant(x.type, ulp * 2**23)
    sum_bits = b.convert("bitcast", b.op("fadd", limited, magic), bits.type)
    subnormal = b.op("sub", sum_bits, b.convert("bitcast", magic, bits.type))
    if y == 0:
        subnormal = b.select(b.compare("fcmp ogt", limited, ulp / 2), constant(bits.type, 1), 0)
    code = b.select(b.compare("fcmp olt", limited, 2.0 ** (1 - dtype.bias)), subnormal, normal)
    if not dtype.saturates:
        infinity = dtype.max_code + 1
        code = b.select(b.compare("icmp ugt", code, infinity), constant(code.type, infinity), code)
    nan = b.compare("fcmp uno", x, x)
    if dtype.nan_code is None:
        return b.select(nan, constant(code.type, dtype.max_code), b.op("or", sign, code))
    return b.op("or", sign, b.select(nan, constant(code.type, dtype.nan_code), code))


def cast(b: Builder, src: DataType, dst: DataType, x: Value) -> Value:
    """Convert a stored element of `src` to a stored element of `dst` with the meaning of the `cast` instruction."""
    if src == dst:
        return x
    if src.is_integer and compute(dst) == "float" and _is_looked_up(b, src):
        return encode(b, dst, lookup(b, src.decode(range(src.num_codes)), x))
    value = decode(b, src, x)
    if dst.is_boolean:
        return b.compare("fcmp une" if src.is_float or src.is_codebook else "icmp ne", value, 0)
    if src.is_boolean:
        value = b.convert("zext", value, _like(value, "i32"))
    if dst.is_integer:
        return encode(b, dst, _to_integer(b, src, dst, value))
    return encode(b, dst, _to_float(b, src, dst, value))


def _to_integer(b: Builder, src: DataType, dst: DataType, value: Value) -> Value:
    target = _like(value, compute(dst))
    if src.is_integer or src.is_boolean:
        if value.type == target:
            return value
        narrower = lanes_of(value.type)[1] == "i64"
        return b.convert("trunc" if narrower else "sext" if src.is_signed else "zext", value, target)
    if value.type == _like(value, "float") and (dst.nbits < 32 or (dst.nbits == 32 and dst.is_signed)):
        return _truncated(b, dst, value, target)
    lanes, element = lanes_of(value.type)
    kind = "fptosi" if dst.is_signed or dst.nbits < 32 else "fptoui"
    suffix = f"v{lanes}" if lanes else ""
    wide, short = lanes_of(target)[1], {"float": "f32", "double": "f64"}[element]
    name = f"llvm.{kind}.sat.{suffix}{wide}.{suffix}{short}"
    whole = b.call(target, name, value, intrinsic=False)
    if dst.nbits in (32, 64):
        return whole
    low = b.call(target, "smax", whole, constant(target, int(dst.min_value)))
    return b.call(target, "smin", low, constant(target, int(dst.max_value)))


def _truncated(b: Builder, dst: DataType, value: Value, target: str) -> Value:
    """Return an f32 as the nearest integer towards zero that the type has, NaN as 0.

    LLVM's own saturating conversion takes vectors apart on x86.
    """
    least, most = float(dst.min_value), float(dst.max_value)
    below = most if dst.nbits < 32 else 2.0**31 - 2.0**7  # the last f32 that an i32 holds
    inside = b.select(b.compare("fcmp olt", value, below), value, below)
    inside = b.select(b.compare("fcmp ogt", inside, least), inside, least)
    whole = b.convert("fptosi", inside, target)
    if dst.nbits == 32:
        whole = b.select(b.compare("fcmp oge", value, 2.0**31), constant(target, int(dst.max_value)), whole)
    return b.select(b.compare("fcmp ord", value, value), whole, 0)


def _to_float(b: Builder, src: DataType, dst: DataType, value: Value) -> Value:
    target = _like(value, compute(dst))
    if src.is_float or src.is_codebook:
        if value.type == target:
            return value
        if compute(dst) == "double":
            return b.convert("fpext", value, target)
        return b.convert("fptrunc", value, target) if dst.nbits == 32 else _to_odd(b, value, target)
    unsigned = not src.is_signed and src.nbits >= 32
    opcode = "uitofp" if unsigned else "sitofp"
    if compute(dst) == "double" or dst.nbits == 32 or src.nbits <= 24:
        return b.convert(opcode, value, target)
    return _to_odd(b, b.convert(opcode, value, _like(value, "double")), target)


def _to_odd(b: Builder, value: Value, target: str) -> Value:
    """Round a double to an f32 to odd, so that rounding the result once more rounds the double correctly."""
    near = b.convert("fptrunc", value, target)
    back = b.convert("fpext", near, value.type)
    size, exact = b.call(value.type, "fabs", value), b.call(value.type, "fabs", back)
    bits = b.convert("bitcast", near, _like(value, "i32"))
    above = b.convert("zext", b.compare("fcmp ogt", exact, size), bits.type)
    odd = b.op("or", b.op("sub", bits, above), 1)
    inexact = b.compare("fcmp one", back, value)
    return b.convert("bitcast", b.select(inexact, odd, bits), target)
