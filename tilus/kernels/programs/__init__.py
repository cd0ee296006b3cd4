"""The library of VM programs, written in the language of `tilus.lang` like a user's own.

Annotations and bodies are in that language, not in typed Python: names such as `T` are compile-time constants.
"""

from tilus.kernels.programs.add_parts import add_parts
from tilus.kernels.programs.fixed_matmul import fix_activations, fixed_matmul, fixed_panel_matmul
from tilus.kernels.programs.layer_norm import layer_norm
from tilus.kernels.programs.matmul import matmul
from tilus.kernels.programs.panel_matmul import panel_matmul
from tilus.kernels.programs.quantized_matmul import quantized_matmul
from tilus.kernels.programs.sliced_matmul import sliced_matmul
from tilus.kernels.programs.softmax import softmax
from tilus.kernels.programs.ternary_matmul import ternary_matmul
from tilus.kernels.programs.vector_add import vector_add

__all__ = [
    "add_parts",
    "fix_activations",
    "fixed_matmul",
    "fixed_panel_matmul",
    "layer_norm",
    "matmul",
    "panel_matmul",
    "quantized_matmul",
    "sliced_matmul",
    "softmax",
    "ternary_matmul",
    "vector_add",
]
