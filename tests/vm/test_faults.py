"""Every check of the reference machine is tripped by a program that was made to break it, with these words."""

from __future__ import annotations

import numpy as np
import pytest

from tests.vm.helpers import fault, run_text
from tilus import vm
from tilus.errors import VMError
from tilus.ir.parser import parse

X = np.arange(64, dtype=np.float32)


def program(body: str, params: str = "x: ptr[f32], n: i32", head: str = "") -> str:
    lines = "\n".join(f"  {line.strip()}" for line in body.strip().splitlines())
    return f"program p({params}) {{\n  grid (2,)\n  warps 1\n{head}{lines}\n}}"


GX = "gx: global[f32, 1] = global_view(ptr=x, shape=(n,), strides=(1,))\n"
T = "t: register[f32, (8,)] = full(value=1.0, shape=(8,))\n"
TT = "t: register[f32, (8,), spatial(8)] = full(value=1.0, shape=(8,))\n"  # one element a thread
S = "s: shared[f32, (8,)] = alloc_shared(dtype=f32, shape=(8,))\n"
PUT = "store_shared(dst=s, tile=t, offset=(0,), dims=(0,))\n"
GET = "r: register[f32, (8,)] = load_shared(src=s, offset=(0,), shape=(8,), dims=(0,))\n"
FETCH = (
    "copy_async(dst=s, src=gx, dst_offset=(0,), src_offset=(0,), shape=(8,), dst_dims=(0,), src_dims=(0,))\n"
    "commit_group()\n"
)

