"""Launching: arguments as the driver reads them, a driver that records, errors without a GPU; a real GPU where there is one."""

from __future__ import annotations

import builtins
import ctypes
import struct
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.compiled import binary
from tilus.dtypes import dtype
from tilus.errors import LaunchError
from tilus.ir.target import TARGETS
from tilus.runtime import launch_cuda
from tilus.runtime.launch_cuda import CudaKernel, device_number, device_target, pack_arguments, target_of_capability

ALL_TYPES = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void all(double* y, bool a, signed char b, unsigned short c, int d, long long e,
                               __half f, __nv_bfloat16 g, float h, double i) {
  extern __shared__ double s[];
  if (threadIdx.x == 0) s[SLOT] = e;
  __syncthreads();
  double v[9] = {(double)a, (double)b, (double)c, (double)d, s[SLOT], __half2float(f), __bfloat162float(g), h, i};
  if (threadIdx.x < 9) y[blockIdx.x * 9 + threadIdx.x] = v[threadIdx.x];
}
"""
KINDS = ["bool", "i8", "u16", "i32", "i64", "f16", "bf16", "f32", "f64"]
VALUES = [True, -5, 60000, -7, -(1 << 40), 1.5, -2.5, 3.25, 0.1]


def test_slots() -> None:
    address = 0xFEDC_BA98_7654_3210
    args = [address, -1, np.float32(1.5), np.int8(-2), np.float64(2.5), 0.5, True, b"\x01\x02", ml_dtypes.bfloat16(1)]
    packed = pack_arguments(args)
    assert len(packed) == 8 * len(args)
    assert struct.unpack_from("<Q", packed, 0) == (address,)
    assert struct.unpack_from("<q", packed, 8) == (-1,)
    assert struct.unpack_from("<fI", packed, 16) == (1.5, 0)
    assert packed[24:32] == b"\xfe" + bytes(7)
    assert struct.unpack_from("<dd", packed, 32) == (2.5, 0.5)
    assert packed[48:56] == b"\x01" + bytes(7)
    assert packed[56:64] == b"\x01\x02" + bytes(6)
    assert packed[64:] == b"\x80\x3f" + bytes(6)
    assert pack_arguments([]) == b""


@given(st.integers(-(1 << 63), (1 << 64) - 1))
def test_every_64_bit_integer(value: int) -> None:
    assert int.from_bytes(pack_arguments([value]), "little") == value % (1 << 64)


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1, "text", None, [1], np.complex128(1), bytes(9)])
def test_what_no_slot_takes(value: object) -> None:
    with pytest.raises(LaunchError, match="argument 1: expected"):
        pack_arguments([0, value])  # type: ignore[list-item]


@pytest.mark.parametrize(("kind", "value"), list(zip(KINDS, VALUES, strict=True)))
def test_numbers_become_the_parameters_type(kind: str, value: float) -> None:
    scalar = CudaKernel.argument(dtype(kind), value)
    assert isinstance(scalar, np.generic)
    assert float(scalar) == value
    assert scalar.nbytes == max(dtype(kind).nbits // 8, 1)
    assert CudaKernel.argument(dtype(kind), 4096, pointer=True) == 4096


def test_other_types_go_in_arrays() -> None:
    with pytest.raises(LaunchError, match="a number of type u3 cannot be passed"):
        CudaKernel.argument(dtype("u3"), 1)


@pytest.mark.parametrize(
    ("capability", "name"), [(80, "sm_80"), (86, "sm_86"), (87, "sm_86"), (89, "sm_89"), (90, "sm_90a")]
)
def test_targets_of_devices(capability: int, name: str) -> None:
    assert target_of_capability(capability) is TARGETS[name]


@pytest.mark.parametrize("capability", [75, 70])
def test_devices_without_a_target(capability: int) -> None:
    with pytest.raises(LaunchError, match=f"no target for compute capability 7.{capability % 10}") as caught:
        target_of_capability(capability)
    assert "sm_80, sm_86, sm_89, sm_90a" in str(caught.value)


def test_device_names() -> None:
    assert device_number("cuda") == 0
    assert device_number("cuda:3") == 3
    for name in ("cpu", "cuda:x", "cuda:-1", ""):
        with pytest.raises(LaunchError, match="expected a CUDA device"):
            device_number(name)


class Recorder:
    """Stands for CuPy and the driver: keeps what each call said, and reads arguments as the driver does."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.calls: list[tuple[object, ...]] = []
        self.device = 0

    def getDevice(self) -> int:
        return self.device

    def Module(self) -> SimpleNamespace:
        return SimpleNamespace(
            load=lambda cubin: self.calls.append(("load", self.device, cubin)),
            get_function=lambda name: SimpleNamespace(ptr=1000 + self.device, name=name),
        )

    def Device(self, number: int) -> Recorder:
        self.calls.append(("device", number))
        self.entering = number
        return self

    def __enter__(self) -> None:
        self.outer, self.device = self.device, self.entering

    def __exit__(self, *_: object) -> None:
        self.device = self.outer

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:
        self.calls.append(("attribute", function, value))

    def launchKernel(self, function: int, *rest: int) -> None:
        *extents, shared, stream, pointers, extra = rest
        assert extra == 0
        addresses = (ctypes.c_void_p * max(len(self.sizes), 1)).from_address(pointers)
        values = [ctypes.string_at(address, size) for address, size in zip(addresses, self.sizes, strict=False)]
        self.calls.append(("launch", function, tuple(extents), shared, stream, values))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    from cupy_backends.cuda.api import driver

    made = Recorder([8, 4, 2])
    cupy = SimpleNamespace(
        cuda=SimpleNamespace(
            runtime=made,
            function=made,
            Device=made.Device,
            get_current_stream=lambda device: SimpleNamespace(ptr=70 + device),
        )
    )
    monkeypatch.setattr(launch_cuda, "load_cupy", lambda: cupy)
    monkeypatch.setattr(driver, "launchKernel", made.launchKernel)
    monkeypatch.setattr(driver, "funcSetAttribute", made.funcSetAttribute)
    monkeypatch.delitem(launch_cuda.sys.modules, "torch", raising=False)
    return made


