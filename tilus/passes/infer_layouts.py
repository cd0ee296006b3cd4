"""Requires a verified program; ensures that every register tensor has a layout and every instruction can run with it.

Layouts that the author gave stay. The others are found in rank order, each followed by all that follows from it:

1. matrix products, in program order: the cheapest spread of warps over the result, given what is known by then;
2. accesses to memory, the one that moves most first: wide and coalesced;
3. what is left, such as constants: threads along the last dimension.

A tensor has one layout, however often it is redefined. Where an instruction needs another, a `convert_layout` is put
in, so no program is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from math import prod

from tilus.errors import LayoutInferenceError
from tilus.ir.expr import Tensor
from tilus.ir.instructions import (
    AtomicAdd,
    Cast,
    Copy,
    Dot,
    Elementwise,
    Instruction,
    LoadGlobal,
    LoadShared,
    Reduce,
    StoreGlobal,
    StoreShared,
    Unpack,
    View,
)
from tilus.ir.node import Node, children
from tilus.ir.program import Program
from tilus.ir.stmt import For, InstStmt, While, inst_stmts
from tilus.ir.target import Target
from tilus.layouts import RegisterLayout
from tilus.passes.access import contiguous_dim, global_access, views_of, whole_bytes, widest
from tilus.passes.analyze import analyze
from tilus.passes.insert_conversions import insert_conversions
from tilus.passes.layout_rules import Machine, best_dot, spread
from tilus.passes.memory_layouts import coalesced, rows_to_warps, vector_width
from tilus.passes.shared_access import local_run
from tilus.passes.tensors import register_operands, register_tensors, register_type, with_layouts

_LOAD_COST = 6  # of one access to global memory, in instructions on registers: its share of the load units' time


def infer_layouts(program: Program, target: Target) -> Program:
    """Give every register tensor a layout, inserting conversions where instructions disagree.

    Raises
    ------
    LayoutInferenceError
        If a layout that the author gave does not fit the target's threads, or a `view` reads a tensor without one.
    """
    machine = Machine(target, target.num_threads(program.num_warps))
    solver = _Solver(program, machine)
    layouts = solver.solve()
    if program.num_threads != machine.num_threads:
        program = replace(program, num_threads=machine.num_threads)
    return insert_conversions(with_layouts(program, layouts), machine)


class _Solver:
    """Layouts found so far, and what follows from them."""

    def __init__(self, program: Program, machine: Machine) -> None:
        self.program = program
        self.machine = machine
        self.tensors = register_tensors(program)
        self.analysis, self.views = analyze(program), views_of(program)
        self.known: dict[Tensor, RegisterLayout] = {}
        self.users: dict[Tensor, list[InstStmt]] = {}
        for stmt in inst_stmts(program):
            for tensor in dict.fromkeys([*register_operands(stmt.inst), stmt.out]):
                if isinstance(tensor, Tensor):
                    self.users.setdefault(tensor, []).append(stmt)
        # Lanes of a CPU load what they hold as it comes; on a GPU narrow, scattered loads are worth avoiding.
        on_gpu = machine.target.kind == "cuda"
        self.loads = {
            s.out: s
            for s in inst_stmts(program)
            if on_gpu and isinstance(s.inst, LoadGlobal) and isinstance(s.out, Tensor)
        }

    def solve(self) -> dict[Tensor, RegisterLayout]:
        for tensor in self.tensors:
            layout = register_type(tensor).layout
            if layout is not None:
                self.check_fixed(tensor, layout)
                self.known[tensor] = layout
        self.follow(list(self.known))
        for stmt in inst_stmts(self.program):
            self.check_view(stmt)
        for stmt in inst_stmts(self.program):
            self.solve_dot(stmt)
        for tensor, layout in self.memory_layouts():
            self.enter(tensor, layout)
        for tensor in self.tensors:
            self.enter(tensor, coalesced(register_type(tensor).shape, None, 1, self.machine.num_threads))
        return self.known

    def enter(self, tensor: Tensor, layout: RegisterLayout) -> None:
        """Give a tensor a layout unless it has one, and follow what it leads to."""
        if tensor not in self.known:
            self.known[tensor] = self.suited(tensor, layout)
            self.follow([tensor])

    def suited(self, tensor: Tensor, wanted: RegisterLayout) -> RegisterLayout:
        """Return the layout to load a tile in: the one wanted, or its own if loading and converting is cheaper."""
        stmt = self.loads.get(tensor)
        if stmt is None:
            return wanted
        own, nbits = self.tile_layout(tensor, stmt.inst), register_type(tensor).dtype.nbits
        converted = self.load_cost(stmt.inst, own) + self.machine.cost(own, wanted, nbits)
        return own if converted < self.load_cost(stmt.inst, wanted) else wanted

    def load_cost(self, inst: Instruction, layout: RegisterLayout) -> float:
        access = global_access(inst, self.views)
        assert access is not None
        dim = contiguous_dim(access, self.analysis)
        width, _ = widest(access, dim, 1 if dim is None else local_run(layout, dim), self.analysis)
        return _LOAD_COST * layout.local_size / width

    def follow(self, start: list[Tensor]) -> None:
        queue = deque(start)
        while queue:
            for stmt in self.users.get(queue.popleft(), ()):
                for tensor, layout in list(spread(stmt.inst, stmt.out, self.known)):
                    if tensor not in self.known:
                        self.known[tensor] = self.suited(tensor, layout)
                        queue.append(tensor)

    def check_fixed(self, tensor: Tensor, layout: RegisterLayout) -> None:
        threads, target = self.machine.num_threads, self.machine.target
        if layout.num_threads != threads:
            raise LayoutInferenceError(
                f"the layout of {tensor.name!r} spreads over {layout.num_threads} threads, but a block of "
                f"{self.program.num_warps} warps has {threads} on {target.name}",
                loc=tensor.loc,
                hint="make the layout depend on the target, or launch with another number of warps",
            )

    def check_view(self, stmt: InstStmt) -> None:
        """Refuse a view whose operand has no layout by now: what it means would be a matter of our choice."""
        if not isinstance(stmt.inst, View | Unpack):
            return
        x, inst = stmt.inst.x, stmt.inst
        kind = inst.dtype if isinstance(inst, View) else inst.source
        layout = self.known.get(x)
        if layout is None:
            raise LayoutInferenceError(
                f"view reads the registers of {x.name!r}, whose layout is not given",
                loc=stmt.loc or inst.loc,
                hint=f"give {x.name!r} a layout where it is made: load_global(..., layout=...)",
            )
        have, want = layout.local_size * register_type(x).dtype.nbits, inst.layout.local_size * kind.nbits
        if have != want:
            raise LayoutInferenceError(
                f"view must keep the bits of every thread: {x.name!r} has {have} in each, the result has {want}",
                loc=stmt.loc or inst.loc,
            )

    def solve_dot(self, stmt: InstStmt) -> None:
        inst, out = stmt.inst, stmt.out
        if isinstance(inst, Dot) and isinstance(out, Tensor):
            best = best_dot(inst, out, self.known, self.machine, self.later(out))
            for tensor, layout in ((out, best.c), (inst.c, best.c), (inst.a, best.a), (inst.b, best.b)):
                self.enter(tensor, layout)

    def later(self, result: Tensor) -> list[tuple[Dot, int]]:
        """Return the products that take a result, or what is computed from it element by element, as an operand."""
        found = []
        for x in self.alike(result):
            for stmt in self.users.get(x, ()):
                if isinstance(stmt.inst, Dot) and stmt.out is not result:
                    found += [(stmt.inst, i) for i, operand in enumerate((stmt.inst.a, stmt.inst.b)) if operand is x]
        return found

    # --- memory -----------------------------------------------------------------------------------------------------

    def memory_layouts(self) -> Iterator[tuple[Tensor, RegisterLayout]]:
        """Yield tiles that an access moves, and the layout that suits it; the one that moves most bits first."""
        moved = []
        for order, (stmt, depth) in enumerate(_with_depth(self.program, 0)):
            tile = _moved_tile(stmt)
            if tile is not None and tile not in self.known:
                kind = register_type(tile)
                is_global = not isinstance(stmt.inst, LoadShared | StoreShared)
                moved.append((-is_global, -kind.numel * kind.dtype.nbits * 4**depth, order, tile, stmt.inst))
        for *_, tile, inst in sorted(moved, key=lambda entry: entry[:3]):
            yield tile, self.tile_layout(tile, inst)

    def tile_layout(self, tile: Tensor, inst: Instruction) -> RegisterLayout:
        """Return the layout that suits an instruction that moves a tile to or from memory."""
        kind = register_type(tile)
        limit = vector_width(kind.dtype.nbits, self.machine.target)
        access = global_access(inst, self.views)
        if access is not None:
            dim = contiguous_dim(access, self.analysis)
            width, _ = widest(access, dim, limit, self.analysis)
        else:
            dim, width = len(kind.shape) - 1, whole_bytes(limit, kind.dtype.nbits)
        threads, lanes = self.machine.num_threads, self.machine.target.lanes
        by_rows = None
        if dim is not None and dim in self.reduced_dims(tile):
            by_rows = rows_to_warps(kind.shape, dim, width, threads, lanes)
        return by_rows or coalesced(kind.shape, dim, width, threads)

    def reduced_dims(self, tile: Tensor) -> set[int]:
        """Return the dimensions along which a tile, or what is computed from it element by element, is reduced."""
        users = [stmt.inst for x in self.alike(tile) for stmt in self.users.get(x, ())]
        return {inst.dim for inst in users if isinstance(inst, Reduce)}

    def alike(self, tile: Tensor) -> list[Tensor]:
        """Return a tile and the tiles of its shape that are computed from it element by element."""
        shape, found = register_type(tile).shape, [tile]
        for x in found:  # grows under way
            for stmt in self.users.get(x, ()):
                out = stmt.out
                if isinstance(stmt.inst, Elementwise | Cast | Copy) and isinstance(out, Tensor) and out not in found:
                    found += [out] if register_type(out).shape == shape else []
        return found


def _moved_tile(stmt: InstStmt) -> Tensor | None:
    """Return the register tile that a memory instruction reads or writes."""
    inst: Instruction = stmt.inst
    match inst:
        case LoadGlobal() | LoadShared() if isinstance(stmt.out, Tensor):
            return stmt.out
        case StoreGlobal(tile=tile) | StoreShared(tile=tile) | AtomicAdd(tile=tile) if prod(register_type(tile).shape):
            return tile
        case _:
            return None


def _with_depth(node: Node, depth: int) -> Iterator[tuple[InstStmt, int]]:
    """Yield instruction statements in program order with the number of loops around them."""
    for child in children(node):
        if isinstance(child, InstStmt):
            yield child, depth
        else:
            yield from _with_depth(child, depth + isinstance(child, For | While))
