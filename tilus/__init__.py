"""Tilus: kernels for low-precision numbers, written as programs over tiles."""

from tilus.dtypes import DataType, codebook, dtype
from tilus.dtypes.names import *  # noqa: F403 (every named type, listed there)
from tilus.dtypes.names import __all__ as _type_names
from tilus.errors import TilusError

__version__ = "0.1.0"

__all__ = ["DataType", "TilusError", "codebook", "dtype", *_type_names]
