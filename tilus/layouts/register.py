"""Register layouts: which thread holds which tensor element in which of its registers.

A register layout maps (thread, local) to a tensor index. Every dimension is factored into *modes*; an ordered list of
modes makes the thread number, another one the local number, most significant first. `Replicated(r)` among the threads
says that r threads hold the same element.

`a * b` is the Kronecker product: every element of `a` becomes a copy of `b`. With T and L the threads and locals of
`b`::

    (a * b)(t, i) = a(t // T, i // L) * b.shape + b(t % T, i % L)

It is associative, `local(1, ..., 1)` is its unit, and `a / b` undoes it. Division is instruction selection: a tile
divides by an instruction's fragment exactly if the instruction can be used for all of it.

A layout is canonical by construction: equal maps are equal objects with equal hashes (see `digits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd, prod
from operator import index as as_int
from typing import TypeAlias

from tilus.errors import LayoutError
from tilus.layouts import digits as dg
from tilus.layouts.digits import Digit, Digits
from tilus.layouts.printer import register_table, register_text


@dataclass(frozen=True, slots=True)
class Replicated:
    """A thread digit that selects nothing: `size` threads hold the same elements."""

    size: int

    def __post_init__(self) -> None:
        if as_int(self.size) < 1:
            raise LayoutError(f"replication needs at least one thread, got {self.size}")

    def __repr__(self) -> str:
        return f"Replicated({self.size})"


SpatialMode: TypeAlias = int | Replicated
Ints: TypeAlias = int | Sequence[int]


@dataclass(frozen=True, slots=True, repr=False)
class RegisterLayout:
    """A map (thread, local) -> index; see the module's text. Any legal fields are accepted and made canonical.

    Parameters
    ----------
    shape : tuple of int
        Extents of the tensor, each at least 1.
    mode_shape : tuple of int
        Sizes of the modes: those of dimension 0, outermost first, then those of dimension 1, and so on.
    spatial_modes : tuple of int or Replicated
        Mode numbers that make the thread number, most significant first.
    local_modes : tuple of int
        Mode numbers that make the local number, most significant first.

    Raises
    ------
    LayoutError
        If the modes do not factor the shape or do not appear exactly once.
    """

    shape: tuple[int, ...]
    mode_shape: tuple[int, ...]
    spatial_modes: tuple[SpatialMode, ...]
    local_modes: tuple[int, ...]
    spatial_digits: Digits = field(init=False, compare=False)
    local_digits: Digits = field(init=False, compare=False)

    def __post_init__(self) -> None:
        shape = _extents(self.shape)
        modes = _modes(shape, _extents(self.mode_shape))
        _check_once(len(modes), self.spatial_modes, self.local_modes)
        spatial_digits = dg.coalesce(
            [dg.replicated_digit(m.size) if isinstance(m, Replicated) else modes[m] for m in self.spatial_modes]
        )
        local_digits = dg.coalesce([modes[m] for m in self.local_modes])
        numbers = _mode_numbers(shape, spatial_digits, local_digits)
        assert numbers is not None, "coalescing keeps every mode"
        for name, value in (
            ("shape", shape),
            ("mode_shape", tuple(digit.size for digit in numbers)),
            ("spatial_modes", tuple(Replicated(d.size) if d.dim is None else numbers[d] for d in spatial_digits)),
            ("local_modes", tuple(numbers[d] for d in local_digits)),
            ("spatial_digits", spatial_digits),
            ("local_digits", local_digits),
        ):
            object.__setattr__(self, name, value)

    # --- what it is -------------------------------------------------------------------------------------------------

    def __hash__(self) -> int:
        return hash((self.shape, self.spatial_digits, self.local_digits))  # named tuples hash faster than `Replicated`

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def num_threads(self) -> int:
        """Number of threads, replicas included."""
        return dg.count(self.spatial_digits)

    @property
    def local_size(self) -> int:
        """Number of elements in each thread."""
        return dg.count(self.local_digits)

    @property
    def replication(self) -> int:
        """Number of threads that hold the same element."""
        return dg.count([digit for digit in self.spatial_digits if digit.dim is None])

    def __call__(self, thread: int, local: int = 0) -> tuple[int, ...]:
        """Return the index of the element that `thread` holds at position `local`."""
        if not (0 <= thread < self.num_threads and 0 <= local < self.local_size):
            raise LayoutError(
                f"{self} has threads 0..{self.num_threads - 1} and locals 0..{self.local_size - 1}, "
                f"got thread {thread}, local {local}"
            )
        index = [0] * self.rank
        dg.index_of(self.spatial_digits, thread, index)
        dg.index_of(self.local_digits, local, index)
        return tuple(index)

    def locate(self, *index: Ints) -> tuple[tuple[int, ...], int]:
        """Return all threads that hold the element at `index`, ascending, and its local number in each of them."""
        point = _unpack(index)
        if len(point) != self.rank or not all(0 <= i < n for i, n in zip(point, self.shape, strict=True)):
            raise LayoutError(f"index {point} lies outside of shape {self.shape}")
        thread = dg.number_of(self.spatial_digits, point)
        threads = tuple(thread + offset for offset in dg.replica_offsets(self.spatial_digits))
        return threads, dg.number_of(self.local_digits, point)

    def contiguous_run(self, dim: int, *, thread_local: bool = True) -> int:
        """Return the length of the aligned runs of consecutive elements along `dim`.

        Parameters
        ----------
        dim : int
            The dimension.
        thread_local : bool
            True: the largest v such that locals [i*v, (i+1)*v) of every thread are consecutive along `dim`, from a
            multiple of v on: the vector width that one thread can move at once. False: how many consecutive
            elements neighbouring threads move together when each moves such a vector.
        """
        dim = _axis(dim, self.rank)
        vector = _run(self.local_digits, dim, 1)
        return vector if thread_local else vector * _run(self.spatial_digits, dim, vector)

    def __str__(self) -> str:
        return register_text(self)

    __repr__ = __str__

    def show(self) -> str:
        """Return a table with `threads:local` for every index."""
        return register_table(self)

    # --- product and quotients --------------------------------------------------------------------------------------

    def __mul__(self, other: RegisterLayout) -> RegisterLayout:
        """Replace every element of this layout by a copy of `other`; ranks are equalised by leading extents 1."""
        if not isinstance(other, RegisterLayout):
            return NotImplemented
        return _product(*_same_rank(self, other))

    def __truediv__(self, other: RegisterLayout) -> RegisterLayout:
        """Return the one x with `self == x * other`; LayoutError if there is none."""
        if not isinstance(other, RegisterLayout):
            return NotImplemented
        whole, inner = _same_rank(self, other)
        shape = _quotient_shape(whole, inner)
        spatial = dg.cut(whole.spatial_digits, inner.num_threads)
        local = dg.cut(whole.local_digits, inner.local_size)
        outer_spatial = spatial and dg.shrink(spatial[0], inner.shape)
        outer_local = local and dg.shrink(local[0], inner.shape)
        quotient = None
        if outer_spatial is not None and outer_local is not None:
            quotient = _assemble(shape, outer_spatial, outer_local)
        if quotient is None or quotient * inner != whole:
            raise LayoutError(f"cannot divide {self} by {other}: its innermost part is a different layout")
        return quotient

    def left_divide(self, other: RegisterLayout) -> RegisterLayout:
        """Return the one x with `self == other * x`; LayoutError if there is none."""
        whole, outer = _same_rank(self, other)
        shape = _quotient_shape(whole, outer)
        spatial = dg.cut(whole.spatial_digits, whole.num_threads // outer.num_threads)
        local = dg.cut(whole.local_digits, whole.local_size // outer.local_size)
        quotient = _assemble(shape, spatial[1], local[1]) if spatial and local else None
        if quotient is None or outer * quotient != whole:
            raise LayoutError(
                f"cannot divide {self} from the left by {other}: its outermost part is a different layout"
            )
        return quotient

    def spatial(self, *shape: int) -> RegisterLayout:
        """Return `self * spatial(*shape)`."""
        return self * spatial(*shape)

    def local(self, *shape: int) -> RegisterLayout:
        """Return `self * local(*shape)`."""
        return self * local(*shape)

    def column_spatial(self, *shape: int) -> RegisterLayout:
        """Return `self * column_spatial(*shape)`."""
        return self * column_spatial(*shape)

    def column_local(self, *shape: int) -> RegisterLayout:
        """Return `self * column_local(*shape)`."""
        return self * column_local(*shape)

    def replicated(self, size: int) -> RegisterLayout:
        """Return `self * replicated(size, self.rank)`."""
        return self * replicated(size, self.rank)

    # --- other shapes -----------------------------------------------------------------------------------------------

    def reduce(self, dims: Ints, keepdims: bool = False) -> RegisterLayout:
        """Return the layout of a reduction's result: thread digits of `dims` replicate, local ones vanish."""
        gone = frozenset(_axis(dim, self.rank) for dim in _unpack((dims,)))
        reduced = _reduced(self, gone)
        return reduced if keepdims else reduced.squeeze(tuple(gone))

    def reduce_to(self, shape: Sequence[int]) -> RegisterLayout:
        """Return the layout of an operand of `shape` that is broadcast to this layout's shape.

        Extents of 1 in `shape` are reduced, leading dimensions that it lacks are removed: every thread that needs an
        element of the result then holds the operand's element.
        """
        target = _extents(shape)
        missing = self.rank - len(target)
        kept = self.shape[max(missing, 0) :]
        if missing < 0 or any(t not in (1, n) for t, n in zip(target, kept, strict=True)):
            raise LayoutError(f"shape {target} does not broadcast to {self.shape}")
        ones = [missing + d for d, t in enumerate(target) if t == 1]
        return self.reduce(ones, keepdims=True).reduce(list(range(missing)))

    def permute(self, *dims: Ints) -> RegisterLayout:
        """Return the layout whose dimension k is this layout's dimension `dims[k]`."""
        order = [_axis(dim, self.rank) for dim in _unpack(dims)]
        if sorted(order) != list(range(self.rank)):
            raise LayoutError(f"expected a permutation of {self.rank} dimensions, got {tuple(order)}")
        new_dim = [order.index(dim) for dim in range(self.rank)]
        return _assembled(
            tuple(self.shape[dim] for dim in order),
            dg.renumber(self.spatial_digits, new_dim),
            dg.renumber(self.local_digits, new_dim),
        )

    def reshape(self, *shape: Ints) -> RegisterLayout:
        """Return the layout of the same elements, in row-major order, under another shape.

        Raises
        ------
        LayoutError
            If the sizes differ, or no register layout has that map (a mode would have to be split unevenly).
        """
        return _reshaped(self, _unpack(shape))

    def squeeze(self, dims: Ints | None = None) -> RegisterLayout:
        """Remove dimensions of extent 1: those of `dims`, or all."""
        ones = [d for d, n in enumerate(self.shape) if n == 1]
        gone = ones if dims is None else [_axis(dim, self.rank) for dim in _unpack((dims,))]
        if any(self.shape[dim] != 1 for dim in gone):
            raise LayoutError(
                f"only dimensions of extent 1 can be squeezed, got dimensions {tuple(gone)} of {self.shape}"
            )
        return self.reshape([n for d, n in enumerate(self.shape) if d not in gone])

    def unsqueeze(self, dims: Ints) -> RegisterLayout:
        """Insert dimensions of extent 1, so that they are dimensions `dims` of the result."""
        new = _unpack((dims,))
        rank = self.rank + len(new)
        places = {_axis(dim, rank) for dim in new}
        if len(places) != len(new):
            raise LayoutError(f"dimensions to insert must differ, got {tuple(new)}")
        old = iter(self.shape)
        return self.reshape([1 if d in places else next(old) for d in range(rank)])


