"""The hot loop of kernels whose loops were counted by hand, and of small graphs made for one property each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.compiled import sass
from tests.runtime.cuda_sources import DOT, GUARDED, PIPELINED, UNROLLED, WGMMA
from tilus.errors import FormatError
from tilus.runtime.control_flow import Block, basic_blocks, dominators, natural_loops, reachable
from tilus.runtime.hot_loop import hot_loop, instructions_per_weight
from tilus.runtime.sass import parse_sass

ALL = ("sm_80", "sm_86", "sm_89", "sm_90a")


def program(text: str, name: str = "f") -> str:
    """Write lines of `label:` and instructions as nvdisasm does."""
    lines, address = [f'\t.section\t.text.{name},"ax",@progbits', f"{name}:"], 0
    for line in text.strip().splitlines():
        line = line.strip()
        if line.endswith(":"):
            lines.append(line)
        else:
            lines.append(f"        /*{address:04x}*/                   {line} ;")
            address += 16
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("arch", ALL)
def test_a_pipelined_loop(arch: str) -> None:
    found = hot_loop(sass(PIPELINED, arch))
    assert found.is_loop
    assert found.count("HMMA") == found.mix["mma"] == 2
    assert found.count("LDSM") == found.mix["lds"] == 2
    assert found.count("LDGSTS") == found.mix["gmem"] == 2
    assert found.mix["sync"] == 3  # BAR.SYNC, LDGDEPBAR, DEPBAR
    assert found.mix["local"] == found.mix["half2"] == found.mix["other"] == 0
    assert found.put_back == 0  # predicated, not branched around
    assert found.instructions[-1].opcode == "BRA"


def test_every_instruction_of_the_loop_is_counted() -> None:
    # Between the loop's label and its branch there are 29 lines, as nvdisasm prints them.
    text = sass(PIPELINED, "sm_80")
    body = text.split(".L_x_1:\n")[1].split("BRA `(.L_x_1)")[0]
    found = hot_loop(text)
    assert len(found.instructions) == body.count("/*")
    # 16 x 16 weights make one fragment, which serves both mma
    assert instructions_per_weight(found, 16 * 16 / 32) == len(found.instructions) / 8


@pytest.mark.parametrize("arch", ALL)
def test_guarded_copies_are_put_back_and_outer_loops_left_out(arch: str) -> None:
    found = hot_loop(sass(GUARDED, arch))
    assert found.is_loop
    assert found.count("HMMA") == 4  # not the 2 of the outer loop
    assert found.count("LDGSTS") == 4
    assert found.count("LDSM") == 2
    assert found.count("STG") == 0
    assert found.count("BAR") == 2  # one of them behind the branch
    assert found.put_back > 4


@pytest.mark.parametrize("arch", ALL)
def test_straight_line_code_counts_whole(arch: str) -> None:
    found = hot_loop(sass(UNROLLED, arch))
    assert not found.is_loop
    assert "in the whole program, which has no hot loop" in str(found)
    assert found.count("HMMA") == 16
    assert found.count("LDSM") == 9
    assert found.count("LDGSTS") == 8
    assert found.count("STG") == 8
    assert found.count("EXIT") == 1
    assert found.instructions[-1].opcode == "EXIT"  # the endless loop and the padding behind it do not count


def test_wgmma_with_bulk_copies_and_a_spinning_wait() -> None:
    found = hot_loop(sass(WGMMA, "sm_90a"))
    assert found.is_loop
    assert found.count("HGMMA") == found.mix["mma"] == 4
    assert found.count("UBLKCP") == found.mix["gmem"] == 1
    waits = [i for i in found.instructions if "TRYWAIT" in i.modifiers]
    assert len(waits) == 1  # the spinning copy of it lies outside the way
    assert found.count("STG") == 0


@pytest.mark.parametrize("arch", ALL)
def test_without_tensor_cores(arch: str) -> None:
    found = hot_loop(sass(DOT, arch))
    assert found.is_loop
    assert found.count("FFMA") == found.mix["fp32"] == 4
    assert found.count("LDG") == 1
    assert found.pipes["fma"] >= 4
    assert "10 instructions in the loop" in str(found)


def test_the_function_with_the_work_is_found() -> None:
    text = program("MOV R1, R2\nEXIT", "idle") + program("HMMA.16816.F32 R4, R2, R3, R4\nEXIT", "busy")
    assert hot_loop(text).function == "busy"
    assert hot_loop(text, "idle").count("MOV") == 1
    with pytest.raises(FormatError, match="no function 'none'"):
        hot_loop(text, "none")


LOOP = """
    MOV R1, R2
    .L_head:
    HMMA.16816.F32 R4, R2, R3, R4
    {middle}
    @P0 BRA `(.L_head)
    EXIT
"""


def trip(middle: str) -> list[str]:
    return [i.opcode for i in hot_loop(program(LOOP.format(middle=middle))).instructions]


def test_of_two_ways_the_cheaper_is_taken() -> None:
    middle = "@P1 BRA `(.L_b)\n FADD R1, R2, R3\n FADD R1, R2, R3\n BRA `(.L_c)\n .L_b:\n FMUL R1, R2, R3\n .L_c:"
    assert trip(middle) == ["HMMA", "BRA", "FMUL", "BRA"]


def test_of_two_ways_the_one_with_more_tensor_work_is_taken() -> None:
    middle = "@P1 BRA `(.L_b)\n FADD R1, R2, R3\n HMMA R1, R2, R3\n BRA `(.L_c)\n .L_b:\n FMUL R1, R2, R3\n .L_c:"
    assert trip(middle) == ["HMMA", "BRA", "FADD", "HMMA", "BRA", "BRA"]


def test_a_guarded_block_without_copies_is_skipped() -> None:
    assert trip("@P1 BRA `(.L_c)\n FADD R1, R2, R3\n .L_c:") == ["HMMA", "BRA", "BRA"]


