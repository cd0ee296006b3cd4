"""Between the registers of a tile and memory, one vector at a time.

A vector is `width` consecutive elements. Of 32 bits or more it is whole words of the array; a narrower one is a part of
a word, which is put together from several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context
from tilus.codegen.cuda.cpp import Expr, Name
from tilus.codegen.cuda.words import WORD, splat, window, word_count

# Gets the number of a vector's first element, its width in bits, and where its words are.
Access: TypeAlias = Callable[[int, int, Expr], None]


def load(
    ctx: Context, array: Name, nbits: int, count: int, width: int, fetch: Access, other: int | None = None
) -> None:
    """Fill an array, vector by vector.

    Parameters
    ----------
    ctx : Context
    array : Name
        Registers of the tile.
    nbits, count : int
        Bits of an element, elements of a thread.
    width : int
        Elements of a vector.
    fetch : callable
        Emits the load of one vector into the words it is given.
    other : int, optional
        Code that elements have which are not fetched.
    """
    bits = nbits * width
    pattern = None if other is None else splat(other, nbits)
    if bits >= WORD:
        for i in range(0, count, width):
            first = i * nbits // WORD
            if pattern is not None:
                words = range(first, first + bits // WORD)
                ctx.emit(*(cpp.Set(array[w], cpp.bits(pattern[w % len(pattern)])) for w in words))
            fetch(i, bits, array + first)
        return
    words_found: list[Expr | None] = [None] * word_count(nbits, count)
    for i in range(0, count, width):
        part = ctx.array("part", 1)
        if pattern is not None:
            ctx.emit(cpp.Set(part[0], cpp.bits(_repeat(other or 0, nbits, width))))
        fetch(i, bits, part)
        _merge(words_found, part[0], i * nbits, bits)
    for w, word in enumerate(words_found):
        if word is not None:
            ctx.emit(cpp.Set(array[w], word))


def _merge(words: list[Expr | None], part: Expr, start: int, bits: int) -> None:
    """Put the low bits of `part`, whose upper bits are zero, into a stream of words."""
    word, shift = divmod(start, WORD)
    pieces = [(word, part << shift)]
    if shift + bits > WORD:
        pieces.append((word + 1, part >> (WORD - shift)))
    for w, piece in pieces:
        old = words[w]
        words[w] = piece if old is None else old | piece


def _repeat(code: int, nbits: int, times: int) -> int:
    return sum(code << (i * nbits) for i in range(times))


def store(ctx: Context, array: Name, nbits: int, count: int, width: int, send: Access) -> None:
    """Send an array, vector by vector; `send` emits the store of the words it is given."""
    bits = nbits * width
    for i in range(0, count, width):
        if bits >= WORD:
            send(i, bits, array + (i * nbits // WORD))
        else:
            part = ctx.array("part", 1)
            ctx.emit(cpp.Set(part[0], window(array, word_count(nbits, count), i * nbits, bits)))
            send(i, bits, part)
