"""The compiled part of the thread pool, as LLVM IR. One loaded copy is one pool: its state is in globals.

One launch at a time writes `@job`; the caller of `@run` sees to that. The protocol:

* `@generation` is odd while a job is open, and -1 when workers shall return.
* A worker that sees a new odd generation first counts itself into `@active`, then looks again: if a job is open now, it
  may read `@job` and take blocks from `@next`. It counts itself out when there are none left.
* The launch closes the job (even generation), and returns when nobody is active. So it waits only for workers that
  have begun, and nobody reads a job while it is written. Both sides write one word and then read the other's: these
  accesses are sequentially consistent, so that at least one of them sees the other.
* The same holds for falling asleep: a worker counts itself into `@sleeping` before it looks at the generation once
  more, a launch opens the job before it looks whether anyone sleeps.
* Whoever begins on a job with blocks left wakes two sleepers: all are up after a logarithmic number of steps, and
  the caller pays for two only.
"""

from __future__ import annotations

SPIN_NS = 30_000  # a worker without work burns this long, then sleeps
SMALL_NS = 4_000  # a job that took less is begun alone: to wake a worker costs as much
TINY_NS = 1_000  # the same where nobody sleeps: workers that spin are there within this time
CHUNKS_PER_THREAD = 8

# Waiting politely in a loop; the floating-point mode, and the value of a fresh process: kernels rely on subnormals,
# which a caller may have turned off (torch.set_flush_denormal), and threads inherit the mode.
_X86 = """
declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define internal void @pause() alwaysinline {
  call void @llvm.x86.sse2.pause()
  ret void
}
define internal i64 @set_floats(i64 %mode) alwaysinline {
  %slot = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %slot)
  %old = load i32, ptr %slot
  %new = trunc i64 %mode to i32
  store i32 %new, ptr %slot
  call void @llvm.x86.sse.ldmxcsr(ptr %slot)
  %wide = zext i32 %old to i64
  ret i64 %wide
}
@plain_floats = internal constant i64 8064
"""
_ARM = """
declare void @llvm.aarch64.hint(i32)
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
define internal void @pause() alwaysinline {
  call void @llvm.aarch64.hint(i32 1)
  ret void
}
define internal i64 @set_floats(i64 %mode) alwaysinline {
  %old = call i64 @llvm.aarch64.get.fpcr()
  call void @llvm.aarch64.set.fpcr(i64 %mode)
  ret i64 %old
}
@plain_floats = internal constant i64 0
"""
_OTHER = """
define internal void @pause() alwaysinline {
  ret void
}
define internal i64 @set_floats(i64 %mode) alwaysinline {
  ret i64 0
}
@plain_floats = internal constant i64 0
"""
_MACHINES = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}

# All blocks on the calling thread.
_ALONE = """
define void @run_alone(ptr %kernel, ptr %args, i64 %total, ptr %scratch, ptr %fault) {
  %plain = load i64, ptr @plain_floats
  %mode = call i64 @set_floats(i64 %plain)
  call void %kernel(ptr %args, i64 0, i64 %total, ptr %scratch, ptr %fault)
  call i64 @set_floats(i64 %mode)
  ret void
}
"""

# State. Words that different threads write lie 128 bytes apart: two cache lines, for prefetchers fetch pairs.
_STATE = """
%Job = type { ptr, ptr, i64, i64, ptr, ptr, i64, i64 }  ; kernel args total chunk fault scratch stride threads
@generation = internal global i64 0, align 128
@next = internal global i64 0, align 128
@active = internal global i64 0, align 128
@sleeping = internal global i64 0, align 128
@job = internal global %Job zeroinitializer, align 128
@mutex = internal global [16 x i64] zeroinitializer, align 128  ; room for any system's pthread types
@wakeup = internal global [16 x i64] zeroinitializer, align 128
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_signal(ptr)
declare i32 @pthread_cond_broadcast(ptr)
declare i32 @clock_gettime(i32, ptr)
declare i32 @sched_yield()
declare i64 @llvm.smax.i64(i64, i64)
declare i64 @llvm.smin.i64(i64, i64)

define void @start() {
  call i32 @pthread_mutex_init(ptr @mutex, ptr null)
  call i32 @pthread_cond_init(ptr @wakeup, ptr null)
  ret void
}

define void @stop() {
  store atomic i64 -1, ptr @generation seq_cst, align 8
  call i32 @pthread_mutex_lock(ptr @mutex)
  call i32 @pthread_cond_broadcast(ptr @wakeup)
  call i32 @pthread_mutex_unlock(ptr @mutex)
  ret void
}

define internal i64 @now() {
  %time = alloca { i64, i64 }
  call i32 @clock_gettime(i32 MONOTONIC, ptr %time)
  %seconds = load i64, ptr %time
  %rest = getelementptr { i64, i64 }, ptr %time, i32 0, i32 1
  %ns = load i64, ptr %rest
  %whole = mul i64 %seconds, 1000000000
  %sum = add i64 %whole, %ns
  ret i64 %sum
}
"""

