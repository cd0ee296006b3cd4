"""When two programs are the same: equal but for the names of their variables and for locations."""

from __future__ import annotations

from typing import Any

from tilus.ir.node import Node, is_identity
from tilus.ir.schema import field_kinds


def alpha_equal(p: Node, q: Node) -> bool:
    """Whether two programs, or statements, are equal up to the names of variables.

    Variables are matched in the order in which they first stand: one of `p` with one of `q`, and of the same type.
    Floating-point numbers are equal if they are the same number: NaN equals NaN, and 0.0 is not -0.0.
    """
    return _equal(p, q, {}, {})


def _equal(a: Any, b: Any, there: dict[Any, Any], back: dict[Any, Any]) -> bool:
    if isinstance(a, Node):
        if type(a) is not type(b):
            return False
        if is_identity(a):
            return there.setdefault(a, b) is b and back.setdefault(b, a) is a and _typed(a) == _typed(b)
        return all(_equal(getattr(a, name), getattr(b, name), there, back) for name in field_kinds(type(a)))
    if isinstance(a, tuple):
        same = isinstance(b, tuple) and len(a) == len(b)
        return same and all(_equal(x, y, there, back) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) or isinstance(b, float):
        return isinstance(a, float | int) and isinstance(b, float | int) and repr(float(a)) == repr(float(b))
    return bool(a == b)


def _typed(var: Any) -> Any:
    return var.type
