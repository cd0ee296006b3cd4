"""A kernel ready to run: calls expanded, labels resolved, shared and local memory laid out, code cut into blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from tilus.errors import VMError
from tilus.simt.syntax import (
    Address,
    Function,
    Instruction,
    Module,
    Negated,
    Operand,
    Register,
    Symbol,
    Variable,
    Vector,
)

SHARED_BASE = 1024  # where a block's shared memory begins; the hardware keeps the part below
INTRINSICS = ("vprintf", "__assertfail")

# A group of threads that meets one of these may go on at different places or times.
_ENDS = {"bra", "brx", "ret", "exit", "bar", "barrier", "trap"}
_ENDING_FORMS = ("mbarrier.try_wait", "mbarrier.test_wait")


@dataclass(slots=True)
class Program:
    """A kernel ready to run.

    Attributes
    ----------
    name, target : str
    params : list of Variable
    code : list of Instruction
    labels : dict
        Names to positions in `code`.
    leaders : list of int
        Where straight-line pieces of code begin.
    shared : dict
        Names to addresses; `shared_bytes` is what the static ones take, `dynamic_align` what the dynamic part wants.
    local : dict
        Names to addresses in each thread's memory, `local_bytes` in all.
    data : list of Variable
        Global and constant variables.
    directives, tables : dict
    """

    name: str
    target: str
    params: list[Variable]
    code: list[Instruction]
    labels: dict[str, int]
    data: list[Variable]
    directives: Mapping[str, tuple[int, ...]]
    tables: Mapping[str, tuple[str, ...]]
    leaders: list[int] = field(default_factory=list)
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    dynamic_align: int = 16
    local: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0


def link(module: Module, kernel: str) -> Program:
    """Return a kernel of a module as a program.

    Raises
    ------
    VMError
        If there is no such kernel, or it calls a function that is not there.
    """
    function = module.functions.get(kernel)
    if function is None or not function.is_entry:
        names = ", ".join(f.name for f in module.functions.values() if f.is_entry)
        raise VMError(f"the PTX has no kernel {kernel!r}", hint=f"it has {names or 'none'}")
    expansion = _Expansion(module)
    body = list(expansion.body(function))
    variables = {**module.variables, **function.variables, **expansion.variables}
    tables = {**function.tables, **expansion.tables}
    code = [item for item in body if isinstance(item, Instruction)]
    data = [v for v in variables.values() if v.space in ("global", "const")]
    program = Program(kernel, module.target, function.params, code, _labels(body), data, function.directives, tables)
    program.leaders = _leaders(program)
    _lay_out(program, variables)
    return program


class _Expansion:
    """Puts the bodies of called functions in place of the calls."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.variables: dict[str, Variable] = {}
        self.tables: dict[str, tuple[str, ...]] = {}
        self.stack: list[str] = []
        self.calls = 0

    def body(self, function: Function) -> Iterator[Instruction | str]:
        for item in function.body:
            if isinstance(item, Instruction) and item.root == "call" and not _is_intrinsic(item):
                yield from self.call(item)
            else:
                yield item

    def call(self, call: Instruction) -> Iterator[Instruction | str]:
        name, results, arguments = call_parts(call)
        callee = self.module.functions.get(name)
        if callee is None or not callee.body:
            raise VMError(f"{call.place}: `{call.text}` calls a function that the PTX does not hold")
        if name in self.stack:
            raise VMError(f"{call.place}: `{call.text}`: recursion is not supported")
        self.calls += 1
        mark = f"{name}#{self.calls}:"
        self.stack.append(name)
        inner = list(self.body(callee))
        self.stack.pop()
        names = {v.name: mark + v.name for v in callee.variables.values()}
        names |= {item: mark + item for item in inner if isinstance(item, str)}
        formal = [*callee.results, *callee.params]
        names |= {v.name: actual for v, actual in zip(formal, [*results, *arguments], strict=True)}
        self.variables |= {names[v.name]: replace(v, name=names[v.name]) for v in callee.variables.values()}
        self.tables |= {mark + k: tuple(mark + t for t in targets) for k, targets in callee.tables.items()}
        end = mark + "return"
        for item in inner:
            yield mark + item if isinstance(item, str) else _renamed(item, names, mark, end, call)
        yield end


