"""Tables of f32 in registers: what a code stands for is looked up by one permutation.

A permutation takes the lane that the low bits of an index name, and never looks at those above: there is nothing to
mask. What does not fit one register is looked up in several, and the upper bits of the code choose among the results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tilus.codegen.llvm.builder import Builder, Value, constant, lanes_of, vector


@dataclass(frozen=True, slots=True)
class Permutation:
    """An instruction that looks up f32.

    Attributes
    ----------
    feature : str
        The CPU must have it.
    lanes, bits : int
        Lanes of the result; bits of the index that count.
    name : str
        Of LLVM's intrinsic.
    """

    feature: str
    lanes: int
    bits: int
    name: str

    def __call__(self, b: Builder, table: Sequence[float], index: Value) -> Value:
        """Look up; the table has 2^bits numbers, in one register or in two."""
        type_ = vector(self.lanes, "float")
        registers = [constant(type_, table[i : i + self.lanes]) for i in range(0, len(table), self.lanes)]
        first, *rest = registers
        args = [first, index, *rest]
        return b.call(type_, self.name, *args, intrinsic=False)


# From the one that looks at most bits on.
PERMUTATIONS = (
    Permutation("avx512f", 16, 5, "llvm.x86.avx512.vpermi2var.ps.512"),
    Permutation("avx512f", 16, 4, "llvm.x86.avx512.permvar.sf.512"),
    Permutation("avx512vl", 8, 4, "llvm.x86.avx512.vpermi2var.ps.256"),
    Permutation("avx2", 8, 3, "llvm.x86.avx2.permps"),
)


def _permutation(b: Builder, bits: int) -> Permutation | None:
    """Return the cheapest permutation for an index: the smallest that takes all of it, else the largest."""
    found = [p for p in PERMUTATIONS if p.lanes == b.lanes and p.feature in b.features]
    return next((p for p in reversed(found) if p.bits >= bits), found[0] if found else None)


def lookup_cost(b: Builder, bits: int) -> float:
    """Return about how many instructions a lookup takes; infinite where the CPU has none for it."""
    found = _permutation(b, bits)
    if found is None:
        return float("inf")
    parts = 1 << max(bits - found.bits, 0)
    return parts + 2 * (parts - 1)


def lookup(b: Builder, table: Iterable[float], code: Value) -> Value:
    """Return `table[code]`, the length of the table being a power of two.

    Without an instruction for it numbers are chosen by the bits of the code, one select per pair.
    """
    numbers = [float(x) for x in table]
    bits = (len(numbers) - 1).bit_length()
    found = _permutation(b, bits) if lanes_of(code.type)[0] else None
    if found is None:
        low, values = 0, [constant(vector(lanes_of(code.type)[0], "float"), x) for x in numbers]
    else:
        size, low = 1 << found.bits, min(found.bits, bits)
        parts = [(numbers[i : i + size] * size)[:size] for i in range(0, len(numbers), size)]
        values = [found(b, part, code) for part in parts]
    for bit in range(low, bits):
        test = b.compare("icmp ne", b.op("and", code, 1 << bit), 0)
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [high if low_ == high else b.select(test, high, low_) for low_, high in pairs]
    return values[0]
