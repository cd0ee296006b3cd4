"""From a Python function to a kernel: its signature, and a `Program` for each choice of compile-time constants."""

from __future__ import annotations

import ast
import functools
import inspect
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeVar

from tilus.dtypes import DataType, boolean, f32, i32
from tilus.errors import DTypeError, LangError, Loc, TilusError
from tilus.ir.expr import Tensor, Var
from tilus.ir.instructions import result_type
from tilus.ir.node import substitute, walk
from tilus.ir.program import Param, Program
from tilus.ir.stmt import InstStmt
from tilus.ir.types import PointerType, RegisterType, ScalarType
from tilus.lang.arithmetic import number_as, with_type
from tilus.lang.builder import Builder
from tilus.lang.frame import Binding, Frame
from tilus.lang.source import Source, read_source
from tilus.lang.statements import execute
from tilus.lang.values import Pointer, Scalar, plain

P = ParamSpec("P")
R = TypeVar("R")


def _short_traceback(method: Callable[P, R]) -> Callable[P, R]:
    """Raise errors of the user's text from here: how it was evaluated is no help."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except LangError as error:
            raise error.with_traceback(None) from None

    return call


class _Required:
    """The default of a constant that has none."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()


class ptr:
    """`ptr[f16]` annotates a parameter that points to elements in global memory."""

    def __class_getitem__(cls, dtype: Any) -> PointerType:
        if not isinstance(dtype, DataType):
            raise DTypeError(f"ptr[...] takes a data type, got {dtype!r}", hint="for instance ptr[f16]")
        return PointerType(dtype)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A run-time parameter of a kernel: its annotation is an object, or text that constants give a meaning."""

    name: str
    annotation: Any
    loc: Loc


@dataclass(frozen=True, slots=True)
class Constant:
    """A compile-time parameter of a kernel."""

    name: str
    annotation: Any
    default: Any
    loc: Loc

    @property
    def required(self) -> bool:
        """Whether every caller must give a value."""
        return self.default is REQUIRED


@dataclass(frozen=True)
class KernelDef:
    """A kernel's signature and text.

    Attributes
    ----------
    name : str
    params : tuple of Parameter
        Run-time parameters, in call order.
    constants : tuple of Constant
        Keyword-only parameters.
    """

    name: str
    params: tuple[Parameter, ...]
    constants: tuple[Constant, ...]
    source: Source = field(repr=False)

    @_short_traceback
    def param_types(self, constants: Mapping[str, Any]) -> tuple[ScalarType | PointerType, ...]:
        """Return the types of the run-time parameters for some constants.

        Raises
        ------
        LangError : if a constant is missing or unknown, or an annotation is no type.
        """
        return self._types(self._complete(constants))

    @_short_traceback
    def specialize(self, constants: Mapping[str, Any], multiples: Mapping[str, int] | None = None) -> Program:
        """Return the program for some constants.

        Parameters
        ----------
        constants : mapping
            Values of the compile-time parameters; the others take their defaults.
        multiples : mapping, optional
            Promises by parameter name: alignment of a pointer in bytes, a divisor of an integer.

        Raises
        ------
        LangError : for every mistake in the kernel's text, with its place.
        """
        return self._program(self._complete(constants), dict(multiples or {}))

    # --- signature ---

    @property
    def _loc(self) -> Loc:
        return self.source.loc(self.source.tree)

    def _complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all constants, or raise for one that is missing, unknown or of the wrong Python type."""
        names = [c.name for c in self.constants]
        for name in given:
            if name not in names:
                known = f"its constants are {', '.join(names)}" if names else "it has no compile-time constants"
                raise LangError(f"kernel {self.name!r} has no constant {name!r}", loc=self._loc, hint=known)
        values = {c.name: given.get(c.name, c.default) for c in self.constants}
        for constant in self.constants:
            value = values[constant.name]
            if value is REQUIRED:
                message = f"kernel {self.name!r} needs a value for the constant {constant.name!r}"
                raise LangError(message, loc=constant.loc, hint=f"pass {constant.name}=...")
            values[constant.name] = self._constant(constant, value, values)
        return values

    def _constant(self, constant: Constant, value: Any, values: Mapping[str, Any]) -> Any:
        """Return the value of a constant as its annotation says, or raise."""
        kind = constant.annotation
        if isinstance(kind, str):
            try:
                kind = self._evaluate(kind, values)
            except Exception:  # an annotation of a constant is for people: what cannot be read is not checked
                return value
        if isinstance(kind, DataType) or kind in (int, float, bool):
            try:
                return number_as(kind, value)
            except TilusError as error:
                raise LangError(
                    f"constant {constant.name!r} {error.message}", loc=constant.loc, hint=error.hint
                ) from None
        if not isinstance(kind, type) or isinstance(value, kind):
            return value
        came = with_type(value)
        raise LangError(f"constant {constant.name!r} must be {kind.__name__}, got {came}", loc=constant.loc)

    def _evaluate(self, text: str, constants: Mapping[str, Any]) -> Any:
        return eval(text, {}, ChainMap(dict(constants), dict(self.source.names())))

    def _types(self, constants: Mapping[str, Any]) -> tuple[ScalarType | PointerType, ...]:
        return tuple(self._type(param, constants) for param in self.params)

    def _type(self, param: Parameter, constants: Mapping[str, Any]) -> ScalarType | PointerType:
        hint = f"annotate {param.name} with ptr[f16] or a scalar type such as i32"
        annotation = param.annotation
        if isinstance(annotation, str):
            try:
                while isinstance(annotation, str):  # twice where quotes and the future import meet
                    annotation = self._evaluate(annotation, constants)
            except TilusError as error:
                raise LangError(error.message, loc=param.loc, hint=error.hint) from None
            except Exception as error:
                message = f"the annotation of {param.name!r} cannot be evaluated: {error}"
                raise LangError(
                    message, loc=param.loc, hint="it may name globals and keyword-only parameters"
                ) from None
        annotation = _PYTHON_TYPES.get(annotation, annotation) if isinstance(annotation, type) else annotation
        if isinstance(annotation, PointerType):
            return annotation
        if isinstance(annotation, DataType):
            return ScalarType(annotation)
        if isinstance(annotation, ScalarType):
            return annotation
        raise LangError(
            f"the annotation of {param.name!r} is no type of a parameter: {annotation!r}", loc=param.loc, hint=hint
        )

    # --- body ---

    def _program(self, constants: Mapping[str, Any], multiples: dict[str, int]) -> Program:
        names = [p.name for p in self.params]
        for name, multiple in multiples.items():
            if name not in names:
                hint = f"its parameters are {', '.join(names)}"
                raise LangError(f"kernel {self.name!r} has no parameter {name!r}", loc=self._loc, hint=hint)
            if not isinstance(multiple, int) or multiple < 1:
                message = f"{name!r} cannot be a multiple of {multiple!r}: expected an integer from 1 on"
                raise LangError(message, loc=self._loc, hint="1 promises nothing, 16 that 16 divides it")
        build = Builder(self._loc)
        frame = Frame(build, self.source, execute)
        for name, value in constants.items():
            frame.names[name] = Binding(plain(value), self._loc)
        params = []
        for param, kind in zip(self.params, self._types(constants), strict=True):
            var = Var(param.name, kind, loc=param.loc)
            frame.names[param.name] = Binding(Pointer(var) if isinstance(kind, PointerType) else Scalar(var), param.loc)
            params.append(Param(var, multiples.get(param.name, 1), loc=param.loc))
        execute(frame, self.source.tree.body)
        if build.launch is None:
            raise LangError(
                f"kernel {self.name!r} never calls launch",
                loc=self._loc,
                hint="begin it with launch(blocks=..., warps=4)",
            )
        body = tuple(build.root)
        said = build.launch
        program = Program(
            self.name, tuple(params), said.grid, said.warps, body, said.producer, said.cluster, loc=self._loc
        )
        return _with_layouts(program, build) if build.layouts else program


