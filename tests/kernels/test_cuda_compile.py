"""Every program of the library becomes machine code of every architecture, without spills, in the shared memory it has.

No GPU is needed: NVRTC compiles in process. Each program is compiled as callers with real layers promise (N and K
multiples of 16) and, for some, without any promise.
"""

from itertools import product

import pytest

from tests.kernels.cases import WEIGHTS
from tests.kernels.pairwise import pairwise
from tests.kernels.resources import check_resources
from tests.kernels.test_budget import ROWS
from tilus.dtypes import dtype
from tilus.ir.target import CUDA_TARGETS
from tilus.kernels.configure import matmul_program, rows_per_block
from tilus.kernels.programs import layer_norm, matmul, softmax, vector_add
from tilus.runtime.weights import WeightFormat, native_pack

PROMISES = {"n": 16, "k": 16}
ARCHES = ("sm_80", "sm_90a")
OTHERS = [weight for weight in WEIGHTS if weight not in {(name, zero == "tensor") for name, zero, *_ in ROWS}]


def compiled(name, zero_point, arch, *, activation="f16", m=8, group=128, bias=True, promises=PROMISES):
    kind, x = dtype(name), dtype(activation)
    zero = "tensor" if zero_point else "half" if name[0] == "u" else "none"
    form = WeightFormat(native_pack(kind, "cuda"), group, zero)
    bm = rows_per_block(m, "cuda", kind, x)
    program, values = matmul_program(form, x, dtype("f32" if activation == "f32" else "f16"), bm, bias)
    return program.compile(target=arch, multiples=promises, **values)


@pytest.mark.parametrize(
    ("name", "zero_point", "arch"),
    [
        pytest.param(*weight, ARCHES[i % 2], marks=pytest.mark.long if i % 4 in (1, 2) else ())
        for i, weight in enumerate(OTHERS)
    ],
)
def test_weights_without_a_budget(name, zero_point, arch):
    """`test_budget` compiles the other weights."""
    check_resources(compiled(name, zero_point, arch))


def selection(names):
    return pairwise(
        {
            "name": names,
            "arch": CUDA_TARGETS,
            "activation": ("f16", "bf16", "f32"),
            "m": (1, 16, 32, 64),
            "group": (32, 64, 128, -1),
            "bias": (False, True),
            "promises": ({}, PROMISES),
        },
        # Activations of f32 are sums of parts: NVRTC takes up to twenty seconds for large batches of them, and seven
        # for the many positions of u3.
        lambda case: (
            case.get("activation") != "f32"
            or (case.get("m", 1) < (2 if case.get("name") == "u3" else 32) or case.get("name", "t2") in ("t2", "nf4"))
        ),
    )


SELECTION = selection(("u4", "i8", "f4e2m1", "nf4"))
AT_LENGTH = [case for case in selection(("u3", "u4", "i8", "f4e2m1", "f8e6m1", "nf4", "t2")) if case not in SELECTION]


@pytest.mark.parametrize(
    "case",
    [*SELECTION, *(pytest.param(case, marks=pytest.mark.long) for case in AT_LENGTH)],
    ids=lambda c: "-".join(str(c[p]) for p in ("name", "arch", "activation", "m", "group")),
)
def test_every_architecture_activation_and_batch_tile(case):
    case = dict(case)
    name, arch = case.pop("name"), case.pop("arch")
    check_resources(compiled(name, name[0] == "u", arch, **case))


@pytest.mark.parametrize(("name", "arch", "group"), [("u4", "sm_90a", 96), ("u3", "sm_80", 96), ("u4", "sm_80", 48)])
def test_groups_that_end_within_tiles_leave_room_for_their_zero_points(name, arch, group):
    check_resources(compiled(name, True, arch, group=group))


@pytest.mark.parametrize(("name", "arch"), [("f4e2m1", "sm_90a"), ("i4", "sm_80")])
def test_groups_of_16_leave_room_for_their_scales(name, arch):
    check_resources(compiled(name, False, arch, group=16))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("name", ["u4", "u3", "f6e3m2"])
def test_tensor_cores_do_the_products(name, arch):
    kernel = compiled(name, name[0] == "u", arch)
    assert "mma.sync" in kernel.source
    assert "HMMA.16816.F32" in kernel.sass
    assert "cp.async" in kernel.source
    assert "ldmatrix" in kernel.source
    assert "LDL" not in kernel.sass
    assert "STL" not in kernel.sass


@pytest.mark.parametrize(
    ("activation", "arch"), [*product(("f16", "bf16", "f32"), ARCHES), ("f16", "sm_86"), ("f32", "sm_89")]
)
def test_other_programs(activation, arch):
    kind = dtype(activation)
    for kernel, options in (
        (vector_add, {}),
        (softmax, {}),
        (layer_norm, {}),
        (matmul, {"BK": 16} if activation == "f32" else {}),
    ):
        promised = {name: 16 for name in ("n", "k")} if kernel is matmul else {"n": 16}
        for promises in (promised, *([{}] if arch == "sm_80" else [])):
            check_resources(kernel.compile(target=arch, multiples=promises, T=kind, **options))


def test_everything_is_covered():
    assert {(c["arch"], c["activation"]) for c in SELECTION} == {
        (a, x) for a in CUDA_TARGETS for x in ("f16", "bf16", "f32")
    }
