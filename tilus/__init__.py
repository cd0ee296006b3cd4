"""Tilus: kernels for low-precision numbers, written as programs over tiles.

Data types, layouts and the language are here at once; what needs a compiler or torch is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from tilus.dtypes import DataType, codebook, dtype
from tilus.dtypes.names import *  # noqa: F403 (every named type, listed there)
from tilus.dtypes.names import __all__ as _type_names
from tilus.errors import TilusError

__version__ = "0.1.0"

_LAYOUTS = "column_local column_spatial local replicated spatial"
_LANGUAGE = (
    "abs alloc_shared annotate arange atomic_add block_id cdiv ceil cluster_sum commit_group convert_layout copy_async "
    "cos dot erf exp exp2 floor full global_view grid_dependency_wait inline launch launch_dependents load_global "
    "load_shared log log2 max maximum min minimum prefetch ptr range reshape round rsqrt sigmoid sin slice_tile "
    "sqrt static_range store_global store_shared sum sync tanh transpose view wait_group where zeros"
)
_MODULES = {
    "tilus.layouts": _LAYOUTS,
    "tilus.lang": _LANGUAGE,
    "tilus.runtime.kernel": "Kernel kernel",
    "tilus.runtime.autotune": "autotune",
    "tilus.runtime.knobs": "knobs",
    "tilus.runtime.weights": "QuantizedWeight quantize",
    "tilus.kernels.dispatch": "matmul",
    "tilus.kernels.linear": "QuantLinear",
    "tilus.formats": "load_compressed_tensors load_weights save_weights",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = ["DataType", "TilusError", "codebook", "dtype", *_type_names, *_HOME]


def __getattr__(name: str) -> Any:
    """Load what is asked for, once."""
    if name not in _HOME:
        raise AttributeError(f"module 'tilus' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the lazy names too."""
    return sorted(__all__)
