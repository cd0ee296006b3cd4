"""Bytes of shared memory: nobody overlaps a neighbour in use, and what is done with is used again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.passes.programs import ZERO, chained, matmul, matrix
from tilus.dtypes import f16, f32
from tilus.errors import PassError
from tilus.ir.builder import Builder, op
from tilus.ir.expr import Tensor, const
from tilus.ir.instructions import (
    AllocShared,
    CommitGroup,
    ConvertLayout,
    CopyAsync,
    LoadGlobal,
    LoadShared,
    StoreGlobal,
    StoreShared,
    Sync,
    WaitGroup,
)
from tilus.ir.program import Program
from tilus.ir.stmt import inst_stmts
from tilus.ir.target import TARGETS
from tilus.layouts import local, row_major, spatial
from tilus.passes.pipeline import lower
from tilus.passes.plan_shared import Tenant, find_tenants, may_share, place, scratch_bytes

SM80 = TARGETS["sm_80"]
N = 32


def offsets(program: Program) -> dict[str, int]:
    lowered = lower(program, SM80)
    return {
        s.out.name: s.inst.byte_offset
        for s in inst_stmts(lowered)
        if isinstance(s.inst, AllocShared) and s.out is not None and s.inst.byte_offset is not None
    }


class Trips(Builder):
    """A program of trips through shared tensors of N x N f32, 4 KiB each."""

    def __init__(self) -> None:
        super().__init__("trips")
        _, self.view = matrix(self, "x", f32, const(N), const(N))
        self.tile = self.inst(LoadGlobal(self.view, (ZERO, ZERO), (N, N), (0, 1)), "tile")

    def alloc(self, name: str) -> Tensor:
        return self.inst(AllocShared(f32, (N, N)), name)

    def write(self, s: Tensor) -> None:
        self.inst(StoreShared(s, self.tile, (ZERO, ZERO), (0, 1)))

    def read(self, s: Tensor) -> None:
        self.inst(StoreGlobal(self.view, self.inst(LoadShared(s, (ZERO, ZERO), (N, N), (0, 1))), (ZERO, ZERO), (0, 1)))

    def trip(self, s: Tensor) -> None:
        self.write(s)
        self.inst(Sync())
        self.read(s)


SIZE = N * N * 4


def test_trips_with_a_barrier_between_share_their_bytes() -> None:
    b = Trips()
    first, second = b.alloc("first"), b.alloc("second")
    b.trip(first)
    b.inst(Sync())
    b.trip(second)
    assert offsets(b.program()) == {"first": 0, "second": 0}
    assert lower(b.program(), SM80).shared_bytes == SIZE


def test_without_a_barrier_they_do_not() -> None:
    b = Trips()
    first, second = b.alloc("first"), b.alloc("second")
    b.trip(first)
    b.trip(second)
    assert sorted(offsets(b.program()).values()) == [0, SIZE]


def test_a_barrier_in_a_branch_does_not_count() -> None:
    b = Trips()
    first, second, n = b.alloc("first"), b.alloc("second"), b.scalar("n")
    b.trip(first)
    with b.if_(op("lt", n, 3)):
        b.inst(Sync())
    b.trip(second)
    assert sorted(offsets(b.program()).values()) == [0, SIZE]


def test_what_a_loop_uses_lives_as_long_as_the_loop() -> None:
    b = Trips()
    first, second = b.alloc("first"), b.alloc("second")
    with b.for_("i", 0, 4):
        b.trip(first)
        b.inst(Sync())
        b.trip(second)
        b.inst(Sync())
    assert sorted(offsets(b.program()).values()) == [0, SIZE]


def test_a_tensor_is_in_use_from_its_first_access_not_from_its_declaration() -> None:
    b = Trips()
    tensors = [b.alloc(name) for name in "abc"]
    for s in tensors:
        b.trip(s)
        b.inst(Sync())
    assert set(offsets(b.program()).values()) == {0}


@pytest.mark.parametrize("pending", [0, 1])
def test_asynchronous_copies_hold_their_bytes_until_they_have_landed(pending: int) -> None:
    b = Trips()
    first, second = b.alloc("first"), b.alloc("second")
    b.inst(CopyAsync(first, b.view, (ZERO, ZERO), (ZERO, ZERO), (N, N), (0, 1), (0, 1)))
    b.inst(CommitGroup())
    b.inst(WaitGroup(pending))
    b.inst(Sync())
    b.read(first)
    b.inst(Sync())
    b.trip(second)
    assert sorted(offsets(b.program()).values()) == ([0, 0] if pending == 0 else [0, SIZE])


def test_conversions_share_scratch_with_one_another_but_not_with_live_tensors() -> None:
    lowered = lower(chained(same=True), SM80)
    converting = [(s.inst, s.selected) for s in inst_stmts(lowered) if isinstance(s.inst, ConvertLayout)]
    assert [way.width for _, way in converting if way is not None] == [0, 0]
    sizes = [scratch_bytes(inst) for inst, _ in converting]
    assert min(sizes) >= 64 * 64 * 2
    assert lowered.shared_bytes == max(sizes)
    b = Trips()
    s = b.alloc("s")
    b.write(s)
    columns = b.inst(ConvertLayout(b.tile, spatial(32, 1) * local(1, 32)), "columns")
    b.inst(StoreGlobal(b.view, columns, (ZERO, ZERO), (0, 1)))
    b.read(s)
    lowered = lower(b.program(warps=1), SM80)
    (way,) = (s.selected for s in inst_stmts(lowered) if isinstance(s.inst, ConvertLayout))
    assert way is not None
    assert way.atom == "shuffle"
    assert lowered.shared_bytes == SIZE


def test_scratch_beside_a_pipeline() -> None:
    """In a loop with tiles in shared memory, a conversion's scratch lies behind them."""
    b = Trips()
    s = b.alloc("s")
    b.write(s)
    b.inst(Sync())
    with b.for_("i", 0, 4):
        tile = b.inst(LoadShared(s, (ZERO, ZERO), (N, N), (0, 1)), "again", layout=spatial(4, 32) * local(8, 1))
        other = b.inst(ConvertLayout(tile, local(8, 1) * spatial(4, 32)), "other")
        b.inst(StoreGlobal(b.view, other, (ZERO, ZERO), (0, 1)))
    lowered = lower(b.program(warps=4), SM80)
    (way,) = (s.selected for s in inst_stmts(lowered) if isinstance(s.inst, ConvertLayout))
    assert way is not None
    assert (way.atom, way.width, way.note) == ("shared", SIZE, f"scratch at byte {SIZE}")
    assert lowered.shared_bytes == 2 * SIZE


