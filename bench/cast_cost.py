"""Claim: unpacking takes less than one logical instruction per element for most types, whatever their width.

Compiles a cast of every type of 1 to 8 bits to f16 and to bf16 and counts in the disassembly: ours to numbers (what
matrix products take: scale and bias are absorbed), ours to values, and the naive sequence, which shifts, masks and
converts element by element. No GPU is needed. Writes `cast_cost.json` and a table to read, `cast_cost.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import missed_targets
from record import RESULTS, write
from rich.console import Console
from rich.progress import track
from sass_counts import weight_types

from tilus.casts import linear
from tilus.dtypes import Codebook, DataType, Float, PackedTernary, dtype
from tilus.kernels.cast_cost import CastCost, cast_cost, count, fill_cost
from tilus.runtime.nvrtc import compile_cuda
from tilus.runtime.sass import disassemble

ELEMENTS = 128  # of each thread; five to a byte, so many and a quarter more
CONVERSIONS = {"f16": "__half_as_ushort(__float2half_rn(x))", "bf16": "__bfloat16_as_ushort(__float2bfloat16_rn(x))"}


def naive(source: DataType, target: DataType, arch: str) -> CastCost:
    """Count what a straightforward kernel takes: one code at a time, by way of f32."""
    elements = ELEMENTS * 5 // 4 if isinstance(source, PackedTernary) else ELEMENTS
    words = elements * source.bits_per_element // 32
    text = f"""
    #include <cuda_fp16.h>
    #include <cuda_bf16.h>
    {_table(source)}
    extern "C" __global__ void cast(const uint4* s, uint4* d) {{
      unsigned w[{words + 1}], out[{elements // 2}];
      uint4* v = reinterpret_cast<uint4*>(w);
      for (int i = 0; i < {words // 4}; ++i) v[i] = s[threadIdx.x * {words // 4} + i];
      #pragma unroll
      for (int i = 0; i < {elements}; ++i) {{
        {_code(source)}
        float x = {_value(source)};
        unsigned half = {CONVERSIONS[target.name]};
        out[i / 2] = i % 2 ? out[i / 2] | half << 16 : half;
      }}
      for (int i = 0; i < {elements // 8}; ++i)
        d[threadIdx.x * {elements // 8} + i] = reinterpret_cast<uint4*>(out)[i];
    }}"""
    return count(disassemble(compile_cuda(text, arch).cubin), elements)


def _code(source: DataType) -> str:
    """Return what takes code i out of the words: other bits may be above it."""
    if isinstance(source, PackedTernary):
        return """const unsigned powers[] = {1, 3, 9, 27, 81};
        unsigned code = (w[i / 20] >> i / 5 % 4 * 8 & 255) / powers[i % 5] % 3;"""
    return f"""int bit = i * {source.nbits}, shift = bit % 32;
        unsigned code = w[bit / 32] >> shift;
        if (shift + {source.nbits} > 32) code |= w[bit / 32 + 1] << (32 - shift);"""


def _table(source: DataType) -> str:
    if not isinstance(source, Codebook) or linear(source):
        return ""
    values = ", ".join(f"{float(v)!r}f" for v in source.table)
    return f"__constant__ float table[] = {{{values}}};"


def _value(source: DataType) -> str:
    """Return the value of a code, above which other bits may be."""
    kind, spare, mask = linear(source), 32 - source.nbits, (1 << source.nbits) - 1
    if source.is_integer and source.is_signed:
        return f"(float)((int)(code << {spare}) >> {spare})"
    if kind is not None:
        return f"(float)(int)(code & {mask}) + {float(kind.offset)!r}f"
    if not isinstance(source, Float):
        return f"table[code & {mask}]"
    m, bias = source.mantissa_bits, source.bias
    fields = f"unsigned e = code >> {m} & {(1 << source.exponent_bits) - 1}, f = code & {(1 << m) - 1};"
    normal = f"__uint_as_float((e + {127 - bias}) << 23 | f << {23 - m})"
    subnormal = f"(float)f * {2.0 ** (1 - bias - m)!r}f"
    return (
        f"[](unsigned code) {{ {fields} float y = e ? {normal} : {subnormal}; "
        f"return code >> {source.nbits - 1} ? -y : y; }}(code & {mask})"
    )


def main() -> None:
    """Compile, count, print, write."""
    options = _options()
    types = weight_types() if options.types is None else [dtype(name) for name in options.types.split(",")]
    jobs = [(s, dtype(t), arch) for s in types for t in CONVERSIONS for arch in options.targets.split(",")]
    console = Console(stderr=True)
    rows = [_row(*job) for job in track(jobs, "compiling", console=console, disable=not sys.stderr.isatty())]
    print("\n".join(_markdown(rows)))
    if not options.no_write:
        write("cast_cost", {"elements": ELEMENTS}, rows, dated=False)
        (RESULTS / "cast_cost.md").write_text("\n".join(_markdown(rows)) + "\n")
        missed_targets.main()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", help="for instance u4,u3 (default: every weight type)")
    parser.add_argument("--targets", default="sm_80,sm_90a", help="(default sm_80,sm_90a)")
    parser.add_argument("--no-write", action="store_true", help="write no result files")
    return parser.parse_args()


def _row(source: DataType, target: DataType, arch: str) -> dict[str, object]:
    ways = {
        "numbers": cast_cost(source, target, arch),
        "values": cast_cost(source, target, arch, numbers=False),
        "naive": naive(source, target, arch),
    }
    row: dict[str, object] = {"type": source.name, "to": target.name, "target": arch}
    for way, cost in ways.items():
        row |= {f"{way}_alu": round(cost.alu, 3), f"{way}_issue": round(cost.issue, 3)}
    return row | {"fill": fill_cost(source, target, arch)}


def _markdown(rows: list[dict[str, object]]) -> Iterator[str]:
    yield "# Casts: instructions per element, counted in machine code\n"
    yield "Written by `python bench/cast_cost.py`. alu: on the pipe of logical operations, permutations and right"
    yield "shifts; all: on every pipe. Numbers are what matrix products take, values what a plain cast gives; naive is"
    yield "one code at a time. fill: instructions of a warp that fill a codebook's table, which each block does once.\n"
    yield "| type | to | target | numbers: alu | all | values: alu | all | naive: alu | all | fill |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        cells = (f"{cell:.2f}" if isinstance(cell, float) else str(cell or "") for cell in row.values())
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
