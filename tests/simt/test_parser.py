"""Reading PTX: scopes, labels, variables, calls, line information, and errors that name their line."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simt.build import kernel, run
from tilus import simt
from tilus.errors import LaunchError, ParseError, VMError
from tilus.simt.parser import parse
from tilus.simt.syntax import Address, Immediate, Instruction, Negated, Register, Symbol, Vector


def body_of(text: str) -> list[Instruction]:
    module = parse(kernel(text))
    return [x for x in module.functions["kernel"].body if isinstance(x, Instruction)][2:-1]


def test_operands():
    (code,) = body_of("@!%p1 ld.global.v2.b32 {%r1, %r2}, [%rd3+-16];")
    assert code.guard == Negated(Register("%p1", "pred"))
    assert code.operands == (
        Vector((Register("%r1", "b32"), Register("%r2", "b32"))),
        Address(Register("%rd3", "b64"), -16),
    )
    (code,) = body_of("setp.lt.f32 %p1|%p2, %f1, 0f3F800000;")
    assert code.operands[2] == Immediate(0x3F800000, "f32")
    (code,) = body_of("mov.u64 %rd1, buffer+8;")
    assert code.operands[1] == Symbol("buffer", 8)
    (code,) = body_of("mov.f64 %fd1, -1.5;")
    assert np.uint64(code.operands[1].bits).view(np.float64) == -1.5
    assert body_of("mov.b32 %r1, 0xFFU; // comment\n /* and\n another */")[0].operands[1] == Immediate(255)


def test_scopes_have_registers_and_labels_of_their_own():
    out = np.zeros(32, np.uint32)
    scope = "{ .reg .pred p; .reg .b32 t; mov.b32 t, %r0; LOOP: add.u32 t, t, 1; setp.lt.u32 p, t, 40; @p bra LOOP; mov.b32 %r1, t; }"
    run(f"{scope} {scope} shl.b64 %rd1, %rd0, 2; add.s64 %rd1, %rd1, %rd50; st.global.b32 [%rd1], %r1;", [out]).check()
    np.testing.assert_array_equal(out, 40)


def test_variables_of_the_module():
    text = kernel("mov.u64 %rd1, table; ld.const.u32 %r1, [%rd1+4]; ld.global.u64 %rd2, [pointer]; ld.u32 %r2, [%rd2];"
                  "add.u32 %r1, %r1, %r2; st.global.u32 [%rd50], %r1;", ["u64"])  # fmt: skip
    head = ".const .align 4 .b32 table[4] = {1, 20, 3};\n.global .b32 value = 300;\n.global .u64 pointer = generic(value);\n"
    text = text.replace(".visible .entry", head + ".visible .entry")
    out = np.zeros(1, np.uint32)
    simt.run(text, "kernel", [out], 1, 1).check()
    assert out[0] == 320


CALL = """.version 9.0
.target sm_80
.address_size 64
.extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);
.global .align 1 .b8 text[16] = {37, 100, 32, 37, 46, 50, 102, 32, 37, 108, 117, 10};
.func (.param .b32 out) square(.param .b32 x)
{
    .reg .b32 %r<3>;
    ld.param.u32 %r1, [x];
    mul.lo.u32 %r2, %r1, %r1;
    st.param.b32 [out+0], %r2;
    ret;
}
.visible .entry kernel(.param .u64 p)
{
    .local .align 8 .b8 depot[24];
    .reg .b32 %r<9>;
    .reg .b64 %rd<9>;
    .reg .f64 %fd<2>;
    mov.u32 %r1, %tid.x;
    { .param .b32 a; st.param.b32 [a+0], %r1; .param .b32 b; call.uni (b), square, (a); ld.param.b32 %r2, [b+0]; }
    { .param .b32 a; st.param.b32 [a+0], %r2; .param .b32 b; call.uni (b), square, (a); ld.param.b32 %r3, [b+0]; }
    ld.param.u64 %rd1, [p];
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1], %r3;
    mov.u64 %rd3, depot;
    cvta.local.u64 %rd4, %rd3;
    st.local.u32 [%rd3], %r3;
    mov.f64 %fd1, 0d4004000000000000;
    st.local.f64 [%rd3+8], %fd1;
    st.local.u64 [%rd3+16], %rd2;
    mov.u64 %rd5, text;
    cvta.global.u64 %rd6, %rd5;
    { .param .b64 a; st.param.b64 [a+0], %rd6; .param .b64 b; st.param.b64 [b+0], %rd4; .param .b32 c;
      call.uni (c), vprintf, (a, b); ld.param.b32 %r4, [c+0]; }
    ret;
}
"""


def test_calls_and_printing():
    out = np.zeros(4, np.uint32)
    report = simt.run(CALL, "kernel", [out], 1, 4).check()
    np.testing.assert_array_equal(out, np.arange(4) ** 4)
    assert report.printed == [f"{i**4} 2.50 {4 * i}\n" for i in range(4)]


def test_recursion_is_an_error():
    text = CALL.replace(
        "mul.lo.u32 %r2, %r1, %r1;",
        "{ .param .b32 a; st.param.b32 [a+0], %r1; .param .b32 b; call.uni (b), square, (a); }",
    )
    with pytest.raises(VMError, match="recursion"):
        simt.run(text, "kernel", [np.zeros(4, np.uint32)], 1, 4)


def test_tables_of_branches():
    out = np.zeros(32, np.uint32)
    run("""
    rem.u32 %r1, %r0, 3;
    TABLE: .branchtargets A, B, C;
    brx.idx %r1, TABLE;
    A: mov.u32 %r2, 10; bra END;
    B: mov.u32 %r2, 20; bra END;
    C: mov.u32 %r2, 30;
    END: shl.b64 %rd1, %rd0, 2; add.s64 %rd1, %rd1, %rd50; st.global.u32 [%rd1], %r2;
    """, [out]).check()  # fmt: skip
    np.testing.assert_array_equal(out, np.arange(32) % 3 * 10 + 10)


LINES = """
    .loc 1 10 3
    st.global.b32 [%rd50], %r0;
    .loc 1 4 2, function_name $L__info, inlined_at 1 20 5
    st.global.b32 [%rd50], %r0;
    .loc 1 3 1, function_name $L__info, inlined_at 1 4 2
    st.global.b32 [%rd50], %r0;
    .loc 1 0 1
    st.global.b32 [%rd50], %r0;