# A mutex passed through between publishing and signalling: a sleeper holds it from its last look until it waits.
_SLEEP = """
define internal void @wake() {
  %count = load atomic i64, ptr @sleeping seq_cst, align 8
  %any = icmp sgt i64 %count, 0
  br i1 %any, label %signal, label %end
signal:
  call i32 @pthread_mutex_lock(ptr @mutex)
  call i32 @pthread_mutex_unlock(ptr @mutex)
  call i32 @pthread_cond_signal(ptr @wakeup)
  call i32 @pthread_cond_signal(ptr @wakeup)
  br label %end
end:
  ret void
}

define internal i1 @is_fresh(i64 %last) alwaysinline {
  %now = load atomic i64, ptr @generation seq_cst, align 8
  %bit = trunc i64 %now to i1
  %other = icmp ne i64 %now, %last
  %fresh = and i1 %bit, %other
  ret i1 %fresh
}

define internal void @sleep(i64 %last) {
  call i32 @pthread_mutex_lock(ptr @mutex)
  atomicrmw add ptr @sleeping, i64 1 seq_cst
  br label %look
look:
  %fresh = call i1 @is_fresh(i64 %last)
  br i1 %fresh, label %leave, label %wait
wait:
  call i32 @pthread_cond_wait(ptr @wakeup, ptr @mutex)
  br label %look
leave:
  atomicrmw sub ptr @sleeping, i64 1 seq_cst
  call i32 @pthread_mutex_unlock(ptr @mutex)
  ret void
}
"""

# Take blocks and run them until none is left or one has failed; return how many were run.
_HELP = """
define internal i64 @help(i64 %index) {
entry:
  %kernel = load ptr, ptr @job
  %args.at = getelementptr %Job, ptr @job, i32 0, i32 1
  %args = load ptr, ptr %args.at
  %total.at = getelementptr %Job, ptr @job, i32 0, i32 2
  %total = load i64, ptr %total.at
  %chunk.at = getelementptr %Job, ptr @job, i32 0, i32 3
  %chunk = load i64, ptr %chunk.at
  %fault.at = getelementptr %Job, ptr @job, i32 0, i32 4
  %fault = load ptr, ptr %fault.at
  %scratch.at = getelementptr %Job, ptr @job, i32 0, i32 5
  %scratch = load ptr, ptr %scratch.at
  %stride.at = getelementptr %Job, ptr @job, i32 0, i32 6
  %stride = load i64, ptr %stride.at
  %offset = mul i64 %index, %stride
  %mine = getelementptr i8, ptr %scratch, i64 %offset
  br label %loop
loop:
  %done = phi i64 [ 0, %entry ], [ %more, %work ]
  %code = load atomic i64, ptr %fault monotonic, align 8
  %fine = icmp eq i64 %code, 0
  br i1 %fine, label %claim, label %end
claim:
  %first = atomicrmw add ptr @next, i64 %chunk monotonic
  %left = icmp slt i64 %first, %total
  br i1 %left, label %work, label %end
work:
  %stop = add i64 %first, %chunk
  %last = call i64 @llvm.smin.i64(i64 %stop, i64 %total)
  call void %kernel(ptr %args, i64 %first, i64 %last, ptr %mine, ptr %fault)
  %count = sub i64 %last, %first
  %more = add i64 %done, %count
  br label %loop
end:
  ret i64 %done
}
"""

