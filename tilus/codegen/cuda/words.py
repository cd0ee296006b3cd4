"""The bits of register tensors: local element i of n bits is bits [i*n, (i+1)*n) of an array of 32-bit words.

So `view` is free, and the operands of matrix instructions are the words themselves. Everything here works on constant
element numbers; the arrays stay in registers.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.cpp import Expr, Name
from tilus.errors import CodegenError
from tilus.ir.types import RegisterType

WORD = 32


def word_count(nbits: int, elements: int) -> int:
    """Return how many words hold elements."""
    return -(-nbits * elements // WORD)


def words_of(kind: RegisterType) -> int:
    """Return how many words of each thread hold a register tensor."""
    if kind.layout is None:
        raise CodegenError(
            f"a tile of type {kind} has no layout",
            hint="lower the program first: passes.pipeline.lower(program, target)",
        )
    return word_count(kind.dtype.nbits, kind.layout.local_size)


def window(array: Expr, count: int, start: int, needed: int) -> Expr:
    """Return 32 bits of the array's stream from bit `start` on, of which the bits [needed, needed + ...) matter.

    Parameters
    ----------
    array : Expr
    count : int
        Words of the array.
    start : int
        May be negative: then the lowest bits are zeros.
    needed : int
        Bits from the window's start up to the end of what is looked at; bits beyond it may be anything.
    """
    word, shift = divmod(start, WORD)
    if word < 0:
        return array[0] << -start
    if shift == 0:
        return array[word]
    if shift + needed <= WORD or word + 1 >= count:
        return array[word] >> shift
    return cpp.call("__funnelshift_r", array[word], array[word + 1], shift)


def element(array: Expr, count: int, i: int, nbits: int) -> Expr:
    """Return the code of element i: a u32 whose upper bits are zero, for 64 bits a u64."""
    if nbits == 64:
        return (cpp.convert("u64", array[2 * i + 1]) << 32) | array[2 * i]
    if nbits == WORD:
        return array[i]
    start = i * nbits
    moved = window(array, count, start, nbits)
    return moved if start % WORD + nbits == WORD and nbits < WORD else moved & cpp.bits((1 << nbits) - 1)


def pack(codes: Sequence[Expr], nbits: int) -> list[Expr]:
    """Return the words that hold codes; the upper bits of every code are zero."""
    if nbits == 64:
        halves = [(cpp.convert("u32", c), cpp.convert("u32", c >> WORD)) for c in codes]
        return [word for pair in halves for word in pair]
    if nbits == WORD:
        return list(codes)
    words: list[Expr | None] = [None] * word_count(nbits, len(codes))

    def put(word: int, bits: Expr) -> None:
        old = words[word]
        words[word] = bits if old is None else old | bits

    for i, code in enumerate(codes):
        word, shift = divmod(i * nbits, WORD)
        put(word, code << shift)
        if shift + nbits > WORD:
            put(word + 1, code >> (WORD - shift))
    return [w if w is not None else cpp.bits(0) for w in words]


def gather(array: Expr, count: int, places: Sequence[int], nbits: int) -> list[Expr]:
    """Return words that hold elements `places` of an array, one after the other.

    Runs of neighbours move together, so that whole words stay what they are, or are shifted once.
    """
    runs: list[tuple[int, int, int]] = []  # first bit in the array, first bit in the result, bits
    for i, place in enumerate(places):
        start, to = place * nbits, i * nbits
        if runs and runs[-1][0] + runs[-1][2] == start:
            runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + nbits)
        else:
            runs.append((start, to, nbits))
    words: list[Expr | None] = [None] * word_count(nbits, len(places))
    for start, to, bits in runs:
        for word in range(to // WORD, (to + bits - 1) // WORD + 1):
            low, high = max(to, word * WORD), min(to + bits, (word + 1) * WORD)
            source = start + low - to
            whole = high - low == WORD or (high == to + bits and high == len(places) * nbits and low == word * WORD)
            piece = window(array, count, source, high - low)
            if not whole:
                piece = piece & cpp.bits((1 << (high - low)) - 1)
            old = words[word]
            piece = piece << (low - word * WORD)
            words[word] = piece if old is None else old | piece
    return [w if w is not None else cpp.bits(0) for w in words]


def splat(code: int, nbits: int) -> list[int]:
    """Return the pattern that repeats one code; it has one word, or as many as make the pattern whole."""
    if nbits == 64:
        return [code & 0xFFFFFFFF, code >> WORD]
    period = nbits if WORD % nbits else 1
    stream = sum(code << (i * nbits) for i in range(WORD * period // nbits))
    return [(stream >> (WORD * w)) & 0xFFFFFFFF for w in range(period)]


def half_pair(array: Expr, low: int, high: int) -> Expr:
    """Return a word that holds two elements of a 16-bit tensor."""
    if low % 2 == 0 and high == low + 1:
        return array[low // 2]
    first, second = array[low // 2], array[high // 2]
    selector = (0x32 if low % 2 else 0x10) | ((0x7600 if high % 2 else 0x5400) if low // 2 != high // 2 else 0)
    if low // 2 == high // 2:
        selector |= 0x3200 if high % 2 else 0x1000
    return cpp.call("__byte_perm", first, second, cpp.bits(selector))


def assign(target: Name, words: Sequence[Expr], start: int = 0) -> list[cpp.Stmt]:
    """Return assignments of words to an array."""
    return [cpp.Set(target[start + i], word) for i, word in enumerate(words)]
