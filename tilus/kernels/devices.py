"""GPUs as the model of the quantized matmul sees them.

Counts, clocks and peaks are those of NVIDIA's data sheets and architecture white papers (boost clock under load; dense
f16 products with f32 sums). What programs reach of them was measured by others: see each device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tilus.errors import TilusError

SCHEDULERS = 4  # of a multiprocessor; each issues one instruction of a warp per cycle
LANES = 32


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU's limits.

    Attributes
    ----------
    name, title : str
        As typed, and a regular expression for what the driver says.
    target : str
        What it runs.
    sms : int
    clock : float
        GHz, under load.
    memory_peak, memory : float
        TB/s: of the data sheet, and what a device copy moves.
    l2_bytes : int
    l2 : float
        TB/s that all multiprocessors together read from it, about.
    tensor_peak, tensor : float
        TFLOP/s: of the data sheet, and what the best f16 matmul reaches.
    tensor_sync : float
        TFLOP/s of `mma.sync`, which is all that Hopper's tensor cores do without `wgmma`.
    latency : float
        Nanoseconds that a read takes while memory is busy: bytes in flight / latency is the rate.
    launch : float
        Microseconds from the end of a kernel to the start of the next one's blocks in a CUDA graph.
    half_rate : int
        Cycles for which a warp's HFMA2 occupies its pipe.
    """

    name: str
    title: str
    target: str
    sms: int
    clock: float
    memory_peak: float
    memory: float
    l2_bytes: int
    l2: float
    tensor_peak: float
    tensor: float
    tensor_sync: float
    latency: float = 700
    launch: float = 2.0
    half_rate: int = 1

    @property
    def issue_slots(self) -> float:
        """Instructions of threads that all schedulers issue in a second, in units of 1e12."""
        return self.sms * SCHEDULERS * LANES * self.clock * 1e-3


_MB = 1 << 20
# Copies: 3.0 and 4.3 TB/s on H100 and H200 (public benchmark threads of vLLM and TileOPs), 86 to 94 % of the peak
# elsewhere. Matmuls: 800 and 790 TFLOP/s on H100 and H200 (CUTLASS, cuBLAS); elsewhere 85 to 90 % of the peak.
# `mma.sync` reaches 62 % of `wgmma` on Hopper (measured through Marlin and humming; m16n8k16 takes 6.4 cycles).
# L2 rates: arXiv:2402.13499 and chipsandcheese.com, rounded. Latency under load: 700 to 900 ns on Hopper.
DEVICES: dict[str, Device] = {
    d.name: d
    for d in (
        Device("h100", r"\bH100\b(?!.*(PCIe|NVL))", "sm_90a", 132, 1.755, 3.35, 3.0, 50 * _MB, 5.5, 989, 800, 496, 800),
        Device("h200", r"\bH200\b", "sm_90a", 132, 1.755, 4.8, 4.3, 50 * _MB, 5.5, 989, 790, 490, 800),
        Device("a100", r"\bA100\b", "sm_80", 108, 1.41, 2.04, 1.76, 40 * _MB, 4.0, 312, 270, 270),
        Device("a800", r"\bA800\b", "sm_80", 108, 1.41, 2.04, 1.76, 40 * _MB, 4.0, 312, 270, 270),
        Device("a10", r"\bA10\b", "sm_86", 72, 1.695, 0.6, 0.53, 6 * _MB, 1.8, 125, 106, 106, half_rate=2),
        Device("rtx3090", r"\bRTX 3090\b", "sm_86", 82, 1.695, 0.936, 0.834, 6 * _MB, 2.0, 71, 65, 65, half_rate=2),
        Device("rtx4090", r"\bRTX 4090\b", "sm_89", 128, 2.52, 1.008, 0.926, 72 * _MB, 5.0, 165, 172, 172, half_rate=2),
        Device("l40s", r"\bL40S\b", "sm_89", 142, 2.52, 0.864, 0.814, 96 * _MB, 5.0, 362, 300, 300, half_rate=2),
    )
}


def find_device(name: str) -> Device:
    """Return a device by its short name, or by what the driver calls it (`NVIDIA H100 80GB HBM3`).

    Raises
    ------
    TilusError
        If the table has none of that name.
    """
    if name.lower() in DEVICES:
        return DEVICES[name.lower()]
    for device in DEVICES.values():
        if re.search(device.title, name):
            return device
    raise TilusError(f"the limits of device {name!r} are not known", hint=f"known are {', '.join(DEVICES)}")
