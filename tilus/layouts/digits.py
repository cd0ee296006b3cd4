"""Numbers in mixed radix: the arithmetic below every register layout.

A thread number, and a local number, is written in digits, most significant first. A digit moves the tensor index by
`stride` along one dimension; a digit without a dimension moves nothing, which is replication. All layout algebra is
bookkeeping on two such lists.

**Why the coalesced list is unique.** Let g(x) be the index that the number x leads to, and (size, stride) the last
digit. Then g(1) is the stride, and the first x with g(x) != x * g(1) is the size: a longer straight run would mean
that the neighbouring digit continues it, and coalescing has merged such neighbours. What is left is the same
question for g(size * y), so the map determines every digit. Replication is the case stride = 0 and needs no rule of
its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple


class Digit(NamedTuple):
    """One digit of a thread or local number.

    `value * stride` is added to coordinate `dim`, for value in 0 .. size-1. A replicated digit has no dimension and
    stride 0.
    """

    size: int
    dim: int | None
    stride: int


Digits = tuple[Digit, ...]


def replicated_digit(size: int) -> Digit:
    """Return a digit that moves nothing: `size` values, one element."""
    return Digit(size, None, 0)


def count(digits: Sequence[Digit]) -> int:
    """Return how many numbers the digits can write."""
    return prod(digit.size for digit in digits)


def coalesce(digits: Sequence[Digit]) -> Digits:
    """Drop digits of size 1 and merge neighbours that count on: the unique shortest list with the same map."""
    merged: list[Digit] = []
    for digit in digits:
        if digit.size == 1:
            continue
        outer = merged[-1] if merged else None
        if outer is not None and outer.dim == digit.dim and outer.stride == digit.size * digit.stride:
            merged[-1] = Digit(outer.size * digit.size, digit.dim, digit.stride)
        else:
            merged.append(digit)
    return tuple(merged)


def cut(digits: Digits, inner: int) -> tuple[Digits, Digits] | None:
    """Split into an outer and an inner list such that the inner one counts to `inner`; None if no digit divides so."""
    rest, position = inner, len(digits)
    while rest > 1:
        if position == 0:
            return None
        position -= 1
        size, dim, stride = digits[position]
        if rest % size == 0:
            rest //= size
        elif size % rest == 0:
            outer_part, inner_part = Digit(size // rest, dim, stride * rest), Digit(rest, dim, stride)
            return (*digits[:position], outer_part), (inner_part, *digits[position + 1 :])
        else:
            return None
    return digits[:position], digits[position:]


def scale(digits: Digits, factors: Sequence[int]) -> Digits:
    """Multiply every stride by the factor of its dimension."""
    return tuple(d if d.dim is None else d._replace(stride=d.stride * factors[d.dim]) for d in digits)


def shrink(digits: Digits, factors: Sequence[int]) -> Digits | None:
    """Divide every stride by the factor of its dimension; None if one does not divide."""
    if any(d.dim is not None and d.stride % factors[d.dim] for d in digits):
        return None
    return tuple(d if d.dim is None else d._replace(stride=d.stride // factors[d.dim]) for d in digits)


def renumber(digits: Digits, new_dim: Sequence[int]) -> Digits:
    """Move every digit from dimension d to dimension `new_dim[d]`."""
    return tuple(d if d.dim is None else d._replace(dim=new_dim[d.dim]) for d in digits)


def reshape(digits: Digits, old: Sequence[int], new: Sequence[int]) -> Digits | None:
    """Express digits over the extents `old` as digits over `new`, both row-major; None if a digit does not split."""
    # Over the flattened tensor neighbours may merge that two dimensions kept apart; then they split anywhere.
    flat = coalesce([d if d.dim is None else Digit(d.size, 0, d.stride * prod(old[d.dim + 1 :])) for d in digits])
    result: list[Digit] = []
    for digit in flat:
        pieces = [digit] if digit.dim is None else _split(digit.size, digit.stride, new)
        if pieces is None:
            return None
        result += pieces
    return tuple(result)


def _split(size: int, flat_stride: int, shape: Sequence[int]) -> list[Digit] | None:
    """Split the digit that counts flat_stride, 2 * flat_stride, ... at the borders of the dimensions of `shape`."""
    pieces: list[Digit] = []
    low_border = 1
    for dim in reversed(range(len(shape))):
        high_border = low_border * shape[dim]
        low, high = max(flat_stride, low_border), min(flat_stride * size, high_border)
        if low < high:
            if high % low or low % low_border:
                return None
            pieces.insert(0, Digit(high // low, dim, low // low_border))
        low_border = high_border
    return pieces


def index_of(digits: Digits, number: int, index: list[int]) -> None:
    """Add to `index`, in place, where `number` leads."""
    for size, dim, stride in reversed(digits):
        number, value = divmod(number, size)
        if dim is not None:
            index[dim] += value * stride


def number_of(digits: Digits, index: Sequence[int]) -> int:
    """Return the smallest number that leads to `index`: replicated digits are 0."""
    number = 0
    for size, dim, stride in digits:
        number = number * size + (0 if dim is None else index[dim] // stride % size)
    return number


def replica_offsets(digits: Digits) -> tuple[int, ...]:
    """Return, ascending, what to add to `number_of` to reach every number that leads to the same index."""
    offsets, weight = [0], 1
    for size, dim, _ in reversed(digits):
        if dim is None:
            offsets = [value * weight + offset for value in range(size) for offset in offsets]
        weight *= size
    return tuple(offsets)
