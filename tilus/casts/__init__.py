"""Casts of narrow types: forms in which a wider type spells their values, and the instructions that make them."""

from tilus.casts.forms import LOST, Form, Linear, form_named, forms, linear, parts, small_form
from tilus.casts.recipe import OPS, Recipe, RecipeBuilder, Step
from tilus.casts.stream import to_stream
from tilus.casts.table import best_unpacking
from tilus.casts.unpack import Unpacking, best_form, fits, unpack
from tilus.casts.values import unpack_values

__all__ = [
    "LOST",
    "OPS",
    "Form",
    "Linear",
    "Recipe",
    "RecipeBuilder",
    "Step",
    "Unpacking",
    "best_form",
    "best_unpacking",
    "fits",
    "form_named",
    "forms",
    "linear",
    "parts",
    "small_form",
    "to_stream",
    "unpack",
    "unpack_values",
]
