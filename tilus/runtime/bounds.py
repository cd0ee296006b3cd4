"""What a launch must not read or write: checked on the host, before any block runs.

A view that is larger than the array behind it, an element `p[i]` past an array's end and a tile that leaves a shared
tensor would touch foreign memory without a sound. Wherever the extents, strides and indices depend on nothing but the
arguments and the block's number, what is touched at the far ends is known at the launch; `bounds_check` compiles all of
that into one Python function of a few comparisons.

Nothing is refused that might be meant. A view counts only if it is accessed; a condition on arguments is evaluated, and
what stands under any other condition counts as not reached, but for accesses to a view that was made outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NoReturn

from tilus.errors import LaunchError, Loc
from tilus.ir.expr import BlockId, CastExpr, Const, Expr, Op, Tensor, Var
from tilus.ir.instructions import (
    Assert,
    AtomicAdd,
    CopyAsync,
    GlobalView,
    LoadElement,
    LoadGlobal,
    LoadShared,
    StoreGlobal,
    StoreShared,
)
from tilus.ir.instructions.base import Instruction
from tilus.ir.node import walk
from tilus.ir.program import Program
from tilus.ir.stmt import Assign, Break, Continue, For, If, InstStmt, Let, Stmt, While
from tilus.ir.types import RegisterType, SharedType
from tilus.runtime.host_expr import NotOnHostError, python_text

Check = Callable[[Sequence[Any], Sequence[int]], None]
_LONGEST = 4000  # characters of an expression's text: a chain of definitions can double it again and again
_UNKNOWN = None  # a condition that only a block can decide

Guard = str | None


def bounds_check(program: Program) -> Check | None:
    """Return a function of the checked arguments and the grid's extents, all of them positive.

    It raises `LaunchError` for the first access that would leave its array; None where there is nothing to check.
    """
    claims = _claims(program)
    if not claims:
        return None
    lines = []
    for number, claim in enumerate(claims):
        test = " and ".join([*claim.guards, claim.breach, *claim.reached])
        lines.append(f"if {test}: fail({number}, ({''.join(f'{text}, ' for text in claim.details)}))")
    return _function(program, lines, fail=lambda number, details: _fail(claims[number], program.name, details))


def array_sizes(program: Program, values: Sequence[Any], extents: Sequence[int]) -> dict[int, int]:
    """Return how many elements the arrays need, by position of the parameter, where that is known before the launch.

    In place of the arrays stands anything among the values.
    """
    sizes: dict[int, int] = {}

    def need(position: int, count: int) -> None:
        sizes[position] = max(sizes.get(position, 0), count)

    lines = []
    for claim in _claims(program):
        if claim.needs:
            test = " and ".join([*claim.guards, *claim.reached, "True"])
            lines.append(f"if {test}: need({claim.needs[0].removeprefix('v')}, {claim.needs[1]})")
    _function(program, lines, need=need)(values, extents)
    return sizes


def _claims(program: Program) -> list[_Claim]:
    found = _Finder(program)
    found.body(program.body, ())
    return [*found.views(), *found.claims]


def _function(program: Program, body: Sequence[str], **names: Any) -> Check:
    """Compile statements over the arguments `v0` and so on, and the grid's extents `g0` and so on."""
    arguments = "".join(f"v{i}, " for i in range(len(program.params)))
    grid = "".join(f"g{i}, " for i in range(len(program.grid)))
    lines = ["def check(values, extents):", f"{arguments}= values", f"{grid}= extents", *body]
    exec("\n ".join(lines), names)
    check: Check = names["check"]
    return check


@dataclass(frozen=True, slots=True)
class _Claim:
    """An access that leaves its array where all `guards`, `breach` and `reached` hold: Python expressions.

    `breach` makes sense under `guards`; what else must hold is asked last, for `breach` is almost never true. `needs`
    are the array's name and how many elements it must have, where the claim is about that.
    """

    guards: tuple[str, ...]
    breach: str
    reached: tuple[str, ...]
    details: tuple[str, ...]
    message: str  # a format of the details
    hint: str
    loc: Loc | None
    needs: tuple[str, str] | None = None


def _fail(claim: _Claim, kernel: str, details: tuple[Any, ...]) -> NoReturn:
    raise LaunchError(f"kernel {kernel!r}: {claim.message.format(*details)}", loc=claim.loc, hint=claim.hint)


@dataclass(slots=True)
class _View:
    statement: InstStmt
    guards: tuple[str, ...]
    uses: list[tuple[str, ...]] = field(default_factory=list)  # conditions of each access


