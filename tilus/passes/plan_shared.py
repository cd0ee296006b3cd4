"""Requires shared layouts and selected conversions; ensures that everything in shared memory has its bytes.

Two tenants may have the same bytes if one is done with before the other begins and a barrier stands between them.
All is judged on the statements of the program's outermost body: what happens in a loop or branch happens "at" that
statement, so nothing has to be known of the order of its turns. A barrier counts if it is such a statement itself.

Asynchronous copies land later than they are started: a tensor that one writes is in use until `wait_group(0)`.
A conversion through shared memory begins with a barrier of its own, and so may follow anything at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tilus.errors import PassError
from tilus.ir.expr import Tensor
from tilus.ir.instructions import AllocShared, ConvertLayout, CopyAsync, Sync, WaitGroup
from tilus.ir.node import Node, children, rewrite
from tilus.ir.program import Program
from tilus.ir.stmt import InstStmt, Stmt, inst_stmts
from tilus.ir.target import Target
from tilus.ir.types import SharedType
from tilus.layouts.scratch import plan_scratch
from tilus.passes.tensors import layout_of, register_type, shared_layout_of, shared_type

_ALIGNMENT = 16  # the widest access of a thread
_SWIZZLED_ALIGNMENT = 128  # all banks: the swizzle permutes chunks within them


@dataclass(frozen=True, slots=True)
class Tenant:
    """Something that takes bytes of shared memory from statement `first` to statement `last` of the outermost body.

    `owner` is a shared tensor, or the statement of a conversion, which `brings_barrier` of its own.
    """

    owner: Tensor | InstStmt
    nbytes: int
    alignment: int
    first: int
    last: int
    brings_barrier: bool = False


def plan_shared(program: Program, target: Target) -> Program:
    """Give every shared tensor, and every conversion that goes through shared memory, its offset in bytes.

    Raises
    ------
    PassError
        If a block would need more shared memory than the target has.
    """
    tenants = find_tenants(program)
    offsets = place(tenants, barriers_of(program))
    total = max((offsets[id(t.owner)] + t.nbytes for t in tenants), default=0)
    if total > target.max_shared_bytes:
        raise _too_much(program, tenants, total, target)

    def rule(node: Node) -> Node | None:
        if not isinstance(node, InstStmt) or node.out is None:
            return None
        if isinstance(node.inst, AllocShared):
            offset = offsets.get(id(node.out), 0)  # a tensor that nothing touches lies anywhere
            same = node.inst.byte_offset == offset
            return None if same else replace(node, inst=replace(node.inst, byte_offset=offset))
        if id(node) in offsets and node.selected is not None and node.selected.width != offsets[id(node)]:
            note = f"scratch at byte {offsets[id(node)]}"
            return replace(node, selected=replace(node.selected, width=offsets[id(node)], note=note))
        return None

    new: Program = rewrite(program, rule)
    return new if new.shared_bytes == total else replace(new, shared_bytes=total)


def barriers_of(program: Program) -> list[int]:
    """Return the statements of the outermost body that are barriers."""
    return [i for i, stmt in enumerate(program.body) if isinstance(stmt, InstStmt) and isinstance(stmt.inst, Sync)]


def find_tenants(program: Program) -> list[Tenant]:
    """Return everything that needs shared memory, in order of first use."""
    uses: dict[Tensor, list[int]] = {}
    filled: dict[Tensor, int] = {}
    conversions: dict[int, Tenant] = {}
    drained = [i for i, stmt in enumerate(program.body) if _waits_for_all(stmt)]
    for at, top in enumerate(program.body):
        for stmt in inst_stmts(top):
            for tensor in _shared_in(stmt):
                places = uses.setdefault(tensor, [])
                if not isinstance(stmt.inst, AllocShared):
                    places.append(at)
            if isinstance(stmt.inst, CopyAsync):
                filled[stmt.inst.dst] = at
            if isinstance(stmt.inst, ConvertLayout) and stmt.selected is not None and stmt.selected.atom == "shared":
                first = conversions[id(stmt)].first if id(stmt) in conversions else at
                conversions[id(stmt)] = Tenant(stmt, scratch_bytes(stmt.inst), _SWIZZLED_ALIGNMENT, first, at, True)
    tenants = list(conversions.values())
    for tensor, places in uses.items():
        if not places:
            continue
        landed = 0
        if tensor in filled:
            landed = next((i for i in drained if i >= filled[tensor]), len(program.body))
        tenants.append(_tensor_tenant(tensor, places[0], max(places[-1], landed)))
    return sorted(tenants, key=lambda t: t.first)


def _tensor_tenant(tensor: Tensor, first: int, last: int) -> Tenant:
    layout = shared_layout_of(tensor)
    nbytes = layout.storage_size * shared_type(tensor).dtype.nbits // 8
    return Tenant(tensor, nbytes, _ALIGNMENT if layout.swizzle is None else _SWIZZLED_ALIGNMENT, first, last)


def scratch_bytes(inst: ConvertLayout) -> int:
    """Return the bytes a conversion through shared memory needs: its elements, narrow ones in a byte each, and gaps."""
    elem_bytes = max(register_type(inst.x).dtype.nbits, 8) // 8
    return plan_scratch(layout_of(inst.x), inst.layout, elem_bytes).layout.storage_size * elem_bytes


def _shared_in(stmt: InstStmt) -> list[Tensor]:
    nodes = [*children(stmt.inst), stmt.out]
    return [n for n in nodes if isinstance(n, Tensor) and isinstance(n.type, SharedType)]


def _waits_for_all(stmt: Stmt) -> bool:
    return isinstance(stmt, InstStmt) and isinstance(stmt.inst, WaitGroup) and stmt.inst.pending == 0


def may_share(a: Tenant, b: Tenant, barriers: Sequence[int]) -> bool:
    """Whether two tenants may have the same bytes."""
    if a.brings_barrier and b.brings_barrier:
        return True
    early, late = (a, b) if a.last < b.first else (b, a)
    if early.last >= late.first:
        return False
    return late.brings_barrier or any(early.last < at < late.first for at in barriers)


def place(tenants: Sequence[Tenant], barriers: Sequence[int]) -> dict[int, int]:
    """Return a byte offset for each owner (by identity): large tenants first, each as low as it can be."""
    placed: list[tuple[int, Tenant]] = []
    for tenant in sorted(tenants, key=lambda t: (-t.nbytes, t.first)):
        offset = 0
        blocked = sorted((at, at + t.nbytes) for at, t in placed if not may_share(t, tenant, barriers))
        for start, end in blocked:
            if offset + tenant.nbytes <= start:
                break
            offset = max(offset, -(-end // tenant.alignment) * tenant.alignment)
        placed.append((offset, tenant))
    return {id(tenant.owner): offset for offset, tenant in placed}


def _too_much(program: Program, tenants: Sequence[Tenant], total: int, target: Target) -> PassError:
    largest = sorted(tenants, key=lambda t: -t.nbytes)[:3]
    names = ", ".join(f"{_name(t)} {t.nbytes} B" for t in largest)
    return PassError(
        f"{program.name} needs {total} bytes of shared memory per block, {target.name} has {target.max_shared_bytes} "
        f"(largest: {names})",
        loc=program.loc,
        hint="use smaller tiles or fewer pipeline stages",
    )


def _name(tenant: Tenant) -> str:
    if isinstance(tenant.owner, Tensor):
        return f"{tenant.owner.name} {shared_type(tenant.owner).shape}"
    inst = tenant.owner.inst
    assert isinstance(inst, ConvertLayout)
    return f"conversion of {inst.x.name} {layout_of(inst.x).shape}"
