"""Runs PTX on the CPU, thread by thread, and checks it: races, bounds, alignment, initialisation, waits, banks.

    report = simt.run(ptx, "kernel", [x, y, n], grid=(4,), block=(128,), shared_bytes=49152)
    report.check()

`alu.evaluate` is the model of single instructions. What is not known is an error that names the instruction.
"""

from tilus.simt import alu
from tilus.simt.launch import run
from tilus.simt.report import Finding, MemoryCount, Report, Spot
from tilus.simt.syntax import Instruction
from tilus.simt.tensormap import TensorMap

__all__ = ["Finding", "Instruction", "MemoryCount", "Report", "Spot", "TensorMap", "alu", "run"]
