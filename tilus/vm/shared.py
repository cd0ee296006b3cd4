"""Shared memory of one block, with everything that can go wrong in it.

Each byte remembers which tensor was written there last, and who read and wrote it since the last `sync` (an *epoch*).
Two accesses of one epoch to one byte, one of them a write, by different threads, are a race. A thread is known where
the register tile has a layout that gives each element to one thread; where it is not, any two accesses are taken to be
of different threads. An asynchronous copy is in flight until a wait covers it: touching its bytes before is a fault,
and after the wait it counts as a write of this epoch by an unknown thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tilus.dtypes import DataType
from tilus.ir.expr import Tensor
from tilus.ir.instructions import INSTRUCTIONS
from tilus.ir.stmt import InstStmt
from tilus.layouts import SharedLayout, offset_table
from tilus.vm.fault import Fault
from tilus.vm.memory import coordinates
from tilus.vm.values import Array, from_codes, to_codes

UNKNOWN = -1  # a thread that is not known, or several


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """A shared tensor in memory: where it begins, and its number among the tensors of the block."""

    name: str
    number: int
    base: int
    dtype: DataType
    shape: tuple[int, ...]
    layout: SharedLayout | None

    @property
    def nbytes(self) -> int:
        """Bytes from the first to the last element."""
        numel = int(np.prod(self.shape)) if self.layout is None else self.layout.storage_size
        return numel * self.dtype.nbits // 8

    def element_offsets(self, coords: list[Array]) -> Array:
        """Return the element offset at each index."""
        index = tuple(np.broadcast_arrays(*coords))
        if self.layout is None:
            return np.asarray(np.ravel_multi_index(index, self.shape))
        return np.asarray(offset_table(self.layout)[index])

    def bytes_at(self, coords: list[Array]) -> Array:
        """Return the bytes of each element: the tile's shape and one dimension more."""
        nbytes = self.dtype.nbits // 8
        return (self.base + self.element_offsets(coords) * nbytes)[..., None] + np.arange(nbytes)

    def check_bounds(self, coords: list[Array], action: str) -> None:
        """Raise `Fault` unless every index lies in the shape."""
        for dim, (c, extent) in enumerate(zip(coords, self.shape, strict=True)):
            wrong = (c < 0) | (c >= extent)
            if np.any(wrong):
                found = int(c[wrong].flat[0])
                raise Fault(
                    f"{action} index {found} of dimension {dim} of {self.name!r}, which goes from 0 to {extent - 1}"
                )


@dataclass(slots=True)
class Copy:
    """An asynchronous copy under way."""

    number: int
    tensor: SharedTensor
    places: Array
    data: Array
    site: int


@dataclass(slots=True)
class History:
    """Who touched each byte last, for reads or for writes: in which epoch, which thread, at which statement."""

    epoch: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    thread: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    site: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    def grow(self, nbytes: int) -> None:
        """Make room for bytes that nobody has touched."""
        for name in ("epoch", "thread", "site"):
            setattr(self, name, _grown(getattr(self, name), nbytes))

    def others(self, places: Array, threads: Array, epoch: int) -> Array:
        """Return which bytes another thread, or perhaps another, has touched in this epoch."""
        strangers = (self.thread[places] != threads) | (threads == UNKNOWN)
        return np.asarray((self.epoch[places] == epoch) & strangers)

    def record(self, places: Array, threads: Array, epoch: int, site: int) -> None:
        """Note an access; a byte touched by several threads in one epoch is touched by an unknown one."""
        several = self.others(places, threads, epoch)
        self.thread[places] = np.where(several, UNKNOWN, threads)
        self.epoch[places] = epoch
        self.site[places] = site


def _grown(array: Array, size: int) -> Array:
    return np.concatenate([array, np.zeros(max(0, size - array.size), array.dtype)])


