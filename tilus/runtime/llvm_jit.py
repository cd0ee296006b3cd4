"""LLVM IR text to object code, and object code to functions in this process.

Compiling and loading are apart, because objects are kept on disk: a kernel of some hundred lines takes 60 ms to compile
and half a millisecond to load. Any thread may call any function here: every module has a context of its own, and
llvmlite lets one thread at a time into LLVM.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tilus.errors import CompileError, Loc
from tilus.runtime.cpu_features import Cpu, host_cpu, llvm
from tilus.runtime.llvm_half import HALF_FUNCTIONS, half_ir

_FILE = "<llvm ir>"
_ERROR = re.compile(r"<string>:(\d+):(\d+): error: (.*)")
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, eq=False)
class Library:
    """Loaded object code; it is unloaded with this object, so whoever calls into it holds it.

    Attributes
    ----------
    addresses : mapping
        Address of every symbol that was asked for.
    """

    addresses: Mapping[str, int]
    _tracker: Any = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedKernel:
    """A kernel in this process: `void kernel(ptr args, i64 first, i64 last, ptr scratch, ptr fault)`.

    Attributes
    ----------
    symbol : str
    address : int
    cost_address : int
        Of 8 bytes, where the thread pool keeps what one block cost last time (in 1/1024 ns; 0: it has not run).
    """

    symbol: str
    address: int
    cost_address: int = field(repr=False)
    _cost: ctypes.c_int64 = field(repr=False)
    _library: Library = field(repr=False)


def compile_object(llvm_ir: str, opt: int = 3, cpu: Cpu | None = None) -> bytes:
    """Compile LLVM IR to an object file.

    Parameters
    ----------
    llvm_ir : str
        A module; its triple and data layout are set here.
    opt : int
        0 to 3. O0 compiles in a third of the time, code is then half as fast.
    cpu : Cpu, optional
        CPU to compile for, by default the one that this process runs on.

    Raises
    ------
    CompileError
        If the text is not valid LLVM IR; it shows the line.
    """
    machine = _machine(opt, cpu or host_cpu())
    with _optimized(llvm_ir, opt, machine) as module:
        return bytes(machine.emit_object(module))


def assembly(llvm_ir: str, opt: int = 3, cpu: Cpu | None = None) -> str:
    """Return the assembly text of what `compile_object` compiles, to read or to count instructions in."""
    machine = _machine(opt, cpu or host_cpu())
    with _optimized(llvm_ir, opt, machine) as module:
        return str(machine.emit_assembly(module))


def load_object(obj: bytes, symbol: str) -> LoadedKernel:
    """Load an object file and find a kernel in it.

    Raises
    ------
    CompileError
        If the bytes are no object file of this machine, lack the symbol, or need one that the process lacks.
    """
    library = load_library(obj, [symbol])
    cost = ctypes.c_int64(0)
    return LoadedKernel(symbol, library.addresses[symbol], ctypes.addressof(cost), cost, library)


def load_library(obj: bytes, symbols: Sequence[str]) -> Library:
    """Load an object file and find symbols in it. Errors are those of `load_object`."""
    builder = llvm().JITLibraryBuilder().add_object_img(obj).add_current_process()
    for name, address in _half_addresses(obj).items():
        builder.import_symbol(name, address)
    return _link(builder, symbols)


def _link(builder: Any, symbols: Sequence[str]) -> Library:
    for symbol in symbols:
        builder.export_symbol(symbol)
    try:
        tracker = builder.link(_jit(), f"object{next(_numbers)}")
    except RuntimeError as error:
        raise CompileError(
            f"LLVM could not load {', '.join(symbols)}: {error}",
            hint="an object from another machine or version must be compiled again; symbols that are missing in this "
            "process are named on standard error",
        ) from None
    return Library({symbol: tracker[symbol] for symbol in symbols}, tracker)


@lru_cache(maxsize=1)
def _jit() -> Any:
    """Return the one JIT of the process. JITLink places code and data of an object together, within their reach."""
    _load_math()
    jit = llvm().create_lljit_compiler(_machine(3, host_cpu()), use_jit_link=True)
    # Never disposed of: at exit the order of destruction is not ours, and a thread may still be running a kernel.
    jit._owned = True
    return jit


def _load_math() -> None:
    """Let kernels find `expf` and friends: the C library has them only if something loaded libm for everyone."""
    name = ctypes.util.find_library("m") if llvm().address_of_symbol("expf") is None else None
    if name is not None:
        llvm().load_library_permanently(name)


def _half_addresses(obj: bytes) -> Mapping[str, int]:
    """Return the conversions of f16 in software that an object may call. A name in its string table tells."""
    if not any(name.encode() in obj for name in HALF_FUNCTIONS):
        return {}
    return _half_library().addresses


@lru_cache(maxsize=1)
def _half_library() -> Library:
    builder = llvm().JITLibraryBuilder().add_object_img(compile_object(half_ir()))
    return _link(builder, HALF_FUNCTIONS)


@lru_cache(maxsize=16)
def _machine(opt: int, cpu: Cpu) -> Any:
    if opt not in range(4):
        raise CompileError(f"the optimisation level is 0, 1, 2 or 3, got {opt!r}")
    target = llvm().Target.from_triple(llvm().get_process_triple())
    return target.create_target_machine(
        cpu=cpu.name, features=cpu.tuned, opt=opt, reloc="pic", codemodel="default", jit=True
    )


@contextmanager
def _optimized(llvm_ir: str, opt: int, machine: Any) -> Iterator[Any]:
    """Parse, verify and optimise a module.

    Every object of LLVM is closed here, inner ones first. Left to the garbage collector, which has no order where a
    traceback holds this frame, a context would be destroyed before its module, and that crashes.
    """
    with llvm().create_context() as context, _parsed(llvm_ir, context) as module:
        # Before the passes: without a data layout they assume a machine with other pointers and alignments.
        module.triple = machine.triple
        module.data_layout = str(machine.target_data)
        with (
            llvm().create_pipeline_tuning_options(speed_level=opt) as tuning,
            llvm().create_pass_builder(machine, tuning) as builder,
            builder.getModulePassManager() as passes,
        ):
            passes.run(module, builder)
        yield module


def _parsed(llvm_ir: str, context: Any) -> Any:
    module = None
    try:
        module = llvm().parse_assembly(llvm_ir, context=context)
        module.verify()
    except RuntimeError as error:
        if module is not None:
            module.close()
        raise _rejected(llvm_ir, str(error)) from None
    return module


def _rejected(llvm_ir: str, message: str) -> CompileError:
    """Point at the line: the parser names it, the verifier quotes it."""
    lines = llvm_ir.splitlines()
    if found := _ERROR.search(message):
        line, column = int(found[1]), int(found[2])
        text = lines[line - 1] if line <= len(lines) else None
        return CompileError(f"LLVM rejects the IR: {found[3]}", loc=Loc(_FILE, line, column, text))
    quoted = {text.strip() for text in message.splitlines()}
    for number, text in enumerate(lines, 1):
        if text.strip() in quoted and text.strip():
            column = len(text) - len(text.lstrip()) + 1
            return CompileError(f"LLVM rejects the IR: {message.strip()}", loc=Loc(_FILE, number, column, text))
    return CompileError(f"LLVM rejects the IR: {message.strip()}")
