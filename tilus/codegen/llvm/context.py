"""What emitters share: variables, views and shared tensors of the program being written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tilus.codegen.llvm import casts
from tilus.codegen.llvm.builder import Builder, Value, constant, vector
from tilus.codegen.llvm.fields import joined, placed
from tilus.codegen.llvm.lanes import butterfly
from tilus.codegen.llvm.types import is_packed, storage, words
from tilus.dtypes import DataType
from tilus.errors import CodegenError
from tilus.ir.expr import Tensor, Var
from tilus.ir.instructions import AllocShared, GlobalView
from tilus.ir.types import RegisterType
from tilus.layouts import BitLayout, RegisterLayout

# Vectors of a tile up to which its instructions are unrolled: more than any CPU's 32 registers, because a tile of codes
# or weights is consumed while it is made.
LARGEST = 48


@dataclass(frozen=True, slots=True)
class Memory:
    """Where a tile lies that is read in place, element by element or in words of several elements (see `fields`).

    Attributes
    ----------
    address : callable
        Of what lane 0 has at an index, an i64 for every dimension.
    same : bool
        Whether all lanes have the same; else they have neighbours in memory.
    run : int
        Of words, the dimension along which they have their elements: an index counts words there.
    """

    address: Callable[[Sequence[Value]], Value]
    same: bool
    run: int = -1

    def load(self, b: Builder, element: str, index: Sequence[Value]) -> Value:
        """Load an element or word of every lane."""
        value = b.load(element if self.same else vector(b.lanes, element), self.address(index), 1)
        return b.splat(value) if self.same else value

    def permuted(self, perm: Sequence[int]) -> Memory:
        """Return the place of the transposed tile, whose dimension d is dimension `perm[d]`."""
        back = [perm.index(d) for d in range(len(perm))]
        return Memory(lambda i: self.address([i[d] for d in back]), self.same, perm.index(max(self.run, 0)))


@dataclass(slots=True)
class Deferred:
    """A tile that is made where it is used (see `deferral`).

    Attributes
    ----------
    element : callable
        Makes the element of a local number, as it is stored. Each is made once.
    now : callable
        Makes all of them, for those who cannot ask for one by a constant number.
    group : callable
        Makes a word of the elements of some local numbers (see `fields`), or returns None if that is no easier than to
        put them together.
    elements, words : Memory, optional
        Where they lie, if they lie in memory: for those whose indices are not constant.
    """

    element: Callable[[int], Value]
    now: Callable[[], None]
    group: Callable[[tuple[int, ...]], Value | None] = lambda numbers: None
    elements: Memory | None = None
    words: Memory | None = None


@dataclass(slots=True)
class Context:
    """The state of one function.

    Attributes
    ----------
    b : Builder
    scalars : dict
        Address of every scalar variable.
    tiles : dict
        Address of the vectors of every register tensor.
    addresses : dict
        Address of single vectors.
    views, shared : dict
        The definitions of global views and shared tensors.
    messages : list of str
        Texts of `assert_`, by fault code less 1.
    loops : list
        Labels of the enclosing loops: (continue, break).
    parts : dict
        Tensors whose lanes hold parts of a sum, with the butterfly that adds them up (see `partial`).
    deferrable, deferred : frozenset, dict
        Tiles that may be made where they are used, and those of them that are not made yet (see `deferral`).
    single : frozenset
        Tiles with one definition.
    bits : dict
        Where the codes of a tile lie in its words, if not in a stream.
    """

    b: Builder
    scalars: dict[Var, Value] = field(default_factory=dict)
    tiles: dict[Tensor, Value] = field(default_factory=dict)
    addresses: dict[tuple[Tensor, int], Value] = field(default_factory=dict)
    views: dict[Tensor, GlobalView] = field(default_factory=dict)
    shared: dict[Tensor, AllocShared] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    loops: list[tuple[str, str]] = field(default_factory=list)
    block_ids: list[Value] = field(default_factory=list)
    parts: dict[Tensor, tuple[int, ...]] = field(default_factory=dict)
    deferrable: frozenset[Tensor] = frozenset()
    deferred: dict[Tensor, Deferred] = field(default_factory=dict)
    single: frozenset[Tensor] = frozenset()
    bits: dict[Tensor, BitLayout] = field(default_factory=dict)

    def lanes(self, dtype: DataType) -> str:
        """Return the vector type of stored elements."""
        return vector(self.b.lanes, storage(dtype))

    def defer(self, t: Tensor, element: Callable[[int], Value], now: Callable[[], None], **more: Any) -> None:
        """Make a tile later; see `Deferred`."""
        if "group" in more:
            more["group"] = cache(more["group"])
        self.deferred[t] = Deferred(cache(element), now, **more)

    def make(self, *tiles: Tensor) -> None:
        """Make tiles that were deferred, all of their elements."""
        for t in tiles:
            if t in self.deferred:
                self.deferred.pop(t).now()

    def array(self, t: Tensor) -> Value:
        """Return the address of a tile's vectors, one after the other.

        LLVM makes variables of them (SROA) if every access is by a constant number. A large tile whose lanes all hold
        the same is an array of scalars.
        """
        self.make(t)
        if t not in self.tiles:
            kind, layout = register(t)
            count = words(kind.dtype, layout.local_size) if is_packed(kind.dtype) else layout.local_size
            self.tiles[t] = self.b.alloca(f"[{count} x {self.held(t)}]", t.name, 64)
        return self.tiles[t]

    def in_memory(self, t: Tensor) -> bool:
        """Whether a tile has more vectors than a CPU has registers for, so that instructions on it are loops."""
        kind, layout = register(t)
        return not is_packed(kind.dtype) and layout.local_size > LARGEST

    def held(self, t: Tensor) -> str:
        """Return the type that a tile is an array of: vectors, or scalars if it is large and lanes hold the same."""
        replicated = all(d.dim is None for d in register(t)[1].spatial_digits)
        if replicated and self.in_memory(t) and t not in self.parts:
            return storage(t.type.dtype)
        return self.lanes(t.type.dtype)

    def address(self, t: Tensor, number: Value | int) -> Value:
        """Return the address of one vector of a tile; those by constant number are made once."""
        if isinstance(number, Value):
            return self.b.gep(self.held(t), self.array(t), number)
        self.make(t)
        if (t, number) not in self.addresses:
            self.addresses[t, number] = self.b.entry_gep(self.held(t), self.array(t), number)
        return self.addresses[t, number]

    def load(self, t: Tensor, number: Value | int) -> Value:
        """Return one vector of a tile, as it is held: an element, a part of one, or a word of codes."""
        value = self.b.load(self.held(t), self.address(t, number))
        return value if value.type.startswith("<") else self.b.splat(value)

    def put(self, t: Tensor, number: Value | int, value: Value) -> None:
        """Redefine one vector of a tile."""
        if not self.held(t).startswith("<"):
            value = self.b.extract(value, 0)
        self.b.store(value, self.address(t, number))

    def get(self, t: Tensor, number: Value | int, *, parts: bool = False) -> Value:
        """Return one vector of stored elements, by a number that need not be constant; `parts` if parts will do."""
        value = self.load(t, number)
        for step in () if parts else self.parts.get(t, ()):
            value = self.b.op("fadd", value, butterfly(self.b, value, step))
        return value

    def read(self, t: Tensor, *, parts: bool = False) -> Elements:
        """Return a tile's stored elements, one vector per local element (codes, for packed types)."""
        return Elements(self, t, parts)

    def element(self, t: Tensor, number: int, word: Callable[[int], Value], *, parts: bool = False) -> Value:
        """Return one stored element; `word` gives the tile's words, should it be packed."""
        if t in self.deferred:
            return self.deferred[t].element(number)
        if not is_packed(t.type.dtype):
            return self.get(t, number, parts=parts)
        if t in self.bits:
            return placed(self.b, word, self.bits[t], [number])
        return code(self.b, word, t.type.dtype, number)

    def group(self, t: Tensor, numbers: tuple[int, ...]) -> Value:
        """Return a word of 2 elements of up to 16 bits, or of 4 of up to 8; see `fields`."""
        if t in self.deferred:
            found = self.deferred[t].group(numbers)
            if found is not None:
                return found
        elif t in self.bits:
            return placed(self.b, lambda i: self.load(t, i), self.bits[t], numbers)
        elements = self.read(t)
        return joined(self.b, [elements[i] for i in numbers])

    def write(self, t: Tensor, elements: Sequence[Value]) -> None:
        """Redefine a tile by its stored elements."""
        dtype = t.type.dtype
        for number, value in enumerate(pack(self.b, elements, dtype) if is_packed(dtype) else elements):
            self.put(t, number, value)

    def read_words(self, t: Tensor) -> list[Value]:
        """Return a tile's bits as 32-bit words per lane, codes in a stream."""
        kind, layout = register(t)
        if t in self.bits:
            return pack(self.b, list(self.read(t)), kind.dtype)
        if is_packed(kind.dtype):
            return [self.load(t, i) for i in range(words(kind.dtype, layout.local_size))]
        count = 32 // kind.dtype.nbits
        if count > 1 and layout.local_size % count == 0:
            return [self.group(t, tuple(range(i, i + count))) for i in range(0, layout.local_size, count)]
        return to_words(self.b, self.read(t), kind.dtype)

    def write_words(self, t: Tensor, values: Sequence[Value]) -> None:
        """Redefine a tile by its bits."""
        kind, layout = register(t)
        if not is_packed(kind.dtype):
            values = from_words(self.b, values, kind.dtype, layout.local_size)
        for number, value in enumerate(values):
            self.put(t, number, value)


