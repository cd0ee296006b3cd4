"""Tilus: kernels for low-precision numbers, written as programs over tiles."""

__version__ = "0.1.0"
