"""`@tilus.autotune`: choose compile-time constants by measuring."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tilus.errors import LaunchError, TilusError
from tilus.runtime.arguments import describe, is_torch
from tilus.runtime.kernel import Kernel
from tilus.runtime.knobs import knobs

ROUNDS = 5


class TunedKernel:
    """A kernel that measures its candidates on the first call for a kind of arguments, and keeps the fastest.

    A kind is: types and devices of arrays, integers rounded up to two significant bits, and the constants given.
    Measuring works on copies of the arrays that the kernel writes to, fresh ones for each candidate: the caller's own
    see the one call that was asked for, also where a kernel reads what it writes.
    """

    def __init__(self, kernel: Kernel, choices: Mapping[str, Sequence[Any]]) -> None:
        functools.update_wrapper(self, kernel)
        self.kernel = kernel
        names = list(choices)
        self.candidates = [dict(zip(names, values, strict=True)) for values in itertools.product(*choices.values())]
        self.best: dict[tuple[Any, ...], dict[str, Any]] = {}

    def __repr__(self) -> str:
        return f"<tuned {self.kernel!r}: {len(self.candidates)} candidates>"

    def __call__(self, *args: Any, **constants: Any) -> None:
        """Run with the fastest candidate; constants given by the caller are not tuned."""
        self.kernel.bind(**{**self.candidates[0], **constants})  # refuses constants that are no keys
        key = (*(_kind(a) for a in args), *((n, c.__class__, c) for n, c in sorted(constants.items())))
        if key not in self.best:
            self.best[key] = self._measure(args, constants)
        self.kernel(*args, **{**self.best[key], **constants})

    def _measure(self, args: Sequence[Any], constants: Mapping[str, Any]) -> dict[str, Any]:
        times: list[tuple[float, dict[str, Any]]] = []
        failures: list[TilusError] = []
        for candidate in self.candidates:
            try:
                seconds = self._seconds({**candidate, **constants}, args)
            except TilusError as error:  # a candidate may ask for more than the device has
                failures.append(error)
                continue
            times.append((seconds, candidate))
            if knobs.print_autotuning:
                print(f"{self.kernel.definition.name} {candidate}: {seconds * 1e6:.1f} us")
        if not times:
            raise failures[0] if failures else LaunchError(f"kernel {self.kernel.definition.name!r} has no candidates")
        return min(times, key=lambda pair: pair[0])[1]

    def _seconds(self, constants: Mapping[str, Any], args: Sequence[Any]) -> float:
        bound = self.kernel.bind(**constants)
        written = bound.written(args)
        trial = [_copy(x) if i in written else x for i, x in enumerate(args)]
        return _seconds(lambda: bound(*trial), trial)

    def compile(self, *args: Any, **options: Any) -> Any:
        """Compile as `Kernel.compile` does, with the first candidate's constants where none are given."""
        return self.kernel.compile(*args, **{**self.candidates[0], **options})


def _seconds(call: Callable[[], None], args: Sequence[Any]) -> float:
    """Return the least time of some calls, after one that compiles."""
    call()
    times = []
    for _ in range(ROUNDS):
        _wait(args)
        start = time.perf_counter()
        call()
        _wait(args)
        times.append(time.perf_counter() - start)
    return min(times)


def _copy(x: Any) -> Any:
    """Return a copy of an array, its elements in the same order in memory."""
    return x.detach().clone() if is_torch(x) else x.copy(order="K")


def _wait(args: Sequence[Any]) -> None:
    """Wait for the device the arguments live on."""
    for x in args:
        if is_torch(x) and x.device.type == "cuda":
            import torch  # x is a tensor: torch is loaded already

            torch.cuda.synchronize(x.device)
            return


def _kind(x: Any) -> Any:
    buffer = describe(x)
    if buffer is not None:
        return buffer.dtype, buffer.device
    if isinstance(x, int) and x > 4:
        unit = 1 << (x.bit_length() - 2)
        return -(-x // unit) * unit
    return x


def autotune(**choices: Sequence[Any]) -> Callable[[Kernel], TunedKernel]:
    """Try every combination of compile-time constants on the first call: `@tilus.autotune(BN=[256, 512])`."""

    def wrap(kernel: Kernel) -> TunedKernel:
        if not isinstance(kernel, Kernel):
            raise TilusError("autotune takes a kernel", hint="write @tilus.autotune(...) above @tilus.kernel")
        unknown = set(choices) - {c.name for c in kernel.definition.constants}
        if unknown or not all(choices.values()):
            raise TilusError(
                f"autotune of {kernel.definition.name!r}: {', '.join(sorted(unknown)) or 'a choice'} "
                f"{'is no keyword-only parameter' if unknown else 'is empty'}",
                hint="tune the kernel's compile-time constants, each with a list of values",
            )
        return TunedKernel(kernel, choices)

    return wrap
