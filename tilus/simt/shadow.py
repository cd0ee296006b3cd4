"""Happens-before detection of races, and of reads of what nobody wrote.

Every warp has a clock, and knows of every other warp up to which tick its accesses are ordered before its own
(`known`). Memory is divided into cells, as wide as the kernel's narrowest access. A cell remembers its last write, and
one read for each of some slots, as an *epoch*: tick, strength, instruction and thread. An access is ordered after an
epoch if the thread is the same, or the warp knows of a later tick than the epoch's. What is not ordered is a race, if
one of the two is a write and not both are strong (atomic, volatile, relaxed, ...) in a scope that includes both.

Asynchronous writes have the tick `NEVER` until someone waits for them: even the thread that started them races.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilus.simt.formats import Array

LANES = 32
_THREAD_BITS, _CODE_BITS, _CLOCK_AT = 24, 14, 40
_STRENGTH_AT = _THREAD_BITS + _CODE_BITS
_WARP_MASK = (1 << _THREAD_BITS) - LANES
NEVER = (1 << 23) - 1
WEAK, IN_BLOCK, IN_DEVICE = 0, 1, 3  # strength: not atomic, atomic for threads of the block, for all threads
FIRST = 2  # columns of `known` before the resident warps': nobody, and warps of blocks that ended before
LAST_CODE = (1 << _CODE_BITS) - 1


class Clocks:
    """What the resident warps know of each other."""

    def __init__(self, warps: int, warps_per_block: int, agents: int = 0) -> None:
        self.now = np.ones(warps + agents, np.int64)
        self.known = np.zeros((warps, FIRST + warps + agents), np.int32)
        self.known[:, 0] = NEVER
        self.per_block = warps_per_block
        self._own = FIRST + np.arange(warps)
        self._agents = iter(range(warps, warps + agents))

    def add_agent(self) -> int:
        """Return the thread number of something else that accesses memory: a barrier's copies, a tensor core."""
        return next(self._agents) * LANES

    def tick(self, agent: int) -> int:
        """End an agent's epoch; return the column and the tick from which on its accesses are known."""
        self.now[agent >> 5] += 1
        return int(self.now[agent >> 5])

    def publish(self, warps: Array) -> Array:
        """Return what others know after they synchronised with these warps: shape (warps, columns)."""
        rows = self.known[warps].copy()
        rows[np.arange(len(warps)), self._own[warps]] = self.now[warps] + 1
        self.now[warps] += 1
        return rows

    def learn(self, warps: Array, row: Array) -> None:
        """Let warps know what a row says, which has shape (columns,) or (warps, columns)."""
        self.known[warps] = np.maximum(self.known[warps], row)

    def learn_agent(self, warps: Array, agent: int, tick: int) -> None:
        """Let warps know an agent's accesses before a tick."""
        column = FIRST + (agent >> 5)
        self.known[warps, column] = np.maximum(self.known[warps, column], tick)

    def join(self, warps: Array) -> None:
        """Order everything before, of warps given as (groups, members), before everything after."""
        rows = self.publish(warps.reshape(-1)).reshape(*warps.shape, -1)
        self.known[warps] = np.maximum(self.known[warps], rows.max(1, keepdims=True))


@dataclass(slots=True)
class Conflict:
    """Which elements of an access race, with which epochs, and whether those were writes."""

    element: Array
    epoch: Array
    was_write: bool


def epoch_code(epoch: int) -> int:
    """Return the position in the program of the instruction that an epoch names."""
    return epoch >> _THREAD_BITS & LAST_CODE


def epoch_thread(epoch: int) -> int:
    """Return the resident thread that an epoch names; negative for a thread of an earlier block."""
    return (epoch & ((1 << _THREAD_BITS) - 1)) - FIRST * LANES


def is_pending(epoch: int) -> bool:
    """Return whether an epoch is an asynchronous write that nobody waited for."""
    return epoch >> _CLOCK_AT == NEVER


