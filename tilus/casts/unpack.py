"""From a bit layout and a form to the instructions that unpack a unit: a word of ready lanes for every slot.

A piece of a slot is what one shift brings to its place. A logical instruction cuts a piece out and puts it beside what
is there already, so a slot costs as many of them as it has pieces. Shifted words are shared by all slots, which choose
where in the lane their codes lie so that few are needed.

A float's sign that lies next to its magnitude needs no shift of its own: what is added to the sign at its new place, in
the multiplication that shifts the magnitude, carries it to the top of the lane.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import log2
from typing import TypeAlias

from tilus.casts.forms import Form, forms
from tilus.casts.recipe import Operand, Recipe, RecipeBuilder
from tilus.dtypes import DataType, Float
from tilus.errors import LayoutError
from tilus.layouts.bits import WORD, BitLayout

Move: TypeAlias = tuple[int, int]  # word of the unit, bits to the left; `_TURN`: bytes change places
Pieces: TypeAlias = Mapping[Move, int]  # which bits of the lane a shifted word brings
Option: TypeAlias = Mapping[int, Pieces]  # the pieces of a slot for every position in the lane

HALF = 16  # width of lanes whose numbers are what tensor cores add up
# Stands for a shift by half such a lane, to the left or the right. One permutation does both.
_TURN = 128
_BYTE, _SWAPPED = 8, 0x2301
# What a class of scales costs, per slot: an accumulator more for every 64 weights, taken into the sum in four steps.
_CLASS = 1 / 8
# What constants cost that have to be taken off, per element: a product more for the 8 that a thread has of 16 of k,
# which the 64 rows of a warp share.
_BIAS = 1 / 32
# What a bit costs by which numbers are longer than codes: of two ways that take as much, the more exact one is better.
# Where no neighbour cancels it, as in halves of orders that were packed before lanes were turned, sums would lose it.
_LONG, _LOST = 1 / 1024, 1 / 4


@dataclass(frozen=True)
class Unpacking:
    """How to unpack one unit.

    Attributes
    ----------
    bits : BitLayout
    form : Form
    positions : tuple of int
        Where in the lane the codes of each slot begin.
    recipe : Recipe
        From the unit's words to a word for every slot.
    """

    bits: BitLayout
    form: Form
    positions: tuple[int, ...]
    recipe: Recipe

    @property
    def elements(self) -> int:
        """Elements of a unit."""
        return self.bits.num_slots * self.bits.lanes

    @cached_property
    def classes(self) -> int:
        """Groups of slots that differ in scale."""
        return len({self.form.scale(p) for p in self.positions})

    @property
    def issue(self) -> float:
        """Instructions per element."""
        return self.recipe.issue / self.elements

    @property
    def alu(self) -> float:
        """Instructions per element on the pipe of logical operations, right shifts and permutations."""
        return self.recipe.alu / self.elements

    @property
    def cost(self) -> float:
        """What the search makes small, per element: both of the above, and what classes and biases cost later."""
        biased = any(self.form.bias(p) for p in self.positions)
        far = sum(log2(1 + self.form.offset(p)) for p in self.positions)
        later = self.classes * _CLASS * self.bits.num_slots / self.elements + biased * _BIAS
        each = _LOST if self.bits.lane == HALF and not self.bits.mirrored else _LONG
        return self.issue + self.alu + later + far / len(self.positions) * each


@lru_cache(maxsize=4096)
def unpack(bits: BitLayout, form: Form, positions: tuple[int, ...] | None = None) -> Unpacking:
    """Derive how to unpack a unit.

    Parameters
    ----------
    bits : BitLayout
        Lanes are those of the target.
    form : Form
    positions : tuple of int, optional
        Where in the lane the codes of each slot begin; what costs least, if not given.

    Raises
    ------
    LayoutError
        If the layout is not one for the form's types.
    """
    if not fits(bits, form):
        raise LayoutError(
            f"{bits} holds no codes of {form.source} for {form.target}: expected {form.source.nbits} bits in lanes of "
            f"{form.lane}, flipped {form.flipped:#x}"
        )
    bits = bits.repeated(1)
    options: list[Option] = [
        {p: _pieces(bits, form, slot, p) for p in form.positions} for slot in range(bits.num_slots)
    ]
    if positions is not None:
        if len(positions) != bits.num_slots or not set(positions) <= set(form.positions):
            raise LayoutError(f"positions {positions} are not {bits.num_slots} of {form.positions}")
        return _write(bits, form, positions, options)
    starts = {shift for slot in options for pieces in slot.values() for _, shift in pieces if shift}
    found = {_descend(options, start, way, bits, form) for start in (0, *sorted(starts)) for way in (1, -1)}
    return min((_write(bits, form, positions, options) for positions in sorted(found)), key=lambda u: u.cost)


def fits(bits: BitLayout, form: Form) -> bool:
    """Whether a layout holds codes of a form's type in lanes of its target."""
    if bits.mirrored and (form.of_floats or not isinstance(form.target, Float)):
        return False  # lanes without a sign of their own
    return (bits.nbits, bits.lane, bits.flipped) == (form.source.nbits, form.lane, form.flipped)