class _Finder:
    """Walks a program in order, keeping under which conditions each statement is reached."""

    def __init__(self, program: Program) -> None:
        self.names = {p.var: f"v{i}" for i, p in enumerate(program.params)}
        self.grid = len(program.grid)
        changing = {n.var for n in walk(program) if isinstance(n, Assign)}
        self.lets = {n.var: n.value for n in walk(program) if isinstance(n, Let) and n.var not in changing}
        self.found: dict[Tensor, _View] = {}
        self.claims: list[_Claim] = []

    def text(self, expr: Expr) -> str:
        text = python_text(expr, self.names, self.lets)
        if len(text) > _LONGEST:
            raise NotOnHostError("too long to evaluate at every launch")
        return text

    def guard(self, cond: Expr) -> Guard:
        try:
            return self.text(cond)
        except NotOnHostError:
            return _UNKNOWN

    # --- statements ---

    def body(self, body: Sequence[Stmt], guards: tuple[Guard, ...]) -> None:
        for stmt in body:
            guards = self.statement(stmt, guards)

    def statement(self, stmt: Stmt, guards: tuple[Guard, ...]) -> tuple[Guard, ...]:
        """Visit a statement; return the conditions under which the next one is reached."""
        match stmt:
            case If(cond=cond, then=then, orelse=orelse):
                test = self.guard(cond)
                self.body(then, (*guards, test))
                self.body(orelse, (*guards, _UNKNOWN if test is _UNKNOWN else f"not {test}"))
                leaves = any(isinstance(n, Break | Continue) for s in chain(then, orelse) for n in walk(s))
                return (*guards, _UNKNOWN) if leaves else guards
            case For(start=start, stop=stop, step=step, body=inside):
                self.body(inside, (*guards, self.guard(Op("lt", (start, stop) if step > 0 else (stop, start)))))
            case While(body=inside):
                self.body(inside, (*guards, _UNKNOWN))
            case InstStmt(inst=Assert(cond=Var() | Const() | Op() | CastExpr() | BlockId() as cond)):
                test = self.guard(cond)
                return guards if test is _UNKNOWN else (*guards, test)  # a failing block ends here
            case InstStmt(out=out, inst=GlobalView()) if isinstance(out, Tensor):
                known = _known(guards)
                if known is not None:
                    self.found[out] = _View(stmt, known)
            case InstStmt(inst=inst):
                self.access(inst, guards)
        return guards

    def access(self, inst: Instruction, guards: tuple[Guard, ...]) -> None:
        match inst:
            case LoadGlobal(view=view) | StoreGlobal(view=view) | AtomicAdd(view=view) | CopyAsync(src=view):
                if view in self.found:
                    self.found[view].uses.append(tuple(g for g in guards if g is not _UNKNOWN))
        known = _known(guards)
        if known is None:
            return
        match inst:
            case LoadElement(ptr=ptr, index=index):
                self.element(ptr, index, known, inst.loc)
            case LoadShared(src=tensor, offset=offset, shape=shape, dims=dims):
                self.tile(tensor, offset, shape, dims, known, inst.loc)
            case CopyAsync(dst=tensor, dst_offset=offset, shape=shape, dst_dims=dims):
                self.tile(tensor, offset, shape, dims, known, inst.loc)
            case StoreShared(dst=tensor, tile=tile, offset=offset, dims=dims) if isinstance(tile.type, RegisterType):
                self.tile(tensor, offset, tile.type.shape, dims, known, inst.loc)

    # --- claims ---

    def views(self) -> list[_Claim]:
        """Return what the accessed views need."""
        return [claim for view in self.found.values() if view.uses for claim in self.view(view)]

    def view(self, view: _View) -> list[_Claim]:
        made = view.statement.inst
        assert isinstance(made, GlobalView)
        try:
            shape, strides = [self.text(n) for n in made.shape], [self.text(n) for n in made.strides]
        except NotOnHostError:
            return []
        if any(isinstance(n, Const) and n.value <= 0 for n in made.shape):
            return []
        reached = _either([tuple(g for g in use if g not in view.guards) for use in view.uses])
        reached += [f"{t} > 0" for t, n in zip(shape, made.shape, strict=True) if not isinstance(n, Const)]
        needed, first = _reach(made.shape, made.strides, shape, strides)
        extents = " x ".join("{}" for _ in shape)
        what = f"the view [{extents}] of {made.ptr.name!r}"
        hint = "pass the extents and strides that the array has, or a larger array"
        breach, there = self.beyond(made.ptr, needed)
        message, details = what + " needs {} elements, the array has {}", (*shape, needed, there)
        needs = self.names[made.ptr], needed
        claims = [_Claim(view.guards, breach, tuple(reached), details, message, hint, made.loc, needs)]
        if first:
            message, details = what + " begins {} elements before the array", (*shape, f"-({first})")
            claims.append(_Claim(view.guards, f"{first} < 0", tuple(reached), details, message, hint, made.loc))
        return claims

    def beyond(self, ptr: Var, needed: str) -> tuple[str, str]:
        """Return the test whether so many elements are more than an array has, and how many it has."""
        array, nbits = self.names[ptr], ptr.type.dtype.nbits
        if nbits % 8:
            return f"({needed}) * {nbits} > {array}.nbytes * 8", f"{array}.nbytes * 8 // {nbits}"
        bytes_needed = f"({needed}) * {nbits // 8}" if nbits > 8 else needed
        return f"{bytes_needed} > {array}.nbytes", f"{array}.nbytes // {nbits // 8}"

    def element(self, ptr: Var, index: Expr, guards: tuple[str, ...], loc: Loc | None) -> None:
        try:
            low, high = self.ends(index)
        except NotOnHostError:
            return
        breach, there = self.beyond(ptr, f"{high} + 1")
        if low != "0":
            breach = f"({breach} or {low} < 0)"
        message = f"elements {{}} to {{}} of {ptr.name!r} are read, the array has {{}}"
        hint = "pass a longer array, or launch fewer blocks"
        needs = self.names[ptr], f"{high} + 1"
        self.claims.append(_Claim(guards, breach, (), (low, high, there), message, hint, loc, needs))

    def tile(
        self, tensor: Tensor, offset: Sequence[Expr], shape: Sequence[int], dims: Sequence[int],
        guards: tuple[str, ...], loc: Loc | None,
    ) -> None:  # fmt: skip
        assert isinstance(tensor.type, SharedType)
        extents = dict(zip(dims, shape, strict=True))
        for dim, (start, size) in enumerate(zip(offset, tensor.type.shape, strict=True)):
            room = size - extents.get(dim, 1)
            try:
                low, high = self.ends(start)
            except NotOnHostError:
                continue
            if isinstance(start, Const) and 0 <= start.value <= room:
                continue
            message = (
                f"a tile of {extents.get(dim, 1)} elements at {{}} to {{}} along dimension {dim} leaves the shared "
                f"tensor {tensor.name!r} of {size}"
            )
            breach = f"({high} > {room} or {low} < 0)"
            hint = f"offsets from 0 to {room} lie inside"
            self.claims.append(_Claim(guards, breach, (), (low, high), message, hint, loc))

    def ends(self, expr: Expr) -> tuple[str, str]:
        """Return the least and the greatest value that an index takes over all blocks; both are taken."""
        axes: list[int] = []
        low, high = self.span(expr, axes)
        if len(set(axes)) != len(axes) or max(len(low), len(high)) > _LONGEST:
            raise NotOnHostError("an axis stands in the index twice, so its ends are no index's")
        return low, high

    def span(self, expr: Expr, axes: list[int]) -> tuple[str, str]:
        match expr:
            case BlockId(axis=axis):
                axes.append(axis)
                return "0", f"(g{axis} - 1)" if axis < self.grid else "0"
            case Var() if expr in self.lets and expr not in self.names:
                return self.span(self.lets[expr], axes)
            case Op(op="add", args=(a, b)):
                (a0, a1), (b0, b1) = self.span(a, axes), self.span(b, axes)
                return _plus(a0, b0), _plus(a1, b1)
            case Op(op="mul", args=(a, Const(value=n))) | Op(op="mul", args=(Const(value=n), a)) if n > 0:
                low, high = self.span(a, axes)
                return "0" if low == "0" else f"{low} * {n}", f"{high} * {n}"
            case _:
                text = self.text(expr)
                return text, text