def register_layout(
    shape: Sequence[int],
    mode_shape: Sequence[int],
    spatial_modes: Sequence[SpatialMode],
    local_modes: Sequence[int],
) -> RegisterLayout:
    """Return the canonical layout with these modes; see `RegisterLayout` for the arguments and errors."""
    return RegisterLayout(tuple(shape), tuple(mode_shape), tuple(spatial_modes), tuple(local_modes))


# Layouts are values: what is asked for again is the same object. Compiling one program asks for the same few hundred
# thousands of times.
_kept = lru_cache(maxsize=1 << 14, typed=True)


@_kept
def spatial(*shape: int) -> RegisterLayout:
    """One element per thread, threads in row-major order."""
    return RegisterLayout(shape, shape, tuple(range(len(shape))), ())


@_kept
def local(*shape: int) -> RegisterLayout:
    """All elements in one thread, in row-major order."""
    return RegisterLayout(shape, shape, (), tuple(range(len(shape))))


@_kept
def column_spatial(*shape: int) -> RegisterLayout:
    """One element per thread, threads in column-major order: dimension 0 varies fastest."""
    return RegisterLayout(shape, shape, tuple(reversed(range(len(shape)))), ())


@_kept
def column_local(*shape: int) -> RegisterLayout:
    """All elements in one thread, in column-major order: dimension 0 varies fastest."""
    return RegisterLayout(shape, shape, (), tuple(reversed(range(len(shape)))))


