"""Bit layouts: where every bit of a thread's codes lies in its 32-bit registers. The last step of the layout algebra.

A register layout says which local element of which thread an element of a tile is; a bit layout says which bits of
which of the thread's words that local element is. Weights are packed offline, so the map is ours to choose, and it is
chosen so that unpacking costs least (`tilus.casts.search`).

A word is divided into *lanes* of the width of what the codes become: 16 bits for f16. All lanes of a word hold the same
pattern, so one instruction on the word works on a code in every lane. The pattern of a *unit* of one or more words
names the code that every bit position belongs to, most significant position first, in letters::

    bits(3, 16, "fffeeedddcccbbba|...")

A letter is a *slot*: one code in each lane. The bits of a code ascend with word and position; a capital letter marks
the most significant bit of a code (a float's sign) that lies elsewhere. The unit is repeated `units` times. Local
elements count through slots, units and lanes, the lanes fastest::

    element = (slot * units + unit) * lanes + lane

so all codes of one slot are neighbours: they lie at one position of their lanes, and an instruction that needs to know
the position needs to know it once for a long run of elements.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from math import gcd
from string import ascii_lowercase, digits
from typing import Any, TypeAlias

import numpy as np

from tilus.errors import LayoutError
from tilus.layouts.maps import index_table
from tilus.layouts.register import RegisterLayout

WORD = 32
LETTERS = ascii_lowercase + digits


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring bits of a slot's code that are neighbours in a lane: code bits [bit, bit + size)."""

    bit: int
    word: int
    position: int
    size: int


Cell: TypeAlias = tuple[int, int]  # word of the unit, position in the lane


