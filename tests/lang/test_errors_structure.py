"""Wrong programs: control flow, names and signatures. Every message is checked whole, with its line and caret."""

from __future__ import annotations

import pytest

CASES = {
    "if on a tile": (
        """\
if tile > 0.0:
    i = i + 1""",
        """\
k.py:6:8: the condition of `if` must be one boolean for the whole block, got a tile of bool with shape (1, 128)
        if tile > 0.0:
           ^
hint: choose element by element with where(condition, a, b)""",
    ),
    "if on an integer": (
        """\
if n:
    z = 1""",
        """\
k.py:6:8: the condition of `if` must be boolean, got a run-time i32
        if n:
           ^
hint: compare it: x != 0""",
    ),
    "type changes in a loop": (
        """\
acc = zeros((1, BN), f32)
for j in range(n):
    acc = tile
store_global(gx, acc, offset=(i, 0))""",
        """\
k.py:8:9: 'acc' is a tile of f32 with shape (1, 128) before the loop or branch (line 6), and becomes a tile of f16 with shape (1, 128) in it
            acc = tile
            ^
hint: keep its type, for instance with .to(f32), or use another name inside""",
    ),
    "number begins as an integer": (
        """\
total = 0
for j in range(n):
    total = total + y[j]
print(total)""",
        """\
k.py:8:9: 'total' is a run-time i32 before the loop or branch (line 6), and becomes a run-time f32 in it
            total = total + y[j]
            ^
hint: give it the same type before: a float begins as 0.0, not 0; or use another name""",
    ),
    "assigned in one branch only": (
        """\
if n > 3:
    z = 1
print(z)""",
        """\
k.py:8:11: 'z' is not assigned on every path through the `if` in line 6
        print(z)
              ^
hint: assign it before the `if`, or in both branches""",
    ),
    "assigned in a loop only": (
        """\
for j in range(n):
    z = y[j]
print(z)""",
        """\
k.py:8:11: 'z' is assigned only inside the loop in line 6, which may not run
        print(z)
              ^
hint: give it a value before the loop""",
    ),
    "loop variable after the loop": (
        """\
for j in range(n):
    sync()
print(j)""",
        """\
k.py:8:11: 'j' is the variable of the loop in line 6 and has no value after it
        print(j)
              ^
hint: assign it to another name in the loop""",
    ),
    "branches disagree": (
        """\
if n > 3:
    z = tile
else:
    z = tile.to(f32)
print(z)""",
        """\
k.py:10:11: 'z' has no single value after the `if` in line 6 (line 7 and line 9): it is a tile of f16 with shape (1, 128) or a tile of f32 with shape (1, 128)
        print(z)
              ^
hint: give it one type, or use different names""",
    ),
    "view changes in a loop": (
        """\
for j in range(n):
    tile = load_global(gx, offset=(j, 0), shape=(1, BN))
    gx = global_view(x, shape=(BN, n))""",
        """\
k.py:8:9: 'gx' is a 2-dimensional global view of f16 before the loop or branch (line 4), and becomes another one in it
            gx = global_view(x, shape=(BN, n))
            ^
hint: use another name inside, or unroll the loop with static_range""",
    ),
    "used before assignment": (
        """\
print(later)
later = 3""",
        """\
k.py:6:11: 'later' is used before it is assigned
        print(later)
              ^""",
    ),
    "break out of an unrolled loop": (
        """\
for j in static_range(4):
    if n > j:
        break""",
        """\
k.py:8:13: break under a run-time condition cannot leave a loop that is unrolled at compile time
                break
                ^
hint: use range(...), or put the rest of the body under the opposite condition""",
    ),
    "return in a branch": (
        """\
if n > 3:
    return
store_global(gx, tile, offset=(i, 0))""",
        """\
k.py:7:9: return stands inside a loop or branch that is decided at run time
            return
            ^
hint: put the rest of the body under the opposite condition, or leave a loop with break""",
    ),
    "return of a value": (
        "return tile",
        """\
k.py:6:12: a kernel returns nothing
        return tile
               ^
hint: pass an output pointer and write to it with store_global""",
    ),
    "element assignment": (
        "tile[0:1, 0:4] = 0.0",
        """\
k.py:6:5: elements cannot be assigned
        tile[0:1, 0:4] = 0.0
        ^
hint: store tiles with store_global or store_shared; where(...) changes parts of a tile""",
    ),
    "lambda": (
        "f = lambda t: t + 1",
        """\
k.py:6:9: kernels have no lambdas
        f = lambda t: t + 1
            ^
hint: define a function at module level; with @tilus.inline it may take run-time values""",
    ),
    "try statement": (
        """\
try:
    z = 1
except ValueError:
    z = 2""",
        """\
k.py:6:5: kernels have no try statements
        try:
        ^
hint: check conditions with if, or stop the kernel with assert""",
    ),
    "inner function": (
        """\
def helper(t):
    return t + 1""",
        """\
k.py:6:5: kernels have no inner functions
        def helper(t):
        ^
hint: define it at module level, decorated with @tilus.inline""",
    ),
    "Python function of a run-time value": (
        "z = len(str(n)) + divmod(n, 2)[0]",
        """\
k.py:6:13: str is a Python function: it runs while the kernel is compiled and cannot take a run-time i32
        z = len(str(n)) + divmod(n, 2)[0]
                ^
hint: decorate it with @tilus.inline, or call it with compile-time values""",
    ),
    "constant expression fails": (
        "z = (1, 2)[BN]",
        """\
k.py:6:9: IndexError: tuple index out of range
        z = (1, 2)[BN]
            ^
hint: this is computed while the kernel is compiled""",
    ),
    "compile-time assertion": (
        'assert BN % 256 == 0, "BN must be a multiple of 256"',
        """\
k.py:6:5: BN must be a multiple of 256
        assert BN % 256 == 0, "BN must be a multiple of 256"
        ^
hint: this assertion is checked while the kernel is compiled""",
    ),
    "launch twice": (
        "launch(blocks=1)",
        """\
k.py:6:5: launch is called a second time
        launch(blocks=1)
        ^
hint: a kernel calls it once, as its first statement""",
    ),
    "launch in a branch": (
        """\
def k(n: i32):
    if n > 3:
        launch(blocks=n)""",
        """\
k.py:3:9: launch stands inside a loop or branch
            launch(blocks=n)
            ^
hint: call it once, as the first statement of the kernel""",
    ),
    "no launch": (
        """\
def k(x: ptr[f16], n: i32):
    i = n + 1""",
        """\
k.py:1:1: kernel 'k' never calls launch
    def k(x: ptr[f16], n: i32):
    ^
hint: begin it with launch(blocks=..., warps=4)""",
    ),
    "launch after instructions": (
        """\
def k(x: ptr[i32], n: i32):
    first = x[0]
    launch(blocks=first)""",
        """\
k.py:3:5: launch comes after other instructions
        launch(blocks=first)
        ^
hint: make it the first statement of the kernel""",
    ),
    "grid depends on block": (
        """\
def k(x: ptr[i32], n: i32):
    launch(blocks=(n, block_id(0)))""",
        """\
k.py:2:19: the grid cannot depend on a block index
        launch(blocks=(n, block_id(0)))
                      ^
hint: use parameters and constants only""",
    ),
    "axis outside the grid": (
        "z = block_id(1)",
        """\
k.py:6:18: there is no axis 1 in a grid of 1
        z = block_id(1)
                     ^
hint: give launch(blocks=...) more extents""",
    ),
    "runtime warps": (
        """\
def k(x: ptr[i32], n: i32):
    launch(blocks=n, warps=n)""",
        """\
k.py:2:28: warps must be a compile-time integer, got a run-time i32
        launch(blocks=n, warps=n)
                               ^
hint: make it a keyword-only parameter of the kernel""",
    ),
    "no annotation": (
        """\
def k(x, n: i32):
    launch(blocks=n)""",
        """\
k.py:1:7: parameter 'x' has no annotation
    def k(x, n: i32):
          ^
hint: annotate it with ptr[f16] or a scalar type such as i32; compile-time constants stand after *""",
    ),
    "annotation is no type": (
        """\
def k(x: "list", n: i32):
    launch(blocks=n)""",
        """\
k.py:1:7: the annotation of 'x' is no type of a parameter: <class 'list'>
    def k(x: "list", n: i32):
          ^
hint: annotate x with ptr[f16] or a scalar type such as i32""",
    ),
    "annotation undefined": (
        """\
def k(x: "ptr[T]", n: i32):
    launch(blocks=n)""",
        """\
k.py:1:7: the annotation of 'x' cannot be evaluated: name 'T' is not defined
    def k(x: "ptr[T]", n: i32):
          ^
hint: it may name globals and keyword-only parameters""",
    ),
    "default of a runtime parameter": (
        """\
def k(n: i32 = 4):
    launch(blocks=n)""",
        """\
k.py:1:16: a run-time parameter has no default
    def k(n: i32 = 4):
                   ^
hint: put constants after *""",
    ),
    "star parameters": (
        """\
def k(n: i32, *args):
    launch(blocks=n)""",
        """\
k.py:1:16: a kernel has no * parameters, got 'args'
    def k(n: i32, *args):
                   ^
hint: name every parameter""",
    ),
    "missing constant": (
        """\
def k(n: i32, *, BN: int):
    launch(blocks=n)""",
        """\
k.py:1:18: kernel 'k' needs a value for the constant 'BN'
    def k(n: i32, *, BN: int):
                     ^
hint: pass BN=...""",
    ),
    "endless loop": (
        """\
while True:
    sync()""",
        """\
k.py:6:11: this loop never ends
        while True:
              ^
hint: leave it with break, or let its condition depend on what the loop changes""",
    ),
    "step of zero": (
        """\
for j in range(0, n, 0):
    sync()""",
        """\
k.py:6:26: the step of a loop must not be 0
        for j in range(0, n, 0):
                             ^""",
    ),
    "run-time step": (
        """\
for j in range(0, 100, n):
    sync()""",
        """\
k.py:6:28: step must be a compile-time integer, got a run-time i32
        for j in range(0, 100, n):
                               ^
hint: make it a keyword-only parameter of the kernel""",
    ),
    "loop over a tile": (
        """\
for row in tile:
    print(row)""",
        """\
k.py:6:16: cannot loop over a tile of f16 with shape (1, 128)
        for row in tile:
                   ^
hint: loop over range(...), static_range(...) or a tuple""",
    ),
    "tuple of wrong length": (
        "a, b, c = tile.shape",
        """\
k.py:6:5: cannot unpack 2 values into 3 names
        a, b, c = tile.shape
        ^""",
    ),
    "chained and of tiles": (
        "z = tile > 0.0 and tile < 1.0",
        """\
k.py:6:9: the operand of `and` must be one boolean for the whole block, got a tile of bool with shape (1, 128)
        z = tile > 0.0 and tile < 1.0
            ^
hint: choose element by element with where(condition, a, b)""",
    ),
    "no effect": (
        "tile + 1.0",
        """\
k.py:6:5: this expression has no effect
        tile + 1.0
        ^
hint: assign it to a name, or leave it out""",
    ),
    "format spec of run-time value": (
        'print(f"{n:04d}")',
        """\
k.py:6:14: a run-time value is printed without a format
        print(f"{n:04d}")
                 ^
hint: write {x} instead of {x:...} or {x!r}""",
    ),
    "annotated name of another type": (
        "z: f16 = n",
        """\
k.py:6:14: the annotation says f16, the value is a run-time i32
        z: f16 = n
                 ^
hint: convert it with .to(f16)""",
    ),
    "number that its annotation refuses": (
        "z: int = 2.5",
        """\
k.py:6:14: the value must be int, got 2.5, a float
        z: int = 2.5
                 ^""",
    ),
    "flag annotated as a number": (
        "z: float = True",
        """\
k.py:6:16: the value must be float, got True, a bool
        z: float = True
                   ^""",
    ),
    "run-time value that its annotation refuses": (
        "z: float = n",
        """\
k.py:6:16: the annotation says float, the value is a run-time i32
        z: float = n
                   ^
hint: convert it with .to(...), or annotate it with its own type""",
    ),
    "comprehension over a run-time range": (
        "z = [n for j in range(n)]",
        """\
k.py:6:21: a comprehension runs over compile-time values, got a range with run-time bounds
        z = [n for j in range(n)]
                        ^
hint: write a for loop""",
    ),
}


@pytest.mark.parametrize(("body", "expected"), CASES.values(), ids=CASES)
def test_message(message, body: str, expected: str) -> None:
    assert message(body) == expected
