"""The library's kernels, as the PTX that ships: no findings, and the reference machine's bits, however copies land.

Inputs are small integers and powers of two, so that sums in every order are exact; roots and exponentials, which are
not, are within bounds.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tilus
from tests.agreement.machines import on_vm
from tests.agreement.test_library import CASES, EACH_TYPE, ON_DEVICE, ROUNDED, integers, quantized, unwritten
from tests.simt.library import bits, compiled, on_simt
from tests.tolerance import numpy_type
from tilus.dtypes import dtype
from tilus.kernels.dequantize import expand
from tilus.kernels.programs import layer_norm, matmul, softmax, vector_add
from tilus.runtime.weights import quantize

ARCHES = pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])


def agree(program, args, arch: str, *, exact: bool = True) -> None:
    wanted = on_vm(program, args)
    found, report = on_simt(program, args, arch, metrics=True)
    assert report.ok, str(report)
    if arch == "sm_80" and "cp.async" in compiled(program, arch).ptx:  # the copies of both are the same
        early, again = on_simt(program, args, arch, landing="early", sanitize=False)
        assert again.ok
        np.testing.assert_array_equal(bits(early), bits(found))
    if exact:
        np.testing.assert_array_equal(bits(found), bits(wanted))
    else:
        y = [i for i, a in enumerate(args) if isinstance(a, np.ndarray)][-1]
        np.testing.assert_allclose(found[y].astype(float), wanted[y].astype(float), rtol=2**-7, atol=2**-8)
    assert report.wavefronts[0] == report.wavefronts[1]


@ARCHES
@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "i8", "i64"])
def test_vector_add(kind, arch):
    t = dtype(kind)
    a, b = (np.random.default_rng(i).integers(-50, 50, 200).astype(t.numpy_dtype) for i in range(2))
    agree(vector_add.program(T=t, BN=64), [a, b, np.full_like(a, 99), 200], arch)


@ARCHES
@pytest.mark.parametrize("kernel", ["softmax", "layer_norm"])
@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
def test_rows(kernel, kind, arch):
    t, (m, n) = dtype(kind), (3, 150)
    x, y = integers(t, m, n), unwritten(t, m, n)
    if kernel == "softmax":
        agree(softmax.program(T=t, BN=64), [x, y, m, n], arch, exact=False)
    else:
        args = [x, integers(t, n), integers(t, n)[::-1].copy(), y, m, n, 2.0**-10]
        agree(layer_norm.program(T=t, BN=64), args, arch, exact=False)


@ARCHES
@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("shape", [(33, 17, 65), (64, 48, 32)])
def test_matmul(shape, kind, arch):
    t, (m, n, k) = dtype(kind), shape
    program = matmul.program(T=t, BM=32, BN=32, BK=16 if kind == "f32" else 32)
    agree(program, [integers(t, m, k), integers(t, k, n), unwritten(t, m, n), m, n, k], arch)


@ARCHES
@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_matmul_with_asynchronous_copies(kind, arch):
    agree(*gemm_with_copies(kind), arch)


def gemm_with_copies(kind: str = "f16"):
    t, (m, n, k) = dtype(kind), (64, 64, 160)
    args = [integers(t, m, k), integers(t, k, n), unwritten(t, m, n), m, n, k]
    promises = dict.fromkeys("abcnk", 16)
    return matmul.program(promises, T=t, BM=32, BN=32, BK=32), args


# --- quantized --------------------------------------------------------------------------------------------------------


def name_of(case) -> str:
    return "-".join(map(str, case.values())).replace(", ", "x")


# Every width of unsigned integers, a signed one, and what numbers are made of in other ways; the others at length.
USUAL = {*(f"u{bits}" for bits in range(1, 9)), "i4", "i8", "f4e2m1", "f6e3m2", "f8e4m3", "f8e5m2", "nf4", "t2"}
ON_GPUS = [
    pytest.param(case, marks=() if case in EACH_TYPE and case["name"] in USUAL else pytest.mark.long)
    for case in CASES
    if case["where"].startswith("sm_")
]


@pytest.mark.parametrize("case", ON_GPUS, ids=lambda case: name_of(case))
def test_quantized_matmul(case):
    """Every type of weights, pairwise with targets, zero points, batches, groups, shapes, activations and biases."""
    program, args = quantized(case)
    agree(program, args, case["where"], exact=case["name"] not in ROUNDED)


@pytest.mark.long
@ARCHES
@pytest.mark.parametrize("case", ON_DEVICE, ids=name_of)
def test_quantized_matmul_at_length(case, arch):
    program, args = quantized(case | {"where": "device"})
    agree(program, args, arch)


FORMATS = [
    ("t1.6", "f16", "sm_80"), pytest.param("t1.6", "bf16", "sm_90a", marks=pytest.mark.long),
    pytest.param("t1.6", "f32", "sm_80", marks=pytest.mark.long), ("mxfp4", "f16", "sm_90a"),
    ("mxfp6", "bf16", "sm_80"), ("mxfp8", "f32", "sm_90a"), ("nvfp4", "f16", "sm_80"), ("nvfp4", "f32", "sm_90a"),
    ("u3:g64:bf16", "bf16", "sm_80"),
]  # fmt: skip


def block_scaled(name, activation):
    """Return a weight [17, 133] whose scales are powers of two."""
    rng = np.random.default_rng(len(name))
    w = quantize(rng.normal(size=(17, 133)).astype(numpy_type(dtype(activation))), name, 16 if name == "t1.6" else 128)
    powers = {"e8m0": [125, 126, 127], "f8e4m3": [0x30, 0x38, 0x40]}.get(str(w.format.scale), [0.25, 0.5, 1])
    scales = rng.choice(powers, w.scales.shape).astype(w.scales.dtype)
    tensor_scale = 1.0 if w.format.tensor_scale == 1.0 else 0.25
    return replace(w, scales=scales, format=replace(w.format, tensor_scale=tensor_scale))


@pytest.mark.parametrize(("name", "activation", "arch"), FORMATS)
def test_products_with_formats(name, activation, arch):
    """By the library's own call: what runs is what a GPU would run, in the packed order of one."""
    kind = dtype(activation)
    with tilus.knobs.scope(target=f"simt:{arch}"):
        w = block_scaled(name, activation)
        x, bias = integers(kind, 3, 133), integers(kind, 17)
        y = tilus.matmul(x, w, bias)
    assert w.format.pack.device == "cuda"
    exact = x.astype(float) @ w.dequantize("f64").T + bias.astype(float)
    np.testing.assert_array_equal(bits([y]), bits([exact.astype(y.dtype)]))
    assert y.any()


