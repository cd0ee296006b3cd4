"""What every instruction asks of the layouts of its operands and result: one row each.

A rule has two halves. `spread` says which layouts follow from those that are known, for tensors that have none yet.
`choices` lists the layouts that the instruction can work with, given those its operands and result have ended up
with; the cheapest choice is taken, and conversions make up the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, inf
from typing import Any, TypeAlias, TypeVar

from tilus.errors import LayoutError
from tilus.ir.expr import Tensor, Var
from tilus.ir.instructions import (
    AllocShared,
    Arange,
    Assert,
    AtomicAdd,
    Cast,
    ClusterSum,
    CommitGroup,
    ConvertLayout,
    Copy,
    CopyAsync,
    Dot,
    Elementwise,
    Full,
    GlobalView,
    GridDependencyWait,
    Instruction,
    LaunchDependents,
    LoadElement,
    LoadGlobal,
    LoadShared,
    Prefetch,
    Print,
    Reduce,
    Reshape,
    Slice,
    StoreGlobal,
    StoreShared,
    Sync,
    Transpose,
    Unpack,
    View,
    WaitGroup,
)
from tilus.ir.target import Target
from tilus.layouts import RegisterLayout, local, replicated
from tilus.passes.conversion_kind import conversion_kind
from tilus.passes.dot_layouts import (
    DotLayouts,
    fma_choices,
    fma_from,
    matches_fma,
    mma_atoms,
    mma_choices,
    mma_from,
    product_extents,
)
from tilus.passes.tensors import register_operands, register_type

Known: TypeAlias = Mapping[Tensor, RegisterLayout]
Found: TypeAlias = Iterator[tuple[Tensor, RegisterLayout]]


W = TypeVar("W", "Choice", DotLayouts)


@dataclass(frozen=True, slots=True)
class Machine:
    """What layouts are chosen for: a target and the number of its threads that make a block."""

    target: Target
    num_threads: int

    def cost(self, src: RegisterLayout, dst: RegisterLayout, nbits: int) -> float:
        """Return about how many instructions a thread runs to convert a tile of `nbits`-bit elements."""
        size = max(src.local_size, dst.local_size) * max(nbits, 8) / 32  # 32-bit words
        match conversion_kind(src, dst, self.target.lanes):
            case "same":
                return 0
            case "registers":
                return size / 4  # most are renamed by the compiler
            case "shuffle":
                return 3 * size
            case _:
                return 4 * size + 40  # a store, a load, addresses, and two barriers


@dataclass(frozen=True, slots=True)
class Choice:
    """Layouts with which an instruction can run: of its register operands in order, and of its result."""

    operands: tuple[RegisterLayout, ...]
    out: RegisterLayout | None
    work: float = 0


def cheapest(ways: Sequence[W], moving: Callable[[W], float]) -> W:
    """Return the way of least work and conversions together, trying those of little work first.

    Conversions cost something or nothing, so once the work alone is more than the best sum, the rest need no look.
    """
    best, least = None, inf
    for way in sorted(ways, key=lambda way: way.work):
        if way.work >= least:
            break
        total = way.work + moving(way)
        if total < least:
            best, least = way, total
    assert best is not None
    return best


Spread: TypeAlias = Callable[[Any, Tensor, Known], Found]
Choices: TypeAlias = Callable[[Any, Sequence[RegisterLayout], RegisterLayout | None, Machine], list[Choice]]


@dataclass(frozen=True, slots=True)
class LayoutRule:
    """A row of the table; see the module's text."""

    spread: Spread
    choices: Choices


def _nothing_follows(inst: Instruction, out: Tensor, known: Known) -> Found:
    return iter(())


def _anything(
    inst: Instruction, operands: Sequence[RegisterLayout], out: RegisterLayout | None, machine: Machine
) -> list[Choice]:
    return [Choice(tuple(operands), out)]


# --- one to one -----------------------------------------------------------------------------------------------------


