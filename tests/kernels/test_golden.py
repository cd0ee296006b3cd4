"""The library's programs, and one that has much to simplify, after the passes that say most: golden files, from the text that users can read.

`simplify` shows what is known at compile time gone, `select` the hardware instruction that each line became and why.
Packed orders are written out here, so that neither this machine's vectors nor a better order changes the files.
"""

from __future__ import annotations

import pytest

from tests.conftest import Golden
from tilus.dtypes import f16, f32, i32
from tilus.ir.parser import parse
from tilus.ir.printer import to_text
from tilus.ir.program import Program
from tilus.ir.target import TARGETS, Target
from tilus.kernels.configure import matmul_program
from tilus.kernels.programs import matmul, softmax
from tilus.lang import block_id, cdiv, global_view, launch, load_global, maximum, ptr, store_global, sum, zeros
from tilus.passes.pipeline import lower
from tilus.runtime.kernel import kernel
from tilus.runtime.weights.packing import PackLayout
from tilus.runtime.weights.weight import WeightFormat

PARTS = ("simplify", "select")
GPU_PACK = PackLayout.parse(
    "u4 | register_layout(shape=[64,128], mode_shape=[8,4,2,16,4,2], spatial_modes=[1,0,4], local_modes=[3,2,5]) | 4"
    ' | bits(4, 16, "ddddbbbbccccaaaa", units=8, mirrored)'
)
CPU_PACK = PackLayout.parse("u3 | local(4,16) * spatial(1,8) | 1")


def quantized(pack: PackLayout, activation, group: int, bm: int) -> Program:
    form = WeightFormat(pack, group, "tensor")
    promises = dict.fromkeys(("x", "w", "scales", "zero_points", "bias", "y", "n", "k"), 16)
    program, constants = matmul_program(form, activation, f16, bm, True)
    return program.program(promises, **constants)


@kernel
def tidy(x: ptr[f32], y: ptr[f32], n: i32, *, SCALE: float = 1.0, PARTS: int = 1):
    """Row sums, written with more than is needed."""
    launch(blocks=(cdiv(n, 64) * PARTS,), warps=4)
    view = global_view(x, shape=(n, 64 * PARTS))
    unused = load_global(view, offset=(0, 0), shape=(8, 64)) * 2.0  # noqa: F841
    rows = block_id(0) * 64 // PARTS + 0 * n
    acc = zeros((64, 64), f32)
    best = acc
    for j in range(0, 64 * PARTS, 64):
        tile = load_global(view, offset=(rows, j + 0), shape=(64, 64))
        scaled = tile * SCALE
        acc = acc + scaled
        previous = best
        best = maximum(previous, acc)
    if PARTS * 2 > n - n:  # noqa: SIM300
        acc = acc + best
    for j in range(4, 4):  # noqa: B007
        acc = acc * 3.0
    store_global(global_view(y, shape=(n,)), sum(acc, dim=1), offset=(rows * 1,))


PROGRAMS: dict[str, tuple[Program, Target]] = {
    "tidy_sm_80": (tidy.program(dict.fromkeys("xyn", 16)), TARGETS["sm_80"]),
    "quantized_matmul_sm_80": (quantized(GPU_PACK, f16, 128, 8), TARGETS["sm_80"]),
    "quantized_matmul_cpu": (quantized(CPU_PACK, f32, 32, 1), TARGETS["cpu"]),
    "matmul_sm_90a": (matmul.program(dict.fromkeys("abcnk", 16), T=f16), TARGETS["sm_90a"]),
    "softmax_cpu": (softmax.program(dict.fromkeys("xyn", 16), T=f16, BN=256), TARGETS["cpu"]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_library(name: str, golden: Golden) -> None:
    program, target = PROGRAMS[name]
    last = program

    def hook(step: str, after: Program) -> None:
        nonlocal last
        if step in PARTS and after is not last:
            text = to_text(after)
            assert to_text(parse(text)) == text
            golden.check(text, part=step)
        last = after

    golden.check(to_text(program), part="written")
    lower(program, target, hook=hook)
