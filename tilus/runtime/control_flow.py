"""The control flow of machine code: basic blocks, edges, natural loops.

Only the reachable part counts, so the endless loop and the padding behind a kernel's end are no part of the graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tilus.runtime.sass import INDEXED_BRANCHES, Function, Instruction

# After these the next instruction is reached only if a guard holds them back.
_JUMPS = {"BRA", "JMP"}
_ENDS = {"EXIT", "RET", "KILL"} | _JUMPS | INDEXED_BRANCHES
_TABLE_NOTE = "BRANCH_TARGETS"  # nvdisasm lists what an indexed branch may reach


@dataclass(frozen=True, slots=True)
class Block:
    """Instructions that are always executed together; `successors` are numbers of blocks."""

    instructions: tuple[Instruction, ...]
    successors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Loop:
    """A natural loop: the block all its trips begin with, the blocks that jump back to it, and all its blocks."""

    header: int
    latches: frozenset[int]
    blocks: frozenset[int]


def basic_blocks(function: Function) -> tuple[Block, ...]:
    """Cut a function into basic blocks; block 0 is where it begins."""
    code = function.instructions
    starts = {0}
    for at, instruction in enumerate(code):
        if instruction.opcode in _ENDS:
            starts.add(at + 1)
            starts.update(_targets(instruction, function))
    ordered = sorted(start for start in starts if start < len(code))
    number = {start: index for index, start in enumerate(ordered)}
    spans = zip(ordered, [*ordered[1:], len(code)], strict=True)
    return tuple(Block(code[start:end], _successors(function, end, number)) for start, end in spans)


def _targets(instruction: Instruction, function: Function) -> list[int]:
    """Return the indices of the instructions that a branch may jump to; calls and returns count as no branch."""
    if instruction.opcode not in _JUMPS | INDEXED_BRANCHES:
        return []
    names = [operand for operand in instruction.operands if operand in function.labels]
    for note in instruction.notes:
        if note.startswith(_TABLE_NOTE):
            names += [name.strip() for name in note.removeprefix(_TABLE_NOTE).split(",")]
    return [function.labels[name] // 16 for name in names]


def _successors(function: Function, end: int, number: dict[int, int]) -> tuple[int, ...]:
    last = function.instructions[end - 1]
    following = [end] if end in number and (last.opcode not in _ENDS or _is_conditional(last)) else []
    return tuple(dict.fromkeys(number[at] for at in (*_targets(last, function), *following) if at in number))


def _is_conditional(branch: Instruction) -> bool:
    """Whether the next instruction may follow: a guard, or a condition among the operands (`BRA.U UP0, label`)."""
    return branch.predicate not in ("", "PT") or (branch.opcode in _JUMPS and len(branch.operands) > 1)


def reachable(blocks: tuple[Block, ...]) -> list[int]:
    """Return the reachable blocks, every one before its successors but for jumps back (reverse postorder)."""
    done: list[int] = []
    seen = {0}
    stack = [(0, iter(blocks[0].successors))]
    while stack:
        node, successors = stack[-1]
        following = next((s for s in successors if s not in seen), None)
        if following is None:
            done.append(node)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(blocks[following].successors)))
    return done[::-1]


def dominators(blocks: tuple[Block, ...]) -> dict[int, frozenset[int]]:
    """Return, for every reachable block, the blocks that lie on all ways to it, itself included."""
    order = reachable(blocks)
    before: dict[int, list[int]] = {node: [] for node in order}
    for node in order:
        for successor in blocks[node].successors:
            before[successor].append(node)
    result = {node: frozenset(order) for node in order}
    result[0] = frozenset([0])
    changed = True
    while changed:
        changed = False
        for node in order[1:]:
            common = frozenset.intersection(*(result[p] for p in before[node])) | {node}
            changed |= common != result[node]
            result[node] = common
    return result


def natural_loops(blocks: tuple[Block, ...]) -> list[Loop]:
    """Return the loops, one per header."""
    above = dominators(blocks)
    latches: dict[int, set[int]] = {}
    for node in above:
        for successor in blocks[node].successors:
            if successor in above[node]:
                latches.setdefault(successor, set()).add(node)
    return [Loop(h, frozenset(ends), _body(blocks, h, ends, above)) for h, ends in sorted(latches.items())]


def _body(blocks: tuple[Block, ...], header: int, latches: Iterable[int], known: Iterable[int]) -> frozenset[int]:
    """Return the blocks from which a latch is reached without passing the header."""
    before: dict[int, list[int]] = {}
    for node in known:
        for successor in blocks[node].successors:
            before.setdefault(successor, []).append(node)
    body, stack = {header}, list(latches)
    while stack:
        node = stack.pop()
        if node not in body:
            body.add(node)
            stack.extend(before.get(node, ()))
    return frozenset(body)
