"""Register layouts as tables: the whole map at once, for code that checks or moves data.

Tables are made by NumPy from the digits, kept per layout (layouts are canonical, so equal maps share one table) and
read-only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tilus.layouts import digits as dg
from tilus.layouts.digits import Digits
from tilus.layouts.register import RegisterLayout

Table: TypeAlias = npt.NDArray[np.int64]

# A table of 256 threads x 128 locals x 2 takes half a megabyte: enough for the layouts of several programs.
_CACHED_TABLES = 256


@lru_cache(maxsize=_CACHED_TABLES)
def index_table(layout: RegisterLayout) -> Table:
    """Return the index that every (thread, local) holds, an int64 array of shape (threads, local, rank)."""
    thread_part = _index_part(layout.spatial_digits, layout.rank)
    local_part = _index_part(layout.local_digits, layout.rank)
    return _frozen(thread_part[:, None, :] + local_part[None, :, :])


@lru_cache(maxsize=_CACHED_TABLES)
def flat_index_table(layout: RegisterLayout) -> Table:
    """Return the row-major number of the element that every (thread, local) holds, of shape (threads, local)."""
    table = index_table(layout)
    flat = np.zeros(table.shape[:2], dtype=np.int64)
    for dim, extent in enumerate(layout.shape):
        flat = flat * extent + table[:, :, dim]
    return _frozen(flat)


@lru_cache(maxsize=_CACHED_TABLES)
def locate_table(layout: RegisterLayout) -> tuple[Table, Table]:
    """Return (threads, locals): who holds each element, arrays of shape (*shape, replication) and shape."""
    offsets = np.array(dg.replica_offsets(layout.spatial_digits), dtype=np.int64)
    threads = _number_part(layout.spatial_digits, layout.shape)[..., None] + offsets
    return _frozen(threads), _frozen(_number_part(layout.local_digits, layout.shape))


def gather(layout: RegisterLayout, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return what every (thread, local) holds of a tensor: an array of shape (threads, local)."""
    registers: npt.NDArray[Any] = values.reshape(-1)[flat_index_table(layout)]
    return registers


def scatter(layout: RegisterLayout, registers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the tensor that registers of shape (threads, local) hold; the first replica is taken."""
    threads, locals_ = locate_table(layout)
    return np.asarray(registers[threads[..., 0], locals_])


def _index_part(digits: Digits, rank: int) -> Table:
    """Return where every number of a digit list leads, of shape (count, rank)."""
    part = np.zeros((1, rank), dtype=np.int64)
    for size, dim, stride in digits:
        step = np.zeros((size, rank), dtype=np.int64)
        if dim is not None:
            step[:, dim] = np.arange(size) * stride
        part = (part[:, None, :] + step[None, :, :]).reshape(len(part) * size, rank)
    return part


def _number_part(digits: Digits, shape: Sequence[int]) -> Table:
    """Return the smallest number that leads to every index, of shape `shape`."""
    coordinates = np.indices(tuple(shape), dtype=np.int64)
    number = np.zeros(tuple(shape), dtype=np.int64)
    for size, dim, stride in digits:
        number = number * size
        if dim is not None:
            number = number + coordinates[dim] // stride % size
    return number


def _frozen(table: Table) -> Table:
    table = np.asarray(table)  # arithmetic on arrays of rank 0 gives scalars
    table.flags.writeable = False
    return table
