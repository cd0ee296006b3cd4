"""The time of calls on a GPU, by events on the stream where kernels run."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from tilus.runtime.launch_cuda import current_stream, load_cupy

ROUNDS = 11
_FLUSHED = 2  # times the size of the second-level cache


def event_seconds(call: Callable[[], object], device: int = 0) -> float:
    """Return the median time of a call that finds none of its data in the device's caches.

    Parameters
    ----------
    call : callable
        Puts work onto the current stream of a device; called once before, to compile.
    device : int
        Its number.
    """
    cupy = load_cupy()
    with cupy.cuda.Device(device) as place, cupy.cuda.ExternalStream(current_stream(device)):
        filler = cupy.empty(_FLUSHED * place.attributes["L2CacheSize"], "uint8")
        call()
        times: list[float] = []
        for _ in range(ROUNDS):
            filler.fill(0)
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(cupy.cuda.get_elapsed_time(begin, end) * 1e-3)
    return median(times)
