"""What a cast costs in machine code: one warp unpacks codes and stores them, and its instructions are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilus.casts import best_unpacking
from tilus.dtypes import DataType, PackedTernary, bf16, dtype, f16, u32
from tilus.ir.builder import Builder
from tilus.ir.expr import const
from tilus.ir.instructions import Cast, GlobalView, LoadGlobal, StoreGlobal, Unpack, View
from tilus.ir.program import Program
from tilus.ir.target import target as find_target
from tilus.kernels.programs.ternary_cast import ternary_cast
from tilus.layouts import BitLayout, local, spatial
from tilus.runtime.compiled import CompiledKernel
from tilus.runtime.sass import Instruction, parse_sass
from tilus.runtime.weights.trits import TritPack

_LANES, _VECTOR = 32, 4  # threads, words of a 16-byte access
TRITS = TritPack(dtype("t1.6"), spatial(_LANES, 1) * local(1, 2 * _VECTOR), _VECTOR)  # what `ternary_cast` takes here


@dataclass(frozen=True, slots=True)
class CastCost:
    """Instructions per element of a cast, for one thread.

    Attributes
    ----------
    alu : float
        On the pipe of logical operations, permutations and right shifts: the narrow one.
    fma : float
        On the pipe of multiply-adds, which does left shifts too.
    other : float
        On all other pipes: conversions, loads from tables.
    """

    alu: float
    fma: float
    other: float

    @property
    def issue(self) -> float:
        """All of them."""
        return self.alu + self.fma + self.other


def cast_cost(source: DataType, target: DataType, arch: str, *, numbers: bool = True) -> CastCost:
    """Compile a cast for a GPU and count.

    Parameters
    ----------
    source, target : DataType
    arch : str
        `sm_80` and so on.
    numbers : bool
        To the numbers that products take (see `tilus.casts.forms`), if the table has a form; else to values.
    """
    if isinstance(source, PackedTernary):
        kernel = ternary_cast.compile(target=arch, CT=target, PACK=TRITS, VALUES=not numbers)
        return count(kernel.sass, TRITS.tile[1])
    program, _, elements = cast_program(source, target, numbers)
    return count(CompiledKernel(program, find_target(arch)).sass, elements)


def fill_cost(source: DataType, target: DataType, arch: str) -> int:
    """Return how many instructions of a warp fill the table of a codebook, as each block does once; 0 without one.

    The loop is unrolled by the compiler: each store counts for its share of all that stands before the barrier.
    """
    if isinstance(source, PackedTernary):
        return 0
    kernel = CompiledKernel(cast_program(source, target, numbers=False)[0], find_target(arch))
    before, _ = _parts(kernel.sass)
    stores = sum(instruction.opcode == "STS" for instruction in before)
    return round(len(before) / stores * kernel.resources.dynamic_shared / (4 * _LANES)) if stores else 0


def count(sass: str, elements: int) -> CastCost:
    """Return the cost of the one function in disassembled code that converts so many elements in each thread.

    What stands before a barrier fills a table, and does not count.
    """
    pipes = {"alu": 0, "fma": 0, "other": 0}
    for instruction in filter(_works, _parts(sass)[1]):
        pipe = instruction.klass.pipe
        pipes[pipe if pipe in pipes else "other"] += 1
    return CastCost(**{pipe: number / elements for pipe, number in pipes.items()})


def _parts(sass: str) -> tuple[Sequence[Instruction], Sequence[Instruction]]:
    """Return the instructions of a function before its last barrier, and those behind it."""
    [function] = parse_sass(sass)
    code = function.instructions
    begin = max((i for i, instruction in enumerate(code, 1) if instruction.opcode == "BAR"), default=0)
    return code[:begin], code[begin:]


def _works(instruction: Instruction) -> bool:
    """Whether an instruction converts; addresses are 64 bits wide, and constants do not count in a loop."""
    kind, text = instruction.klass.kind, ".".join((instruction.opcode, *instruction.modifiers))
    if kind == "imad":
        return text == "IMAD" or text.startswith(("IMAD.SHL", "IMAD.U32", "IMAD.IADD", "IMAD.HI"))
    if kind == "iadd":
        return "IADD" in text and ".X" not in text
    if text.startswith("LDC"):  # parameters are read so too: a table has an index
        return any("[R" in operand for operand in instruction.operands)
    return kind in ("lop3", "prmt", "shf", "half2", "fp32") or text.startswith(("LDG.E.U", "I2F", "LDS"))


def cast_program(source: DataType, target: DataType, numbers: bool) -> tuple[Program, BitLayout | None, int]:
    """Return a program in which each lane of a warp unpacks a few words, where its codes lie, and how many they are.

    Codes lie as is best for the target, else as weights for f16 or bf16 do; those of a codebook are a stream. Arguments
    are the words, uint32 [32, words], and the results, [32, codes].
    """
    own = best_unpacking(source, target)
    best = own or next(filter(None, (best_unpacking(source, half) for half in (f16, bf16))), None)
    words = _VECTOR * (best.bits.unit_words if best else source.nbits)
    elements = words * 32 // source.nbits
    bits = best.bits.repeated(_VECTOR) if best else None
    b = Builder("cast_cost")
    x, y = b.pointer("x", u32, 16), b.pointer("y", target, 16)
    rows = const(_LANES)
    gx = b.inst(GlobalView(x, (rows, const(words)), (const(words), const(1))))
    gy = b.inst(GlobalView(y, (rows, const(elements)), (const(elements), const(1))))
    packed = b.inst(
        LoadGlobal(gx, (const(0), const(0)), (_LANES, words), (0, 1)), layout=spatial(_LANES, 1) * local(1, words)
    )
    layout = spatial(_LANES, 1) * local(1, elements)
    if own and bits and numbers:
        tile = b.inst(Unpack(packed, source, target, layout, bits, own.form.name, own.positions))
    else:
        tile = b.inst(Cast(b.inst(View(packed, source, layout, bits)), target))
    b.inst(StoreGlobal(gy, tile, (const(0), const(0)), (0, 1)))
    return b.program(grid=(const(1),), warps=1), bits, elements
