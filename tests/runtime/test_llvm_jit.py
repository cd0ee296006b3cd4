import ctypes
import gc
import math
import platform
import threading

import numpy as np
import pytest

from tests.runtime.cpu_kernels import VECTOR_ADD, fault_record, kernel, slots
from tilus.errors import CompileError
from tilus.runtime.cpu_features import Cpu, host_cpu
from tilus.runtime.llvm_jit import assembly, compile_object, load_library, load_object

X86 = platform.machine().lower() in ("x86_64", "amd64")
# The least CPU of this architecture: on x86 it has no instructions for f16.
BASELINE = Cpu("x86-64") if X86 else Cpu("generic")

SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)


def run(loaded, args, blocks=1):
    SIGNATURE(loaded.address)(args, 0, blocks, None, fault_record())


def one_to_one(call, source="float", target="float", declare=""):
    """Return a kernel that maps n elements (args: x, out, n) by one line, from %a to %c."""
    return f"""
{declare}
define void @map(ptr %args, i64 %first, i64 %last, ptr %scratch, ptr %fault) {{
entry:
  %x = load ptr, ptr %args
  %out.at = getelementptr ptr, ptr %args, i64 1
  %out = load ptr, ptr %out.at
  %n.at = getelementptr i64, ptr %args, i64 2
  %n = load i64, ptr %n.at
  br label %body
body:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %x.i = getelementptr {source}, ptr %x, i64 %i
  %a = load {source}, ptr %x.i
  {call}
  %out.i = getelementptr {target}, ptr %out, i64 %i
  store {target} %c, ptr %out.i
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %body, label %done
done:
  ret void
}}
"""


def mapped(text, x, dtype, cpu=None):
    out = np.zeros(x.shape, dtype)
    run(load_object(compile_object(text, cpu=cpu), "map"), slots(x, out, x.size))
    return out


@pytest.mark.parametrize("opt", [0, 1, 2, 3])
@pytest.mark.parametrize("cpu", [None, BASELINE], ids=["host", "baseline"])
def test_a_kernel_is_right_at_every_level(opt, cpu):
    rng = np.random.default_rng(opt)
    x, y, out = rng.normal(size=(3, 1003)).astype(np.float32)
    loaded = load_object(compile_object(VECTOR_ADD, opt, cpu), "vector_add")
    run(loaded, slots(x, y, out, 1000, 100), blocks=11)
    np.testing.assert_array_equal(out[:1000], (x + y)[:1000])
    assert (out[1000:] != (x + y)[1000:]).all()


def test_objects_are_bytes_that_load_again_and_again():
    obj = compile_object(VECTOR_ADD)
    assert type(obj) is bytes
    assert obj == compile_object(VECTOR_ADD)
    x = np.arange(64, dtype=np.float32)
    for _ in range(3):
        out = np.zeros(64, np.float32)
        run(load_object(obj, "vector_add"), slots(x, x, out, 64, 64))
        np.testing.assert_array_equal(out, 2 * x)
        gc.collect()


def test_kernels_of_one_name_stay_apart():
    texts = [one_to_one(f"%c = fadd float %a, {number}.0") for number in range(1, 5)]
    kernels = [load_object(compile_object(text), "map") for text in texts]
    assert len({k.address for k in kernels}) == 4
    for number, loaded in enumerate(kernels, 1):
        x, out = np.arange(9, dtype=np.float32), np.zeros(9, np.float32)
        run(loaded, slots(x, out, 9))
        np.testing.assert_array_equal(out, x + number)


def test_several_symbols_of_one_object():
    library = load_library(
        compile_object(VECTOR_ADD + VECTOR_ADD.replace("@vector_add", "@twin")), ["twin", "vector_add"]
    )
    assert len(set(library.addresses.values())) == 2


def test_many_threads_compile_and_load():
    failures = []

    def work(number):
        try:
            for step in range(3):
                x = np.arange(50, dtype=np.float32)
                out = mapped(one_to_one(f"%c = fmul float %a, {number * 10 + step}.0"), x, np.float32)
                np.testing.assert_array_equal(out, x * (number * 10 + step))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("name", ["exp", "log", "sin", "tanh", "erf"])
@pytest.mark.parametrize("type_", ["float", "double"])
def test_the_math_library_is_found(name, type_):
    symbol, dtype = (name + "f", np.float32) if type_ == "float" else (name, np.float64)
    x = np.linspace(0.1, 3, 7).astype(dtype)
    text = one_to_one(f"%c = call {type_} @{symbol}({type_} %a)", type_, type_, f"declare {type_} @{symbol}({type_})")
    expected = [getattr(math, name)(float(v)) for v in x]
    np.testing.assert_allclose(mapped(text, x, dtype), expected, rtol=4 * np.finfo(dtype).eps)


def test_memory_functions_are_found():
    declare = "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)"
    text = one_to_one(
        "call void @llvm.memset.p0.i64(ptr %out, i8 3, i64 %n, i1 false)\n  %c = add i8 %a, 0", "i8", "i8", declare
    )
    out = mapped(text, np.full(5000, 9, np.uint8), np.uint8)
    # Every step sets all to 3 and then its own element to 9.
    assert out.tolist() == [3] * 4999 + [9]


