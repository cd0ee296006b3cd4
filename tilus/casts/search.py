"""Which bit layout unpacks a type with the fewest instructions: a search, whose result is the table in `layouts.txt`.

A word holds as many whole codes as fit. Their places are drawn at random, and improved word by word as long as the
instructions become fewer. Bits that are left over in the words of a unit make the remaining codes, in pieces.
A float's magnitude and sign may lie as far apart as in the target, so that one shift brings both to their places; or
two shifts do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from random import Random

from tilus.casts.forms import Form, forms
from tilus.casts.unpack import HALF, Unpacking, unpack
from tilus.dtypes import DataType
from tilus.layouts.bits import BitLayout, Cell, pattern_of, whole_unit

SEED = 2

Slot = tuple[int, ...]  # positions in a lane of a code's bits
Arrangement = tuple[Slot, ...]  # the whole codes of a word


def search(source: DataType, target: DataType, trials: int = 800) -> Unpacking | None:
    """Return the cheapest way found to unpack a type, None if the target cannot spell it.

    Parameters
    ----------
    source : DataType
        Of 1 to 8 bits.
    target : DataType
    trials : int
        Layouts tried for each form; the same number finds the same layout.
    """
    found = (_in_order(_search_form(form, trials)) for form in forms(source, target))
    return min(found, key=lambda u: u.cost, default=None)


def _in_order(unpacking: Unpacking) -> Unpacking:
    """Name the slots so that those of one position are neighbours: a part of K then has fewer constants."""
    bits, positions = unpacking.bits, unpacking.positions
    order = sorted(range(bits.num_slots), key=lambda slot: positions[slot])
    pattern = pattern_of([list(bits.cells[slot]) for slot in order], bits.unit_words, bits.lane)
    renamed = unpack(replace(bits, pattern=pattern), unpacking.form)
    return renamed if renamed.cost <= unpacking.cost else unpacking


def _search_form(form: Form, trials: int) -> Unpacking:
    rng, words = Random(SEED), whole_unit(form.source.nbits, form.lane)
    draw = _Drawer(form, rng)
    state = [draw()] * words
    best = _evaluate(form, state)
    for trial in range(trials):
        changed = list(state)
        places = range(words) if trial % 4 == 0 else [rng.randrange(words)]
        new = draw()
        for word in places:
            changed[word] = new
        candidate = _evaluate(form, changed)
        if candidate.cost <= best.cost:
            state, best = changed, candidate
    return best


def _evaluate(form: Form, words: Sequence[Arrangement]) -> Unpacking:
    """Return how a unit is unpacked whose words hold these whole codes, and pieces of others in the cells between."""
    whole: list[list[Cell]] = [[(word, place) for place in slot] for word, slots in enumerate(words) for slot in slots]
    used = {cell for slot in whole for cell in slot}
    spare = [(w, p) for w in range(len(words)) for p in range(form.lane) if (w, p) not in used]
    n = form.source.nbits
    pieces = [spare[i : i + n] for i in range(0, len(spare), n)]
    pattern = pattern_of(whole + pieces, len(words), form.lane)
    mirrored = form.raised and form.lane == HALF  # every other lane is turned where sums would lose what is raised
    return unpack(BitLayout(n, form.lane, pattern, flipped=form.flipped, mirrored=mirrored), form)


# --- places in a word -----------------------------------------------------------------------------------------------


class _Drawer:
    """Draws arrangements of a word."""

    def __init__(self, form: Form, rng: Random) -> None:
        self.form, self.rng = form, rng
        self.count = form.lane // form.source.nbits
        signed = form.magnitude < form.source.nbits
        self.joint = self.within(_joint(form)) if signed else []
        self.split = self.within(_split(form)) if signed else []

    def within(self, slots: Iterable[Slot]) -> list[Slot]:
        """Leave out what no lane holds, or two bits would share."""
        unique = dict.fromkeys(slots)
        return [slot for slot in unique if len(set(slot)) == len(slot) and set(slot) <= set(range(self.form.lane))]

    def __call__(self) -> Arrangement:
        while True:
            found = self.runs() if not self.joint else self.magnitudes_and_signs()
            if found is not None:
                return found

    def runs(self) -> Arrangement | None:
        """Place whole codes around the lane, with the spare bits in between; None if more than a top bit wraps."""
        n, lane = self.form.source.nbits, self.form.lane
        gaps = sorted(self.rng.randrange(self.count + 1) for _ in range(lane % n))
        turn = self.rng.randrange(lane)
        starts = [turn + n * i + sum(gap <= i for gap in gaps) for i in range(self.count)]
        slots = tuple(tuple(place % lane for place in range(start, start + n)) for start in starts)
        return slots if all(list(slot[:-1]) == sorted(slot[:-1]) for slot in slots) else None

    def magnitudes_and_signs(self) -> Arrangement | None:
        """Place some codes as in the target, in one piece or in two, and of others the signs where there is room.

        None if there is none.
        """
        slots: list[Slot] = []
        free = set(range(self.form.lane))
        for pieces in (self.joint, self.split):
            wanted = len(slots) + self.rng.randrange(self.count - len(slots) + 1)
            while len(slots) < wanted and (fitting := [slot for slot in pieces if free.issuperset(slot)]):
                slots.append(self.rng.choice(fitting))
                free.difference_update(slots[-1])
        runs: list[range] = []
        while len(slots) + len(runs) < self.count:
            size = self.form.magnitude + self.rng.randrange(2)  # alone, or below its sign
            starts = [a for a in range(self.form.lane) if free.issuperset(range(a, a + size))]
            if not starts:
                return None
            start = self.rng.choice(starts)
            run = range(start, start + size)
            free.difference_update(run)
            if size > self.form.magnitude:
                slots.append(tuple(run))
            else:
                runs.append(run)
        signs = self.rng.sample(sorted(free), len(runs)) if len(free) >= len(runs) else None
        return None if signs is None else (*slots, *((*run, s) for run, s in zip(runs, signs, strict=True)))


def _moved(form: Form, *shifts: int) -> Slot:
    """Return from where so many bits to the left of each bit of a code is its destination."""
    [position] = form.positions
    to = (form.destination(bit, position) for bit in range(form.source.nbits))
    return tuple(place - shift for place, shift in zip(to, shifts, strict=True) if place is not None)


def _joint(form: Form) -> Iterator[Slot]:
    """Yield the places of a code that one shift brings to its destination."""
    for shift in range(-form.lane, form.lane):
        yield _moved(form, *[shift] * form.source.nbits)


def _split(form: Form) -> Iterator[Slot]:
    """Yield the places of a code that two shifts bring to its destination: lower bits by one, upper bits by the other.

    Bits of a magnitude ascend, so the upper ones go less far to the left. The sign goes with either.
    """
    for low, high in product(range(-form.lane, form.lane), repeat=2):
        for cut in range(1, form.magnitude + 1) if high < low else ():
            magnitude = [low] * cut + [high] * (form.magnitude - cut)
            yield from (_moved(form, *magnitude, sign) for sign in (low, high))
