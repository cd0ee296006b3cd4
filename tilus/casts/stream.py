"""Codes in the order of a bit stream, out of any bit layout: what a `view` needs that no cast takes over."""

from __future__ import annotations

from functools import lru_cache

from tilus.casts.recipe import Operand, Recipe, RecipeBuilder
from tilus.layouts.bits import WORD, BitLayout


@lru_cache(maxsize=256)
def to_stream(bits: BitLayout) -> Recipe:
    """Return the recipe from a thread's words to words of which element i is bits [i * nbits, (i + 1) * nbits)."""
    builder = RecipeBuilder(bits.num_words)
    pieces: list[dict[tuple[int, int], int]] = [{} for _ in range(bits.num_words)]
    for element in range(bits.num_elements):
        for bit in range(bits.nbits):
            source, place = bits.locate(element, bit)
            word, to = divmod(element * bits.nbits + bit, WORD)
            move = source, to - place
            pieces[word][move] = pieces[word].get(move, 0) | 1 << to
    flipped = sum(bits.inverted(element) << (element * bits.nbits) for element in range(bits.num_elements))
    results = []
    for word, moves in enumerate(pieces):
        total: Operand = flipped >> (WORD * word) & 0xFFFFFFFF
        for (source, shift), mask in sorted(moves.items()):
            total = _add_piece(builder, f"w{source}", shift, mask, total)
        results.append(str(total))
    return builder.build(results)


def _add_piece(builder: RecipeBuilder, word: str, shift: int, mask: int, total: Operand) -> str:
    if shift:
        word = builder.put("shl" if shift > 0 else "shr", word, abs(shift))
    if total == 0:
        return builder.put("and", word, mask)
    return builder.put("and_xor", word, mask, total)