@dataclass(frozen=True, slots=True, repr=False)
class BitLayout:
    """A bijection (element, bit) <-> (word, position); see the module's text.

    Parameters
    ----------
    nbits : int
        Width of a code.
    lane : int
        Width of a lane: 8, 16 or 32.
    pattern : str
        Words of a unit, separated by `|`; each has a letter for every position of a lane.
    units : int
        How often the unit is repeated.
    flipped : int
        Bits of a code that are stored inverted. Inverting the sign of a signed integer makes it an unsigned one.
    mirrored : bool
        Whether every other lane has all bits of its codes inverted besides: its numbers may then count down.

    Raises
    ------
    LayoutError
        If the pattern is not a bijection.
    """

    nbits: int
    lane: int
    pattern: str
    units: int = 1
    flipped: int = 0
    mirrored: bool = False
    cells: tuple[tuple[Cell, ...], ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.nbits <= 8:
            raise LayoutError(f"codes of a bit layout have 1 to 8 bits, not {self.nbits}")
        if self.lane not in (8, 16, 32) or self.units < 1 or not 0 <= self.flipped < 1 << self.nbits:
            raise LayoutError(
                f"lanes have 8, 16 or 32 bits and there is at least one unit, got lanes of {self.lane} bits, "
                f"{self.units} units, flipped bits {self.flipped:#x} of a code of {self.nbits}"
            )
        object.__setattr__(self, "cells", _read(self.pattern, self.lane, self.nbits))

    @property
    def lanes(self) -> int:
        """Lanes of a word."""
        return WORD // self.lane

    @property
    def num_slots(self) -> int:
        """Codes in a lane of a unit."""
        return len(self.cells)

    @property
    def unit_words(self) -> int:
        """Words of a unit."""
        return self.pattern.count("|") + 1

    @property
    def num_words(self) -> int:
        """Words of a thread."""
        return self.unit_words * self.units

    @property
    def num_elements(self) -> int:
        """Codes of a thread."""
        return self.num_slots * self.units * self.lanes

    def inverted(self, element: int) -> int:
        """Return the bits of a local element's code that are stored inverted."""
        return self.flipped ^ ((1 << self.nbits) - 1 if self.turned(element) else 0)

    def turned(self, element: int) -> bool:
        """Return whether a local element lies in a lane whose codes are inverted."""
        return self.mirrored and element % self.lanes % 2 == 1

    def locate(self, element: int, bit: int) -> tuple[int, int]:
        """Return the word, and the position in it, of a bit of a local element."""
        if not (0 <= element < self.num_elements and 0 <= bit < self.nbits):
            raise LayoutError(f"{self} has no bit {bit} of an element {element}")
        rest, lane = divmod(element, self.lanes)
        slot, unit = divmod(rest, self.units)
        word, position = self.cells[slot][bit]
        return unit * self.unit_words + word, lane * self.lane + position

    def __call__(self, word: int, position: int) -> tuple[int, int]:
        """Return the local element, and the bit of it, at a position of a word."""
        if not (0 <= word < self.num_words and 0 <= position < WORD):
            raise LayoutError(f"{self} has no bit {position} of a word {word}")
        unit, word = divmod(word, self.unit_words)
        lane, position = divmod(position, self.lane)
        slot, bit = _owners(self)[word, position]
        return (slot * self.units + unit) * self.lanes + lane, bit

    def runs(self, slot: int) -> Iterator[Run]:
        """Yield the runs of a slot's code, from its least significant bit on."""
        cells = self.cells[slot]
        start = 0
        for bit in range(1, self.nbits + 1):
            word, position = cells[bit - 1]
            if bit == self.nbits or cells[bit] != (word, position + 1):
                yield Run(start, *cells[start], bit - start)
                start = bit

    def repeated(self, units: int) -> BitLayout:
        """Return the layout of the same pattern with another number of units."""
        return replace(self, units=units)

    # --- codes and words --------------------------------------------------------------------------------------------

    def pack(self, codes: np.ndarray) -> np.ndarray:
        """Return the words, uint32 [..., words], of codes [..., elements]."""
        front = codes.shape[:-1]
        split = codes.reshape(*front, self.num_slots, self.units, self.lanes).astype(np.uint32)
        split ^= np.array([self.inverted(lane) for lane in range(self.lanes)], np.uint32)
        words = np.zeros((*front, self.units, self.unit_words), np.uint32)
        for slot in range(self.num_slots):
            for run in self.runs(slot):
                field_ = (split[..., slot, :, :] >> run.bit) & ((1 << run.size) - 1)
                for lane in range(self.lanes):
                    words[..., run.word] |= field_[..., lane] << np.uint32(lane * self.lane + run.position)
        return words.reshape(*front, self.num_words)

    def unpack(self, words: np.ndarray) -> np.ndarray:
        """Return the codes, uint8 [..., elements], of words [..., words]."""
        front = words.shape[:-1]
        split = words.reshape(*front, self.units, self.unit_words).astype(np.uint32)
        codes = np.zeros((*front, self.num_slots, self.units, self.lanes), np.uint8)
        for slot in range(self.num_slots):
            for run in self.runs(slot):
                for lane in range(self.lanes):
                    field_ = split[..., run.word] >> np.uint32(lane * self.lane + run.position)
                    codes[..., slot, :, lane] |= ((field_ & ((1 << run.size) - 1)) << run.bit).astype(np.uint8)
        codes ^= np.array([self.inverted(lane) for lane in range(self.lanes)], np.uint8)
        return codes.reshape(*front, self.num_elements)

    # --- text -------------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        flipped = f", flipped={self.flipped:#x}" if self.flipped else ""
        mirrored = ", mirrored" if self.mirrored else ""
        return f'bits({self.nbits}, {self.lane}, "{self.pattern}", units={self.units}{flipped}{mirrored})'

    __repr__ = __str__

    def show(self) -> str:
        """Return a table: a line for every word, most significant bit first, with `element.bit` at every position."""
        width = len(f"{self.num_elements - 1}.{self.nbits - 1}")
        lines = [" " * 6 + " ".join(f"{p:>{width}}" for p in reversed(range(WORD)))]
        for word in range(self.num_words):
            owners = (self(word, position) for position in reversed(range(WORD)))
            lines.append(f"w{word:<4} " + " ".join(f"{f'{e}.{b}':>{width}}" for e, b in owners))
        return "\n".join(lines)


def _read(pattern: str, lane: int, nbits: int) -> tuple[tuple[Cell, ...], ...]:
    """Return the cells of every slot by bit."""
    words = pattern.split("|")
    slots = len(words) * lane // nbits
    if any(len(word) != lane for word in words) or slots * nbits != len(words) * lane or slots > len(LETTERS):
        raise LayoutError(
            f"{pattern!r} is no pattern of whole {nbits}-bit codes: expected words of {lane} letters, "
            f"a letter for each of {nbits} bits of a code"
        )
    below: list[list[Cell]] = [[] for _ in range(slots)]
    top: list[list[Cell]] = [[] for _ in range(slots)]
    for number, word in enumerate(words):
        for position, letter in enumerate(reversed(word)):
            slot = LETTERS.find(letter.lower())
            if not 0 <= slot < slots:
                raise LayoutError(f"{pattern!r} has no slot {letter!r}: expected {LETTERS[:slots]}")
            (top if letter.isupper() else below)[slot].append((number, position))
    cells = tuple((*low, *high) for low, high in zip(below, top, strict=True))
    if any(len(own) != nbits for own in cells) or any(len(high) > 1 for high in top):
        raise LayoutError(f"{pattern!r} does not give every slot {nbits} bits")
    return cells


@cache
def _owners(bits: BitLayout) -> dict[Cell, tuple[int, int]]:
    return {cell: (slot, bit) for slot, cells in enumerate(bits.cells) for bit, cell in enumerate(cells)}


def pattern_of(cells: list[list[Cell]], words: int, lane: int) -> str:
    """Return the pattern in which slot s has its bits at `cells[s]`, the least significant bit first."""
    letters = [["?"] * lane for _ in range(words)]
    for slot, own in enumerate(cells):
        rest = sorted(own[:-1])
        if own[:-1] != rest:
            raise LayoutError(f"the bits below the top one must ascend with word and position, got {own}")
        for word, position in own:
            letters[word][position] = LETTERS[slot]
        word, position = own[-1]
        if rest and own[-1] < rest[-1]:
            if slot >= len(ascii_lowercase):
                raise LayoutError(f"slot {slot} has no capital letter for a top bit that lies out of order")
            letters[word][position] = LETTERS[slot].upper()
    return "|".join("".join(reversed(word)) for word in letters)


def dense_bits(nbits: int, elements: int) -> BitLayout | None:
    """Return the layout of a little-endian bit stream: local element i is bits [i * nbits, (i + 1) * nbits).

    None for more elements than a pattern has letters: the stream is what tensors without a bit layout have.
    """
    words = -(-elements * nbits // WORD)
    if words * WORD != elements * nbits or elements > len(LETTERS):
        return None
    cells = [[divmod(i * nbits + b, WORD) for b in range(nbits)] for i in range(elements)]
    return BitLayout(nbits, WORD, pattern_of(cells, words, WORD))


def whole_unit(nbits: int, lane: int) -> int:
    """Return the fewest words whose lanes hold whole codes."""
    return nbits // gcd(nbits, lane)


_TEXT = re.compile(r'bits\((\d+), (\d+), "([\w|]+)", units=(\d+)(?:, flipped=(0x[0-9a-f]+|\d+))?(, mirrored)?\)')


def parse_bits(text: str) -> BitLayout:
    """Read what `str` wrote."""
    found = _TEXT.fullmatch(text.strip())
    if not found:
        raise LayoutError(
            f"expected a bit layout, got {text!r}", hint='for instance bits(4, 16, "ddddccccbbbbaaaa", units=1)'
        )
    nbits, lane, pattern, units, flipped, mirrored = found.groups()
    return BitLayout(int(nbits), int(lane), pattern, int(units), int(flipped or "0", 0), mirrored is not None)


def bit_table(layout: RegisterLayout, bits: BitLayout) -> Any:
    """Compose a bit layout with a register layout: what tile index, and which bit of it, every position of a block is.

    Parameters
    ----------
    layout : RegisterLayout
        (thread, local) -> index
    bits : BitLayout
        (word, position) -> (local, bit)

    Returns
    -------
    int array [threads, words, 32, rank + 1]
        The index, and then the bit.
    """
    if layout.local_size != bits.num_elements:
        raise LayoutError(f"{layout} has {layout.local_size} elements a thread, {bits} has {bits.num_elements}")
    owners = np.array([[bits(word, position) for position in range(WORD)] for word in range(bits.num_words)])
    index = index_table(layout)[:, owners[..., 0]]
    bit = np.broadcast_to(owners[..., 1:], (*index.shape[:-1], 1))
    return np.concatenate([index, bit], axis=-1)
