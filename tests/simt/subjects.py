"""Kernels of the library whose mutants are to be noticed, each at a ragged shape and at one of whole tiles.

K is long enough for every stage of a pipeline to be used again. Numbers vary, so that a wrong element is another one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tests.agreement.test_library import quantized, unwritten
from tests.codegen.cuda.compare import scalar_of
from tests.simt.library import compiled
from tests.simt.mutants import Launch, Subject
from tilus.dtypes import DataType, dtype
from tilus.ir.program import Program
from tilus.ir.types import PointerType
from tilus.kernels.programs import layer_norm, matmul, softmax
from tilus.runtime.grid import grid_function
from tilus.simt.parser import parse

ARCHES = ("sm_80", "sm_90a")
F16, F32 = dtype("f16"), dtype("f32")
Shaped = tuple[Program, list[Any], bool]  # program, arguments, whether the shape is ragged


def _matmul(arch: str) -> list[Shaped]:
    """Two blocks along each edge; one to five turns of the loop, which is unrolled, and none."""
    program = matmul.program(dict.fromkeys("abcnk", 16), T=F16, BM=32, BN=32, BK=32)
    shapes = [(43, 48, 112), (32, 64, 160), *((43, 48, k) for k in (16, 48, 80, 96)), (5, 16, 0)]
    return [
        (program, [reals(F16, m, k), reals(F16, k, n), unwritten(F16, m, n), m, n, k], m % 32 > 0) for m, n, k in shapes
    ]


def _quantized(name: str, zero_point: bool, activation: str, tile: int) -> Callable[[str], list[Shaped]]:
    """Scales, activations and bias are any numbers: the unchanged kernel is the reference, so sums need not be exact.

    K ends in every stage of the pipeline, behind trips that the loop has fetched, and where the last tile has one group
    only; N where a block has its last rows.
    """

    def make(arch: str) -> list[Shaped]:
        found: list[Shaped] = []
        shapes = [(13, 121, 12 * tile + 17), (8, 64, 6 * tile), *((1, 3, k) for k in range(9, 3 * tile + 32, 32))]
        for m, n, k in shapes:
            case = {"name": name, "where": arch, "zero_point": zero_point, "m": 8, "group": 32, "shape": (n, k),
                    "activation": activation, "bias": True}  # fmt: skip
            program, (_, words, scales, zeros, *_, groups, tensor_scale) = quantized(case)
            x, bias = (reals(dtype(activation), *shape) for shape in ((m, k), (n,)))
            args = [
                x,
                words,
                abs(reals(F16, *scales.shape)),
                zeros,
                bias,
                unwritten(dtype(activation), m, n),
                m,
                n,
                k,
                groups,
                tensor_scale,
            ]
            found.append((found[0][0] if found else program, args, n % 64 > 0))
        nothing = [*args[:8], 0, 0, tensor_scale]  # no K
        return [*found, (found[0][0], nothing, False)]

    return make


def _softmax(arch: str) -> list[Shaped]:
    """In f32, so that no change of an exponential is rounded away; lengths around every bound of the unrolled loops.

    The maximum rises from tile to tile, in another warp each time; the last tile may have one element. In many rows of
    three elements the sums hide little.
    """
    inputs = [reals(F32, m, n, scale=9.0) for m, n in ((1, 385), (1, 640), (1, 128), (1, 1), (4, 1174))]
    for x in inputs:
        n = x.shape[1]
        peaks = np.minimum(np.arange(0, n, 128) + 37 * np.arange(-(-n // 128)) % 128, n - 1)
        x[:, peaks] = x.max() + 2.3 * np.arange(1, len(peaks) + 1)
    program = softmax.program(T=F32, BN=128)
    return [
        (program, [x, unwritten(F32, *x.shape), *x.shape], x.shape[1] % 128 > 0)
        for x in (*inputs, reals(F32, 64, 3, scale=1.5))
    ]


def _layer_norm(arch: str) -> list[Shaped]:
    """The same lengths; and rows of zeros, to which padding must add nothing at all."""
    program = layer_norm.program(T=F32, BN=128)
    found: list[Shaped] = []
    for m, n in ((1, 385), (1, 640), (1, 128), (1, 1), (4, 1174)):
        gain, bias = reals(F32, n), reals(F32, n + 1)[1:].copy()
        found.append(
            (program, [reals(F32, m, n, scale=9.0), gain, bias, unwritten(F32, m, n), m, n, 2.0**-10], n % 128 > 0)
        )
    for n in (385, 129):
        zeros = np.zeros((1, n), np.float32)
        found.append((program, [zeros, reals(F32, n), zeros[0], unwritten(F32, 1, n), 1, n, 0.0], True))
    return found


def reals(kind: DataType, *shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng([*shape, 7]).normal(scale=scale, size=shape).astype(kind.numpy_dtype)


SUBJECTS: dict[str, Callable[[str], list[Shaped]]] = {
    "matmul f16": _matmul,
    "quantized u4 with zero point": _quantized("u4", True, "f16", 128),
    "quantized u3": _quantized("u3", False, "f16", 256),
    "quantized nf4": _quantized("nf4", False, "f16", 128),
    "quantized u4 and f32 activations": _quantized("u4", False, "f32", 128),
    "softmax": _softmax,
    "layer norm": _layer_norm,
}


@cache
def subject(name: str, arch: str) -> Subject:
    """Return a kernel, compiled, with its launches."""
    launches, texts, meta = [], set(), {}
    for program, args, ragged in SUBJECTS[name](arch):
        kernel = compiled(program, arch)
        texts.add(kernel.ptx)
        meta = json.loads(kernel.files["meta.json"])
        grid = grid_function(program)([0 if isinstance(a, np.ndarray) else a for a in args])
        values = [a if isinstance(p.var.type, PointerType) else scalar_of(p.var.type.dtype, a)
                  for p, a in zip(program.params, args, strict=True)]  # fmt: skip
        launches.append(Launch(values, grid, ragged))
    assert len(texts) == 1, "the shapes have kernels of their own"
    return Subject(name, arch, parse(texts.pop()), meta["kernel"], meta["threads"], meta["shared"], launches)


# Mutants that live although traces differ: kernel, kind and text of the mutant as regular expressions, and why.
LISTED: tuple[tuple[str, str, str], ...] = (
    (
        "nf4",
        r"drop: bar\.sync 0;  dropped",
        "the loop's own barrier stands between the table's fill and the first look-up",
    ),
    (
        "nf4",
        r"(mask: and\.b32 .*, 124; |table: lop3\.b32 .*, 0xea; )",
        "looks up in another bank's copy of the table: slower, and counted by `tests/simt/test_tables.py`",
    ),
    (
        "f32 activations",
        r"constant: mov\.u32 %r\d+, 0;  ->  mov\.u32 %r\d+, 1;",
        "sums begin with the least number above zero, which rounding takes away",
    ),
)


def listed(name: str, kind: str, text: str) -> str:
    """Return the reason why a mutant of a kernel is known to live, or nothing."""
    change = f"{kind}: {text}"
    return next((why for kernel, pattern, why in LISTED if re.search(kernel, name) and re.search(pattern, change)), "")
