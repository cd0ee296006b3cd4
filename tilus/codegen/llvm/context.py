"""What emitters share: variables, views and shared tensors of the program being written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tilus.codegen.llvm import casts
from tilus.codegen.llvm.builder import Builder, Value, constant, vector
from tilus.codegen.llvm.lanes import butterfly
from tilus.codegen.llvm.types import is_packed, storage, words
from tilus.dtypes import DataType
from tilus.errors import CodegenError
from tilus.ir.expr import Tensor, Var
from tilus.ir.instructions import AllocShared, GlobalView
from tilus.ir.types import RegisterType
from tilus.layouts import RegisterLayout


@dataclass(slots=True)
class Context:
    """The state of one function.

    Attributes
    ----------
    b : Builder
    scalars : dict
        Address of every scalar variable.
    tiles : dict
        Addresses of the vectors of every register tensor.
    views, shared : dict
        The definitions of global views and shared tensors.
    messages : list of str
        Texts of `assert_`, by fault code less 1.
    loops : list
        Labels of the enclosing loops: (continue, break).
    parts : dict
        Tensors whose lanes hold parts of a sum, with the butterfly that adds them up (see `partial`).
    """

    b: Builder
    scalars: dict[Var, Value] = field(default_factory=dict)
    tiles: dict[Tensor, list[Value]] = field(default_factory=dict)
    views: dict[Tensor, GlobalView] = field(default_factory=dict)
    shared: dict[Tensor, AllocShared] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    loops: list[tuple[str, str]] = field(default_factory=list)
    block_ids: list[Value] = field(default_factory=list)
    parts: dict[Tensor, tuple[int, ...]] = field(default_factory=dict)

    def lanes(self, dtype: DataType) -> str:
        """Return the vector type of stored elements."""
        return vector(self.b.lanes, storage(dtype))

    def slots(self, t: Tensor) -> list[Value]:
        """Return the addresses of a tile's vectors, made on first use."""
        if t not in self.tiles:
            kind, layout = register(t)
            count = words(kind.dtype, layout.local_size) if is_packed(kind.dtype) else layout.local_size
            self.tiles[t] = [self.b.alloca(self.lanes(kind.dtype), t.name) for _ in range(count)]
        return self.tiles[t]

    def read(self, t: Tensor) -> list[Value]:
        """Return a tile's stored elements, one vector per local element (codes, for packed types)."""
        values = self.read_parts(t)
        for step in self.parts.get(t, ()):
            values = [self.b.op("fadd", v, butterfly(self.b, v, step)) for v in values]
        return values

    def read_parts(self, t: Tensor) -> list[Value]:
        """Return what a tile's vectors hold: the elements, or parts of them."""
        kind, layout = register(t)
        stored = [self.b.load(self.lanes(kind.dtype), slot) for slot in self.slots(t)]
        return unpack(self.b, stored, kind.dtype, layout.local_size) if is_packed(kind.dtype) else stored

    def write(self, t: Tensor, elements: Sequence[Value]) -> None:
        """Redefine a tile by its stored elements."""
        dtype = t.type.dtype
        stored = pack(self.b, elements, dtype) if is_packed(dtype) else elements
        for value, slot in zip(stored, self.slots(t), strict=True):
            self.b.store(value, slot)

    def read_words(self, t: Tensor) -> list[Value]:
        """Return a tile's bits as 32-bit words per lane."""
        dtype = t.type.dtype
        if is_packed(dtype):
            return [self.b.load(self.lanes(dtype), slot) for slot in self.slots(t)]
        return to_words(self.b, self.read(t), dtype)

    def write_words(self, t: Tensor, values: Sequence[Value]) -> None:
        """Redefine a tile by its bits."""
        kind, layout = register(t)
        if not is_packed(kind.dtype):
            values = from_words(self.b, values, kind.dtype, layout.local_size)
        for value, slot in zip(values, self.slots(t), strict=True):
            self.b.store(value, slot)


def register(t: Tensor) -> tuple[RegisterType, RegisterLayout]:
    """Return the type and layout of a register tensor of a lowered program."""
    if not isinstance(t.type, RegisterType) or t.type.layout is None:
        raise CodegenError(
            f"{t.name!r} has no register layout", hint="lower the program with passes.pipeline.lower first"
        )
    return t.type, t.type.layout


def unpack(b: Builder, stored: Sequence[Value], dtype: DataType, count: int) -> list[Value]:
    """Return codes from words: a shift and a mask each, two words where a code lies across their border."""
    n, mask = dtype.nbits, (1 << dtype.nbits) - 1
    codes = []
    for i in range(count):
        word, shift = divmod(i * n, 32)
        low = b.op("lshr", stored[word], shift) if shift else stored[word]
        if shift + n > 32:
            low = b.op("or", low, b.op("shl", stored[word + 1], 32 - shift))
        codes.append(b.op("and", low, mask) if shift + n != 32 else low)
    return codes


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
    return [casts.decode(c.b, t.type.dtype, e) for e in (c.read_parts(t) if parts else c.read(t))]


def zero(c: Context, dtype: DataType) -> Value:
    """Return a stored zero in every lane."""
    return constant(c.lanes(dtype), 0)