def _pieces(bits: BitLayout, form: Form, slot: int, position: int) -> dict[Move, int]:
    pieces: dict[Move, int] = {}
    for bit, (word, place) in enumerate(bits.cells[slot]):
        to = form.destination(bit, position)
        if to is not None:
            move = _move(form, word, to - place)
            pieces[move] = pieces.get(move, 0) | 1 << to
    return pieces


def _move(form: Form, word: int, shift: int) -> Move:
    return word, _TURN if form.lane == HALF and abs(shift) == _BYTE else shift


# --- where in the lanes ---------------------------------------------------------------------------------------------


def _descend(options: list[Option], start: int, way: int, bits: BitLayout, form: Form) -> tuple[int, ...]:
    """Choose a position for each slot, as if all words shifted by `start` were there; then each again, given the rest.

    Parameters
    ----------
    options : list
        For each slot, its pieces by position.
    start : int
    way : int
        1 to begin with the slot that lies lowest, -1 with the highest. What slots are called does not matter.
    bits : BitLayout
    form : Form
    """
    order = sorted(range(len(options)), key=lambda slot: bits.cells[slot])[::way]
    free = {(word, start) for word in range(bits.unit_words)} if start else set()
    positions = [_cheapest(slot, form, free, None) for slot in options]
    for _ in range(2 * len(options)):
        before = tuple(positions)
        for i in order:
            others = [(pieces[p], p) for j, (pieces, p) in enumerate(zip(options, positions, strict=True)) if j != i]
            made = {move for pieces, _ in others for move in pieces}
            positions[i] = _cheapest(options[i], form, made, {form.scale(p) for _, p in others}, len(options) * _CLASS)
        if tuple(positions) == before:
            break
    return tuple(positions)


def _cheapest(slot: Option, form: Form, made: set[Move], known: Container[float] | None, new_class: float = 0.0) -> int:
    """Return a slot's position where some shifted words, and some classes of scales, are there already."""

    def price(position: int) -> tuple[float, float, int]:
        pieces = slot[position]
        shifts = [move for move in pieces if move[1] and move not in made]
        # Logical instructions and right shifts count twice: as instructions, and on their pipe.
        cost = 2 * len(pieces) + sum(1 if (_shift(move, pieces[move]) or -1) > 0 else 2 for move in shifts)
        more = new_class * (known is not None and form.scale(position) not in known)
        return cost + more, form.offset(position), position

    return min(slot, key=price)


# --- the instructions -----------------------------------------------------------------------------------------------


def _write(bits: BitLayout, form: Form, positions: tuple[int, ...], options: list[Option]) -> Unpacking:
    chosen = [slot[p] for slot, p in zip(options, positions, strict=True)]
    builder = RecipeBuilder(bits.unit_words)
    constants = [_constant(bits, form, position) for position in positions]
    alone = [_whole_bytes(pieces, form, constant) for pieces, constant in zip(chosen, constants, strict=True)]
    carries = _carries(bits, form, positions, chosen)
    chosen = [pieces if c is None else c.rest for pieces, c in zip(chosen, carries, strict=True)]
    shifted = _shifts(builder, [pieces for pieces, single in zip(chosen, alone, strict=True) if single is None])
    spread = sum(1 << (lane * form.lane) for lane in range(bits.lanes))
    results = []
    for constant, pieces, single, carry in zip(constants, chosen, alone, carries, strict=True):
        if single is not None:
            results.append(builder.put("prmt", *single))
            continue
        out: Operand = constant if carry is None else carry.put(builder, spread)
        for move, mask in pieces.items():
            out = _insert(builder, shifted[move], mask * spread, out)
        results.append(str(out))
    if form.factor != 1.0:
        results = [_scaled(builder, form, word, spread) for word in results]
    return Unpacking(bits, form, positions, builder.build(results))


def _constant(bits: BitLayout, form: Form, position: int) -> int:
    """Return what a word has besides the codes of a slot."""
    return sum(form.constant(position, bits.turned(lane)) << lane * form.lane for lane in range(bits.lanes))


@dataclass(frozen=True, slots=True)
class _Carry:
    """A piece that is shifted together with the sign above it, which a carry takes to the top of the lane.

    Attributes
    ----------
    word, shift : int
        To the left, or nowhere.
    field, mask : int
        Bits of the lane that are shifted to, and those that are wanted.
    more : int
        What is added to the former.
    rest : dict
        The other pieces.
    """

    word: int
    shift: int
    field: int
    mask: int
    more: int
    rest: Pieces

    def put(self, builder: RecipeBuilder, spread: int) -> str:
        """Return a word of the wanted bits."""
        alone = builder.put("and", f"w{self.word}", (self.field >> self.shift) * spread)
        moved = builder.put("mad", alone, 1 << self.shift, self.more * spread)
        return builder.put("and", moved, self.mask * spread)


