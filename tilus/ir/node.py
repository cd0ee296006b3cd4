"""The one node base and the one traversal of the IR.

Every node is a frozen, slotted dataclass. Its children are whatever nodes stand in its fields, alone or in tuples; so
`map_children` below is the only code that walks the IR and a pass cannot skip half of it.

Types, layouts, attributes and expressions compare by value; `Var` and `Tensor` compare by identity. A node's `loc` is
where the user wrote it and takes no part in comparison.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

from tilus.errors import Loc


@dataclass(frozen=True, slots=True, eq=False)  # so that `Var` and `Tensor` inherit comparison by identity
class Node:
    """Base of expressions, variables, statements, instructions and programs."""

    loc: Loc | None = field(default=None, kw_only=True, compare=False, repr=False)


N = TypeVar("N", bound=Node)


_FIELD_NAMES: dict[type[Node], tuple[str, ...]] = {}


def field_names(cls: type[Node]) -> tuple[str, ...]:
    """Return the names of the fields of a node class, `loc` left out."""
    if cls not in _FIELD_NAMES:
        _FIELD_NAMES[cls] = tuple(f.name for f in fields(cls) if f.name != "loc")
    return _FIELD_NAMES[cls]


# What annotations of fields without nodes are made of.
_LEAVES = {"None", "bool", "float", "int", "str", "tuple", "DataType", "BitLayout", "RegisterLayout", "SharedLayout"}
_LEAVES |= {"PointerType", "ScalarType", "TensorType"}
_CHILD_NAMES: dict[type[Node], tuple[str, ...]] = {}


def child_names(cls: type[Node]) -> tuple[str, ...]:
    """Return the names of the fields of a node class that may hold nodes."""
    if cls not in _CHILD_NAMES:
        kinds = {f.name: set(re.findall(r"\w+", str(f.type))) for f in fields(cls)}
        _CHILD_NAMES[cls] = tuple(name for name in field_names(cls) if not kinds[name] <= _LEAVES)
    return _CHILD_NAMES[cls]


def map_children(node: N, f: Callable[[Node], Any]) -> N:
    """Apply `f` to every child node; the same object when nothing changed.

    Parameters
    ----------
    node : Node
        Any node; `Var` and `Tensor` have no children.
    f : callable
        Gets a child, returns its replacement. In a tuple of statements it may also return a tuple, which is
        spliced in (so a statement can become none or several).
    """
    changes: dict[str, Any] = {}
    for name in child_names(node.__class__):
        old = getattr(node, name)
        new = f(old) if isinstance(old, Node) else _map_tuple(old, f) if old.__class__ is tuple else old
        if new is not old:
            changes[name] = new
    return replace(node, **changes) if changes else node


def _map_tuple(items: tuple[Any, ...], f: Callable[[Node], Any]) -> tuple[Any, ...]:
    out: list[Any] = []
    same = True
    for item in items:
        if isinstance(item, Node):
            new = f(item)
            if new.__class__ is tuple:
                out += new
                same = same and len(new) == 1 and new[0] is item
                continue
        else:
            new = _map_tuple(item, f) if item.__class__ is tuple else item
        same = same and new is item
        out.append(new)
    return items if same else tuple(out)


def children(node: Node) -> Iterator[Node]:
    """Yield the direct children of a node in field order."""
    for name in child_names(node.__class__):
        yield from _nodes_in(getattr(node, name))


def _nodes_in(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _nodes_in(item)


def walk(node: Node) -> Iterator[Node]:
    """Yield the node and everything below it, in program order."""
    left: list[Any] = [node]
    while left:
        item = left.pop()
        cls = item.__class__
        if cls is tuple:
            left += item[::-1]
            continue
        if cls not in _READERS:
            _READERS[cls] = _fields_backwards(cls) if issubclass(cls, Node) else None
        read = _READERS[cls]
        if read is not None:
            yield item
            left += read(item)


_Reader: TypeAlias = Callable[[Node], tuple[Any, ...]]
_READERS: dict[type, _Reader | None] = {}  # None for what is no node


def _fields_backwards(cls: type[Node]) -> _Reader:
    """Return what reads the fields of a node class at once, the last one first: programs are walked many times."""
    names = child_names(cls)[::-1]
    if len(names) > 1:
        return attrgetter(*names)
    return (lambda node: (getattr(node, names[0]),)) if names else (lambda node: ())


def rewrite(node: Any, rule: Callable[[Node], Any]) -> Any:
    """Rewrite bottom-up: children first, then `rule(node)`, where None keeps the node."""

    def visit(node: Node) -> Any:
        node = map_children(node, visit)
        new = rule(node)
        return node if new is None else new

    return visit(node)


def substitute(node: N, table: Mapping[Any, Any]) -> N:
    """Replace variables and tensors (keys of `table`, by identity) wherever they stand, declarations included."""
    new: N = rewrite(node, lambda n: table.get(n) if n.__class__ in _IDENTITY else None)
    return new


_IDENTITY: set[type[Node]] = set()


def identity_node(cls: type[N]) -> type[N]:
    """Mark a node class as compared by identity (a class decorator for `Var` and `Tensor`)."""
    _IDENTITY.add(cls)
    return cls


def is_identity(node: Node) -> bool:
    """Whether the node is a variable or a tensor."""
    return node.__class__ in _IDENTITY
