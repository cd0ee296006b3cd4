"""Mutants of PTX: one instruction dropped, changed or moved. A test that runs a kernel should notice every one.

A mutant dies by a finding, by an error, or by a bit of the results. What lives on is either equivalent, for which there
is evidence from traces of both programs, or a hole: in the data, in the shapes or in the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from unittest import mock

import numpy as np

from tests.agreement.machines import copies_of, raw
from tests.simt.reach import never_run
from tests.simt.traces import MEMORY, Trace, compare, excuse, starts
from tilus import simt
from tilus.errors import TilusError
from tilus.simt import launch
from tilus.simt.decode import Context, decode
from tilus.simt.machine import Machine, Step
from tilus.simt.syntax import Address, Immediate, Instruction, Module, Negated, Operand, Vector

NOTHING = "pmevent 0;"
SYNC = ("bar", "barrier", "fence", "membar", "cp.async.wait_group", "cp.async.wait_all", "cp.async.commit_group")
_DROPPED = (*SYNC, *MEMORY, "mma", "shfl", "bra")
_COMPARISONS = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne", "ne": "eq"}
_COMPARISONS |= {"lo": "ls", "ls": "lo", "hi": "hs", "hs": "hi", "ltu": "leu", "leu": "ltu", "equ": "neu", "neu": "equ"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change of one instruction.

    Attributes
    ----------
    at : int
        Position in the body of the function.
    kind : str
    before : Instruction
    after : Instruction
        For a moved one the same; it changes places with the one at `with_`.
    """

    at: int
    kind: str
    before: Instruction
    after: Instruction
    with_: int | None = None

    @property
    def text(self) -> str:
        """The change, in words."""
        if self.with_ is not None:
            return f"{self.before.text}  changes places with what it orders {'behind' if self.with_ > self.at else 'before'} it"
        if self.after.opcode == "pmevent":
            return f"{self.before.text}  dropped"
        return f"{self.before.text}  ->  {written(self.after)}"

    def apply(self, module: Module, kernel: str) -> Module:
        """Return the module with the change."""
        function = module.functions[kernel]
        body = [*function.body]
        body[self.at] = self.after
        if self.with_ is not None:
            body[self.at], body[self.with_] = body[self.with_], self.after
        return replace(module, functions={**module.functions, kernel: replace(function, body=body)})


def written(code: Instruction) -> str:
    """Return an instruction as text."""
    guard = ""
    if code.guard is not None:
        guard = f"@!{code.guard.register.name} " if isinstance(code.guard, Negated) else f"@{code.guard.name} "
    return f"{guard}{code.opcode} {', '.join(map(_operand, code.operands))};"


def _operand(x: Operand) -> str:
    match x:
        case Immediate(bits=bits, kind=kind):
            return (
                str(bits) if kind == "s64" else f"0{'f' if kind == 'f32' else 'd'}{bits:0{8 if kind == 'f32' else 16}X}"
            )
        case Vector(items=items):
            return "{" + ", ".join(map(_operand, items)) + "}"
        case Address(base=base, offset=offset):
            return f"[{_operand(base)}{offset:+}]" if offset else f"[{_operand(base)}]"
        case Negated(register=register):
            return f"!{register.name}"
    return str(getattr(x, "name", "_"))


# --- changes --------------------------------------------------------------------------------------------------------

Change = tuple[str, Instruction]


def mutants(module: Module, kernel: str) -> list[Mutant]:
    """Return every mutant of a kernel."""
    body = module.functions[kernel].body
    found = []
    for at, code in enumerate(body):
        if isinstance(code, Instruction):
            found += [Mutant(at, kind, code, after) for rule in _RULES for kind, after in rule(code)]
            found += [Mutant(at, "move", code, code, other) for other in _neighbours(body, at)]
    return found


def is_sync(code: Instruction) -> bool:
    """Return whether an instruction only orders others."""
    return starts(code, SYNC)


_ASYNC = ("cp.async.ca", "cp.async.cg")
_PARTNERS = {  # what a synchronisation must not change places with
    "bar": (*MEMORY, "cp.async.wait_group", "cp.async.wait_all"),
    "cp.async.wait_group": ("bar", "barrier", "ld", "ldmatrix"),
    "cp.async.wait_all": ("bar", "barrier", "ld", "ldmatrix"),
    "cp.async.commit_group": (*_ASYNC, "cp.async.wait_group"),
}


def _neighbours(body: Sequence[Instruction | str], at: int) -> Iterator[int]:
    """Return the nearest instructions that a synchronisation must not change places with, before and behind it."""
    code = body[at]
    partners = next((p for name, p in _PARTNERS.items() if isinstance(code, Instruction) and starts(code, (name,))), ())
    for step in (-1, 1) if partners else ():
        i = at + step
        while 0 <= i < len(body):
            other = body[i]
            if not isinstance(other, Instruction) or starts(other, ("bra", "ret")):
                break
            if starts(other, partners) and ".param" not in other.opcode:
                yield i
                break
            i += step


