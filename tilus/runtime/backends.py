"""Backends behind one interface: build files from a lowered program, load files into something to launch.

Code of one kind may run on several machines: `BACKENDS` are by `Target.kind`, `LOADERS` by `Target.machine`.
"""

from __future__ import annotations

import ctypes
import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tilus import vm
from tilus.codegen import cuda, llvm
from tilus.codegen.cuda.source import CudaSource
from tilus.errors import LaunchError
from tilus.ir.program import Program
from tilus.ir.target import Target
from tilus.runtime.arguments import Buffer, as_numpy, number_of, slot_format
from tilus.runtime.built import Built, Files, Launch
from tilus.runtime.cpu_features import cache_tag, host_cpu
from tilus.runtime.cpu_pool import launch as launch_blocks
from tilus.runtime.launch_cuda import CudaKernel
from tilus.runtime.llvm_jit import compile_object, load_object
from tilus.runtime.nvrtc import CudaBinary, compile_cuda, toolchain_version
from tilus.runtime.resources import MOST_REGISTERS, blocks_held, read_resources
from tilus.runtime.simulate import load_simt

_OPTIONS = ("--generate-line-info",)
_SMALL_BLOCK = 256  # threads
_MANY_SPILLS = 128  # bytes: fewer another way may do without, although it gives no more registers


@dataclass(frozen=True, slots=True)
class Backend:
    """How one kind of code is built.

    Attributes
    ----------
    names : tuple of str
        Files of an entry in the cache.
    version : callable
        Toolchain text that belongs into the cache key.
    build : callable
        Lowered program and target to files.
    """

    names: tuple[str, ...]
    version: Callable[[], str]
    build: Callable[[Program, Target], Files]


def _build_cuda(lowered: Program, target: Target) -> Files:
    source = cuda.emit(lowered, target)
    assert lowered.num_threads is not None
    text, binary = _compiled(source, target, lowered.num_threads)
    meta = {
        "kernel": source.kernel_name,
        "shared": source.dynamic_shared_bytes,
        "threads": source.threads,
        "windows": source.windows,
        "dependent": source.dependent,
    }
    return {
        "meta.json": json.dumps(meta).encode(),
        "kernel.cu": text.encode(),
        "kernel.ptx": binary.ptx.encode(),
        "kernel.cubin": binary.cubin,
    }


def _compiled(source: CudaSource, target: Target, threads: int) -> tuple[str, CudaBinary]:
    """Compile code for blocks in which so many threads compute; return the text and the code that are best.

    The compiler aims at several blocks for a multiprocessor. Where that makes it spill, it is told that one is enough,
    or that threads may have all registers. That is told first of kernels with a producer, for which it keeps so few
    that it computes addresses anew in every trip; but two of their blocks should find room.
    """
    produced, text = source.threads != threads, source.text
    alone = re.sub(r"__launch_bounds__\((\d+)\)", r"__launch_bounds__(\1, 1)", text)
    usual, all_registers = (text, ()), (text, (f"--maxrregcount={MOST_REGISTERS}",))
    ways = (all_registers, usual, (alone, ())) if produced else (usual, (alone, ()), all_registers)
    found: list[tuple[tuple[int, bool], str, CudaBinary]] = []
    for written, options in ways:
        binary = compile_cuda(written, target.name, (*_OPTIONS, *options))
        taken = read_resources(binary.cubin)
        held = blocks_held(taken.arch, taken.registers, source.threads)["registers"]
        crowded = produced and held < 2 and source.threads <= _SMALL_BLOCK
        found.append(((taken.spills, crowded), written, binary))
        helpless = taken.spills > _MANY_SPILLS and taken.registers == MOST_REGISTERS  # all that there are
        if (helpless and not crowded) or not any(found[-1][0]):
            break
    _, text, binary = min(found, key=lambda each: each[0])
    return text, binary


def _load_cuda(built: Built) -> Launch:
    meta = json.loads(built.files["meta.json"])
    kernel = CudaKernel(built.files["kernel.cubin"], meta["kernel"], meta["shared"], meta["dependent"])
    kinds = [p.var.type for p in built.program.params]
    threads = (meta["threads"], 1, 1)

    def launch(values: Sequence[Buffer | int | float], arrays: Sequence[Any], grid: Sequence[int]) -> None:
        args = [kernel.argument(kind.dtype, v.address if isinstance(v, Buffer) else v, isinstance(v, Buffer))
                for kind, v in zip(kinds, values, strict=True)]  # fmt: skip
        kernel.launch((*grid, 1, 1)[:3], threads, args)

    return launch


def _build_cpu(lowered: Program, target: Target) -> Files:
    source = llvm.emit(lowered, target, host_cpu().present)
    meta = {"kernel": source.kernel_name, "scratch": source.scratch_bytes, "messages": list(source.messages)}
    return {
        "meta.json": json.dumps(meta).encode(),
        "kernel.ll": source.text.encode(),
        "kernel.o": compile_object(source.text),
    }


def _load_cpu(built: Built) -> Launch:
    meta = json.loads(built.files["meta.json"])
    kernel = load_object(built.files["kernel.o"], meta["kernel"])
    slots = struct.Struct("<" + "".join(slot_format(p.var.type) for p in built.program.params) + "3q")
    scratch = meta["scratch"]

    def launch(values: Sequence[Buffer | int | float], arrays: Sequence[Any], grid: Sequence[int]) -> None:
        extents = (*grid, 1, 1)[:3]
        fault = (ctypes.c_int64 * 8)()
        args = slots.pack(*map(number_of, values), *extents)
        launch_blocks(kernel, args, extents[0] * extents[1] * extents[2], scratch, fault)
        if fault[0]:
            raise LaunchError(f"block {fault[1]}: {meta['messages'][fault[0] - 1]}")

    return launch


def _load_vm(built: Built) -> Launch:
    return lambda values, arrays, grid: vm.run(built.program, [as_numpy(a) for a in arrays])


BACKENDS: dict[str, Backend] = {
    "cuda": Backend(("meta.json", "kernel.cu", "kernel.ptx", "kernel.cubin"), toolchain_version, _build_cuda),
    "cpu": Backend(("meta.json", "kernel.ll", "kernel.o"), cache_tag, _build_cpu),
}
LOADERS: dict[str, Callable[[Built], Launch]] = {
    "cuda": _load_cuda,
    "cpu": _load_cpu,
    "vm": _load_vm,
    "simt": load_simt,
}
