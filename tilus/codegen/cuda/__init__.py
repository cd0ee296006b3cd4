"""CUDA C++ with inline PTX from lowered programs."""

from tilus.codegen.cuda.program import emit
from tilus.codegen.cuda.registry import EMITTERS
from tilus.codegen.cuda.source import CudaSource

__all__ = ["EMITTERS", "CudaSource", "emit"]
