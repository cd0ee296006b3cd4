"""What emitters share while one kernel is written: names, the statements so far, helper functions in use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda import ptx as rows
from tilus.codegen.cuda.cpp import Call, Expr, Name, Operand, Stmt
from tilus.errors import CodegenError, InternalError
from tilus.ir.expr import Tensor, Var
from tilus.ir.target import Target
from tilus.ir.types import RegisterType, SharedType
from tilus.layouts import BitLayout, RegisterLayout, SharedLayout

if TYPE_CHECKING:
    from tilus.codegen.cuda.bank_tables import BankTable
    from tilus.codegen.cuda.ring import Ring

_ALIGNMENT = 16  # of what the emitters put behind the shared tensors of a program
# Words of C++ and of CUDA, and names that generated code uses itself.
_TAKEN = """
    alignas alignof and asm auto bool break case catch char class const constexpr continue decltype default
    delete do double else enum explicit export extern false float for friend goto if inline int long mutable
    namespace new not noexcept nullptr operator or private protected public register return short signed sizeof
    static struct switch template this throw true try typedef typeid typename union unsigned using virtual void
    volatile wchar_t while xor u8 u16 u32 u64 i32 i64 pointer tid lane smem smem_bytes main dim3 threadIdx
    blockIdx blockDim gridDim warpSize printf half assert fma fmaf abs min max exp exp2 log log2 sqrt rsqrt sin
    cos tanh erf floor ceil rint fmin fmax fabs expf exp2f logf log2f sqrtf rsqrtf sinf cosf tanhf erff floorf
    ceilf rintf fminf fmaxf fabsf i store_bits load_bits add_bf16
"""
_KEYWORDS = frozenset(re.findall(r"\w+", _TAKEN))
# What generated functions begin with, and what C++ and its compilers keep for themselves.
_GENERATED = re.compile(r"(ptx|cast|decode|encode|table|floor|odd|extreme|digit|ring)_|_|.*__")


def place_behind(nbytes: int) -> int:
    """Return the byte of shared memory from which on something may lie behind what takes the first ones."""
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


class Names:
    """Gives every variable a C++ name of its own."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def fresh(self, wanted: str) -> str:
        """Return a name that nothing else has, as `wanted` as possible."""
        base = re.sub(r"\W", "_", wanted, flags=re.ASCII) or "v"
        if base in _KEYWORDS or _GENERATED.match(base) or base[0].isdigit():
            base = "v_" + re.sub("_+", "_", base).strip("_")
        name, count = base, 0
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._taken.add(name)
        return name

    def reserve(self, name: str) -> str:
        """Take a name that the generator has chosen itself."""
        if name in self._taken:
            return self.fresh(name + "_x")
        self._taken.add(name)
        return name


@dataclass(frozen=True, slots=True)
class View:
    """A global view: its pointer, and extents and strides as they were when it was made, with their types."""

    pointer: Var
    extents: tuple[Expr, ...]
    strides: tuple[Expr, ...]
    wide: tuple[bool, ...]


