"""The language of kernels: from the text of a Python function to a `Program`.

`define` reads a function; `KernelDef.specialize` evaluates its text for some constants. What is known at compile time
(constants, globals, shapes, types, layouts, Python functions of them) Python computes; everything else is written
as IR. So an `if` or `for` over compile-time values is taken or unrolled, and one over run-time values becomes IR:

* `range` and `tilus.range` count in the kernel, `static_range` and tuples are unrolled while it is compiled.
* A name that a run-time loop or branch assigns, and that is read later, is a variable there: it keeps its type.
* `and`, `or` and `x if c else y` evaluate an operand that loads from memory only if Python would.
* Lists and comprehensions are tuples. Only functions decorated with `inline` may be called with run-time values.
* Operands of tiles have one type (see `arithmetic`); numbers take the type of what they meet; `x.to(dtype)` converts.

Every mistake in a kernel is a `LangError` with its line and a caret.

Modules: `source` (text), `liveness`, `values`, `frame` (names), `expressions`, `calls`, `statements`, `variables` (of
loops and branches), `builder` (writes IR), `arithmetic`, `arguments`, and the functions: `control`, `memory`, `tiles`.
"""

from tilus.lang.control import block_id, launch, static_range
from tilus.lang.control import range_ as range
from tilus.lang.define import Constant, KernelDef, Parameter, define, ptr
from tilus.lang.functions import FUNCTIONS
from tilus.lang.grid import cluster_sum, grid_dependency_wait, launch_dependents, prefetch
from tilus.lang.inline import InlineFunction, inline
from tilus.lang.memory import (
    alloc_shared,
    atomic_add,
    commit_group,
    copy_async,
    global_view,
    load_global,
    load_shared,
    store_global,
    store_shared,
    sync,
    wait_group,
)
from tilus.lang.tiles import abs_ as abs
from tilus.lang.tiles import (
    annotate,
    arange,
    cdiv,
    ceil,
    convert_layout,
    cos,
    dot,
    erf,
    exp,
    exp2,
    floor,
    full,
    log,
    log2,
    maximum,
    minimum,
    reshape,
    rsqrt,
    sigmoid,
    sin,
    slice_tile,
    sqrt,
    tanh,
    transpose,
    view,
    where,
    zeros,
)
from tilus.lang.tiles import max_ as max
from tilus.lang.tiles import min_ as min
from tilus.lang.tiles import round_ as round
from tilus.lang.tiles import sum_ as sum

__all__ = [
    "FUNCTIONS",
    "Constant",
    "InlineFunction",
    "KernelDef",
    "Parameter",
    "abs",
    "alloc_shared",
    "annotate",
    "arange",
    "atomic_add",
    "block_id",
    "cdiv",
    "ceil",
    "cluster_sum",
    "commit_group",
    "convert_layout",
    "copy_async",
    "cos",
    "define",
    "dot",
    "erf",
    "exp",
    "exp2",
    "floor",
    "full",
    "global_view",
    "grid_dependency_wait",
    "inline",
    "launch",
    "launch_dependents",
    "load_global",
    "load_shared",
    "log",
    "log2",
    "max",
    "maximum",
    "min",
    "minimum",
    "prefetch",
    "ptr",
    "range",
    "reshape",
    "round",
    "rsqrt",
    "sigmoid",
    "sin",
    "slice_tile",
    "sqrt",
    "static_range",
    "store_global",
    "store_shared",
    "sum",
    "sync",
    "tanh",
    "transpose",
    "view",
    "wait_group",
    "where",
    "zeros",
]
