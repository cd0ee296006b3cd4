"""Tiles that are made where they are used, element by element.

The operands of a matrix product are tiles of more vectors than a CPU has registers: made one after the other, they
would go to the stack and back. So what only a product uses (loads, views of codes, casts, arithmetic) is not made at
its own place: the product asks for an element when it multiplies with it. Here is decided for which tiles nobody can
tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tilus.codegen.llvm.types import is_packed
from tilus.ir.expr import Tensor
from tilus.ir.instructions import (
    AtomicAdd,
    Cast,
    ConvertLayout,
    CopyAsync,
    Dot,
    Elementwise,
    Full,
    Instruction,
    LoadGlobal,
    LoadShared,
    Slice,
    StoreGlobal,
    StoreShared,
    Transpose,
    View,
)
from tilus.ir.node import Node, children, walk
from tilus.ir.program import Program
from tilus.ir.stmt import InstStmt, Stmt
from tilus.ir.types import RegisterType

# What depends on nothing but its operands, and memory for loads.
_PURE = (Cast, ConvertLayout, Elementwise, Full, LoadGlobal, LoadShared, Slice, Transpose, View)
_WRITERS: dict[type[Instruction], tuple[type[Instruction], ...]] = {
    LoadGlobal: (AtomicAdd, StoreGlobal),
    LoadShared: (CopyAsync, StoreShared),
}


def deferred_tensors(program: Program) -> frozenset[Tensor]:
    """Return the tiles with one definition and one use, in the same list of statements, that end in a product.

    Codes may end in a store too: unpacked they are many, and each has its own instructions. Between the definition and
    the end nothing redefines an operand or writes the memory that a load reads.
    """
    statements = [node for node in walk(program) if isinstance(node, InstStmt)]
    codes = _unpacked(statements)
    made = Counter(s.out for s in statements if isinstance(s.out, Tensor))
    used = Counter(x for s in statements for x in _operands(s.inst))
    once = {t for t in made if made[t] == 1 and used[t] == 1 and isinstance(t.type, RegisterType)}
    found: set[Tensor] = set()
    for body in _bodies(program):
        found |= _in_list(body, once, codes)
    return frozenset(found)


def single_definitions(program: Program) -> frozenset[Tensor]:
    """Return the tiles that are defined by one statement."""
    made = Counter(node.out for node in walk(program) if isinstance(node, InstStmt) and isinstance(node.out, Tensor))
    return frozenset(t for t, count in made.items() if count == 1)


def _operands(inst: Instruction) -> list[Tensor]:
    return [x for x in children(inst) if isinstance(x, Tensor)]


def _bodies(program: Program) -> Iterator[Sequence[Stmt]]:
    yield program.body
    for node in walk(program):
        for name in ("body", "then", "orelse"):
            if isinstance(node, Node) and not isinstance(node, Program) and hasattr(node, name):
                yield getattr(node, name)


def _unpacked(statements: Sequence[InstStmt]) -> set[Tensor]:
    """Return codes narrower than a byte, and what is made of them."""
    found: set[Tensor] = set()
    for s in statements:
        if isinstance(s.out, Tensor) and isinstance(s.inst, _PURE):
            codes = isinstance(s.inst, View) and is_packed(s.inst.dtype)
            if codes or not found.isdisjoint(_operands(s.inst)):
                found.add(s.out)
    return found


def _in_list(body: Sequence[Stmt], once: set[Tensor], codes: set[Tensor]) -> set[Tensor]:
    """Return the tiles of one list, looking at users before what they use."""
    found: set[Tensor] = set()
    asked: dict[Tensor, int] = {}  # where a tile that is used once is asked for
    for place in reversed(range(len(body))):
        s = body[place]
        if not isinstance(s, InstStmt):
            continue
        until = asked.get(s.out) if isinstance(s.out, Tensor) and isinstance(s.inst, _PURE) else None
        if until is not None and all(_leaves_alone(other, s.inst) for other in body[place + 1 : until]):
            assert isinstance(s.out, Tensor)
            found.add(s.out)
        else:
            until = place
        asked |= {t: until for t in _asked(s.inst, s.out in found, codes) if t in once}
    return found


def _asked(inst: Instruction, later: bool, codes: set[Tensor]) -> list[Tensor]:
    """Return the operands whose elements an instruction can ask for one by one."""
    match inst:
        case Dot():
            return [inst.a, inst.b]
        case StoreShared() | StoreGlobal():
            return [inst.tile] if inst.tile in codes else []
        case _:
            return _operands(inst) if later else []


def _leaves_alone(other: Stmt, inst: Instruction) -> bool:
    """Whether a statement changes nothing that an instruction depends on."""
    operands, writers = _operands(inst), _WRITERS.get(type(inst), ())
    written = (node for node in walk(other) if isinstance(node, InstStmt))
    return not any(s.out in operands or isinstance(s.inst, writers) for s in written)
