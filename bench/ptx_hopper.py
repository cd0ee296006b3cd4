"""Kernels for the asynchronous instructions of sm_90a: products of warpgroups, bulk copies, clusters."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
from ptx_kernels import MEMORY, NBITS, WARP, WARPGROUP, Kernel, elements, filled, random

_DEPTHS = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32, "b1": 256}
_SPANS = {"none": (0, 16), "128B": (1, 128), "64B": (2, 64), "32B": (3, 32)}  # the descriptor's bits, and bytes


def _wgmma() -> Iterator[Kernel]:
    for kind in _DEPTHS:
        yield _warpgroup_product(kind, kind, 8, "128B")
    yield _warpgroup_product("e5m2", "e4m3", 16, "64B")
    yield _warpgroup_product("s8", "u8", 16, "32B")
    yield _warpgroup_product("f16", "f16", 64, "128B", d="f16")
    for swizzle, majors in product(_SPANS, ((0, 0), (1, 0), (0, 1))):
        yield _warpgroup_product("bf16", "bf16", 16, swizzle, majors=majors)
    for kind in ("f16", "tf32", "e4m3", "s8"):
        yield _warpgroup_product(kind, kind, 16, "128B", in_registers=True)
    yield _warpgroup_product("f16", "f16", 8, "none", negated=True)
    yield _warpgroup_product("s8", "s8", 8, "none", satfinite=True)


def _warpgroup_product(
    a: str,
    b: str,
    n: int,
    swizzle: str,
    *,
    d: str = "",
    majors: tuple[int, int] = (0, 0),
    in_registers: bool = False,
    negated: bool = False,
    satfinite: bool = False,
) -> Kernel:
    """Return a product of codes that fill the memory, whatever the layout takes from there."""
    d = d or ("s32" if a in ("s8", "u8", "b1") else "f32")
    outs, k = n * NBITS[d] // 64, _DEPTHS[a]
    mode, span = _SPANS[swizzle]
    # Units of 16 bytes: any that keep an operand in its half of the memory, and apart for each of its atoms.
    pitches = (8, 64) if swizzle == "none" else (span * 8 // 16, span * 8 // 16)
    descriptors = [f"((u64)((unsigned)__cvta_generic_to_shared(s) + {at} >> 4 & 0x3fff) | {pitches[0]}ull << 16 | "
                   f"{pitches[1]}ull << 32 | {mode}ull << 62)" for at in (0, MEMORY)]  # fmt: skip
    start = elements(d, WARPGROUP * outs * 4, 1).view(np.uint32).reshape(WARPGROUP, outs)
    if satfinite:
        start = np.where(start.view(np.int32) > 0, 0x7FFFFFFC, 0x80000004).astype(np.uint32)
    words = [start]
    left = "$c0"
    if in_registers:
        words.append(elements(a, WARPGROUP * 16, 2).view(np.uint32).reshape(WARPGROUP, 4))
        left = "{" + ", ".join(f"$i{outs + i}" for i in range(4)) + "}"
    flags = "" if d == "s32" else ", -1, 1" if negated else ", 1, 1"
    if a in ("f16", "bf16"):
        flags += f", {majors[1]}" if in_registers else f", {majors[0]}, {majors[1]}"
    form = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}{'.satfinite' * satfinite}.{d}.{a}.{b}{'.and.popc' * (a == 'b1')}"
    register = "f32" if d == "f32" else "b32"
    names = ", ".join(f"d{i}" for i in range(outs))
    lines = [f".reg .pred p; .reg .{register} {names}; setp.eq.u32 p, 0, 0;"]
    lines += [f"mov.b32 d{i}, $i{i};" for i in range(outs)]
    lines += ["fence.proxy.async;", "barrier.sync 0;", "wgmma.fence.sync.aligned;",
              f"{form} {{{names}}}, {left}, $c1, p{flags};", "wgmma.commit_group.sync.aligned;",
              "wgmma.wait_group.sync.aligned 0;"]  # fmt: skip
    lines += [f"mov.b32 $o{i}, d{i};" for i in range(outs)]
    memory = np.concatenate([elements(a, MEMORY, 3), elements(b, MEMORY, 4)])
    what = f"{form} {swizzle}{majors[0]}{majors[1]}" + " registers" * in_registers + " negated" * negated
    return Kernel(what, "{ " + " ".join(lines) + " }", np.concatenate(words, axis=1), outs, "shared", memory, 0, 90,
                  constants=descriptors)  # fmt: skip


# --- copies and clusters ----------------------------------------------------------------------------------------------

_HEAD = ".reg .pred p, q; .reg .b64 state; setp.eq.u32 p, $c2, 0;"
_INIT = "@p mbarrier.init.shared.b64 [$c1], 1; @p fence.mbarrier_init.release.cluster; fence.proxy.async; SYNC"
_WAIT = "W: mbarrier.try_wait.parity.shared.b64 q, [$c1], 0; @!q bra W;"
_BULK = ("(u64)(mem + 4096)", "(unsigned)__cvta_generic_to_shared(&barrier)", "t", "blockIdx.x")
_BARRIER = "__shared__ __align__(8) u64 barrier;"
_SYNC = "barrier.sync 0;"
_CLUSTER = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"


def _bulk() -> Iterator[Kernel]:
    """Yield copies of 512 bytes: what lies in memory from 4096 on is global only."""
    common = {"space": "shared", "shared": 4096, "capability": 90, "constants": _BULK, "setup": _BARRIER}
    words, memory, init = random(1, WARP, 1), filled(8192), _INIT.replace("SYNC", _SYNC)
    name = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
    expectations = {
        "arrive.expect_tx": "@p mbarrier.arrive.expect_tx.shared.b64 state, [$c1], 512;",
        "expect_tx": "@p mbarrier.expect_tx.relaxed.cta.shared.b64 [$c1], 512; @p mbarrier.arrive.shared.b64 _, [$c1];",
    }
    for what, expect in expectations.items():
        text = f"{_HEAD} {init} {expect} @p {name} [$at], [$c0], 512, [$c1]; {_WAIT} mov.u32 $o0, $i0;"
        yield Kernel(f"{name} {what}", f"{{ {text} }}", words, 1, memory=memory, **common)
    finish = "cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0; cp.async.bulk.wait_group 0;"
    kinds = ["add.u32", "min.s32", "max.u32", "and.b32", "or.b64", "xor.b32", "add.u64", "add.noftz.f16",
             "add.noftz.bf16", "min.f16", "max.bf16", "add.f32"]  # fmt: skip
    forms = ["cp.async.bulk.global.shared::cta.bulk_group"]
    forms += [f"cp.reduce.async.bulk.global.shared::cta.bulk_group.{kind}" for kind in kinds]
    for form in forms:
        kind = form.rsplit(".", 1)[1]
        data = elements(kind, 8192, 7) if kind in ("f16", "bf16", "f32") else memory
        text = f"{{ {_HEAD} fence.proxy.async; {_SYNC} @p {form} [$c0], [$at], 512; {finish} }}"
        yield Kernel(form, text, words, 0, memory=data, **common)
    yield _two_barriers()
    yield from _clusters()


def _two_barriers() -> Kernel:
    """Return what a barrier's phase looks like, by its state and by its parity, after each of two arrivals."""
    arrivals = ("@p mbarrier.arrive.shared.b64 state, [$c1];", "@p mbarrier.arrive_drop.shared.b64 _, [$c1];")
    lines = [_HEAD, "@p mbarrier.init.shared.b64 [$c1], 2;", _SYNC, "mov.b64 state, 0;"]
    for step, arrive in enumerate(arrivals):
        state, parity = f"$o{2 * step}", f"$o{2 * step + 1}"
        lines += [arrive, _SYNC, f"mov.u32 {state}, 7;", f"@!p bra A{step};"]  # one thread has a state
        lines += ["mbarrier.test_wait.shared.b64 q, [$c1], state;", f"selp.u32 {state}, 1, 0, q; A{step}:"]
        lines += ["mbarrier.test_wait.parity.shared.b64 q, [$c1], 0;", f"selp.u32 {parity}, 1, 0, q;", _SYNC]
    lines.append("@p mbarrier.inval.shared.b64 [$c1];")
    return Kernel("mbarrier.test_wait", "{ " + " ".join(lines) + " }", random(1, WARP, 1), 4, "shared", filled(512),
                  capability=90, constants=_BULK, setup=_BARRIER)  # fmt: skip


