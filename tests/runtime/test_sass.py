"""Reading disassembly: every line of real code, and the table of opcodes."""

from __future__ import annotations

import re

import pytest

from tests.runtime.compiled import ARCHS, binary, sass
from tests.runtime.cuda_sources import DOT, GUARDED, PIPELINED, UNROLLED, WGMMA
from tilus.errors import CompileError, FormatError
from tilus.runtime.opcodes import KINDS, OPCODES
from tilus.runtime.sass import Instruction, disassemble, instruction_mix, parse_sass, pipe_mix

KERNELS = [(source, arch) for arch in ARCHS for source in (PIPELINED, GUARDED, UNROLLED, DOT)] + [(WGMMA, "sm_90a")]


def one(line: str) -> Instruction:
    return parse_sass(f'\t.section\t.text.f,"ax",@progbits\n{line}\n')[0].instructions[0]


@pytest.mark.parametrize(("source", "arch"), KERNELS)
def test_every_instruction_is_read_and_classified(source: str, arch: str) -> None:
    text = sass(source, arch)
    (function,) = parse_sass(text)
    assert function.name == ("dot" if source is DOT else "gemm")
    code = function.instructions
    assert [i.address for i in code] == list(range(0, 16 * len(code), 16))
    assert len(code) == len(re.findall(r"/\*[0-9a-f]{4}\*/", text))
    assert instruction_mix(code)["other"] == 0, [str(i) for i in code if i.klass.kind == "other"]
    assert sum(instruction_mix(code).values()) == sum(pipe_mix(code).values()) == len(code)


@pytest.mark.parametrize(("source", "arch"), KERNELS)
def test_printing_gives_the_disassemblers_text(source: str, arch: str) -> None:
    lines = [line for line in sass(source, arch).splitlines() if re.match(r"\s*/\*[0-9a-f]{4}\*/", line)]
    for line, instruction in zip(lines, parse_sass(sass(source, arch))[0].instructions, strict=True):
        plain = re.sub(r"/\*.*?\*/|\(\*.*?\*\)|`\(|(?<=\d)\)|;", "", line)
        assert re.sub(r"[\s()]", "", plain) == re.sub(r"[\s()]", "", str(instruction))


def test_the_parts_of_an_instruction() -> None:
    found = one("        /*01a0*/              @!P0 LDGSTS.E.BYPASS.128 [R9+0x10], desc[UR6][R2.64] ;")
    assert found == Instruction(0x1A0, "!P0", "LDGSTS", ("E", "BYPASS", "128"), ("[R9+0x10]", "desc[UR6][R2.64]"))
    assert str(found) == "@!P0 LDGSTS.E.BYPASS.128 [R9+0x10], desc[UR6][R2.64]"


@pytest.mark.parametrize(
    ("text", "kind", "pipe"),
    [
        ("HMMA.16816.F32 R4, R20.reuse, R24, R4", "mma", "tensor"),
        ("LDSM.16.M88.4 R20, [R21]", "lds", "lsu"),
        ("STS.128 [R1], R4", "sts", "lsu"),
        ("LOP3.LUT R23, R13, 0xc00, RZ, 0xc0, !PT", "lop3", "alu"),
        ("PRMT R1, R2, 0x5410, R3", "prmt", "alu"),
        ("SHF.L.U32 R12, R18, 0xa, RZ", "shf", "alu"),
        ("HFMA2 R1, R2, R3, -RZ", "half2", "fma"),
        ("HFMA2.MMA R3, -RZ, RZ, 0, 4.76837158203125e-07", "mov", "fma"),
        ("@!PT LDS RZ, [RZ]", "nop", "none"),
        ("IMAD.SHL.U32 R14, R18, 0x400, RZ", "imad", "fma"),
        ("@!UP0 ULOP3.LUT UR5, UR5, 0xc00, URZ, 0xc0, !UPT", "uniform", "uniform"),
        ("LDGDEPBAR", "sync", "adu"),
        ("SOMETHING.NEW R1, R2", "other", "none"),
    ],
)
def test_kinds_and_pipes(text: str, kind: str, pipe: str) -> None:
    found = one(f"        /*0000*/    {text} ;")
    assert (found.klass.kind, found.klass.pipe) == (kind, pipe)


def test_the_mix_has_every_kind() -> None:
    mix = instruction_mix(parse_sass(sass(PIPELINED, "sm_80"))[0].instructions)
    assert tuple(mix) == KINDS
    assert mix["mma"] == 2
    assert mix["lds"] == 2
    assert mix["gmem"] == 3 + 2 + 8  # the prologue's copies, the loop's, the stores of the result
    assert instruction_mix([]) == dict.fromkeys(KINDS, 0)


def test_no_opcode_is_in_two_rows() -> None:
    rows = {id(row): row for row in OPCODES.values()}.values()
    assert sum(len(row.opcodes.split()) for row in rows) == len(OPCODES)


@pytest.mark.parametrize("text", ["", "no code", '\t.section\t.text.f,"ax"\nf:\n'])
def test_text_without_code(text: str) -> None:
    with pytest.raises(FormatError, match="no SASS"):
        parse_sass(text)


def test_a_line_of_another_form_is_an_error() -> None:
    with pytest.raises(FormatError, match="not a SASS instruction: /\\*0010\\*/ 123"):
        one("        /*0010*/ 123 ;")


def test_what_is_no_cubin() -> None:
    with pytest.raises(CompileError, match="nvdisasm rejected the cubin"):
        disassemble(b"nonsense")
    with pytest.raises(CompileError, match="nvdisasm rejected the cubin"):
        disassemble(binary(PIPELINED, "sm_80").cubin[:500])
