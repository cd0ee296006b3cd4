"""From lines of generated CUDA and bytes of shared memory back to the lines and names of the user's program."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from operator import itemgetter

from tilus.codegen import cuda
from tilus.errors import Loc
from tilus.ir.expr import Tensor
from tilus.ir.instructions import AllocShared, ConvertLayout
from tilus.ir.node import walk
from tilus.ir.program import Program
from tilus.ir.stmt import InstStmt
from tilus.ir.target import Target
from tilus.passes.plan_shared import find_tenants
from tilus.simt import Instruction, Spot

_PLACE = re.compile(r"PTX line \d+ \([^()]*:(\d+)\)")


class SourceMap:
    """What the PTX of a program came from.

    It is made from the program, not kept with the machine code: programs that differ by nothing but their lines and
    files share an entry of the cache.

    Parameters
    ----------
    lowered : Program
    target : Target
        What it is lowered for.
    """

    def __init__(self, lowered: Program, target: Target) -> None:
        self._params = [p.var.name for p in lowered.params]
        self._places = cuda.emit(lowered, target).line_map
        self._shared = list(_shared_ranges(lowered))

    @staticmethod
    def line(instruction: Instruction) -> int:
        """Return the line of the CUDA text that an instruction is of; 0 if of none."""
        return instruction.source.line if instruction.source else 0

    def loc(self, instruction: Instruction | None) -> Loc | None:
        """Return the user's line of an instruction; None for what belongs to no line, such as tables."""
        return self._of_line(self.line(instruction)) if instruction else None

    def _of_line(self, line: int) -> Loc | None:
        number = bisect_right(self._places, line, key=itemgetter(0))
        return self._places[number - 1][1] if number else None

    def text(self, message: str) -> str:
        """Return a message of the machine with the user's lines for those of the PTX."""
        return _PLACE.sub(lambda m: str(self._of_line(int(m[1])) or m[0]), message)

    def buffer(self, spot: Spot, space: str) -> str:
        """Return a place in memory in the user's names."""
        if space == "shared":
            return f"byte {spot.offset} of shared memory, in {self._tenants(spot.offset)}"
        number = spot.name.rpartition("_param_")[2]
        if space == "global" and number.isdecimal():
            return f"byte {spot.offset} of '{self._params[int(number)]}', which has {spot.nbytes} bytes"
        return str(spot)

    def _tenants(self, offset: int) -> str:
        names = dict.fromkeys(name for start, end, name in self._shared if start <= offset < end)
        return " or ".join(names) or "none of the tensors"


def _shared_ranges(lowered: Program) -> Iterator[tuple[int, int, str]]:
    """Yield the first byte, the end and the name of everything in shared memory."""
    offsets: dict[int, int | None] = {}
    for node in walk(lowered):
        match node:
            case InstStmt(out=Tensor() as out, inst=AllocShared(byte_offset=offset)):
                offsets[id(out)] = offset
            case InstStmt(inst=ConvertLayout(), selected=selected) if selected is not None:
                offsets[id(node)] = selected.width
    for tenant in find_tenants(lowered):
        start = offsets[id(tenant.owner)] or 0
        name = f"tensor '{tenant.owner.name}'" if isinstance(tenant.owner, Tensor) else "a conversion of layouts"
        yield start, start + tenant.nbytes, name
