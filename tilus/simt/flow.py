"""What can be said of a program without running it: registers that may be read unset, and independence of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tilus.simt.decode import Context
from tilus.simt.program import Program
from tilus.simt.syntax import BYTES, Address, Immediate, Negated, Register, Symbol

_MEMORY = {"ld", "ldu", "st", "atom", "red", "cp", "ldmatrix", "stmatrix", "mbarrier", "wgmma"}
_WAYS = {"bra", "brx", "bar", "barrier", "ret", "exit"}
_DECIDED = {"brx", "bar", "barrier", "mbarrier", "cp"}  # every operand says where, or how much, or how many
_SPACES = {"global", "shared", "local", "param", "const"}


def successors(program: Program, piece: int) -> Iterator[int]:
    """Yield the pieces of straight-line code that may come behind one."""
    bounds = [*program.leaders, len(program.code)]
    last = program.code[bounds[piece + 1] - 1]
    branch = last.root in ("bra", "brx")
    if not (branch or last.root in ("ret", "exit", "trap")) or last.guard is not None:
        yield piece + 1
    for operand in last.operands if branch else ():
        if isinstance(operand, Symbol):
            for label in program.tables.get(operand.name, (operand.name,)):
                at = program.labels[label]
                yield program.leaders.index(at) if at < len(program.code) else len(program.leaders)


State: TypeAlias = set[str]  # of registers


def forward(
    program: Program,
    contexts: Sequence[Context],
    step: Callable[[Context, State], None],
    meet: Callable[[State, State], State],
    leave: Callable[[int, int, State], State | None] = lambda piece, target, state: state,
) -> dict[int, State]:
    """Carry sets of registers along all paths; return those at the beginning of the pieces that are reached.

    Parameters
    ----------
    program, contexts
        The code.
    step : callable
        Changes a set at an instruction.
    meet : callable
        Joins two sets.
    leave : callable, optional
        From a piece, the next one and the set behind the first: what is carried on; None if nobody goes that way.
    """
    bounds = [*program.leaders, len(program.code)]
    entry: dict[int, set[str]] = {0: set()}
    work = [0]
    while work:
        piece = work.pop()
        if piece == len(program.leaders):
            continue
        state = set(entry[piece])
        for context in contexts[bounds[piece] : bounds[piece + 1]]:
            step(context, state)
        for target in successors(program, piece):
            carried = leave(piece, target, state)
            if carried is None:
                continue
            new = meet(entry[target], carried) if target in entry else carried
            if target not in entry or new != entry[target]:
                entry[target] = set(new)
                work.append(target)
    return entry


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a program.

    Attributes
    ----------
    unset : frozenset of str
        Registers that some path reads before it sets them, and those that tensor cores write asynchronously.
    narrowest : dict
        The least number of bytes of an access, by space.
    data_independent : bool
    agents : bool
        Something else than threads accesses shared memory.
    """

    unset: frozenset[str]
    narrowest: dict[str, int]
    data_independent: bool
    agents: bool


def examine(program: Program, contexts: Sequence[Context]) -> Facts:
    """Return what is known of a program."""
    cores = {name for c in contexts if c.instruction.opcode.startswith("wgmma.mma_async") for name in c.writes}
    return Facts(
        frozenset(possibly_unset(program, contexts) | cores),
        {space: narrowest(contexts, space) for space in ("shared", "global")},
        is_data_independent(program, contexts),
        any(c.root in ("mbarrier", "wgmma") for c in contexts),
    )


def possibly_unset(program: Program, contexts: Sequence[Context]) -> set[str]:
    """Return the registers that some path reads before it sets them."""
    unset: set[str] = set()

    def step(context: Context, known: set[str]) -> None:
        unset.update(context.reads - known)
        if context.instruction.guard is None:
            known |= context.writes

    forward(program, contexts, step, set.intersection)
    return unset


def narrowest(contexts: Sequence[Context], space: str) -> int:
    """Return the least number of bytes that an instruction reads or writes in a space."""
    sizes = [16]
    for context in contexts:
        code = context.instruction
        if code.root not in _MEMORY or code.root in ("mbarrier", "wgmma"):
            continue
        parts = code.opcode.split(".")
        if code.root == "cp":
            sizes += [x.bits for x in code.operands[2:3] if isinstance(x, Immediate) and x.bits in (4, 8)]
        elif not _elsewhere(parts, space):
            count = next((int(p[1]) for p in parts if p in ("v2", "v4", "v8")), 1)
            sizes += [BYTES[parts[-1]] * count] if code.root not in ("ldmatrix", "stmatrix") else []
    return min(sizes)


def _elsewhere(parts: Sequence[str], space: str) -> bool:
    spaces = {p.partition("::")[0] for p in parts} & _SPACES
    return bool(spaces) and not spaces & {space, "const" if space == "global" else space}


def is_data_independent(program: Program, contexts: Sequence[Context]) -> bool:
    """Return whether no address, branch or predicate of a memory access depends on what memory holds.

    Registers carry data if they are loaded from global memory or computed from such; other memory carries data once
    such a register is stored there. Where it is true, one clean run at a shape shows that there are no races and no
    faults of bounds for all contents of the arrays.
    """
    spaces, decided, before = {"global"}, False, 0
    where = [_spaces(c) for c in contexts]

    def step(context: Context, tainted: set[str]) -> None:
        nonlocal decided
        decided |= _decides(context, tainted)
        _spread(context, where[context.code], tainted, spaces)

    while before != len(spaces):
        before = len(spaces)
        forward(program, contexts, step, set.union)
    return not decided


def _spaces(context: Context) -> set[str]:
    """Return the spaces that an instruction may access: all, if its addresses are generic."""
    variables = context.machine.program.local
    if any(
        isinstance(x, Address) and isinstance(x.base, Symbol) and x.base.name in variables for x in context.operands
    ):
        return {"local"}  # a parameter of a call, too
    named = {p.partition("::")[0] for p in context.instruction.opcode.split(".")} & _SPACES
    return named or _SPACES


def _spread(context: Context, where: set[str], tainted: set[str], spaces: set[str]) -> None:
    root = context.root
    carries = bool(context.reads & tainted)
    if root == "cp":
        spaces.add("shared")
    if carries and root in ("st", "stmatrix", "atom", "red"):
        spaces |= where
    loads = root in ("ld", "ldu", "ldmatrix", "atom") and where & spaces
    if loads or carries or (root == "wgmma" and "shared" in spaces):
        tainted |= context.writes
    elif context.instruction.guard is None:
        tainted -= context.writes


def _decides(context: Context, tainted: set[str]) -> bool:
    if context.addresses & tainted:
        return True
    if context.root not in _MEMORY | _WAYS:
        return False
    if context.root in _DECIDED and context.reads & tainted:
        return True
    match context.instruction.guard:
        case Register(name=name) | Negated(register=Register(name=name)):
            return name in tainted
    return False