ARGS = [0x1234_5678_9ABC, np.int32(-3), np.float16(1)]
BYTES = [(0x1234_5678_9ABC).to_bytes(8, "little"), b"\xfd\xff\xff\xff", b"\x00\x3c"]


def test_a_launch_loads_once_and_says_everything(recorder: Recorder) -> None:
    kernel = CudaKernel(b"cubin", "f", dynamic_shared=65536)
    kernel.launch((2, 3), (128,), ARGS)
    kernel.launch([5], [32, 2, 1], ARGS, stream=9)
    assert recorder.calls == [
        ("load", 0, b"cubin"),
        ("attribute", 1000, 65536),
        ("launch", 1000, (2, 3, 1, 128, 1, 1), 65536, 70, BYTES),
        ("launch", 1000, (5, 1, 1, 32, 2, 1), 65536, 9, BYTES),
    ]


def test_another_device_gets_its_own_copy(recorder: Recorder) -> None:
    kernel = CudaKernel(b"cubin", "f")
    kernel.launch((1,), (32,), ARGS, device=0)
    kernel.launch((1,), (32,), ARGS, device=1)
    kernel.launch((1,), (32,), ARGS, device=1)
    assert [call[:2] for call in recorder.calls] == [
        ("load", 0), ("launch", 1000), ("device", 1), ("load", 1), ("launch", 1001), ("device", 1), ("launch", 1001),
    ]  # fmt: skip
    assert recorder.calls[4][4] == 71
    assert recorder.device == 0


def test_a_kernel_without_parameters(recorder: Recorder) -> None:
    recorder.sizes = []
    CudaKernel(b"cubin", "f").launch((1,), (1,), [])
    assert recorder.calls[-1] == ("launch", 1000, (1, 1, 1, 1, 1, 1), 0, 70, [])


@pytest.mark.parametrize(("initialized", "stream"), [(True, 555), (False, 70)])
def test_torchs_stream_once_torch_uses_cuda(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, initialized: bool, stream: int
) -> None:
    cuda = SimpleNamespace(
        is_initialized=lambda: initialized, current_stream=lambda device: SimpleNamespace(cuda_stream=555 + device)
    )
    monkeypatch.setitem(launch_cuda.sys.modules, "torch", SimpleNamespace(cuda=cuda))
    CudaKernel(b"cubin", "f").launch((1,), (32,), ARGS)
    assert recorder.calls[-1][4] == stream


