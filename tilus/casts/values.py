"""Casts whose result is the value itself: forms, and the multiply-adds that undo scale and bias."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from tilus.casts.forms import Form, forms, parts, rounded_form
from tilus.casts.recipe import OPS, Recipe, RecipeBuilder
from tilus.casts.unpack import Unpacking, fits, unpack
from tilus.dtypes import DataType, Float
from tilus.layouts.bits import BitLayout


@lru_cache(maxsize=1024)
def unpack_values(bits: BitLayout, source: DataType, target: DataType) -> Recipe | None:
    """Return the cheapest recipe from the words of a unit to a word of values for every slot.

    None where a form cannot be had, or would make numbers of codes that stand for none.
    """
    made = (_values([unpack(bits, form) for form in ways]) for ways in _ways(source, target) if fits(bits, ways[0]))
    found = [recipe for recipe in made if recipe is not None]
    return min(found, key=lambda recipe: recipe.issue + recipe.alu, default=None)


def _ways(source: DataType, target: DataType) -> Iterator[tuple[Form, ...]]:
    yield from ((form,) for form in forms(source, target) if _spells_every_code(form) or _lacks_only_nan(source))
    rounded = rounded_form(source, target)
    if rounded is not None:
        yield (rounded,)
    both = parts(source, target)
    if both is not None:
        yield both


def _values(unpackings: Sequence[Unpacking]) -> Recipe | None:
    """Return the recipe that sums the values of all parts, the last one first; None if that cannot be done exactly."""
    builder = RecipeBuilder(unpackings[0].recipe.words)
    words = [builder.run(u.recipe) for u in unpackings]
    results: list[str] = []
    target = unpackings[0].form.target
    for slot in range(len(words[0])):
        scaled = [(own[slot], u.form.scale(u.positions[slot])) for own, u in zip(words, unpackings, strict=True)]
        biases = [
            sum(u.form.bias(u.positions[slot], u.bits.turned(lane)) for u in unpackings)
            for lane in range(unpackings[0].bits.lanes)
        ]
        if [scale for _, scale in scaled] == [1.0] and not any(biases):
            result = scaled[0][0]
        elif isinstance(target, Float) and _can_scale(target, (*biases, *(scale for _, scale in scaled))):
            result = _multiply_add(builder, target, scaled, biases)
        else:
            return None
        results.append(
            result if _spells_every_code(unpackings[0].form) else _with_nan(builder, unpackings[0].form, result)
        )
    return builder.build(results)


def _can_scale(target: Float, constants: Iterable[float]) -> bool:
    return f"fma_{target}x2" in OPS and all(_holds(target, x) for x in constants)


def _holds(target: Float, value: float) -> bool:
    return bool(abs(value) <= float(target.max_value) and float(target.decode(target.encode(value))) == value)


def _spells_every_code(form: Form) -> bool:
    """Whether codes for NaN and infinity, if there are any, come out as such."""
    source = form.source
    if not isinstance(source, Float) or not (source.has_nan or source.has_inf):
        return True
    same_exponent = isinstance(form.target, Float) and source.exponent_bits == form.target.exponent_bits
    return source.has_inf and same_exponent


def _lacks_only_nan(source: DataType) -> bool:
    """Whether one magnitude, the greatest, is NaN and all others are finite."""
    return isinstance(source, Float) and source.has_nan and not source.has_inf


def _with_nan(builder: RecipeBuilder, form: Form, word: str) -> str:
    """Make NaN of what lies beyond the greatest value of the source: that overflows, and infinity times 0 is NaN.

    The product with 0 of all other values is a zero of their sign, which changes nothing.
    """
    target = form.target
    assert isinstance(target, Float)
    factor = int(target.encode(0.97 * float(target.max_value) / float(form.source.max_value))) * 0x10001
    beyond = builder.put(f"fma_{target}x2", word, factor, 0x80008000)
    return builder.put(f"fma_{target}x2", beyond, 0, word)


def _multiply_add(
    builder: RecipeBuilder, target: Float, scaled: Sequence[tuple[str, float]], biases: Sequence[float]
) -> str:
    # Adding -0 keeps the sign of a zero.
    total: str | int = sum(int(target.encode(bias or -0.0)) << lane * target.nbits for lane, bias in enumerate(biases))
    for word, scale in reversed(scaled):
        total = builder.put(f"fma_{target}x2", word, int(target.encode(scale)) * 0x10001, total)
    return str(total)
