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
from tilus.runtime.resources import read_resources
from tilus.runtime.simulate import load_simt

_OPTIONS = ("--generate-line-info",)


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
    text, binary = _with_fewest_spills(source.text, target.name)
    meta = {
        "kernel": source.kernel_name,
        "shared": source.dynamic_shared_bytes,
        "threads": lowered.num_threads,
        "windows": source.windows,
        "dependent": source.dependent,
    }
    return {
        "meta.json": json.dumps(meta).encode(),
        "kernel.cu": text.encode(),
        "kernel.ptx": binary.ptx.encode(),
        "kernel.cubin": binary.cubin,
    }


def _with_fewest_spills(text: str, arch: str) -> tuple[str, CudaBinary]:
    """Compile; return the text and the code that spill least.

    The compiler aims at several blocks for a multiprocessor. Where that makes it spill, it is told that one is enough,
    or that threads may have all registers.
    """
    alone = re.sub(r"__launch_bounds__\((\d+)\)", r"__launch_bounds__(\1, 1)", text)
    found: list[tuple[int, str, CudaBinary]] = []
    for source, options in ((text, ()), (alone, ()), (text, ("--maxrregcount=255",))):
        binary = compile_cuda(source, arch, (*_OPTIONS, *options))
        spills = read_resources(binary.cubin).spills
        found.append((spills, source, binary))
        if not spills:
            break
    _, source, binary = min(found, key=lambda each: each[0])
    return source, binary


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