class Elements(Sequence[Value]):
    """The stored elements of a tile as they are now, each loaded when it is first asked for."""

    def __init__(self, c: Context, t: Tensor, parts: bool) -> None:
        self._c, self._t, self._parts = c, t, parts
        self._known: dict[int, Value] = {}
        self._words: dict[int, Value] = {}

    def __len__(self) -> int:
        return register(self._t)[1].local_size

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        if number not in self._known:
            self._known[number] = self._c.element(self._t, number, self._word, parts=self._parts)
        return self._known[number]

    def _word(self, number: int) -> Value:
        if number not in self._words:
            self._words[number] = self._c.load(self._t, number)
        return self._words[number]


def register(t: Tensor) -> tuple[RegisterType, RegisterLayout]:
    """Return the type and layout of a register tensor of a lowered program."""
    if not isinstance(t.type, RegisterType) or t.type.layout is None:
        raise CodegenError(
            f"{t.name!r} has no register layout", hint="lower the program with passes.pipeline.lower first"
        )
    return t.type, t.type.layout


def unpack(b: Builder, stored: Sequence[Value], dtype: DataType, count: int) -> list[Value]:
    """Return codes from words."""
    return [code(b, stored.__getitem__, dtype, i) for i in range(count)]


def code(b: Builder, word: Callable[[int], Value], dtype: DataType, number: int) -> Value:
    """Return a code from words: by a shift and a mask, from two words where it lies across their border."""
    n = dtype.nbits
    first, shift = divmod(number * n, 32)
    low = b.op("lshr", word(first), shift) if shift else word(first)
    if shift + n > 32:
        low = b.op("or", low, b.op("shl", word(first + 1), 32 - shift))
    return b.op("and", low, (1 << n) - 1) if shift + n != 32 else low


