"""Data types: what the bits of one element mean, and how elements are packed.

`dtype("u3")` finds a type by name; `encode`, `decode`, `pack` and `unpack` are its methods. A weight format, which
scales blocks of elements, is a `BlockScaled`. This package needs NumPy and ml_dtypes only.
"""

from tilus.dtypes.base import DataType
from tilus.dtypes.blockscaled import BlockQuantized, BlockScaled, block_format, block_scaled
from tilus.dtypes.codebooks import Codebook, PackedTernary, codebook
from tilus.dtypes.floats import Exponent, Float, Specials, mini_float
from tilus.dtypes.integers import Boolean, Integer, integer
from tilus.dtypes.names import *  # noqa: F403 (every named type, listed there)
from tilus.dtypes.names import __all__ as _names
from tilus.dtypes.registry import ALL, dtype

__all__ = [
    "ALL",
    "BlockQuantized",
    "BlockScaled",
    "Boolean",
    "Codebook",
    "DataType",
    "Exponent",
    "Float",
    "Integer",
    "PackedTernary",
    "Specials",
    "block_format",
    "block_scaled",
    "codebook",
    "dtype",
    "integer",
    "mini_float",
]
__all__ += _names
