"""What a compiled CUDA kernel takes of a multiprocessor: registers, spills, shared memory, and how many blocks fit.

Everything is read from the cubin, so it is known without a GPU and for kernels out of the cache.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tilus.errors import CompileError, FormatError, LaunchError
from tilus.runtime.elf import (
    EIATTR_ANNOTATIONS,
    EIATTR_FRAME_SIZE,
    EIATTR_MAX_THREADS,
    EIATTR_NUM_BARRIERS,
    EIATTR_REGCOUNT,
    Cubin,
    read_cubin,
)

_KIB = 1024
_REGISTERS_PER_SM = 64 * _KIB
MOST_REGISTERS = 255  # of a thread
_PARTITIONS = 4  # of a multiprocessor, each with its own quarter of the registers and warps
_REGISTER_UNIT = 256  # registers are given to a warp in this many
_SHARED_UNIT = 128
_SHARED_RESERVED = 1 * _KIB  # per block, taken by the system since compute capability 8.0
_WARP = 32


@dataclass(frozen=True, slots=True)
class Multiprocessor:
    """Limits of one multiprocessor.

    Source: CUDA C++ programming guide, table "technical specifications per compute capability".
    """

    warps: int
    blocks: int
    shared_bytes: int
    shared_per_block: int


_A100 = Multiprocessor(64, 32, 164 * _KIB, 163 * _KIB)
_HOPPER = Multiprocessor(64, 32, 228 * _KIB, 227 * _KIB)
MULTIPROCESSORS: dict[int, Multiprocessor] = {
    80: _A100,
    86: Multiprocessor(48, 16, 100 * _KIB, 99 * _KIB),
    89: Multiprocessor(48, 24, 100 * _KIB, 99 * _KIB),
    90: _HOPPER,
    100: _HOPPER,
    120: Multiprocessor(48, 24, 100 * _KIB, 99 * _KIB),
}


@dataclass(frozen=True, slots=True)
class Resources:
    """What one kernel takes.

    Attributes
    ----------
    kernel : str
    arch : int
        Ten times the compute capability.
    registers : int
        Per thread.
    spill_stores, spill_loads : int
        Bytes that the code's spilling instructions move, each instruction counted once (as `ptxas -v` counts).
    stack : int
        Bytes of local memory per thread, for spills and for arrays that are indexed at run time.
    static_shared, dynamic_shared : int
        Bytes per block.
    barriers : int
        Named barriers.
    max_threads : int
        Per block, from `__launch_bounds__`; 1024 where it says nothing.
    """

    kernel: str
    arch: int
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_shared: int
    dynamic_shared: int
    barriers: int
    max_threads: int

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, static and dynamic."""
        return self.static_shared + self.dynamic_shared

    @property
    def spills(self) -> int:
        """Bytes spilled and refilled; 0 is what every kernel of ours must have."""
        return self.spill_stores + self.spill_loads

    def occupancy(self, threads: int, dynamic_shared: int | None = None) -> int:
        """Return how many blocks of `threads` threads one multiprocessor holds at a time.

        Parameters
        ----------
        threads : int
            Of a block.
        dynamic_shared : int, optional
            Bytes of a block; by default the kernel's own.
        """
        limits = self.blocks_by_limit(threads, dynamic_shared)
        return min(limits.values())

    def occupied(self, threads: int) -> float:
        """Return the share of the warps a multiprocessor can hold that blocks of `threads` threads fill."""
        return self.occupancy(threads) * _ceil(threads, _WARP) / _multiprocessor(self.arch).warps

    def blocks_by_limit(self, threads: int, dynamic_shared: int | None = None) -> dict[str, int]:
        """Return the number of blocks that each limit alone would allow, as `blocks_held` says it."""
        if not 1 <= threads <= self.max_threads:
            raise LaunchError(f"kernel {self.kernel!r} takes 1 to {self.max_threads} threads in a block, got {threads}")
        shared = self.static_shared + (self.dynamic_shared if dynamic_shared is None else dynamic_shared)
        return blocks_held(self.arch, self.registers, threads, shared)


