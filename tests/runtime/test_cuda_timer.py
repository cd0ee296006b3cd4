"""The timer's protocol, on a driver that records; on a GPU, that it measures."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from tilus.runtime import cuda_timer
from tilus.runtime.cuda_timer import ROUNDS, event_seconds


def test_every_call_is_between_events_and_finds_no_data_in_caches(monkeypatch) -> None:
    log: list[str] = []
    seen = iter(range(1, 100))

    class Event:
        def record(self) -> None:
            log.append("event")

        def synchronize(self) -> None:
            log.append("wait")

    class Device(nullcontext):
        def __enter__(self):
            return SimpleNamespace(attributes={"L2CacheSize": 1000})

    def empty(size: int, kind: str) -> SimpleNamespace:
        assert size >= 2000
        return SimpleNamespace(fill=lambda value: log.append("flush"))

    cuda = SimpleNamespace(
        Device=Device, Event=Event, ExternalStream=nullcontext, get_elapsed_time=lambda a, b: next(seen)
    )
    monkeypatch.setattr(cuda_timer, "load_cupy", lambda: SimpleNamespace(cuda=cuda, empty=empty))
    monkeypatch.setattr(cuda_timer, "current_stream", lambda device: 7)
    seconds = event_seconds(lambda: log.append("call"))
    assert seconds == pytest.approx(1e-3 * (ROUNDS + 1) / 2)
    assert log == ["call"] + ["flush", "event", "call", "event", "wait"] * ROUNDS


@pytest.mark.gpu
def test_a_copy_takes_longer_the_more_there_is() -> None:
    cupy = pytest.importorskip("cupy")
    few, many = (cupy.zeros(size << 20, "uint8") for size in (64, 1024))
    assert event_seconds(few.copy) < event_seconds(many.copy)