def _carries(bits: BitLayout, form: Form, positions: Sequence[int], chosen: Sequence[Pieces]) -> list[_Carry | None]:
    """Return for every slot how a carry brings its sign to its place, None where that is not possible or no cheaper."""
    uses = Counter(move for pieces in chosen for move in pieces)
    found: list[_Carry | None] = []
    for slot, (position, pieces) in enumerate(zip(positions, chosen, strict=True)):
        carry = _carry(bits, form, slot, position, pieces)
        if carry is not None:
            gone = [move for move in pieces if move not in carry.rest]
            # A logical instruction and a multiplication more; one less, without the shifts that no other slot has.
            saved = 2 + sum(1 if move[1] > 0 else 2 for move in gone if move[1] and uses[move] == 1)
            if saved > 3:
                uses.subtract(gone)
            else:
                carry = None
        found.append(carry)
    return found


def _carry(bits: BitLayout, form: Form, slot: int, position: int, pieces: Pieces) -> _Carry | None:
    if not form.of_floats:
        return None
    (word, place), above, sign = bits.cells[slot][-2], position + form.magnitude, 1 << (form.lane - 1)
    shift = above - 1 - place
    if bits.cells[slot][-1] != (word, place + 1) or shift < 0 or above == form.lane - 1:
        return None
    move = _move(form, word, shift)
    mask = pieces[move] & ~sign
    rest = {at: kept for at, piece in pieces.items() if at != move and (kept := piece & ~sign)}
    return _Carry(word, shift, mask | 1 << above, mask | sign, sign - (1 << above), rest)


def _insert(builder: RecipeBuilder, word: str, mask: int, rest: Operand) -> str:
    if rest == 0:
        return word if mask == (1 << WORD) - 1 else builder.put("and", word, mask)
    return builder.put("and_or", word, mask, rest)


def _scaled(builder: RecipeBuilder, form: Form, word: str, spread: int) -> str:
    code, minus_zero = int(form.target.encode(form.factor)), (1 << (form.lane - 1)) * spread
    return builder.put(f"fma_{form.target}x2", word, code * spread, minus_zero)


def _whole_bytes(pieces: Pieces, form: Form, constant: int) -> tuple[Operand, ...] | None:
    """Return the operands of a permutation that does all for a slot of one byte that changes places."""
    if len(pieces) != 1:
        return None
    [((word, shift), mask)] = pieces.items()
    if shift != _TURN or mask not in (0xFF, 0xFF00):
        return None
    to, selector = mask == 0xFF00, 0
    for byte in range(4):
        lane, half = divmod(byte, 2)
        selector |= (2 * lane + 1 - to if half == to else 4 + byte) << (4 * byte)
    return f"w{word}", constant, selector


def _shift(move: Move, mask: int) -> int | None:
    """Return the bits to the left by which a piece moves; None for some that go to the left and some to the right."""
    if move[1] != _TURN:
        return move[1]
    return None if mask & 0xFF and mask & 0xFF00 else _BYTE if mask & 0xFF00 else -_BYTE


def _shifts(builder: RecipeBuilder, chosen: Sequence[Pieces]) -> dict[Move, str]:
    """Return the shifted words. The one farthest to the right serves those less far to the right, by a left shift."""
    masks: dict[Move, int] = {}
    for pieces in chosen:
        for move, mask in pieces.items():
            masks[move] = masks.get(move, 0) | mask
    shifts = {move: _shift(move, mask) for move, mask in masks.items()}
    names: dict[Move, str] = {}
    farthest: dict[int, int] = {}
    for move in sorted(masks, key=lambda move: (move[0], shifts[move] or 0)):
        word, shift, mask = move[0], shifts[move], masks[move]
        source = f"w{word}"
        if shift is None:
            names[move] = builder.put("prmt", source, source, _SWAPPED)
        elif shift == 0:
            names[move] = source
        elif shift > 0:
            names[move] = builder.put("shl", source, shift)
        elif word in farthest and (mask & -mask).bit_length() - 1 - shift >= -farthest[word]:
            names[move] = builder.put("shl", builder.put("shr", source, -farthest[word]), shift - farthest[word])
        else:
            names[move] = builder.put("shr", source, -shift)
            farthest.setdefault(word, shift)
    return names


@lru_cache(maxsize=1024)
def best_form(bits: BitLayout, source: DataType, target: DataType) -> Form | None:
    """Return the form that a bit layout unpacks to with the fewest instructions; None if it is not made for any."""
    found = []
    for form in forms(source, target):
        if fits(bits, form):
            found.append(unpack(bits, form))
    return min(found, key=lambda u: u.cost).form if found else None
