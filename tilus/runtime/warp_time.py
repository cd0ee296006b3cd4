"""How long a warp by itself takes for instructions, read from the control bits of its machine code.

Since Volta the compiler schedules, not the hardware: 21 bits of every instruction say for how many cycles the warp
stalls before its next one, which of six scoreboards the instruction sets when its result is there (and when its
operands have been read), and on which of them it waits. The bits are laid out as in Jia et al., "Dissecting the NVIDIA
Volta GPU Architecture via Microbenchmarking" (2018), chapter 2. Stalls cover arithmetic of fixed latency, tensor cores
included; scoreboards all else. Going through the instructions in order gives the cycles of a warp that nobody disturbs:
a scheduler with few warps cannot be faster.
"""

from __future__ import annotations

from collections.abc import Iterable

from tilus.runtime.elf import read_cubin
from tilus.runtime.sass import Instruction

_BYTES = 16
_SCOREBOARDS = 6
_NONE = 7
_OPERANDS_READ = 15  # cycles after which a memory instruction has read its registers
_VARIABLE = 25  # cycles of results that are late but come from no memory: conversions, reciprocals, special registers
# Cycles from issue to result by kind of memory: Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU
# Architecture" (arXiv:2402.13499), tables of latencies. That of device memory depends on how busy it is.
_LATENCY = {"lds": 30, "sts": 20, "const": 40, "shuffle": 25}


def warp_cycles(instructions: Iterable[Instruction], cubin: bytes, kernel: str, latency: int) -> int:
    """Return the cycles of one warp alone.

    Parameters
    ----------
    instructions : iterable of Instruction
        In the order of execution: a trip of a loop, or any stretch of straight code.
    cubin : bytes
        Where they are from.
    kernel : str
        The function's name.
    latency : int
        Cycles of a load from device memory.

    Notes
    -----
    Copies to shared memory are asynchronous: waiting for their data, and for other warps at a barrier, is not counted.
    """
    code = read_cubin(cubin).sections[f".text.{kernel}"].data
    now, ready = 0, [0] * _SCOREBOARDS
    for instruction in instructions:
        bits = int.from_bytes(code[instruction.address : instruction.address + _BYTES], "little") >> 105
        stall, written, read, waits = bits & 15, bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63
        now = max([now, *(ready[i] for i in range(_SCOREBOARDS) if waits >> i & 1)])
        for board, after in ((written, _latency(instruction, latency)), (read, _OPERANDS_READ)):
            if board != _NONE:  # it counts: who waits for it waits for all that have set it
                ready[board] = max(ready[board], now + after)
        now += max(stall, 1)
    return now


def _latency(instruction: Instruction, far: int) -> int:
    kind = instruction.klass.kind
    if instruction.opcode == "LDGSTS" or instruction.klass.pipe == "tma":
        return _OPERANDS_READ
    return far if kind in ("gmem", "local") else _LATENCY.get(kind, _VARIABLE)
