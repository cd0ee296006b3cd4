"""Casts of narrow types: forms in which a wider type spells their values, and the instructions that make them."""

from tilus.casts.forms import Form, Linear, forms, linear
from tilus.casts.recipe import OPS, Recipe, RecipeBuilder, Step
from tilus.casts.stream import to_stream
from tilus.casts.table import best_unpacking
from tilus.casts.unpack import Unpacking, best_form, unpack
from tilus.casts.values import unpack_values

__all__ = [
    "OPS",
    "Form",
    "Linear",
    "Recipe",
    "RecipeBuilder",
    "Step",
    "Unpacking",
    "best_form",
    "best_unpacking",
    "forms",
    "linear",
    "to_stream",
    "unpack",
    "unpack_values",
]
