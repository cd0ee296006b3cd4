"""The quantized matmul on the reference machine: in the order of the CPU and of the GPU, and lowered for GPUs.

The GPU's program is judged here without a GPU, up to the point where instructions become PTX: packed order, zero
points, scales, masks, stages, and after lowering the layouts and the selected loads and matrix instructions.
"""

from dataclasses import replace

import numpy as np
import pytest

import tilus
from tests.kernels.cases import ACTIVATIONS, TYPES, WEIGHTS, activations, bias_of, weight
from tests.kernels.pairwise import pairwise
from tests.tolerance import check
from tilus import vm
from tilus.dtypes import dtype
from tilus.ir.target import target
from tilus.kernels.configure import matmul_program, rows_per_block
from tilus.kernels.configure_gpu import activation_parts, compute_dtype
from tilus.passes.pipeline import lower
from tilus.runtime.weights import native_pack


def arguments(x, w, bias, y):
    """Return the program's arguments for a weight packed in any order."""
    (m, k), n = x.shape, w.shape[0]
    zeros = w.words if w.zero_points is None else w.zero_points
    return [
        x,
        w.words,
        w.scales,
        zeros,
        y if bias is None else bias,
        y,
        m,
        n,
        k,
        w.format.groups(k),
        w.format.of_stored.tensor_scale,
    ]


def program(w, activation, bm, bias):
    source, constants = matmul_program(w.format, dtype(activation), dtype("f16"), bm, bias, k=w.shape[1])
    return source.program(**constants)


# Small: the reference machine is slow. More than a tile of rows (64 on a GPU) and of K for the widest types.
CASES = pairwise(
    {
        "name": TYPES,
        "device": ("cpu", "cuda"),
        "zero_point": (False, True),
        "m": (1, 3, 9),
        "group": (16, 32, -1),
        "shape": ((70, 40), (5, 150), (17, 33)),
        "activation": ("f16", "bf16", "f32"),
        "bias": (False, True),
    },
    lambda case: not case.get("zero_point") or case.get("name", "u1")[0] in "ui",
)


def test_the_cases_cover_every_type_in_both_orders():
    assert {(c["name"], c["device"]) for c in CASES} == {(n, d) for n in TYPES for d in ("cpu", "cuda")}
    assert {(c["name"], c["zero_point"]) for c in CASES} == set(WEIGHTS)


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v) for v in c.values()).replace(", ", "x"))
def test_the_reference_machine_is_exact_up_to_rounding(case):
    n, k = case["shape"]
    w = weight(case["name"], case["zero_point"], case["group"], n, k)
    w = w.repack(native_pack(w.dtype, case["device"]))
    x = activations(case["activation"], case["m"], k)
    bias = bias_of(case["activation"], n, case["bias"])
    y = np.full((case["m"], n), np.nan, x.dtype)
    bm = 8 if case["device"] == "cuda" else 4
    vm.run(program(w, case["activation"], bm, case["bias"]), arguments(x, w, bias, y))
    compute = dtype("f32") if case["device"] == "cpu" else compute_dtype(w.dtype, dtype(case["activation"]))
    check(y, x, w, bias, compute=compute)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
def test_an_activation_is_the_sum_of_its_parts(kind):
    """And of no fewer; of f16 so that the greatest and subnormal numbers are among them."""
    source, bf16, rng = dtype(kind), dtype("bf16"), np.random.default_rng(0)
    codes = rng.integers(0, 2**15, 4096) if kind == "f16" else np.arange(0, 2**14, 7)
    values = rng.normal(size=4096).astype(np.float32) if kind == "f32" else source.decode(codes)
    rest = [values[np.isfinite(values)].astype(np.float64)]
    for _ in range(activation_parts(source, bf16)):
        rest.append(rest[-1] - bf16.decode(bf16.encode(rest[-1])))
    assert not rest[-1].any()
    assert rest[-2].any()
    assert activation_parts(source, dtype("f16")) == 1


@pytest.mark.parametrize("name", ["u4", "f8e6m1", "u8"])
def test_no_part_of_an_activation_is_missing(name):
    """The last of three is worth 2^-17 of a product: few columns, or what roundings may do hides it."""
    w = weight(name, False, 16, 40, 16)
    w, x = w.repack(native_pack(w.dtype, "cuda")), activations("f32", 8, 16)
    y = np.full((8, 40), np.nan, np.float32)
    vm.run(program(w, "f32", 8, False), arguments(x, w, None, y))
    check(y, x, w)


@pytest.mark.parametrize(("name", "zero_point"), WEIGHTS, ids=lambda v: str(v))
def test_lowered_for_a_gpu(name, zero_point):
    w = weight(name, zero_point, 32, 70, 150)
    w = w.repack(native_pack(w.dtype, "cuda"))
    x, bias = activations("f16", 9, 150), bias_of("f16", 70)
    y = np.full((9, 70), np.nan, x.dtype)
    vm.run(lower(program(w, "f16", 16, True), target("sm_80")), arguments(x, w, bias, y))
    check(y, x, w, bias, compute=compute_dtype(w.dtype, dtype("f16")))


TILES = pairwise({"name": ("u4", "u3", "f4e2m1", "nf4"), "activation": ACTIVATIONS, "m": (3, 20, 70)})


@pytest.mark.parametrize("case", TILES, ids=lambda c: "-".join(map(str, c.values())))
def test_lowered_for_every_batch_tile(case):
    name, activation, m = case.values()
    w = weight(name, name[0] == "u", 64, 70, 90)
    w = w.repack(native_pack(w.dtype, "cuda"))
    x = activations(activation, m, 90)
    bm = rows_per_block(m, "cuda", w.dtype, dtype(activation))
    y = np.full((m, 70), np.nan, x.dtype)
    vm.run(lower(program(w, activation, bm, False), target("sm_86")), arguments(x, w, None, y))
    check(y, x, w, compute=compute_dtype(w.dtype, dtype(activation)))


@pytest.mark.parametrize("name", ["u4", "i3", "f6e3m2", "t2"])
def test_cpu_and_reference_machine_agree(name):
    w, x = weight(name, name[0] in "ui", 32, 10, 50), activations("f16", 3, 50)
    with tilus.knobs.scope(cpu_activations="exact"):
        on_cpu = tilus.matmul(x, w)
    with tilus.knobs.scope(target="vm", cpu_activations="exact"):
        on_vm = tilus.matmul(x, w)
    check(on_cpu, x, w)
    check(on_vm, x, w)
    assert (on_cpu == on_vm).mean() > 0.8  # both round the same sums, taken in another order


def test_the_reference_machine_catches_a_flipped_code():
    w, x = weight("u4", True, 32, 70, 150), activations("f16", 9, 150)
    codes = w.codes().copy()
    codes[69, 149] ^= 8
    flipped = replace(w, words=w.format.pack.pack(codes)).repack(native_pack(w.dtype, "cuda"))
    y = np.full((9, 70), np.nan, x.dtype)
    vm.run(program(flipped, "f16", 16, False), arguments(x, flipped, None, y))
    check(y, x, flipped)
    with pytest.raises(AssertionError, match=r"at \(\d, 69\)"):
        check(y, x, w)