FAULTS = {
    "load out of bounds": (
        GX + "r: register[f32, (8,)] = load_global(view=gx, offset=(60,), shape=(8,), dims=(0,), other=0.0)",
        100,
        "p.tilus:5:28: load_global reads element 64 of buffer 'x', which has 64 elements of f32",
    ),
    "store out of bounds": (
        GX + T + "store_global(view=gx, tile=t, offset=(60,), dims=(0,))",
        100,
        "p.tilus:6:3: store_global writes element 64 of buffer 'x', which has 64 elements of f32",
    ),
    "atomic out of bounds": (
        GX.replace("strides=(1,)", "strides=(-1,)") + T + "atomic_add(view=gx, tile=t, offset=(0,), dims=(0,))",
        64,
        "p.tilus:6:3: atomic_add writes element -1 of buffer 'x', which has 64 elements of f32",
    ),
    "element out of bounds": (
        "e: f32 = load_element(ptr=x, index=n)",
        64,
        "p.tilus:4:12: load_element reads element 64 of buffer 'x', which has 64 elements of f32",
    ),
    "shared out of bounds": (
        S + T + PUT.replace("offset=(0,)", "offset=(n,)"),
        1,
        "p.tilus:6:3: store_shared writes index 8 of dimension 0 of 's', which goes from 0 to 7",
    ),
    "shared read out of bounds": (
        S + GET.replace("offset=(0,)", "offset=(n,)"),
        -1,
        "p.tilus:5:28: load_shared reads index -1 of dimension 0 of 's', which goes from 0 to 7",
    ),
    "shared never written": (
        S + GET,
        0,
        "p.tilus:5:28: load_shared reads s[0], which nobody wrote",
    ),
    "shared partly written": (
        S
        + T
        + "u: register[f32, (4,)] = slice(x=t, offset=(0,), shape=(4,))\n"
        + PUT.replace("tile=t", "tile=u")
        + "sync()\n"
        + GET,
        0,
        "p.tilus:9:28: load_shared reads s[4], which nobody wrote",
    ),
    "shared allocated again": (
        T + "for k in range(0, 2, 1) {\n" + S + "if k == 0 {\n" + PUT + "sync()\n}\n" + GET + "sync()\n}",
        0,
        "p.tilus:11:28: load_shared reads s[0], which nobody wrote",
    ),
    "race of unknown threads": (
        S + T + PUT + GET,
        0,
        "p.tilus:7:28: race: another thread reads s[0], which another thread wrote at store_shared (p.tilus:6:3) "
        "since the last sync",
    ),
    "race of known threads": (
        S + TT + PUT + "r: register[f32, (8,), column_spatial(2, 4).reshape(8)] = "
        "load_shared(src=s, offset=(0,), shape=(8,), dims=(0,))",
        0,
        "p.tilus:7:61: race: thread 2 reads s[1], which thread 1 wrote at store_shared (p.tilus:6:3) "
        "since the last sync",
    ),
    "race of replicas": (
        S + TT + PUT + "r: register[f32, (4,), replicated(2) * spatial(4)] = "
        "load_shared(src=s, offset=(4,), shape=(4,), dims=(0,))",
        0,
        "p.tilus:7:56: race: another thread reads s[4], which thread 4 wrote at store_shared (p.tilus:6:3) "
        "since the last sync",
    ),
    "write after read": (
        S + T + PUT + "sync()\n" + GET + PUT,
        0,
        "p.tilus:9:3: race: another thread writes s[0], which another thread read at load_shared (p.tilus:8:28) "
        "since the last sync",
    ),
    "write after reads of several": (
        S + TT + PUT + "sync()\n" + GET.replace("(8,)]", "(8,), spatial(8)]") + "q: register[f32, (8,), "
        "column_spatial(2, 4).reshape(8)] = load_shared(src=s, offset=(0,), shape=(8,), dims=(0,))\n"
        "store_shared(dst=s, tile=q, offset=(0,), dims=(0,))",
        0,
        "p.tilus:10:3: race: thread 2 writes s[1], which another thread read at load_shared (p.tilus:9:61) "
        "since the last sync",
    ),
    "write after write": (
        S + T + PUT + PUT,
        0,
        "p.tilus:7:3: race: another thread writes s[0], which another thread wrote at store_shared (p.tilus:6:3) "
        "since the last sync",
    ),
    "read in flight": (
        GX + S + FETCH + "sync()\n" + GET,
        64,
        "p.tilus:9:28: this reads s[0] while copy_async (p.tilus:6:3) is still in flight",
    ),
    "waited for too few": (
        GX + S + FETCH + "wait_group(pending=1)\nsync()\n" + GET,
        64,
        "p.tilus:10:28: this reads s[0] while copy_async (p.tilus:6:3) is still in flight",
    ),
    "not committed": (
        GX + S + FETCH.replace("commit_group()\n", "") + "wait_group(pending=0)\nsync()\n" + GET,
        64,
        "p.tilus:9:28: this reads s[0] while copy_async (p.tilus:6:3) is still in flight",
    ),
    "written in flight": (
        GX + S + T + FETCH + PUT,
        64,
        "p.tilus:9:3: this writes s[0] while copy_async (p.tilus:7:3) is still in flight",
    ),
    "copied in flight": (
        GX + S + FETCH + FETCH,
        64,
        "p.tilus:8:3: this writes s[0] while copy_async (p.tilus:6:3) is still in flight",
    ),
    "landed but not synchronised": (
        GX + S + FETCH + "wait_group(pending=0)\n" + GET,
        64,
        "p.tilus:9:28: race: another thread reads s[0], which another thread wrote at copy_async (p.tilus:6:3) "
        "since the last sync",
    ),
    "copy over what was just read": (
        GX + S + T + PUT + "sync()\n" + GET + FETCH,
        64,
        "p.tilus:10:3: race: another thread writes s[0], which another thread read at load_shared (p.tilus:9:28) "
        "since the last sync",
    ),
    "hang": (
        "while true {\n}",
        0,
        "p.tilus:4:3: the block has made 1000 turns of its loops: it seems to hang",
    ),
    "assertion": (
        'assert_(cond=n < 3, message="n is small")',
        3,
        "p.tilus:4:3: assertion failed: n is small",
    ),
    "division": ("a: i32 = 7 // n", 0, "p.tilus:4:3: floordiv by zero"),
    "shift": ("a: i32 = 1 << n", 32, "p.tilus:4:3: shl of i32 by 32 bits"),
    "replicas": (
        "t: register[u8, (4,), spatial(4)] = arange(start=0_u8, shape=(4,), dim=0)\n"
        "v: register[u8, (2,), replicated(2) * spatial(2)] = view(x=t, dtype=u8, layout=replicated(2) * spatial(2))",
        0,
        "p.tilus:5:55: replicas disagree: threads 0 and 2 both hold element (0,) of replicated(2, rank=1) * spatial(2), "
        "with different bits",
    ),
    "view without layout": (
        "t: register[u8, (4,)] = full(value=0_u8, shape=(4,))\n"
        "v: register[u4, (8,), spatial(4) * local(2)] = view(x=t, dtype=u4, layout=spatial(4) * local(2))",
        0,
        "p.tilus:5:50: view of 1 threads with 32 bits each as 4 threads with 8",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str) -> None:
    body, n, message = FAULTS[name]
    error = fault(program(body), X.copy(), n, max_turns=1000)
    first, second = str(error).splitlines()[:2]
    assert first == message
    assert second.startswith("    in block (0,): ")


def test_a_fault_shows_the_line_the_block_and_a_hint() -> None:
    error = fault(program(S + T + PUT + GET), X.copy(), 0, blocks=[(1,)])
    assert str(error) == (
        "p.tilus:7:28: race: another thread reads s[0], which another thread wrote at store_shared (p.tilus:6:3) "
        "since the last sync\n"
        "    in block (1,): r: register[f32, (8,)] = load_shared(src=s, offset=(0,), shape=(8,), dims=(0,))\n"
        "      r: register[f32, (8,)] = load_shared(src=s, offset=(0,), shape=(8,), dims=(0,))\n"
        "                               ^\n"
        "hint: put a sync between the two accesses"
    )


ALLOWED = {
    "same thread": S + TT + PUT + GET.replace("(8,)]", "(8,), spatial(8)]") + PUT,
    "synchronised": S + T + PUT + "sync()\n" + GET + "sync()\n" + PUT,
    "two reads": S + T + PUT + "sync()\n" + GET + GET.replace("r:", "q:"),
    "disjoint": S.replace("(8,)", "(16,)") + T + PUT + PUT.replace("(0,), dims", "(8,), dims"),
    "copy waited for": GX + S + FETCH + "wait_group(pending=0)\nsync()\n" + GET,
    "older copy waited for": GX + S + FETCH + "commit_group()\nwait_group(pending=1)\nsync()\n" + GET,
    "never waited for": GX + S + FETCH,
    "each iteration": T + "for k in range(0, 3, 1) {\n" + S + PUT + "sync()\n" + GET + "sync()\n}",
    "replicas that agree": (
        "t: register[u8, (4,), spatial(4)] = full(value=7_u8, shape=(4,))\n"
        "v: register[u8, (2,), replicated(2) * spatial(2)] = view(x=t, dtype=u8, layout=replicated(2) * spatial(2))"
    ),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed(name: str) -> None:
    run_text(program(ALLOWED[name]), X.copy(), 64)


def test_one_thread_races_with_nobody() -> None:
    run_text(program(S + T.replace("(8,)]", "(8,), local(8)]") + PUT + GET, head="  threads 1\n"), X.copy(), 0)


# Planned shared memory: tensors may share bytes, but not at the same time

A = "a: shared[f32, (8,)] = alloc_shared(dtype=f32, shape=(8,), byte_offset=0)\n"
B = "b: shared[f32, (8,)] = alloc_shared(dtype=f32, shape=(8,), byte_offset=16)\n"
PLANNED = "  shared 48\n"


def test_bytes_overwritten_by_another_tensor() -> None:
    put_a, put_b = PUT.replace("dst=s", "dst=a"), PUT.replace("dst=s", "dst=b")
    body = A + B + T + put_a + "sync()\n" + put_b + "sync()\n" + GET.replace("src=s", "src=a")
    error = fault(program(body, head=PLANNED), X.copy(), 0)
    assert error.message.startswith("load_shared reads a[4], which was overwritten by 'b'")


def test_racing_tensors() -> None:
    body = A + B + T + PUT.replace("dst=s", "dst=a") + PUT.replace("dst=s", "dst=b")
    error = fault(program(body, head=PLANNED), X.copy(), 0)
    assert error.message.startswith("race: another thread writes b[0], which another thread wrote at store_shared")


def test_allocation_past_the_plan() -> None:
    error = fault(program(A + B, head="  shared 40\n"), X.copy(), 0)
    assert error.message.startswith("'b' ends at byte 48 of shared memory, the block has 40")


def test_scratch_of_a_conversion() -> None:
    body = (
        A
        + T
        + PUT.replace("dst=s", "dst=a")
        + "sync()\nu: register[f32, (8,), spatial(8)] = convert_layout(x=t, layout=spatial(8))\n"
        + "v: register[f32, (8,), local(8) * replicated(8)] = convert_layout(x=u, layout=local(8) * replicated(8)) "
        + ": shared width=16\n"
        + GET.replace("src=s", "src=a")
    )
    body = body.replace("replicated(8)", "replicated(8, rank=1)")
    error = fault(program(body, head=PLANNED), X.copy(), 0)
    assert error.message.startswith("load_shared reads a[4], which nobody wrote")
    run_text(program(body.replace("width=16", "width=32"), head="  shared 64\n"), X.copy(), 0)
    flying = body.replace(PUT.replace("dst=s", "dst=a"), GX + FETCH.replace("dst=s", "dst=a"))
    error = fault(program(flying, head=PLANNED), X.copy(), 64)
    assert error.message.startswith("the scratch memory of this conversion is the target of a copy in flight")


# Claims of the compiler

LOAD = "r: register[f32, (8,), spatial(2) * local(4)] = load_global(view=gx, offset=(OFF,), shape=(8,), dims=(0,), other=0.0)"
CLAIMS = {
    "unmasked": (
        LOAD.replace("OFF", "4") + " : ld.global unmasked=(0,)",
        8,
        "the access leaves the view in dimension 0, which was proved to need no bounds test",
    ),
    "alignment": (LOAD.replace("OFF", "2") + " : ld.global width=4", 64, "a vector of 4 elements begins at element 2"),
    "mask": (
        LOAD.replace("OFF", "0") + " : ld.global width=4",
        6,
        "a vector of 4 elements lies partly outside of the view",
    ),
    "width": (
        LOAD.replace("OFF", "0") + " : ld.global width=8",
        64,
        "vectors of 8 elements do not divide the 4 elements of a thread",
    ),
    "consecutive": (
        LOAD.replace("OFF", "0").replace("spatial(2) * local(4)", "local(4) * spatial(2)") + " : ld.global width=4",
        64,
        "4 elements that were proved to be consecutive in memory are not",
    ),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims(name: str) -> None:
    line, n, message = CLAIMS[name]
    assert fault(program(GX + line), X.copy(), n).message.splitlines()[0] == message


def test_true_claims() -> None:
    run_text(program(GX + LOAD.replace("OFF", "4") + " : ld.global width=4 unmasked=(0,)"), X.copy(), 12)
    run_text(program(GX + LOAD.replace("OFF", "4") + " : ld.global width=4"), X.copy(), 8)


def test_claims_on_stores_and_shared_memory() -> None:
    tile = "t: register[f32, (8,), spatial(2) * local(4)] = full(value=1.0, shape=(8,))\n"
    body = GX + tile + "store_global(view=gx, tile=t, offset=(1,), dims=(0,)) : st.global width=2"
    assert "begins at element 1" in fault(program(body), X.copy(), 64).message
    body = S.replace("(8,)", "(12,)") + tile + PUT.replace("(0,), dims", "(2,), dims")[:-1] + " : st.shared width=4"
    assert "begins at element 2" in fault(program(body), X.copy(), 64).message


# Registers, arguments, grid


def test_read_before_definition() -> None:
    """The verifier would reject it; the machine does not need the verifier to see it."""
    text = program(
        "if n < 0 {\nt: register[f32, (8,)] = full(value=1.0, shape=(8,))\na: i32 = 1\n}\n"
        "if n < 1 {\nu: register[f32, (8,)] = copy(x=t)\n}\nb: i32 = a"
    )
    with pytest.raises(VMError) as error:
        vm.run(parse(text, "p.tilus"), [X.copy(), 0])
    assert str(error.value).startswith("p.tilus:9:28: register 't' is read before anything was written to it\n")
    with pytest.raises(VMError) as error:
        vm.run(parse(text, "p.tilus"), [X.copy(), 1])
    assert str(error.value).startswith("p.tilus:11:3: variable 'a' is read before anything was written to it\n")


ARGUMENTS = [
    ([X], "p takes 2 arguments, got 1"),
    ([5, 5], "argument 'x' must be a NumPy array of f32, got int"),
    ([X.astype(np.float64), 5], "argument 'x' must be an array of float32 for f32, got float64"),
    ([X.reshape(8, 8).T, 5], "argument 'x' must be contiguous"),
    ([X, X], "argument 'n' must be a number of type i32, got ndarray"),
    ([X, 2**31], "argument 'n' must be a number of type i32, got 2147483648"),
    ([X, 1.5], "argument 'n' must be a number of type i32, got 1.5"),
]


@pytest.mark.parametrize(("args", "message"), ARGUMENTS, ids=[m for _, m in ARGUMENTS])
def test_arguments(args, message: str) -> None:
    assert fault(program("sync()"), *args).message == message


def test_promises() -> None:
    text = program("sync()", "x: ptr[u8] % 16, n: i32 % 8")
    x = np.zeros(64, np.uint8)
    start = -x.__array_interface__["data"][0] % 16
    run_text(text, x[start : start + 16], 8)
    error = fault(text, x[start + 1 : start + 16], 8)
    assert error.message.startswith("argument 'x' must be aligned to 16 bytes, its address is 0x")
    assert fault(text, x[start : start + 16], 12).message == "argument 'n' must be a multiple of 8, got 12"


def test_sub_byte_buffers() -> None:
    text = program("sync()", "x: ptr[u3]")
    run_text(text, np.zeros(3, np.uint8))
    run_text(text, np.zeros(3, np.uint32))
    assert fault(text, X).message == "argument 'x' must be an array of uint8 (a bit stream) for u3, got float32"
    text = program("e: u3 = load_element(ptr=x, index=8)", "x: ptr[u3]")
    assert "element 8 of buffer 'x', which has 8 elements of u3" in fault(text, np.zeros(3, np.uint8)).message
    message = fault(program("sync()", "x: ptr[t1.6]"), np.zeros(3, np.uint8)).message
    assert message == "argument 'x': t1.6 is no bit stream, and cannot be pointed at"


def test_read_only_buffer() -> None:
    x = X.copy()
    x.flags.writeable = False
    body = GX + T + "store_global(view=gx, tile=t, offset=(0,), dims=(0,))"
    assert fault(program(body), x, 8).message.startswith("buffer 'x' is read-only")


def test_grids() -> None:
    text = 'program p(n: i32) {\n  grid (n, 8 // n)\n  warps 1\n  assert_(cond=block_id(0) < 0, message="ran")\n}'
    assert fault(text, 0).message == "the grid of p: floordiv by zero"
    assert fault(text, -1).message == "the grid of p is (-1, -8): extents must not be negative"
    run_text(text, 9)  # 8 // 9 is 0: there are no blocks
    assert fault(text, 4, blocks=[(0, 2)]).message == "there is no block (0, 2) in the grid (4, 2)"
    assert fault(text, 4, blocks=[(1, 1)]).message.splitlines()[1].startswith("    in block (1, 1): ")
