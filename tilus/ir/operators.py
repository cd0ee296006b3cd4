"""The scalar operators, shared by expressions and by elementwise instructions: one row each.

`apply` is the meaning, over NumPy values of one type. Integer `floordiv` and `mod` round towards minus infinity, as in
Python; shifts of negative numbers are arithmetic. Integers wrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator.

    Attributes
    ----------
    name, symbol : str
        Name in the IR; infix symbol in the text form, or None for call syntax.
    arity, precedence : int
        Number of operands; binding strength of the symbol (larger binds tighter).
    domain : "any", "number", "integer", "float", "bits"
        Types the operands may have; "bits" is integer or boolean.
    result : "same" or "bool"
        Result type: that of the last operand, or boolean.
    """

    name: str
    arity: int
    apply: Callable[..., Any]
    domain: Literal["any", "number", "integer", "float", "bits"] = "number"
    result: Literal["same", "bool"] = "same"
    symbol: str | None = None
    precedence: int = 0


def _erf(x: Any) -> Any:
    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(np.asarray(x).dtype)


def _rsqrt(x: Any) -> Any:
    return (1 / np.sqrt(x)).astype(np.asarray(x).dtype)


_ROWS = (
    Operator("add", 2, np.add, symbol="+", precedence=6),
    Operator("sub", 2, np.subtract, symbol="-", precedence=6),
    Operator("mul", 2, np.multiply, symbol="*", precedence=7),
    Operator("div", 2, np.divide, "float", symbol="/", precedence=7),
    Operator("floordiv", 2, np.floor_divide, "integer", symbol="//", precedence=7),
    Operator("mod", 2, np.mod, "integer", symbol="%", precedence=7),
    Operator("min", 2, np.minimum),
    Operator("max", 2, np.maximum),
    Operator("and", 2, np.bitwise_and, "bits", symbol="&", precedence=4),
    Operator("xor", 2, np.bitwise_xor, "bits", symbol="^", precedence=3),
    Operator("or", 2, np.bitwise_or, "bits", symbol="|", precedence=2),
    Operator("shl", 2, np.left_shift, "integer", symbol="<<", precedence=5),
    Operator("shr", 2, np.right_shift, "integer", symbol=">>", precedence=5),
    Operator("lt", 2, np.less, "number", "bool", "<", 1),
    Operator("le", 2, np.less_equal, "number", "bool", "<=", 1),
    Operator("eq", 2, np.equal, "any", "bool", "==", 1),
    Operator("ne", 2, np.not_equal, "any", "bool", "!=", 1),
    Operator("neg", 1, np.negative),
    Operator("not", 1, np.invert, "bits"),
    Operator("abs", 1, np.abs),
    Operator("exp", 1, np.exp, "float"),
    Operator("exp2", 1, np.exp2, "float"),
    Operator("log", 1, np.log, "float"),
    Operator("log2", 1, np.log2, "float"),
    Operator("sqrt", 1, np.sqrt, "float"),
    Operator("rsqrt", 1, _rsqrt, "float"),
    Operator("sin", 1, np.sin, "float"),
    Operator("cos", 1, np.cos, "float"),
    Operator("tanh", 1, np.tanh, "float"),
    Operator("erf", 1, _erf, "float"),
    Operator("floor", 1, np.floor, "float"),
    Operator("ceil", 1, np.ceil, "float"),
    Operator("round", 1, np.rint, "float"),
    Operator("where", 3, np.where, "any"),
)

OPERATORS: dict[str, Operator] = {row.name: row for row in _ROWS}
SYMBOLS: dict[str, Operator] = {row.symbol: row for row in _ROWS if row.symbol}