def pack(b: Builder, codes: Sequence[Value], dtype: DataType) -> list[Value]:
    """Return words from codes: the reverse of `unpack`."""
    n = dtype.nbits
    stored: list[Value | None] = [None] * words(dtype, len(codes))

    def merge(word: int, bits: Value) -> None:
        old = stored[word]
        stored[word] = bits if old is None else b.op("or", old, bits)

    for i, code in enumerate(codes):
        word, shift = divmod(i * n, 32)
        merge(word, b.op("shl", code, shift) if shift else code)
        if shift + n > 32:
            merge(word + 1, b.op("lshr", code, 32 - shift))
    return [w for w in stored if w is not None]


def to_words(b: Builder, elements: Sequence[Value], dtype: DataType) -> list[Value]:
    """Return the bits of elements of 8 bits and more as 32-bit words per lane."""
    word, n = vector(b.lanes, "i32"), dtype.nbits
    bits = [b.convert("bitcast", e, vector(b.lanes, f"i{n}")) for e in elements]
    if n == 32:
        return bits
    if n == 64:
        return [b.convert("trunc", half, word) for e in bits for half in (e, b.op("lshr", e, 32))]
    return pack(b, [b.convert("zext", e, word) for e in bits], dtype)


def from_words(b: Builder, stored: Sequence[Value], dtype: DataType, count: int) -> list[Value]:
    """Return elements of 8 bits and more from their bits: the reverse of `to_words`."""
    n = dtype.nbits
    raw = vector(b.lanes, f"i{n}")
    if n == 64:
        wide = [b.convert("zext", w, raw) for w in stored]
        bits = [b.op("or", low, b.op("shl", high, 32)) for low, high in zip(wide[::2], wide[1::2], strict=True)]
    else:
        codes = stored if n == 32 else unpack(b, stored, dtype, count)
        bits = [b.convert("trunc", c, raw) for c in codes]
    return [b.convert("bitcast", e, vector(b.lanes, storage(dtype))) for e in bits]


def compute_values(c: Context, t: Tensor, *, parts: bool = False) -> list[Value]:
    """Return a tile's elements in their compute type; `parts` if parts of them will do."""
    return [casts.decode(c.b, t.type.dtype, e) for e in c.read(t, parts=parts)]


def zero(c: Context, dtype: DataType) -> Value:
    """Return a stored zero in every lane."""
    return constant(c.lanes(dtype), 0)