class Context:
    """One kernel in the making.

    Parameters
    ----------
    target : Target
    num_threads : int
    shared_bytes : int
        What the program's own shared memory takes; scratch of the emitters lies behind it.
    """

    def __init__(self, target: Target, num_threads: int, shared_bytes: int) -> None:
        self.target = target
        self.num_threads = num_threads
        self.names = Names()
        self.variables: dict[Var | Tensor, str] = {}
        self.views: dict[Tensor, View] = {}
        self.shared_offsets: dict[Tensor, int] = {}
        self.not_negative: frozenset[Var] = frozenset()
        self.functions: dict[str, cpp.Function] = {}
        self.tables: dict[str, cpp.Table] = {}
        self.bank_tables: dict[str, BankTable] = {}
        self.ring: Ring | None = None  # of a kernel with a producer
        self.is_producer = False  # whether the producer's code is being written
        self.cluster = 1  # blocks
        self.dependent = False  # whether the kernel waits for earlier ones itself
        self.bit_layouts: dict[tuple[BitLayout, tuple[int, ...]], int] = {}
        self.digits: dict[tuple[int, int], str] = {}
        self.held: dict[Expr, str] = {}  # see `of_thread`
        self.loops = 0  # around what is being written
        self.scratch_offset = place_behind(shared_bytes)
        self.scratch_bytes = 0
        self._bodies: list[list[Stmt]] = [[]]

    # --- statements -------------------------------------------------------------------------------------------------

    def emit(self, *statements: Stmt) -> None:
        """Add statements."""
        self._bodies[-1].extend(statements)

    @contextmanager
    def body(self) -> Iterator[list[Stmt]]:
        """Collect what is emitted inside into a list of its own."""
        statements: list[Stmt] = []
        self._bodies.append(statements)
        try:
            yield statements
        finally:
            self._bodies.pop()

    @contextmanager
    def block(self) -> Iterator[None]:
        """Put what is emitted inside into braces, so that its names end there."""
        with self.body() as statements:
            yield
        if any(isinstance(s, cpp.Declare) for s in statements):
            self.emit(cpp.Block(tuple(statements)))
        else:
            self.emit(*statements)

    @contextmanager
    def where(self, condition: Expr) -> Iterator[None]:
        """Guard what is emitted inside."""
        with self.body() as statements:
            yield
        if condition == cpp.TRUE:
            self.emit(*statements)
        elif condition != cpp.FALSE:
            self.emit(cpp.If(condition, tuple(statements)))

    def constant(self, type_: str, hint: str, value: Expr) -> Expr:
        """Name a value that is used more than once; literals and names stay as they are."""
        if isinstance(value, cpp.Int | cpp.Name):
            return value
        name = self.names.fresh(hint)
        self.emit(cpp.Declare(type_, name, value, constant=True))
        return Name(name)

    def array(self, hint: str, words: int) -> Name:
        """Declare an array of registers."""
        name = self.names.fresh(hint)
        self.emit(cpp.Declare("u32", name, extent=max(words, 1)))
        return Name(name)

    # --- functions --------------------------------------------------------------------------------------------------

    def ptx(self, row: str | rows.Ptx, *args: Operand) -> Call:
        """Return a call of a PTX instruction, and have its function printed."""
        if isinstance(row, str):
            row = rows.TABLE[row]
        if row.capability > self.target.capability:
            raise CodegenError(
                f"{row.template.split(' ')[0]} needs compute capability {row.capability / 10:.1f}, the target is "
                f"{self.target.name}"
            )
        if row.function not in self.functions:
            self.functions[row.function] = rows.device_function(row)
        return cpp.call(row.function, *args)

    def do(self, row: str | rows.Ptx, *args: Operand) -> None:
        """Emit a PTX instruction for its effect."""
        self.emit(cpp.Do(self.ptx(row, *args)))

    def has(self, row: str) -> bool:
        """Whether the target has a PTX instruction."""
        return rows.TABLE[row].capability <= self.target.capability

    def add_function(self, function: cpp.Function) -> str:
        """Have a function printed, once; return its name."""
        known = self.functions.setdefault(function.name, function)
        if known != function:
            raise InternalError(f"two functions are called {function.name}")
        return function.name

    def add_table(self, table: cpp.Table) -> Name:
        """Have a constant table printed, once; return its name."""
        known = self.tables.setdefault(table.name, table)
        if known != table:
            raise InternalError(f"two tables are called {table.name}")
        return Name(table.name)

    # --- variables --------------------------------------------------------------------------------------------------

    def declare(self, var: Var | Tensor) -> str:
        """Give a variable its C++ name, once."""
        if var not in self.variables:
            self.variables[var] = self.names.fresh(var.name)
        return self.variables[var]

    def name(self, var: Var | Tensor) -> Name:
        """Return the C++ name of a variable."""
        return Name(self.declare(var))

    def scratch(self, nbytes: int) -> Expr:
        """Return the shared address of scratch space; a barrier must stand before its first use each time."""
        self.scratch_bytes = max(self.scratch_bytes, nbytes)
        return Name("smem") + self.scratch_offset

    # --- threads ----------------------------------------------------------------------------------------------------

    @property
    def block_threads(self) -> int:
        """Threads of a block, the producer's among them."""
        return self.num_threads if self.ring is None else self.ring.threads

    def thread_digit(self, weight: int, size: int) -> Expr:
        """Return `tid / weight % size`, computed once at the head of the kernel."""
        if size == 1 or weight >= self.num_threads:
            return cpp.ZERO
        if weight == 1 and size >= self.block_threads:
            return Name("tid")
        key = weight, size
        if key not in self.digits:
            self.digits[key] = self.names.reserve(f"digit_{weight}_{size}")
        return Name(self.digits[key])

    def of_thread(self, value: Expr) -> Expr:
        """Return a value of the thread's digits that a loop uses, computed once at the head of the kernel.

        ptxas would compute it anew in every trip to save a register. What a shuffle brings, it can only keep: each lane
        has it from itself.
        """
        if not self.loops or isinstance(value, cpp.Int):
            return value
        if value not in self.held:
            self.held[value] = self.names.fresh("own")
        return Name(self.held[value])

    @contextmanager
    def loop(self) -> Iterator[None]:
        """Say that what is emitted inside is in a loop."""
        self.loops += 1
        try:
            yield
        finally:
            self.loops -= 1

    def head(self) -> list[Stmt]:
        """Return the declarations of the digits in use, and of what is made of them."""
        statements: list[Stmt] = []
        for (weight, size), name in sorted(self.digits.items()):
            value = Name("tid") // weight
            value = value if weight * size >= self.block_threads else value % size
            statements.append(cpp.Declare("u32", name, value, constant=True))
        for own, name in self.held.items():
            value = cpp.call("__shfl_sync", cpp.bits(0xFFFFFFFF), own, Name("tid"))
            statements.append(cpp.Declare("u32", name, value, constant=True))
        return statements


def register(tensor: Tensor) -> RegisterType:
    """Return the type of a register tensor."""
    if not isinstance(tensor.type, RegisterType):
        raise InternalError(f"{tensor.name} is no register tensor")
    return tensor.type


def layout_of(tensor: Tensor) -> RegisterLayout:
    """Return the layout of a register tensor."""
    layout = register(tensor).layout
    if layout is None:
        raise CodegenError(
            f"{tensor.name!r} has no layout", hint="lower the program first: passes.pipeline.lower(program, target)"
        )
    return layout


def shared(tensor: Tensor) -> tuple[SharedType, SharedLayout]:
    """Return the type and the layout of a shared tensor."""
    if not isinstance(tensor.type, SharedType) or tensor.type.layout is None:
        raise CodegenError(
            f"{tensor.name!r} has no shared layout",
            hint="lower the program first: passes.pipeline.lower(program, target)",
        )
    return tensor.type, tensor.type.layout


def pairs(count: int) -> Sequence[tuple[int, int]]:
    """Return the elements that share each 32-bit word of a 16-bit tensor; the last may stand alone, twice."""
    return [(i, min(i + 1, count - 1)) for i in range(0, count, 2)]