_WORKER = """
define void @work(i64 %index) {
entry:
  %plain = load i64, ptr @plain_floats
  call i64 @set_floats(i64 %plain)
  br label %idle
idle:
  %last = phi i64 [ 0, %entry ], [ %seen, %leave ], [ %last, %asleep ]
  %begin = call i64 @now()
  %deadline = add i64 %begin, SPIN_NS
  br label %spin
spin:
  %tries = phi i64 [ 0, %idle ], [ %tried, %again ], [ 0, %clock ]
  %fresh = call i1 @is_fresh(i64 %last)
  br i1 %fresh, label %join, label %again
again:
  call void @pause()
  %tried = add i64 %tries, 1
  %low = and i64 %tried, 31
  %look = icmp eq i64 %low, 0
  br i1 %look, label %clock, label %spin
clock:
  %time = call i64 @now()
  %late = icmp sgt i64 %time, %deadline
  br i1 %late, label %asleep, label %spin
asleep:
  call void @sleep(i64 %last)
  br label %idle
join:
  atomicrmw add ptr @active, i64 1 seq_cst
  %seen = load atomic i64, ptr @generation seq_cst, align 8
  %over = icmp eq i64 %seen, -1
  br i1 %over, label %quit, label %enter
enter:
  %open = trunc i64 %seen to i1
  br i1 %open, label %check, label %leave
check:
  %threads.at = getelementptr %Job, ptr @job, i32 0, i32 7
  %threads = load i64, ptr %threads.at
  %wanted = icmp slt i64 %index, %threads
  br i1 %wanted, label %rouse, label %leave
rouse:
  %total.at = getelementptr %Job, ptr @job, i32 0, i32 2
  %total = load i64, ptr %total.at
  %position = load atomic i64, ptr @next monotonic, align 8
  %left = icmp slt i64 %position, %total
  br i1 %left, label %both, label %leave
both:
  call void @wake()
  call i64 @help(i64 %index)
  br label %leave
leave:
  atomicrmw sub ptr @active, i64 1 release
  br label %idle
quit:
  atomicrmw sub ptr @active, i64 1 release
  ret void
}
"""

