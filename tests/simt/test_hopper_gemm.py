"""A matrix product written for sm_90a in CUDA C++: a producer warpgroup, tensor copies, barriers, warpgroup products.

Every synchronisation of it is broken in turn; each time the machine has to say so.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from tilus import simt
from tilus.runtime.nvrtc import compile_cuda

ACCUMULATORS = ", ".join(f"%{i}" for i in range(32))
CONSTRAINTS = ", ".join(f'"+f"(d[{i}])' for i in range(32))
STAGES, STAGE_BYTES = 3, 16384
SOURCE = f"""
using u32 = unsigned int;
using u64 = unsigned long long;
struct alignas(64) Map {{ char bytes[128]; }};

__device__ __forceinline__ void wait(u32 barrier, u32 parity) {{
  asm volatile("{{ .reg .pred p; LOOP: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra LOOP; }}"
               :: "r"(barrier), "r"(parity) : "memory");
}}

__device__ __forceinline__ void load(u32 to, const Map* map, u32 barrier, int x, int y) {{
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {{%3, %4}}], [%2];"
               :: "r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y) : "memory");
}}

// K-major, swizzled by 128 bytes: 8 rows are 1024 bytes.
__device__ __forceinline__ u64 descriptor(u32 address) {{
  return (u64)(address >> 4) | (u64)1 << 16 | (u64)64 << 32 | (u64)1 << 62;
}}

__device__ __forceinline__ void multiply(float* d, u64 a, u64 b) {{
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {{{ACCUMULATORS}}}, %32, %33, 1, 1, 1, 0, 0;"
               : {CONSTRAINTS} : "l"(a), "l"(b));
}}

extern "C" __global__ void __launch_bounds__(256)
gemm(const __grid_constant__ Map a, const __grid_constant__ Map b, float* c, int m, int n, int k) {{
  extern __shared__ __align__(1024) char memory[];
  const u32 base = (u32)__cvta_generic_to_shared(memory);
  const u32 full = base + {STAGES * STAGE_BYTES}, empty = full + {8 * STAGES};
  const int thread = threadIdx.x, steps = (k + 63) / 64, row = blockIdx.x * 64, column = blockIdx.y * 64;
  if (thread == 0) {{
    for (int i = 0; i < {2 * STAGES}; ++i) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(full + 8 * i));
    asm volatile("fence.mbarrier_init.release.cluster;");
  }}
  __syncthreads();
  if (thread < 128) {{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    for (int i = 0; i < steps && thread == 0; ++i) {{
      const int stage = i % {STAGES};
      const u32 to = base + stage * {STAGE_BYTES}, barrier = full + 8 * stage;
      wait(empty + 8 * stage, i / {STAGES} & 1 ^ 1);
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], {STAGE_BYTES};" :: "r"(barrier) : "memory");
      load(to, &a, barrier, i * 64, row);
      load(to + {STAGE_BYTES // 2}, &b, barrier, i * 64, column);
    }}
    return;
  }}
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  float d[32] = {{}};
  for (int i = 0; i < steps; ++i) {{
    const int stage = i % {STAGES};
    const u32 at = base + stage * {STAGE_BYTES};
    wait(full + 8 * stage, i / {STAGES} & 1);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int step = 0; step < 4; ++step)
      multiply(d, descriptor(at + step * 32), descriptor(at + {STAGE_BYTES // 2} + step * 32));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    if (thread == 128) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(empty + 8 * stage) : "memory");
  }}
  for (int i = 0; i < 32; ++i) {{
    const int r = row + (thread / 32 - 4) * 16 + thread % 32 / 4 + 8 * (i / 2 % 2);
    const int q = column + i / 4 * 8 + thread % 4 * 2 + i % 2;
    if (r < m && q < n) c[r * n + q] = d[i];
  }}
}}
"""
M, N, K = 100, 72, 328


@lru_cache(maxsize=16)
def compiled(source: str) -> str:
    binary = compile_cuda(source, "sm_90a", ("--generate-line-info",))
    assert not binary.warnings
    return binary.ptx


def gemm(source: str = SOURCE, landing: str = "late") -> tuple[simt.Report, bool]:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, (x, K)).astype(np.float16) for x in (M, N))
    c = np.zeros((M, N), np.float32)
    maps = [simt.TensorMap(x, (64, 64), swizzle="128B") for x in (a, b)]
    report = simt.run(compiled(source), "gemm", [*maps, c, M, N, K], (2, 2), 256,
                      shared_bytes=STAGES * STAGE_BYTES + 16 * STAGES + 128, landing=landing)  # fmt: skip
    return report, bool((c == a.astype(np.float32) @ b.astype(np.float32).T).all())


@pytest.mark.parametrize("landing", ["late", "early"])
def test_the_product_is_right(landing):
    report, right = gemm(landing=landing)
    assert report.ok, str(report)
    assert right
    assert report.data_independent


WAIT = 'asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");'
GIVE_BACK = next(line.strip() for line in SOURCE.splitlines() if "if (thread == 128)" in line)
BREAKS = {  # what is changed, to what, what is found, and what the line of a finding holds
    "no wait for data": ("wait(full + 8 * stage, i / 3 & 1);", "", {"pending", "race"}, "multiply"),
    "no wait for space": ("wait(empty + 8 * stage, i / 3 & 1 ^ 1);", "", {"race", "pending"}, "load"),
    "too few bytes": (f"[%0], {STAGE_BYTES};", f"[%0], {STAGE_BYTES // 2};", {"race", "pending"}, "multiply"),
    "too many bytes": (f"[%0], {STAGE_BYTES};", f"[%0], {STAGE_BYTES + 16};", {"deadlock"}, "wait("),
    "no fence of barriers": ('asm volatile("fence.mbarrier_init.release.cluster;");', "", {"proxy"}, "load"),
    "no barrier of the block": ("__syncthreads();", "", {"race", "barrier"}, "wait("),
    "no fence of registers": ('asm volatile("wgmma.fence.sync.aligned;" ::: "memory");', "", {"proxy"}, "multiply"),
    "no wait for products": (WAIT, "", {"uninitialized"}, "c[r * n + q]"),
    "a wait for too few products": (WAIT, WAIT.replace("0;", "1;"), {"uninitialized"}, "c[r * n + q]"),
    "space given back too early": (WAIT + "\n    " + GIVE_BACK, GIVE_BACK + WAIT, {"pending"}, "load"),
    "unaligned boxes": ("extern __shared__ __align__(1024) char memory[];", "extern __shared__ __align__(1024) char raw[]; char* memory = raw + 128;", {"misaligned"}, "load"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_broken_synchronisation_is_named(name):
    old, new, kinds, text = BREAKS[name]
    source = SOURCE.replace("i / {STAGES}", "i / 3")
    assert old in source
    report, _ = gemm(source.replace(old, new))
    found = [f for f in report.findings if f.kind in kinds]
    assert found, str(report)
    lines = source.replace(old, new).splitlines()
    assert any(f.source and text in lines[f.source.line - 1] for f in found), str(report)
