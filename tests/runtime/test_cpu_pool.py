import ctypes
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.cpu_kernels import TRACE, VECTOR_ADD, Trace, fault_record, kernel, slots
from tilus.errors import LaunchError
from tilus.runtime import cpu_pool
from tilus.runtime.cpu_features import llvm
from tilus.runtime.cpu_pool import Pool, default_threads, launch
from tilus.runtime.cpu_pool_ir import pool_ir
from tilus.runtime.llvm_jit import compile_object, load_library

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(params=[1, 2, 3, 5])
def pool(request):
    pool = Pool(request.param)
    yield pool
    pool.close()


@pytest.fixture
def two():
    pool = Pool(2)
    yield pool
    pool.close()


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("blocks", [1, 2, 3, 17, 64, 1000])
def test_vector_add_is_exact(pool, blocks, size):
    n = blocks * size - size // 2  # the last block is not full
    rng = np.random.default_rng(blocks)
    x, y = rng.normal(size=(2, n)).astype(np.float32)
    out = np.full(n + 64, -1, np.float32)
    fault = fault_record()
    for _ in range(3):
        out[:n] = -1
        pool.launch(kernel(VECTOR_ADD), slots(x, y, out, n, size), blocks, 0, fault)
        np.testing.assert_array_equal(out[:n], x + y)
    np.testing.assert_array_equal(out[n:], -1)


@pytest.mark.parametrize("blocks", [1, 2, 5, 31, 32, 33, 640, 10007])
def test_each_block_runs_once(pool, blocks):
    Trace(blocks).run(pool.launch).assert_each_block_ran_once()


def test_thousands_of_launches(pool):
    trace = Trace(7)
    for _ in range(4000):
        trace.run(pool.launch)
    np.testing.assert_array_equal(trace.counts, 4000)


def test_launches_of_a_kernel_with_unknown_cost_are_always_shared(pool):
    """An address tells nothing of earlier launches: every job goes through the whole protocol."""
    trace = Trace(6)
    address = kernel(TRACE).address
    for _ in range(4000):
        pool.launch(address, trace.args, 6, 8, trace.fault)
    np.testing.assert_array_equal(trace.counts, 4000)


def test_workers_wake_from_sleep(pool):
    for _ in range(40):
        time.sleep(0.002)  # they spin for 30 microseconds only
        Trace(50, steps=300).run(pool.launch).assert_each_block_ran_once()


def test_sleeping_workers_are_woken(two):
    Trace(2).run(two.launch)
    for _ in range(50):
        time.sleep(0.005)
        trace = Trace(64, steps=200_000).run(two.launch)
        if len(set(trace.addresses)) == 2:
            break
    assert len(set(trace.addresses)) == 2


def test_a_cheap_kernel_may_become_expensive(two):
    """What looked small is begun alone, and handed over on the way."""
    for steps in (1, 1, 20_000, 1, 20_000):
        Trace(64, steps).run(two.launch).assert_each_block_ran_once()


def test_blocks_run_at_the_same_time_each_with_its_own_scratch(two):
    for _ in range(50):  # on a busy machine a worker may come too late
        trace = Trace(64, steps=200_000).run(two.launch, scratch_bytes=1000)
        trace.assert_each_block_ran_once()
        places = np.unique(trace.addresses)
        if len(places) == 2:
            break
    assert len(places) == 2
    assert places[1] - places[0] >= 1000


@pytest.mark.parametrize("size", [0, 8, 64, 1000, 1 << 20])
def test_scratch_is_as_large_as_asked(two, size):
    text = """
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
define void @fill(ptr %args, i64 %first, i64 %last, ptr %scratch, ptr %fault) {
  %size = load i64, ptr %args
  call void @llvm.memset.p0.i64(ptr %scratch, i8 -1, i64 %size, i1 false)
  %count.at = getelementptr i64, ptr %args, i64 1
  %count = load ptr, ptr %count.at
  %blocks = sub i64 %last, %first
  atomicrmw add ptr %count, i64 %blocks monotonic
  ret void
}
"""
    count = np.zeros(1, np.int64)
    for blocks in (1, 2, 100):
        two.launch(kernel(text), slots(size, count), blocks, size, fault_record())
    assert count[0] == 103


def test_one_block_starts_no_worker():
    pool = Pool(4)
    Trace(1, steps=1000).run(pool.launch).assert_each_block_ran_once()
    assert not pool._workers
    Trace(3).run(pool.launch).assert_each_block_ran_once()
    assert len(pool._workers) == 2  # with the caller as many as there are blocks
    Trace(30).run(pool.launch).assert_each_block_ran_once()
    assert len(pool._workers) == 3
    pool.close()


