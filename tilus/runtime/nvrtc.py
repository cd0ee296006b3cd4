"""CUDA C++ to PTX and machine code in this process, through NVRTC. Needs no GPU, driver, toolkit or files.

`cupy_backends` binds NVRTC without asking for a device (`cupy.RawModule` asks for one). One compilation gives both
texts: the PTX is what the machine code was made from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tilus.errors import CompileError
from tilus.runtime.toolchain import INSTALL_HINT, WHEELS, include_folder, wheel_version

SOURCE_NAME = "/kernel.cu"  # before another name NVRTC puts the folder of the process, in what line information names
_CONTEXT = 2  # lines shown before and after one with an error
_MAX_EXCERPTS = 3
_ERROR_LINE = re.compile(rf"^{re.escape(SOURCE_NAME)}\((\d+)\): (?:catastrophic )?error", re.MULTILINE)
_PTX_ERROR_LINE = re.compile(r"^ptxas .*, line (\d+); error", re.MULTILINE)
_ARCH = re.compile(r"sm_\d{2,3}[af]?")


@dataclass(frozen=True, slots=True)
class CudaBinary:
    """What one compilation gives.

    Attributes
    ----------
    ptx : str
        PTX text; for an architecture such as `sm_90a` with its special instructions.
    cubin : bytes
        Machine code, a whole ELF file.
    log : str
        What the compiler and ptxas said, warnings and resource usage (`ptxas -v`) included.
    """

    ptx: str
    cubin: bytes
    log: str

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of the log, one line each."""
        return tuple(line for line in self.log.splitlines() if re.search(r"(^ptxas|:) warning\b", line))


@lru_cache(maxsize=1)
def _nvrtc() -> Any:
    try:
        from cupy_backends.cuda.libs import nvrtc

        nvrtc.getVersion()  # the first call is what loads the shared library
    except (ImportError, OSError, RuntimeError) as error:
        raise CompileError(f"NVRTC, the CUDA compiler, cannot be loaded: {error}", hint=INSTALL_HINT) from error
    return nvrtc


@lru_cache(maxsize=1)
def toolchain_version() -> str:
    """Return the versions that machine code depends on, for the key of a cache."""
    major, minor = _nvrtc().getVersion()
    return f"nvrtc {major}.{minor}, " + ", ".join(f"{name} {wheel_version(name)}" for name in WHEELS)


def supported_archs() -> tuple[str, ...]:
    """Return the architectures that the installed NVRTC knows, without the suffixes of special instruction sets."""
    return tuple(f"sm_{arch}" for arch in _nvrtc().getSupportedArchs())


def _check_arch(arch: str) -> None:
    if _ARCH.fullmatch(arch) and arch.rstrip("af") in supported_archs():
        return
    raise CompileError(
        f"NVRTC does not know the architecture {arch!r}", hint=f"it knows {', '.join(supported_archs())}, and sm_90a"
    )


def compile_cuda(source: str, arch: str, options: Sequence[str] = ()) -> CudaBinary:
    """Compile CUDA C++ for one architecture.

    Parameters
    ----------
    source : str
        CUDA C++17. The headers of the CUDA runtime (`cuda_fp16.h`, ...) are on the include path.
    arch : str
        `sm_80`, `sm_86`, `sm_89`, `sm_90a`, `sm_100a`, `sm_120a`, ...
    options : sequence of str
        Further options of NVRTC, such as `--maxrregcount=64`.

    Raises
    ------
    CompileError
        If the compiler rejects the source: with its log and the lines of the source that it names. If a wheel is
        missing: with what to install.
    """
    nvrtc = _nvrtc()
    _check_arch(arch)
    flags = (f"--gpu-architecture={arch}", "--std=c++17", f"-I{include_folder()}", "--ptxas-options=-v", *options)
    program = nvrtc.createProgram(source, SOURCE_NAME, (), ())
    try:
        nvrtc.compileProgram(program, flags)
        return CudaBinary(_ptx(nvrtc, program), _whole_elf(nvrtc.getCUBIN(program)), _log(nvrtc, program))
    except nvrtc.NVRTCError as error:
        log = _log(nvrtc, program) or str(error)
        raise _rejection(log, _excerpts(log, source, arch, flags), arch) from None
    finally:
        nvrtc.destroyProgram(program)


def _ptx(nvrtc: Any, program: Any) -> str:
    ptx: bytes = nvrtc.getPTX(program)
    return ptx.decode().rstrip("\0")


def _log(nvrtc: Any, program: Any) -> str:
    log: str = nvrtc.getProgramLog(program)
    return log.rstrip("\0 \n")


def _whole_elf(cubin: bytes) -> bytes:
    """Return the cubin with the last byte of its file, which `getCUBIN` drops as if it ended a C string.

    The driver does not notice (CPython keeps a zero there), but every tool that checks the file's size does.
    """
    e_phoff = int.from_bytes(cubin[32:40], "little")
    e_phentsize, e_phnum = int.from_bytes(cubin[54:56], "little"), int.from_bytes(cubin[56:58], "little")
    return cubin.ljust(e_phoff + e_phentsize * e_phnum, b"\0")


def _rejection(log: str, excerpts: Sequence[str], arch: str) -> CompileError:
    return CompileError(
        f"NVRTC rejected the CUDA source for {arch}:\n" + "\n\n".join((log, *excerpts)),
        hint="generated code should always compile: please report it (TILUS_DUMP_DIR=<folder> keeps every stage)",
    )


def _excerpts(log: str, source: str, arch: str, flags: Sequence[str]) -> list[str]:
    """Return the places that the log names: lines of the CUDA source, or of the PTX where ptxas is what complains."""
    pattern = _ERROR_LINE
    if _PTX_ERROR_LINE.search(log):
        source, pattern = _ptx_before_ptxas(source, arch, flags), _PTX_ERROR_LINE
    numbers = sorted({int(number) for number in pattern.findall(log)})
    return [_excerpt(source, number) for number in numbers[:_MAX_EXCERPTS]]


def _ptx_before_ptxas(source: str, arch: str, flags: Sequence[str]) -> str:
    """Compile for the virtual architecture: PTX comes out even if ptxas would reject it."""
    nvrtc = _nvrtc()
    program = nvrtc.createProgram(source, SOURCE_NAME, (), ())
    try:
        nvrtc.compileProgram(program, (f"--gpu-architecture={arch.replace('sm_', 'compute_')}", *flags[1:]))
        return _ptx(nvrtc, program)
    finally:
        nvrtc.destroyProgram(program)


def _excerpt(source: str, number: int) -> str:
    """Return the lines around one with an error, numbered, the line itself marked."""
    lines = source.splitlines()
    span = range(max(number - _CONTEXT, 1), min(number + _CONTEXT, len(lines)) + 1)
    return "\n".join(f"{'>' if at == number else ' '} {at:5} | {lines[at - 1]}" for at in span)
