"""Every row of the table unpacks every code at every position, and the table is what the search finds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.casts.proof import proved, wrong_codes
from tests.layouts.test_bits import bit_layouts
from tilus.casts import Recipe, best_form, best_unpacking, forms, to_stream, unpack, unpack_values
from tilus.casts.forms import rounded_form
from tilus.casts.search import search
from tilus.casts.table import PATH, TARGETS, row, sources
from tilus.dtypes import dtype
from tilus.errors import LayoutError
from tilus.layouts import BitLayout, parse_bits

ROWS = {
    f"{s.name}-{t}": found for s in sources() for t in TARGETS if (found := best_unpacking(s, dtype(t))) is not None
}
# Operations of the logic pipe per element, to f16.
TARGET_ALU = {"1": 0.54, "2": 0.57, "3": 0.66, "4": 0.63, "5": 0.79, "6": 0.82, "7": 0.91, "8": 0.50}
LINES = PATH.read_text().splitlines()


@pytest.mark.parametrize("name", ROWS)
def test_every_code_at_every_position(name, record_property):
    count, wrong = wrong_codes(ROWS[name])
    record_property("codes", count)
    assert wrong == 0


@pytest.mark.parametrize("name", ROWS)
def test_all_words_by_a_solver(name):
    assert proved(ROWS[name])


def test_how_many_codes_were_checked():
    assert sum(u.elements << u.bits.nbits for u in ROWS.values()) > 100_000


@pytest.mark.parametrize("name", ["u3-f16", "u8-f16", "f4e2m1-f16", "i5-i8"])
def test_a_planted_wrong_mask_is_caught(name):
    """One bit less in one immediate of any step, and both proofs fail."""
    unpacking = ROWS[name]
    steps = unpacking.recipe.steps
    for i, step in enumerate(steps):
        at = next(j for j in reversed(range(len(step.args))) if isinstance(step.args[j], int))
        args = (*step.args[:at], step.args[at] & (step.args[at] - 1), *step.args[at + 1 :])
        wrong = Recipe(
            unpacking.recipe.words, (*steps[:i], replace(step, args=args), *steps[i + 1 :]), unpacking.recipe.results
        )
        assert not proved(unpacking, wrong)
        assert wrong_codes(unpacking, wrong)[1] > 0


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].form.raised])
def test_numbers_above_a_constant_have_one_unit(name):
    """And are no more than six bits longer than codes: what sums of 24 bits lose."""
    form, positions = ROWS[name].form, ROWS[name].positions
    assert {form.scale(p) for p in positions} == {1.0}
    assert max(form.offset(p) for p in positions) <= 2.0 ** (form.source.nbits + 6)


@pytest.mark.parametrize("name", ["u1", "u2", "u4", "i4"])
def test_an_order_without_turned_lanes_is_unpacked_to_exact_numbers(name):
    """Files keep the order that they were packed in."""
    bits, kind = ROWS[f"{name}-f16"].bits, dtype(name)
    assert best_form(bits, kind, dtype("f16")).name == "offset"
    assert best_form(replace(bits, mirrored=False), kind, dtype("f16")).name == "subnormal"
    assert best_form(replace(bits, mirrored=False), kind, dtype("bf16")).name == "offset"


@pytest.mark.parametrize("name", ROWS)
def test_the_table_says_what_its_layout_costs(name):
    assert row(ROWS[name]) in LINES


def test_the_table_has_a_row_for_all_that_has_a_form():
    pairs = {f"{s.name}-{t}" for s in sources() for t in TARGETS if s.name != t and forms(s, dtype(t))}
    assert set(ROWS) == pairs
    assert len([line for line in LINES if not line.startswith("#")]) == len(ROWS)


# The others are searched for with `-m long`, a minute.
QUICK = {"u4-f16", "i2-bf16", "u6-bf16", "f4e2m1-f16", "u8-f16", "i1-f16", "t2-f8e4m3", "u7-i8", "f7e4m2-f8e4m3"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in ROWS])
def test_the_search_finds_the_table_again(name):
    source, target = name.split("-")
    assert row(search(dtype(source), dtype(target))) in LINES


@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("sign", "ui")
def test_integers_take_no_more_than_the_targets(sign, n):
    assert ROWS[f"{sign}{n}-f16"].alu <= TARGET_ALU[str(n)]


def test_floats_take_no_more_than_the_target():
    """All but the four that f16 has not the range for, which `test_sass` counts; f6e5m0 is rounded by where it lies."""
    without = {s.name for s in sources() if f"{s.name}-f16" not in ROWS}
    assert without - {"f6e5m0"} == {s for s, t in NO_VALUES if t == "f16"}
    unpacking = ROWS["f6e5m0-bf16"]
    assert unpack_values(unpacking.bits, dtype("f6e5m0"), dtype("f16")).alu <= 1.2 * unpacking.elements
    worst = {
        t: max(u.alu for n, u in ROWS.items() if n.startswith("f") and n.endswith(f"-{t}")) for t in ("f16", "bf16")
    }
    assert max(worst.values()) <= 1.5


@given(bit_layouts(), st.integers(0, 2**32))
@settings(max_examples=40)
def test_any_layout_can_be_unpacked(bits, seed):
    """Not only the best one: a weight may have been packed for another target."""
    if bits.lane != 16 or bits.flipped not in (0, 1 << (bits.nbits - 1)):
        bits = (
            BitLayout(bits.nbits, 16, bits.pattern, 1, 0)
            if bits.lane == 16
            else parse_bits('bits(8, 16, "abbbbbbbbaaaaaaa", units=1)')
        )
    source = dtype(f"{'i' if bits.flipped else 'u'}{bits.nbits}")
    for target in map(dtype, ("f16", "bf16")):
        for form in forms(source, target):
            assert wrong_codes(unpack(bits, form))[1] == 0


@given(bit_layouts(), st.integers(0, 2**32))
def test_a_stream_holds_the_codes_in_order(bits, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits.nbits, bits.num_elements).astype(np.uint8)
    recipe = to_stream(bits)
    words = np.array(recipe.evaluate(list(bits.pack(codes))), np.uint32)
    assert words.tobytes() == dtype(f"u{bits.nbits}").pack(codes).tobytes()


# (type, target, what the layout was made for)
VALUES = [(s, t, p) for s in sources() for t in ("f16", "bf16") for p in ("f16", "bf16") if f"{s.name}-{p}" in ROWS]
NO_VALUES = {*((name, "f16") for name in ("f7e5m1", "f7e6m0", "f8e6m1", "f8e7m0")), ("f8e5m2", "bf16")}


@pytest.mark.parametrize(("source", "target", "packed_for"), VALUES, ids=str)
def test_values_are_what_the_type_says(source, target, packed_for):
    """And 65536 of f6e5m0 is infinity in f16. Every code at every position: in row r, element e holds code r + 37 e."""
    kind, bits = dtype(target), ROWS[f"{source.name}-{packed_for}"].bits
    recipe = unpack_values(bits, source, kind)
    assert (recipe is None) == ((source.name, target) in NO_VALUES)
    if recipe is None:
        return
    rows, elements = np.arange(source.num_codes)[:, None], np.arange(bits.num_elements)
    codes = ((rows + 37 * elements) % source.num_codes).astype(np.uint8)
    words = bits.pack(codes)
    got = np.stack(recipe.evaluate([words[:, w] for w in range(bits.num_words)]), axis=1)
    values = kind.decode(got[..., None].view(np.uint16)).reshape(codes.shape)
    expected = source.decode(codes)
    if rounded_form(source, kind) is not None:
        expected = kind.decode(kind.encode(expected))
    np.testing.assert_array_equal(values, expected)  # NaN equals NaN
    assert (np.isnan(values) | (np.signbit(values) == np.signbit(expected))).all()  # of zeros too


def test_where_values_cannot_be_had():
    assert unpack_values(ROWS["f8e5m2-bf16"].bits, dtype("f8e5m2"), dtype("bf16")) is None  # infinity and NaN
    assert unpack_values(ROWS["f8e5m2-f16"].bits, dtype("f8e5m2"), dtype("f16")) is not None  # are themselves here
    for target in ("f16", "bf16"):
        assert unpack_values(ROWS[f"f8e4m3-{target}"].bits, dtype("f8e4m3"), dtype(target)) is not None
    assert best_unpacking(dtype("nf4"), dtype("f16")) is None
    assert unpack_values(ROWS["u4-f8e4m3"].bits, dtype("u4"), dtype("f8e4m3")) is None  # no multiply-add of bytes
    assert unpack_values(ROWS["u4-i8"].bits, dtype("u4"), dtype("i8")) is not None  # the numbers are the values
    assert unpack_values(ROWS["i4-i8"].bits, dtype("i4"), dtype("i8")) is None


def test_a_layout_for_another_type_is_refused():
    [form, _] = forms(dtype("u4"), dtype("f16"))
    with pytest.raises(LayoutError, match="holds no codes of u4 for f16"):
        unpack(ROWS["u3-f16"].bits, form)
    assert best_form(ROWS["u3-f16"].bits, dtype("u4"), dtype("f16")) is None
