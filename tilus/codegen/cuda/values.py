"""From codes to values and back, one element at a time, for every data type.

These are the general ways: exact, and used for scalars and wherever a tile has no faster one (`casts` has those).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context, pairs
from tilus.codegen.cuda.cpp import Expr, Name, Stmt, call, convert
from tilus.codegen.cuda.encode import encode_codebook, encode_exponent, encode_float, encode_tf32
from tilus.codegen.cuda.types import c_type, signed, unsigned
from tilus.codegen.cuda.words import pack
from tilus.dtypes import ALL, Codebook, DataType, Exponent, Float, PackedTernary, f32, u1
from tilus.errors import CodegenError


def float_bits(value: Expr) -> Expr:
    """Return the bits of an f32."""
    return call("__float_as_uint", value)


def bits_float(code: Expr) -> Expr:
    """Return the f32 that bits spell."""
    return call("__uint_as_float", code)


# --- decode ---------------------------------------------------------------------------------------------------------


def decode(ctx: Context, dtype: DataType, code: Expr) -> Expr:
    """Return the value of a code whose upper bits are zero."""
    if dtype.is_boolean:
        return cpp.binary("!=", code, 0)
    if dtype.is_integer:
        if dtype.nbits >= 32 or not dtype.is_signed:
            return code
        spare = 32 - dtype.nbits
        return convert("i32", code << spare) >> spare
    match dtype.name:
        case "f32":
            return bits_float(code)
        case "tf32":
            return bits_float(code & cpp.bits(0xFFFFE000))  # the padding is not read
        case "f64":
            return call("__longlong_as_double", convert("i64", code))
        case "f16":
            return ctx.ptx("cvt_f32_f16_low", code)
        case "bf16":
            return bits_float(code << 16)
        case _:
            return call(_decode_function(ctx, dtype), code)


def _decode_function(ctx: Context, dtype: DataType) -> str:
    name = f"decode_{identifier(dtype)}"
    if name not in ctx.functions:
        ctx.add_function(cpp.Function(name, "float", ("u32 code",), tuple(_decode_body(ctx, dtype))))
    return name


def identifier(dtype: DataType) -> str:
    """Return a name for generated functions; codebooks of users may have any names, so their tables name them."""
    if dtype not in ALL:
        assert isinstance(dtype, Codebook)
        return f"codebook_{zlib.crc32(repr((dtype.table, dtype.spare)).encode()):08x}"
    return dtype.name.replace(".", "_")


def _decode_body(ctx: Context, dtype: DataType) -> list[Stmt]:
    code = Name("code")
    match dtype:
        case Float():
            body, value = float_from_top(dtype, code << (32 - dtype.nbits))
            return [*body, cpp.Jump("return", value)]
        case Exponent():
            return [cpp.Jump("return", bits_float(exponent_bits(code, 23)))]
        case Codebook() | PackedTernary():
            return [cpp.Jump("return", bits_float(float_table(ctx, dtype)[code]))]
        case _:
            raise CodegenError(f"{dtype} has no values on a GPU")


def exponent_bits(code: Expr, mantissa_bits: int) -> Expr:
    """Return the bits of a float with an 8-bit exponent for a code of e8m0; 2^-127 is subnormal, 255 NaN."""
    ends = cpp.Binary("||", cpp.binary("==", code, 0), cpp.binary("==", code, 255))
    quiet = cpp.Conditional(ends, cpp.bits(1 << (mantissa_bits - 1)), cpp.bits(0))
    return (code << mantissa_bits) | quiet


def float_table(ctx: Context, dtype: Codebook | PackedTernary) -> Name:
    """Return the table of a codebook's values in global memory, as f32 bits."""
    values = dtype.decode(np.arange(dtype.num_codes))
    patterns = tuple(int(x) for x in f32.encode(values))
    return ctx.add_table(cpp.Table("u32", f"table_{identifier(dtype)}", patterns))


def float_from_top(dtype: Float, top: Expr, name: str = "x") -> tuple[list[Stmt], Expr]:
    """Return statements and the f32 value of a code of at most 8 bits that stands in the top bits of a word.

    The sign stays where it is and the magnitude is laid under the exponent of an f32; then the value is too small by
    2^(bias - 127), subnormals included, which one exact multiplication mends.
    """
    x, magnitude_bits = Name(name), dtype.exponent_bits + dtype.mantissa_bits
    body: list[Stmt] = [cpp.Declare("u32", name, top, constant=True)]
    mask = ((1 << magnitude_bits) - 1) << (23 - dtype.mantissa_bits)
    small = (x & cpp.bits(1 << 31)) | ((x >> (8 - dtype.exponent_bits)) & cpp.bits(mask))
    value = cpp.Binary("*", bits_float(small), cpp.float_literal(2.0 ** (127 - dtype.bias)))
    first = first_special(dtype)
    if first is None:
        return body, value
    # Infinity keeps its mantissa of zero under a full exponent, NaN one that is not.
    special = cpp.binary(">=", x & cpp.bits(0x7FFFFFFF), cpp.bits(first << (32 - dtype.nbits)))
    full = float_bits(value) | cpp.Conditional(special, cpp.bits(0x7F800000), cpp.bits(0))
    return body, bits_float(full)


def first_special(dtype: Float) -> int | None:
    """Return the least magnitude code that is no finite number, None if all are."""
    return dtype.max_code + 1 if dtype.has_nan else None


# --- encode ---------------------------------------------------------------------------------------------------------


