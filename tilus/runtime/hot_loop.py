"""The hot loop of a kernel: the instructions one thread issues in one trip, and what they cost per weight.

Method: among all loops take the one that itself, not a loop inside it, holds the most tensor-core instructions, or
floating point ones where a kernel has no others. Of the ways through it, a trip takes one that does the most of that
work. Of these it takes one through the most blocks that access global memory: copies of later stages are often guarded
by a branch around them (`if there is another tile: copy`), and nearly every trip does them. Of these it takes the one
with the fewest instructions, so that slow ways around a barrier's wait are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tilus.errors import FormatError
from tilus.runtime.control_flow import Block, Loop, basic_blocks, natural_loops, reachable
from tilus.runtime.sass import Function, Instruction, instruction_mix, parse_sass, pipe_mix

COPIES = {"LDGSTS", "UBLKCP"}  # from global memory to shared
_FLOAT_KINDS = {"half2", "fp32", "fp64"}


@dataclass(frozen=True, slots=True)
class HotLoop:
    """One trip of a kernel's main loop.

    Attributes
    ----------
    function : str
    instructions : tuple of Instruction
        In the order of execution.
    is_loop : bool
        False for a kernel whose work stands in straight-line code: then this is one way from its start to its end.
    put_back : int
        How many of the instructions are guarded copies that the cheapest way would have skipped.
    """

    function: str
    instructions: tuple[Instruction, ...]
    is_loop: bool
    put_back: int

    @property
    def mix(self) -> dict[str, int]:
        """Instructions by kind of work."""
        return instruction_mix(self.instructions)

    @property
    def pipes(self) -> dict[str, int]:
        """Instructions by pipe."""
        return pipe_mix(self.instructions)

    def count(self, opcode: str) -> int:
        """Return how many instructions have this opcode, modifiers left aside."""
        return sum(instruction.opcode == opcode for instruction in self.instructions)

    def __str__(self) -> str:
        place = "in the loop" if self.is_loop else "in the whole program, which has no hot loop"
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.mix.items() if count)
        return f"{self.function}: {len(self.instructions)} instructions {place} ({kinds})"


def instructions_per_weight(loop: HotLoop, weights: float) -> float:
    """Return the instructions a thread issues per weight.

    Parameters
    ----------
    loop : HotLoop
    weights : float
        Weights that one trip consumes per thread: those of the block's tile, divided by the threads of the block. For
        a program without a loop, those of the whole program.
    """
    if weights <= 0:
        raise FormatError(f"expected a positive number of weights per trip and thread, got {weights}")
    return len(loop.instructions) / weights


def hot_loop(sass: str, function: str | None = None) -> HotLoop:
    """Find the hot loop in disassembled code.

    Parameters
    ----------
    sass : str
        What `disassemble` returned.
    function : str, optional
        By default the one with the most tensor-core, else floating point instructions.
    """
    functions = [f for f in parse_sass(sass) if f.instructions and function in (None, f.name)]
    if not functions:
        raise FormatError(f"the code has no function {function!r}")
    return _hot_loop(max(functions, key=lambda f: (_tensor(f.instructions), _float(f.instructions))))


def producer_loop(sass: str, function: str) -> HotLoop | None:
    """Return the loop of the warp that starts copies for the others; None if no such warp is there.

    It is the greatest loop with copies to shared memory and no work of tensor cores.
    """
    [found] = [f for f in parse_sass(sass) if f.name == function]
    blocks = basic_blocks(found)

    def of(loop: Loop, amount: Amount) -> int:
        return sum(amount(blocks[node].instructions) for node in loop.blocks)

    loops = [loop for loop in natural_loops(blocks) if of(loop, _to_shared) and not of(loop, _tensor)]
    loop = max(loops, key=lambda loop: len(loop.blocks), default=None)
    if loop is None:
        return None
    inside = [node for node in reachable(blocks) if node in loop.blocks]
    return _trip(function, blocks, inside, loop.header, loop.latches, _to_shared, is_loop=True)


def _hot_loop(function: Function) -> HotLoop:
    blocks = basic_blocks(function)
    live = reachable(blocks)
    loops = natural_loops(blocks)
    tensor = any(_tensor(blocks[node].instructions) for node in live)
    amount = _tensor if tensor else _float
    own = {loop.header: _own_work(loop, loops, blocks, amount) for loop in loops}
    best = max(loops, key=lambda loop: (own[loop.header], -len(loop.blocks)), default=None)
    if best is None or own[best.header] == 0:
        ends = {node for node in live if not blocks[node].successors}
        return _trip(function.name, blocks, live, 0, ends, amount, is_loop=False)
    inside = [node for node in live if node in best.blocks]
    return _trip(function.name, blocks, inside, best.header, best.latches, amount, is_loop=True)


Amount = Callable[[Iterable[Instruction]], int]


def _tensor(instructions: Iterable[Instruction]) -> int:
    return sum(i.klass.kind == "mma" for i in instructions)


def _to_shared(instructions: Iterable[Instruction]) -> int:
    return sum(i.opcode in COPIES for i in instructions)


def _float(instructions: Iterable[Instruction]) -> int:
    return sum(i.klass.kind in _FLOAT_KINDS for i in instructions)


def _copies(instructions: Iterable[Instruction]) -> bool:
    return any(i.klass.kind == "gmem" for i in instructions)


def _own_work(loop: Loop, loops: Sequence[Loop], blocks: tuple[Block, ...], amount: Amount) -> int:
    inner = [other.blocks for other in loops if other.header != loop.header and other.header in loop.blocks]
    own = loop.blocks.difference(*inner) | {loop.header}
    return sum(amount(blocks[node].instructions) for node in own)


def _trip(
    name: str,
    blocks: tuple[Block, ...],
    order: Sequence[int],
    start: int,
    ends: Iterable[int],
    amount: Amount,
    *,
    is_loop: bool,
) -> HotLoop:
    """Find the way of one trip among the blocks of `order`, whose jumps back are left out."""
    rank = {node: index for index, node in enumerate(order)}
    forward = {n: [s for s in blocks[n].successors if rank.get(s, -1) > rank[n]] for n in order}
    work = {n: amount(blocks[n].instructions) for n in order}
    size = {n: len(blocks[n].instructions) for n in order}
    copies = {n: int(_copies(blocks[n].instructions)) for n in order}
    cheapest = _best_way(order, forward, start, ends, {n: (work[n], 0, -size[n]) for n in order})
    way = _best_way(order, forward, start, ends, {n: (work[n], copies[n], -size[n]) for n in order})
    instructions = tuple(i for node in way for i in blocks[node].instructions)
    return HotLoop(name, instructions, is_loop, len(instructions) - sum(size[node] for node in cheapest))


Score = tuple[int, int, int]


def _best_way(
    order: Sequence[int], forward: dict[int, list[int]], start: int, ends: Iterable[int], score: dict[int, Score]
) -> tuple[int, ...]:
    """Return the way of the greatest total score from `start` to one of `ends`; the edges have no cycle."""
    best: dict[int, tuple[Score, tuple[int, ...]]] = {start: (score[start], (start,))}
    for node in (node for node in order if node in best):
        total, way = best[node]
        for following in forward[node]:
            a, b, c = (x + y for x, y in zip(total, score[following], strict=True))
            if following not in best or (a, b, c) > best[following][0]:
                best[following] = ((a, b, c), (*way, following))
    return max((best[end] for end in ends if end in best), key=lambda found: found[0])[1]
