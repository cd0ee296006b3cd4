"""The library's programs as generated CUDA, run thread by thread on the CPU, write what the reference machine writes.

Inputs are small integers and powers of two: sums in every order are exact, and all bits must be equal. Extents are
ragged, so that masks count; every access is checked when it is issued. NVRTC's view is in `tests/kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.agreement.machines import copies_of, on_vm
from tests.agreement.test_library import integers, quantized, unwritten
from tests.codegen.cuda.compare import lowered, run_lowered
from tests.codegen.cuda.host import HostFault
from tests.kernels.pairwise import pairwise
from tests.random_data import generator
from tilus.dtypes import dtype
from tilus.ir.program import Program
from tilus.kernels.programs import layer_norm, matmul, softmax, vector_add

RNG = generator(3)


def run(program: Program, args: list[Any], arch: str, *, backwards: bool = False) -> list[Any]:
    """Return the arguments after generated code has run on copies of them."""
    copies = copies_of(args)
    run_lowered(*lowered(program, arch), copies, backwards=backwards)
    return copies


def agree(program: Program, args: list[Any], arch: str, *, units: int = 0, backwards: bool = False) -> None:
    """Demand what the reference machine writes, up to so many units in the last place of the result.

    One unit where f32 sums in two orders are rounded to a type of fewer bits: both are near the same number.
    """
    wanted, found = on_vm(program, args), run(program, args, arch, backwards=backwards)
    for w, f in zip(wanted, found, strict=True):
        if isinstance(w, np.ndarray):
            same = w.view(np.uint8) == f.view(np.uint8)
            if units and not same.all():
                apart = np.abs(w.astype(np.float64) - f.astype(np.float64))
                assert (apart <= units * np.spacing(np.abs(w)).astype(np.float64)).all()
            else:
                assert same.all(), f"{np.count_nonzero(~same)} of {same.size} bytes differ"
    last = [a for a in found if isinstance(a, np.ndarray)][-1].astype(np.float64)
    assert np.isfinite(last).all()
    assert last.any()


@pytest.mark.parametrize("n", [1, 1500])
def test_vector_add(n: int) -> None:
    a, b = (RNG.standard_normal(n).astype(np.float32) for _ in range(2))
    agree(vector_add.program(T=dtype("f32"), BN=512), [a, b, np.zeros_like(a), n], "sm_80")


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_matmul(kind: str, arch: str) -> None:
    t, (m, n, k) = dtype(kind), (33, 43, 65)
    program = matmul.program(T=t, BM=32, BN=32, BK=16 if kind == "f32" else 32)
    agree(program, [integers(t, m, k), integers(t, k, n), unwritten(t, m, n), m, n, k], arch)


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_rows(kind: str) -> None:
    """Exponentials and roots are another library's, within a few units."""
    t, (m, n) = dtype(kind), (3, 150)
    agree(softmax.program(T=t, BN=64), [integers(t, m, n), unwritten(t, m, n), m, n], "sm_80", units=8)
    args = [integers(t, m, n), integers(t, n), np.ones_like(integers(t, n)), unwritten(t, m, n), m, n, 2.0**-10]
    low = run(layer_norm.program(T=t, BN=64), args, "sm_80")[3].astype(np.float64)
    wanted = on_vm(layer_norm.program(T=t, BN=64), args)[3].astype(np.float64)
    np.testing.assert_allclose(low, wanted, rtol=2e-3 if kind == "f16" else 1e-5, atol=2e-3 if kind == "f16" else 1e-5)


CASES = pairwise(
    {
        "name": ("u3", "i8", "f6e3m2"),
        "where": ("sm_80", "sm_90a"),
        "zero_point": (False, True),
        "m": (1, 9),
        "group": (16, 32, -1),
        "shape": ((70, 300), (17, 133)),
        "activation": ("f16", "bf16", "f32"),
        "bias": (False, True),
        "backwards": (False, True),
    },
    lambda case: not case.get("zero_point") or case.get("name", "u1")[0] in "ui",
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v) for v in c.values()).replace(", ", "x"))
def test_quantized_matmul(case: dict[str, Any]) -> None:
    program, args = quantized(case)
    agree(program, args, case["where"], backwards=case["backwards"])


ROUNDED = [("nf4", "f16"), ("f8e4m3", "bf16"), ("f8e5m2", "f16"), ("nf4", "bf16")]


@pytest.mark.parametrize(("name", "activation"), ROUNDED)
def test_quantized_matmul_of_types_whose_sums_round(name: str, activation: str) -> None:
    case = {"name": name, "where": "sm_80", "zero_point": False, "m": 9, "group": 32, "shape": (70, 300)}
    agree(*quantized(case | {"activation": activation, "bias": True}), "sm_80", units=1)


CASE = {"name": "u3", "where": "sm_80", "zero_point": True, "m": 9, "group": 32, "shape": (70, 300)}
CASE |= {"activation": "f16", "bias": True}
ARRAYS = {"x": 0, "words": 1, "scales": 2, "zeros": 3, "bias": 4, "y": 5}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_is_too_short_is_noticed(name: str) -> None:
    """All of every array is used, and nothing beyond: half of the last row less, and there is a fault."""
    program, args = quantized(CASE)
    array = args[ARRAYS[name]].reshape(-1)
    args[ARRAYS[name]] = array[: len(array) - max(1, args[ARRAYS[name]].shape[-1] // 2)].copy()
    with pytest.raises(HostFault, match="out of bounds"):
        run(program, args, "sm_80")


def test_a_flipped_bit_is_noticed() -> None:
    program, args = quantized(CASE)
    wanted = on_vm(program, args)[5]
    args[1].reshape(-1).view(np.uint8)[5] ^= 1
    assert (run(program, args, "sm_80")[5] != wanted).any()
