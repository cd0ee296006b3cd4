"""Blocks of a cluster run at the same time: each in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from threading import Condition, Thread

import numpy as np

from tilus.vm.fault import Fault
from tilus.vm.values import Array

_PARTED = "blocks of a cluster come to different numbers of cluster sums: this one waits for one that has ended"


class Cluster:
    """What the blocks of a cluster share: they meet, and each gives a tile to the others."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._given: dict[int, Array] = {}  # by rank, at the meeting that not all have come to
        self._changed = Condition()
        self._ended = False
        self._error: BaseException | None = None

    def exchange(self, rank: int, tile: Array) -> list[Array]:
        """Return the tiles of all blocks, by rank."""
        with self._changed:
            given = self._given
            given[rank] = tile
            if len(given) == self._size:
                self._given = {}
                self._changed.notify_all()
            self._changed.wait_for(lambda: len(given) == self._size or self._ended)
        if len(given) < self._size:
            raise Fault(_PARTED)
        return [given[rank] for rank in range(self._size)]

    def run(self, blocks: Sequence[Callable[[], None]]) -> None:
        """Run all blocks to their ends; raise what went wrong first."""
        threads = [Thread(target=self._run, args=(block,)) for block in blocks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, block: Callable[[], None]) -> None:
        error: BaseException | None = None
        try:
            block()
        except BaseException as raised:  # raised again by `run`, in the caller's thread
            error = raised
        with self._changed:
            self._ended, self._error = True, self._error or error
            self._changed.notify_all()


def clusters_of(grid: tuple[int, ...], extents: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """Yield the blocks of every cluster of a grid, by rank: the first axis varies fastest."""
    for corner in np.ndindex(*(n // extent for n, extent in zip(grid, extents, strict=True))):
        inner = ([rank // prod(extents[:d]) % n for d, n in enumerate(extents)] for rank in range(prod(extents)))
        yield [tuple(c * n + i for c, n, i in zip(corner, extents, at, strict=True)) for at in inner]
