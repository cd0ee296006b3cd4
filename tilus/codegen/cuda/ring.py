"""A producer, one warp more than the program has, and the others, its consumers: how they wait for one another.

A ring of pairs of mbarriers has one pair for each stage of the pipeline. A stage is *full* when the producer has
started all copies of a group and their bytes have come; it is *free* when all consumers have left it. At the end of its
trip each side says so for the stage it is at, and goes on to the next one; before, both wait until the consumers' is
full, and the producer until its is free. Both count the turns of the ring by one bit, the parity for which to wait. A
fresh barrier counts as having passed a phase of parity 1: in its first turn the producer finds all stages free.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context
from tilus.codegen.cuda.cpp import Expr, Name
from tilus.codegen.cuda.lanes import LANES

_BARRIER = 8  # bytes of an mbarrier
# Variables of the kernel: the address of the first barrier, in bytes from there that of this thread's stage, and the
# turn's parity.
_FIRST, _OFFSET, _PARITY = (Name(f"ring_{x}") for x in ("first", "offset", "parity"))
STAGE = _FIRST + _OFFSET  # the barrier that says that this thread's stage is full
_THREAD = Name("tid")
FIRST_THREAD = cpp.Binary("==", _THREAD, cpp.ZERO)


@dataclass(frozen=True, slots=True)
class Ring:
    """The mbarriers of a kernel, those for full stages before those for free ones.

    Attributes
    ----------
    stages : int
    consumers : int
        Threads.
    deals : bool
        Whether there are copies that the producer's lanes share out.
    """

    stages: int
    consumers: int
    deals: bool

    @property
    def threads(self) -> int:
        """Threads of a block, the producer's among them."""
        return self.consumers + LANES

    @property
    def free(self) -> int:
        """How many bytes a barrier for a free stage lies behind that for a full one."""
        return self.stages * _BARRIER

    @property
    def nbytes(self) -> int:
        """Shared memory of the barriers."""
        return 2 * self.free

    @property
    def is_consumer(self) -> Expr:
        """Whether this thread is a consumer's."""
        return cpp.Binary("<", _THREAD, cpp.Int(self.consumers))


def begin(ctx: Context, ring: Ring, start: int) -> list[cpp.Stmt]:
    """Return the statements that initialise the barriers, in shared memory from a byte on, and make them known."""
    barrier = Name("barrier")
    full = cpp.Do(ctx.ptx("mbarrier_init", barrier, cpp.Int(1 + LANES * ring.deals)))
    free = cpp.Do(ctx.ptx("mbarrier_init", barrier, cpp.Int(ring.consumers // LANES)))
    initialise: list[cpp.Stmt] = [
        cpp.For("u32", barrier.text, _FIRST, _FIRST + ring.free, _BARRIER, (full,)),
        cpp.For("u32", barrier.text, _FIRST + ring.free, _FIRST + ring.nbytes, _BARRIER, (free,)),
    ]
    if ctx.has("fence_mbarrier_init"):  # bulk copies do not see by themselves what threads have written
        initialise.append(cpp.Do(ctx.ptx("fence_mbarrier_init")))
    return [
        cpp.Declare("u32", _FIRST.text, Name("smem") + start, constant=True),
        cpp.If(FIRST_THREAD, tuple(initialise)),
        cpp.Do(cpp.call("__syncthreads")),
        cpp.Declare("u32", _OFFSET.text, cpp.ZERO),
        cpp.Declare("u32", _PARITY.text, cpp.ZERO),
    ]


def wait_full(ctx: Context, ring: Ring) -> None:
    """Wait until the stage of this trip is full: for consumers that is theirs, for the producer the next one.

    The producer would fill its stage without that, but what the program copies may go where the trip's group has gone.
    """
    if not ctx.is_producer:
        _wait(ctx, STAGE, _PARITY)
        return
    after = ctx.constant("u32", "after", cpp.Conditional(_is_last(ring), _FIRST, STAGE + _BARRIER))
    _wait(ctx, after, cpp.Conditional(_is_last(ring), _PARITY, _other(_PARITY)))


def wait_free(ctx: Context, ring: Ring) -> None:
    """Have the producer wait until its stage is free."""
    _wait(ctx, STAGE + ring.free, _other(_PARITY))


def _wait(ctx: Context, barrier: Expr, parity: Expr) -> None:
    passed = ctx.ptx("mbarrier_try_wait" if ctx.has("mbarrier_try_wait") else "mbarrier_test_wait", barrier, parity)
    ctx.emit(cpp.While(cpp.Binary("==", passed, cpp.ZERO), ()))


def _other(parity: Expr) -> Expr:
    return cpp.Binary("^", parity, cpp.ONE)


def advance(ctx: Context, ring: Ring) -> None:
    """Say that this warp is done with its stage, be it filled or left, and go on to the next one.

    Bulk copies count their bytes themselves, each lane's other copies arrive for it when they have landed.
    """
    if ctx.is_producer and ring.deals:
        ctx.do("cp_async_arrive", STAGE)
    ctx.emit(cpp.Do(cpp.call("__syncwarp")))
    with ctx.block(), ctx.where(elected(ctx)):
        ctx.do("mbarrier_arrive", STAGE if ctx.is_producer else STAGE + ring.free)
    _step(ctx, ring)


def _step(ctx: Context, ring: Ring) -> None:
    turn = (cpp.Set(_OFFSET, cpp.ZERO), cpp.Set(_PARITY, _other(_PARITY)))
    ctx.emit(cpp.If(_is_last(ring), turn, (cpp.Set(_OFFSET, _OFFSET + _BARRIER),)))


def _is_last(ring: Ring) -> Expr:
    return cpp.Binary("==", _OFFSET, cpp.Int(ring.free - _BARRIER))


def elected(ctx: Context) -> Expr:
    """Return the condition that this is the one lane of a warp that acts for it; all of them must come here.

    From `elect` the compiler knows that it is one: to others it gives bulk copies in a loop.
    """
    if not ctx.has("elect"):
        return cpp.Binary("==", ctx.thread_digit(1, LANES), cpp.ZERO)
    return cpp.Binary("!=", ctx.constant("u32", "elected", ctx.ptx("elect")), cpp.ZERO)


def end(ctx: Context, ring: Ring) -> None:
    """Have the producer wait for the copies that no consumer waits for: the block's shared memory ends with it."""
    with ctx.body() as body:
        _step(ctx, ring)
        _wait(ctx, STAGE, _other(_PARITY))
    ctx.emit(cpp.For("u32", "i", cpp.ZERO, cpp.Int(ring.stages - 1), 1, tuple(body)))