def _spread_pointwise(inst: Copy | Cast, out: Tensor, known: Known) -> Found:
    if inst.x in known:
        yield out, known[inst.x]
    elif out in known:
        yield inst.x, known[out]


def _choose_pointwise(
    inst: Copy | Cast, operands: Sequence[RegisterLayout], out: RegisterLayout | None, machine: Machine
) -> list[Choice]:
    return [Choice((layout,), layout) for layout in (operands[0], out) if layout is not None]


def _spread_elementwise(inst: Elementwise, out: Tensor, known: Known) -> Found:
    tensors = register_operands(inst)
    if out not in known:
        alike = [t for t in tensors if t in known and register_type(t).shape == register_type(out).shape]
        yield from ((out, known[t]) for t in alike[:1])
        return
    for t in tensors:
        if t not in known:
            yield t, known[out].reduce_to(register_type(t).shape)


def _choose_elementwise(
    inst: Elementwise, operands: Sequence[RegisterLayout], out: RegisterLayout | None, machine: Machine
) -> list[Choice]:
    assert out is not None
    common = dict.fromkeys([out, *(x for x in operands if x.shape == out.shape)])
    return [Choice(tuple(layout.reduce_to(x.shape) for x in operands), layout) for layout in common]


# --- other shapes ---------------------------------------------------------------------------------------------------


def _spread_reduce(inst: Reduce, out: Tensor, known: Known) -> Found:
    if inst.x in known:
        yield out, known[inst.x].reduce([inst.dim], inst.keepdims)


def _choose_reduce(
    inst: Reduce, operands: Sequence[RegisterLayout], out: RegisterLayout | None, machine: Machine
) -> list[Choice]:
    return [Choice((operands[0],), operands[0].reduce([inst.dim], inst.keepdims))]


def _inverse(perm: Sequence[int]) -> list[int]:
    return [perm.index(d) for d in range(len(perm))]


def _spread_transpose(inst: Transpose, out: Tensor, known: Known) -> Found:
    if inst.x in known:
        yield out, known[inst.x].permute(inst.perm)
    elif out in known:
        yield inst.x, known[out].permute(_inverse(inst.perm))


def _choose_transpose(
    inst: Transpose, operands: Sequence[RegisterLayout], out: RegisterLayout | None, machine: Machine
) -> list[Choice]:
    choices = [Choice((operands[0],), operands[0].permute(inst.perm))]
    return [*choices, Choice((out.permute(_inverse(inst.perm)),), out)] if out is not None else choices


def _reshaped(layout: RegisterLayout, shape: Sequence[int]) -> RegisterLayout | None:
    try:
        return layout.reshape(*shape)
    except LayoutError:
        return None


def _spread_reshape(inst: Reshape, out: Tensor, known: Known) -> Found:
    for have, want in ((inst.x, out), (out, inst.x)):
        if have in known and want not in known:
            layout = _reshaped(known[have], register_type(want).shape)
            if layout is not None:
                yield want, layout


def _choose_reshape(
    inst: Reshape, operands: Sequence[RegisterLayout], out: RegisterLayout | None, machine: Machine
) -> list[Choice]:
    old = operands[0].shape
    after, before = _reshaped(operands[0], inst.shape), _reshaped(out, old) if out is not None else None
    choices = [Choice((operands[0],), after)] if after is not None else []
    if before is not None:
        choices.append(Choice((before,), out))
    if not choices:
        choices.append(_reshape_anyhow(inst, old, machine))
    return choices


def _reshape_anyhow(inst: Reshape, old: tuple[int, ...], machine: Machine) -> Choice:
    """Return layouts for a reshape that neither side's layout survives: every thread holds everything, in order."""
    x = replicated(machine.num_threads, len(old)) * local(*old)
    return Choice((x,), x.reshape(*inst.shape))


