"""Moving elements between lanes and registers: one function for every instruction that only moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tilus.codegen.llvm.builder import Builder, Value, constant, lanes_of, vector
from tilus.layouts import RegisterLayout, locate_table

Table = npt.NDArray[np.int64]


def sources(src: RegisterLayout, wanted: Table) -> tuple[Table, Table]:
    """Return (lane, local) in `src` of every wanted index; the lane itself where it holds the element.

    `wanted` has shape (lanes, locals, rank).
    """
    threads, places = locate_table(src)
    index = tuple(wanted[..., d] for d in range(wanted.shape[-1]))
    holders = threads[index]
    own = np.arange(len(wanted))[:, None]
    stays = (holders == own[..., None]).any(axis=-1)
    return np.where(stays, own, holders[..., 0]), places[index]


def moved(b: Builder, elements: Sequence[Value], lane: Table, local: Table) -> Value:
    """Return the vector whose lane l is element (lane[l], local[l]): a vector that is there, shuffled or blended."""
    own = np.arange(len(lane))
    result: Value | None = None
    for r in dict.fromkeys(local.tolist()):
        here = local == r
        value = elements[r]
        if (lane[here] != own[here]).any():
            value = b.shuffle(value, [int(s) if h else -1 for s, h in zip(lane, here, strict=True)])
        result = value if result is None else blend(b, here, value, result)
    assert result is not None
    return result


def transposed(b: Builder, vectors: Sequence[Value]) -> list[Value]:
    """Exchange lanes and vectors of which there are equally many, a power of two.

    For every bit, vectors whose numbers differ in it exchange the lanes whose numbers differ in it.
    """
    size, found = len(vectors), list(vectors)
    for bit in (1 << i for i in range(size.bit_length() - 1)):
        low = [size + lane - bit if lane & bit else lane for lane in range(size)]
        high = [lane + bit for lane in low]
        found = [b.shuffle(found[i & ~bit], high if i & bit else low, found[i | bit]) for i in range(size)]
    return found


def blend(b: Builder, here: npt.NDArray[np.bool_], a: Value, other: Value) -> Value:
    """Take `a` in the lanes of a constant mask and `other` in the rest."""
    mask = constant(vector(lanes_of(a.type)[0], "i1"), [bool(h) for h in here])
    return b.select(mask, a, other)


def steps_of_group(signature: Sequence[object], part: Sequence[object]) -> list[int]:
    """Return lane distances of a butterfly that adds up parts.

    Lanes of equal `signature` work on the same result; those of equal `part` among them hold the same contribution.
    The lanes whose contributions make up a result are `l ^ g` for g in a group; its generators are returned.
    """
    steps: list[int] = []
    lanes = len(signature)
    reached = {0}
    for step in (1 << bit for bit in range(lanes.bit_length())):
        if step < lanes and step not in reached and signature[step] == signature[0] and part[step] != part[0]:
            steps.append(step)
            reached |= {r ^ step for r in reached}
    for lane in range(lanes):
        parts = {part[lane ^ r] for r in reached}
        same = all(signature[lane ^ r] == signature[lane] for r in reached)
        total = {part[other] for other in range(lanes) if signature[other] == signature[lane]}
        if not same or parts != total or len(parts) != len(reached):
            raise ValueError(f"lanes {signature} do not reduce by a butterfly of {steps}")
    return steps


def butterfly(b: Builder, x: Value, step: int) -> Value:
    """Return x with lane l taken from lane l ^ step."""
    lanes = lanes_of(x.type)[0]
    return b.shuffle(x, [lane ^ step for lane in range(lanes)])