def _plus(a: str, b: str) -> str:
    return a if b == "0" else b if a == "0" else f"({a} + {b})"


def _known(guards: tuple[Guard, ...]) -> tuple[str, ...] | None:
    """Return the conditions, or None if the host cannot decide one of them."""
    known = tuple(g for g in guards if g is not _UNKNOWN)
    return known if len(known) == len(guards) else None


def _either(uses: list[tuple[str, ...]]) -> list[str]:
    """Return the condition that one of several accesses is reached; none if one always is."""
    texts = dict.fromkeys(" and ".join(use) for use in uses)
    if "" in texts:
        return []
    return ["(" + " or ".join(f"({text})" for text in texts) + ")"]


def _reach(shape: Sequence[Expr], strides: Sequence[Expr], extents: list[str], steps: list[str]) -> tuple[str, str]:
    """Return how many elements a view needs and the offset of its first; that is "" where it is 0 whatever comes."""
    constant, terms, first = 1, [], []
    for extent, stride, n, step in zip(shape, strides, extents, steps, strict=True):
        if isinstance(extent, Const) and isinstance(stride, Const) and stride.value >= 0:
            constant += (int(extent.value) - 1) * int(stride.value)
        elif step == "1":
            terms.append(n)
            constant -= 1
        elif _is_natural(stride, shape):
            terms.append(f"({n} - 1) * {step}")
        else:
            terms.append(f"max(({n} - 1) * {step}, 0)")
            first.append(f"min(({n} - 1) * {step}, 0)")
    return " + ".join([*terms, *([str(constant)] if constant or not terms else [])]), " + ".join(first)


def _is_natural(stride: Expr, shape: Sequence[Expr]) -> bool:
    """Whether a stride cannot be negative where all extents are positive: made of extents and constants."""
    match stride:
        case Const(value=value):
            return value >= 0
        case Op(op="mul" | "add", args=args):
            return all(_is_natural(a, shape) for a in args)
        case _:
            return stride in shape


__all__ = ["Check", "bounds_check"]
