"""Weights as sums of numbers that a unit's words hold almost ready, and whether a product should be given those.

A weight is `sum over parts of (number * scale) + constant`. Scale and constant depend on where in their lanes the codes
lie, which is the same for whole ranges of K. Most types have one part; codes too wide for bf16 have two.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log2

import numpy as np
import numpy.typing as npt

from tilus.casts import LOST, Form, Unpacking, best_form, fits, parts, small_form, unpack
from tilus.ir.instructions import Dot
from tilus.layouts import index_table
from tilus.passes.tensors import register_type
from tilus.passes.weights import Weights

FRAGMENT_ROWS = 16  # of a tensor core's left operand
_MULTIPLY_ADD = 0.5  # instructions per weight that make values of numbers: one for each pair

Range = tuple[int, int]  # [start, stop) of the weights' k
Pair = tuple[float, float]  # for even k, for odd k


@dataclass(frozen=True, slots=True)
class Term:
    """The numbers of one part that have one scale.

    Attributes
    ----------
    form : Form
    positions : tuple of int
        Of all slots.
    scale : float
    ranges : list of (int, int)
        Where along k they lie.
    """

    form: Form
    positions: tuple[int, ...]
    scale: float
    ranges: list[Range]


@dataclass(frozen=True, slots=True)
class Numbers:
    """What weights are, as products see them.

    Attributes
    ----------
    terms : list of Term
    constants : dict
        What is added to weights of even k and of odd k, and where along k; empty where nothing is.
    boost : float
        What activations are to be multiplied by, because numbers are small; scales are of such products.
    """

    terms: list[Term]
    constants: dict[Pair, list[Range]]
    boost: float = 1.0


def find_numbers(weights: Weights, greatest: float) -> Numbers | None:
    """Return weights as numbers, None if there is no way, or if k's are cut in different places in different rows.

    Parameters
    ----------
    weights : Weights
    greatest : float
        Bound of the activations.
    """
    boost, ways = _unpackings(weights, greatest)
    terms: list[Term] = []
    constant = np.full(weights.stop - weights.start, weights.offset)
    if constant.size % 2 or weights.start % 2:
        return None
    for unpacking in ways:
        places = _places(weights, unpacking)
        if places is None:
            return None
        form, (at, turned) = unpacking.form, places
        constant += np.array([form.bias(p, odd) for p, odd in zip(at.tolist(), turned.tolist(), strict=True)])
        scales = np.array([form.scale(position) for position in at.tolist()]) / boost
        for scale in dict.fromkeys(scales.tolist()):
            terms.append(Term(form, unpacking.positions, scale, _runs(scales == scale)))
    pairs = constant.reshape(-1, 2)
    added = {pair: _runs((pairs == pair).all(1).repeat(2)) for pair in dict.fromkeys(map(_pair, pairs))}
    return Numbers(terms, added if constant.any() else {}, boost) if terms else None


def _pair(values: npt.NDArray[np.float64]) -> Pair:
    even, odd = values.tolist()
    return even, odd


def _unpackings(weights: Weights, greatest: float) -> tuple[float, list[Unpacking]]:
    """Return what activations are multiplied by first, and how the numbers of each part are had; [] if they cannot be.

    A multiplication of activations, up to nearly the greatest number, is shared by all rows, that of weights by none.
    """
    bits, source, target = weights.bits.repeated(1), weights.view.dtype, weights.dtype
    form, small = best_form(bits, source, target), small_form(source, target)
    room = 2.0 ** floor(log2(float(target.max_value) / greatest))
    if form is not None and small is not None and small.unit / room < LOST:
        return min(room, small.unit), [unpack(bits, small)]
    wanted = (form,) if form is not None else parts(source, target) or ()
    return 1.0, [unpack(bits, form) for form in wanted if fits(bits, form)]


def _places(weights: Weights, unpacking: Unpacking) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]] | None:
    """Return at which position the codes of every k lie, and if in a turned lane; None if that differs between rows."""
    layout, bits = weights.view.layout, weights.bits
    k, number = index_table(layout)[..., -1], np.arange(layout.local_size)
    here = np.array(unpacking.positions)[number // (bits.units * bits.lanes)]
    turned = np.array([bits.turned(element) for element in number.tolist()], bool)
    at, odd = np.zeros(layout.shape[-1], np.int64), np.zeros(layout.shape[-1], bool)
    at[k], odd[k] = here, turned
    if (at[k] != here).any() or (odd[k] != turned).any():
        return None
    part = slice(weights.start, weights.stop)
    return at[part], odd[part]


def _runs(mask: npt.NDArray[np.bool_]) -> list[Range]:
    """Return the ranges in which a mask is set."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def pays(dot: Dot, numbers: Numbers, weights: Weights, warps: int) -> bool:
    """Whether instructions on accumulators are fewer than those that would make values of all numbers.

    Counted for a thread's share of a fragment's rows: 4 accumulators for 8 columns, and 8 weights for 16 of k.
    """
    k, n = register_type(dot.b).shape[-2:]
    terms, columns = numbers.terms, bool(weights.columns)
    sums = columns or bool(numbers.constants)
    if not sums and all(term.scale == 1.0 for term in terms):
        return True  # numbers are values
    count = len({term.form.name for term in terms})
    scalings = sum(term.scale != terms[0].scale for term in terms) + columns
    blocks = register_type(dot.c).numel / n / (FRAGMENT_ROWS * warps)  # of rows in a warp: they share sums
    products = count - 1 + sums / max(blocks, 1)
    extra = (n / 8) * (4 * scalings + products * k / 16)
    return extra < _MULTIPLY_ADD * k / 2 * (count + columns)