def test_fewer_threads_than_workers(two):
    Trace(50).run(two.launch)
    two.threads = 1
    trace = Trace(64, steps=100_000).run(two.launch)
    trace.assert_each_block_ran_once()
    assert len(set(trace.addresses)) == 1


def test_a_fault_is_recorded_and_ends_the_job(pool):
    trace = Trace(10_000, steps=200, bad=40).run(pool.launch)
    assert trace.fault[0] == 7
    assert 40 <= trace.fault[1] < 10_000
    assert trace.counts[:40].all()
    assert trace.counts.max() == 1
    assert trace.counts[41:].sum() <= pool.threads  # whoever had begun on other blocks by then
    Trace(100).run(pool.launch).assert_each_block_ran_once()


def test_a_fault_without_a_record_is_an_error():
    trace = Trace(100, bad=100 - 1)
    with pytest.raises(LaunchError, match="block 99 failed with code 7"):
        launch(kernel(TRACE), trace.args, 100, 8)
    launch(kernel(TRACE), Trace(100).args, 100, 8)


def test_launch_on_the_pool_of_the_process():
    Trace(1000).run(launch).assert_each_block_ran_once()
    launch(kernel(TRACE), b"", 0)
    for blocks, size in [(-1, 0), (1, -1)]:
        with pytest.raises(LaunchError, match=f"got {blocks} blocks, {size} bytes"):
            launch(kernel(TRACE), b"", blocks, size)


def test_four_threads_launch_at_once(pool):
    failures = []

    def work(number):
        try:
            for step in range(300):
                blocks = 1 + (7 * number + step) % 40
                Trace(blocks, steps=1 + step % 50).run(pool.launch, 64 * number).assert_each_block_ran_once()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_idle_workers_sleep(pool):
    Trace(100, steps=1000).run(pool.launch)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_a_closed_pool_runs_on_its_caller(pool):
    Trace(100).run(pool.launch)
    workers = list(pool._workers)
    pool.close()
    assert not any(thread.is_alive() for thread in workers)
    trace = Trace(64, steps=10_000).run(pool.launch)
    trace.assert_each_block_ran_once()
    assert len(set(trace.addresses)) == 1
    pool.close()


def test_a_system_without_more_threads(monkeypatch):
    pool = Pool(5)
    Trace(2).run(pool.launch)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    Trace(100).run(pool.launch).assert_each_block_ran_once()
    assert len(pool._workers) == 1
    pool.close()


# Subnormals off: bits 15 (FTZ) and 6 (DAZ) of MXCSR, bit 24 (FZ) of FPCR.
FLUSH = {"x86_64": 0x1F80 | 0x8040, "aarch64": 1 << 24}.get(platform.machine(), 0)


