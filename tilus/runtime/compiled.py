"""A program compiled for one target: every stage of it to look at, and a launch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tilus.errors import LaunchError, TilusError
from tilus.ir.instructions import AtomicAdd, GlobalView, StoreGlobal
from tilus.ir.node import walk
from tilus.ir.printer import to_text
from tilus.ir.program import Program
from tilus.ir.stmt import InstStmt
from tilus.ir.target import Target
from tilus.passes.pipeline import lower
from tilus.runtime import cache
from tilus.runtime.arguments import Buffer, check_argument, check_writable, copy_back, make_contiguous
from tilus.runtime.backends import BACKENDS, LOADERS
from tilus.runtime.bounds import Check, bounds_check
from tilus.runtime.built import Files, Launch
from tilus.runtime.certificate import Certificate, certify
from tilus.runtime.grid import Grid, check_grid, grid_function
from tilus.runtime.knobs import knobs
from tilus.runtime.resources import Resources, read_resources
from tilus.runtime.sass import disassemble


class CompiledKernel:
    """A program compiled for one target.

    Attributes
    ----------
    program : Program
        As the author wrote it.
    target : Target
    ir : Program
        Lowered for the target: with layouts and the selected hardware instructions.
    source, ptx, cubin, sass, resources
        CUDA C++ text, PTX text, machine code, its disassembly, registers and spills; CUDA targets only.
    llvm, object
        LLVM IR text and machine code; the CPU target only.
    """

    def __init__(self, program: Program, target: Target) -> None:
        self.program = program
        self.target = target
        self._kinds = [p.var.type for p in program.params]
        self._names = [p.var.name for p in program.params]

    def __repr__(self) -> str:
        return f"<compiled kernel {self.program.name} for {self.target.name}>"

    def build(self) -> None:
        """Make every stage up to machine code, from the disk cache where it has them; errors come here, not later."""
        _ = self.files if self.target.kind in BACKENDS else self.ir

    @cached_property
    def ir(self) -> Program:
        """The lowered program."""
        return lower(self.program, self.target.code, hook=_dump_hook(self.program, self.target.code))

    @cached_property
    def cache_key(self) -> str:
        """What names its files in the disk cache, and everything else that follows from them."""
        return cache.cache_key(
            ir=to_text(self.program),
            target=repr(self.target.code),
            versions=BACKENDS[self.target.kind].version(),
            compiler=cache.fingerprint(),
        )

    @cached_property
    def files(self) -> Files:
        """The artefacts by file name, from the disk cache when it has them."""
        backend = BACKENDS.get(self.target.kind)
        if backend is None:
            return {}
        target = self.target.code
        found = None if knobs.always_compile else cache.get(self.cache_key, backend.names)
        if found is None:
            found = backend.build(self.ir, target)
            cache.put(self.cache_key, found)
        elif knobs.dump_dir:
            _ = self.ir  # lowered again, for the dump alone
        _dump_files(self.program, target, found)
        return found

    def _text(self, name: str) -> str:
        return self._file(name).decode()

    def _file(self, name: str) -> bytes:
        if name not in self.files:
            wanted = {"kernel.o": "the cpu target", "kernel.ll": "the cpu target"}.get(name, "a CUDA target")
            raise TilusError(f"{name} exists for {wanted}; this kernel is compiled for {self.target.name}")
        return self.files[name]

    @property
    def source(self) -> str:
        """CUDA C++ text."""
        return self._text("kernel.cu")

    @property
    def ptx(self) -> str:
        """PTX text."""
        return self._text("kernel.ptx")

    @property
    def cubin(self) -> bytes:
        """GPU machine code, an ELF file."""
        return self._file("kernel.cubin")

    @cached_property
    def sass(self) -> str:
        """Disassembly of the GPU machine code."""
        return disassemble(self.cubin)

    @cached_property
    def resources(self) -> Resources:
        """Registers, spills and shared memory of the GPU machine code."""
        return read_resources(self.cubin, dynamic_shared=json.loads(self.files["meta.json"])["shared"])

    @property
    def llvm(self) -> str:
        """LLVM IR text."""
        return self._text("kernel.ll")

    @property
    def object(self) -> bytes:
        """CPU machine code, a relocatable object file."""
        return self._file("kernel.o")

    @cached_property
    def _grid(self) -> Grid:
        return grid_function(self.program)

    @cached_property
    def _check(self) -> Check | None:
        return bounds_check(self.program)

    @cached_property
    def _launch(self) -> Launch:
        return LOADERS[self.target.machine](self)

    @cached_property
    def written(self) -> frozenset[int]:
        """Positions of the parameters that the program may write to."""
        nodes = list(walk(self.program))
        pointers = {n.out: n.inst.ptr for n in nodes if isinstance(n, InstStmt) and isinstance(n.inst, GlobalView)}
        stored = {pointers[n.view] for n in nodes if isinstance(n, StoreGlobal | AtomicAdd)}
        return frozenset(i for i, p in enumerate(self.program.params) if p.var in stored)

    def launch(self, *args: Any) -> None:
        """Run the kernel on arguments that live where the target is."""
        self.launch_values(self._checked(args), args)

    def check(self, *args: Any, landings: Sequence[str] = ("late", "early")) -> Certificate:
        """Run the PTX of a CUDA target on the CPU and say what was found; see `Certificate`.

        Parameters
        ----------
        *args
            As for `launch`: arrays on the CPU, which are written to, and numbers.
        landings : sequence of str
            When asynchronous copies land, in a run for each: as `late` as they may, or `early`.
        """
        _ = self.ptx  # or the error that says for which targets there is any
        found: list[Certificate] = []

        def run(values: Sequence[Buffer | int | float], arrays: Sequence[Any], extents: Sequence[int]) -> None:
            found.append(certify(self, values, arrays, extents, landings))

        self.launch_values(self._checked(args), args, run)
        if not found:
            raise LaunchError(f"kernel {self.program.name!r} has no blocks for these arguments")
        return found[0]

    def _checked(self, args: Sequence[Any]) -> list[Buffer | int | float]:
        return [check_argument(n, k, a) for n, k, a in zip(self._names, self._kinds, args, strict=True)]

    def launch_values(
        self, values: list[Buffer | int | float], args: Sequence[Any], launch: Launch | None = None
    ) -> None:
        """Run the kernel on checked arguments: what to pass, and the objects behind it.

        Arrays need not be contiguous: such a one is copied, and copied back if the kernel writes to it.
        """
        for i in self.written:
            check_writable(self._names[i], args[i])
        arrays, values, copies = make_contiguous(args, values)
        self.run(values, arrays, launch)
        for i in copies:
            if i in self.written:
                copy_back(arrays[i], args[i])

    def run(self, values: Sequence[Buffer | int | float], arrays: Sequence[Any], launch: Launch | None = None) -> None:
        """Run on checked values; `arrays` are the objects behind them. By default on the target's machine.

        Raises
        ------
        LaunchError
            If the grid is too large, or a view, element or shared tile reaches beyond what there is.
        """
        try:
            extents = self._grid(values)
            if check_grid(extents, self.program.name, self.target.kind, self.program.cluster) == 0:
                return
            if self._check is not None:
                self._check(values, extents)
        except ZeroDivisionError as error:
            given = ", ".join(f"{n}={v}" for n, v in zip(self._names, values, strict=True) if not isinstance(v, Buffer))
            raise LaunchError(f"kernel {self.program.name!r} divides by zero for {given}") from error
        (launch or self._launch)(values, arrays, extents)


def _folder(program: Program, target: Target) -> Path | None:
    if not knobs.dump_dir:
        return None
    folder = Path(knobs.dump_dir) / f"{program.name}-{target.name}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _dump_hook(program: Program, target: Target) -> Callable[[str, Program], None] | None:
    """Return a hook that writes the program after every pass, numbered in their order."""
    folder = _folder(program, target)
    if folder is None:
        return None
    (folder / "00-program.txt").write_text(to_text(program))
    count = iter(range(1, 1000))

    def write(name: str, after: Program) -> None:
        (folder / f"{next(count):02}-{name}.txt").write_text(to_text(after))

    return write


def _dump_files(program: Program, target: Target, files: Files) -> None:
    folder = _folder(program, target)
    for name, data in files.items() if folder else ():
        (folder / name).write_bytes(data)  # type: ignore[operator]