def test_swizzled_tensors_start_where_the_banks_do() -> None:
    b = Builder("aligned")
    _, gx = matrix(b, "x", f16, const(16), const(64))
    tile = b.inst(LoadGlobal(gx, (ZERO, ZERO), (16, 64), (0, 1)), "tile")
    plain = b.inst(AllocShared(f16, (1, 1032)), "plain", layout=row_major(1, 1032))  # the larger one: it comes first
    swizzled = b.inst(AllocShared(f16, (16, 64)), "swizzled", layout=row_major(16, 64).swizzled(3, 3, 3))
    row = b.inst(LoadGlobal(gx, (ZERO, ZERO), (1, 1032), (0, 1)), "row")
    b.inst(StoreShared(plain, row, (ZERO, ZERO), (0, 1)))
    b.inst(StoreShared(swizzled, tile, (ZERO, ZERO), (0, 1)))
    assert offsets(b.program()) == {"plain": 0, "swizzled": 2176}


def test_too_much_is_an_error_with_the_largest_tensors() -> None:
    with pytest.raises(PassError, match=r"needs 196608 bytes .* sm_86 has 101376 .*s[ab] \(6, 128, 64\)") as caught:
        lower(matmul(128, 128, 64, stages=6), TARGETS["sm_86"])
    assert "fewer pipeline stages" in str(caught.value)


# --- placement by itself --------------------------------------------------------------------------------------------


@st.composite
def tenants(draw: st.DrawFn) -> tuple[list[Tenant], list[int]]:
    found = []
    for i in range(draw(st.integers(1, 8))):
        first = draw(st.integers(0, 20))
        last = draw(st.integers(first, 20))
        owner = Tensor(f"t{i}", None)  # type: ignore[arg-type]
        size, alignment = draw(st.integers(1, 300)), draw(st.sampled_from([16, 128]))
        found.append(Tenant(owner, size, alignment, first, last, draw(st.booleans())))
    return found, draw(st.lists(st.integers(0, 20), max_size=4))


@given(tenants())
def test_placement_never_overlaps_what_may_not_share(drawn: tuple[list[Tenant], list[int]]) -> None:
    found, barriers = drawn
    offset = place(found, barriers)
    for i, a in enumerate(found):
        assert offset[id(a.owner)] % a.alignment == 0
        for b in found[:i]:
            start_a, start_b = offset[id(a.owner)], offset[id(b.owner)]
            overlap = start_a < start_b + b.nbytes and start_b < start_a + a.nbytes
            assert not overlap or may_share(a, b, barriers)


@given(tenants())
def test_sharing_needs_a_barrier_between(drawn: tuple[list[Tenant], list[int]]) -> None:
    found, barriers = drawn
    for a in found:
        for b in found:
            if may_share(a, b, barriers) and not (a.brings_barrier and b.brings_barrier):
                early, late = sorted((a, b), key=lambda t: t.first)
                assert early.last < late.first
                assert late.brings_barrier or any(early.last < at < late.first for at in barriers)


def test_tenants_are_found_in_order() -> None:
    names = [t.owner.name for t in find_tenants(lower(matmul(), SM80)) if isinstance(t.owner, Tensor)]
    assert names == ["sa", "sb"]
