"""Claim: on a CPU, bit layouts, tables in registers and pairs of products pay, each measured against the plain way.

The same programs of the quantized matmul, compiled four ways for one weight, take turns in one process:

* `plain`: codes lie one after the other in a lane, each is taken out by a shift and a mask and made an f32 by
  arithmetic on its fields, or, of a codebook, by choosing among the values; f32 products.
* `tables`: the same order; an f32 is looked up by a permutation of registers where the compiler finds that cheaper.
* `layout`: what `tilus.matmul` runs with f32 activations: as `tables`, in the order it packs weights in.
* `fixed`: what it runs with f16 activations and weights of integers: two products of 16-bit integers by one
  instruction, on codes that a shift and a mask bring to their halves two at a time.
* `fixed, plain order`: that without the order: codes are brought together one by one.

One copy of the weight, one thread, seconds of this process's CPU time: others that use the machine count less. Results
are compared with the float64 product before they are timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from record import Stopwatch, take_turns, write
from rich.console import Console
from rich.table import Table

import tilus
from tilus.codegen.llvm import tables
from tilus.kernels.calls import Kernels, Operands
from tilus.kernels.configure import matmul_program, rows_per_block
from tilus.kernels.configure_cpu import takes_fixed
from tilus.kernels.fixed import fixed_calls
from tilus.runtime.arguments import element_type
from tilus.runtime.cpu_pool import set_num_threads
from tilus.runtime.kernel import BoundKernel
from tilus.runtime.weights import PackLayout, QuantizedWeight

GROUP = 128
TOLERANCE = {"f32": 1e-5, "f16": 1e-3}  # relative error (Frobenius): f16 results are rounded


class CpuStopwatch(Stopwatch):
    """Bursts in seconds of CPU time, each of them taken as it is."""

    def measure(self) -> None:
        """Run one burst."""
        begin = time.process_time()
        for _ in range(self.calls):
            self.call()
        self.bursts.append((time.process_time() - begin) / self.calls)


@dataclass(frozen=True, slots=True)
class Way:
    """How a product is compiled: in the native order or a plain one, with permutations or none, fixed or f32."""

    name: str
    native: bool
    permutations: bool
    fixed: bool

    @property
    def activation(self) -> str:
        """Type of the activations that take it."""
        return "f16" if self.fixed else "f32"


WAYS = (
    Way("plain", native=False, permutations=False, fixed=False),
    Way("tables", native=False, permutations=True, fixed=False),
    Way("layout", native=True, permutations=True, fixed=False),
    Way("fixed, plain order", native=False, permutations=True, fixed=True),
    Way("fixed", native=True, permutations=True, fixed=True),
)


def main() -> None:
    """Measure, print, write."""
    options = _options()
    set_num_threads(1)
    rows = [row for name in options.types.split(",") for m in options.m for row in _measure(name, m, options)]
    _show(rows)
    if not options.no_write:
        settings = {name: value for name, value in vars(options).items() if name != "no_write"}
        path = write("cpu_unpack", settings | {"group": GROUP, "threads": 1}, rows)
        print(f"wrote {path.relative_to(path.parent.parent.parent)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4096, help="outputs (default 4096)")
    parser.add_argument("--k", type=int, default=4096, help="inputs (default 4096)")
    parser.add_argument("--m", type=lambda text: [int(x) for x in text.split(",")], default=[1, 16], help="batches")
    parser.add_argument("--types", default="u4,u3,f4e2m1,nf4", help="weight types (default u4,u3,f4e2m1,nf4)")
    parser.add_argument("--rounds", type=int, default=15, help="bursts of each line (default 15)")
    parser.add_argument("--burst", type=float, default=0.1, help="seconds of a burst (default 0.1)")
    parser.add_argument("--no-write", action="store_true", help="write no result file")
    return parser.parse_args()


def _measure(name: str, m: int, options: argparse.Namespace) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    weight = tilus.quantize(rng.standard_normal((options.n, options.k), np.float32), name, GROUP, scale_dtype="f16")
    x = rng.standard_normal((m, options.k), np.float32)
    values = weight.dequantize("f64")
    ways = [way for way in WAYS if not way.fixed or takes_fixed(weight.format)]
    calls = [_checked(way, weight, values, x.astype(np.dtype(f"f{2 if way.fixed else 4}"))) for way in ways]
    watches = [CpuStopwatch(call, options.burst) for call in calls]
    take_turns(watches, options.rounds)
    base = watches[0].timing.seconds
    return [
        {
            "type": name,
            "m": m,
            "way": way.name,
            "ms": 1e3 * watch.timing.seconds,
            "times_plain": base / watch.timing.seconds,
            "spread": watch.timing.spread,
        }
        for way, watch in zip(ways, watches, strict=True)
    ]


def _checked(way: Way, weight: QuantizedWeight, values: np.ndarray, x: np.ndarray) -> Callable[[], None]:
    """Return a product to time, after a look at its result."""
    y = np.empty((len(x), len(values)), x.dtype)
    run = _product(way, weight, x, y)
    wanted = x.astype(np.float64) @ values.T
    # Compiled kernels are kept by what they are made of, of which permutations are no part.
    with _permutations(way.permutations), tilus.knobs.scope(always_compile=True):
        run()
    error = np.linalg.norm(y - wanted) / np.linalg.norm(wanted)
    if not error <= TOLERANCE[way.activation]:
        raise SystemExit(f"{weight.dtype}, {way.name}: relative error {error:.3g}: not timed")
    return run


def _product(way: Way, weight: QuantizedWeight, x: np.ndarray, y: np.ndarray) -> Callable[[], None]:
    """Return a call of what a way is compiled to."""
    native = weight.format.pack
    packed = weight if way.native else weight.repack(PackLayout(native.dtype, native.fragment, native.vector, None))
    activation, scale = element_type(x.dtype), element_type(weight.scales.dtype)
    assert activation is not None
    assert scale is not None
    operands = Operands(x, packed.words, packed.scales, packed.zero_points, None, y, packed.format)
    if way.fixed:
        calls = fixed_calls(operands, packed.format, activation, scale, "none")
    else:
        bm = rows_per_block(len(x), "cpu", weight.dtype, activation)
        program, constants = matmul_program(packed.format, activation, scale, bm, bias=False)
        calls = operands.calls(Kernels(BoundKernel(program.definition, constants)))

    def run() -> None:
        for kernel, args in calls:
            kernel(*args)

    return run


@contextmanager
def _permutations(wanted: bool) -> Iterator[None]:
    """Let the compiler know of the instructions that look up in registers, or of none."""
    known = tables.PERMUTATIONS
    tables.PERMUTATIONS = known if wanted else ()
    try:
        yield
    finally:
        tables.PERMUTATIONS = known


def _show(rows: Sequence[dict[str, object]]) -> None:
    table = Table(title="products on one thread, in ms; how many times as fast as the plain way", title_justify="left")
    for name in ("type", "M", "way", "ms", "times", "spread"):
        table.add_column(name, justify="left" if name in ("type", "way") else "right")
    for row in rows:
        numbers = f"{row['ms']:.3f}", f"{row['times_plain']:.2f}", f"{row['spread']:.2f}"
        table.add_row(str(row["type"]), str(row["m"]), str(row["way"]), *numbers)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
