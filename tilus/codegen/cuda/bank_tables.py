"""Codes of a codebook to 16-bit floats by a table in shared memory, of which every bank has a copy of its own.

A lane looks up in its bank only, so that any 32 codes are looked up without a conflict. An entry holds two elements
where a pair of codes fits a byte. A kernel fills its tables once, before anything else; they are for casts of many
elements, as a loop over weights does them. Finding the entry takes a shift and a mask, and the address is the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilus.casts import linear
from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.cast_tables import table_codes
from tilus.codegen.cuda.context import Context, layout_of, register
from tilus.codegen.cuda.cpp import Expr, Name, Stmt
from tilus.codegen.cuda.values import identifier
from tilus.codegen.cuda.words import window, words_of
from tilus.dtypes import Codebook, DataType
from tilus.ir.expr import Tensor

BANKS = 32
_BANK_SHIFT = 7  # bytes of a row, an entry for every bank
_FEWEST = 16  # elements of a thread that are worth a table
_RESERVE = 16 * 1024  # bytes left for the scratch space of other instructions


@dataclass(frozen=True, slots=True)
class BankTable:
    """A table in the making: its entries, and the name of its shared address."""

    name: Name
    entries: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Shared memory that all copies take."""
        return len(self.entries) << _BANK_SHIFT


def suits(ctx: Context, out: Tensor, x: Tensor) -> bool:
    """Whether a cast is done by such a table."""
    source, target, count = register(x).dtype, register(out).dtype, layout_of(out).local_size
    if not isinstance(source, Codebook) or linear(source) is not None or target.name not in ("f16", "bf16"):
        return False
    rows = 1 << (source.nbits * _per_entry(source))
    taken = sum(table.nbytes for table in ctx.bank_tables.values()) + (rows << _BANK_SHIFT)
    room = ctx.target.max_shared_bytes - ctx.scratch_offset - _RESERVE
    return count >= _FEWEST and count % 2 == 0 and taken <= room


def _per_entry(source: DataType) -> int:
    return 2 if 2 * source.nbits <= 8 else 1


def cast(ctx: Context, out: Tensor, x: Tensor) -> None:
    """Look up all elements of a tile."""
    source, target = register(x).dtype, register(out).dtype
    table, array, words, to = _table(ctx, source, target), ctx.name(x), words_of(register(x)), ctx.name(out)
    bits = source.nbits * _per_entry(source)
    count = layout_of(out).local_size
    with ctx.block():
        found = ctx.array("entry", count // _per_entry(source))
        bank = ctx.constant("u32", "bank", (Name("tid") % BANKS) * 4)
        for i in range(count // _per_entry(source)):
            # The table's start is a constant that the load adds.
            place = ctx.ptx("and_or", *_row(array, words, i * bits, bits), bank)
            ctx.do("ld_shared_b32", found + i, table.name + place)
        for word in range(count // 2):
            pair = found[word] if _per_entry(source) == 2 else found[2 * word] | (found[2 * word + 1] << 16)
            ctx.emit(cpp.Set(to[word], pair))


def _row(array: Name, words: int, start: int, bits: int) -> tuple[Expr, Expr]:
    """Return a word, and the mask of it, that is where the row of the codes at a bit of the stream begins."""
    mask = cpp.bits(((1 << bits) - 1) << _BANK_SHIFT)
    if start % 32 < _BANK_SHIFT and start % 32 + bits <= 32:
        return array[start // 32] << (_BANK_SHIFT - start % 32), mask
    return window(array, words, start - _BANK_SHIFT, bits + _BANK_SHIFT), mask


def _table(ctx: Context, source: DataType, target: DataType) -> BankTable:
    name = f"banks_{identifier(source)}_{identifier(target)}"
    if name not in ctx.bank_tables:
        codes = table_codes(source, target)
        entries = [low | high << 16 for high in codes for low in codes] if _per_entry(source) == 2 else codes
        ctx.bank_tables[name] = BankTable(Name(ctx.names.reserve(name)), tuple(entries))
        ctx.add_table(cpp.Table("u32", f"table_{name}", tuple(entries)))
    return ctx.bank_tables[name]


def fill(ctx: Context, start: int) -> list[Stmt]:
    """Return the statements that place the tables in shared memory from a byte on and fill them."""
    statements: list[Stmt] = []
    for key, table in ctx.bank_tables.items():
        statements.append(cpp.Declare("u32", table.name.text, Name("smem") + start, constant=True))
        i, start = Name("i"), start + table.nbytes
        store = cpp.Do(ctx.ptx("st_shared_b32", table.name + i * 4, Name(f"table_{key}") + i // BANKS))
        statements.append(
            cpp.For("u32", "i", Name("tid"), cpp.Int(len(table.entries) * BANKS), ctx.block_threads, (store,))
        )
    return [*statements, cpp.Do(cpp.call("__syncthreads"))] if statements else []


def nbytes(ctx: Context) -> int:
    """Return the shared memory that all tables take."""
    return sum(table.nbytes for table in ctx.bank_tables.values())
