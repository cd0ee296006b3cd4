"""LLVM IR for the CPU: a block's threads are the lanes of SIMD vectors."""

from tilus.codegen.llvm.program import EMITTERS, LlvmSource, emit

__all__ = ["EMITTERS", "LlvmSource", "emit"]
