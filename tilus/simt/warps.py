"""What the lanes of a warp do together: shuffles, votes, matches, reductions, elections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilus.simt.control import bits_of
from tilus.simt.decode import Context, Read, decoder
from tilus.simt.formats import Array
from tilus.simt.loads import items
from tilus.simt.machine import LANES, Group, Machine, Step, as_group
from tilus.simt.opcode import operation
from tilus.simt.syntax import Operand


class Warps:
    """Checks that the lanes that an instruction needs are there."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def whole(self, group: Group, code: int) -> Array:
        """Return all threads of a group's warps, shape (warps, 32), for an instruction that they run together.

        A lane that is missing is a fault.
        """
        threads = self.machine.numbers[group]
        if len(threads) % LANES == 0 and (threads[::LANES] % LANES == 0).all():
            lanes = threads.reshape(-1, LANES)
            if (lanes[:, -1] - lanes[:, 0] == LANES - 1).all():
                return lanes
        lanes = np.unique(threads >> 5)[:, None] * LANES + np.arange(LANES)
        missing = np.setdiff1d(lanes[self.machine.alive(lanes)], threads)
        if len(missing):
            self.machine.find("divergence", "lanes are elsewhere while their warp runs this together", code, missing)
        return lanes


class Lanes:
    """The lanes that take part in a `.sync` instruction, warp by warp: arrays have shape (warps, 32)."""

    def __init__(self, machine: Machine, group: Group, masks: Array, code: int) -> None:
        self.machine, self.group = machine, group
        self.threads = machine.numbers[group]
        self.warps = np.unique(self.threads >> 5)
        self.everyone = as_group((self.warps[:, None] * LANES + np.arange(LANES)).reshape(-1), machine.threads)
        here = np.zeros(machine.threads, bool)
        here[self.threads] = True
        self.here = here[self.everyone].reshape(-1, LANES)
        mask = np.zeros(machine.threads, np.uint32)
        mask[self.threads] = masks
        per_warp = mask[self.everyone].reshape(-1, LANES).max(1, keepdims=True)
        named = (per_warp >> np.arange(LANES, dtype=np.uint32) & np.uint32(1)) > 0
        alive = machine.alive(machine.numbers[self.everyone]).reshape(-1, LANES)
        wrong = (named & alive & ~self.here) | (self.here & ~named)
        if wrong.any():
            text = "lanes in the mask are elsewhere, or lanes outside the mask run this"
            machine.find("divergence", text, code, machine.numbers[self.everyone][wrong.reshape(-1)])
        self.active = self.here & named

    def table(self, read: Read) -> Array:
        """Return an operand of all lanes."""
        size = len(self.warps) * LANES
        return np.broadcast_to(read(self.everyone), (size,)).reshape(-1, LANES)

    def own(self, table: Array) -> Array:
        """Return the part of a table that belongs to the threads of the group."""
        found: Array = table.reshape(-1)[self.here.reshape(-1)]
        return found


def _lanes(context: Context, mask: Operand) -> Callable[[Group], Lanes]:
    read = context.read(mask, "b32")
    return lambda group: Lanes(context.machine, group, read(group), context.code)


@decoder("shfl.sync")
def _shuffle(context: Context) -> Step:
    op = context.opcode
    mode = op.choose("up", "down", "bfly", "idx")
    op.type("b32")
    op.finish()
    target, source, offset, limit, mask = context.operands
    outputs = items(target)
    write = context.write(outputs[0], "b32")
    flag = context.write(outputs[1], "pred") if len(outputs) > 1 else None
    value, by, clamp, lanes = (*(context.read(x, "b32") for x in (source, offset, limit)), _lanes(context, mask))
    machine, code = context.machine, context.code

    def step(group: Group) -> None:
        those = lanes(group)
        lane = np.arange(LANES)
        b, c = (those.table(x).astype(np.int64) & 31 for x in (by, clamp))
        segment = those.table(clamp).astype(np.int64) >> 8 & 31
        most = (lane & segment) | (c & ~segment)
        from_lane, inside = _source(mode, lane, b, c, most, segment)
        from_lane = np.where(inside, from_lane, lane)
        data = those.table(value)
        if (those.here & ~np.take_along_axis(those.active, from_lane, 1)).any():
            machine.find("divergence", "a shuffle reads a lane that does not take part", code, those.threads)
        write(group, those.own(np.take_along_axis(data, from_lane, 1)))
        if flag is not None:
            flag(group, those.own(np.broadcast_to(inside, data.shape)))

    return step