def test_a_refused_launch_says_what_was_asked(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    from cupy_backends.cuda.api import driver

    class RefusalError(RuntimeError):
        pass

    def refuse(*_: int) -> None:
        raise RefusalError("CUDA_ERROR_INVALID_VALUE: invalid argument")

    monkeypatch.setattr(driver, "CUDADriverError", RefusalError)
    monkeypatch.setattr(driver, "launchKernel", refuse)
    with pytest.raises(LaunchError, match=r"refused kernel 'f' with grid \(1,\), block \(2048,\) and 64 bytes"):
        CudaKernel(b"cubin", "f", 64).launch((1,), (2048,), ARGS)
    monkeypatch.setattr(driver, "funcSetAttribute", refuse)
    with pytest.raises(LaunchError, match="the device does not take kernel 'f'") as caught:
        CudaKernel(b"cubin", "f", 1 << 20).launch((1,), (32,), ARGS)
    assert "shared memory within the device's limit" in str(caught.value)


@pytest.fixture
def unprobed() -> None:
    launch_cuda.load_cupy.cache_clear()
    device_target.cache_clear()


@pytest.mark.usefixtures("unprobed")
def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    def missing() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", missing)
    for action in (lambda: CudaKernel(b"", "f").launch((1,), (1,), []), lambda: device_target("cuda:0")):
        with pytest.raises(LaunchError, match="no CUDA device: cudaErrorInsufficientDriver") as caught:
            action()
        assert "compile(target=...) works without one" in str(caught.value)
        assert "TILUS_TARGET=cpu" in str(caught.value)


@pytest.mark.usefixtures("unprobed")
def test_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 0)
    with pytest.raises(LaunchError, match="no CUDA device"):
        device_target("cuda:0")


@pytest.mark.usefixtures("unprobed")
def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_cupy(name: str, *args: object, **kwargs: object) -> object:
        if name == "cupy":
            raise ImportError("No module named 'cupy'")
        return importing(name, *args, **kwargs)

    importing = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without_cupy)
    with pytest.raises(LaunchError, match="No module named 'cupy'") as caught:
        device_target("cuda:0")
    assert "pip install 'tilus-vm[cuda]'" in str(caught.value)


def device_kernel(slot: int, shared: int) -> CudaKernel:
    cubin = binary(ALL_TYPES, device_target("cuda:0").name, f"-DSLOT={slot}").cubin
    return CudaKernel(cubin, "all", shared)


@pytest.mark.gpu
@pytest.mark.parametrize("shared", [8, 48 * 1024, 64 * 1024, 96 * 1024])
def test_every_type_of_argument_arrives(shared: int) -> None:
    import cupy

    y = cupy.full(4 * 9, -1.0)
    numbers = [CudaKernel.argument(dtype(kind), value) for kind, value in zip(KINDS, VALUES, strict=True)]
    device_kernel(shared // 8 - 1, shared).launch((4,), (32,), [y.data.ptr, *numbers])
    expected = [float(value) for value in VALUES]
    assert y.get().reshape(4, 9).tolist() == [expected] * 4


@pytest.mark.gpu
def test_launches_are_on_cupys_stream_and_can_be_captured() -> None:
    import cupy

    kernel = device_kernel(0, 8)
    numbers = [CudaKernel.argument(dtype(kind), value) for kind, value in zip(KINDS, VALUES, strict=True)]
    y = cupy.zeros(9)
    kernel.launch((1,), (32,), [y.data.ptr, *numbers])  # loads the code: that may not happen in a capture
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    y[:] = 0
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        kernel.launch((1,), (32,), [y.data.ptr, *numbers])
        graph = stream.end_capture()
    assert not y.get().any()
    graph.launch(stream)
    stream.synchronize()
    assert y.get().tolist() == [float(value) for value in VALUES]


@pytest.mark.gpu
def test_code_for_another_architecture_is_refused() -> None:
    other = "sm_80" if device_target("cuda:0").name == "sm_90a" else "sm_90a"
    with pytest.raises(LaunchError, match="does not take kernel 'all'"):
        CudaKernel(binary(ALL_TYPES, other, "-DSLOT=0").cubin, "all", 8).launch((1,), (32,), [0] * 10)


@pytest.mark.gpu
def test_too_much_shared_memory_is_refused() -> None:
    with pytest.raises(LaunchError, match="does not take kernel 'all'"):
        device_kernel(0, 300 * 1024).launch((1,), (32,), [0] * 10)
