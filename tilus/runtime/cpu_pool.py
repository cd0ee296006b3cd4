"""Thread blocks on the cores of the CPU: `launch` runs a kernel over its grid and returns when all blocks are done.

Workers are Python threads parked in compiled code (`cpu_pool_ir`), where they hold no interpreter lock. The calling
thread works too. A worker without work spins for 30 µs, so that the next launch of a sequence starts within a
microsecond, and then sleeps. `TILUS_NUM_THREADS` sets how many threads work; by default as many as the process may use.
"""

from __future__ import annotations

import atexit
import math
import os
import platform
import threading
import time
from ctypes import CFUNCTYPE, addressof, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tilus.errors import LaunchError
from tilus.runtime import cache
from tilus.runtime.cpu_features import cache_tag
from tilus.runtime.cpu_pool_ir import pool_ir
from tilus.runtime.llvm_jit import LoadedKernel, compile_object, load_library

FAULT_WORDS = 8  # of 64 bits: code, block, values
_ALIGN = 128  # scratch of two workers never shares a pair of cache lines
_JOIN_SECONDS = 5.0
_FILE = "pool.o"
_SIGNATURES = {
    "run_alone": (c_void_p, c_void_p, c_int64, c_void_p, c_void_p),
    "run": (c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_void_p),
    "work": (c_int64,),
    "start": (),
    "stop": (),
}


def launch(
    kernel: LoadedKernel | int,
    args: Any,
    num_blocks: int,
    scratch_bytes: int = 0,
    fault: Any = None,
) -> None:
    """Run blocks 0 to `num_blocks` - 1 of a kernel on the pool of this process.

    Any number of threads may call it; the jobs of more than one block run one after another.

    Parameters
    ----------
    kernel : LoadedKernel or int
        What to run, or its address: `void kernel(ptr args, i64 first, i64 last, ptr scratch, ptr fault)`.
    args : bytes, ctypes array or int
        Argument slots of 8 bytes, or their address.
    num_blocks : int
        Nothing happens if there are none.
    scratch_bytes : int
        Memory for one block, which a worker reuses from block to block; aligned to 64 bytes, its content arbitrary.
    fault : ctypes array of 8 int64, optional
        Zeros. A kernel whose assertion fails writes its code and block there, and the blocks not yet begun are skipped.

    Raises
    ------
    LaunchError
        If `num_blocks` or `scratch_bytes` is negative, or if a kernel fails and `fault` is not given.
    """
    if num_blocks < 0 or scratch_bytes < 0:
        raise LaunchError(f"a launch needs 0 or more blocks and bytes, got {num_blocks} blocks, {scratch_bytes} bytes")
    if num_blocks == 0:
        return
    record = (c_int64 * FAULT_WORDS)() if fault is None else fault
    (_pool or _create()).launch(kernel, args, num_blocks, scratch_bytes, record)
    if fault is None and record[0]:
        raise LaunchError(f"block {record[1]} failed with code {record[0]}")


def num_threads() -> int:
    """Return how many threads work on a launch, the caller among them."""
    return _current().threads


def set_num_threads(count: int) -> None:
    """Set how many threads work on a launch, in place of `TILUS_NUM_THREADS`, in the whole process.

    Raises
    ------
    LaunchError
        If it is not 1 or more.
    """
    global _wanted
    _wanted = _positive("the number of threads", count)
    _current().threads = _wanted


def default_threads() -> int:
    """Return `TILUS_NUM_THREADS`, or the CPUs that affinity and the control group's quota leave to this process."""
    if text := os.environ.get("TILUS_NUM_THREADS", ""):
        return _positive("TILUS_NUM_THREADS", text)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, _quota()))


