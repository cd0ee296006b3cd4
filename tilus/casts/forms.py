"""How the bits of a wider float (or integer) can spell the value of a narrow code without any arithmetic.

A *form* says where the bits of a code must lie in a lane of the target, and what number the lane then is. The number
is not the value but a multiple of it, and may be off by a constant: ``value = number * scale + bias``. Both are facts
known at compile time. An instruction that consumes the lane can take them over at little or no cost: a matrix product
leaves the scale to its accumulator and the bias to a sum over its other operand.

* An integer code in the low mantissa bits is a *subnormal*: u at bit p of an f16 is u * 2^(p-24). The lowest exponent
  bit may be used too, since numbers of exponent 0 and 1 have the same spacing. Tensor cores take subnormals exactly.
* Under the exponent of 2^(M-p), M being the mantissa's bits, a code at bit p is 2^(M-p) + u: the *offset* form. What it
  is off by depends on the position, its unit does not: so one accumulator takes all positions, and no multiplication
  brings them together. Sums would lose the bits that the offset is longer than a code: so it is kept near, and every
  other lane is *turned*: offset and code count down there, and the offsets of neighbours all but cancel. For bf16 this
  is the only form of integers, because products with its subnormals would be lost in f32 accumulators.
* A code too wide for that is the sum of two *parts*, its lower and its upper bits, each in offset form.
* The magnitude of an eXmY code, laid so that its exponent ends where the target's does, spells
  value * 2^(bias - target bias), subnormal codes included. Codes for NaN and infinity come out as the finite numbers
  that their bits would be; with as many bits of exponent as the target has, as themselves. Where that power of two is
  so small that products would be lost, the lane is multiplied; or, in the *small* form, what it is multiplied by was.

Signed integers are stored with their sign inverted, which makes them unsigned and adds 2^(n-1) to their value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tilus.dtypes import Codebook, DataType, Float, PackedTernary
from tilus.errors import LayoutError

# Largest power of two by which products may be off without leaving the range of f32 accumulators.
_TINY = 64
LOST = 2.0**_TINY
# Bits that a number may be longer than its code. Tensor cores keep 24 of a sum.
_LONGER = 6


@dataclass(frozen=True, slots=True)
class Linear:
    """A type whose values are `unsigned code + offset`, once the bits `flipped` of the code are inverted."""

    nbits: int
    flipped: int
    offset: int


def linear(dtype: DataType) -> Linear | None:
    """Return how values of a type follow from codes if that is an addition, else None."""
    if dtype.is_integer and dtype.nbits <= 16:
        return Linear(dtype.nbits, (1 << (dtype.nbits - 1)) * dtype.is_signed, int(dtype.min_value))
    if isinstance(dtype, Codebook | PackedTernary):
        first = dtype.table[0]
        steps = all(value == first + code for code, value in enumerate(dtype.table))
        if steps and first.is_integer() and abs(first) <= 64:
            return Linear(dtype.nbits, 0, int(first))
    return None


@dataclass(frozen=True, slots=True)
class Form:
    """A way to spell the codes of a type in lanes of a target.

    Attributes
    ----------
    name : str
        What a code lies under: `subnormal`, `offset`, `exponent`, `small`; `offset_low` and `offset_high` for parts.
    source, target : DataType
    flipped : int
        Bits of a code that are stored inverted.
    magnitude : int
        Bits of a code, from bit `low` on, that lie next to one another from a lane's bit p on. Of floats the one that
        remains is the sign and lies at the top of the lane.
    positions : tuple of int
        What p may be.
    raised : bool
        Whether a lane holds a power of two besides, of which the last place is the lowest bit of the magnitude.
    unit : float
        Number that the lowest bit of a magnitude at bit 0 stands for, if not raised.
    start : float
        Value of an all-zero stored code.
    factor : float
        What every lane is multiplied by at once, because consumers could not take that over. 1 for most.
    low : int
        Lowest bit of the code that a part spells; 0 for all else.
    """

    name: str
    source: DataType
    target: DataType
    flipped: int
    magnitude: int
    positions: tuple[int, ...]
    raised: bool = False
    unit: float = 1.0
    start: float = 0.0
    factor: float = 1.0
    low: int = 0

    @property
    def lane(self) -> int:
        """Width of a lane."""
        return self.target.nbits

    @property
    def of_floats(self) -> bool:
        """Whether codes have a sign of their own."""
        return self.name in ("exponent", "small")

    def destination(self, bit: int, position: int) -> int | None:
        """Return where a bit of a code must lie in a lane whose magnitude begins at `position`; None for nowhere."""
        if self.low <= bit < self.low + self.magnitude:
            return position + bit - self.low
        return self.lane - 1 if self.of_floats else None

    def scale(self, position: int) -> float:
        """Return `scale` of ``value = number * scale + bias``."""
        if self.of_floats:
            return self.unit / self.factor
        return 1.0 if self.raised else 2.0**-position / self.unit

    def bias(self, position: int, turned: bool = False) -> float:
        """Return `bias` of ``value = number * scale + bias``.

        In a turned lane the sign of the target is set and all bits of the code are inverted: the number is as far below
        its value as others are above, and a few units less.
        """
        if turned:
            return self.start + self.offset(position) + float((1 << self.magnitude) - 1 << self.low)
        return self.start - self.offset(position)

    def offset(self, position: int) -> float:
        """Return the number that stands besides the code's in a lane: a power of two, or 0."""
        return 2.0 ** self._exponent(position) if self.raised else 0.0

    def constant(self, position: int, turned: bool = False) -> int:
        """Return the pattern of that number, and of the sign in a turned lane."""
        sign = turned << (self.lane - 1)
        if not self.raised:
            return sign
        assert isinstance(self.target, Float)
        return sign | (self.target.bias + self._exponent(position)) << self.target.mantissa_bits

    def _exponent(self, position: int) -> int:
        assert isinstance(self.target, Float)
        return self.target.mantissa_bits + self.low - position

    def patterns(self, position: int, turned: bool = False) -> np.ndarray:
        """Return the lane that spells each code, by definition: the number as the target encodes it.

        Where the code is a NaN or an infinity, its bits are moved like those of any other.
        """
        codes = np.arange(self.source.num_codes)
        stored = codes ^ self.flipped ^ (self.source.num_codes - 1 if turned else 0)
        lanes = np.full(codes.shape, self.constant(position, turned))
        for bit in range(self.source.nbits):
            to = self.destination(bit, position)
            if to is not None:
                lanes |= (stored >> bit & 1) << to
        if self.factor != 1.0:
            lanes = self.target.encode(self.target.decode(lanes) * self.factor).astype(lanes.dtype)
        return lanes