# Split the blocks among the caller and the workers. Small jobs, by what a block cost last time, are begun alone in four
# pieces, and handed over between two pieces if they turn out not to be small.
_RUN = """
define void @run(ptr %kernel, ptr %args, i64 %total, i64 %threads, ptr %scratch, i64 %stride, ptr %fault, ptr %cost) {
entry:
  %plain = load i64, ptr @plain_floats
  %mode = call i64 @set_floats(i64 %plain)
  %begin = call i64 @now()
  %sleepers = load atomic i64, ptr @sleeping monotonic, align 8
  %nobody = icmp eq i64 %sleepers, 0
  %limit = select i1 %nobody, i64 TINY_NS, i64 SMALL_NS
  %unit = load i64, ptr %cost
  %seen = icmp ne i64 %unit, 0
  %guess = mul i64 %unit, %total
  %guess.ns = lshr i64 %guess, 10
  %cheap = icmp ult i64 %guess.ns, %limit
  %small = and i1 %seen, %cheap
  %quarter = lshr i64 %total, 2
  %piece = add i64 %quarter, 1
  br i1 %small, label %alone, label %split
alone:
  %first = phi i64 [ 0, %entry ], [ %last, %next ]
  %stop = add i64 %first, %piece
  %last = call i64 @llvm.smin.i64(i64 %stop, i64 %total)
  call void %kernel(ptr %args, i64 %first, i64 %last, ptr %scratch, ptr %fault)
  %time = call i64 @now()
  %elapsed = sub i64 %time, %begin
  %code = load i64, ptr %fault
  %failed = icmp ne i64 %code, 0
  %complete = icmp eq i64 %last, %total
  %over = or i1 %failed, %complete
  br i1 %over, label %finish, label %next
next:
  %slow = icmp ugt i64 %elapsed, %limit
  br i1 %slow, label %split, label %alone
split:
  %from = phi i64 [ 0, %entry ], [ %last, %next ]
  call void @open(ptr %kernel, ptr %args, i64 %from, i64 %total, i64 %threads, ptr %scratch, i64 %stride, ptr %fault)
  %mine = call i64 @help(i64 0)
  %ended = call i64 @now()
  call void @close()
  %spent = sub i64 %ended, %begin
  %count = add i64 %mine, %from
  br label %finish
finish:
  %ns = phi i64 [ %elapsed, %alone ], [ %spent, %split ]
  %blocks = phi i64 [ %last, %alone ], [ %count, %split ]
  call i64 @set_floats(i64 %mode)
  %any = icmp sgt i64 %blocks, 0
  br i1 %any, label %measure, label %end
measure:
  %fine = shl i64 %ns, 10
  %each = udiv i64 %fine, %blocks
  %least = call i64 @llvm.smax.i64(i64 %each, i64 1)
  %most = call i64 @llvm.smin.i64(i64 %least, i64 4294967296)  ; 4 ms: times 2^31 blocks it fits 64 bits
  store i64 %most, ptr %cost
  br label %end
end:
  ret void
}

define internal void @open(ptr %kernel, ptr %args, i64 %from, i64 %total, i64 %threads, ptr %scratch, i64 %stride,
                           ptr %fault) {
  %rest = sub i64 %total, %from
  %pieces = mul i64 %threads, CHUNKS_PER_THREAD
  %share = udiv i64 %rest, %pieces
  %chunk = call i64 @llvm.smax.i64(i64 %share, i64 1)
  store ptr %kernel, ptr @job
  %args.at = getelementptr %Job, ptr @job, i32 0, i32 1
  store ptr %args, ptr %args.at
  %total.at = getelementptr %Job, ptr @job, i32 0, i32 2
  store i64 %total, ptr %total.at
  %chunk.at = getelementptr %Job, ptr @job, i32 0, i32 3
  store i64 %chunk, ptr %chunk.at
  %fault.at = getelementptr %Job, ptr @job, i32 0, i32 4
  store ptr %fault, ptr %fault.at
  %scratch.at = getelementptr %Job, ptr @job, i32 0, i32 5
  store ptr %scratch, ptr %scratch.at
  %stride.at = getelementptr %Job, ptr @job, i32 0, i32 6
  store i64 %stride, ptr %stride.at
  %threads.at = getelementptr %Job, ptr @job, i32 0, i32 7
  store i64 %threads, ptr %threads.at
  store atomic i64 %from, ptr @next monotonic, align 8
  atomicrmw add ptr @generation, i64 1 seq_cst
  call void @wake()
  ret void
}

define internal void @close() {
entry:
  atomicrmw add ptr @generation, i64 1 seq_cst
  br label %look
look:
  %tries = phi i64 [ 0, %entry ], [ %tried, %politely ], [ %tries, %yield ]
  %busy = load atomic i64, ptr @active seq_cst, align 8
  %any = icmp ne i64 %busy, 0
  br i1 %any, label %wait, label %end
wait:
  %long = icmp ugt i64 %tries, 2000
  br i1 %long, label %yield, label %politely
politely:
  call void @pause()
  %tried = add i64 %tries, 1
  br label %look
yield:
  call i32 @sched_yield()  ; a worker may have lost its core to another process
  br label %look
end:
  ret void
}
"""


def pool_ir(machine: str, clock: int | None) -> str:
    """Return the module: `run_alone`, and with a clock `run`, `work`, `start` and `stop`.

    Parameters
    ----------
    machine : str
        As `platform.machine()` has it.
    clock : int or None
        Number of the system's monotonic clock; None where there are no POSIX threads, and so no workers.
    """
    text = _MACHINES.get(machine.lower(), _OTHER) + _ALONE
    if clock is None:
        return text
    text += _STATE + _SLEEP + _HELP + _WORKER + _RUN
    numbers = {
        "MONOTONIC": clock,
        "SPIN_NS": SPIN_NS,
        "SMALL_NS": SMALL_NS,
        "TINY_NS": TINY_NS,
        "CHUNKS_PER_THREAD": CHUNKS_PER_THREAD,
    }
    for name, number in numbers.items():
        text = text.replace(name, str(number))
    return text