def test_subnormals_count_whatever_the_caller_has_set(two):
    """`torch.set_flush_denormal(True)` makes a thread, and those it starts, lose what kernels rely on."""
    text = (
        pool_ir(platform.machine(), None)
        + """
define i64 @set(i64 %mode) {
  %old = call i64 @set_floats(i64 %mode)
  ret i64 %old
}
"""
    )
    library = load_library(compile_object(text), ["set"])
    set_floats = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(library.addresses["set"])
    n = 1 << 20
    x = np.full(n, 1e-40, np.float32)
    results = []
    before = set_floats(FLUSH)
    try:
        for blocks in (1, *[64] * 20):
            out = np.zeros(n, np.float32)
            two.launch(kernel(VECTOR_ADD), slots(x, x, out, n, n // blocks), blocks, 0, fault_record())
            results.append(out)
    finally:
        left = set_floats(before)
    assert left & ~0x3F == FLUSH  # given back to the caller as it was (the low bits are flags of what happened)
    assert (x[:1] + x[:1]).all()
    for out in results:
        np.testing.assert_array_equal(out, x + x)


def test_number_of_threads(monkeypatch, tmp_path):
    monkeypatch.setenv("TILUS_NUM_THREADS", "3")
    assert default_threads() == 3
    for text in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv("TILUS_NUM_THREADS", text)
        with pytest.raises(LaunchError, match=f"TILUS_NUM_THREADS must be a whole number from 1 on, got '{text}'"):
            default_threads()
    monkeypatch.setenv("TILUS_NUM_THREADS", "")
    assert 1 <= default_threads() <= (os.cpu_count() or 1)
    for text, cpus in [("150000 100000\n", 2), ("100000 100000\n", 1), ("max 100000\n", 1 << 30), ("", 1 << 30)]:
        (tmp_path / "cpu.max").write_text(text)
        assert cpu_pool._quota(tmp_path / "cpu.max") == cpus
    assert cpu_pool._quota(tmp_path / "absent") == 1 << 30


def test_set_number_of_threads():
    before = cpu_pool.num_threads()
    try:
        cpu_pool.set_num_threads(3)
        assert cpu_pool.num_threads() == 3
        Trace(500).run(launch).assert_each_block_ran_once()
        with pytest.raises(LaunchError, match="the number of threads must be a whole number from 1 on, got 0"):
            cpu_pool.set_num_threads(0)
    finally:
        cpu_pool.set_num_threads(before)


@pytest.mark.parametrize(
    ("machine", "triple", "word"),
    [
        ("x86_64", "x86_64-unknown-linux-gnu", "pause"),
        ("AMD64", "x86_64-unknown-linux-gnu", "stmxcsr"),
        ("aarch64", "aarch64-unknown-linux-gnu", "yield"),
        ("arm64", "arm64-apple-darwin", "fpcr"),
        ("riscv64", "riscv64-unknown-linux-gnu", "pthread_cond_wait"),
    ],
)
@pytest.mark.parametrize("clock", [1, None])
def test_the_pool_compiles_for_other_machines(machine, triple, word, clock):
    binding = llvm()
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = binding.parse_assembly(pool_ir(machine, clock), context=binding.create_context())
    module.verify()
    compiler = binding.Target.from_triple(triple).create_target_machine(opt=2)
    module.triple, module.data_layout = triple, str(compiler.target_data)
    text = compiler.emit_assembly(module)
    if clock is not None:
        assert word in text.lower()
    assert "run_alone" in text


SCRIPT = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore")
from tests.runtime.cpu_kernels import Trace
from tilus.runtime import cpu_pool
from tilus.runtime.cpu_pool import launch
cpu_pool.set_num_threads(3)
Trace(100, steps=100).run(launch).assert_each_block_ran_once()
"""


def python(body):
    """Run a script after a first launch; returns what it printed. It must end, and well."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + body], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    "body",
    [
        "",
        "time.sleep(0.01)",
        "sys.exit(0)",
        "threading.Thread(target=lambda: [Trace(50).run(launch) for _ in range(200)]).start()",
    ],
    ids=["at once", "workers asleep", "sys.exit", "another thread still launches"],
)
def test_a_process_ends(body):
    python(body + "\nprint('end', flush=True)" if "exit" not in body else body)


def test_a_process_ends_while_a_daemon_launches():
    body = """
def forever():
    while True:
        Trace(50, steps=1000).run(launch)
threading.Thread(target=forever, daemon=True).start()
time.sleep(0.1)
"""
    for _ in range(3):
        python(body)


def test_launching_at_exit_runs_on_the_caller():
    body = """
import atexit
# Functions registered first run last: this one after the pool has gone.
atexit._clear()
atexit.register(lambda: (Trace(100).run(launch).assert_each_block_ran_once(), print("ran", flush=True)))
atexit.register(cpu_pool._shut_down)
"""
    assert python(body) == "ran\n"


def test_a_child_after_fork_has_workers_of_its_own():
    body = """
def shared():
    trace = Trace(64, steps=200_000).run(launch)
    trace.assert_each_block_ran_once()
    return len(set(trace.addresses)) > 1
def child():
    return any(shared() for _ in range(50)) and len(cpu_pool._pool._workers) == 2
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        os._exit(17 if child() else 1)
    Trace(100, steps=100).run(launch).assert_each_block_ran_once()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert python(body) == "17\n" * 5


def test_fork_while_another_thread_launches():
    body = """
over = False
def forever():
    while not over:
        Trace(50, steps=100).run(launch).assert_each_block_ran_once()
thread = threading.Thread(target=forever)
thread.start()
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        Trace(100, steps=100).run(launch).assert_each_block_ran_once()
        os._exit(17)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
over = True
thread.join()
"""
    assert python(body) == "17\n" * 10


def test_multiprocessing_by_fork():
    body = """
import multiprocessing
def work(blocks):
    Trace(blocks, steps=50).run(launch).assert_each_block_ran_once()
    return blocks
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(3) as workers:
        print(sum(workers.map(work, range(1, 41))))
"""
    assert python(body) == "820\n"
