"""The PTX of a GPU as a target of calls: `simt:sm_90a` runs where arrays of the CPU live, and raises what it finds."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import tilus
from tests.cli import wrong_kernels
from tests.test_scale_rows import arrays, scale_rows
from tilus import f32, i32
from tilus.errors import LaunchError, VMError
from tilus.ir.expr import Tensor, Var
from tilus.ir.node import rewrite
from tilus.ir.parser import parse
from tilus.ir.printer import to_text
from tilus.ir.target import BY_NAME, CUDA_TARGETS, TARGETS, target
from tilus.kernels.linear import QuantLinear
from tilus.runtime.arguments import Buffer, check_argument
from tilus.runtime.compiled import CompiledKernel
from tilus.runtime.simulate import simulate
from tilus.runtime.weights.packing import native_pack

SIMT = ("simt:sm_80", "simt:sm_90a")


def test_the_compiler_does_not_know_what_runs_its_code():
    assert [BY_NAME[f"simt:{name}"].code for name in CUDA_TARGETS] == [TARGETS[name] for name in CUDA_TARGETS]
    assert {t.machine for t in TARGETS.values()} == {"vm", "cpu", "cuda"}
    assert target("simt") is target("simt:sm_80")
    assert (target("simt:sm_90a").machine, target("simt:sm_90a").kind) == ("simt", "cuda")
    assert not any(name.startswith("simt") for name in TARGETS)


@pytest.mark.parametrize("place", SIMT)
def test_a_call_runs_the_ptx(place):
    x, s, expected = arrays(3, 200)
    y = np.full_like(x, np.nan)
    with tilus.knobs.scope(target=place):
        scale_rows(x, s, y, 3, 200, BN=64)
    np.testing.assert_array_equal(y, expected)


def test_torch_tensors_and_arrays_with_gaps(monkeypatch):
    monkeypatch.setenv("TILUS_TARGET", "simt")
    x, s, expected = arrays(4, 100)
    wide = torch.zeros(4, 200, dtype=torch.float16)
    y = wide[:, ::2]
    scale_rows(torch.from_numpy(x), torch.from_numpy(s), y, 4, 100, BN=64)
    np.testing.assert_array_equal(y.numpy(), expected)
    assert not wide[:, 1::2].any()


def test_the_files_are_those_of_the_gpu(tmp_path):
    with tilus.knobs.scope(cache_dir=tmp_path):
        real, simulated = (scale_rows.compile(target=name, BN=128) for name in ("sm_90a", "simt:sm_90a"))
        assert len(list(tmp_path.glob("??/*/meta.json"))) == 1
    assert simulated.files == real.files
    assert simulated.resources == real.resources
    assert "scale_rows" in simulated.sass
    assert ".loc" in simulated.ptx
    assert str(Path.cwd()).encode() not in simulated.cubin
    assert repr(simulated) == "<compiled kernel scale_rows for simt:sm_90a>"


def test_elements_of_less_than_a_byte_are_stored_by_words():
    @tilus.kernel
    def copy(x: tilus.ptr[tilus.u3], y: tilus.ptr[tilus.u3], n: i32):
        tilus.launch(blocks=1, warps=1)
        tile = tilus.load_global(tilus.global_view(x, shape=(n,)), offset=(0,), shape=(32,))
        tilus.store_global(tilus.global_view(y, shape=(n,)), tile, offset=(0,))

    codes = tilus.u3.pack(np.arange(14) % 8)
    y = np.zeros(len(codes), np.uint8)
    with tilus.knobs.scope(target="simt"):
        copy(codes, y, 14)
    np.testing.assert_array_equal(tilus.u3.unpack(y, 14), np.arange(14) % 8)


def test_numbers_of_every_type():
    @tilus.kernel
    def store(y: tilus.ptr[f32], a: tilus.f16, b: tilus.i8, c: tilus.u64, d: tilus.bf16):
        tilus.launch(blocks=1, warps=1)
        value = a.to(f32) + b.to(f32) + c.to(f32) + d.to(f32)
        tilus.store_global(tilus.global_view(y, shape=(1,)), tilus.full((1,), value, f32), offset=(0,))

    y = np.zeros(1, np.float32)
    with tilus.knobs.scope(target="simt:sm_90a"):
        store(y, 0.5, -3, 1 << 20, 2.0)
    assert y == (1 << 20) - 0.5


def test_what_a_kernel_prints_is_printed(capsys):
    @tilus.kernel
    def show(n: i32):
        tilus.launch(blocks=2, warps=1)
        print(f"n is {n}")

    with tilus.knobs.scope(target="simt"):
        show(7)
    assert capsys.readouterr().out == "n is 7\n" * 2


# --- the library ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", SIMT)
def test_a_product_takes_the_packed_order_of_a_gpu(place):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(24, 80)).astype(np.float16)
    x = rng.integers(-3, 4, (2, 80)).astype(np.float16)
    q = tilus.quantize(weight, "u3", 16, scale_dtype="f16")
    expected = tilus.matmul(x, q)
    with tilus.knobs.scope(target=place):
        found = tilus.matmul(x, q)
        assert q.packed_for("cuda").format.pack == native_pack(tilus.u3, "cuda")
    np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=2**-9)
    assert found.any()


def test_a_layer_of_torch():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 16, dtype=torch.bfloat16)
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    expected = QuantLinear.from_linear(linear, "u4", 32)(x)
    with tilus.knobs.scope(target="simt:sm_90a"):
        layer = QuantLinear.from_linear(linear, "u4", 32)
        assert layer.weight.format.pack == native_pack(tilus.u4, "cuda", tilus.bf16)
        found = layer(x)
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-6)


def test_tuning_measures_on_the_machine():
    x = np.arange(300, dtype=np.float16)
    y = np.zeros_like(x)
    with tilus.knobs.scope(target="simt"):
        wrong_kernels.tuned(x, y, 300)
    np.testing.assert_array_equal(y, 2 * x)
    (best,) = wrong_kernels.tuned.best.values()
    assert best in wrong_kernels.tuned.candidates


# --- findings ---------------------------------------------------------------------------------------------------------


def test_a_fault_is_an_error_with_the_line_and_what_to_do():
    x, y = np.zeros(256, np.float32), np.zeros(256, np.float32)
    with tilus.knobs.scope(target="simt"), pytest.raises(VMError) as caught:
        wrong_kernels.fold(x, y, 256)
    error = caught.value
    source = Path(wrong_kernels.__file__).read_text().splitlines()
    assert error.loc.file == wrong_kernels.__file__
    assert "lower = tilus.load_shared(shared" in source[error.loc.line - 1]
    assert "race: load races with a write by thread" in str(error)
    assert "tensor 'shared'" in str(error)
    assert f"the other access is on line {error.loc.line - 1}; a sync() between the two orders them" in error.hint
    assert f"also race at {wrong_kernels.__file__}:{error.loc.line + 1}:" in error.hint


def test_a_write_of_the_wrong_kernel_is_seen_and_its_results_are_kept():
    """What ran has run: results are there to look at, as after a fault on a GPU."""
    x, index, y = np.arange(4, dtype=np.float32), np.array([1, 4, 2], np.int32), np.zeros(3, np.float32)
    with tilus.knobs.scope(target="simt:sm_90a"), pytest.raises(VMError, match="at byte 16 of 'x', which has 16 bytes"):
        wrong_kernels.gather(x, index, y, 3)
    assert (y[0], y[2]) == (1, 2)


KERNEL = """
import tilus
from tilus import f32

