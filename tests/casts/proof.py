"""Proofs that a recipe unpacks what a layout holds: by enumeration, and for all words at once by a solver."""

import numpy as np
import z3

from tilus.casts import Recipe
from tilus.layouts.bits import WORD


def wrong_codes(unpacking, recipe=None):
    """Return (codes checked, codes unpacked wrongly): every code at every position, among random neighbours."""
    bits, form = unpacking.bits, unpacking.form
    recipe = recipe or unpacking.recipe
    rng = np.random.default_rng(1)
    count, wrong = 0, 0
    for element in range(bits.num_elements):
        codes = rng.integers(0, 1 << bits.nbits, (1 << bits.nbits, bits.num_elements)).astype(np.uint8)
        codes[:, element] = np.arange(1 << bits.nbits)
        words = bits.pack(codes)
        results = recipe.evaluate([words[:, w] for w in range(bits.num_words)])
        slot, lane = divmod(element, bits.lanes)
        got = results[slot] >> np.uint32(lane * bits.lane) & np.uint32((1 << bits.lane) - 1)
        expected = form.patterns(unpacking.positions[slot], bits.turned(lane))
        count += len(codes)
        wrong += int((got[: len(expected)] != expected).sum())
    return count, wrong


def _lop(name):
    return {
        "and": lambda a, b: a & b,
        "and_or": lambda a, b, c: (a & b) | c,
        "and_xor": lambda a, b, c: (a & b) ^ c,
        "mad": lambda a, b, c: a * b + c,
        "shl": lambda a, n: a << n,
        "shr": lambda a, n: z3.LShR(a, n),
    }[name]


def _prmt(a, b, selector):
    both = z3.Concat(b, a)
    chosen = []
    for place in range(4):
        nibble = selector >> (4 * place) & 15
        assert nibble < 8
        chosen.append(z3.Extract(8 * nibble + 7, 8 * nibble, both))
    return z3.Concat(*reversed(chosen))


def _without_factor(recipe):
    last = {step.out: step for step in recipe.steps if step.op.startswith("fma")}
    assert set(last) == set(recipe.results)
    steps = tuple(step for step in recipe.steps if step.out not in last)
    return Recipe(recipe.words, steps, tuple(last[result].args[0] for result in recipe.results))


def _value(known, x):
    return known[x] if isinstance(x, str) else z3.BitVecVal(x, WORD)


def proved(unpacking, recipe=None):
    """Whether, for all words, every lane of every result is its code moved to where the form wants it.

    A last multiplication by the form's factor is left out: what that does to 2^n numbers, `wrong_codes` enumerates.
    """
    bits, form = unpacking.bits, unpacking.form
    recipe = recipe or unpacking.recipe
    if form.factor != 1.0:
        recipe = _without_factor(recipe)
    known = {f"w{i}": z3.BitVec(f"w{i}", WORD) for i in range(recipe.words)}
    words = dict(known)
    for step in recipe.steps:
        if step.op == "prmt":
            a, b, selector = step.args
            known[step.out] = _prmt(_value(known, a), _value(known, b), selector)
        else:
            known[step.out] = _lop(step.op)(*(_value(known, x) for x in step.args))
    claims = []
    for slot, result in enumerate(recipe.results):
        position = unpacking.positions[slot]
        constants = (form.constant(position, bits.turned(lane)) << lane * bits.lane for lane in range(bits.lanes))
        expected = z3.BitVecVal(sum(constants), WORD)
        for lane in range(bits.lanes):
            for bit in range(bits.nbits):
                word, place = bits.locate(slot * bits.lanes + lane, bit)
                to = lane * bits.lane + form.destination(bit, position)
                one = z3.ZeroExt(WORD - 1, z3.Extract(place, place, words[f"w{word}"]))
                expected = expected | one << to
        claims.append(known[result] == expected)
    solver = z3.Solver()
    solver.add(z3.Not(z3.And(*claims)))
    return solver.check() == z3.unsat
