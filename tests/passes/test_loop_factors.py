"""A factor leaves a loop only where all that the loop does to an accumulator is to add products with that factor."""

import numpy as np
import pytest

from tilus import vm
from tilus.ir.expr import Const
from tilus.ir.instructions import Elementwise
from tilus.ir.parser import parse
from tilus.ir.printer import to_text
from tilus.ir.stmt import For, inst_stmts
from tilus.passes.loop_factors import take_factors_out

TILE = "register[f32, (4, 8)]"
START = f"acc: {TILE} = full(value=0.0, shape=(4, 8))"
PRODUCT = f"""p: {TILE} = elementwise(op="mul", args=(s, 1024.0))
m: {TILE} = elementwise(op="mul", args=(x, p))"""
ADD = 'acc = elementwise(op="add", args=(acc, m))'
SECOND = f"""p2: {TILE} = elementwise(op="mul", args=(s, {{}}))
m2: {TILE} = elementwise(op="mul", args=(x, p2))
acc = elementwise(op="add", args=(acc, m2))"""


def program_of(loop, start=START, before="", end="store_global(view=gy, tile=acc, offset=(0, 0), dims=(0, 1))"):
    load = "load_global(view={}, offset=(t * 4, 0), shape=(4, 8), dims=(0, 1), other=0.0)"
    return parse(f"""program sums(px: ptr[f32], ps: ptr[f32], py: ptr[f32]) {{
  grid (1,)
  warps 1
  gx: global[f32, 2] = global_view(ptr=px, shape=(12, 8), strides=(8, 1))
  gs: global[f32, 2] = global_view(ptr=ps, shape=(12, 8), strides=(8, 1))
  gy: global[f32, 2] = global_view(ptr=py, shape=(4, 8), strides=(8, 1))
  {start}
  {before}
  for t in range(0, 3, 1) {{
    x: {TILE} = {load.format("gx")}
    s: {TILE} = {load.format("gs")}
    {loop}
  }}
  {end}
}}""")


def factors_of(program):
    """Return what the pass that scales products knows: the tensors named p.. are s times a constant."""
    made = {s.out: s.inst for s in inst_stmts(program) if s.out is not None and s.out.name.startswith("p")}
    return {out: (inst.args[0], float(inst.args[1].value)) for out, inst in made.items()}


def run(program):
    rng = np.random.default_rng(0)
    x, s = rng.standard_normal((2, 12, 8)).astype(np.float32)
    y = np.zeros((4, 8), np.float32)
    vm.run(program, [x, s, y])
    return y


