"""What the machine code of any kernel of the library must keep to."""

from tilus.ir.target import target
from tilus.runtime.compiled import CompiledKernel


def check_resources(kernel: CompiledKernel) -> None:
    found = kernel.resources
    assert found.spills == 0
    assert found.stack == 0
    assert found.registers <= 255
    assert found.shared_bytes <= target(kernel.target.name).max_shared_bytes
    assert found.arch == kernel.target.capability
    assert kernel.ptx.startswith("//")
