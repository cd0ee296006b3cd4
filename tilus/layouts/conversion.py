"""From one register layout to another: what has to move, and the cheapest way that moves it.

Four ways, cheapest first:

``same``
    nothing moves;
``registers``
    every thread has all it needs, at the same places in every thread: registers are renamed or dropped;
``shuffle``
    what a thread needs lies in its own warp: rounds of warp shuffles;
``shared``
    elements cross warps: store, barrier, load.

All answers come from the maps themselves, element by element, not from a pattern of modes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tilus.errors import LayoutError
from tilus.layouts.maps import Table, flat_index_table, locate_table
from tilus.layouts.register import RegisterLayout

Kind: TypeAlias = Literal["same", "registers", "shuffle", "shared"]


@dataclass(frozen=True, slots=True)
class Same:
    """Nothing moves."""

    kind: Literal["same"] = "same"


@dataclass(frozen=True, slots=True)
class RegisterMoves:
    """Local l of the result is local `src_local[l]` of the source, in every thread."""

    src_local: tuple[int, ...]
    kind: Literal["registers"] = "registers"


@dataclass(frozen=True, slots=True, eq=False)
class ShuffleRound:
    """One shuffle: thread t offers its source local `send[t]`, reads thread `source[t]`, keeps it as `keep[t]`.

    All three are int64 arrays with one entry per thread of the block. `source` names a thread of the same warp;
    `keep` is a local of the result, or -1 where the thread ignores what it reads.
    """

    source: Table
    send: Table
    keep: Table

    @property
    def cost(self) -> int:
        """Instructions per thread, about: the shuffle, and a select for every further register it may touch."""
        kept = self.keep[self.keep >= 0]
        partial = int(len(kept) < len(self.keep))
        return len(np.unique(self.send)) + max(len(np.unique(kept)) - 1, 0) + partial


@dataclass(frozen=True, slots=True, eq=False)
class Shuffles:
    """Rounds that together fill every local of the result in every thread, each exactly once."""

    rounds: tuple[ShuffleRound, ...]
    kind: Literal["shuffle"] = "shuffle"

    @property
    def cost(self) -> int:
        """Instructions per thread, about."""
        return sum(item.cost for item in self.rounds)


@dataclass(frozen=True, slots=True)
class ThroughShared:
    """Elements cross warps: the tile goes through shared memory."""

    kind: Literal["shared"] = "shared"


Conversion: TypeAlias = Same | RegisterMoves | Shuffles | ThroughShared


def classify_conversion(src: RegisterLayout, dst: RegisterLayout, lanes: int = 32) -> Kind:
    """Return the cheapest way from `src` to `dst`: ``same``, ``registers``, ``shuffle`` or ``shared``.

    Parameters
    ----------
    src, dst : RegisterLayout
        Layouts of one tensor: equal shapes and thread counts.
    lanes : int
        Threads per warp.

    Raises
    ------
    LayoutError
        If the shapes or the numbers of threads differ.
    """
    return plan_conversion(src, dst, lanes).kind


@lru_cache(maxsize=256)
def plan_conversion(src: RegisterLayout, dst: RegisterLayout, lanes: int = 32) -> Conversion:
    """Return the cheapest way from `src` to `dst` with the tables that carry it out; see `classify_conversion`."""
    if src.shape != dst.shape or src.num_threads != dst.num_threads:
        raise LayoutError(
            f"a conversion keeps shape and threads: {src} has shape {src.shape} on {src.num_threads} threads, "
            f"{dst} has {dst.shape} on {dst.num_threads}"
        )
    if src == dst:
        return Same()
    holders, places = locate_table(src)
    wanted = flat_index_table(dst)
    candidates = holders.reshape(-1, src.replication)[wanted]
    src_local = places.reshape(-1)[wanted]
    thread = np.arange(dst.num_threads, dtype=np.int64)[:, None, None]
    if (candidates == thread).any(axis=2).all() and (src_local == src_local[0]).all():
        return RegisterMoves(tuple(int(place) for place in src_local[0]))
    in_warp = candidates // lanes == thread // lanes
    if not in_warp.any(axis=2).all():
        return ThroughShared()
    source = _nearest(candidates, in_warp, thread)
    plans = [
        Shuffles(tuple(_rounds_by_local(source, src_local))),
        Shuffles(tuple(_rounds_by_distance(source, src_local))),
    ]
    return min(plans, key=lambda plan: plan.cost)


def _nearest(candidates: Table, in_warp: npt.NDArray[np.bool_], thread: Table) -> Table:
    """Choose among replicas the one at the least XOR distance: the thread itself first, then a regular pattern."""
    distance = np.where(in_warp, candidates ^ thread, np.iinfo(np.int64).max)
    best = distance.argmin(axis=2)[:, :, None]
    return np.take_along_axis(candidates, best, axis=2)[:, :, 0]


def _rounds_by_local(source: Table, src_local: Table) -> Iterator[ShuffleRound]:
    """Fill one local of the result after the other; a source thread that is asked for k locals costs k rounds."""
    num_threads, num_locals = source.shape
    thread = np.arange(num_threads)
    for local in range(num_locals):
        missing = np.ones(num_threads, dtype=bool)
        while missing.any():
            # Every source thread offers the smallest local that somebody still wants from it.
            send = np.full(num_threads, np.iinfo(np.int64).max)
            np.minimum.at(send, source[missing, local], src_local[missing, local])
            take = missing & (send[source[:, local]] == src_local[:, local])
            send[send == np.iinfo(np.int64).max] = send.min()
            yield _round(np.where(take, source[:, local], thread), send, np.where(take, local, -1))
            missing &= ~take


def _rounds_by_distance(source: Table, src_local: Table) -> Iterator[ShuffleRound]:
    """Exchange between lanes t and t ^ x, one distance x after the other: each offer has one reader, none collides."""
    num_threads = source.shape[0]
    thread = np.arange(num_threads, dtype=np.int64)
    distance = source ^ thread[:, None]
    for x in np.unique(distance):
        missing = distance == x
        while missing.any():
            reads = missing.any(axis=1)
            keep = np.where(reads, missing.argmax(axis=1), -1)
            wants = src_local[thread, np.maximum(keep, 0)]
            send = np.full(num_threads, wants[reads].min())
            send[thread[reads] ^ x] = wants[reads]
            yield _round(np.where(reads, thread ^ x, thread), send, keep)
            missing[thread[reads], keep[reads]] = False


def _round(source: Table, send: Table, keep: Table) -> ShuffleRound:
    for table in (source, send, keep):
        table.flags.writeable = False
    return ShuffleRound(source, send, keep)
