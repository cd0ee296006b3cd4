"""`@tilus.kernel`: a Python function that runs as a compiled kernel where its arguments live."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from tilus.errors import LaunchError
from tilus.ir.program import Program
from tilus.ir.target import Target
from tilus.ir.target import target as find_target
from tilus.ir.types import PointerType
from tilus.lang import KernelDef, define
from tilus.runtime.arguments import Buffer, check_argument, device_of, multiple_of
from tilus.runtime.compiled import CompiledKernel
from tilus.runtime.knobs import knobs
from tilus.runtime.launch_cuda import device_target


class Kernel:
    """A kernel written in the language: call it, or compile it for a target.

    Positional parameters are run-time values, keyword-only parameters compile-time constants. A call compiles the
    program once for the constants, the target and what the arguments promise (addresses and integers that are
    multiples of 16), and launches it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._variants: dict[tuple[Any, ...], CompiledKernel] = {}

    @functools.cached_property
    def definition(self) -> KernelDef:
        """The parsed signature and body."""
        return define(self._function)

    def program(self, multiples: Mapping[str, int] | None = None, **constants: Any) -> Program:
        """Return the IR for some constants, as the author wrote it: no layouts but the given ones."""
        return self.definition.specialize(constants, multiples or {})

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
            `cpu`, `vm`, `sm_80`, `sm_86`, `sm_89` or `sm_90a`; by default where `args` live.
        multiples : mapping, optional
            What callers promise by parameter name: alignment of a pointer in bytes (16 unless said), a divisor of an
            integer (1 unless said).
        **constants
            Compile-time constants.
        """
        if args:
            values = self._check(args, constants)
            promises = {p.name: multiple_of(v) for p, v in zip(self.definition.params, values, strict=True)}
            place = find_target(target) if target else self._target(values)
        else:
            kinds = self.definition.param_types(constants)
            promises = {
                p.name: 16 for p, k in zip(self.definition.params, kinds, strict=True) if isinstance(k, PointerType)
            }
            place = find_target(target or knobs.target or "cpu")
        return self._variant(place, {**promises, **(multiples or {})}, constants)

    def __call__(self, *args: Any, **constants: Any) -> None:
        """Run the kernel; results are written into the arrays passed."""
        values = self._check(args, constants)
        promises = {p.name: multiple_of(v) for p, v in zip(self.definition.params, values, strict=True)}
        self._variant(self._target(values), promises, constants).launch(*args)

    def _check(self, args: tuple[Any, ...], constants: Mapping[str, Any]) -> list[Buffer | int | float]:
        params = self.definition.params
        if len(args) != len(params):
            names = ", ".join(p.name for p in params)
            raise LaunchError(
                f"kernel {self.definition.name!r} takes {len(params)} arguments ({names}), got {len(args)}",
                hint="compile-time constants are passed by keyword",
            )
        kinds = self.definition.param_types(constants)
        return [check_argument(p.name, k, a) for p, k, a in zip(params, kinds, args, strict=True)]

    def _target(self, values: list[Buffer | int | float]) -> Target:
        device = device_of(values)
        if knobs.target:
            chosen = find_target(knobs.target)
            if chosen.kind == "cuda" and device == "cpu":
                raise LaunchError(
                    f"TILUS_TARGET={chosen.name}, but the arguments live on the CPU",
                    hint="move them to the GPU, or use compile(target=...) to look at the code",
                )
            return chosen
        return find_target("cpu") if device == "cpu" else device_target(device)

    def _variant(self, target: Target, multiples: Mapping[str, int], constants: Mapping[str, Any]) -> CompiledKernel:
        key = (target, tuple(sorted(multiples.items())), tuple(sorted(constants.items())))
        compiled = self._variants.get(key)
        if compiled is None:
            program = self.definition.specialize(constants, multiples)
            compiled = self._variants[key] = CompiledKernel(program, target)
        return compiled


def kernel(function: Callable[..., Any]) -> Kernel:
    """Make a kernel of a Python function in the language of `tilus.lang`."""
    return Kernel(function)