TAKEN = {
    "one sum": program_of(f"{PRODUCT}\n{ADD}"),
    "two sums of one accumulator": program_of(f"{PRODUCT}\n{ADD}\n{SECOND.format('1024.0')}"),
    "a sum of sums": program_of(
        f"{PRODUCT}\nb: {TILE} = elementwise(op=\"add\", args=(acc, m))\n{SECOND.format('1024.0').replace('(acc, m2)', '(b, m2)')}"
    ),
    "a loop in another": program_of(f"for u in range(0, 2, 1) {{\n{PRODUCT}\n{ADD}\n}}"),
    "a second loop": program_of(
        f"{PRODUCT}\n{ADD}", end=f"for u in range(0, 2, 1) {{\n gone: {TILE} = copy(x=acc)\nstore_global(view=gy, tile=gone, offset=(0, 0), dims=(0, 1))\n}}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_a_factor_is_taken_out(name):
    program = TAKEN[name]
    after = take_factors_out(program, factors_of(program))
    place = next(i for i, stmt in enumerate(after.body) if isinstance(stmt, For))
    inst = after.body[place + 1].inst
    assert isinstance(inst, Elementwise)
    assert inst.args[1] == Const(1024.0, inst.args[0].type.dtype)
    in_loop = [s.inst.args[1] for s in inst_stmts(after.body[place]) if s.out.name.startswith("m")]
    assert {x.name for x in in_loop} == {"s"}
    assert parse(to_text(after)) == after
    np.testing.assert_array_equal(run(after), run(program))
    assert run(after).any()


KEPT = {
    "nothing is known to be scaled": (program_of(f"{PRODUCT}\n{ADD}"), {}),
    "the accumulator begins at 1": program_of(f"{PRODUCT}\n{ADD}", start=START.replace("0.0", "1.0")),
    "it is defined again before the loop": program_of(
        f"{PRODUCT}\n{ADD}", before='acc = elementwise(op="add", args=(acc, 1.0))'
    ),
    "it is defined again in the loop": program_of(f"{PRODUCT}\n{ADD}\nacc = copy(x=m)"),
    "it is defined again behind the loop": program_of(
        f"{PRODUCT}\n{ADD}",
        end='acc = elementwise(op="add", args=(acc, 1.0))\nstore_global(view=gy, tile=acc, offset=(0, 0), dims=(0, 1))',
    ),
    "the loop reads it": program_of(f"{PRODUCT}\n{ADD}\nstore_global(view=gy, tile=acc, offset=(0, 0), dims=(0, 1))"),
    "it is subtracted from": program_of(PRODUCT + "\n" + ADD.replace("add", "sub")),
    "a sum of sums is read elsewhere": program_of(
        f'{PRODUCT}\nb: {TILE} = elementwise(op="add", args=(acc, m))\n'
        f"{SECOND.format('1024.0').replace('(acc, m2)', '(b, m2)')}\n"
        "store_global(view=gy, tile=b, offset=(0, 0), dims=(0, 1))"
    ),
    "a sum of sums is read behind the loop": program_of(
        f'{PRODUCT}\nb: {TILE} = elementwise(op="add", args=(acc, m))\n'
        f"{SECOND.format('1024.0').replace('(acc, m2)', '(b, m2)')}",
        end="store_global(view=gy, tile=b, offset=(0, 0), dims=(0, 1))",
    ),
    "a sum of sums has two definitions": program_of(
        f'{PRODUCT}\nb: {TILE} = elementwise(op="add", args=(acc, m))\nb = copy(x=x)\n'
        f"{SECOND.format('1024.0').replace('(acc, m2)', '(b, m2)')}"
    ),
    "a sum of sums has two factors": program_of(
        f'{PRODUCT}\nb: {TILE} = elementwise(op="add", args=(acc, m))\n'
        f"{SECOND.format('2.0').replace('(acc, m2)', '(b, m2)')}"
    ),
    "it is added to the product": program_of(PRODUCT + "\n" + ADD.replace("(acc, m)", "(m, acc)")),
    "it is doubled": program_of(PRODUCT + "\n" + ADD.replace("(acc, m)", "(acc, acc)")),
    "something else is added too": program_of(f"{PRODUCT}\n{ADD}\n" + ADD.replace("m)", "x)")),
    "two factors": program_of(f"{PRODUCT}\n{ADD}\n{SECOND.format('2.0')}"),
    "the product was made before the loop": program_of(
        ADD, before=f"x: {TILE} = full(value=3.0, shape=(4, 8))\ns: {TILE} = copy(x=x)\n{PRODUCT}"
    ),
    "the product has two definitions": program_of(f"{PRODUCT}\nm = copy(x=x)\n{ADD}"),
    "the product is read elsewhere": program_of(
        f"{PRODUCT}\n{ADD}\n" + SECOND.format("1024.0").replace("(x, p2)", "(m, p2)")
    ),
    "something else is what the product is added to": program_of(f"{PRODUCT}\n" + ADD.replace("(acc, m)", "(x, m)")),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_factor_stays(name):
    case = KEPT[name]
    program, scaled = case if isinstance(case, tuple) else (case, factors_of(case))
    assert take_factors_out(program, scaled) == program
