"""What becomes of casts of codes with a bit layout: numbers where that is cheaper, values elsewhere, the same results."""

from dataclasses import dataclass

import numpy as np
import pytest

from tilus import vm
from tilus.casts import best_unpacking
from tilus.dtypes import bf16, dtype, f16, f32
from tilus.ir.expr import Const
from tilus.ir.instructions import Cast, Dot, Elementwise, Full, Unpack, View, result_type
from tilus.ir.parser import parse
from tilus.ir.printer import to_text
from tilus.ir.stmt import inst_stmts
from tilus.ir.target import target
from tilus.layouts import BitLayout, local, parse_bits, spatial
from tilus.passes.absorb_casts import absorb_casts
from tilus.passes.pipeline import lower
from tilus.runtime.weights.packing import FRAGMENT, PackLayout

ROWS = 16


@dataclass
class Case:
    """y = (codes [+ more]) · x [+ more], on one warp; `after` may say how the weights are made of the cast codes."""

    name: str = "u4"
    to: str = "f16"
    n: int = 8
    after: str = "  w: register[{to}, ({rows}, {k})] = copy(x=v)\n"
    scale: str = ""
    result: str = "y"
    factor: str = "x"
    k: int = 128

    bits: BitLayout | None = None  # where codes lie, if not where they are unpacked best

    @property
    def pack(self):
        kind = dtype(self.name)
        layout = local(1, self.k // 16) * FRAGMENT
        if self.bits is not None:
            return PackLayout(kind, layout, 4, self.bits)
        best = best_unpacking(kind, dtype(self.to)) or best_unpacking(kind, bf16)
        assert best is not None
        units = layout.local_size // (best.bits.num_slots * 2)
        return PackLayout(kind, layout, 4, best.bits.repeated(units))

    def program(self):
        pack = self.pack
        words = pack.words
        head = f"""program case(px: ptr[{self.to}], pw: ptr[u32], pz: ptr[u8], py: ptr[f32]) {{
  grid (1,)
  warps 1
  gx: global[{self.to}, 2] = global_view(ptr=px, shape=({self.k}, {self.n}), strides=({self.n}, 1))
  gw: global[u32, 3] = global_view(ptr=pw, shape={words.shape}, strides=({words.shape[1] * 4}, 4, 1))
  gz: global[u8, 2] = global_view(ptr=pz, shape=({ROWS}, 1), strides=(1, 1))
  gy: global[f32, 2] = global_view(ptr=py, shape=({ROWS}, {self.n}), strides=({self.n}, 1))
  x: register[{self.to}, ({self.k}, {self.n})] = load_global(view=gx, offset=(0, 0), shape=({self.k}, {self.n}), dims=(0, 1), other=0.0)
  p: register[u32, {words.shape}, {words}] = load_global(view=gw, offset=(0, 0, 0), shape={words.shape}, dims=(0, 1, 2), other=0.0)
  z8: register[u8, ({ROWS}, 1)] = load_global(view=gz, offset=(0, 0), shape=({ROWS}, 1), dims=(0, 1), other=0.0)
  z: register[{self.to}, ({ROWS}, 1)] = cast(x=z8, dtype={self.to})
  zf: register[f32, ({ROWS}, 1)] = cast(x=z8, dtype=f32)
  c: register[{self.name}, ({ROWS}, {self.k}), {pack.fragment}] = view(x=p, dtype={self.name}, layout={pack.fragment}, bits={pack.bits})
  v: register[{self.to}, ({ROWS}, {self.k})] = cast(x=c, dtype={self.to})
"""
        body = self.after.format(to=self.to, rows=ROWS, k=self.k)
        tail = f"""  zero: register[f32, ({ROWS}, {self.n})] = full(value=0.0, shape=({ROWS}, {self.n}))
  y: register[f32, ({ROWS}, {self.n})] = dot(a=w, b={self.factor}, c=zero)
{self.scale}  store_global(view=gy, tile={self.result}, offset=(0, 0), dims=(0, 1))
}}"""
        return parse(head + body + tail)

    def run(self, program):
        kind, rng = dtype(self.name), np.random.default_rng(0)
        values = kind.decode(np.arange(kind.num_codes))
        exact = np.flatnonzero((np.abs(values) <= 256) & (values * 4 == np.round(values * 4)))  # sums in any order
        codes = rng.choice(exact, (ROWS, self.k)).astype(np.uint8)
        x = rng.integers(-2, 3, (self.k, self.n))
        y = np.zeros((ROWS, self.n), np.float32)
        floats = dtype(self.to).encode(x.astype(np.float64)).view(dtype(self.to).numpy_dtype)
        words = self.pack.pack(codes)
        vm.run(program, [floats, words, rng.integers(0, 16, (ROWS, 1)).astype(np.uint8), y])
        return y


def found(program, kind):
    return [stmt.inst for stmt in inst_stmts(program) if isinstance(stmt.inst, kind)]


SUB = '  w: register[{{to}}, ({{rows}}, {{k}})] = elementwise(op="sub", args=(v, {}))\n'
CASES = {
    "two positions": (Case(), "offset", [(-512, 527), (-32, 47)]),
    "a constant": (Case(after=SUB.format("8.0_f16")), "offset", [(-520, 519), (-40, 39)]),
    "signed": (Case("i4"), "offset", [(-520, 519), (-40, 39)]),
    "a zero point for each row": (Case(after=SUB.format("z")), "offset", [(-512, 527), (-32, 47)]),
    "both": (Case("i4", after=SUB.format("z")), "offset", [(-520, 519), (-40, 39)]),
    "no position is off by more than another": (Case("u8"), "subnormal", []),
    "only zero points": (Case("u8", after=SUB.format("z")), "subnormal", [(2**-24, 2**-24)]),
    "bf16": (Case(to="bf16"), "offset", [(-128, 143), (-16, 31)]),
    "bf16, three bits": (Case("u3", to="bf16", k=256), "offset", [(-(2**e), 2**e + 7) for e in (7, 6, 5, 4, 3)]),
    "a float": (Case("f4e2m1"), "exponent", []),
    "a float that loses nothing": (Case("f8e5m2"), "exponent", []),
    "one bit": (Case("u1", k=256), "offset", [(-(2**e), 2**e + 1) for e in (6, 5, 4, 3, 2, 1)]),
    "seven bits": (Case("i7", k=256), "offset", [(-64 - 2**e, 2**e + 63) for e in (10, 8, 7)]),
}  # what is multiplied, and constants of even and odd k whose products are added


@pytest.mark.parametrize("name", CASES)
def test_products_of_numbers(name):
    case, form, constants = CASES[name]
    program = case.program()
    after = absorb_casts(program, target("sm_80"))
    assert [inst.form for inst in found(after, Unpack)] == [form]
    assert not found(after, View)
    assert len(found(after, Dot)) == 1 + len(constants)
    full = [inst.value.value for inst in found(after, Full) if inst.value.dtype != f32 and inst.shape[-1] > 1]
    ones = full[::2] if "z)" in str(case.after) and form == "offset" else []  # beside constants, for zero points
    assert set(ones) <= {1.0}
    assert full[len(ones) and 1 :: 1 + bool(ones)] == [odd for _, odd in constants]
    wheres = [
        inst.args[1].value
        for inst in found(after, Elementwise)
        if inst.op == "where" and isinstance(inst.args[1], Const)
    ]
    assert wheres == [even for even, odd in constants if even != odd]
    assert parse(to_text(after)) == after
    expected = case.run(program)
    assert np.abs(expected).max() > 0
    np.testing.assert_array_equal(case.run(after), expected)
    np.testing.assert_array_equal(case.run(lower(program, target("sm_80"))), expected)


HALVES = '  w: register[{to}, ({rows}, {k})] = elementwise(op="mul", args=(v, 0.5_f16))\n'
VALUES = {
    "twice the weights": Case(after=HALVES.replace("0.5", "2.0")),
    "a large batch": Case(n=64),
    "a number that is no whole one": Case(after=SUB.format("0.5_f16")),
    "something else is done to the weights": Case(after=HALVES),
    "a float with something added": Case("f4e2m1", after=SUB.format("1.0_f16")),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_where_numbers_do_not_pay_or_would_be_wrong(name):
    case = VALUES[name]
    program = case.program()
    after = absorb_casts(program, target("sm_80"))
    assert [inst.form for inst in found(after, Unpack)] == ["value"]
    assert len(found(after, Dot)) == 1
    expected = case.run(program)
    np.testing.assert_array_equal(case.run(after), expected)
    np.testing.assert_array_equal(case.run(lower(program, target("sm_90a"))), expected)


def test_weights_that_are_defined_twice_stay_values():
    case = Case(after=Case.after + '  w = elementwise(op="add", args=(w, w))\n')
    program = case.program()
    after = absorb_casts(program, target("sm_80"))
    assert [inst.form for inst in found(after, Unpack)] == ["value"]
    np.testing.assert_array_equal(case.run(after), case.run(program))


SCALED = f'  r: register[f32, ({ROWS}, 8)] = elementwise(op="mul", args=(y, zf))\n'


def scaled_accumulators(case):
    """Check the results, and return how many multiplications of all accumulators are left."""
    program = case.program()
    after = absorb_casts(program, target("sm_80"))
    np.testing.assert_array_equal(case.run(after), case.run(program))
    products = [inst for inst in found(after, Elementwise) if inst.op == "mul"]
    return sum(result_type(inst).shape == (ROWS, case.n) for inst in products)


def test_scales_of_rows_take_the_products_scale():
    assert scaled_accumulators(Case("f4e2m1", scale=SCALED, result="r")) == 1


def test_products_that_are_used_or_defined_again_keep_their_scale():
    again = '  y = elementwise(op="mul", args=(y, zf))\n'
    used = SCALED + f'  s: register[f32, ({ROWS}, 8)] = elementwise(op="add", args=(r, y))\n'
    squared = SCALED.replace("zf", "y")
    for scale, result in ((again, "y"), (SCALED + "  y = copy(x=r)\n", "y"), (used, "s"), (squared, "r")):
        assert scaled_accumulators(Case("f4e2m1", scale=scale, result=result)) == 2


def test_what_a_product_is_added_to_is_not_scaled():
    case = Case("f4e2m1", scale=SCALED, result="r")
    program = parse(to_text(case.program()).replace("full(value=0.0,", "full(value=1.0,"))
    assert "full(value=1.0," in to_text(program)
    np.testing.assert_array_equal(case.run(absorb_casts(program, target("sm_80"))), case.run(program))


def test_codes_in_parts():
    case = Case("u8", to="f16")
    program = case.program()
    text = to_text(program).replace("f16", "bf16")
    case.to = "bf16"
    program = parse(text)
    after = absorb_casts(program, target("sm_80"))
    assert sorted(inst.form for inst in found(after, Unpack)) == ["offset_high", "offset_low"]
    pack = Case("u8").pack
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (ROWS, 128)).astype(np.uint8)
    x = rng.integers(-2, 3, (128, 8)).astype(np.float64)
    floats = dtype("bf16").encode(x).view(dtype("bf16").numpy_dtype)
    results = []
    for each in (program, after, lower(program, target("sm_80"))):
        y = np.zeros((ROWS, 8), np.float32)
        vm.run(each, [floats, pack.pack(codes), np.zeros((ROWS, 1), np.uint8), y])
        results.append(y)
    np.testing.assert_array_equal(results[0], codes.astype(float) @ x)
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


@pytest.mark.parametrize(
    ("name", "pattern", "lane"), [("i8", "bbbbbbbbaaaaaaaa", 16), ("u8", "aaaaaaaa", 8)], ids=["sign", "lane"]
)
def test_codes_that_do_not_lie_as_parts_would_have_them_stay_casts(name, pattern, lane):
    """Parts are of codes whose sign is stored inverted, in lanes of the target."""
    case = Case(name, to="bf16", bits=BitLayout(8, lane, pattern, units=16))
    program = case.program()
    after = absorb_casts(program, target("sm_80"))
    assert not found(after, Unpack)
    expected = case.run(program)
    assert np.abs(expected).max() > 0
    np.testing.assert_array_equal(case.run(after), expected)
    np.testing.assert_array_equal(case.run(lower(program, target("sm_80"))), expected)


FACTOR = "  xs: register[{to}, (64, {n})] = slice(x=x, offset=(32, 0), shape=(64, {n}))\n"
OF_WEIGHTS = "  w: register[{to}, ({rows}, 64)] = slice(x=v, offset=(0, 48), shape=({rows}, 64))\n"
OF_CODES = """  h: register[u4, ({rows}, 80)] = slice(x=c, offset=(0, 40), shape=({rows}, 80))
  g: register[u4, ({rows}, 64)] = slice(x=h, offset=(0, 8), shape=({rows}, 64))
  w: register[{to}, ({rows}, 64)] = cast(x=g, dtype={to})
"""


@pytest.mark.parametrize("part", [OF_WEIGHTS, OF_CODES])
@pytest.mark.parametrize(("n", "form"), [(8, "offset"), (64, "value")])
def test_parts_along_k(part, n, form):
    case = Case(n=n, after=FACTOR.replace("{n}", str(n)) + part, factor="xs")
    program = case.program()
    after = absorb_casts(program, target("sm_80"))
    assert [inst.form for inst in found(after, Unpack)] == [form]
    np.testing.assert_array_equal(case.run(after), case.run(program))


def test_parts_of_the_rows_stay_casts():
    rows = """  t: register[u4, (8, 8)] = slice(x=c, offset=(8, 8), shape=(8, 8))
  u: register[f16, (8, 8)] = cast(x=t, dtype=f16)
  r: register[f32, (8, 8)] = cast(x=u, dtype=f32)
"""
    case = Case(scale=rows, result="r")
    program = case.program()
    np.testing.assert_array_equal(case.run(absorb_casts(program, target("sm_80"))), case.run(program))


def test_rows_whose_codes_lie_elsewhere_are_unpacked_to_values():
    """Each of a thread's four rows fills a slot, and slots have two positions: no factor is one of a whole k."""
    case = Case(k=64)
    text = to_text(case.program()).replace(str(case.pack.fragment), str(spatial(4, 8) * local(4, 8)))
    program = parse(text)
    after = absorb_casts(program, target("sm_80"))
    assert [inst.form for inst in found(after, Unpack)] == ["value"]
    np.testing.assert_array_equal(case.run(after), case.run(program))


def test_sums_of_codes_wrap_around():
    more = '  d: register[u4, ({rows}, {k})] = elementwise(op="add", args=(c, 5_u4))\n'
    case = Case(after=more + "  w: register[{to}, ({rows}, {k})] = cast(x=d, dtype={to})\n")
    program = case.program()
    np.testing.assert_array_equal(case.run(absorb_casts(program, target("sm_80"))), case.run(program))


def test_codes_without_a_bit_layout_are_not_unpacked():
    """A view without a bit layout beside one with it."""
    case = Case()
    plain = (
        f"  d: register[u4, ({ROWS}, 128), {case.pack.fragment}] = view(x=p, dtype=u4, layout={case.pack.fragment})\n"
    )
    case.after = plain.replace("{", "{{").replace("}", "}}") + (
        "  e: register[{to}, ({rows}, {k})] = cast(x=d, dtype={to})\n"
        '  w: register[{to}, ({rows}, {k})] = elementwise(op="mul", args=(v, e))\n'
    )
    program = case.program()
    after = absorb_casts(program, target("sm_80"))
    assert [inst.bits for inst in found(after, View)] == [None]
    np.testing.assert_array_equal(case.run(after), case.run(program))


def test_codes_cast_to_two_types_are_unpacked_to_both():
    other = "  b: register[bf16, ({rows}, {k})] = cast(x=c, dtype=bf16)\n  h: register[f16, ({rows}, {k})] = cast(x=b, dtype=f16)\n"
    case = Case(after=other + '  w: register[{to}, ({rows}, {k})] = elementwise(op="mul", args=(v, h))\n')
    program = case.program()
    after = absorb_casts(program, target("sm_80"))
    assert {(inst.dtype, inst.form) for inst in found(after, Unpack)} == {(f16, "value"), (bf16, "value")}
    np.testing.assert_array_equal(case.run(after), case.run(program))


@pytest.mark.parametrize(("name", "to", "way"), [("f8e5m2", "bf16", f16), ("f7e6m0", "f16", bf16)])
def test_values_by_way_of_the_other_half(name, to, way):
    """One half has no infinity at that exponent, the other not the range."""
    case = Case(name, to, after=HALVES.replace("_f16", f"_{to}"), k=256)
    program = case.program()
    after = absorb_casts(program, target("sm_80"))
    assert {(inst.dtype, inst.form) for inst in found(after, Unpack)} == {(way, "value")}
    np.testing.assert_array_equal(case.run(after), case.run(program))


def test_codes_of_a_codebook_stay_casts():
    text = to_text(Case().program()).replace("u4", "nf4")
    after = absorb_casts(parse(text), target("sm_80"))
    assert found(after, Cast)
    assert not found(after, Unpack)


def test_products_in_half_precision_are_given_values():
    """What numbers are off by would not fit the accumulators."""
    text = to_text(Case(result="r", scale=f"  r: register[f32, ({ROWS}, 8)] = cast(x=y, dtype=f32)\n").program())
    text = text.replace("zero: register[f32", "zero: register[f16").replace("full(value=0.0,", "full(value=0.0_f16,")
    program = parse(text.replace("y: register[f32", "y: register[f16"))
    after = absorb_casts(program, target("sm_80"))
    assert [inst.form for inst in found(after, Unpack)] == ["value"]


def test_other_programs_and_targets_are_left_alone():
    program = Case().program()
    assert absorb_casts(program, target("cpu")) is program
    plain = parse(to_text(program).split("  c: ")[0] + "}")
    assert absorb_casts(plain, target("sm_80")) is plain
    assert not found(plain, Cast) or len(found(plain, Cast)) == 2


FLAGGED = """  if {cond} {{
    y = full(value=1.0, shape=({rows}, 8))
  }}
"""


@pytest.mark.parametrize("cond", ["block_id(0) == 0", "0 < block_id(0)"])
def test_a_product_that_is_defined_again_keeps_its_scale(cond):
    """What is left to multiply may not go into a scale that other values of the variable are multiplied by too."""
    case = Case(scale=FLAGGED.format(cond=cond, rows=ROWS) + SCALED, result="r")
    program = case.program()
    after = absorb_casts(program, target("sm_80"))
    assert [inst.form for inst in found(after, Unpack)] == ["offset"]
    np.testing.assert_array_equal(case.run(after), case.run(program))
    np.testing.assert_array_equal(case.run(lower(program, target("sm_80"))), case.run(program))


TWICE = SUB.replace("w: register", "u: register").format("{first}") + (
    '  w: register[{{to}}, ({{rows}}, {{k}})] = elementwise(op="sub", args=(u, {second}))\n'
)


@pytest.mark.parametrize(
    ("name", "to", "first", "second", "form"),
    [
        ("u4", "bf16", "100.0_bf16", "100.0_bf16", "offset"),
        ("u4", "bf16", "100.0_bf16", "101.0_bf16", "offset"),  # less 128, which the form adds, it is no number of bf16
        ("u4", "bf16", "100.0_bf16", "200.0_bf16", "value"),  # 300 is more than bf16 counts to
        ("u4", "f16", "1000.0_f16", "1000.0_f16", "offset"),
        ("u4", "f16", "1000.0_f16", "1500.0_f16", "value"),
        ("u4", "f16", "1000.0_f16", "1055.0_f16", "value"),  # the largest weight would be one that f16 counts to
        ("u4", "f16", "-1000.0_f16", "-1040.0_f16", "value"),  # and here the least
        ("u4", "f16", "z", "z", "offset"),
        ("u4", "f16", "1900.0_f16", "z", "value"),  # zero points may be 255
    ],
)
def test_sums_that_the_type_would_round_stay_sums_of_the_type(name, to, first, second, form):
    case = Case(
        name,
        to=to,
        after=TWICE.replace("{first}", first).replace("{second}", second).replace("{{", "{").replace("}}", "}"),
    )
    program = case.program()
    after = absorb_casts(program, target("sm_80"))
    assert [inst.form for inst in found(after, Unpack)] == [form]
    np.testing.assert_array_equal(case.run(after), case.run(program))


def points(value, shape="({rows}, 1)"):
    return f"  x0: register[{{to}}, {shape}] = {value}\n" + SUB.format("x0")


OTHER_POINTS = {
    "added": SUB.replace('"sub"', '"add"').format("z"),
    "no bytes": points("full(value=0.25_f16, shape=({rows}, 1))"),
    "floats": "  e: register[f8e4m3, ({rows}, 1)] = cast(x=z8, dtype=f8e4m3)\n" + points("cast(x=e, dtype=f16)"),
    "two definitions": points("cast(x=z8, dtype=f16)").replace("  w:", "  x0 = cast(x=z8, dtype=f16)\n  w:"),
    "one for all rows": "  s: register[u8, (1, 1)] = slice(x=z8, offset=(3, 0), shape=(1, 1))\n"
    + points("cast(x=s, dtype=f16)", "(1, 1)"),
}


@pytest.mark.parametrize("name", OTHER_POINTS)
def test_what_is_no_zero_point_of_a_row_stays_as_it_is(name):
    case = Case(after=OTHER_POINTS[name])
    program = case.program()
    after = absorb_casts(program, target("sm_80"))
    assert [inst.form for inst in found(after, Unpack)] == ["value"]
    np.testing.assert_array_equal(case.run(after), case.run(program))


def test_a_constant_that_the_type_rounds_stays_in_its_sum():
    """4001 becomes 4000 in f16, though -2000 + 4001 and all sums on the way are numbers of it."""
    both = TWICE.replace("{first}", "2000.0_f16").replace("{second}", "-4001.0_f16")
    case = Case(after=both.replace("{{", "{").replace("}}", "}"))
    program = case.program()
    after = absorb_casts(program, target("sm_80"))
    assert [inst.form for inst in found(after, Unpack)] == ["value"]
    np.testing.assert_array_equal(case.run(after), case.run(program))


def test_parts_of_codes_at_several_positions():
    """In an order that no search made, the slots' codes lie at different positions of their lanes."""
    order = parse_bits('bits(8, 16, "babababababababa", units=16)')
    text = to_text(Case("u8").program()).replace("f16", "bf16")
    program = parse(text.replace(str(Case("u8").pack.bits), str(order)))
    after = absorb_casts(program, target("sm_80"))
    assert len({position for inst in found(after, Unpack) for position in inst.positions}) == 2
    codes = np.random.default_rng(0).integers(0, 256, (ROWS, 128)).astype(np.uint8)
    words = PackLayout(dtype("u8"), Case("u8").pack.fragment, 4, order).pack(codes)
    y, x = np.zeros((ROWS, 8), np.float32), np.ones((128, 8))
    ones = dtype("bf16").encode(x).view(dtype("bf16").numpy_dtype)
    vm.run(after, [ones, words, np.zeros((ROWS, 1), np.uint8), y])
    np.testing.assert_array_equal(y, codes.astype(float) @ x)
