"""The text of one CUDA source: types, tables, functions, kernel."""

from __future__ import annotations

from dataclasses import dataclass

from tilus.codegen.cuda.context import Context
from tilus.codegen.cuda.printer import Lines
from tilus.errors import Loc

_TYPES = {
    "u8": "unsigned char",
    "u32": "unsigned int",
    "u64": "unsigned long long",
    "i32": "int",
    "i64": "long long",
    "pointer": "u8*",
}


@dataclass(frozen=True, slots=True)
class CudaSource:
    """CUDA C++ of one kernel. It includes no headers.

    Attributes
    ----------
    text : str
    kernel_name : str
    dynamic_shared_bytes : int
        Dynamic shared memory to launch with.
    threads : int
        Threads of a block: the program's, and those of a producer.
    line_map : tuple of (int, Loc)
        Lines (from 1) at which the code for a place of the user's program begins, ascending.
    windows : tuple of (int, int, int)
        Lines at which the code for a statement begins, ascending, and the first byte and the end of the dynamic shared
        memory that it may access: a statement's own tensor, or everything.
    dependent : bool
        Whether the kernel waits for earlier ones itself, so that it may be started before they have ended.
    """

    text: str
    kernel_name: str
    dynamic_shared_bytes: int
    threads: int
    line_map: tuple[tuple[int, Loc], ...]
    windows: tuple[tuple[int, int, int], ...]
    dependent: bool


def prelude(ctx: Context) -> Lines:
    """Return the types, and the tables and functions in use, callees first."""
    lines = Lines()
    for name, meaning in _TYPES.items():
        lines.add(f"using {name} = {meaning};")
    for table in ctx.tables.values():
        lines.table(table)
    for function in ctx.functions.values():
        lines.add("")
        lines.function(function)
    lines.add("")
    return lines


def functions_text(ctx: Context) -> str:
    """Return the prelude as text."""
    return "\n".join(prelude(ctx).lines) + "\n"