@pytest.mark.parametrize(("name", "arch"), [("t1.6", "sm_90a"), ("nvfp4", "sm_80"), ("u5", "sm_90a")])
def test_matrices_of_weights(name, arch):
    with tilus.knobs.scope(target=f"simt:{arch}"):
        w = block_scaled(name, "f16")
        like = np.empty(1, np.float16)
        matrix = expand(like, w.words, w.scales, w.zero_points, w.format, 17, 133)
    np.testing.assert_array_equal(bits([matrix]), bits([w.dequantize("f16")]))
    assert matrix.any()


# --- planted ----------------------------------------------------------------------------------------------------------

CASE = {"name": "u3", "where": "sm_80", "zero_point": True, "m": 9, "group": 32, "shape": (70, 300)}
CASE |= {"activation": "f16", "bias": True}
ARRAYS = {"x": 0, "words": 1, "scales": 2, "zeros": 3, "bias": 4, "y": 5}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_is_too_short_is_noticed(name):
    """All of every array is used, and nothing beyond: half of the last row less, and there is a finding."""
    program, args = quantized(CASE)
    array = args[ARRAYS[name]].reshape(-1)
    args[ARRAYS[name]] = array[: len(array) - max(1, args[ARRAYS[name]].shape[-1] // 2)].copy()
    _, report = on_simt(program, args, max_findings=1)
    assert report.findings[0].kind == "bounds"


def test_a_flipped_bit_is_noticed():
    program, args = quantized(CASE)
    wanted = on_vm(program, args)[5]
    args[1].reshape(-1).view(np.uint8)[5] ^= 1
    found, report = on_simt(program, args)
    assert report.ok
    assert (found[5] != wanted).any()