def _is_intrinsic(call: Instruction) -> bool:
    return call_parts(call)[0] in INTRINSICS


def call_parts(call: Instruction) -> tuple[str, list[str], list[str]]:
    """Return the function's name, and the names of the variables for results and arguments."""
    groups: list[list[str]] = [[], []]
    name, at = "", 0
    for operand in call.operands:
        match operand:
            case Symbol(name=found) if not name:
                name, at = found, 1
            case Vector(items=items):
                groups[at] = [x.name for x in items if isinstance(x, Symbol)]
    if not name:
        raise VMError(f"{call.place}: `{call.text}`: calls through registers are not supported")
    return name, groups[0], groups[1]


def _renamed(item: Instruction, names: Mapping[str, str], mark: str, end: str, call: Instruction) -> Instruction:
    if item.root == "ret":
        uniform = replace(item, opcode="bra", operands=(Symbol(end),))
        return replace(uniform, guard=_rename_guard(item.guard, mark), source=call.source or item.source)
    operands = tuple(_rename(x, names, mark) for x in item.operands)
    return replace(item, operands=operands, guard=_rename_guard(item.guard, mark), source=item.source or call.source)


def _rename_guard(guard: Register | Negated | None, mark: str) -> Register | Negated | None:
    match guard:
        case Register(name=name, type=kind):
            return Register(mark + name, kind)
        case Negated(register=register):
            return Negated(Register(mark + register.name, register.type))
    return None


def _rename(operand: Operand, names: Mapping[str, str], mark: str) -> Operand:
    match operand:
        case Register(name=name, type=kind):
            return Register(mark + name, kind)
        case Negated(register=register):
            return Negated(Register(mark + register.name, register.type))
        case Symbol(name=name, offset=offset):
            return Symbol(names.get(name, name), offset)
        case Vector(items=items):
            return Vector(tuple(_rename(x, names, mark) for x in items))
        case Address(base=base, offset=offset, extra=extra):
            return Address(_rename(base, names, mark), offset, tuple(_rename(x, names, mark) for x in extra))
    return operand


def _labels(body: list[Instruction | str]) -> dict[str, int]:
    labels, at = {}, 0
    for item in body:
        if isinstance(item, str):
            labels[item] = at
        else:
            at += 1
    return labels


def ends_block(instruction: Instruction) -> bool:
    """Return whether threads that run it together need not go on together."""
    return instruction.root in _ENDS or instruction.opcode.startswith(_ENDING_FORMS)


def _leaders(program: Program) -> list[int]:
    starts = {0, *program.labels.values()}
    starts |= {i + 1 for i, instruction in enumerate(program.code) if ends_block(instruction)}
    return sorted(i for i in starts if i < len(program.code))


def _align(address: int, alignment: int) -> int:
    return -(-address // alignment) * alignment


def _mentioned(program: Program) -> set[str]:
    def names(operand: Operand) -> Iterator[str]:
        match operand:
            case Symbol(name=name):
                yield name
            case Vector(items=items):
                for item in items:
                    yield from names(item)
            case Address(base=base, extra=extra):
                for item in (base, *extra):
                    yield from names(item)

    return {name for instruction in program.code for operand in instruction.operands for name in names(operand)}


def _lay_out(program: Program, variables: Mapping[str, Variable]) -> None:
    used = _mentioned(program)
    address = SHARED_BASE
    shared = [v for v in variables.values() if v.space == "shared" and v.name in used]
    for variable in shared:
        if variable.nbytes is not None:
            address = _align(address, variable.align)
            program.shared[variable.name] = address
            address += variable.nbytes
    dynamic = [v for v in shared if v.nbytes is None]
    if dynamic:
        program.dynamic_align = max(v.align for v in dynamic)
        address = _align(address, program.dynamic_align)
        program.shared.update({v.name: address for v in dynamic})
    program.shared_bytes = address - SHARED_BASE
    for variable in variables.values():
        if variable.space == "local":
            program.local_bytes = _align(program.local_bytes, variable.align)
            program.local[variable.name] = program.local_bytes
            program.local_bytes += variable.nbytes or 0