def _drop(code: Instruction) -> Iterator[Change]:
    if starts(code, _DROPPED):
        yield "drop", replace(code, opcode="pmevent", operands=(Immediate(0),), guard=None)


def _guard(code: Instruction) -> Iterator[Change]:
    if code.guard is not None:
        yield "guard", replace(code, guard=None)
        other = code.guard.register if isinstance(code.guard, Negated) else Negated(code.guard)
        yield "guard", replace(code, guard=other)


def _wait(code: Instruction) -> Iterator[Change]:
    match code:
        case Instruction(opcode="cp.async.wait_group", operands=(Immediate(bits=n),)):
            yield "wait", replace(code, operands=(Immediate(n + 1),))


def _compare(code: Instruction) -> Iterator[Change]:
    root, *rest = code.opcode.split(".")
    if root in ("setp", "set") and rest[0] in _COMPARISONS:
        yield "compare", replace(code, opcode=".".join([root, _COMPARISONS[rest[0]], *rest[1:]]))


def _constants(code: Instruction) -> Iterator[Change]:
    """Change constants: bits of masks and tables, amounts of shifts, lanes, bounds and all others."""
    last = len(code.operands) - 1
    for i, operand in enumerate(code.operands):
        if isinstance(operand, Immediate) and not starts(code, ("bar", "cp", "pmevent")):
            kind = _role(code.root, i, last)
            for bits in _variations(kind, operand, code.line):
                operands = (*code.operands[:i], replace(operand, bits=bits), *code.operands[i + 1 :])
                yield kind, replace(code, operands=operands)


def _role(root: str, i: int, last: int) -> str:
    match root:
        case "and" | "or" | "xor":
            return "mask"
        case "lop3":
            return "table" if i == last else "mask"
        case "prmt":
            return "select" if i == last else "mask"
        case "shl" | "shr" | "shf" | "bfe" | "bfi":
            return "shift"
        case "shfl":
            return "lane"
        case "setp":
            return "bound"
    return "constant"


def _variations(kind: str, operand: Immediate, line: int) -> Iterator[int]:
    n = operand.bits
    if operand.kind != "s64":
        yield n ^ (1 << (23 if operand.kind == "f32" else 52))  # twice as much, or half
    elif kind == "mask":
        yield from {n ^ (n & -n), n ^ (1 << (abs(n).bit_length() - 1 if n else 0))}
    elif kind == "table":
        yield n ^ (1 << line % 8)
    elif kind in ("select", "lane"):
        yield n ^ 1
    elif kind == "shift":
        yield from (n + 1, n - 1) if n else (1,)
    else:
        yield n + 1


def _offset(code: Instruction) -> Iterator[Change]:
    if not starts(code, MEMORY) or ".param" in code.opcode:
        return
    for i, operand in enumerate(code.operands):
        if isinstance(operand, Address):
            moved = replace(operand, offset=operand.offset + _width(code))
            yield "offset", replace(code, operands=(*code.operands[:i], moved, *code.operands[i + 1 :]))


def _width(code: Instruction) -> int:
    """Return the bytes that a thread accesses, so that the changed address is aligned, too."""
    if code.root in ("cp", "ldmatrix", "stmatrix"):
        return next((x.bits for x in code.operands[2:3] if isinstance(x, Immediate)), 16)
    parts = code.opcode.split(".")
    return simt.syntax.BYTES[parts[-1]] * next((int(p[1]) for p in parts if p in ("v2", "v4")), 1)


def _swap(code: Instruction) -> Iterator[Change]:
    """Swap operands: of what does not commute, and two registers of a fragment."""
    ops = code.operands
    if code.root in ("sub", "selp", "prmt", "div", "rem", "shl", "shr") and ops[1] != ops[2]:
        yield "swap", replace(code, operands=(ops[0], ops[2], ops[1], *ops[3:]))
    for i in {"mma": (1, 2), "ldmatrix": (0,)}.get(code.root, ()):
        operand = ops[i]
        if isinstance(operand, Vector) and len(operand.items) > 1:
            first, second, *others = operand.items
            yield "swap", replace(code, operands=(*ops[:i], Vector((second, first, *others)), *ops[i + 1 :]))


_RULES: tuple[Callable[[Instruction], Iterator[Change]], ...] = (
    _drop, _guard, _wait, _compare, _constants, _offset, _swap,
)  # fmt: skip


# --- running --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Launch:
    """Arguments of a kernel and the grid for them."""

    args: Sequence[Any]
    grid: Sequence[int]
    ragged: bool = True


def bits(args: Sequence[Any]) -> bytes:
    """Return the bytes of all arrays."""
    return b"".join(raw(a).tobytes() for a in args if isinstance(a, np.ndarray))


@dataclass(frozen=True, slots=True)
class Reference:
    """What a kernel leaves in all arrays, its report, which is clean, and its trace."""

    bits: bytes
    report: simt.Report
    trace: Trace

    def __post_init__(self) -> None:
        self.report.check()

    @property
    def most_pieces(self) -> int:
        """How many pieces of code a mutant may run: many more than the kernel."""
        return 4 * self.report.pieces


