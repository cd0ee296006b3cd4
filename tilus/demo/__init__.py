"""`tilus demo`: a real model's linear layers in a few bits, run and checked on the CPU and compiled for a GPU."""

from tilus.demo.report import GpuResult, Report, TypeResult
from tilus.demo.run import Options, run_demo

__all__ = ["GpuResult", "Options", "Report", "TypeResult", "run_demo"]
