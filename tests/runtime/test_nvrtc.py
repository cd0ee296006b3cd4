"""NVRTC in process: both texts of one compilation, and what a user reads when it fails."""

from __future__ import annotations

import builtins
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.runtime.compiled import ARCHS, binary
from tests.runtime.cuda_sources import PIPELINED
from tilus.errors import CompileError
from tilus.runtime import nvrtc, toolchain
from tilus.runtime.elf import read_cubin
from tilus.runtime.nvrtc import compile_cuda

HALF = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void twice(__half2* x, __nv_bfloat162* y) { x[0] = __hadd2(x[0], x[0]); y[0] = __hadd2(y[0], y[0]); }
"""


@pytest.mark.parametrize("arch", ARCHS)
def test_ptx_and_cubin_of_one_source(arch: str) -> None:
    made = binary(PIPELINED, arch)
    assert f".target {arch}\n" in made.ptx
    assert ".entry gemm(" in made.ptx
    assert made.ptx.count("mma.sync.aligned.m16n8k16") >= 2
    assert made.ptx.isascii()
    assert "\0" not in made.ptx
    elf = read_cubin(made.cubin)
    assert elf.kernels == ("gemm",)
    assert f"sm_{elf.arch}" == arch.rstrip("a")
    assert made.warnings == ()


def test_headers_are_found() -> None:
    assert "add.f16x2" in binary(HALF, "sm_80").ptx or "add.rn.f16x2" in binary(HALF, "sm_80").ptx


def test_the_cubin_is_a_whole_file() -> None:
    cubin = binary(PIPELINED, "sm_80").cubin
    phoff, size, count = (int.from_bytes(cubin[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
    assert len(cubin) == phoff + size * count


def test_options_reach_the_compiler() -> None:
    source = 'extern "C" __global__ void f(int* x) { *x = VALUE; }'
    assert "12345" in compile_cuda(source, "sm_80", ["-DVALUE=12345"]).ptx


def test_warnings_are_kept() -> None:
    bounds = "__launch_bounds__(1024, 99)"
    made = compile_cuda(f'extern "C" __global__ void {bounds} f(int* x) {{ int unused; *x = 1; }}', "sm_80")
    compiler, ptxas = made.warnings
    assert '"unused" was declared but never referenced' in compiler
    assert "minnctapersm" in ptxas


def test_a_cuda_error_shows_its_line() -> None:
    source = (
        "\n".join(f"// line {n}" for n in range(1, 41)) + "\n" + PIPELINED.replace("float c[2][4]", "flaot c[2][4]")
    )
    line = next(n for n, text in enumerate(source.splitlines(), 1) if "flaot" in text)
    with pytest.raises(CompileError) as caught:
        compile_cuda(source, "sm_80")
    text = str(caught.value)
    assert "NVRTC rejected the CUDA source for sm_80" in text
    assert f'kernel.cu({line}): error: identifier "flaot" is undefined' in text
    assert f">    {line} |   flaot c[2][4] = {{}};" in text
    assert f"     {line - 1} | " in text
    assert "TILUS_DUMP_DIR" in text


def test_a_ptx_error_shows_its_line_of_ptx() -> None:
    with pytest.raises(CompileError) as caught:
        compile_cuda(PIPELINED.replace("row.col", "row.foo"), "sm_80")
    text = str(caught.value)
    assert "Unknown modifier '.foo'" in text
    assert re.search(r"^> +\d+ \| \tmma\.sync\.aligned\.m16n8k16\.row\.foo", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("#include <nowhere.h>", 'cannot open source file "nowhere.h"'),
        ('extern "C" __global__ void f() { asm volatile("wgmma.fence.sync.aligned;"); }', "not supported on .target"),
        (
            'extern "C" __global__ void f(int* x) { __shared__ int s[99999]; s[x[0]] = 1; x[0] = s[1]; }',
            "too much shared",
        ),
        ("int x =", "expected an expression"),
        ("", None),
    ],
)
def test_other_sources(source: str, words: str | None) -> None:
    if words is None:
        assert ".target sm_80" in compile_cuda(source, "sm_80").ptx
        return
    with pytest.raises(CompileError, match=re.escape(words)):
        compile_cuda(source, "sm_80")


@pytest.mark.parametrize("arch", ["sm_42", "compute_80", "90a", "", "sm_80; rm"])
def test_unknown_architecture(arch: str) -> None:
    with pytest.raises(CompileError, match="does not know the architecture") as caught:
        compile_cuda(HALF, arch)
    assert "sm_80, " in str(caught.value)


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_cupy(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("cupy_backends"):
            raise ImportError("No module named 'cupy_backends'")
        return importing(name, *args, **kwargs)

    importing = builtins.__import__
    nvrtc._nvrtc.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without_cupy)
    with pytest.raises(CompileError, match="cannot be loaded") as caught:
        compile_cuda(HALF, "sm_80")
    assert "pip install 'tilus-vm[cuda]'" in str(caught.value)


@pytest.mark.parametrize(
    ("find", "wheel"), [("include_folder", "nvidia-cuda-runtime"), ("nvdisasm", "nvidia-cuda-nvdisasm")]
)
def test_a_missing_file_names_its_wheel(find: str, wheel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function = getattr(toolchain, find)
    function.cache_clear()
    monkeypatch.setattr(toolchain, "_wheel_folders", list)
    monkeypatch.setattr(toolchain, "_toolkit_folders", list)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompileError, match=wheel) as caught:
        function()
    assert "pip install 'tilus-vm[cuda]'" in str(caught.value)


def test_toolchain_version_names_what_decides_the_code() -> None:
    text = nvrtc.toolchain_version()
    assert re.match(r"nvrtc \d+\.\d+, nvidia-cuda-nvrtc [\d.]+, nvidia-cuda-runtime [\d.]+", text)


def test_threads_may_compile_at_once() -> None:
    sources = [f'extern "C" __global__ void f(int* x) {{ *x = {n}; }}' for n in range(4)]
    with ThreadPoolExecutor(2) as pool:
        cubins = list(pool.map(lambda source: compile_cuda(source, "sm_80").cubin, sources))
    assert cubins == [compile_cuda(source, "sm_80").cubin for source in sources]
    assert len(set(cubins)) == 4
