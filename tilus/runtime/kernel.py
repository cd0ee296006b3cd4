"""`@tilus.kernel`: a Python function that runs as a compiled kernel where its arguments live."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tilus.errors import LaunchError, TilusError
from tilus.ir.program import Program
from tilus.ir.target import Target
from tilus.ir.types import PointerType
from tilus.lang import KernelDef, define
from tilus.runtime.arguments import Buffer, argument_checker, device_of, multiple_of
from tilus.runtime.compiled import CompiledKernel
from tilus.runtime.knobs import knobs
from tilus.runtime.launch_cuda import device_target
from tilus.runtime.targets import find_target, host_target


class BoundKernel:
    """A kernel with its compile-time constants: what a call costs is a check of the arguments and one look-up."""

    def __init__(self, definition: KernelDef, constants: Mapping[str, Any]) -> None:
        self.definition = definition
        self.constants = dict(constants)
        self._names = [p.name for p in definition.params]
        self._kinds = definition.param_types(constants)
        self._checkers = [argument_checker(n, k) for n, k in zip(self._names, self._kinds, strict=True)]
        self._variants: dict[tuple[Any, ...], CompiledKernel] = {}

    def __call__(self, *args: Any) -> None:
        """Run the kernel; results are written into the arrays passed."""
        values = self._check(args)
        self._variant(_target_of(values), tuple([multiple_of(v) for v in values])).launch_values(values, args)

    def written(self, args: Sequence[Any]) -> frozenset[int]:
        """Return the positions of the arguments that a call with them writes to."""
        values = self._check(args)
        return self._variant(_target_of(values), tuple([multiple_of(v) for v in values])).written

    def compile(self, args: Sequence[Any], target: str | Target | None, multiples: Mapping[str, int]) -> CompiledKernel:
        """Return the variant for a target, its stages made when they are first asked for; see `Kernel.compile`."""
        if args:
            values = self._check(args)
            promises = [multiple_of(v) for v in values]
            place = find_target(target) if target else _target_of(values)
        else:
            promises = [16 if isinstance(kind, PointerType) else 1 for kind in self._kinds]
            place = find_target(target or knobs.target or "cpu")
        unknown = sorted(set(multiples) - set(self._names))
        if unknown:
            raise LaunchError(
                f"kernel {self.definition.name!r} has no parameter {unknown[0]!r}",
                hint=f"its parameters are {', '.join(self._names)}",
            )
        return self._variant(
            place, tuple(multiples.get(n, given) for n, given in zip(self._names, promises, strict=True))
        )

    def _check(self, args: Sequence[Any]) -> list[Buffer | int | float]:
        if len(args) != len(self._names):
            raise LaunchError(
                f"kernel {self.definition.name!r} takes {len(self._names)} arguments ({', '.join(self._names)}), "
                f"got {len(args)}",
                hint="compile-time constants are passed by keyword",
            )
        return [check(a) for check, a in zip(self._checkers, args, strict=True)]

    def _variant(self, target: Target, promises: tuple[int, ...]) -> CompiledKernel:
        key = (target.name, promises)
        compiled = self._variants.get(key)
        if compiled is None:
            program = self.definition.specialize(self.constants, dict(zip(self._names, promises, strict=True)))
            compiled = self._variants[key] = CompiledKernel(program, target)
        return compiled


def _target_of(values: Sequence[Buffer | int | float]) -> Target:
    """Return the target of a call: the knob's, else where the arguments live."""
    device = device_of(values)
    name = knobs.target
    if not name:
        return host_target() if device == "cpu" else device_target(device)
    chosen = find_target(name)
    if (chosen.machine == "cuda") != (device != "cpu"):
        raise LaunchError(
            f"TILUS_TARGET={chosen.name}, but the arguments live on {'the CPU' if device == 'cpu' else device}",
            hint="move them, or use compile(target=...) to look at the code",
        )
    return chosen


class Kernel:
    """A kernel written in the language: call it, or compile it for a target.

    Positional parameters are run-time values, keyword-only parameters compile-time constants. A call compiles the
    program once for the constants, the target and what the arguments promise (addresses and integers that are
    multiples of 16), and launches it. Arrays need not be contiguous: such a one is copied, and copied back.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._bound: dict[tuple[tuple[str, type, Any], ...], BoundKernel] = {}

    def __repr__(self) -> str:
        return f"<kernel {self._function.__module__}.{self._function.__qualname__}>"

    @functools.cached_property
    def definition(self) -> KernelDef:
        """The parsed signature and body."""
        return define(self._function)

    def program(self, multiples: Mapping[str, int] | None = None, **constants: Any) -> Program:
        """Return the IR for some constants, as the author wrote it: no layouts but the given ones."""
        return self.definition.specialize(constants, multiples or {})

    def bind(self, **constants: Any) -> BoundKernel:
        """Return the kernel with its constants fixed; the same object for the same constants."""
        # With types, for 32, 32.0 and (where it is 1) True are equal, but not the same constant.
        key = tuple([(name, value.__class__, value) for name, value in sorted(constants.items())])
        try:
            bound = self._bound.get(key)
        except TypeError:
            name, value = next((n, v) for n, v in constants.items() if not _is_hashable(v))
            raise LaunchError(
                f"constant {name!r} of kernel {self.definition.name!r} must be a value that cannot change, "
                f"got {value!r}",
                hint="pass a tuple instead of a list, or a frozen dataclass",
            ) from None
        if bound is None:
            bound = self._bound[key] = BoundKernel(self.definition, constants)
        return bound

    def compile(
        self,
        *args: Any,
        target: str | Target | None = None,
        multiples: Mapping[str, int] | None = None,
        **constants: Any,
    ) -> CompiledKernel:
        """Compile without launching; works for any target on any machine.

        Parameters
        ----------
        *args : optional
            Example arguments, from which alignment and divisibility are read.
        target : str, optional
            `cpu`, `vm`, `sm_80`, `sm_86`, `sm_89` or `sm_90a`, or `simt:sm_90a` and so on, to run a GPU's code on the
            CPU, checked; by default where `args` live.
        multiples : mapping, optional
            What callers promise by parameter name: alignment of a pointer in bytes (16 unless said), a divisor of an
            integer (1 unless said).
        **constants
            Compile-time constants.

        Raises
        ------
        TilusError
            For every mistake in the kernel, and for what the target does not have.
        """
        compiled = self.bind(**constants).compile(args, target, multiples or {})
        compiled.build()
        return compiled

    def __call__(self, *args: Any, **constants: Any) -> None:
        """Run the kernel; results are written into the arrays passed."""
        self.bind(**constants)(*args)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def kernel(function: Callable[..., Any]) -> Kernel:
    """Make a kernel of a Python function in the language of `tilus.lang`."""
    if not callable(function) or not inspect.isfunction(inspect.unwrap(function)):
        raise TilusError(
            f"@tilus.kernel decorates a function, got {function!r}", hint="write it above a `def` at module level"
        )
    return Kernel(function)
