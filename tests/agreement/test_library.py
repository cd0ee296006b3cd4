"""The programs of the library mean the same before and after lowering, and compiled for this CPU: equal bits.

Inputs are small integers and powers of two, so that sums in every order are exact. Roots and exponentials, which are
not, are the same on the reference machine before and after; the CPU's are within bounds that `tests/kernels` derives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.agreement.machines import on_cpu, on_device, on_vm
from tests.kernels.pairwise import pairwise
from tests.tolerance import numpy_type
from tilus.dtypes import DataType, dtype
from tilus.ir.program import Program
from tilus.kernels.configure import matmul_program, rows_per_block
from tilus.kernels.programs import layer_norm, matmul, softmax, vector_add
from tilus.passes.pipeline import lower
from tilus.runtime.targets import find_target
from tilus.runtime.weights import quantize
from tilus.runtime.weights.packing import native_pack

LOWERED = ("cpu", "sm_80", "sm_90a")
KINDS = ("f16", "bf16", "f32")


def integers(kind: DataType, *shape: int, most: int = 3) -> np.ndarray:
    return np.random.default_rng(shape).integers(-most, most, shape, endpoint=True).astype(numpy_type(kind))


def unwritten(kind: DataType, *shape: int) -> np.ndarray:
    return np.full(shape, np.nan, numpy_type(kind))


def bits(run: list[Any]) -> np.ndarray:
    return np.concatenate([a.reshape(-1).view(np.uint8) for a in run if isinstance(a, np.ndarray)])


def compare(program: Program, args: list[Any], *, where: str) -> None:
    """Demand equal bits of the program on the reference machine and elsewhere; the last array is written whole."""
    wanted = on_vm(program, args)
    last = [a for a in wanted if isinstance(a, np.ndarray)][-1]
    assert np.isfinite(last.astype(np.float64)).all()
    assert last.any()
    match where:
        case "compiled":
            found = on_cpu(program, find_target("cpu"), args)
        case "device":
            found = on_device(program, args)
        case _:
            found = on_vm(lower(program, find_target(where)), args)
    np.testing.assert_array_equal(bits(found), bits(wanted))


DEVICE = pytest.param("device", marks=pytest.mark.gpu)
EVERYWHERE = pytest.mark.parametrize("where", [*LOWERED, "compiled", DEVICE])


@EVERYWHERE
@pytest.mark.parametrize("kind", [*KINDS, "i8", "i64"])
@pytest.mark.parametrize("n", [1, 200])
def test_vector_add(n: int, kind: str, where: str) -> None:
    t = dtype(kind)
    a, b = (np.random.default_rng(i).integers(-50, 50, n).astype(t.numpy_dtype) for i in range(2))
    compare(vector_add.program(T=t, BN=64), [a, b, np.full_like(a, 99), n], where=where)


@pytest.mark.parametrize("where", LOWERED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", ["softmax", "layer_norm"])
def test_rows(kernel: str, kind: str, where: str) -> None:
    t, (m, n) = dtype(kind), (3, 150)
    x, y = integers(t, m, n), unwritten(t, m, n)
    if kernel == "softmax":
        compare(softmax.program(T=t, BN=64), [x, y, m, n], where=where)
    else:
        args = [x, integers(t, n), integers(t, n)[::-1].copy(), y, m, n, 2.0**-10]
        # y is read last, gain and bias before it: the order of the parameters.
        compare(layer_norm.program(T=t, BN=64), args, where=where)


@EVERYWHERE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(33, 17, 65), (64, 48, 32)])
def test_matmul(shape: tuple[int, int, int], kind: str, where: str) -> None:
    t, (m, n, k) = dtype(kind), shape
    program = matmul.program(T=t, BM=32, BN=32, BK=16 if kind == "f32" else 32)
    compare(program, [integers(t, m, k), integers(t, k, n), unwritten(t, m, n), m, n, k], where=where)


# --- quantized matmul -----------------------------------------------------------------------------------------------

# Types whose values are whole multiples of 2^-4 up to 2^7: sums of products with small integers are exact in f32.
EXACT = [f"{s}{b}" for s in "ui" for b in range(1, 9)] + ["t2", "f4e2m1", "f3e1m1", "f6e2m3", "f6e3m2", "f5e2m2"]
ROUNDED = ["nf4", "f8e4m3", "f8e5m2", "f8e1m6"]

CASES = pairwise(
    {
        "name": EXACT + ROUNDED,
        "where": (*LOWERED, "compiled"),
        "zero_point": (False, True),
        "m": (1, 3, 9),
        "group": (16, 32, -1),
        "shape": ((70, 40), (17, 133)),
        "activation": KINDS,
        "bias": (False, True),
    },
    lambda case: (
        (not case.get("zero_point") or case.get("name", "u1")[0] in "ui")
        and not (case.get("name") in ROUNDED and case.get("where") == "compiled")
    ),
)
# One case on a GPU for each type, few of them with activations of f32, whose parts make long programs: `tests/simt`
# runs the PTX of these, the others are run after lowering.
EACH_TYPE = [
    min(
        (c for c in CASES if c["name"] == name and c["where"].startswith("sm_")),
        key=lambda c: c["activation"] != ("f16", "bf16", "f16", "f32")[i % 4],
    )
    for i, name in enumerate(EXACT + ROUNDED)
]


def quantized(case: dict[str, Any]) -> tuple[Program, list[Any]]:
    """Return the program of a case and arguments with scales that are powers of two."""
    kind, activation, (n, k), m = dtype(case["name"]), dtype(case["activation"]), case["shape"], case["m"]
    device = "cpu" if case["where"] in ("cpu", "compiled") else "cuda"
    rng = np.random.default_rng([n, k])
    values = rng.normal(size=(n, k)) + rng.normal(size=(n, 1))
    options = {"zero_point": case["zero_point"]} if kind.is_integer else {}
    w = quantize(values.astype(np.float32), kind, case["group"], **options)
    w = w.repack(native_pack(kind, device))
    # Powers of two that keep the results within f16.
    most = int(np.log2(max(-float(kind.min_value), float(kind.max_value))))
    scales = 2.0 ** (rng.integers(-4, 1, w.scales.shape) - max(0, most - 7))
    bm = rows_per_block(m, device, kind, activation)
    source, constants = matmul_program(w.format, activation, dtype("f16"), bm, case["bias"], k=k)
    program = source.program(**constants)
    x, y, bias = integers(activation, m, k), unwritten(activation, m, n), integers(activation, n)
    zeros = w.words if w.zero_points is None else w.zero_points
    return program, [
        x,
        w.words,
        scales.astype(np.float16),
        zeros,
        bias,
        y,
        m,
        n,
        k,
        w.format.groups(k),
        w.format.of_stored.tensor_scale,
    ]


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case not in EACH_TYPE],
    ids=lambda c: "-".join(str(v) for v in c.values()).replace(", ", "x"),
)
def test_quantized_matmul(case: dict[str, Any]) -> None:
    program, args = quantized(case)
    compare(program, args, where=case["where"])


ON_DEVICE = pairwise(
    {
        "name": EXACT,
        "zero_point": (False, True),
        "m": (1, 16, 33, 70),
        "group": (32, 64, -1),
        "shape": ((70, 300), (17, 133), (256, 512)),
        "activation": KINDS,
        "bias": (False, True),
    },
    lambda case: not case.get("zero_point") or case.get("name", "u1")[0] in "ui",
)


@pytest.mark.gpu
@pytest.mark.parametrize("case", ON_DEVICE, ids=lambda c: "-".join(str(v) for v in c.values()).replace(", ", "x"))
def test_quantized_matmul_on_a_device(case: dict[str, Any]) -> None:
    compare(*quantized(case | {"where": "device"}), where="device")


def test_every_type_is_compared_everywhere() -> None:
    found = {(c["name"], c["where"]) for c in CASES}
    assert {(n, w) for n in EXACT for w in (*LOWERED, "compiled")} <= found
    assert {(n, w) for n in ROUNDED for w in LOWERED} <= found


def change_a_bit(args: list[Any]) -> None:
    args[1].reshape(-1).view(np.uint8)[5] ^= 1


def leave_a_scale_out(args: list[Any]) -> None:
    args[2][0, 3] = 0


@pytest.mark.parametrize("plant", [change_a_bit, leave_a_scale_out])
def test_a_planted_error_is_noticed(plant: Callable[[list[Any]], None]) -> None:
    case = {"name": "u3", "where": "cpu", "zero_point": True, "m": 3, "group": 32, "shape": (17, 133)}
    program, args = quantized(case | {"activation": "f16", "bias": True})
    wanted = on_vm(program, args)
    plant(args)
    y = 5
    assert (on_cpu(program, find_target("cpu"), args)[y] != wanted[y]).any()
    assert (on_vm(lower(program, find_target("cpu")), args)[y] != wanted[y]).any()
