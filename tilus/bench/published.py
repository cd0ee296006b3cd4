"""What others have measured and published: for a look beside predictions, and to check the model.

Rows of 8192 x 8192 at several M were measured with Triton's `do_bench` (second-level cache flushed before each call),
scales per channel: public result files of the repositories mgoin/humming and inclusionAI/humming, and the thread of
TileOPs#1874. `do_bench` counts what a CUDA graph does not: recording events around one launch on a machine that idles.
"""

from __future__ import annotations

from dataclasses import dataclass

# Microseconds that `do_bench` adds to a replayed graph: what is left of cuBLAS' f16 row at M = 1 beyond the bytes.
DO_BENCH = 10.8


@dataclass(frozen=True, slots=True)
class Measured:
    """One published time.

    Attributes
    ----------
    device, system : str
    weight : str
        Type of the weights: `f16` where they are not quantized.
    m, n, k : int
    microseconds : float
    """

    device: str
    system: str
    weight: str
    m: int
    n: int
    k: int
    microseconds: float


_BATCHES = (1, 16, 64, 256, 4096)
_SQUARE = """
h100     cuBLAS   f16  58.3  58.3  58.7  63.5   821
h100     Marlin   u4   27.0  27.4  43.1  98.1  1345
h100     humming  u1   21.4  22.7  33.7  83.7  1047
h100     humming  u2   22.4  23.1  33.9  85.4  1067
h100     humming  u4   27.0  27.8  36.8  89.8  1127
h100     humming  u6   35.1  35.4  41.7  103.7 1231
h100     humming  u8   41.2  42.1  45.8  115.7 1215
a800     Marlin   u4   42.9  44.7  60.9  169   2466
a800     humming  u2   29.8  30.0  58.4  154   2126
rtx4090  humming  u4   55.1  55.4  70.4  210   3204
rtx4090  humming  u1   26.3  27.3  59.9  208   3180
"""

PUBLISHED: tuple[Measured, ...] = tuple(
    Measured(device, system, weight, m, 8192, 8192, float(time))
    for device, system, weight, *times in map(str.split, _SQUARE.strip().splitlines())
    for m, time in zip(_BATCHES, times, strict=True)
)


def best_published(device: str, weight: str, m: int, n: int, k: int) -> Measured | None:
    """Return the fastest published quantized product of a shape, or None."""
    found = [row for row in PUBLISHED if (row.device, row.weight, row.m, row.n, row.k) == (device, weight, m, n, k)]
    return min(found, key=lambda row: row.microseconds, default=None)
