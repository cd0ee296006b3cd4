"""The reference machine: runs programs, lowered or not, with NumPy, and is the definition of every instruction.

It is the oracle for the passes and emitters, so it imports neither, and it looks for faults that hardware lets pass:
reads of what nobody wrote, accesses out of bounds, races between barriers, replicas that disagree, and claims of the
compiler (`Selected`) that do not hold.
"""

from tilus.vm.instructions import MEANING
from tilus.vm.machine import run

__all__ = ["MEANING", "run"]