def _source(mode: str, lane: Array, b: Array, c: Array, most: Array, segment: Array) -> tuple[Array, Array]:
    """Return the lane that each reads, and whether it lies in its segment (PTX ISA, "shfl.sync")."""
    match mode:
        case "up":
            return lane - b, lane - b >= most
        case "down":
            return lane + b, lane + b <= most
        case "bfly":
            return lane ^ b, (lane ^ b) <= most
    found = (lane & segment) | (b & ~segment)
    return found, found <= most


@decoder("vote.sync")
def _vote(context: Context) -> Step:
    op = context.opcode
    mode = op.choose("all", "any", "uni", "ballot")
    kind = op.type("pred", "b32")
    op.finish()
    target, source, mask = context.operands
    write, read, lanes = context.write(target, kind), context.read(source, "pred"), _lanes(context, mask)

    def step(group: Group) -> None:
        those = lanes(group)
        on = those.table(read)
        every, some = (on | ~those.active).all(1), (on & those.active).any(1)
        found = {"all": every, "any": some, "uni": every | ~some, "ballot": bits_of(on & those.active)}[mode]
        write(group, those.own(np.broadcast_to(found[:, None], on.shape)))

    return step


@decoder("activemask")
def _active(context: Context) -> Step:
    write, machine = context.write(context.operands[0], "b32"), context.machine

    def step(group: Group) -> None:
        here = np.zeros(machine.threads, bool)
        here[group] = True
        masks = np.repeat(bits_of(here.reshape(-1, LANES)), LANES)
        write(group, masks[group])

    return step


@decoder("match")
def _match(context: Context) -> Step:
    op = context.opcode
    every, kind = op.choose("any", "all") == "all", op.type("b32", "b64")
    op.drop("sync")
    op.finish()
    target, source, mask = context.operands
    outputs = items(target)
    write = context.write(outputs[0], "b32")
    flag = context.write(outputs[1], "pred") if len(outputs) > 1 else None
    read, lanes = context.read(source, kind), _lanes(context, mask)

    def step(group: Group) -> None:
        those = lanes(group)
        value = those.table(read)
        equal = (value[:, :, None] == value[:, None, :]) & those.active[:, None, :]
        found = bits_of(equal)
        if every:
            same = (equal == those.active[:, None, :]).all(2)
            found = np.where(same, bits_of(those.active)[:, None], np.uint32(0))
            if flag is not None:
                flag(group, those.own(same))
        write(group, those.own(found))

    return step


@decoder("redux.sync")
def _reduce(context: Context) -> Step:
    op = context.opcode
    name, absolute, nan = op.choose("add", "min", "max", "and", "or", "xor"), op.take("abs"), op.take("NaN")
    kind = op.type("u32", "s32", "b32", "f32")
    op.finish()
    target, source, mask = context.operands
    write, read, lanes = context.write(target, kind), context.read(source, kind), _lanes(context, mask)
    combine = operation(f"{name}.{'NaN.' if nan else ''}{kind}").function

    def step(group: Group) -> None:
        those = lanes(group)
        table = those.table(read)
        table = np.abs(table) if absolute else table
        total = np.zeros(len(table), table.dtype)
        for i, (row, on) in enumerate(zip(table, those.active, strict=True)):
            values = row[on]
            result: Any = values[:1]
            for value in values[1:]:
                result = combine(result, value.reshape(1)).view(table.dtype)
            total[i] = result[0]
        write(group, those.own(np.broadcast_to(total[:, None], table.shape)))

    return step


@decoder("elect.sync")
def _elect(context: Context) -> Step:
    context.opcode.finish()
    lane_out, flag_out = items(context.operands[0])
    write, flag = context.write(lane_out, "b32"), context.write(flag_out, "pred")
    lanes = _lanes(context, context.operands[1])

    def step(group: Group) -> None:
        those = lanes(group)
        leader = those.active.argmax(1)[:, None]
        write(group, those.own(np.broadcast_to(leader, those.active.shape).astype(np.uint32)))
        flag(group, those.own(np.arange(LANES) == leader))

    return step


@decoder("setmaxnreg")
def _registers(context: Context) -> Step:
    op = context.opcode
    op.drop("inc", "dec", "sync", "aligned", "u32")
    op.finish()
    count = context.constant(context.operands[0])
    if count % 8 or not 24 <= count <= 256:
        raise context.error("the number of registers is a multiple of 8 from 24 to 256")
    machine, code = context.machine, context.code

    def step(group: Group) -> None:
        machine.units["warps"].whole(group, code)

    return step