@pytest.mark.parametrize("copy", ["LDG.E.128 R1, [R2.64]", "LDGSTS.E [R1], [R2.64]", "UBLKCP.S.G [UR1], [UR2], UR3"])
def test_guarded_copies_within_guards_are_put_back(copy: str) -> None:
    found = hot_loop(program(LOOP.format(middle=f"@P1 BRA `(.L_c)\n @P2 BRA `(.L_c)\n {copy}\n .L_c:")))
    assert [i.opcode for i in found.instructions] == ["HMMA", "BRA", "BRA", copy.split(".")[0], "BRA"]
    assert found.put_back == 2


@pytest.mark.parametrize(
    "branch", ["@P1 BRA `(.L_c)", "BRA.U UP0, `(.L_c)", "@!UP1 BRA `(.L_c)", "@P1 BRA.DIV UR4, `(.L_c)"]
)
def test_every_form_of_a_conditional_branch_may_fall_through(branch: str) -> None:
    assert trip(f"{branch}\n LDG.E R1, [R2.64]\n .L_c:") == ["HMMA", "BRA", "LDG", "BRA"]


def test_a_loop_inside_without_tensor_work_is_passed_once() -> None:
    assert trip(".L_wait:\n SYNCS.TRYWAIT P1, [R1], R2\n @!P1 BRA `(.L_wait)") == ["HMMA", "SYNCS", "BRA", "BRA"]


def test_indexed_branches_reach_the_targets_in_their_note() -> None:
    text = program(
        """
        BRX R2 -0x40 (*"BRANCH_TARGETS .L_a,.L_b"*)
        .L_a:
        MOV R1, R2
        EXIT
        .L_b:
        HMMA.16816.F32 R4, R2, R3, R4
        @P0 BRA `(.L_b)
        EXIT
        """
    )
    found = hot_loop(text)
    assert found.is_loop
    assert [i.opcode for i in found.instructions] == ["HMMA", "BRA"]


@pytest.mark.parametrize("weights", [0, -1])
def test_weights_must_be_positive(weights: float) -> None:
    with pytest.raises(FormatError, match="positive number of weights"):
        instructions_per_weight(hot_loop(program("MOV R1, R2\nEXIT")), weights)


def test_basic_blocks_of_a_real_loop() -> None:
    blocks = basic_blocks(parse_sass(sass(PIPELINED, "sm_80"))[0])
    (loop,) = natural_loops(blocks)
    assert loop.blocks == {loop.header} == loop.latches
    assert len(reachable(blocks)) == 4  # before, before the loop, the loop, after


edges = st.integers(2, 8).flatmap(
    lambda n: st.lists(st.frozensets(st.integers(0, n - 1), max_size=3), min_size=n, max_size=n)
)


@given(edges)
def test_dominators_by_removal(successors: list[frozenset[int]]) -> None:
    blocks = tuple(Block((), tuple(sorted(targets))) for targets in successors)
    found = dominators(blocks)
    live = _reach(successors, without=None)
    assert found.keys() == live
    for node in live:
        assert found[node] == {d for d in live if d == node or node not in _reach(successors, without=d)}


@given(edges)
def test_natural_loops_by_definition(successors: list[frozenset[int]]) -> None:
    blocks = tuple(Block((), tuple(sorted(targets))) for targets in successors)
    above = dominators(blocks)
    back = {(u, h) for u in above for h in successors[u] if h in above[u]}
    loops = natural_loops(blocks)
    assert {(u, loop.header) for loop in loops for u in loop.latches} == back
    for loop in loops:
        for node in loop.blocks - {loop.header}:  # the header is on all ways in, and a latch is reached without it
            assert loop.header in above[node]
            assert loop.latches & _reach(successors, without=loop.header, start=node)
        outside = above.keys() - loop.blocks
        assert not any(loop.latches & _reach(successors, without=loop.header, start=node) for node in outside)


def _reach(successors: list[frozenset[int]], without: int | None, start: int = 0) -> set[int]:
    seen: set[int] = set()
    stack = [start]
    while stack:
        node = stack.pop()
        if node != without and node not in seen:
            seen.add(node)
            stack.extend(successors[node])
    return seen
