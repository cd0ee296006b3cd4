"""The library's kernels, as the PTX that ships: no findings, and the reference machine's bits, however copies land.

Inputs are small integers and powers of two, so that sums in every order are exact; roots and exponentials, which are
not, are within bounds.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.agreement.machines import on_vm
from tests.agreement.test_library import bits, integers, quantized, unwritten
from tests.simt.library import compiled, on_simt
from tilus.dtypes import dtype
from tilus.kernels.programs import layer_norm, matmul, softmax, vector_add

ARCHES = pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])


def agree(program, args, arch: str, *, exact: bool = True, conflicts: bool = True) -> None:
    wanted = on_vm(program, args)
    found, report = on_simt(program, args, arch, metrics=True)
    assert report.ok, str(report)
    early, again = on_simt(program, args, arch, landing="early", sanitize=False)
    assert again.ok
    np.testing.assert_array_equal(bits(early), bits(found))
    if exact:
        np.testing.assert_array_equal(bits(found), bits(wanted))
    else:
        y = [i for i, a in enumerate(args) if isinstance(a, np.ndarray)][-1]
        np.testing.assert_allclose(found[y].astype(float), wanted[y].astype(float), rtol=2**-7, atol=2**-8)
    if conflicts:
        assert report.wavefronts[0] == report.wavefronts[1]


@ARCHES
@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "i8", "i64"])
def test_vector_add(kind, arch):
    t = dtype(kind)
    a, b = (np.random.default_rng(i).integers(-50, 50, 200).astype(t.numpy_dtype) for i in range(2))
    agree(vector_add.program(T=t, BN=64), [a, b, np.full_like(a, 99), 200], arch)


@ARCHES
@pytest.mark.parametrize("kernel", ["softmax", "layer_norm"])
@pytest.mark.parametrize("kind", ["f16", "f32"])
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
def test_matmul_with_asynchronous_copies(arch):
    agree(*gemm_with_copies(), arch)


QUANTIZED = [
    ("u1", False),
    ("u3", True),
    ("u4", True),
    ("i5", False),
    ("i8", True),
    ("f4e2m1", False),
    ("f6e3m2", False),
    ("nf4", False),
    ("t2", False),
]


@pytest.mark.parametrize(("number", "name", "zero_point"), [(i, *case) for i, case in enumerate(QUANTIZED)])
def test_quantized_matmul(number, name, zero_point):
    arch, activation = ("sm_80", "sm_90a")[number % 2], ("f16", "bf16", "f16", "f32")[number % 4]
    case = {"name": name, "where": arch, "zero_point": zero_point, "m": (1, 9)[number % 2], "group": (32, 16, -1)[number % 3],
            "shape": ((70, 40), (17, 133))[number // 2 % 2], "activation": activation, "bias": True}  # fmt: skip
    program, args = quantized(case)
    agree(program, args, arch, exact=name != "nf4", conflicts=False)


# --- planted faults in real kernels -----------------------------------------------------------------------------------


def gemm():
    t, (m, n, k) = dtype("f16"), (64, 48, 128)
    args = [integers(t, m, k), integers(t, k, n), unwritten(t, m, n), m, n, k]
    return matmul.program(T=t, BM=32, BN=32, BK=32), args


@pytest.mark.parametrize(
    ("edit", "kind"),
    [(("bar.sync \t0;", ""), "race"), (("cp.async.wait_group 1;", ""), "pending"),
     (("cp.async.wait_group 1;", "cp.async.wait_group 2;"), "pending")],
)  # fmt: skip
def test_a_fault_planted_in_the_matmul_is_named_by_its_cuda_line(edit, kind):
    program, args = gemm_with_copies()
    _, source, _ = compiled(program, "sm_80")
    _, report = on_simt(program, args, edit=edit)
    found = [f for f in report.findings if f.kind == kind]
    assert found, str(report)
    lines = source.text.splitlines()
    assert any("ldmatrix" in lines[f.source.line - 1] or "cp_async" in lines[f.source.line - 1] for f in found)


def gemm_with_copies():
    t, (m, n, k) = dtype("f16"), (64, 64, 160)
    args = [integers(t, m, k), integers(t, k, n), unwritten(t, m, n), m, n, k]
    promises = dict.fromkeys("abcnk", 16)
    return matmul.program(promises, T=t, BM=32, BN=32, BK=32), args


def test_the_matmul_does_not_depend_on_data():
    program, args = gemm()
    _, report = on_simt(program, args)
    assert report.ok
    assert report.data_independent


def test_an_unpredicated_ragged_tile_is_found():
    """Lie about the shape: the kernel reads and writes beyond the arrays."""
    program, args = gemm()
    args[3] += 7
    _, report = on_simt(program, args)
    assert {f.kind for f in report.findings} == {"bounds"}
    assert any("matmul_param_0" in f.buffer for f in report.findings)
    assert any("matmul_param_2" in f.buffer for f in report.findings)
