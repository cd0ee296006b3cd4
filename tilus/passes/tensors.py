"""Operands, definitions and layouts of the tensors of a program: what several passes ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tilus.errors import InternalError
from tilus.ir.expr import Tensor, Var
from tilus.ir.instructions import Instruction
from tilus.ir.node import Node, children, map_children, substitute, walk
from tilus.ir.program import Program
from tilus.ir.stmt import Assign, For, InstStmt, Let
from tilus.ir.types import GlobalType, RegisterType, SharedType
from tilus.layouts import RegisterLayout, SharedLayout


def register_type(x: Tensor) -> RegisterType:
    """Return the type of a tensor that is known to live in registers."""
    if not isinstance(x.type, RegisterType):
        raise InternalError(f"{x.name} is no register tensor")
    return x.type


def shared_type(x: Tensor) -> SharedType:
    """Return the type of a tensor that is known to live in shared memory."""
    if not isinstance(x.type, SharedType):
        raise InternalError(f"{x.name} is no shared tensor")
    return x.type


def layout_of(x: Tensor) -> RegisterLayout:
    """Return the layout of a register tensor that has one."""
    layout = register_type(x).layout
    if layout is None:
        raise InternalError(f"{x.name} has no layout")
    return layout


def shared_layout_of(x: Tensor) -> SharedLayout:
    """Return the layout of a shared tensor that has one."""
    layout = shared_type(x).layout
    if layout is None:
        raise InternalError(f"{x.name} has no layout")
    return layout


def register_operands(inst: Instruction) -> tuple[Tensor, ...]:
    """Return the register tensors that an instruction reads, in the order of its fields; one may stand twice."""
    return tuple(c for c in children(inst) if isinstance(c, Tensor) and isinstance(c.type, RegisterType))


def with_operands(inst: Instruction, operands: Sequence[Tensor]) -> Instruction:
    """Return the instruction with its register operands, in order, replaced."""
    new = iter(operands)

    def swap(child: Node) -> Node:
        return next(new) if isinstance(child, Tensor) and isinstance(child.type, RegisterType) else child

    return map_children(inst, swap)


def register_tensors(program: Program) -> tuple[Tensor, ...]:
    """Return the register tensors of a program in order of appearance."""
    found = (n for n in walk(program) if isinstance(n, Tensor) and isinstance(n.type, RegisterType))
    return tuple(dict.fromkeys(found))


def shared_tensors(program: Program) -> tuple[Tensor, ...]:
    """Return the shared tensors of a program in order of appearance."""
    found = (n for n in walk(program) if isinstance(n, Tensor) and isinstance(n.type, SharedType))
    return tuple(dict.fromkeys(found))


def defined_in(nodes: Sequence[Node]) -> set[Tensor | Var]:
    """Return every variable and tensor that a part of a program gives a value."""
    found: set[Tensor | Var] = set()
    for node in nodes:
        for n in walk(node):
            match n:
                case InstStmt(out=Tensor() | Var() as out):
                    found.add(out)
                case Let(var=var) | Assign(var=var) | For(var=var):
                    found.add(var)
                case _:
                    pass
    return found


def with_layouts(program: Program, layouts: Mapping[Tensor, RegisterLayout | SharedLayout]) -> Program:
    """Give tensors their layouts; the same program where all have them already."""
    table = {tensor: _laid_out(tensor, layout) for tensor, layout in layouts.items() if _has(tensor) != layout}
    return substitute(program, table) if table else program


def _has(tensor: Tensor) -> RegisterLayout | SharedLayout | None:
    return None if isinstance(tensor.type, GlobalType) else tensor.type.layout


def _laid_out(tensor: Tensor, layout: RegisterLayout | SharedLayout) -> Tensor:
    kind = tensor.type
    if isinstance(kind, RegisterType) and isinstance(layout, RegisterLayout):
        return replace(tensor, type=replace(kind, layout=layout))
    if isinstance(kind, SharedType) and isinstance(layout, SharedLayout):
        return replace(tensor, type=replace(kind, layout=layout))
    raise InternalError(f"{tensor.name} of type {kind} cannot have layout {layout}")