def blocks_held(arch: int, registers: int, threads: int, shared: int = 0) -> dict[str, int]:
    """Return how many blocks each limit of a multiprocessor alone would allow: the smallest one binds.

    The rule is that of the CUDA occupancy calculator: a partition holds as many warps as its registers serve, and a
    block counts as a multiple of the four partitions when a single one must fit.

    Parameters
    ----------
    arch : int
        Ten times the compute capability.
    registers : int
        Of a thread.
    threads, shared : int
        Threads, and bytes of shared memory, of a block.
    """
    sm, warps = _multiprocessor(arch), _ceil(threads, _WARP)
    per_warp = _ceil(max(registers, 1) * _WARP, _REGISTER_UNIT) * _REGISTER_UNIT
    resident = _REGISTERS_PER_SM // _PARTITIONS // per_warp * _PARTITIONS
    fits = per_warp * _ceil(warps, _PARTITIONS) * _PARTITIONS <= _REGISTERS_PER_SM
    per_block = _ceil(shared, _SHARED_UNIT) * _SHARED_UNIT + _SHARED_RESERVED
    return {
        "registers": resident // warps if fits else 0,
        "shared memory": sm.shared_bytes // per_block if shared <= sm.shared_per_block else 0,
        "warps": sm.warps // warps,
        "blocks": sm.blocks,
    }


def _ceil(number: int, unit: int) -> int:
    return -(-number // unit)


def _multiprocessor(arch: int) -> Multiprocessor:
    if arch not in MULTIPROCESSORS:
        known = ", ".join(f"sm_{number}" for number in MULTIPROCESSORS)
        raise CompileError(f"the limits of sm_{arch} are not known", hint=f"they are known for {known}")
    return MULTIPROCESSORS[arch]


def read_resources(cubin: bytes, *, kernel: str | None = None, dynamic_shared: int = 0) -> Resources:
    """Read what a kernel takes from its machine code.

    Parameters
    ----------
    cubin : bytes
    kernel : str, optional
        Which one, where the cubin has several.
    dynamic_shared : int
        Bytes of dynamic shared memory that launches will ask for; the cubin does not know.

    Raises
    ------
    FormatError
        If the bytes are no cubin, or are cut short.
    CompileError
        If there is no such kernel.
    """
    elf = read_cubin(cubin)
    name = _choose(elf.kernels, kernel)
    try:
        return _resources(elf, name, dynamic_shared)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise FormatError(f"the cubin's facts about {name!r} make no sense", hint="compile the kernel again") from error


def _resources(elf: Cubin, name: str, dynamic_shared: int) -> Resources:
    own = {attribute.number: attribute for attribute in elf.attributes(name)}
    stores, loads = _spills(elf, name)
    return Resources(
        kernel=name,
        arch=elf.arch,
        registers=elf.of_symbol(EIATTR_REGCOUNT, name),
        spill_stores=stores,
        spill_loads=loads,
        stack=elf.of_symbol(EIATTR_FRAME_SIZE, name),
        static_shared=_static_shared(elf, name),
        dynamic_shared=dynamic_shared,
        barriers=own[EIATTR_NUM_BARRIERS].value[0] if EIATTR_NUM_BARRIERS in own else 0,
        max_threads=math.prod(own[EIATTR_MAX_THREADS].words()) if EIATTR_MAX_THREADS in own else 1024,
    )


def _static_shared(elf: Cubin, kernel: str) -> int:
    # From Hopper on the system's part lies at the start of the block's memory, and in the section's size.
    section = elf.sections.get(f".nv.shared.{kernel}")
    reserved = _SHARED_RESERVED if elf.arch >= 90 else 0
    return section.size - reserved if section else 0


def _choose(names: Sequence[str], wanted: str | None) -> str:
    if wanted is not None and wanted in names:
        return wanted
    if wanted is None and len(names) == 1:
        return names[0]
    raise CompileError(
        f"the cubin has the kernels {', '.join(sorted(names)) or '(none)'}" + (f", not {wanted}" if wanted else ""),
        hint="name one of them: read_resources(cubin, kernel=...)",
    )


# An instruction has 128 bits since Volta: the operation in bits 0 to 11, the width of a memory access in bits 73 to 75.
_INSTRUCTION_BYTES = 16
_STORE_LOCAL, _LOAD_LOCAL = 0x387, 0x983
_WIDTHS = (1, 1, 2, 2, 4, 8, 16, 16)
_SPILL_NOTE = 1


def _spills(elf: Cubin, kernel: str) -> tuple[int, int]:
    """Return the bytes of the stores and loads that ptxas marked as its spills.

    Notes are pairs (kind, address). Arrays in local memory use the same instructions, unmarked.
    """
    code = elf.sections[f".text.{kernel}"].data
    moved = {_STORE_LOCAL: 0, _LOAD_LOCAL: 0}
    for note in (a for a in elf.attributes(kernel) if a.number == EIATTR_ANNOTATIONS):
        words = note.words()
        for kind, address in zip(words[::2], words[1::2], strict=True):
            bits = int.from_bytes(code[address : address + _INSTRUCTION_BYTES], "little")
            if kind == _SPILL_NOTE and (operation := bits & 0xFFF) in moved:
                moved[operation] += _WIDTHS[bits >> 73 & 7]
    return moved[_STORE_LOCAL], moved[_LOAD_LOCAL]
