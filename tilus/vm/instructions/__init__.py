"""What every instruction does, by family; importing them fills the table."""

from tilus.vm.instructions import control, global_memory, register, shared_memory
from tilus.vm.registry import MEANING

__all__ = ["MEANING", "control", "global_memory", "register", "shared_memory"]