def _clusters() -> Iterator[Kernel]:
    """Yield kernels of two blocks, each of which writes into the other's memory."""
    memory, words = filled(2 * 1024), random(2, WARP, 2)
    common = {"space": "shared", "capability": 90, "constants": _BULK, "setup": _BARRIER, "blocks": 2, "shared": 1024}
    head = _HEAD + " .reg .b32 peer, there, rank, door; xor.b32 peer, $c3, 1; "
    head += "mapa.shared::cluster.u32 there, $at, peer; mapa.shared::cluster.u32 door, $c1, peer;"
    text = "st.shared::cluster.u32 [there], $i0; getctarank.shared::cluster.u32 rank, there; mov.u32 $o0, rank;"
    text = f"{{ {head} {_CLUSTER} {text} {_CLUSTER} ld.shared::cluster.u32 $o1, [there]; }}"
    yield Kernel("st.shared::cluster.u32", text, words, 2, memory=memory, stride=4, **common)
    form = "atom.shared::cluster.add.u32"
    yield Kernel(
        form,
        f"{{ {head} {_CLUSTER} {form} $o0, [there], $i0; {_CLUSTER} }}",
        words,
        1,
        memory=memory,
        stride=4,
        **common,
    )
    for bits, count in ((32, 1), (64, 1), (32, 2), (32, 4)):
        values = "{" + ", ".join(f"$i{i}" for i in range(count)) + "}" if count > 1 else "$i0"
        form = f"st.async.shared::cluster.mbarrier::complete_tx::bytes{f'.v{count}' * (count > 1)}.b{bits}"
        size = bits // 8 * count
        text = f"{{ {head} {_expecting(WARP * size)} {form} [there], {values}, [door]; {_WAIT} {_CLUSTER} }}"
        yield Kernel(form, text, random(3, WARP, count, bits=bits), 0, memory=memory, stride=size, **common)
    form = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
    text = (
        f".reg .b16 mask; .reg .pred first; {head} {_expecting(512)} mov.b16 mask, 3; setp.eq.and.u32 first, $c3, 0, p;"
    )
    text = f"{{ {text} @first {form} [$at], [$c0], 512, [$c1], mask; {_WAIT} {_CLUSTER} }}"
    yield Kernel(form, text, words, 0, memory=filled(8192), **common)
    form = "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
    text = f"@p add.u32 there, there, 512; @p {form} [there], [$at], 512, [door];"
    yield Kernel(form, f"{{ {head} {_expecting(512)} {text} {_WAIT} {_CLUSTER} }}", words, 0, memory=memory, **common)


def _expecting(nbytes: int) -> str:
    """Return the making of a barrier that waits for bytes, seen by both blocks."""
    return _INIT.replace("SYNC", f"@p mbarrier.arrive.expect_tx.shared.b64 state, [$c1], {nbytes}; {_CLUSTER}")


@cache
def hopper_kernels() -> tuple[Kernel, ...]:
    """Return all of these kernels."""
    return (*_wgmma(), *_bulk())
