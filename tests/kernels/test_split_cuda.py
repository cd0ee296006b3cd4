"""Blocks that share K, on a device: in graphs, on two streams, again and again, the bits are the same.

What the tests call is run in simulation as well, where there are neither streams nor graphs.
"""

from __future__ import annotations

import pytest
import torch

import tilus
from tests.kernels.cases import activations
from tests.kernels.test_matmul import as_torch
from tests.tolerance import TENSOR_CORE, check
from tilus.dtypes import f16
from tilus.kernels.calls import Kernels, Operands
from tilus.kernels.candidates import Problem, default_configuration
from tilus.runtime.weights.weight import QuantizedWeight

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")]
N, K, SPLIT = 200, 2048, 3
ROUNDS = 50


def weight_on(device: str) -> QuantizedWeight:
    values = torch.randn(N, K, generator=torch.Generator().manual_seed(0)).half() + 0.5
    return tilus.quantize(values.to(device), "u4", 128, zero_point=True)


def product(x: torch.Tensor, w: QuantizedWeight, split: int = SPLIT) -> torch.Tensor:
    """Return x times a weight; `split` blocks share K whatever dispatch would choose."""
    problem = Problem(w.format, f16, f16, False, x.shape[0], N, K)
    kernels = Kernels.of(default_configuration(problem).replace(SPLIT=split))
    assert (kernels.adder is None) == (split == 1)
    y = x.new_full((x.shape[0], N), torch.nan)
    for kernel, args in Operands(x, w.words, w.scales, w.zero_points, None, y, w.format).calls(kernels):
        kernel(*args)
    return y


def batch(device: str, seed: int = 0, m: int = 5) -> torch.Tensor:
    return as_torch(activations("f16", m + seed, K))[seed:].to(device)


def test_a_product_in_simulation() -> None:
    with tilus.knobs.scope(target="simt:sm_90a"):
        w, x = weight_on("cpu"), batch("cpu")
        y = product(x, w)
        assert torch.equal(product(x, w), y)
    check(y, x, w, None, unit=TENSOR_CORE)


@pytest.fixture
def w() -> QuantizedWeight:
    return weight_on("cuda")


class TestOnAGpu:
    pytestmark = ON_GPU

    def test_every_run_has_the_same_bits(self, w: QuantizedWeight) -> None:
        x = batch("cuda")
        y = product(x, w)
        check(y, x, w, None, unit=TENSOR_CORE)
        assert all(torch.equal(product(x, w), y) for _ in range(ROUNDS))

    def test_streams_share_nothing(self, w: QuantizedWeight) -> None:
        """Both streams' launches overlap: sums in one array would be those of either."""
        given = [batch("cuda", seed) for seed in range(2)]
        wanted = [product(x, w) for x in given]
        torch.cuda.synchronize()
        streams, found = [torch.cuda.Stream() for _ in given], [[], []]
        for _ in range(ROUNDS):
            for x, stream, results in zip(given, streams, found, strict=True):
                with torch.cuda.stream(stream):
                    results.append(product(x, w))
        torch.cuda.synchronize()
        assert all(torch.equal(y, right) for results, right in zip(found, wanted, strict=True) for y in results)

    def test_a_graph_owns_its_sums(self, w: QuantizedWeight) -> None:
        """A replay beside other products: the memory of its sums is nobody else's."""
        x, others = batch("cuda"), batch("cuda", 1)
        wanted, other = product(x, w), product(others, w)
        held = torch.zeros_like(x)
        product(held, w)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = product(held, w)
        held.copy_(x)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        for _ in range(ROUNDS):
            y.fill_(torch.nan)
            graph.replay()
            with torch.cuda.stream(side):
                beside = product(others, w)
            torch.cuda.synchronize()
            assert torch.equal(y, wanted)
            assert torch.equal(beside, other)

    @pytest.mark.parametrize("split", [1, 2, 4])
    def test_a_model_in_a_graph(self, w: QuantizedWeight, split: int) -> None:
        """Two products in a row, whose sums may take the same memory one after the other."""
        x = batch("cuda")
        again = tilus.quantize((torch.randn(K, N, device="cuda") / K).half(), "i4", 64)

        def forward(given: torch.Tensor) -> torch.Tensor:
            return product(tilus.matmul(product(given, w, split), again), w, split)

        wanted, held = forward(x), x.clone()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = forward(held)
        for _ in range(ROUNDS):
            graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, wanted)
