"""A dequantizing product in Triton, as one would write it: tuned; small batches are split along K, and added up."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

_CONFIGS = [
    triton.Config({"BN": bn, "SPLIT": split}, num_warps=warps, num_stages=stages)
    for bn in (32, 64, 128)
    for split in (1, 2, 4, 8)
    for warps, stages in ((4, 3), (4, 5), (8, 4))
]
_LARGEST_TILE = 64
_MOST_PARTS = max(config.kwargs["SPLIT"] for config in _CONFIGS)


def _parts(m: int) -> int:
    """Return how many parts of K a batch may be split into: tiles of large ones are blocks enough."""
    return _MOST_PARTS if m <= _LARGEST_TILE else 1


def _pruned(configs: list[triton.Config], arguments: dict[str, Any], **_: Any) -> list[triton.Config]:
    return [config for config in configs if config.kwargs["SPLIT"] <= _parts(arguments["m"])]


@triton.autotune(
    configs=_CONFIGS, key=["bucket", "n", "k", "BITS", "GROUP"], prune_configs_by={"early_config_prune": _pruned}
)
@triton.jit
def _kernel(
    x, words, scales, zeros, parts, y, m, n, k, bucket,
    BITS: tl.constexpr, GROUP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    part = tl.program_id(2)
    inside = columns < n
    per: tl.constexpr = 32 // BITS
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(part * BK, k, SPLIT * BK):
        along = start + tl.arange(0, BK)
        a = tl.load(x + rows[:, None] * k + along[None, :], mask=rows[:, None] < m, other=0.0)
        w = tl.load(words + (along // per)[:, None] * n + columns[None, :], mask=inside[None, :], other=0)
        codes = (w >> (along % per * BITS)[:, None]) & ((1 << BITS) - 1)
        group = start // GROUP * n
        scale = tl.load(scales + group + columns, mask=inside, other=0.0)
        zero = tl.load(zeros + group + columns, mask=inside, other=0)
        values = (codes.to(tl.float16) - zero.to(tl.float16)[None, :]) * scale[None, :]
        total += tl.dot(a, values)
    place = rows[:, None] * n + columns[None, :]
    exists = (rows[:, None] < m) & inside[None, :]
    if SPLIT == 1:
        tl.store(y + place, total.to(tl.float16), mask=exists)
    else:
        tl.store(parts + part * m * n + place, total, mask=exists)


def matmul_dequantized(
    x: torch.Tensor, words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int, group: int
) -> torch.Tensor:
    """Return x [m, k] f16 times a weight: codes as `pack_along_k` packs them, scales and zeros [groups, n]."""
    (m, k), n = x.shape, words.shape[1]
    tile = min(max(triton.next_power_of_2(m), 16), _LARGEST_TILE)
    most = _parts(m)
    parts = torch.empty((most if most > 1 else 0, m, n), dtype=torch.float32, device=x.device)
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)

    def grid(chosen: dict[str, int]) -> tuple[int, int, int]:
        return triton.cdiv(m, tile), triton.cdiv(n, chosen["BN"]), chosen["SPLIT"]

    bucket = triton.next_power_of_2(m)
    _kernel[grid](
        x, words, scales, zeros, parts, y, m, n, k, bucket, BITS=bits, GROUP=group, BM=tile, BK=min(group, 64)
    )
    used = _kernel.best_config.kwargs["SPLIT"]
    return y if used == 1 else parts[:used].sum(0).half()
