"""Casts whose result is the value itself: a form, and the multiply-add that undoes its scale and bias."""

from __future__ import annotations

from functools import lru_cache

from tilus.casts.forms import Form, forms
from tilus.casts.recipe import Recipe, RecipeBuilder
from tilus.casts.unpack import Unpacking, unpack
from tilus.dtypes import DataType, Float
from tilus.errors import LayoutError
from tilus.layouts.bits import BitLayout


@lru_cache(maxsize=1024)
def unpack_values(bits: BitLayout, source: DataType, target: DataType) -> Recipe | None:
    """Return the cheapest recipe from the words of a unit to a word of values for every slot.

    None where a form cannot be had, or would make numbers of codes that stand for none.
    """
    found = []
    for form in forms(source, target):
        try:
            unpacking = unpack(bits, form)
        except LayoutError:
            continue
        recipe = _finished(unpacking)
        if recipe is not None:
            found.append(recipe)
    return min(found, key=lambda recipe: recipe.issue + recipe.alu, default=None)


def _finished(unpacking: Unpacking) -> Recipe | None:
    form, recipe = unpacking.form, unpacking.recipe
    if not isinstance(form.target, Float):
        return recipe if all(_is_value(form, p) for p in unpacking.positions) else None
    if not _spells_every_code(form):
        return None
    builder = RecipeBuilder(recipe.words, list(recipe.steps))
    results = []
    for word, position in zip(recipe.results, unpacking.positions, strict=True):
        scale, bias = form.scale(position), form.bias(position)
        if not (_holds(form.target, scale) and _holds(form.target, bias)):
            return None
        results.append(word if _is_value(form, position) else _multiply_add(builder, form, word, scale, bias))
    return builder.build(results)


def _is_value(form: Form, position: int) -> bool:
    return form.scale(position) == 1.0 and form.bias(position) == 0.0


def _holds(target: Float, value: float) -> bool:
    return bool(abs(value) <= float(target.max_value) and float(target.decode(target.encode(value))) == value)


def _spells_every_code(form: Form) -> bool:
    """Whether codes for NaN and infinity, if there are any, come out as such."""
    source = form.source
    if not isinstance(source, Float) or not (source.has_nan or source.has_inf):
        return True
    same_exponent = isinstance(form.target, Float) and source.exponent_bits == form.target.exponent_bits
    return source.has_inf and same_exponent


def _multiply_add(builder: RecipeBuilder, form: Form, word: str, scale: float, bias: float) -> str:
    # Adding -0 keeps the sign of a zero.
    codes = [int(form.target.encode(x)) * 0x10001 for x in (scale, bias if bias else -0.0)]
    return builder.put(f"fma_{form.target}x2", word, *codes)
