"""What is known while one function's text is evaluated: its names, where they were bound, the loops that are open."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from tilus.errors import InternalError, LangError, Loc, TilusError
from tilus.lang.builder import Builder
from tilus.lang.liveness import Live, Names, analyse, assigned
from tilus.lang.source import Source
from tilus.lang.values import Value, plain


class Flow(Enum):
    """How a statement ends: `STOP` when the IR written last leaves the body, so that nothing after it is reached."""

    NEXT = auto()
    BREAK = auto()
    CONTINUE = auto()
    RETURN = auto()
    STOP = auto()


class Scope(Enum):
    """An open construct around the statement being evaluated."""

    LOOP = auto()
    UNROLLED = auto()
    BRANCH = auto()


@dataclass(frozen=True, slots=True)
class Binding:
    """What a name is bound to, and where.

    `carried` says that the value is made of variables of an open loop or branch: assigning the name redefines them.
    """

    value: Value
    loc: Loc
    carried: bool = False


@dataclass(frozen=True, slots=True)
class Unbound:
    """A name that has no value here although it was assigned somewhere before; `why` completes "'x' ..."."""

    why: str
    hint: str


@dataclass(slots=True)
class Frame:
    """One function being evaluated.

    Attributes
    ----------
    build : Builder
    source : Source
    execute : callable
        Evaluates a list of statements in a frame.
    parent : Frame or None
        The caller, for an inlined function.
    names : dict
        Local names.
    scopes : list of Scope
        Outermost first.
    result : value
        What `return` gave.
    """

    build: Builder
    source: Source
    execute: Callable[[Frame, list[ast.stmt]], Flow]
    parent: Frame | None = None
    names: dict[str, Binding | Unbound] = field(default_factory=dict)
    scopes: list[Scope] = field(default_factory=list)
    result: Value = None
    outer: Mapping[str, Any] = field(init=False)
    locals: Names = field(init=False)
    live: dict[ast.stmt, Live] = field(init=False)

    def __post_init__(self) -> None:
        body = self.source.tree.body
        self.outer, self.locals, self.live = self.source.names(), assigned(body), analyse(body)

    def error(self, node: ast.AST, message: str, hint: str | None = None) -> LangError:
        """Return an error at a node."""
        return LangError(message, loc=self.source.loc(node), hint=hint)

    @contextmanager
    def at(self, node: ast.AST) -> Iterator[None]:
        """Write IR for a node, and give its place to errors that have none."""
        before, self.build.loc = self.build.loc, self.source.loc(node)
        try:
            yield
        except (LangError, InternalError):
            raise
        except TilusError as error:
            raise self.error(node, error.message, error.hint) from None
        except Exception as error:
            text = f"the compiler failed here: {type(error).__name__}: {error}"
            raise InternalError(
                text, loc=self.source.loc(node), hint="this is a bug of tilus: please report it"
            ) from error
        finally:
            self.build.loc = before

    def python(self, node: ast.AST, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Let Python compute something at compile time; what it raises becomes an error at the node."""
        try:
            return plain(function(*args, **kwargs))
        except TilusError as error:
            raise self.error(node, error.message, error.hint) from None
        except Exception as error:  # whatever the user's own code raises is shown at the user's line
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise self.error(node, text, "this is computed while the kernel is compiled") from None

    def lookup(self, node: ast.Name) -> Value:
        """Return the value of a name."""
        name = node.id
        match self.names.get(name):
            case Binding(value=value):
                return value
            case Unbound(why=why, hint=hint):
                raise self.error(node, f"{name!r} {why}", hint)
        if name in self.locals:
            raise self.error(node, f"{name!r} is used before it is assigned")
        if name not in self.outer:
            close = difflib.get_close_matches(name, [*self.names, *self.outer], n=1)
            raise self.error(node, f"name {name!r} is not defined", f"did you mean {close[0]}?" if close else None)
        return plain(self.outer[name])

    def frames(self) -> Iterator[Frame]:
        """Yield this frame and its callers."""
        frame: Frame | None = self
        while frame is not None:
            yield frame
            frame = frame.parent
