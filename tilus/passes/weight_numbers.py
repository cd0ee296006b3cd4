"""Weights as sums of numbers that a unit's words hold almost ready, and whether a product should be given those.

A weight is `sum over parts of (number * scale) + constant`. Scale and constant depend on where in their lanes the codes
lie, which is the same for whole ranges of K. Most types have one part; codes too wide for bf16 have two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tilus.casts import Form, Unpacking, best_form, fits, parts, unpack
from tilus.ir.instructions import Dot
from tilus.layouts import index_table
from tilus.passes.tensors import register_type
from tilus.passes.weights import Weights

FRAGMENT_ROWS = 16  # of a tensor core's left operand
_MULTIPLY_ADD = 0.5  # instructions per weight that make values of numbers: one for each pair

Range = tuple[int, int]  # [start, stop) of the weights' k


@dataclass(frozen=True, slots=True)
class Term:
    """The numbers of one part at one position of their lanes.

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
        What is added to weights, and where along k. With columns, which take the same sums, zero is there too.
    """

    terms: list[Term]
    constants: dict[float, list[Range]]


def find_numbers(weights: Weights) -> Numbers | None:
    """Return weights as numbers, None if there is no way, or if k's are cut in different places in different rows."""
    terms: list[Term] = []
    constant = np.full(weights.stop - weights.start, weights.offset)
    for unpacking in _unpackings(weights):
        at = _positions(weights, unpacking)
        if at is None:
            return None
        for position in np.unique(at).tolist():
            here, form = at == position, unpacking.form
            constant[here] += form.bias(position)
            terms.append(Term(form, unpacking.positions, form.scale(position), _runs(here)))
    found = (constant[start] for term in terms for start, _ in term.ranges)
    added = [c for c in dict.fromkeys(found) if c or weights.columns]
    return Numbers(terms, {c: _runs(constant == c) for c in added}) if terms else None


def _unpackings(weights: Weights) -> list[Unpacking]:
    """Return how the numbers of each part are had; none if they cannot be."""
    bits, source, target = weights.bits.repeated(1), weights.view.dtype, weights.dtype
    form = best_form(bits, source, target)
    wanted = (form,) if form is not None else parts(source, target) or ()
    return [unpack(bits, form) for form in wanted if fits(bits, form)]


def _positions(weights: Weights, unpacking: Unpacking) -> npt.NDArray[np.int64] | None:
    """Return at which position the codes of every k lie; None if that differs between rows."""
    layout, bits = weights.view.layout, weights.bits
    k = index_table(layout)[..., -1]
    here = np.array(unpacking.positions)[np.arange(layout.local_size) // (bits.units * bits.lanes)]
    at = np.zeros(layout.shape[-1], np.int64)
    at[k] = here
    return at[weights.start : weights.stop] if (at[k] == here).all() else None


def _runs(mask: npt.NDArray[np.bool_]) -> list[Range]:
    """Return the ranges in which a mask is set."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def pays(dot: Dot, numbers: Numbers, weights: Weights, warps: int) -> bool:
    """Whether instructions on accumulators are fewer than those that would make values of all numbers.

    Counted for a thread's share of a fragment's rows: 4 accumulators for 8 columns, and 8 weights for 16 of k.
    """
    k, n = register_type(dot.b).shape[-2:]
    terms, sums = numbers.terms, len(numbers.constants)
    if not sums and all(term.scale == 1.0 for term in terms):
        return True  # numbers are values
    count = len({term.form.name for term in terms})
    scalings = sum(term.scale != terms[0].scale for term in terms) + sums * bool(weights.columns)
    blocks = register_type(dot.c).numel / n / (FRAGMENT_ROWS * warps)  # of rows in a warp: they share sums
    products = count - 1 + bool(sums) / max(blocks, 1)
    extra = (n / 8) * (4 * scalings + products * k / 16)
    return extra < _MULTIPLY_ADD * k / 2 * (count + bool(weights.columns))
