"""A bit-exact model of single instructions: those that read and write registers only.

    >>> import numpy as np
    >>> hex(evaluate("lop3.b32", np.uint32(0xF0F0), 0xFF, 0x6400, 0xEA)[()])
    '0x64f0'

`evaluate` takes any of them by its PTX opcode: `lop3.b32`, `prmt.b32`, `shf.l.wrap.b32`, `fma.rn.f16x2`,
`cvt.rn.satfinite.e4m3x2.f32`, ... Operands are words: unsigned integers of the register's width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilus.simt import convert, floats, integers
from tilus.simt.formats import Array
from tilus.simt.opcode import FAMILIES, Operation, as_word, operation, view_type, word_type

__all__ = ["FAMILIES", "Operation", "evaluate", "operation"]

_MODULES = (integers, floats, convert)  # importing them fills the table


def evaluate(opcode: str, *operands: Any) -> Any:
    """Compute one instruction for arrays of operands.

    Parameters
    ----------
    opcode : str
        With all its modifiers.
    *operands : array_like
        Registers as unsigned words (bool for predicates); an integer is converted, signed ones wrap. They broadcast.

    Returns
    -------
    array or tuple of array
        Words of the results' types.

    Raises
    ------
    VMError
        If the opcode is not known, or takes another number of operands.
    """
    op = operation(opcode)
    words = [_word(x, kind) for x, kind in zip(operands, op.kinds(len(operands)), strict=True)]
    with np.errstate(all="ignore"):
        found = op.function(*words)
    shape = np.broadcast_shapes(*(np.shape(x) for x in operands))
    results = found if isinstance(found, tuple) else (found,)
    out = tuple(
        np.broadcast_to(as_word(np.atleast_1d(r), k), shape or (1,)).reshape(shape)
        for r, k in zip(results, op.results, strict=True)
    )
    return out if isinstance(found, tuple) else out[0]


def _word(x: Any, kind: str) -> Array:
    """Return an operand as an array of at least one dimension, of the type that the instruction reads."""
    dtype = word_type(kind)
    array = np.asarray(x)
    if array.dtype != dtype:
        wrapped = array if kind == "pred" else array.astype(object) % (1 << 8 * dtype.itemsize)
        array = np.asarray(wrapped).astype(dtype)
    return np.atleast_1d(array) if kind == "pred" else np.atleast_1d(array).view(view_type(kind))
