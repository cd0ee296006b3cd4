"""Bit layouts: a bijection, whatever the pattern; the laws by Hypothesis against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilus.dtypes import dtype
from tilus.errors import LayoutError
from tilus.layouts import BitLayout, bit_table, dense_bits, local, parse_bits, spatial
from tilus.layouts.bits import WORD, pattern_of, whole_unit


@st.composite
def bit_layouts(draw):
    lane = draw(st.sampled_from([8, 16, 32]))
    nbits = draw(st.integers(1, 8))
    words = whole_unit(nbits, lane)
    order = draw(st.permutations([(w, p) for w in range(words) for p in range(lane)]))
    cells = []
    for i in range(0, len(order), nbits):
        *rest, top = order[i : i + nbits]
        own = [*sorted(rest), top]
        cells.append(own if len(cells) < 26 else sorted(own))  # only letters have capitals
    flipped = draw(st.integers(0, (1 << nbits) - 1))
    return BitLayout(nbits, lane, pattern_of(cells, words, lane), draw(st.integers(1, 3)), flipped, draw(st.booleans()))


@given(bit_layouts())
def test_it_is_a_bijection(bits):
    places = {bits.locate(e, b): (e, b) for e in range(bits.num_elements) for b in range(bits.nbits)}
    assert len(places) == bits.num_words * WORD == bits.num_elements * bits.nbits
    assert all(bits(*place) == owner for place, owner in places.items())


@given(bit_layouts(), st.integers(0, 2**32))
def test_packing_puts_every_bit_where_locate_says(bits, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits.nbits, (2, bits.num_elements)).astype(np.uint8)
    words = bits.pack(codes)
    assert words.shape == (2, bits.num_words)
    for e in range(bits.num_elements):
        for b in range(bits.nbits):
            word, place = bits.locate(e, b)
            assert ((words[:, word] >> place) & 1 == ((codes[:, e] ^ bits.inverted(e)) >> b) & 1).all()
    assert (bits.unpack(words) == codes).all()


@given(bit_layouts())
def test_text_is_read_back(bits):
    assert parse_bits(str(bits)) == bits
    assert hash(parse_bits(str(bits))) == hash(bits)


@given(bit_layouts())
def test_runs_are_the_cells_in_order(bits):
    for slot in range(bits.num_slots):
        cells = [(r.word, r.position + i) for r in bits.runs(slot) for i in range(r.size)]
        assert cells == list(bits.cells[slot])


@pytest.mark.parametrize(("name", "count"), [("u1", 32), ("u2", 16), ("u3", 32), ("u4", 8), ("u8", 4), ("u5", 32)])
def test_a_dense_layout_is_the_stream_of_the_type(name, count):
    kind = dtype(name)
    codes = np.random.default_rng(0).integers(0, kind.num_codes, count).astype(np.uint8)
    assert dense_bits(kind.nbits, count).pack(codes).tobytes() == kind.pack(codes).tobytes()


def test_elements_count_through_slots_units_and_lanes():
    bits = parse_bits('bits(4, 16, "ddddccccbbbbaaaa", units=2)')
    assert [bits.locate(e, 0) for e in range(6)] == [(0, 0), (0, 16), (1, 0), (1, 16), (0, 4), (0, 20)]


def test_composed_with_a_register_layout_every_bit_of_a_tile_has_one_place():
    layout = local(1, 4) * spatial(2, 2) * local(1, 2)
    bits = parse_bits('bits(4, 16, "ddddccccbbbbaaaa")'.replace(")", ", units=1)"))
    table = bit_table(layout, bits)
    assert table.shape == (4, 1, 32, 3)
    owners = {tuple(x) for x in table.reshape(-1, 3).tolist()}
    assert owners == {(i, j, b) for i in range(2) for j in range(16) for b in range(4)}
    with pytest.raises(LayoutError, match="4 elements a thread"):
        bit_table(local(1, 2) * spatial(2, 2) * local(1, 2), bits)


def test_show_names_the_element_and_the_bit_at_every_position():
    lines = parse_bits('bits(8, 16, "bbbbbbbbaaaaaaaa", units=1)').show().splitlines()
    assert lines[1].split() == ["w0", *(f"{e}.{b}" for e in (3, 1, 2, 0) for b in range(7, -1, -1))][:1] + [
        f"{e}.{b}" for e in (3, 1, 2, 0) for b in range(7, -1, -1)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('bits(4, 16, "ddddccccbbbbaaa", units=1)', "no pattern of whole 4-bit codes"),
        ('bits(4, 16, "ddddccccbbbbaaab", units=1)', "does not give every slot 4 bits"),
        ('bits(4, 16, "ddddccccbbbbaaaz", units=1)', "has no slot 'z'"),
        ('bits(4, 12, "ccccbbbbaaaa", units=1)', "lanes have 8, 16 or 32 bits"),
        ('bits(4, 16, "ddddccccbbbbaaaa", units=0)', "at least one unit"),
        ('bits(4, 16, "ddddccccbbbbaaaa", units=1, flipped=0x10)', "flipped bits 0x10"),
        ("bits(4)", "expected a bit layout"),
    ],
)
def test_what_is_no_layout_is_refused(text, message):
    with pytest.raises(LayoutError, match=message):
        parse_bits(text)


def test_places_beyond_the_layout_are_refused():
    bits = parse_bits('bits(8, 16, "bbbbbbbbaaaaaaaa", units=1)')
    with pytest.raises(LayoutError, match="no bit 8 of an element 0"):
        bits.locate(0, 8)
    with pytest.raises(LayoutError, match="no bit 0 of a word 1"):
        bits(1, 0)