{blank}
@tilus.kernel
def swap(y: tilus.ptr[f32]):
    tilus.launch(blocks=1, warps=4)
    shared = tilus.alloc_shared(f32, shape=(128,))
    tilus.store_shared(shared, tilus.full((128,), 1.0, f32))
    tile = tilus.load_shared(shared, offset=(64,), shape=(64,))
    tilus.store_global(tilus.global_view(y, shape=(64,)), tile, offset=(0,))
"""


def test_equal_programs_of_different_files_have_lines_of_their_own(tmp_path):
    """They share an entry of the cache, which therefore cannot hold lines."""
    found = []
    for name, blank in (("one", ""), ("two", "\n" * 9)):
        path = tmp_path / f"{name}.py"
        path.write_text(KERNEL.format(blank=blank))
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with tilus.knobs.scope(target="simt", cache_dir=tmp_path / "cache"), pytest.raises(VMError) as caught:
            module.swap(np.zeros(64, np.float32))
        found.append((Path(caught.value.loc.file).name, caught.value.loc.line))
    assert found == [("one.py", 11), ("two.py", 20)]
    assert len(list((tmp_path / "cache").glob("??/*/meta.json"))) == 1


def test_a_promise_that_is_not_kept():
    x, s, _ = arrays(2, 64)
    kernel = scale_rows.compile(target="simt", multiples={"n": 16}, BN=1024)
    wide = np.zeros(2 * 64 + 4, np.float16)
    kernel.launch(x, s, wide[:128].reshape(2, 64), 2, 64)
    with pytest.raises(VMError, match="misaligned: store of") as caught:
        kernel.launch(x, s, wide[4:].reshape(2, 64), 2, 64)
    assert "a promise (multiples=...)" in caught.value.hint


def test_checking_leaves_the_results_of_one_run():
    @tilus.kernel
    def increment(y: tilus.ptr[f32], n: i32):
        tilus.launch(blocks=1, warps=1)
        shared = tilus.alloc_shared(f32, shape=(64,))
        view = tilus.global_view(y, shape=(n,))
        tilus.copy_async(shared, view, src_offset=(0,))
        tilus.commit_group()
        tilus.wait_group(0)
        tilus.sync()
        tilus.store_global(view, tilus.load_shared(shared) + 1.0, offset=(0,))

    y = np.arange(64, dtype=np.float32)
    certificate = increment.compile(y, 64, target="sm_90a").check(y, 64)
    assert certificate.ok
    assert certificate.landings == ("late", "early")
    np.testing.assert_array_equal(y, np.arange(64) + 1)


def test_what_cannot_run_there():
    x = np.zeros((2, 16), ml_dtypes.bfloat16)
    with tilus.knobs.scope(target="simt"), pytest.raises(LaunchError, match="must be an array of f16, got bf16"):
        scale_rows(x, np.zeros(2, np.float32), x, 2, 16)
    with (
        tilus.knobs.scope(target="sm_80"),
        pytest.raises(LaunchError, match="TILUS_TARGET=sm_80, but the arguments live"),
    ):
        scale_rows(*arrays(2, 16)[:2], np.zeros((2, 16), np.float16), 2, 16)
    with pytest.raises(tilus.TilusError, match="unknown target 'simt:cpu'"):
        scale_rows.compile(target="simt:cpu")


def test_only_a_gpu_has_ptx_and_only_the_cpu_runs_it_here():
    x, s, _ = arrays(2, 16)
    with pytest.raises(tilus.TilusError, match=r"kernel.ptx exists for a CUDA target; this kernel is compiled for cpu"):
        scale_rows.compile(target="cpu").check(x, s, x.copy(), 2, 16)
    built = scale_rows.compile(target="simt")
    values = [check_argument(n, k, a) for n, k, a in zip("xsymn", built._kinds, (x, s, x, 2, 16), strict=True)]
    there = [v._replace(device="cuda:0") if isinstance(v, Buffer) else v for v in values]
    with pytest.raises(LaunchError, match="the arguments live on cuda:0, the PTX runs on the CPU"):
        simulate(built, there, (x, s, x, 2, 16), (2, 1))


def test_a_program_of_text_is_named_by_its_own_lines():
    program = parse(to_text(wrong_kernels.fold.program(dict.fromkeys("xyn", 16))))
    with pytest.raises(VMError) as caught:
        CompiledKernel(program, target("simt")).launch(np.zeros(256, np.float32), np.zeros(256, np.float32), 256)
    assert str(caught.value).startswith("<text>:9:")
    assert "lower: register[f32, (128,)] = load_shared(src=v_shared" in str(caught.value)


def test_a_program_without_lines_is_named_by_the_ptx():
    program = wrong_kernels.fold.program(dict.fromkeys("xyn", 16))
    program = rewrite(program, lambda n: None if isinstance(n, Var | Tensor) else replace(n, loc=None))
    with pytest.raises(
        VMError, match=r"race: load races with .*, PTX line \d+ \(/kernel.cu:\d+\): ld.shared"
    ) as caught:
        CompiledKernel(program, target("simt")).launch(np.zeros(256, np.float32), np.zeros(256, np.float32), 256)
    assert caught.value.loc is None
