"""Block-scaled formats: an element type, a block length, and the type of the scale that each block shares.

A weight format is a value of this kind: kernels, packers and file readers ask it what they need, and have no branch
per format. With code q, zero point z, block scale s and tensor scale t, an element is

    value = (decode(q) - z) * s * t

The microscaling formats follow OCP Microscaling Formats (MX) 1.0, section 6.3: the scale of a block is 2^(E - emax),
where 2^E is the greatest power of two that is not above the block's largest magnitude, and 2^emax the same of the
element type. The elements are then rounded to nearest even, saturating.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilus.dtypes.base import DataType
from tilus.dtypes.floats import Exponent, Float
from tilus.dtypes.registry import dtype
from tilus.errors import DTypeError, QuantizeError

WHOLE_ROW = -1


@dataclass(frozen=True, slots=True)
class BlockQuantized:
    """An array in a block-scaled format. The last axis, of length K, is cut into G = ceil(K / block) blocks.

    Attributes
    ----------
    codes : unsigned integers, shape (..., K)
        Codes of the element type.
    scales : unsigned integers, shape (..., G)
        Codes of the scale type.
    zeros : unsigned integers, shape (..., G), or None
        Codes of the zero point's type; None where the zero point is a constant.
    tensor_scale : float
        1.0 where the format has none.
    """

    codes: NDArray[Any]
    scales: NDArray[Any]
    zeros: NDArray[Any] | None = None
    tensor_scale: float = 1.0


@dataclass(frozen=True, slots=True, repr=False)
class BlockScaled:
    """A block-scaled format, compared by value.

    Attributes
    ----------
    name : str
        ``mxfp4``, ``u4:g128:f16:zu4``.
    element : DataType
        Type of the codes.
    block : int
        Elements along the last axis that share a scale; -1 is the whole axis. The last block may be shorter.
    scale : DataType
        Type of the blocks' scales; ``e8m0`` asks for the MX rule.
    zero : DataType or int
        A type: each block has a zero point of that type. A number: every block has this one.
    tensor_scale : DataType, optional
        Type of one more scale for the whole tensor.
    """

    name: str
    element: DataType
    block: int
    scale: DataType
    zero: DataType | int = 0
    tensor_scale: DataType | None = None

    def __post_init__(self) -> None:
        if self.block != WHOLE_ROW and self.block < 1:
            raise DTypeError(f"{self.name}: a block has at least 1 element (or -1, the whole row), got {self.block}")
        if not self.scale.is_float:
            raise DTypeError(f"{self.name}: a scale is a float type such as f16 or e8m0, got {self.scale}")
        if self.zero != 0 and not self.element.is_integer:
            raise DTypeError(f"{self.name}: only integers have zero points, not {self.element}")

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name

    @property
    def has_zeros(self) -> bool:
        """Whether each block has a zero point of its own."""
        return isinstance(self.zero, DataType)

    @property
    def bits_per_element(self) -> Fraction:
        """Storage per element, block scales and zero points included, in bits (for whole blocks)."""
        if self.block == WHOLE_ROW:
            return self.element.bits_per_element
        shared = self.scale.nbits + (self.zero.bits_per_element if isinstance(self.zero, DataType) else 0)
        return self.element.bits_per_element + Fraction(shared) / self.block

    def num_blocks(self, length: int) -> int:
        """Return how many blocks an axis of `length` elements has."""
        return -(-length // self.block_length(length)) if length else 0

    def block_length(self, length: int) -> int:
        """Return the elements per block on an axis of `length` elements."""
        return max(length, 1) if self.block == WHOLE_ROW else self.block

    def quantize(self, values: ArrayLike) -> BlockQuantized:
        """Quantize along the last axis.

        Parameters
        ----------
        values : real numbers, shape (..., K)

        Raises
        ------
        QuantizeError : if a value is NaN or infinite, or `values` is a scalar.
        """
        array = np.asarray(values, np.float64)
        if array.ndim == 0:
            raise QuantizeError(f"{self.name} quantizes along the last axis: expected an array, got a scalar")
        if not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise QuantizeError(
                f"cannot quantize to {self.name}: the value at {where} is {array[where]}",
                hint="every weight must be finite; look for an overflow where the weights were made",
            )
        blocks = self._blocks(array)
        tensor_scale = self._tensor_scale(blocks)
        blocks = blocks / tensor_scale
        if isinstance(self.zero, DataType):
            scales, zeros = self._affine(blocks, self.zero)
        else:
            scales, zeros = self._symmetric(blocks), None
        quantized = BlockQuantized(np.empty(0, np.uint8), scales, zeros, tensor_scale)
        steps = array / self._spread(self.scale.decode(scales) * tensor_scale, array.shape)
        if self.element.is_integer:  # elsewhere there is no zero point, and adding 0 would lose the sign of -0
            steps = steps + self._spread(self._zero_points(quantized), array.shape)
        codes = self.element.encode(steps)
        return BlockQuantized(codes, scales, zeros, tensor_scale)

    def dequantize(self, quantized: BlockQuantized) -> NDArray[np.float64]:
        """Return the values, shape (..., K). The product of code and scales is exact in float64 up to 52 bits."""
        shape = quantized.codes.shape
        codes = self.element.decode(quantized.codes) - self._spread(self._zero_points(quantized), shape)
        values: NDArray[np.float64] = codes * self._spread(self.scale.decode(quantized.scales), shape)
        return values * quantized.tensor_scale

    def _zero_points(self, quantized: BlockQuantized) -> NDArray[Any]:
        if isinstance(self.zero, DataType) and quantized.zeros is not None:
            return self.zero.decode(quantized.zeros)
        return np.full(quantized.scales.shape, self.zero)

    def _blocks(self, array: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return shape (..., G, block); a short last block repeats its last value, which moves no extreme."""
        length = array.shape[-1]
        block, count = self.block_length(length), self.num_blocks(length)
        missing = count * block - length
        if missing:
            array = np.concatenate([array, np.repeat(array[..., -1:], missing, -1)], -1)
        return array.reshape(*array.shape[:-1], count, block)

    def _spread(self, per_block: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        return np.repeat(per_block, self.block_length(shape[-1]), -1)[..., : shape[-1]]

    @property
    def _reach(self) -> float:
        """The multiple of the scale that the largest magnitude of a block is to become.

        The end of the range; half a step less where the range is one step longer on one side, so that both of its
        ends are rounded to alike: 7.5 of [-8, 7]. One bit has the range [-1, 0], where only -1 can be reached.
        """
        if isinstance(self.zero, DataType):
            return (self.element.max_value - self.element.min_value) / 2
        below, above = abs(self.element.min_value - self.zero), abs(self.element.max_value - self.zero)
        return max((below + above) / 2, 1.0) if abs(below - above) == 1 else float(max(below, above))

    def _tensor_scale(self, blocks: NDArray[np.float64]) -> float:
        """Return the scale that brings the largest block's scale to the top of the scale type's range."""
        if self.tensor_scale is None:
            return 1.0
        largest = np.abs(blocks).max(initial=0.0) / (self._reach * self.scale.max_value)
        rounded = float(self.tensor_scale.decode(self.tensor_scale.encode(largest)))
        return rounded if rounded > 0 else 1.0

    def _symmetric(self, blocks: NDArray[np.float64]) -> NDArray[Any]:
        largest = np.abs(blocks).max(-1, initial=0.0)
        if isinstance(self.scale, Exponent):
            return self._shared_exponent(largest)
        return self._encode_scale(largest / self._reach)

    def _shared_exponent(self, largest: NDArray[np.float64]) -> NDArray[Any]:
        # frexp gives one more than floor(log2(x)), on both sides of the difference.
        exponent = np.where(largest > 0, np.frexp(largest)[1] - np.frexp(self._reach)[1], 0)
        return self._encode_scale(np.ldexp(1.0, exponent))

    def _affine(self, blocks: NDArray[np.float64], zero: DataType) -> tuple[NDArray[Any], NDArray[Any]]:
        # An integer zero point must be a code itself: then the range has to contain 0.
        low, high = blocks.min(-1, initial=np.inf), blocks.max(-1, initial=-np.inf)
        if zero.is_integer:
            low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        span = self.element.max_value - self.element.min_value
        scales = self._encode_scale((high - low) / span)
        return scales, zero.encode(self.element.min_value - low / self.scale.decode(scales))

    def _encode_scale(self, scale: NDArray[np.float64]) -> NDArray[Any]:
        """Round scales, never to 0: a block of zeros has scale 1, a tiny one the least positive scale."""
        codes = self.scale.encode(np.where(scale > 0, scale, 1.0))
        rounded = self.scale.decode(codes)
        # One percent is less than half a step above the maximum of any scale type: rounding down to it is no overflow.
        if not (np.isfinite(rounded).all() and (scale <= 1.01 * self.scale.max_value).all()):
            raise QuantizeError(
                f"cannot quantize to {self.name}: a block needs the scale {scale.max():g}, "
                f"the greatest of {self.scale} is {self.scale.max_value:g}",
                hint="choose a wider scale type, bf16 or f32, or scale the weights down",
            )
        if isinstance(self.scale, Float):
            codes = np.where(rounded == 0, self.scale.encode(self.scale.smallest_subnormal), codes)
        return codes


def block_scaled(
    element: str | DataType,
    block: int,
    scale: str | DataType,
    *,
    zero: str | DataType | int | None = None,
    tensor_scale: str | DataType | None = None,
    name: str | None = None,
) -> BlockScaled:
    """Return a block-scaled format.

    Parameters
    ----------
    element, scale : str or DataType
    block : int
        Elements that share a scale; -1 is a whole row.
    zero : str, DataType or int, optional
        A type gives each block its own zero point; a number gives all blocks this one. By default unsigned integers
        are centred, 2^(n-1), and everything else has 0.
    tensor_scale : str or DataType, optional
    name : str, optional
        By default put together from the parts, as `block_format` reads it.

    Examples
    --------
    >>> block_scaled("u4", 128, "f16", zero="u4")
    u4:g128:f16:zu4
    """
    element, scale = dtype(element), dtype(scale)
    if zero is None:
        zero = 1 << (element.nbits - 1) if element.is_integer and not element.is_signed else 0
    elif not isinstance(zero, int):
        zero = dtype(zero)
    tensor = None if tensor_scale is None else dtype(tensor_scale)
    default = 1 << (element.nbits - 1) if element.is_integer and not element.is_signed else 0
    parts = [element.name, f"g{block}", scale.name]
    parts += [f"z{zero}"] if zero != default else []
    parts += [f"t{tensor}"] if tensor is not None else []
    return BlockScaled(name or ":".join(parts), element, block, scale, zero, tensor)


NAMED = {
    each.name: each
    for each in (
        block_scaled("f8e4m3", 32, "e8m0", name="mxfp8"),
        block_scaled("f8e4m3", 32, "e8m0", name="mxfp8e4m3"),
        block_scaled("f8e5m2", 32, "e8m0", name="mxfp8e5m2"),
        block_scaled("f6e2m3", 32, "e8m0", name="mxfp6"),
        block_scaled("f6e2m3", 32, "e8m0", name="mxfp6e2m3"),
        block_scaled("f6e3m2", 32, "e8m0", name="mxfp6e3m2"),
        block_scaled("f4e2m1", 32, "e8m0", name="mxfp4"),
        block_scaled("f4e2m1", 16, "f8e4m3", tensor_scale="f32", name="nvfp4"),
    )
}
_SPEC = re.compile(r"(?P<element>[^:]+):g(?P<block>-1|\d+):(?P<scale>[^:]+)(:z(?P<zero>[^:]+))?(:t(?P<tensor>[^:]+))?")


def block_format(name: str) -> BlockScaled:
    """Return the format that a name spells: ``mxfp4``, ``u4:g128:f16:zu4``. Reads what `str` of a format writes.

    Raises
    ------
    DTypeError : if the name is none.
    """
    if name in NAMED:
        return NAMED[name]
    match = _SPEC.fullmatch(name)
    if match is None:
        raise DTypeError(
            f"no block-scaled format is named {name!r}",
            hint=f"known: {' '.join(NAMED)}; or element:gBLOCK:scale[:zZERO][:tTENSOR_SCALE], as in u4:g128:f16:zu4",
        )
    zero = match["zero"]
    return block_scaled(
        match["element"],
        int(match["block"]),
        match["scale"],
        zero=int(zero) if zero and re.fullmatch(r"-?\d+", zero) else zero,
        tensor_scale=match["tensor"],
    )