def forms(source: DataType, target: DataType) -> tuple[Form, ...]:
    """Return the forms in which a target can spell a type, the preferred one first; none for tables.

    Parameters
    ----------
    source : DataType
        Of 1 to 8 bits.
    target : DataType
        f16, bf16, f8e4m3 or i8.
    """
    if isinstance(target, Float):
        kind = linear(source)
        if kind is not None:
            return _integer_forms(source, kind, target)
        return _float_forms(source, target) if isinstance(source, Float) else ()
    kind = linear(source)
    if kind is None or not target.is_integer or kind.nbits >= target.nbits:
        return ()
    positions = tuple(range(target.nbits - kind.nbits))  # the sign of the target stays 0
    return (Form("subnormal", source, target, kind.flipped, kind.nbits, positions, start=float(kind.offset)),)


def parts(source: DataType, target: DataType) -> tuple[Form, Form] | None:
    """Return two forms whose values add up to an integer that no single one spells; None where there is no need.

    The value of a code is the sum over both of ``number * scale + bias``.
    """
    kind = linear(source)
    if kind is None or not isinstance(target, Float) or forms(source, target) or kind.nbits > 2 * target.mantissa_bits:
        return None
    half = kind.nbits // 2
    low, high = (
        Form(name, source, target, kind.flipped, size, _raised(size, target), raised=True, start=start, low=first)
        for name, first, size, start in (
            ("offset_low", 0, half, float(kind.offset)),
            ("offset_high", half, kind.nbits - half, 0.0),
        )
    )
    return low, high


def form_named(name: str, source: DataType, target: DataType) -> Form:
    """Return a form by its name.

    Raises
    ------
    LayoutError
        If the target has no such form of the type.
    """
    small = small_form(source, target)
    others = (*(parts(source, target) or ()), *(() if small is None else (small,)))
    known: dict[str, Form] = {form.name: form for form in (*forms(source, target), *others)}
    if name not in known:
        raise LayoutError(f"{target} has no form {name!r} of {source}", hint=f"known: {', '.join(known) or 'none'}")
    return known[name]


def _integer_forms(source: DataType, kind: Linear, target: Float) -> tuple[Form, ...]:
    mantissa, n = target.mantissa_bits, kind.nbits
    least = 2.0 ** (1 - target.bias - mantissa)
    found = []
    if n <= mantissa + 1 and least >= 2.0**-_TINY:
        positions = tuple(range(mantissa + 2 - n))
        found.append(
            Form("subnormal", source, target, kind.flipped, n, positions, unit=least, start=float(kind.offset))
        )
    if n <= mantissa and 2.0**mantissa <= float(target.max_value):
        start = float(kind.offset)
        found.append(Form("offset", source, target, kind.flipped, n, _raised(n, target), raised=True, start=start))
    return tuple(found)


def _raised(size: int, target: Float) -> tuple[int, ...]:
    """Return where `size` bits may lie under a power of two."""
    return tuple(range(max(target.mantissa_bits - size - _LONGER, 0), target.mantissa_bits + 1 - size))


def _float_forms(source: Float, target: Float) -> tuple[Form, ...]:
    if source.nbits > 8 or source.padding:
        return ()
    if source.exponent_bits > target.exponent_bits or source.mantissa_bits > target.mantissa_bits:
        return ()
    if source.exponent_bits == target.exponent_bits and target.has_inf and not source.has_inf:
        return ()  # finite numbers with the exponent of infinity
    return (_exponent_form(source, target),)


def small_form(source: DataType, target: DataType) -> Form | None:
    """Return the form of floats whose lanes are not multiplied although products may be lost; None if none has to be.

    Whoever multiplies them makes up for it: this is none of `forms`.
    """
    multiplied = (form for form in forms(source, target) if form.factor != 1.0)
    return next((replace(form, name="small", factor=1.0) for form in multiplied), None)


def rounded_form(source: DataType, target: DataType) -> Form | None:
    """Return the form of floats of which the greatest is the first beyond a target's: it has infinity's bits.

    That is what a cast makes of it. Products need the value, so this is none of `forms`.
    """
    if not isinstance(source, Float) or not isinstance(target, Float) or source.padding or not target.has_inf:
        return None
    fields = source.exponent_bits, source.mantissa_bits
    return _exponent_form(source, target) if fields == (target.exponent_bits, 0) else None


def _exponent_form(source: Float, target: Float) -> Form:
    scale = 2.0 ** (target.bias - source.bias)
    factor = scale if scale >= 2.0**_TINY else 1.0
    position = target.mantissa_bits - source.mantissa_bits
    return Form("exponent", source, target, 0, source.nbits - 1, (position,), unit=scale, factor=factor)
