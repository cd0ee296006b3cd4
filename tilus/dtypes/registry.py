"""From names to types: `dtype("u3")`."""

from __future__ import annotations

import difflib
import re
from typing import Any

import numpy as np

from tilus.dtypes.base import DataType
from tilus.dtypes.codebooks import NF4, PACKED_TERNARY, TERNARY
from tilus.dtypes.floats import Exponent, Float, Specials, mini_float
from tilus.dtypes.integers import WIDTHS, Boolean, integer
from tilus.errors import DTypeError

_WIDE_FLOATS = (
    Float("f16", 16, 5, 10, Specials.IEEE, saturates=False),
    Float("bf16", 16, 8, 7, Specials.IEEE, saturates=False),
    Float("tf32", 32, 8, 10, Specials.IEEE, saturates=False, padding=13),
    Float("f32", 32, 8, 23, Specials.IEEE, saturates=False),
    Float("f64", 64, 11, 52, Specials.IEEE, saturates=False),
)

_MINI_FLOATS = tuple(mini_float(x, n - 1 - x) for n in range(2, 9) for x in range(1, n))

ALL: tuple[DataType, ...] = (
    *(integer(nbits, signed=False) for nbits in WIDTHS),
    *(integer(nbits, signed=True) for nbits in WIDTHS),
    Boolean("bool", 8),
    *_MINI_FLOATS,
    *_WIDE_FLOATS,
    Exponent("e8m0", 8),
    NF4,
    TERNARY,
    PACKED_TERNARY,
)

_BY_NAME = {each.name: each for each in ALL}
_BY_NUMPY: dict[np.dtype[Any] | None, DataType] = {
    each.numpy_dtype: each for each in ALL if each.numpy_dtype is not None and each.name != "tf32"
}
BLOCK_NAME = re.compile(r"(mx(fp|int)|nvfp)\d|[a-z]\w*:g")  # see tilus.dtypes.blockscaled
_MINI_FLOAT = re.compile(r"f(\d+)e(\d+)m(\d+)")


def dtype(spec: str | DataType | np.dtype[Any] | type[np.generic]) -> DataType:
    """Return a data type by its short name, or the one that has the bits of a NumPy type.

    Parameters
    ----------
    spec : str, DataType or NumPy type
        ``"u3"``, ``"f6e2m3"``, ``"nf4"``; `numpy.float16`. A `DataType` is returned as it is.

    Raises
    ------
    DTypeError : if there is no such type.
    """
    if isinstance(spec, DataType):
        return spec
    if isinstance(spec, str):
        return _BY_NAME[spec] if spec in _BY_NAME else _unknown(spec)
    try:
        return _BY_NUMPY[None if spec is None else np.dtype(spec)]  # np.dtype(None) would be float64
    except (KeyError, TypeError):
        raise DTypeError(f"no data type has the bits of {spec!r}", hint=f"known names: {_names()}") from None


def _unknown(name: str) -> DataType:
    if match := _MINI_FLOAT.fullmatch(name):
        nbits, exponent, mantissa = (int(group) for group in match.groups())
        limits = "small floats fXeXmY have 2 to 8 bits and at least 1 exponent bit"
        if nbits != (total := 1 + exponent + mantissa):
            raise DTypeError(
                f"{name} does not add up: 1 sign + {exponent} exponent + {mantissa} mantissa bits "
                f"are {total}, not {nbits}",
                hint=f"f{total}e{exponent}m{mantissa} has those fields" if exponent and total <= 8 else limits,
            )
        raise DTypeError(f"{name}: {limits}")
    if BLOCK_NAME.match(name):
        raise DTypeError(
            f"{name!r} names a format of scaled blocks, not a type of elements",
            hint=f"tilus.quantize(weight, {name!r}) makes a weight of it, tilus.dtypes.block_format describes it",
        )
    close = difflib.get_close_matches(name, _BY_NAME, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known names: {_names()}"
    raise DTypeError(f"no data type is named {name!r}", hint=hint)


def _names() -> str:
    return " ".join(each.name for each in ALL if each not in _MINI_FLOATS) + " and f4e2m1-like floats of 2 to 8 bits"
