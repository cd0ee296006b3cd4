"""Kernels in LLVM IR, written by hand to the contract of the CPU target, and what launching them needs."""

import ctypes
import re
import struct
from functools import lru_cache

import numpy as np

from tilus.runtime.llvm_jit import compile_object, load_object

# args: x, y, out, n, elements per block. The last block ends at n.
VECTOR_ADD = """
define void @vector_add(ptr noalias %args, i64 %first, i64 %last, ptr noalias %scratch, ptr %fault) {
entry:
  %x = load ptr, ptr %args
  %y.at = getelementptr ptr, ptr %args, i64 1
  %y = load ptr, ptr %y.at
  %out.at = getelementptr ptr, ptr %args, i64 2
  %out = load ptr, ptr %out.at
  %n.at = getelementptr i64, ptr %args, i64 3
  %n = load i64, ptr %n.at
  %size.at = getelementptr i64, ptr %args, i64 4
  %size = load i64, ptr %size.at
  %begin = mul i64 %first, %size
  %stop = mul i64 %last, %size
  %over = icmp sgt i64 %stop, %n
  %end = select i1 %over, i64 %n, i64 %stop
  br label %test
test:
  %i = phi i64 [ %begin, %entry ], [ %next, %body ]
  %more = icmp slt i64 %i, %end
  br i1 %more, label %body, label %done
body:
  %x.i = getelementptr float, ptr %x, i64 %i
  %y.i = getelementptr float, ptr %y, i64 %i
  %out.i = getelementptr float, ptr %out, i64 %i
  %a = load float, ptr %x.i
  %b = load float, ptr %y.i
  %c = fadd float %a, %b
  store float %c, ptr %out.i
  %next = add i64 %i, 1
  br label %test
done:
  ret void
}
"""

# args: counts, addresses, steps of work per block, first block that fails. Every block adds 1 to its count and notes
# its scratch address. Its scratch holds its number; when the work is done, that must still be so (else code 99).
TRACE = """
define void @trace(ptr noalias %args, i64 %first, i64 %last, ptr %scratch, ptr %fault) {
entry:
  %counts = load ptr, ptr %args
  %addresses.at = getelementptr ptr, ptr %args, i64 1
  %addresses = load ptr, ptr %addresses.at
  %steps.at = getelementptr i64, ptr %args, i64 2
  %steps = load i64, ptr %steps.at
  %bad.at = getelementptr i64, ptr %args, i64 3
  %bad = load i64, ptr %bad.at
  br label %block
block:
  %b = phi i64 [ %first, %entry ], [ %next, %finish ]
  store volatile i64 %b, ptr %scratch
  %count.at = getelementptr i64, ptr %counts, i64 %b
  atomicrmw add ptr %count.at, i64 1 monotonic
  %address.at = getelementptr ptr, ptr %addresses, i64 %b
  store ptr %scratch, ptr %address.at
  br label %work
work:
  %i = phi i64 [ 0, %block ], [ %i.next, %work ]
  %seen = load volatile i64, ptr %scratch
  %i.next = add i64 %i, 1
  %same = icmp eq i64 %seen, %b
  %more = icmp slt i64 %i.next, %steps
  %again = and i1 %same, %more
  br i1 %again, label %work, label %check
check:
  %fails = icmp sge i64 %b, %bad
  %code = select i1 %same, i64 7, i64 99
  %lost = xor i1 %same, true
  %stop = or i1 %fails, %lost
  br i1 %stop, label %record, label %finish
record:
  %pair = cmpxchg ptr %fault, i64 0, i64 %code monotonic monotonic
  %won = extractvalue { i64, i1 } %pair, 1
  br i1 %won, label %note, label %leave
note:
  %number.at = getelementptr i64, ptr %fault, i64 1
  store i64 %b, ptr %number.at
  br label %leave
finish:
  %next = add i64 %b, 1
  %left = icmp slt i64 %next, %last
  br i1 %left, label %block, label %leave
leave:
  ret void
}
"""

NEVER = 1 << 62  # a block number that no launch reaches


@lru_cache(maxsize=8)
def kernel(text):
    name = re.search(r"define void @(\w+)", text)[1]
    return load_object(compile_object(text), name)


def slots(*values):
    """Pack argument slots: an array by its address, a number as a 64-bit integer."""
    numbers = [v.ctypes.data if isinstance(v, np.ndarray) else v for v in values]
    return struct.pack(f"<{len(numbers)}q", *numbers)


def fault_record():
    return (ctypes.c_int64 * 8)()


class Trace:
    """One launch of `TRACE`: how often each block ran, and with which scratch memory."""

    def __init__(self, blocks, steps=1, bad=NEVER):
        self.counts = np.zeros(blocks, np.int64)
        self.addresses = np.zeros(blocks, np.int64)
        self.args = slots(self.counts, self.addresses, steps, bad)
        self.fault = fault_record()
        self.blocks = blocks

    def run(self, launch, scratch_bytes=8):
        launch(kernel(TRACE), self.args, self.blocks, scratch_bytes, self.fault)
        return self

    def assert_each_block_ran_once(self):
        assert self.fault[0] == 0
        np.testing.assert_array_equal(self.counts, 1)
        assert self.addresses.all()
        assert not (self.addresses % 64).any()
