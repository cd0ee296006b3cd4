"""Which layouts the operands of a matrix product may have.

A product `out[m, n] = sum_k a[m, k] * b[k, n] + c[m, n]` done by T threads is one layout over (m, n, k): which thread
multiplies which triple. Its operands hold what their threads need, so they are its reductions: a along n, b along m,
c along k. Threads that share an (m, n) but split k hold parts of the sum; replicas in (m, n, k) do the same work.

With tensor cores the triples are whole fragments and the threads whole warps, and k is never split. In a batch of
products one more dimension, the first of all operands, says which: threads are spread over it before all else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, prod
from typing import TypeAlias

from tilus.errors import LayoutError
from tilus.ir.atoms import MMA_ATOMS, MmaAtom
from tilus.ir.target import Target
from tilus.ir.types import RegisterType
from tilus.layouts import (
    Digit,
    RegisterLayout,
    Replicated,
    column_spatial,
    local,
    register_layout,
    replicated,
    spatial,
)
from tilus.layouts.digits import Digits

M, N, K, BATCH = 0, 1, 2, 3  # dimensions of the layout over the triples
OPERANDS = ((M, K), (K, N), (M, N))  # of a, b and c, behind the batch
Extents: TypeAlias = "tuple[int, int, int, tuple[int, ...]]"  # m, n, k, and of the batch if there is one


@dataclass(frozen=True, slots=True)
class DotLayouts:
    """Layouts of the operands of one product; `c` is that of the result too.

    `work` is about how many instructions a thread runs.
    """

    atom: str
    a: RegisterLayout
    b: RegisterLayout
    c: RegisterLayout
    work: float = 0


def product_extents(a: RegisterType, b: RegisterType) -> Extents:
    """Return the extents of a product."""
    return a.shape[-2], b.shape[-1], a.shape[-1], a.shape[:-2]


def mma_atoms(a: RegisterType, b: RegisterType, c: RegisterType, target: Target) -> list[MmaAtom]:
    """Return the tensor-core instructions of a target that fit the types and divide the extents of a product."""
    m, n, k, _ = product_extents(a, b)
    return [
        atom
        for atom in MMA_ATOMS
        if target.kind == "cuda" and atom.capability <= target.capability
        if (atom.dtype, atom.acc) == (a.dtype, c.dtype)
        if all(extent % step == 0 for extent, step in zip((m, n, k), atom.shape, strict=True))
    ]


def mma_operands(outer: RegisterLayout, atom: MmaAtom, k: int) -> DotLayouts:
    """Return the layouts for warps spread over the fragments of the result as `outer` says; `k` fragments along k."""
    lead, fragments = (1,) * (outer.rank - 2), atom.fragments(outer.rank)
    a = outer.reduce([-1], keepdims=True).local(*lead, 1, k) * fragments[0]
    b = outer.reduce([-2], keepdims=True).local(*lead, k, 1) * fragments[1]
    c = outer * fragments[2]
    products = c.local_size // atom.c.local_size * k
    # Between equals warps along m, so that a whole row of the result lies in one warp.
    work = 8 * products + (a.local_size + b.local_size) / 2 + outer.reduce([-1], keepdims=True).replication / 1024
    return DotLayouts(atom.name, a, b, c, work)


def mma_choices(
    m: int, n: int, k: int, num_warps: int, atom: MmaAtom, batch: Sequence[int] = ()
) -> Iterator[DotLayouts]:
    """Yield every way to spread warps over the batch, then in a grid over the result, as few replicas as possible."""
    apart = gcd(prod(batch), num_warps)
    num_warps //= apart
    tiles_m, tiles_n, tiles_k = (extent // step for extent, step in zip((m, n, k), atom.shape, strict=True))
    pairs = [(p, q) for p in _divisors(num_warps) for q in _divisors(num_warps // p)]
    pairs = [(p, q) for p, q in pairs if tiles_m % p == 0 and tiles_n % q == 0]
    most = max(p * q for p, q in pairs)
    for p, q in pairs:
        if p * q == most:
            spare, tile = replicated(num_warps // most, 2), local(tiles_m // p, tiles_n // q)
            for grid in (spatial(p, q), column_spatial(p, q)):
                yield mma_operands(_in_batch(spare * grid * tile, batch, apart, 0), atom, tiles_k)


def _in_batch(one: RegisterLayout, batch: Sequence[int], apart: int, dim: int) -> RegisterLayout:
    """Return the layout of a batch, a dimension before `dim`, over whose first extent `apart` times the threads go."""
    for extent in batch:
        unit = [1] * one.rank
        spread, rest = ((*unit[:dim], size, *unit[dim:]) for size in (apart, extent // apart))
        one = spatial(*spread) * local(*rest) * one.unsqueeze(dim)
    return one


def mma_from(
    known: RegisterLayout, operand: int, m: int, n: int, k: int, atom: MmaAtom, batch: Sequence[int] = ()
) -> Iterator[DotLayouts]:
    """Yield the choice that leaves operand 0 (a), 1 (b) or 2 (c) where it is, if that is made of fragments."""
    try:
        outer = known / atom.fragments(known.rank)[operand]
    except LayoutError:
        return
    tiles, lead = (*batch, m // atom.shape[M], n // atom.shape[N]), len(batch)
    if operand < 2:
        k_dim, missing = (lead + 1, lead + N) if operand == 0 else (lead, lead + M)
        if any(d.dim == k_dim for d in outer.spatial_digits):
            return
        flat = outer.reduce([k_dim], keepdims=True)
        warps, rest = _spread_replicas(flat.spatial_digits, missing, tiles[missing])
        outer = from_digits(tiles, warps, (*flat.local_digits, Digit(rest, missing, 1)))
    yield mma_operands(outer, atom, k // atom.shape[K])


def fma_operands(triples: RegisterLayout, target: Target, *, held: bool = False) -> DotLayouts:
    """Return the layouts for threads spread over the triples; `held` if `a` is in registers in this layout already."""
    lead = range(2, triples.rank - 1)  # where a batch is, once a dimension is gone
    a, b = triples.reduce([N]).permute(*lead, 0, 1), triples.reduce([M]).permute(*lead, 1, 0)
    c = triples.reduce([K]).permute(*lead, 0, 1)
    split = prod(d.size for d in triples.spatial_digits if d.dim == K)
    along_m = any(d.dim == M for d in triples.spatial_digits)
    # SIMD lanes read b best along n and a as broadcasts or along k; along m a is read one by one.
    rows = a.local_size * (target.lanes if target.kind == "cpu" and along_m and not held else 1)
    columns = b.local_size * (4 if target.kind == "cpu" and split > 1 else 1)
    # A CPU puts sums over lanes off to the end of the loop; what stays is that scaling and adding results costs more
    # vectors, the fewer lanes are spread over them.
    sums = c.local_size * (3 if target.kind == "cpu" else 4 * (split.bit_length() - 1))
    return DotLayouts("fma", a, b, c, triples.local_size + sums + rows + columns)


def fma_choices(
    m: int, n: int, k: int, target: Target, num_threads: int, batch: Sequence[int] = ()
) -> Iterator[DotLayouts]:
    """Yield ways to spread threads over (m, n, k): for a GPU in two dimensions, for SIMD lanes along n first."""
    apart = gcd(prod(batch), num_threads // target.lanes)
    num_threads //= apart
    most_m = gcd(m, num_threads)
    for tm in _divisors(most_m):
        for tn in _divisors(gcd(n, num_threads // tm)):
            spare = num_threads // (tm * tn)
            tk = spare if k % spare == 0 else 1
            grid = _grid((m, n, k), (tm, tn, tk), num_threads)
            yield fma_operands(_in_batch(grid, batch, apart, BATCH), target)


def _grid(extents: Sequence[int], threads: Sequence[int], num_threads: int) -> RegisterLayout:
    """Return a grid of threads over (m, n, k), k fastest, each with elements a grid apart; spare ones replicate."""
    rm, rn, rk = (extent // t for extent, t in zip(extents, threads, strict=True))
    locals_ = local(rm, 1, 1) * local(1, 1, rk) * local(1, rn, 1)
    return replicated(num_threads // prod(threads), 3) * locals_ * spatial(*threads)


def fma_from(
    known: RegisterLayout, operand: int, m: int, n: int, k: int, target: Target, batch: Sequence[int] = ()
) -> DotLayouts:
    """Return the choice that leaves operand 0 (a), 1 (b) or 2 (c) where it is.

    The dimension that it lacks is spread over its replicas as far as that divides; the rest is local.
    """
    extents, dims = (m, n, k, *batch), (BATCH,) * len(batch) + OPERANDS[operand]
    missing = (N, M, K)[operand]
    threads, rest = _spread_replicas(_renumbered(known.spatial_digits, dims), missing, extents[missing])
    kept = _renumbered(known.local_digits, dims)
    # Locals in the order batch, m, k, n keep the rows of a, of b and of c in order.
    place = sum(d.dim == BATCH for d in kept) if missing == M else len(kept)
    while missing == K and place and kept[place - 1].dim == N:
        place -= 1
    kept.insert(place, Digit(rest, missing, 1))
    return fma_operands(from_digits(extents, threads, kept), target, held=operand == 0)


def _renumbered(digits: Digits, dims: Sequence[int]) -> list[Digit]:
    return [d if d.dim is None else d._replace(dim=dims[d.dim]) for d in digits]


def _spread_replicas(digits: Sequence[Digit], dim: int, extent: int) -> tuple[list[Digit], int]:
    """Let replicated digits count along `dim` as far as they divide its extent; return also what is left of it."""
    spread: list[Digit] = []
    for digit in digits:
        taken = gcd(digit.size, extent) if digit.dim is None else 1
        extent //= taken
        spread += [digit._replace(size=digit.size // taken), Digit(taken, dim, extent)]
    return spread, extent


def from_digits(shape: tuple[int, ...], thread: Sequence[Digit], locals_: Sequence[Digit]) -> RegisterLayout:
    """Return the layout whose thread and local numbers have these digits."""
    thread, locals_ = [d for d in thread if d.size > 1], [d for d in locals_ if d.size > 1]
    modes = sorted((d for d in (*thread, *locals_) if d.dim is not None), key=lambda d: (d.dim, -d.stride))
    number = {digit: i for i, digit in enumerate(modes)}
    return register_layout(
        shape,
        [d.size for d in modes],
        [Replicated(d.size) if d.dim is None else number[d] for d in thread],
        [number[d] for d in locals_],
    )


# --- is it so? ------------------------------------------------------------------------------------------------------


def matches_mma(atom: MmaAtom, a: RegisterLayout, b: RegisterLayout, c: RegisterLayout) -> bool:
    """Whether the layouts of a product are fragments of `atom`, for warps spread in one way over all three."""
    try:
        outer = c / atom.fragments(c.rank)[2]
        if a.shape[-1] % atom.shape[K]:
            return False
        wanted = mma_operands(outer, atom, a.shape[-1] // atom.shape[K])
    except LayoutError:
        return False
    return (a, b) == (wanted.a, wanted.b)


_WHERE = ((M, None, M), (None, N, N), (K, K, None), (BATCH, BATCH, BATCH), (None, None, None))


def matches_fma(a: RegisterLayout, b: RegisterLayout, c: RegisterLayout) -> bool:
    """Whether the layouts of a product are reductions of one layout over (m, n, k).

    Every digit of the thread number must then count along m in a and c, along n in b and c, along k in a and b, along
    the batch in all three, or replicate in all three. Threads either split k or repeat one another: with both, sums
    could not be told apart.
    """
    if not a.num_threads == b.num_threads == c.num_threads:
        return False
    lead = (BATCH,) * (c.rank - 2)
    layouts = zip((a, b, c), OPERANDS, strict=True)
    refined = _refined([_renumbered(layout.spatial_digits, lead + dims) for layout, dims in layouts])
    if refined is None:
        return False
    kinds = set()
    for in_a, in_b, in_c in zip(*refined, strict=True):
        held = {d for d in (in_a, in_b, in_c) if d.dim is not None}
        where = tuple(d.dim for d in (in_a, in_b, in_c))
        if len(held) > 1 or where not in _WHERE:
            return False
        kinds.add(where)
    return not {(K, K, None), (None, None, None)} <= kinds


def _refined(lists: Sequence[Sequence[Digit]]) -> list[list[Digit]] | None:
    """Split digits of several thread numbers at the same places; None if a place is inside of a digit unevenly."""
    borders: set[int] = set()
    for digits in lists:
        weight = 1
        for digit in reversed(digits):
            weight *= digit.size
            borders.add(weight)
    refined = []
    for digits in lists:
        pieces: list[Digit] = []
        weight = 1
        for size, dim, stride in reversed(digits):
            inside = [weight, *sorted(x for x in borders if weight < x < weight * size), weight * size]
            for low, high in pairwise(inside):
                if high % low or low % weight:
                    return None
                pieces.insert(0, Digit(high // low, dim, stride * (low // weight)))
            weight *= size
        refined.append(pieces)
    return refined


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