def same_codes(got, expected):
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.uint16)[~nan], expected.view(np.uint16)[~nan])


@pytest.mark.parametrize("cpu", [None, BASELINE], ids=["host", "baseline"])
def test_every_half_widens_exactly(cpu):
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    got = mapped(one_to_one("%c = fpext half %a to float", "half", "float"), x, np.float32, cpu)
    nan = np.isnan(x)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.uint32)[~nan], x.astype(np.float32).view(np.uint32)[~nan])


def borders_of_halves(dtype):
    """Every half, the midpoint to its neighbour, and the numbers just below and above both."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(dtype)
    middles = (halves[1:] + halves[:-1]) / 2
    points = np.concatenate([halves, middles, [65519, 65520, 65521, 1e30, np.inf, np.nan]]).astype(dtype)
    points = np.concatenate([points, np.nextafter(points, dtype(0)), np.nextafter(points, dtype(np.inf))])
    return np.concatenate([points, -points])


@pytest.mark.parametrize("cpu", [None, BASELINE], ids=["host", "baseline"])
@pytest.mark.parametrize(("type_", "dtype"), [("float", np.float32), ("double", np.float64)])
def test_narrowing_to_half_rounds_once_to_even(type_, dtype, cpu):
    x = borders_of_halves(dtype)
    got = mapped(one_to_one(f"%c = fptrunc {type_} %a to half", type_, "half"), x, np.float16, cpu)
    with np.errstate(over="ignore", invalid="ignore"):
        same_codes(got, x.astype(np.float16))


def test_assembly_is_that_of_the_asked_cpu():
    text = assembly(VECTOR_ADD)
    assert "vector_add" in text
    if X86:
        assert "addps" in text
        assert "%ymm" not in assembly(VECTOR_ADD, cpu=BASELINE)
        assert "%ymm" in assembly(VECTOR_ADD, cpu=Cpu("haswell", "+avx2"))
    else:
        assert "fadd" in text


def test_constant_data_lies_within_reach():
    """Tables are in another section than the code that reads them."""
    table = ", ".join(f"i32 {n * n}" for n in range(1000))
    text = f"@table = internal constant [1000 x i32] [{table}]\n" + one_to_one(
        "%p = getelementptr i32, ptr @table, i32 %a\n  %c = load i32, ptr %p", "i32", "i32"
    )
    x = np.arange(1000, dtype=np.int32)
    np.testing.assert_array_equal(mapped(text, x, np.int32), x * x)


def test_a_syntax_error_shows_its_line():
    with pytest.raises(CompileError) as caught:
        compile_object("define void @f() {\n  %x = add i32 1, %nothing\n  ret void\n}\n")
    assert str(caught.value) == (
        "<llvm ir>:2:19: LLVM rejects the IR: use of undefined value '%nothing'\n"
        "      %x = add i32 1, %nothing\n"
        "                      ^"
    )


def test_a_broken_rule_shows_its_line():
    text = "define i32 @f(i32 %a) {\n  %y = add i32 %x, 1\n  %x = add i32 %a, 1\n  ret i32 %y\n}\n"
    with pytest.raises(CompileError, match="Instruction does not dominate all uses") as caught:
        assembly(text)
    assert caught.value.loc.line in (2, 3)


def test_the_garbage_of_an_error_does_no_harm():
    """The collector finalises what a traceback holds in any order; LLVM allows one order only."""
    text = VECTOR_ADD.replace("%end = select", "%end2 = add i64 %i, 1\n  %end = select")

    def fail():
        # A cycle that outlives the call: the error, its traceback, this frame, `caught`, the error.
        with pytest.raises(CompileError, match="does not dominate") as caught:
            compile_object(text)
        assert caught.value.loc

    gc.collect()
    gc.freeze()  # what was there before: a heap with torch takes a second each time
    try:
        for _ in range(20):
            fail()
            gc.collect()
    finally:
        gc.unfreeze()


def test_an_unknown_level_is_refused():
    with pytest.raises(CompileError, match="the optimisation level is 0, 1, 2 or 3, got 4"):
        compile_object(VECTOR_ADD, opt=4)


@pytest.mark.parametrize("damage", [lambda o: b"", lambda o: o[:100], lambda o: o[:-50], lambda o: b"hello" + o])
def test_a_damaged_object_is_refused(damage):
    with pytest.raises(CompileError, match="could not load vector_add"):
        load_object(damage(compile_object(VECTOR_ADD)), "vector_add")


def test_an_absent_symbol_is_named():
    with pytest.raises(CompileError, match=r"could not load other: Symbols not found: .* other "):
        load_object(compile_object(VECTOR_ADD), "other")


def test_a_function_that_the_process_lacks_is_an_error(capfd):
    text = one_to_one("%c = call float @no_such_function(float %a)", declare="declare float @no_such_function(float)")
    with pytest.raises(CompileError, match="could not load map"):
        load_object(compile_object(text), "map")
    assert "no_such_function" in capfd.readouterr().err
    # The JIT goes on working.
    assert kernel(VECTOR_ADD).address


def test_the_host_has_a_name():
    assert host_cpu().name