@dataclass
class Subject:
    """A kernel, and how it is launched: at one ragged shape at least."""

    name: str
    arch: str
    module: Module
    kernel: str
    threads: int
    shared_bytes: int
    launches: Sequence[Launch]

    def __post_init__(self) -> None:
        assert any(shape.ragged for shape in self.launches)
        self._expected: dict[int, Reference] = {}

    def expected(self, number: int) -> Reference:
        """Return what the unchanged kernel does at a launch."""
        if number not in self._expected:
            self._expected[number] = Reference(*self._traced(self.module, self.launches[number]))
        return self._expected[number]

    @property
    def code(self) -> list[object]:
        """What the kernel consists of, without where it stands in the text."""
        body = self.module.functions[self.kernel].body
        return [(x.guard, x.opcode, x.operands) if isinstance(x, Instruction) else x for x in body]

    def run(self, module: Module, shape: Launch, **options: Any) -> tuple[list[Any], simt.Report]:
        """Run the kernel, or a mutant of it, on copies of the arguments."""
        after = copies_of(shape.args)
        report = simt.run(
            module, self.kernel, after, shape.grid, self.threads, shared_bytes=self.shared_bytes, **options
        )
        return after, report

    def mutants(self) -> list[Mutant]:
        """Return every mutant of the kernel."""
        return mutants(self.module, self.kernel)

    def killer(self, mutant: Mutant) -> str:
        """Return what kills a mutant: a kind of finding, `error` or `bits`; or nothing."""
        module = mutant.apply(self.module, self.kernel)
        for landing in ("late", "early") if is_sync(mutant.before) else ("late",):
            for number, shape in enumerate(self.launches):
                verdict = self.verdict(module, shape, self.expected(number), landing)
                if verdict:
                    return verdict
        return ""

    def verdict(self, module: Module, shape: Launch, expected: Reference, landing: str) -> str:
        """Return what kills a mutant at one launch, or nothing."""
        try:
            after, report = self.run(module, shape, landing=landing, max_pieces=expected.most_pieces, max_findings=1)
        except TilusError:
            return "error"
        if not report.ok:
            return report.findings[0].kind
        return "" if bits(after) == expected.bits else "bits"

    def equivalence(self, mutant: Mutant) -> str:
        """Return the evidence that a mutant that lives computes the same, or nothing."""
        body = self.module.functions[self.kernel].body
        at = position(body, mutant.at)
        if at in self.never_run:
            return "no launch comes there"
        if is_sync(mutant.before):
            return self._of_no_bytes(mutant)
        module = mutant.apply(self.module, self.kernel)
        found = [
            compare(self.expected(number).trace, self._traced(module, shape, sanitize=False)[2], at)
            for number, shape in enumerate(self.launches)
        ]
        return excuse(mutant.kind, mutant.before.root, found)

    @cached_property
    def never_run(self) -> set[int]:
        """Positions of instructions that no launch runs, whatever its arguments."""
        contexts: dict[int, Context] = {}

        def kept(machine: Machine, code: int) -> tuple[Step, Context]:
            step, contexts[code] = decode(machine, code)
            return step, contexts[code]

        with mock.patch.object(launch, "decode", kept):
            self.run(self.module, self.launches[0], sanitize=False)
        ran = {at for number in range(len(self.launches)) for at in self.expected(number).trace.results}
        return never_run(contexts[0].machine.program, [contexts[i] for i in sorted(contexts)], ran)

    def _of_no_bytes(self, mutant: Mutant) -> str:
        """Excuse what only orders others by one thing: it ends a group of copies that copy nothing at any shape."""
        body = self.module.functions[self.kernel].body
        copies = [position(body, i) for i in group_of(body, mutant.at)]
        traces = [self.expected(number).trace for number in range(len(self.launches))]
        return (
            "a group of copies of no bytes" if copies and not any(t.accesses[c] for t in traces for c in copies) else ""
        )

    def _traced(self, module: Module, shape: Launch, **options: Any) -> tuple[bytes, simt.Report, Trace]:
        trace = Trace()
        with mock.patch.object(launch, "decode", trace.decode):
            after, report = self.run(module, shape, **options)
        return bits(after), report, trace


def position(body: Sequence[Instruction | str], at: int) -> int:
    """Return where an item of a body stands among the instructions."""
    return sum(isinstance(x, Instruction) for x in body[:at])


def group_of(body: Sequence[Instruction | str], at: int) -> list[int]:
    """Return the asynchronous copies of which a `commit_group` makes a group, as far as they stand in one line."""
    code, found = body[at], list[int]()
    if not isinstance(code, Instruction) or not starts(code, ("cp.async.commit_group",)):
        return found
    for i in range(at - 1, -1, -1):
        other = body[i]
        if not isinstance(other, Instruction) or starts(other, ("bra", "cp.async.commit_group")):
            break
        if starts(other, _ASYNC):
            found.append(i)
    return found
