"""Random programs mean the same before and after lowering, and compiled for this CPU: equal bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agreement.machines import examples, on_cpu, on_vm, outputs
from tests.ir.strategies import arguments, programs
from tilus.dtypes import i8, i32
from tilus.ir.builder import Builder, op
from tilus.ir.expr import const
from tilus.ir.instructions import Elementwise, GlobalView, LoadGlobal, StoreGlobal
from tilus.ir.node import rewrite
from tilus.ir.parser import parse
from tilus.ir.program import Program
from tilus.ir.target import TARGETS
from tilus.passes.pipeline import lower
from tilus.runtime.targets import find_target

HERE = find_target("cpu")
CPUS = {"this cpu": HERE, **{f"{n} lanes": replace(TARGETS["cpu"], lanes=n) for n in (4, 8, 16) if n != HERE.lanes}}
GPUS = [TARGETS["sm_80"], TARGETS["sm_90a"]]  # of equal warps: one program for both


@examples(0.6)
@given(programs(GPUS[0]), st.integers(0, 3))
def test_lowered_for_gpus(program: Program, seed: int) -> None:
    args = arguments(seed)
    wanted = outputs(on_vm(program, args))
    for gpu in GPUS:
        np.testing.assert_array_equal(outputs(on_vm(lower(program, gpu), args)), wanted, err_msg=gpu.name)


@pytest.mark.parametrize("cpu", CPUS)
@examples(0.4)
@given(st.data(), st.integers(0, 3))
def test_lowered_and_compiled_for_cpus(cpu: str, data: st.DataObject, seed: int) -> None:
    program, args = data.draw(programs(CPUS[cpu])), arguments(seed)
    wanted = outputs(on_vm(program, args))
    np.testing.assert_array_equal(outputs(on_vm(lower(program, CPUS[cpu]), args)), wanted, err_msg="lowered")
    np.testing.assert_array_equal(outputs(on_cpu(program, CPUS[cpu], args)), wanted, err_msg="compiled")


def test_most_programs_write() -> None:
    """What is compared is not nothing: a machine that does nothing would be noticed, as would another sum."""
    changed = []

    @settings(max_examples=50, derandomize=True, database=None)
    @given(programs())
    def run(program: Program) -> None:
        args = arguments()
        changed.append(bool((outputs(on_vm(program, args)) != outputs(args)).any()))

    run()
    assert np.mean(changed) > 0.9


@pytest.mark.parametrize("name", ["", "1x", "a b", 'quo"te', "x\ny", "é", "%0"])
def test_names_may_hold_anything(name: str) -> None:
    b = Builder("named")
    source, target = b.pointer(name, i8), b.pointer(name, i8)
    count = b.let(name, b.scalar(name, i32))
    views = [b.inst(GlobalView(p, (count,), (const(1),)), name) for p in (source, target)]
    with b.for_(name, 0, 2) as i:
        tile = b.inst(LoadGlobal(views[0], (op("mul", i, const(4)),), (4,), (0,)), name)
        b.inst(StoreGlobal(views[1], tile, (op("mul", i, const(4)),), (0,)))
    x, y = np.arange(8, dtype=np.int8), np.zeros(8, np.int8)
    for run in (on_cpu(b.program(), CPUS["this cpu"], [x, y, 8]), on_vm(b.program(), [x, y, 8])):
        np.testing.assert_array_equal(run[1], x)


@pytest.mark.parametrize("wrong", ["sub", "max"])
def test_another_operator_is_noticed(wrong: str) -> None:
    program = parse(SUM)
    other = rewrite(program, lambda n: replace(n, op=wrong) if isinstance(n, Elementwise) else None)
    args = arguments()
    wanted = outputs(on_vm(program, args))
    cpu = CPUS["this cpu"]
    np.testing.assert_array_equal(outputs(on_cpu(program, cpu, args)), wanted)
    assert (outputs(on_cpu(other, cpu, args)) != wanted).any()
    assert (outputs(on_vm(lower(other, TARGETS["sm_80"]), args)) != wanted).any()


SUM = """program sum(f: ptr[f16], g: ptr[f32], h: ptr[i8], k: ptr[u4], y: ptr[u8], z: ptr[f16], w: ptr[u4], n: i32) {
  grid (2)
  warps 1
  a: global[i8, 1] = global_view(ptr=h, shape=(256), strides=(1))
  t: register[i8, (64)] = load_global(view=a, offset=(block_id(0) * 64), shape=(64), dims=(0), other=0.0)
  s: register[i8, (64)] = elementwise(op="add", args=(t, t))
  u: register[u8, (64)] = cast(x=s, dtype=u8)
  b: global[u8, 1] = global_view(ptr=y, shape=(256), strides=(1))
  store_global(view=b, tile=u, offset=(block_id(0) * 64), dims=(0))
}"""