def _positive(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise LaunchError(f"{name} must be a whole number from 1 on, got {value!r}")
    return number


def _quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the CPUs that a container may use at a time: threads beyond them only wait for one another."""
    try:
        quota, period = path.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no control groups, or "max"
        return 1 << 30


@lru_cache(maxsize=1)
def _pool_object() -> bytes:
    """Return the compiled part, kept on disk like a kernel: that saves 30 ms of every process."""
    text = pool_ir(platform.machine(), time.CLOCK_MONOTONIC if os.name == "posix" else None)
    key = cache.cache_key(kind="cpu_pool", text=text, cpu=cache_tag())
    files = cache.get(key, [_FILE])
    if files is None:
        files = {_FILE: compile_object(text)}
        cache.put(key, files)
    return files[_FILE]


class Pool:
    """Workers and the state they share. The process has one; tests make more.

    Attributes
    ----------
    threads : int
        How many threads work on a launch. Workers are started when a launch can use them.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        names = list(_SIGNATURES) if os.name == "posix" else ["run_alone"]
        self._library = load_library(_pool_object(), names)
        self._calls = {n: CFUNCTYPE(None, *_SIGNATURES[n])(a) for n, a in self._library.addresses.items()}
        self._run_alone = self._calls["run_alone"]
        self._run = self._calls.get("run", self._run_alone)
        self._most = 1 << 30 if "run" in self._calls else 1  # threads that there can be
        self._lock = threading.Lock()
        self._workers: list[threading.Thread] = []
        self._scratch = _Scratch()
        self._local = threading.local()
        if "start" in self._calls:
            self._calls["start"]()

    def launch(self, kernel: LoadedKernel | int, args: Any, num_blocks: int, scratch_bytes: int, fault: Any) -> None:
        """Run blocks; see `launch`. Checks nothing. Written for speed: this is all that a call costs in Python."""
        if isinstance(kernel, int):
            unknown = c_int64(0)
            address, cost = kernel, addressof(unknown)
        else:
            address, cost = kernel.address, kernel.cost_address
        if num_blocks > 1 and self.threads > 1:
            with self._lock:
                threads = num_blocks if num_blocks < self.threads else self.threads
                if threads > len(self._workers) + 1:
                    threads = self._grow(threads)
                if threads > 1:
                    stride = (scratch_bytes + _ALIGN - 1) & -_ALIGN
                    scratch = self._scratch.reserve(stride * threads)
                    self._run(address, args, num_blocks, threads, scratch, stride, fault, cost)
                    return
        self._run_alone(address, args, num_blocks, self._own_scratch().reserve(scratch_bytes), fault)

    def _own_scratch(self) -> _Scratch:
        """Return the memory of the calling thread."""
        try:
            own: _Scratch = self._local.scratch
        except AttributeError:
            own = self._local.scratch = _Scratch()
        return own

    def _grow(self, threads: int) -> int:
        """Start workers until `threads` can work, the caller among them; return how many can."""
        try:
            while len(self._workers) + 1 < min(threads, self._most):
                self._add_worker()
        except RuntimeError:  # the system has no more threads, or the interpreter is going down
            self._most = len(self._workers) + 1
        return min(threads, self._most)

    def _add_worker(self) -> None:
        number = len(self._workers) + 1
        thread = threading.Thread(target=self._work, args=(number,), name=f"tilus-{number}", daemon=True)
        thread.start()
        self._workers.append(thread)

    def _work(self, number: int) -> None:
        # A method, so that the thread keeps this pool alive, and with it the code that it is in.
        self._calls["work"](number)

    def close(self) -> None:
        """End the workers. A launch from now on runs on its caller alone."""
        with self._lock:
            self._most = 1
            workers, self._workers = self._workers, []
            if workers:
                self._calls["stop"]()
        for thread in workers:
            thread.join(_JOIN_SECONDS)


class _Scratch:
    """Memory that only grows. Pages are not touched here, so they come from the memory next to who first uses them."""

    __slots__ = ("_address", "_memory", "_size")

    def __init__(self) -> None:
        self._size, self._address = -1, 0
        self._memory: Any = None

    def reserve(self, size: int) -> int:
        """Return the address of at least `size` bytes."""
        if size > self._size:
            self._memory = np.empty(size + _ALIGN, np.uint8)
            self._size = size
            self._address = -(-self._memory.ctypes.data // _ALIGN) * _ALIGN
        return self._address


_pool: Pool | None = None
_wanted: int | None = None  # outlives a fork
_creation = threading.Lock()
_abandoned: list[Pool | None] = []


def _current() -> Pool:
    """Return the pool of this process, made at the first launch."""
    return _pool or _create()


def _create() -> Pool:
    global _pool
    with _creation:
        if _pool is None:
            _pool = Pool(_wanted or default_threads())
    return _pool


def _forget() -> None:
    """In a child after fork: the workers stayed with the parent, and locks may be held by threads that did too."""
    global _pool, _creation
    _abandoned.append(_pool)  # to unload it needs a lock of LLVM
    _pool, _creation = None, threading.Lock()


@atexit.register
def _shut_down() -> None:
    if _pool is not None:
        _pool.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
