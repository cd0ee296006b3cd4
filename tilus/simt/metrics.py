"""What accesses cost: passes through the banks of shared memory, and sectors of global memory."""

from __future__ import annotations

import numpy as np

from tilus.simt.formats import Array
from tilus.simt.report import MemoryCount, Report
from tilus.simt.syntax import Instruction

_BANKS, _WORD, _SECTOR = 32, 4, 32


def count(report: Report, code: Instruction, space: str, addresses: Array, threads: Array, nbytes: int) -> None:
    """Add one access of some threads to a report."""
    entry = report.memory.setdefault(code, MemoryCount())
    warps = threads >> 5
    requests = len(np.unique(warps))
    where = np.asarray(addresses).astype(np.int64)
    if space == "shared":
        actual, ideal = wavefronts(where, threads, nbytes)
        entry.shared_requests += requests
        entry.wavefronts += actual
        entry.ideal_wavefronts += ideal
    else:
        actual, ideal = sectors(where, warps, nbytes)
        entry.global_requests += requests
        entry.sectors += actual
        entry.ideal_sectors += ideal


def wavefronts(addresses: Array, threads: Array, nbytes: int) -> tuple[int, int]:
    """Return how many passes accesses to shared memory take, and how many they need at least.

    A warp's access of 4, 8 or 16 bytes a lane goes in 1, 2 or 4 phases, of 32, 16 or 8 lanes. A phase takes as many
    passes as there are different words in its fullest bank.

    Parameters
    ----------
    addresses : array of int
        In bytes, one for each thread.
    threads : array of int
        Whose they are; 32 make a warp.
    nbytes : int
        Of each.
    """
    lanes = max(min(32, 32 * _WORD // nbytes), 1)
    phase = threads // lanes
    words = max(nbytes // _WORD, 1)
    word = (addresses // _WORD)[:, None] + np.arange(words)
    key = np.unique((phase[:, None] << 32 | word).reshape(-1))
    _, bank = np.unique((key >> 32) * _BANKS + key % _BANKS, return_inverse=True)
    groups, index = np.unique(key >> 32, return_inverse=True)
    worst = np.zeros(len(groups), np.int64)
    np.maximum.at(worst, index, np.bincount(bank)[bank])
    return int(worst.sum()), len(groups)


def sectors(addresses: Array, warps: Array, nbytes: int) -> tuple[int, int]:
    """Return how many sectors of 32 bytes a warp's accesses touch, and how many their bytes would fill at least."""
    first = (addresses[:, None] + np.arange(0, nbytes, min(nbytes, _SECTOR))) // _SECTOR
    touched = np.unique((first ^ warps[:, None] << 48).reshape(-1))
    starts = np.unique(addresses ^ warps << 48)
    per_warp = np.bincount(np.unique(starts >> 48, return_inverse=True)[1]) * nbytes
    return len(touched), int(np.sum(-(-per_warp // _SECTOR)))