class SharedMemory:
    """Shared memory of one block.

    Parameters
    ----------
    limit : int or None
        `shared_bytes` of the program: planned tensors must lie below it. Others are put after it.
    num_threads : int or None
        With one thread there are no races.
    """

    def __init__(self, limit: int | None, num_threads: int | None) -> None:
        self.limit = limit
        self.alone = num_threads == 1
        self.data = np.zeros(0, np.uint8)
        self.owner = np.zeros(0, np.int64)  # number of the tensor that was written here last; 0: nobody's
        self.flight = np.zeros(0, np.int64)  # number of the copy that will write here; 0: none
        self.reads, self.writes = History(), History()
        self.epoch = 1
        self.tensors: dict[Tensor, SharedTensor] = {}
        self.sites: list[InstStmt] = []
        self.copies = 0
        self.open: list[Copy] = []  # not committed yet
        self.groups: list[list[Copy]] = []  # committed, oldest first
        self._grow(limit or 0)

    def _grow(self, nbytes: int) -> None:
        self.data, self.owner, self.flight = (_grown(a, nbytes) for a in (self.data, self.owner, self.flight))
        self.reads.grow(nbytes)
        self.writes.grow(nbytes)

    def allocate(self, out: Tensor, kind: DataType, layout: SharedLayout | None, base: int | None) -> SharedTensor:
        """Place a tensor, with undefined contents; a tensor allocated again (in a loop) keeps its place."""
        if out not in self.tensors:
            shape = out.type.shape  # type: ignore[union-attr]
            start = self.data.size if base is None else base
            start += -start % 16 if base is None else 0
            made = SharedTensor(out.name, len(self.tensors) + 1, start, kind, shape, layout)
            end = start + made.nbytes
            if base is not None and self.limit is not None and end > self.limit:
                raise Fault(f"{out.name!r} ends at byte {end} of shared memory, the block has {self.limit}")
            self._grow(end)
            self.tensors[out] = made
        made = self.tensors[out]
        self.owner[self.owner == made.number] = 0
        return made

    def clobber(self, start: int, nbytes: int) -> None:
        """Overwrite bytes with what no tensor holds: a conversion's scratch, once `plan_shared` has placed it."""
        if self.limit is None:
            return
        if np.any(self.flight[start : start + nbytes]):
            raise Fault("the scratch memory of this conversion is the target of a copy in flight")
        self.owner[start : start + nbytes] = 0

    def sync(self) -> None:
        """Begin a new epoch."""
        self.epoch += 1

    # Accesses

    def load(
        self,
        t: SharedTensor,
        stmt: InstStmt,
        threads: Array,
        offset: Sequence[int],
        shape: Sequence[int],
        dims: Sequence[int],
    ) -> Array:
        """Return a tile; `threads` says who reads each element (`UNKNOWN` where that is not known)."""
        coords = coordinates(offset, shape, dims)
        t.check_bounds(coords, "load_shared reads")
        places, who = t.bytes_at(coords), self._who(threads)
        self._check_flight(t, places, coords, "reads")
        strange = self.owner[places] != t.number
        if np.any(strange):
            raise Fault(f"load_shared reads {_element(t, coords, strange)}, which {self._stranger(places, strange)}")
        self._check_race(t, places, coords, who, "reads", self.writes)
        self.reads.record(places, who, self.epoch, self._site(stmt))
        codes = np.ascontiguousarray(self.data[places]).view(t.dtype.code_dtype)[..., 0]
        return from_codes(t.dtype, codes)

    def store(
        self, t: SharedTensor, stmt: InstStmt, threads: Array, offset: Sequence[int], values: Array, dims: Sequence[int]
    ) -> None:
        """Write a tile; `threads` says who writes each element."""
        coords = coordinates(offset, values.shape, dims)
        t.check_bounds(coords, "store_shared writes")
        places, who = t.bytes_at(coords), self._who(threads)
        self._check_write(t, places, coords, who)
        self._write(t, places, _bytes_of(t.dtype, values), who, self._site(stmt))

    def start_copy(
        self, t: SharedTensor, stmt: InstStmt, offset: Sequence[int], values: Array, dims: Sequence[int]
    ) -> None:
        """Start writing a tile; it lands when a wait covers it."""
        coords = coordinates(offset, values.shape, dims)
        t.check_bounds(coords, "copy_async writes")
        places = t.bytes_at(coords)
        self._check_write(t, places, coords, self._who(np.full(values.shape, UNKNOWN)), "copy_async writes")
        self.copies += 1
        self.flight[places] = self.copies
        self.open.append(Copy(self.copies, t, places, _bytes_of(t.dtype, values), self._site(stmt)))

    def commit(self) -> None:
        """Close the group of copies started since the last one; it may be empty."""
        self.groups.append(self.open)
        self.open = []

    def wait(self, pending: int) -> None:
        """Let all but the newest `pending` groups land."""
        done = self.groups[: max(0, len(self.groups) - pending)]
        self.groups = self.groups[len(done) :]
        for copy in (copy for group in done for copy in group):
            who = self._who(np.full(copy.places.shape[:-1], UNKNOWN))
            self.flight[copy.places] = 0
            self._write(copy.tensor, copy.places, copy.data, who, copy.site)

    def _write(self, t: SharedTensor, places: Array, data: Array, who: Array, site: int) -> None:
        self.data[places] = data
        self.owner[places] = t.number
        self.writes.record(places, who, self.epoch, site)

    # Checks

    def _who(self, threads: Array) -> Array:
        return np.zeros((*threads.shape, 1), np.int64) if self.alone else threads[..., None]

    def _site(self, stmt: InstStmt) -> int:
        for number, known in enumerate(self.sites):
            if known is stmt:
                return number
        self.sites.append(stmt)
        return len(self.sites) - 1

    def _check_write(
        self, t: SharedTensor, places: Array, coords: list[Array], who: Array, action: str = "store_shared writes"
    ) -> None:
        self._check_flight(t, places, coords, action.split()[1])
        for history in (self.writes, self.reads):
            self._check_race(t, places, coords, who, "writes", history)

    def _check_flight(self, t: SharedTensor, places: Array, coords: list[Array], verb: str) -> None:
        flying = self.flight[places] != 0
        if np.any(flying):
            number = int(self.flight[places][flying].flat[0])
            copy = next(c for group in (*self.groups, self.open) for c in group if c.number == number)
            raise Fault(
                f"this {verb} {_element(t, coords, flying)} while {self._at(copy.site)} is still in flight",
                hint="commit_group, then wait_group, then sync, before the data is touched",
            )

    def _check_race(
        self, t: SharedTensor, places: Array, coords: list[Array], who: Array, verb: str, history: History
    ) -> None:
        clash = history.others(places, who, self.epoch)
        if not np.any(clash):
            return
        earlier, site = history.thread[places][clash], history.site[places][clash]
        mine = int(np.broadcast_to(who, clash.shape)[clash].flat[0])
        did = "wrote" if history is self.writes else "read"
        raise Fault(
            f"race: {_thread(mine)} {verb} {_element(t, coords, clash)}, which {_thread(int(earlier[0]))} {did} "
            f"at {self._at(int(site[0]))} since the last sync",
            hint="put a sync between the two accesses",
        )

    def _stranger(self, places: Array, strange: Array) -> str:
        number = int(self.owner[places][strange].flat[0])
        if number == 0:
            return "nobody wrote"
        return f"was overwritten by {next(t.name for t in self.tensors.values() if t.number == number)!r}"

    def _at(self, site: int) -> str:
        stmt = self.sites[site]
        name = INSTRUCTIONS[type(stmt.inst)].name
        loc = stmt.inst.loc or stmt.loc
        return f"{name} ({loc})" if loc else name


def _bytes_of(kind: DataType, values: Array) -> Array:
    codes = np.ascontiguousarray(to_codes(kind, values))
    return codes.reshape(*values.shape, 1).view(np.uint8)


def _element(t: SharedTensor, coords: list[Array], wrong: Array) -> str:
    """Name the first element that has a wrong byte."""
    first = tuple(int(i) for i in np.argwhere(wrong)[0][:-1])
    index = tuple(int(c[first]) for c in np.broadcast_arrays(*coords))
    return f"{t.name}[{', '.join(map(str, index))}]"


def _thread(thread: int) -> str:
    return "another thread" if thread == UNKNOWN else f"thread {thread}"
