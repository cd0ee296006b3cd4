"""Products of pairs of 16-bit integers, added to 32-bit sums: one instruction for two multiplications."""

from __future__ import annotations

from dataclasses import dataclass

from tilus.codegen.llvm.builder import Builder, Value, vector


@dataclass(frozen=True, slots=True)
class PairProduct:
    """An instruction that multiplies and adds pairs.

    Attributes
    ----------
    features : tuple of str
        The CPU must have them.
    lanes : int
        Pairs in a vector.
    name : str
        Of LLVM's intrinsic.
    adds : bool
        Whether it adds to a third operand too.
    """

    features: tuple[str, ...]
    lanes: int
    name: str
    adds: bool

    def __call__(self, b: Builder, x: Value, y: Value, z: Value) -> Value:
        """Return z plus the products."""
        if self.adds:
            return b.call(z.type, self.name, z, x, y, intrinsic=False)
        halves = vector(2 * self.lanes, "i16")
        args = (b.convert("bitcast", v, halves) for v in (x, y))
        return b.op("add", z, b.call(z.type, self.name, *args, intrinsic=False))


# Intel SDM, "VPDPWSSD" and "PMADDWD"; of those that a CPU has, the first is best.
PAIR_PRODUCTS = (
    PairProduct(("avx512vnni",), 16, "llvm.x86.avx512.vpdpwssd.512", True),
    PairProduct(("avx512bw",), 16, "llvm.x86.avx512.pmaddw.d.512", False),
    PairProduct(("avx512vnni", "avx512vl"), 8, "llvm.x86.avx512.vpdpwssd.256", True),
    PairProduct(("avxvnni",), 8, "llvm.x86.avx512.vpdpwssd.256", True),
    PairProduct(("avx2",), 8, "llvm.x86.avx2.pmadd.wd", False),
    PairProduct(("sse2",), 4, "llvm.x86.sse2.pmadd.wd", False),
)


def add_pair_products(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """Return z plus the sum of the products of the 16-bit halves of two words, modulo 2^32."""
    for way in PAIR_PRODUCTS:
        if way.lanes == b.lanes and b.features.issuperset(way.features):
            return way(b, x, y, z)
    high = b.op("mul", b.op("ashr", x, 16), b.op("ashr", y, 16))
    low = b.op("mul", *(b.op("ashr", b.op("shl", v, 16), 16) for v in (x, y)))
    return b.op("add", z, b.op("add", high, low))