def sliced(layout: RegisterLayout, offset: Sequence[int], shape: Sequence[int]) -> RegisterLayout | None:
    """Return the layout of a slice whose elements stay in their threads; None where some threads would have none."""
    for dim, (start, size) in enumerate(zip(offset, shape, strict=True)):
        extent = layout.shape[dim]
        if size == extent:
            continue
        grain = gcd(start, size, extent)
        parts = _reshaped(layout, (*layout.shape[:dim], extent // grain, grain, *layout.shape[dim + 1 :]))
        if parts is None or any(digit.dim == dim for digit in parts.spatial_digits):
            return None
        copies = local(*(size // grain if d == dim else 1 for d in range(layout.rank)))
        layout = copies * parts.reduce([dim])
    return layout


def _whole(part: RegisterLayout, offset: Sequence[int], shape: Sequence[int]) -> RegisterLayout | None:
    """Return a layout of the whole tile of which a slice has the layout `part`: the rest is local, outside of it."""
    grains = [gcd(n, m, o) for n, m, o in zip(shape, part.shape, offset, strict=True)]
    inner = sliced(part, [0] * part.rank, grains)
    return None if inner is None else local(*(n // g for n, g in zip(shape, grains, strict=True))) * inner


def _spread_slice(inst: Slice, out: Tensor, known: Known) -> Found:
    if inst.x in known and out not in known:
        layout = sliced(known[inst.x], inst.offset, inst.shape)
        if layout is not None:
            yield out, layout
    elif out in known and inst.x not in known:
        layout = _whole(known[out], inst.offset, register_type(inst.x).shape)
        if layout is not None:
            yield inst.x, layout


def _choose_slice(
    inst: Slice, operands: Sequence[RegisterLayout], out: RegisterLayout | None, machine: Machine
) -> list[Choice]:
    x = operands[0]
    choices = []
    direct = sliced(x, inst.offset, inst.shape)
    if direct is not None:
        choices.append(Choice((x,), direct))
    whole = _whole(out, inst.offset, x.shape) if out is not None else None
    if whole is not None:
        choices.append(Choice((whole,), out))
    if not choices:
        # Dimensions that are cut go into every thread; where all are, each thread holds everything.
        everything = replicated(machine.num_threads, x.rank) * local(*x.shape)
        part = sliced(everything, inst.offset, inst.shape)
        assert part is not None, "a local dimension can be cut anywhere"
        choices.append(Choice((everything,), part))
    return choices


def _choose_view(
    inst: View | Unpack, operands: Sequence[RegisterLayout], out: RegisterLayout | None, machine: Machine
) -> list[Choice]:
    return [Choice(tuple(operands), inst.layout)]


def _choose_convert(
    inst: ConvertLayout, operands: Sequence[RegisterLayout], out: RegisterLayout | None, machine: Machine
) -> list[Choice]:
    return [Choice(tuple(operands), inst.layout)]


# --- the matrix product ---------------------------------------------------------------------------------------------


def dot_choices(inst: Dot, known: Sequence[RegisterLayout | None], machine: Machine) -> list[DotLayouts]:
    """Return the ways to run a product: as tensor-core fragments where types and extents allow it, else elementwise.

    Parameters
    ----------
    inst : Dot
    known : sequence of RegisterLayout or None
        Layouts that a, b and c have so far: ways that keep them are among the answers where they are legal.
    machine : Machine
    """
    a, b, c = (register_type(x) for x in (inst.a, inst.b, inst.c))
    m, n, k, batch = product_extents(a, b)
    target, threads = machine.target, machine.num_threads
    for atom in mma_atoms(a, b, c, target):
        ways = list(mma_choices(m, n, k, threads // target.lanes, atom, batch))
        for operand, layout in enumerate(known):
            if layout is not None:
                ways += mma_from(layout, operand, m, n, k, atom, batch)
        return ways
    ways = list(fma_choices(m, n, k, target, threads, batch))
    lifted = [fma_from(x, i, m, n, k, target, batch) for i, x in enumerate(known) if x is not None]
    return ways + [way for way in lifted if matches_fma(way.a, way.b, way.c)]


def best_dot(
    inst: Dot, out: Tensor, known: Known, machine: Machine, later: Sequence[tuple[Dot, int]] = ()
) -> DotLayouts:
    """Return the way to run a product that costs least, conversions from the known layouts included.

    Parameters
    ----------
    inst, out : Dot, Tensor
    known : mapping
        Layouts found so far.
    machine : Machine
    later : sequence of (Dot, int)
        Products of which this result becomes operand 0 or 1, so that a chain can stay in its warps.
    """
    tensors = (inst.a, inst.b, inst.c, out)
    have, nbits = [known.get(x) for x in tensors], [register_type(x).dtype.nbits for x in tensors]

    def moving(way: DotLayouts) -> float:
        want = (way.a, way.b, way.c, way.c)
        moved = sum(machine.cost(x, y, n) for x, y, n in zip(have, want, nbits, strict=True) if x is not None)
        onwards = sum(_cost_as_operand(way.c, dot, operand, machine) for dot, operand in later)
        return moved + onwards

    return cheapest(dot_choices(inst, have[:3], machine), moving)


def _cost_as_operand(layout: RegisterLayout, dot: Dot, operand: int, machine: Machine) -> float:
    """Return what a product costs, if one operand comes in a layout and all else is as it likes."""
    nbits = register_type((dot.a, dot.b)[operand]).dtype.nbits
    ways = dot_choices(dot, (None, None, None), machine)
    if ways[0].atom == "fma":
        return 0  # nothing is gained that would be worth the many choices

    def moving(way: DotLayouts) -> float:
        return machine.cost(layout, (way.a, way.b)[operand], nbits)

    best = cheapest(ways, moving)
    return best.work + moving(best)


def _choose_dot(
    inst: Dot, operands: Sequence[RegisterLayout], out: RegisterLayout | None, machine: Machine
) -> list[Choice]:
    return [Choice((way.a, way.b, way.c), way.c, way.work) for way in dot_choices(inst, operands, machine)]


_FREE = LayoutRule(_nothing_follows, _anything)
_POINTWISE = LayoutRule(_spread_pointwise, _choose_pointwise)

LAYOUT_RULES: dict[type[Instruction], LayoutRule] = {
    GlobalView: _FREE,
    LoadGlobal: _FREE,
    StoreGlobal: _FREE,
    AtomicAdd: _FREE,
    LoadElement: _FREE,
    AllocShared: _FREE,
    LoadShared: _FREE,
    StoreShared: _FREE,
    CopyAsync: _FREE,
    CommitGroup: _FREE,
    WaitGroup: _FREE,
    Sync: _FREE,
    Prefetch: _FREE,
    GridDependencyWait: _FREE,
    LaunchDependents: _FREE,
    Full: _FREE,
    Arange: _FREE,
    Print: _FREE,
    Assert: _FREE,
    Copy: _POINTWISE,
    ClusterSum: _POINTWISE,
    Cast: _POINTWISE,
    Elementwise: LayoutRule(_spread_elementwise, _choose_elementwise),
    Reduce: LayoutRule(_spread_reduce, _choose_reduce),
    Transpose: LayoutRule(_spread_transpose, _choose_transpose),
    Reshape: LayoutRule(_spread_reshape, _choose_reshape),
    Slice: LayoutRule(_spread_slice, _choose_slice),
    View: LayoutRule(_nothing_follows, _choose_view),
    Unpack: LayoutRule(_nothing_follows, _choose_view),
    ConvertLayout: LayoutRule(_nothing_follows, _choose_convert),
    Dot: LayoutRule(_nothing_follows, _choose_dot),
}


def spread(inst: Instruction, out: Tensor | Var | None, known: Known) -> Found:
    """Yield the layouts that follow from the known ones, for tensors of one instruction that have none."""
    return LAYOUT_RULES[type(inst)].spread(inst, out, known) if isinstance(out, Tensor) else iter(())