_PYTHON_TYPES: dict[type, DataType] = {int: i32, float: f32, bool: boolean}


def _with_layouts(program: Program, build: Builder) -> Program:
    """Give tensors the layouts that `annotate` fixed after their definition, and check what depends on them."""
    table = {}
    for tensor, layout in build.layouts.items():
        assert isinstance(tensor.type, RegisterType)
        table[tensor] = Tensor(tensor.name, replace(tensor.type, layout=layout), loc=tensor.loc)
    program = substitute(program, table)
    for node in walk(program):
        if isinstance(node, InstStmt) and node.loc is not None:
            try:
                result_type(node.inst)
            except TilusError as error:
                raise LangError(error.message, loc=node.loc, hint=error.hint) from None
    return program


def define(function: Callable[..., Any]) -> KernelDef:
    """Read a kernel's signature and text.

    Raises
    ------
    LangError : if the text is not to be had, or a parameter is not one of a kernel.
    """
    source = read_source(function, "kernel")
    plain = inspect.unwrap(function)
    annotations = _annotations(plain, source.tree)
    arguments = source.tree.args
    for star in (arguments.vararg, arguments.kwarg):
        if star is not None:
            raise LangError(
                f"a kernel has no * parameters, got {star.arg!r}", loc=source.loc(star), hint="name every parameter"
            )
    params = []
    for arg in (*arguments.posonlyargs, *arguments.args):
        if arg.arg not in annotations:
            raise LangError(
                f"parameter {arg.arg!r} has no annotation",
                loc=source.loc(arg),
                hint="annotate it with ptr[f16] or a scalar type such as i32; compile-time constants stand after *",
            )
        params.append(Parameter(arg.arg, annotations[arg.arg], source.loc(arg)))
    if arguments.defaults:
        raise LangError(
            "a run-time parameter has no default", loc=source.loc(arguments.defaults[0]), hint="put constants after *"
        )
    defaults = plain.__kwdefaults__ or {}
    constants = tuple(
        Constant(arg.arg, annotations.get(arg.arg), defaults.get(arg.arg, REQUIRED), source.loc(arg))
        for arg in arguments.kwonlyargs
    )
    return KernelDef(source.tree.name, tuple(params), constants, source)


def _annotations(function: Callable[..., Any], tree: ast.FunctionDef) -> dict[str, Any]:
    """Return the annotations as objects, or as text where Python cannot evaluate them without the constants."""
    try:
        return dict(function.__annotations__)
    except NameError:  # Python 3.14 evaluates annotations when they are asked for
        args = (*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs)
        return {arg.arg: ast.unparse(arg.annotation) for arg in args if arg.annotation is not None}
