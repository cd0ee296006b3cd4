"""The text of generated code: golden files for small programs, the printer's rules, and what the machine code holds."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.codegen.cuda.compare import lowered
from tests.conftest import Golden
from tests.passes.programs import chained, matmul, quantized, softmax, vector_add
from tilus.codegen.cuda import cpp, ptx
from tilus.codegen.cuda.cpp import Call, Conditional, Convert, Int, Name
from tilus.codegen.cuda.printer import Lines, expr_text, string_literal
from tilus.dtypes import bf16, f16
from tilus.layouts import column_local, local, spatial
from tilus.runtime.nvrtc import compile_cuda
from tilus.runtime.sass import disassemble, parse_sass

FRAGMENT = local(1, 4) * spatial(4, 1) * column_local(2, 2) * spatial(8, 4) * local(1, 2)
PROGRAMS = {
    "vector_add": (vector_add(16, tile=512), "sm_80"),
    "softmax": (softmax(rows=4), "sm_80"),
    "matmul": (matmul(), "sm_80"),
    "quantized": (quantized(spatial(128) * local(16), FRAGMENT), "sm_90a"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str, golden: Golden) -> None:
    golden.check(lowered(*PROGRAMS[name])[1].text)


def opcodes(program, arch: str) -> Counter[str]:
    cubin = compile_cuda(lowered(program, arch)[1].text, arch).cubin
    (function,) = parse_sass(disassemble(cubin))
    return Counter(".".join((i.opcode, *i.modifiers)) for i in function.instructions)


def count(found: Counter[str], *parts: str) -> int:
    return sum(n for name, n in found.items() if all(p in name.split(".") for p in parts))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_wide_accesses(arch: str) -> None:
    found = opcodes(vector_add(16, tile=512), arch)
    assert count(found, "LDG", "128") == 2
    assert count(found, "STG", "128") == 1
    assert count(found, "LDG") == 2


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("dtype", [f16, bf16], ids=str)
def test_tensor_cores_and_their_loads(dtype, arch: str) -> None:
    """64x64x32 by 4 warps: 32x32x32 each, 2 x 4 x 2 products of 16x8x16, 2 + 2 loads of four matrices for k = 16."""
    found = opcodes(matmul(dtype=dtype), arch)
    assert count(found, "HMMA", "16816", "F32") % 16 == 0
    assert count(found, "HMMA") >= 16
    assert count(found, "LDSM", "4") >= 8
    assert count(found, "LDSM", "MT88", "4") >= 4
    assert count(found, "LDGSTS", "128") >= 4
    assert count(found, "LDL") + count(found, "STL") == 0


def test_products_that_follow_one_another_stay_in_registers() -> None:
    found = opcodes(chained(64), "sm_80")
    assert count(found, "HMMA") == 64
    assert count(found, "LDL") + count(found, "STL") == 0


def test_weights_are_unpacked_by_permutation_logic_and_multiply_add() -> None:
    """u4 in plain order: for each pair of weights one PRMT, one LOP3, one HFMA2."""
    found = opcodes(quantized(spatial(128) * local(16), FRAGMENT), "sm_80")
    pairs = 16
    assert count(found, "PRMT") == pairs
    assert count(found, "HFMA2") <= pairs + 1
    assert count(found, "LOP3") <= pairs + 12


# --- the printer ----------------------------------------------------------------------------------------------------

A, B, C = Name("a"), Name("b"), Name("c")


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (A + B * C, "a + b * c"),
        ((A + B) * C, "(a + b) * c"),
        (cpp.binary("-", A, cpp.binary("-", B, C)), "a - (b - c)"),
        ((A & B) | C, "(a & b) | c"),
        (A | B | C, "a | b | c"),
        ((A >> 3) & 7, "(a >> 3) & 7"),
        (cpp.binary("<", A + B, C & 3), "a + b < (c & 3)"),
        (Convert("i64", A + B) * 4, "(i64)(a + b) * 4"),
        (Convert("u32", A[3]), "(u32)a[3]"),
        (Conditional(cpp.binary("<", A, B), A, Conditional(C, A, B)), "a < b ? a : (c ? a : b)"),
        (Conditional(A, B, C) + 1, "(a ? b : c) + 1"),
        (cpp.Unary("~", A & B), "~(a & b)"),
        (cpp.Unary("-", cpp.Unary("-", A)), "-(-a)"),
        (Call("f", (A + 1, B)), "f(a + 1, b)"),
        (A + 3 + 4, "a + 7"),
        (A * 1 + 0, "a"),
        (A * 0, "0"),
        (cpp.total([2, A, Int(3), B]), "a + b + 5"),
        (cpp.bits(0xF0), "0xf0u"),
        (Int(-(1 << 31)), "(-2147483647 - 1)"),
        (Int(1 << 31), "2147483648u"),
        (Int(1 << 40), "1099511627776ll"),
        (Int((1 << 64) - 1), "18446744073709551615ull"),
        (A + -2, "a + -2"),
        (cpp.float_literal(0.1), "0.10000000149011612f"),
        (cpp.float_literal(float("-inf")), "__uint_as_float(0xff800000u)"),
        (cpp.float_literal(-0.0), "__uint_as_float(0x80000000u)"),
        (cpp.all_of([cpp.TRUE, A, A, B]), "a && b"),
        (cpp.all_of([A, cpp.FALSE]), "false"),
    ],
)
def test_expressions(expr, text: str) -> None:
    assert expr_text(expr) == text


def test_string_literals() -> None:
    assert string_literal('a"b\\c\nd\t?é') == '"a\\"b\\\\c\\nd\\t?\\303\\251"'


def test_statements() -> None:
    lines = Lines()
    body = (cpp.Set(A, B), cpp.If(A, (cpp.Jump("break"),), (cpp.Jump("continue"),)))
    lines.body(
        [
            cpp.Declare("u32", "t", extent=4),
            cpp.For("i32", "i", Int(9), A, -1, body, unroll=True),
            cpp.While(A, body[:1]),
        ],
        0,
    )
    assert lines.lines == [
        "u32 t[4];",
        "#pragma unroll",
        "for (i32 i = 9; i > a; --i) {",
        "  a = b;",
        "  if (a) {",
        "    break;",
        "  } else {",
        "    continue;",
        "  }",
        "}",
        "while (a) {",
        "  a = b;",
        "}",
    ]


def test_every_row_of_the_table_is_a_legal_instruction() -> None:
    """One function for each row, called by a kernel for the newest generation, through NVRTC and ptxas."""
    lines = Lines()
    lines.lines += [
        "using u32 = unsigned int;",
        "using u64 = unsigned long long;",
        "using i32 = int;",
        "using i64 = long long;",
    ]
    calls = []
    for row in (*ptx.TABLE.values(), ptx.wait_group(2)):
        assert row.section
        lines.function(ptx.device_function(row))
        args = [
            f"s + {i}"
            if x.count
            else {"const void*": "p", "void*": "p", "bool": "s[0] < 3"}.get(x.type, f"({x.type})s[{i}]")
            for i, x in enumerate(row.inputs)
        ]
        if row.output is not None and row.output.count:
            calls.append(f"{row.function}({', '.join(['d', *args])});")
        elif row.output is not None:
            calls.append(f"d[0] += (u32){row.function}({', '.join(args)});")
        else:
            calls.append(f"{row.function}({', '.join(args)});")
    text = "\n".join([*lines.lines, 'extern "C" __global__ void all(u32* q, void* p, u32 n) {', "u32 d[8], s[8];",
                      "for (int i = 0; i < 8; ++i) { s[i] = q[n + i]; d[i] = q[n + 8 + i]; }", *calls,
                      "for (int i = 0; i < 8; ++i) q[i] = d[i] + s[i];", "}"])  # fmt: skip
    assert compile_cuda(text, "sm_90a").cubin
    old = [c for c, row in zip(calls, (*ptx.TABLE.values(), ptx.wait_group(2)), strict=True) if row.capability <= 80]
    assert len(old) < len(calls)
    assert compile_cuda(text.replace("\n".join(calls), "\n".join(old)), "sm_80").cubin
