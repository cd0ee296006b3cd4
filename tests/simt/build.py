"""Small kernels in PTX: a body between a fixed head and tail, and a way to run them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilus import simt

_HEAD = """.version 9.0
.target {target}
.address_size 64
.extern .shared .align 1024 .b8 dynamic[];
.visible .entry kernel({params})
{directives}{{
    .reg .pred %p<40>;
    .reg .b16 %h<40>;
    .reg .b32 %r<200>;
    .reg .f32 %f<200>;
    .reg .b64 %rd<60>;
    .reg .f64 %fd<20>;
    .shared .align 1024 .b8 buffer[{shared}];
    mov.u32 %r0, %tid.x;
    cvt.u64.u32 %rd0, %r0;
"""


def kernel(
    body: str, params: Sequence[str] = (), *, shared: int = 4096, target: str = "sm_90a", directives: str = ""
) -> str:
    """Return a PTX text. Parameters are types; pointers are loaded into %rd50, %rd51, ..., u32 into %r190, ..."""
    declared = ", ".join(
        f".param .align 64 .b8 p{i}[128]" if t == "map" else f".param .{t} p{i}" for i, t in enumerate(params)
    )
    loads = []
    for i, t in enumerate(params):
        if t == "u64":
            loads.append(f"    ld.param.u64 %rd{50 + i}, [p{i}];")
        elif t == "u32":
            loads.append(f"    ld.param.u32 %r{190 + i}, [p{i}];")
    head = _HEAD.format(target=target, params=declared, shared=shared, directives=directives)
    return head + "\n".join(loads) + "\n" + body + "\n    ret;\n}\n"


def line_of(ptx: str, text: str, nth: int = 0) -> int:
    """Return the number of the nth line that holds a text."""
    return [i for i, line in enumerate(ptx.splitlines(), 1) if text in line][nth]


def run(body: str, args: Sequence[Any] = (), *, grid: Any = 1, block: Any = 32, shared: int = 4096, target: str = "sm_90a",
        directives: str = "", **options: Any) -> simt.Report:  # fmt: skip
    """Run a body on arguments: arrays (u64), integers (u32), and tensor maps."""
    kinds = ["map" if isinstance(a, simt.TensorMap) else "u64" if isinstance(a, np.ndarray) else "u32" for a in args]
    text = kernel(body, kinds, shared=shared, target=target, directives=directives)
    return simt.run(text, "kernel", args, grid, block, **options)


def lanes(body: str, *inputs: np.ndarray, outputs: int = 1, block: int = 32, **options: Any) -> list[np.ndarray]:
    """Run a body on 32-bit words of each thread: inputs in %r1, %r2, ...; results are taken from %r101, %r102, ..."""
    found = [np.zeros(block, np.uint32) for _ in range(outputs)]
    lines = ["shl.b64 %rd1, %rd0, 2;"]
    for i in range(len(inputs)):
        lines += [f"add.s64 %rd2, %rd{50 + i}, %rd1;", f"ld.global.b32 %r{i + 1}, [%rd2];"]
    lines.append(body)
    for i in range(outputs):
        lines += [f"add.s64 %rd2, %rd{50 + len(inputs) + i}, %rd1;", f"st.global.b32 [%rd2], %r{101 + i};"]
    run("\n".join(lines), [*inputs, *found], block=block, **options).check()
    return found


def words(*shape: int, seed: int = 0) -> np.ndarray:
    """Return random 32-bit words."""
    return np.random.default_rng(seed).integers(0, 1 << 32, shape, dtype=np.uint32)