class Shadow:
    """The shadow of one memory.

    Parameters
    ----------
    nbytes : int
    granularity : int
        Bytes of a cell.
    slots : int
        Reads that a cell remembers, of different warps.
    clocks : Clocks
    spare : bool
        There are more warps than slots: one more read is remembered, of a warp whose slot another one took.
    """

    def __init__(self, nbytes: int, granularity: int, slots: int, clocks: Clocks, *, spare: bool = False) -> None:
        cells = -(-nbytes // granularity)
        self.granularity, self.slots, self.clocks, self.spare = granularity, slots, clocks, spare
        self.writes = np.zeros(cells, np.int64)
        self.reads = np.zeros((cells, slots + spare), np.int64)
        self.valid = np.zeros(cells, bool)
        self.unfenced = np.zeros(cells, bool)  # written by the generic proxy since its last fence

    def cells(self, places: Array, nbytes: int) -> Array:
        """Return the cells of accesses, shape (accesses, cells of each)."""
        first = places // self.granularity
        if nbytes <= self.granularity:
            return first[:, None]
        return first[:, None] + np.arange(nbytes // self.granularity)

    def _epochs(self, threads: Array, strength: int, code: int) -> Array:
        stamp = (strength << _STRENGTH_AT) | (min(code, LAST_CODE) << _THREAD_BITS)
        return (self.clocks.now[threads >> 5] << _CLOCK_AT) + (threads + (stamp + FIRST * LANES))

    def unordered(self, epochs: Array, threads: Array, strength: int) -> Array:
        """Return which epochs are not ordered before accesses of threads; shapes (n, ...) and (n,)."""
        mine = threads.reshape(-1, *[1] * (epochs.ndim - 1))
        clock = epochs >> _CLOCK_AT
        who = epochs & ((1 << _THREAD_BITS) - 1)
        bad: Array = self.clocks.known[mine >> 5, who >> 5] <= clock
        bad &= (who != mine + FIRST * LANES) | (clock == NEVER)
        if strength and bad.any():
            strong = epochs >> _STRENGTH_AT & IN_DEVICE & strength
            same_block = ((who >> 5) - FIRST) // self.clocks.per_block == (mine >> 5) // self.clocks.per_block
            bad &= ~((strong & 2 > 0) | (strong > 0) & same_block)
        return bad

    def read(self, threads: Array, cells: Array, strength: int, code: int) -> list[Conflict]:
        """Check reads and remember them."""
        epochs = self.writes[cells]
        found = []
        if epochs.any():
            found = self._conflicts(self.unordered(epochs, threads, strength), epochs, True)
        stamps = self._epochs(threads, strength, code)
        slot = (threads >> 5 if self.slots > 1 else threads[:1] * 0)[:, None] % self.slots
        before = self.reads[cells, slot]
        self.reads[cells, slot] = stamps[:, None]
        if self.spare:
            self._remember(cells, before, slot)
            self._remember(cells, np.broadcast_to(stamps[:, None], cells.shape), slot)
        return found

    def _remember(self, cells: Array, epochs: Array, slot: Array) -> None:
        """Keep in the spare column one of the reads whose slot the read of another warp has taken."""
        taken = (epochs ^ self.reads[cells, slot]) & _WARP_MASK != 0
        taken &= epochs != 0
        if taken.any():
            self.reads[cells[taken], -1] = epochs[taken]

    def write(self, threads: Array, cells: Array, strength: int, code: int) -> list[Conflict]:
        """Check writes and remember them."""
        found = self.check_write(threads, cells, strength)
        self.writes[cells] = self._epochs(threads, strength, code)[:, None]
        self.valid[cells] = True
        return found

    def check_write(self, threads: Array, cells: Array, strength: int) -> list[Conflict]:
        """Return the races that writes would make."""
        epochs, before = self.writes[cells], self.reads[cells]
        found = []
        if epochs.any():
            found += self._conflicts(self.unordered(epochs, threads, strength), epochs, True)
        if before.any():
            found += self._conflicts(self.unordered(before, threads, strength), before, False)
        return found

    @staticmethod
    def _conflicts(bad: Array, epochs: Array, was_write: bool) -> list[Conflict]:
        if not bad.any():
            return []
        where = np.nonzero(bad)
        return [Conflict(where[0], epochs[where], was_write)]

    def begin(self, threads: Array, cells: Array, code: int) -> None:
        """Mark cells as being written asynchronously, by threads or an agent."""
        stamp = (NEVER << _CLOCK_AT) | (min(code, LAST_CODE) << _THREAD_BITS)
        self.writes[cells] = (threads + (stamp + FIRST * LANES))[:, None]
        self.valid[cells] = True

    def begin_read(self, agent: int, cells: Array, code: int) -> None:
        """Mark cells as being read by an agent."""
        stamp = (NEVER << _CLOCK_AT) | (min(code, LAST_CODE) << _THREAD_BITS)
        self.reads[cells, (agent >> 5) % self.slots] = agent + stamp + FIRST * LANES

    def finish_read(self, agent: int, cells: Array) -> None:
        """Mark an agent's reads as done."""
        slot = (agent >> 5) % self.slots
        self.reads[cells, slot] = self._done(self.reads[cells, slot], np.full(len(cells), agent))

    def finish(self, threads: Array, cells: Array) -> None:
        """Mark asynchronous writes as done, by the threads that waited for them, or by agents."""
        self.writes[cells] = self._done(self.writes[cells], threads)

    def _done(self, epochs: Array, threads: Array) -> Array:
        who = threads.reshape(-1, *[1] * (epochs.ndim - 1))
        own = (epochs >> _CLOCK_AT == NEVER) & ((epochs & ((1 << _THREAD_BITS) - 1)) == who + FIRST * LANES)
        done = (epochs & ((1 << _CLOCK_AT) - 1)) | self.clocks.now[who >> 5] << _CLOCK_AT
        return np.where(own, done, epochs)

    def writers(self, cells: Array) -> Array:
        """Return the resident threads that wrote cells last; negative for others."""
        return (self.writes[cells] & ((1 << _THREAD_BITS) - 1)) - FIRST * LANES

    def age(self) -> None:
        """Let all epochs be of blocks that ended before, for the next resident blocks."""
        lane, old = np.int64((1 << _THREAD_BITS) - 1), np.int64(LANES)
        for table in (self.writes, self.reads):
            table[...] = np.where(table != 0, (table & ~lane) & ((1 << _CLOCK_AT) - 1) | 1 << _CLOCK_AT | old, 0)