@_kept
def replicated(size: int, rank: int = 1) -> RegisterLayout:
    """One element, shape (1, ..., 1), that `size` threads hold."""
    return RegisterLayout((1,) * rank, (), (Replicated(size),), ())


def concat(a: RegisterLayout, b: RegisterLayout) -> RegisterLayout:
    """Append the dimensions of `b` to those of `a`: every element of `a` becomes a copy of `b`, in new dimensions."""
    first = a.unsqueeze(range(a.rank, a.rank + b.rank))
    return first * b


def auto_local_spatial(num_threads: int, shape: Sequence[int]) -> RegisterLayout:
    """Spread `num_threads` over the last dimensions first; the rest is local and outside, spare threads replicate."""
    if num_threads < 1:
        raise LayoutError(f"expected at least one thread, got {num_threads}")
    rest, threads = num_threads, list(_extents(shape))
    for dim in reversed(range(len(threads))):
        threads[dim] = gcd(rest, threads[dim])
        rest //= threads[dim]
    outer = [n // t for n, t in zip(shape, threads, strict=True)]
    return replicated(rest, len(threads)) * local(*outer) * spatial(*threads)


# --- checks and helpers ---------------------------------------------------------------------------------------------


def _extents(values: Sequence[int]) -> tuple[int, ...]:
    extents = tuple(as_int(value) for value in values)
    if any(extent < 1 for extent in extents):
        raise LayoutError(f"extents are at least 1, got {extents}")
    return extents


def _unpack(values: Sequence[Ints]) -> tuple[int, ...]:
    """Accept both `f(1, 2)` and `f((1, 2))`."""
    if len(values) == 1 and isinstance(values[0], Sequence):
        return tuple(as_int(value) for value in values[0])
    return tuple(as_int(value) for value in values)  # type: ignore[arg-type]  # as_int refuses nested sequences


def _axis(dim: int, rank: int) -> int:
    if not -rank <= dim < rank:
        raise LayoutError(f"dimension {dim} does not exist among {rank}")
    return dim % rank


def _modes(shape: Sequence[int], mode_shape: Sequence[int]) -> list[Digit]:
    """Return each mode as a digit: which dimension it belongs to and how far it steps there."""
    modes: list[Digit] = []
    sizes = iter(mode_shape)
    for dim, extent in enumerate(shape):
        rest = extent
        while rest > 1:
            size = next(sizes, 0)
            if size == 0 or rest % size:
                raise LayoutError(f"modes {tuple(mode_shape)} do not factor shape {tuple(shape)} at dimension {dim}")
            rest //= size
            modes.append(Digit(size, dim, rest))
    left = list(sizes)
    if any(size > 1 for size in left):
        raise LayoutError(f"modes {tuple(mode_shape)} are more than shape {tuple(shape)} has")
    return modes + [Digit(1, None, 0)] * len(left)


def _check_once(num_modes: int, spatial_modes: Sequence[SpatialMode], local_modes: Sequence[int]) -> None:
    used = [as_int(m) for m in (*spatial_modes, *local_modes) if not isinstance(m, Replicated)]
    if sorted(used) != list(range(num_modes)):
        raise LayoutError(
            f"each of the modes 0..{num_modes - 1} must be either spatial or local, and once: "
            f"got spatial {tuple(spatial_modes)}, local {tuple(local_modes)}",
            hint="say Replicated(r), not -r, where r threads hold the same element",
        )


def _mode_numbers(shape: Sequence[int], *digit_lists: Digits) -> dict[Digit, int] | None:
    """Give the digits mode numbers, dimension by dimension, outermost first; None if they do not tile the shape."""
    modes = sorted((d for digits in digit_lists for d in digits if d.dim is not None), key=lambda d: (d.dim, -d.stride))
    reached = list(shape)
    for size, dim, stride in modes:
        assert dim is not None
        if size * stride != reached[dim]:
            return None
        reached[dim] = stride
    if any(stride != 1 for stride in reached):
        return None
    return {digit: number for number, digit in enumerate(modes)}


@_kept
def _product(outer: RegisterLayout, inner: RegisterLayout) -> RegisterLayout:
    return _assembled(
        tuple(m * n for m, n in zip(outer.shape, inner.shape, strict=True)),
        dg.scale(outer.spatial_digits, inner.shape) + inner.spatial_digits,
        dg.scale(outer.local_digits, inner.shape) + inner.local_digits,
    )


@_kept
def _reduced(layout: RegisterLayout, gone: frozenset[int]) -> RegisterLayout:
    return _assembled(
        tuple(1 if d in gone else n for d, n in enumerate(layout.shape)),
        tuple(dg.replicated_digit(digit.size) if digit.dim in gone else digit for digit in layout.spatial_digits),
        tuple(digit for digit in layout.local_digits if digit.dim not in gone),
    )


@_kept
def _reshaped(layout: RegisterLayout, shape: tuple[int, ...]) -> RegisterLayout:
    new = _extents(shape)
    if prod(new) != prod(layout.shape):
        raise LayoutError(f"cannot reshape {layout.shape} to {new}: {prod(layout.shape)} and {prod(new)} elements")
    spatial_digits = dg.reshape(layout.spatial_digits, layout.shape, new)
    local_digits = dg.reshape(layout.local_digits, layout.shape, new)
    if spatial_digits is None or local_digits is None:
        raise LayoutError(
            f"cannot reshape {layout} to {new}: the modes {layout.mode_shape} do not split at its borders"
        )
    return _assembled(new, spatial_digits, local_digits)


@_kept
def _assemble(shape: tuple[int, ...], spatial_digits: Digits, local_digits: Digits) -> RegisterLayout | None:
    """Return the layout with these digits; None if they do not reach every index exactly once per replica."""
    spatial_digits, local_digits = dg.coalesce(spatial_digits), dg.coalesce(local_digits)
    numbers = _mode_numbers(shape, spatial_digits, local_digits)
    if numbers is None:
        return None
    return RegisterLayout(
        shape,
        tuple(digit.size for digit in numbers),
        tuple(Replicated(d.size) if d.dim is None else numbers[d] for d in spatial_digits),
        tuple(numbers[d] for d in local_digits),
    )


def _assembled(shape: tuple[int, ...], spatial_digits: Digits, local_digits: Digits) -> RegisterLayout:
    layout = _assemble(shape, spatial_digits, local_digits)
    assert layout is not None, "the operation keeps a bijection"
    return layout


def _same_rank(a: RegisterLayout, b: RegisterLayout) -> tuple[RegisterLayout, RegisterLayout]:
    rank = max(a.rank, b.rank)
    return _padded(a, rank), _padded(b, rank)


def _padded(a: RegisterLayout, rank: int) -> RegisterLayout:
    """Prepend extents of 1, as products do to equalise ranks."""
    if a.rank == rank:
        return a
    return RegisterLayout((1,) * (rank - a.rank) + a.shape, a.mode_shape, a.spatial_modes, a.local_modes)


def _quotient_shape(whole: RegisterLayout, part: RegisterLayout) -> tuple[int, ...]:
    """Return the shape of a quotient, or say which number does not divide."""
    pairs = [(f"extent {dim}", m, n) for dim, (m, n) in enumerate(zip(whole.shape, part.shape, strict=True))]
    pairs += [("threads", whole.num_threads, part.num_threads), ("locals", whole.local_size, part.local_size)]
    for what, m, n in pairs:
        if m % n:
            raise LayoutError(f"cannot divide {whole} by {part}: {what}: {m} % {n} != 0")
    return tuple(m // n for m, n in zip(whole.shape, part.shape, strict=True))


def _run(digits: Digits, dim: int, stride: int) -> int:
    last = digits[-1] if digits else None
    return last.size if last is not None and last.dim == dim and last.stride == stride else 1
