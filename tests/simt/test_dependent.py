"""Kernels that start before earlier ones have ended: what they may do until they wait."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tilus
from tests.agreement.machines import on_vm
from tests.agreement.test_library import quantized
from tests.simt.build import run
from tests.simt.library import bits, compiled, on_simt
from tilus.dtypes import dtype, f16, f32
from tilus.errors import TilusError
from tilus.ir.program import Program
from tilus.ir.types import PointerType
from tilus.kernels.programs import add_parts

WAIT = "griddepcontrol.wait;"
LOAD = "ld.global.u32 %r1, [%rd50];"


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        (LOAD + WAIT, ["dependency"]),
        (WAIT + LOAD, []),
        (LOAD, ["dependency"]),
        ("cp.async.bulk.prefetch.L2.global [%rd50], 64;" + WAIT, []),
        ("cp.async.bulk.prefetch.L2.global [%rd50], 80;" + WAIT, ["bounds"]),
        ("cp.async.bulk.prefetch.L2.global [%rd50+4], 32;" + WAIT, ["misaligned"]),
        ("griddepcontrol.launch_dependents;" + LOAD, ["dependency"]),
    ],
)
def test_what_comes_before_the_wait(body: str, kinds: list[str]) -> None:
    report = run(body, [np.arange(16, dtype=np.uint32)], dependent=True)
    assert [f.kind for f in report.findings] == kinds


def case() -> tuple[Program, list[Any]]:
    """Return a product whose arrays are known to be aligned."""
    program, args = quantized({"name": "u4", "where": "sm_90a", "zero_point": True, "m": 3, "group": 32,
                               "shape": (70, 300), "activation": "f16", "bias": True})  # fmt: skip
    aligned = [replace(p, multiple=16) if isinstance(p.var.type, PointerType) else p for p in program.params]
    return replace(program, params=tuple(aligned)), args


def test_products_wait_for_earlier_kernels() -> None:
    """The weights' prefetch alone stands before the wait; without the wait every access is too early."""
    program, args = case()
    text = compiled(program, "sm_90a").ptx
    before, wait, _ = text.partition("griddepcontrol.wait;")
    assert wait
    assert before.count("cp.async.bulk.prefetch.L2") >= 1
    found, report = on_simt(program, args, "sm_90a")
    assert report.ok
    assert (bits(found) == bits(on_vm(program, args))).all()
    assert np.isfinite(found[5].astype(float)).all()  # it held NaN before
    _, report = on_simt(program, args, "sm_90a", edit=("griddepcontrol.wait;", ""))
    assert {f.kind for f in report.findings} == {"dependency"}
    assert "griddepcontrol" not in compiled(program, "sm_80").ptx


def test_sums_of_parts_wait_too() -> None:
    options = {"XT": f16, "ST": f16, "SPLIT": 2, "GROUP": 32, "SCALED": False, "BIAS": False}
    built = add_parts.compile(target="sm_90a", **options)
    assert built.ptx.index("griddepcontrol.wait;") < built.ptx.index("ld.global")


@tilus.kernel
def hasty(x: tilus.ptr[f32], y: tilus.ptr[f32], n: dtype("i32")):
    tilus.launch(blocks=(tilus.cdiv(n, 64),), warps=1)
    at = tilus.block_id(0) * 64
    tile = tilus.load_global(tilus.global_view(x, shape=(n,)), offset=(at,), shape=(64,))
    tilus.grid_dependency_wait()
    tilus.store_global(tilus.global_view(y, shape=(n,)), tile, offset=(at,))


@tilus.kernel
def sometimes(x: tilus.ptr[f32], n: dtype("i32")):
    tilus.launch(blocks=(1,), warps=1)
    if n > 3:
        tilus.grid_dependency_wait()
    tilus.store_global(tilus.global_view(x, shape=(n,)), tilus.zeros((64,), f32), offset=(0,))


@pytest.mark.parametrize(
    ("program", "message", "line"),
    [
        (hasty, "global memory is accessed before grid_dependency_wait", "tile = tilus.load_global"),
        (sometimes, "grid_dependency_wait stands in a branch or loop", "tilus.grid_dependency_wait()"),
    ],
)
def test_mistakes_are_named_with_their_line(program, message: str, line: str) -> None:
    with pytest.raises(TilusError, match=message) as caught:
        program.compile(target="sm_90a").build()
    assert line in str(caught.value)
