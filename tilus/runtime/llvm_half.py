"""Conversions to and from f16 in software, as LLVM IR.

LLVM calls these functions of its compiler library where the CPU has no instruction: all of them on x86 without F16C,
`__truncdfhf2` on x86 without AVX512-FP16. The process cannot be expected to have them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Wide:
    """A format that is narrowed to f16: its LLVM type, its bits, its mantissa bits."""

    name: str
    type: str
    bits: int
    mantissa: int

    @property
    def bias(self) -> int:
        return int((1 << (self.bits - self.mantissa - 2)) - 1)

    def power(self, exponent: int) -> int:
        """Return the bits of 2^exponent."""
        return (self.bias + exponent) << self.mantissa


_NARROWED = (_Wide("__truncsfhf2", "float", 32, 23), _Wide("__truncdfhf2", "double", 64, 52))
HALF_FUNCTIONS = ("__extendhfsf2", *(wide.name for wide in _NARROWED))

# The magnitude lies under the exponent of an f32 and 2^112 sets the bias right: subnormals become normal numbers.
_EXTEND = """
define float @__extendhfsf2(half %x) {
  %bits = bitcast half %x to i16
  %word = zext i16 %bits to i32
  %low = and i32 %word, 32767
  %magnitude = shl i32 %low, 13
  %small = bitcast i32 %magnitude to float
  %scaled = fmul float %small, 0x46F0000000000000
  %finite = bitcast float %scaled to i32
  %special = or i32 %magnitude, 2139095040
  %is_special = icmp uge i32 %low, 31744
  %size = select i1 %is_special, i32 %special, i32 %finite
  %top = and i32 %word, 32768
  %sign = shl i32 %top, 16
  %all = or i32 %size, %sign
  %result = bitcast i32 %all to float
  ret float %result
}
"""


def half_ir() -> str:
    """Return a module with all `HALF_FUNCTIONS`."""
    return _EXTEND + "".join(map(_narrow, _NARROWED))


def _narrow(wide: _Wide) -> str:
    """Round to nearest even: normals by integer addition, subnormals by adding a power of two of their ulp."""
    word, drop = f"i{wide.bits}", wide.mantissa - 10
    infinity = wide.power(wide.bias + 1)
    magic = wide.power(wide.mantissa - 24)  # its ulp is 2^-24, that of the subnormals of f16
    overflow = wide.power(16) - (1 << (drop - 1))  # 65520, half way to 65536
    return f"""
define half @{wide.name}({wide.type} %x) {{
  %bits = bitcast {wide.type} %x to {word}
  %size = and {word} %bits, {(1 << (wide.bits - 1)) - 1}
  %magnitude = bitcast {word} %size to {wide.type}
  %magic = bitcast {word} {magic} to {wide.type}
  %sum = fadd {wide.type} %magnitude, %magic
  %sum_bits = bitcast {wide.type} %sum to {word}
  %subnormal = sub {word} %sum_bits, {magic}
  %kept = lshr {word} %size, {drop}
  %odd = and {word} %kept, 1
  %biased = add {word} %size, {(1 << (drop - 1)) - 1}
  %rounded = add {word} %biased, %odd
  %rebased = sub {word} %rounded, {(wide.bias - 15) << wide.mantissa}
  %normal = lshr {word} %rebased, {drop}
  %is_small = icmp ult {word} %size, {wide.power(-14)}
  %finite = select i1 %is_small, {word} %subnormal, {word} %normal
  %is_large = icmp uge {word} %size, {overflow}
  %bounded = select i1 %is_large, {word} 31744, {word} %finite
  %payload = and {word} %kept, 511
  %quiet = or {word} %payload, 32256
  %is_nan = icmp ugt {word} %size, {infinity}
  %code = select i1 %is_nan, {word} %quiet, {word} %bounded
  %short = trunc {word} %code to i16
  %sign_word = lshr {word} %bits, {wide.bits - 16}
  %sign_short = trunc {word} %sign_word to i16
  %sign = and i16 %sign_short, -32768
  %all = or i16 %short, %sign
  %result = bitcast i16 %all to half
  ret half %result
}}
"""
