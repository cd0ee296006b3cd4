"""The instructions of recipes, against definitions of their own: bytes one by one, and exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilus.casts import OPS, Recipe, RecipeBuilder, Step
from tilus.dtypes import dtype
from tilus.errors import InternalError

WORDS = st.integers(0, 2**32 - 1)


def run(op, *args):
    [result] = OPS[op].meaning(*(np.array([a], np.uint32) for a in args))
    return int(result)


@given(WORDS, WORDS, st.integers(0, 2**16 - 1))
def test_prmt_picks_bytes_and_spreads_signs(a, b, selector):
    source = (a | b << 32).to_bytes(8, "little")
    expected = []
    for place in range(4):
        nibble = selector >> (4 * place) & 15
        byte = source[nibble & 7]
        expected.append((0xFF if byte & 0x80 else 0) if nibble & 8 else byte)
    assert run("prmt", a, b, selector) == int.from_bytes(bytes(expected), "little")


@given(WORDS, WORDS, WORDS, st.integers(0, 31))
def test_logic_and_shifts(a, b, c, n):
    assert run("and", a, b) == a & b
    assert run("and_or", a, b, c) == (a & b) | c
    assert run("and_xor", a, b, c) == (a & b) ^ c
    assert run("mad", a, b, c) == (a * b + c) % 2**32
    assert run("shl", a, n) == (a << n) & 0xFFFFFFFF
    assert run("shr", a, n) == a >> n


def nearest_even(kind, exact):
    """Return the code of a fraction, by trying all neighbours."""
    code = int(kind.encode(float(exact)))
    close = {code + step & 0xFFFF for step in (-2, -1, 0, 1, 2)}
    finite = [c for c in close if np.isfinite(float(kind.decode(c)))]
    off = {c: abs(Fraction(float(kind.decode(c))) - exact) for c in finite}
    least = min(off.values())
    ties = [c for c in finite if off[c] == least]
    return {c for c in ties if c % 2 == 0} or set(ties)


@pytest.mark.parametrize("name", ["f16", "bf16"])
@given(a=WORDS, b=WORDS, c=WORDS)
def test_a_fused_multiply_add_rounds_once(name, a, b, c):
    kind = dtype(name)
    got = run(f"fma_{name}x2", a, b, c)
    for shift in (0, 16):
        x, y, z = (float(kind.decode(w >> shift & 0xFFFF)) for w in (a, b, c))
        if not np.isfinite([x, y, z]).all():
            continue
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        if abs(exact) > float(kind.max_value):
            continue
        result = got >> shift & 0xFFFF
        assert result in nearest_even(kind, exact) or (exact == 0 and result & 0x7FFF == 0)


def test_a_recipe_counts_prints_and_computes():
    recipe = Recipe(1, (Step("t0", "shr", ("w0", 8)), Step("t1", "and_or", ("t0", 15, 0x64006400))), ("t1",))
    assert (recipe.issue, recipe.alu) == (2, 2)
    assert str(recipe) == "t0 = shr w0, 0x8\nt1 = and_or t0, 0xf, 0x64006400\n-> t1"
    [out] = recipe.evaluate([np.array([0xABCD, 0x1234], np.uint32)])
    assert out.tolist() == [0x6400640B, 0x64006402]


def test_a_builder_computes_nothing_twice_and_drops_what_is_not_needed():
    b = RecipeBuilder(1)
    assert b.put("shr", "w0", 8) == b.put("shr", "w0", 8)
    b.put("shr", "w0", 9)
    result = b.put("and", "t0", 1)
    recipe = b.build([result])
    assert [str(s) for s in recipe.steps] == ["t0 = shr w0, 0x8", "t2 = and t0, 0x1"]
    longer = RecipeBuilder(1)
    longer.put("and", "w0", 3)
    assert longer.run(recipe) == ["t2"]
    assert str(longer.steps[2]) == "t2 = and t1, 0x1"
    with pytest.raises(InternalError, match="no instruction 'rot'"):
        b.put("rot", "w0", 1)