"""


def test_an_inlined_function_belongs_to_the_line_that_calls_it():
    text = kernel(LINES, ["u64"]) + '\n.file 1 "kernel.cu"\n.section .debug_str { $L__info: .b8 1,2,0 }\n'
    code = [x for x in parse(text).functions["kernel"].body if isinstance(x, Instruction) and x.root == "st"]
    assert [str(x.source) for x in code] == ["kernel.cu:10", "kernel.cu:20", "kernel.cu:20", "None"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("mov.u32 %r1 %r2;", "expected ','"),
        ("mov.u32 %r1, ;", "expected an operand"),
        (".reg .f7 %x;", "unknown type of register .f7"),
        ("mov.u32 %r1, \x01;", "unexpected character"),
        (".frobnicate 3;", "unknown directive"),
    ],
)
def test_texts_that_cannot_be_read(body, message):
    with pytest.raises(ParseError, match=message) as caught:
        parse(kernel(body))
    assert "PTX line" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1], 64;", "unknown instruction"),
        ("add.f8 %r1, %r2, %r3;", "does not know `add.f8`"),
        ("mov.u32 %r1, %nothing;", "unknown register %nothing"),
        ("bra NOWHERE;", "no label"),
        ("add.u64 %rd1, %r1, %rd2;", "is no .u64"),
        ("ld.global.weird.u32 %r1, [%rd1];", "unknown modifier .weird"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r2}, {%f2};", "expected 4, 4, 2 and 4"),
        ("add.u32 %r1, %r2;", "expected 2 operands"),
    ],
)
def test_what_is_not_known_raises_with_its_text_and_line(body, message):
    with pytest.raises(VMError, match=message) as caught:
        run(body)
    assert "PTX line" in str(caught.value)
    assert body.split()[0] in str(caught.value)


def test_arguments_that_do_not_fit():
    text = kernel("", ["u64", "u32"])
    x = np.zeros(4, np.float32)
    for args, message in (([x], "takes 2 arguments"), ([x, "3"], "expected an array, a number or bytes"),
                          ([x, np.float64(1)], "expected 4 bytes"), ([x[::2], 1], "not contiguous")):  # fmt: skip
        with pytest.raises(LaunchError, match=message):
            simt.run(text, "kernel", args, 1, 32)
    with pytest.raises(LaunchError, match="not sm_80"):
        simt.run(text, "kernel", [x, 1], 1, 32, target="sm_80")
    with pytest.raises(LaunchError, match="at most 64 threads"):
        simt.run(kernel("", directives=".maxntid 64, 1, 1\n"), "kernel", [], 1, 128)
    two = kernel("", ["u64", "u64"])
    with pytest.raises(LaunchError, match="overlap"):
        simt.run(two, "kernel", [x[:3], x[1:]], 1, 32)
    simt.run(two, "kernel", [x, x], 1, 32).check()


def test_no_such_kernel():
    with pytest.raises(VMError, match="has no kernel 'other'"):
        simt.run(kernel(""), "other", [], 1, 32)