def encode(ctx: Context, dtype: DataType, value: Expr, source: DataType) -> Expr:
    """Return the code (upper bits zero) of a value that is held as `source` holds its values, converted.

    The rules are those of the instruction `cast`.
    """
    if dtype.is_boolean:
        return convert("u32", value if source.is_boolean else cpp.binary("!=", value, 0))
    if source.is_boolean:
        value, source = convert("u32", value), u1
    if dtype.is_integer:
        return _encode_integer(dtype, value, source)
    if dtype.name == "f64":
        wide = value if source.name == "f64" else convert("double", signed(source, value))
        return convert("u64", call("__double_as_longlong", wide))
    if dtype.name == "f32":
        return float_bits(_to_f32(value, source))
    if dtype.name == "f16":
        return ctx.ptx(f"cvt_f16_{_PTX_TYPES[_held(source)]}", signed(source, value))
    if isinstance(dtype, Codebook | PackedTernary) and source.name == "f64":
        return call(encode_codebook(ctx, dtype, identifier(dtype), "double"), value)
    single = _to_f32_odd(ctx, value, source)
    if dtype.name == "bf16":
        return ctx.ptx("cvt_bf16_f32", single)
    return call(_encode_function(ctx, dtype), single)


def _encode_function(ctx: Context, dtype: DataType) -> str:
    match dtype:
        case Float(name="tf32"):
            return encode_tf32(ctx)
        case Float():
            return encode_float(ctx, dtype)
        case Exponent():
            return encode_exponent(ctx)
        case Codebook() | PackedTernary():
            return encode_codebook(ctx, dtype, identifier(dtype), "float")
        case _:
            raise CodegenError(f"{dtype} has no codes on a GPU")


def encoded(ctx: Context, dtype: DataType, values: Sequence[Expr], source: DataType) -> list[Expr]:
    """Return the words that hold values, converted; halves are made two at a time."""
    if dtype.name in ("f16", "bf16") and c_type(source) == "float":
        return [ctx.ptx(f"cvt_{dtype}x2_f32", values[high], values[low]) for low, high in pairs(len(values))]
    return pack([encode(ctx, dtype, value, source) for value in values], dtype.nbits)


def convert_value(ctx: Context, dtype: DataType, value: Expr, source: DataType) -> Expr:
    """Return a value of `source` converted to `dtype`, as values are held."""
    if dtype == source:
        return value
    if dtype.name == "f32" and not source.is_boolean:
        return _to_f32(value, source)
    if dtype.name == "f64" and not source.is_boolean:
        return convert("double", signed(source, value))
    if dtype.is_boolean:
        return cpp.binary("!=", value, 0)
    return decode(ctx, dtype, encode(ctx, dtype, value, source))


def _encode_integer(dtype: DataType, value: Expr, source: DataType) -> Expr:
    if not source.is_integer:
        return _low_bits(dtype, _float_to_integer(dtype, value, c_type(source) == "double"))
    if dtype.nbits == 64:
        return convert("u64", convert("i64", signed(source, value)) if source.is_signed else value)
    return _low_bits(dtype, convert("u32", value) if c_type(source) != "u32" else value)


def _low_bits(dtype: DataType, value: Expr) -> Expr:
    return value & cpp.bits((1 << dtype.nbits) - 1) if dtype.nbits < 32 else value


def _float_to_integer(dtype: DataType, value: Expr, double: bool) -> Expr:
    """Return the integer towards zero, saturated; NaN gives 0.

    The instruction saturates to its own 32 or 64 bits. NaN gives 0 by itself only from f32 to 32 bits (PTX ISA, cvt).
    """
    wide = dtype.nbits == 64
    kind = ("ll" if wide else "int") if dtype.is_signed else ("ull" if wide else "uint")
    result: Expr = call(f"__{'double' if double else 'float'}2{kind}_rz", value)
    if double or wide:
        result = cpp.Conditional(cpp.binary("==", value, value), result, cpp.Int(0))
    if dtype.nbits >= 32:
        return unsigned(dtype, result)
    if not dtype.is_signed:
        return call("min", result, cpp.bits(int(dtype.max_value)))
    return convert("u32", call("max", call("min", result, int(dtype.max_value)), int(dtype.min_value)))


_PTX_TYPES = {"float": "f32", "double": "f64", "i32": "s32", "u32": "u32", "i64": "s64", "u64": "u64"}


def _held(dtype: DataType) -> str:
    """Return the C++ type of a value with its sign."""
    kind = c_type(dtype)
    return kind.replace("u", "i") if dtype.is_integer and dtype.is_signed else kind


def _to_f32(value: Expr, source: DataType) -> Expr:
    return value if c_type(source) == "float" else convert("float", signed(source, value))


def _to_f32_odd(ctx: Context, value: Expr, source: DataType) -> Expr:
    """Return an f32 that rounds to a narrower float as the value itself would.

    Where f32 cannot hold the value, it is truncated and its last bit set ("round to odd"): rounding it again to two
    bits less, or fewer, is as rounding once (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums").
    """
    held = _held(source)
    if held == "float":
        return value
    if source.is_integer and source.nbits <= 24:
        return convert("float", value)
    function = f"odd_{held}"
    if function not in ctx.functions:
        truncate = {
            "double": "double2float",
            "i32": "int2float",
            "u32": "uint2float",
            "i64": "ll2float",
            "u64": "ull2float",
        }
        x, f = Name("x"), Name("f")
        inexact = cpp.binary("!=", convert(held, f), x)
        if held == "double":
            inexact = cpp.all_of([inexact, cpp.binary("==", x, x)])
        body = (
            cpp.Declare("float", "f", call(f"__{truncate[held]}_rz", x), constant=True),
            cpp.Jump("return", bits_float(float_bits(f) | convert("u32", inexact))),
        )
        ctx.add_function(cpp.Function(function, "float", (f"{held} x",), body))
    return call(function, signed(source, value))
