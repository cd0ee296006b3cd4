"""What kind of value each field of a node holds: read once from the annotations, for printer, parser and comparison."""

from __future__ import annotations

from typing import Any, get_type_hints

from tilus.ir.node import Node, field_names

_KINDS: dict[type[Node], dict[str, Any]] = {}


def field_kinds(cls: type[Node]) -> dict[str, Any]:
    """Return the annotation of every field of a node class, `loc` left out."""
    if cls not in _KINDS:
        hints = get_type_hints(cls)
        _KINDS[cls] = {name: hints[name] for name in field_names(cls)}
    return _KINDS[cls]
