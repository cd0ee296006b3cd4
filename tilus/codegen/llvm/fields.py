"""Elements side by side: two of 16 bits, or four of 8, in a 32-bit word per lane.

Instructions that multiply integers of 16 and 8 bits take neighbours along k from one word and add up their products. So
a product asks its operands for *groups* of elements, the first in the lowest field of the word. Tiles that are made
where they are used make groups as they make elements, all fields at once: codes move to their fields by one shift and
mask where their distances fit, and arithmetic is that of a vector with more, narrower lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilus.codegen.llvm.builder import Builder, Value, vector
from tilus.dtypes import DataType
from tilus.layouts import BitLayout
from tilus.layouts.bits import WORD

FULL = (1 << WORD) - 1


def joined(b: Builder, elements: Sequence[Value]) -> Value:
    """Return a word of elements of at most the width of a field, as they are stored."""
    width, word = WORD // len(elements), vector(b.lanes, "i32")
    total: Value | None = None
    for number, element in enumerate(elements):
        if element.type != word:  # codes are words already
            bits = b.convert("bitcast", element, vector(b.lanes, f"i{_bits_of(element.type)}"))
            element = b.convert("zext", bits, word)
        piece = b.op("shl", element, number * width) if number else element
        total = piece if total is None else b.op("or", total, piece)
    assert total is not None
    return total


def _bits_of(type_: str) -> int:
    return 16 if "half" in type_ else int(type_.rpartition("i")[2].rstrip(">"))


def placed(b: Builder, word: Callable[[int], Value], bits: BitLayout, numbers: Sequence[int]) -> Value:
    """Return codes in the fields of a word, from the words where a bit layout put them.

    Bits that move equally far are cut out where they lie, put together, and shifted once.
    """
    moves = _moves(bits, numbers)
    total: Value | None = None
    # A shift within halves brings nothing in from the other half that would have to be masked.
    lane = 16 if len(numbers) > 1 and bits.lane == 16 else WORD
    for shift, masks in moves.items():
        piece = _moved(b, word, shift, masks, lane)
        total = piece if total is None else b.op("or", total, piece)
    assert total is not None
    width = WORD // len(numbers)
    flipped = sum(bits.inverted(number) << field * width for field, number in enumerate(numbers))
    return b.op("xor", total, flipped) if flipped else total


def _moves(bits: BitLayout, numbers: Sequence[int]) -> dict[int, dict[int, int]]:
    """Return {bits to the right: {word: which of its bits, at their new places}}."""
    moves: dict[int, dict[int, int]] = {}
    for field, number in enumerate(numbers):
        rest, lane = divmod(number, bits.lanes)
        slot, unit = divmod(rest, bits.units)
        for run in bits.runs(slot):
            to = field * (WORD // len(numbers)) + run.bit
            masks = moves.setdefault(lane * bits.lane + run.position - to, {})
            source = unit * bits.unit_words + run.word
            masks[source] = masks.get(source, 0) | ((1 << run.size) - 1) << to
    return moves


def _moved(b: Builder, word: Callable[[int], Value], shift: int, masks: dict[int, int], lane: int) -> Value:
    """Return bits of words, shifted within lanes of the words."""
    left = (1 << lane) - 1
    left = (left >> shift if shift > 0 else left << -shift & left) * (FULL // left)

    def shifted(x: Value) -> Value:
        opcode = "lshr" if shift > 0 else "shl"
        return narrow(b, WORD // lane, lambda v: b.op(opcode, v, abs(shift)), x) if shift else x

    if len(masks) == 1:
        ((source, mask),) = masks.items()
        piece = shifted(word(source))
        return piece if mask == left else b.op("and", piece, mask)
    total: Value | None = None
    for source, mask in masks.items():
        piece = b.op("and", word(source), mask << shift if shift > 0 else mask >> -shift)
        total = piece if total is None else b.op("or", total, piece)
    assert total is not None
    return shifted(total)


def fill(b: Builder, word: Value, count: int) -> Value:
    """Return words with the low bits of an integer in all of their `count` fields."""
    width = WORD // count
    low = b.op("and", word, (1 << width) - 1)
    return b.op("mul", low, sum(1 << field * width for field in range(count)))


def narrow(b: Builder, count: int, compute: Callable[..., Value], *words: Value) -> Value:
    """Compute on words as on vectors with a lane for each of their `count` fields."""
    type_ = vector(b.lanes * count, f"i{WORD // count}")
    return b.convert("bitcast", compute(*(b.convert("bitcast", w, type_) for w in words)), vector(b.lanes, "i32"))


def widened(b: Builder, src: DataType, count: int, word: Value) -> Value | None:
    """Return codes of an integer type, in fields that are wider, as integers of the fields' width; None for others."""
    if not src.is_integer or src.nbits > WORD // count:
        return None
    if not src.is_signed or src.nbits == WORD // count:
        return word
    sign = 1 << (src.nbits - 1)
    return narrow(b, count, lambda x: b.op("sub", b.op("xor", x, sign), sign), word)
