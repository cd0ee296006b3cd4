"""What a quantized matmul on the CPU is measured against: each peer with its own weights, as calls to be timed.

A peer gets activations x [M, K] in f32 and makes `copies` of its weight. Its calls go round the copies, so that with
enough of them every call finds its weight in main memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

import tilus
from tilus.runtime.weights import QuantizedWeight

GROUP = 128


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to multiply.

    Attributes
    ----------
    name : str
    nbytes : int
        Of one copy of the weight, scales included.
    tolerance : float
        Greatest relative error (Frobenius) to the float64 product of its own weight.
    make : callable
        x and a number of copies to (call, calls at once, result): `call()` runs `calls at once` products.
    weight : array [N, K]
        What it multiplies by, in float64.
    """

    name: str
    nbytes: int
    tolerance: float
    make: Callable[[np.ndarray, int], tuple[Callable[[], object], int, Callable[[], np.ndarray]]]
    weight: np.ndarray


def rotating(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Return a function that runs the next of some calls each time."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def ours(weight: np.ndarray, name: str, activations: str) -> Peer:
    """`tilus.matmul` with f16 scales and f32 activations, which it multiplies as they are or in fixed point."""
    qw = tilus.quantize(torch.from_numpy(weight), name, GROUP, scale_dtype="f16")

    def make(x: np.ndarray, copies: int):
        tensor = torch.from_numpy(x)
        copied = [_copy(qw) for _ in range(copies)]

        def product(w: QuantizedWeight) -> torch.Tensor:
            with tilus.knobs.scope(cpu_activations=activations):
                return tilus.matmul(tensor, w)

        return rotating([partial(product, w) for w in copied]), 1, lambda: product(qw).numpy()

    return Peer(f"tilus {name}, {activations}", qw.nbytes, 1e-4, make, qw.dequantize("f64").numpy())


def _copy(qw: QuantizedWeight) -> QuantizedWeight:
    zeros = None if qw.zero_points is None else qw.zero_points.clone()
    return replace(qw, words=qw.words.clone(), scales=qw.scales.clone(), zero_points=zeros)


def torch_linear(weight: np.ndarray, dtype: torch.dtype) -> Peer:
    """`F.linear` with a weight that is not quantized."""
    dense = torch.from_numpy(weight).to(dtype)

    def make(x: np.ndarray, copies: int):
        tensor = torch.from_numpy(x).to(dtype)
        copied = [dense.clone() for _ in range(copies)]
        call = rotating([lambda w=w: torch.nn.functional.linear(tensor, w) for w in copied])
        return call, 1, lambda: torch.nn.functional.linear(tensor, dense).float().numpy()

    name = str(dtype).removeprefix("torch.")
    exact = dtype == torch.float32
    return Peer(f"torch {name}", dense.numel() * dense.element_size(), 1e-5 if exact else 1e-2, make, _f64(dense))


def _symmetric(weight: np.ndarray) -> QuantizedWeight:
    """Return u4 codes with the constant zero point 8, which is what the peers' kernels expect."""
    return tilus.quantize(weight, "u4", GROUP, zero_point=False)


def torch_int4(weight: np.ndarray) -> Peer:
    """Torch's own 4-bit kernel, bf16 activations: `_weight_int4pack_mm_for_cpu`."""
    qw = _symmetric(weight)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(qw.codes().astype(np.int32)), 2)
    # it computes (code - 8) * scale + zero
    scales = torch.from_numpy(np.ascontiguousarray(qw.scales)).bfloat16()
    scales_zeros = torch.stack([scales, torch.zeros_like(scales)], dim=-1).contiguous()
    rounded = (qw.codes().astype(np.float64) - 8) * np.repeat(_f64(scales).T, GROUP, axis=1)

    def make(x: np.ndarray, copies: int):
        tensor = torch.from_numpy(x).bfloat16()
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        copied = [(packed.clone(), scales_zeros.clone()) for _ in range(copies)]
        call = rotating([lambda w=w, s=s: product(tensor, w, GROUP, s) for w, s in copied])
        return call, 1, lambda: product(tensor, packed, GROUP, scales_zeros).float().numpy()

    nbytes = sum(t.numel() * t.element_size() for t in (packed, scales_zeros))
    return Peer("torch int4", nbytes, 2e-2, make, rounded)


def onnxruntime_int4(weight: np.ndarray, accuracy_level: int, threads: int) -> Peer:
    """ONNX Runtime's `MatMulNBits`: level 0 computes in f32, level 4 with activations in 8 bits."""
    qw = _symmetric(weight)
    codes, scales = qw.codes(), np.ascontiguousarray(np.asarray(qw.scales).T).astype(np.float32)
    n, k = codes.shape
    blob = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8).reshape(n, k // GROUP, GROUP // 2)

    def make(x: np.ndarray, copies: int):
        session = _session(blob, scales, len(x), k, accuracy_level, threads, copies)
        return lambda: session.run(None, {"x": x}), copies, lambda: session.run(["y0"], {"x": x})[0]

    exact = (codes.astype(np.float64) - 8) * np.repeat(scales.astype(np.float64), GROUP, axis=1)
    tolerance = 1e-5 if accuracy_level == 0 else 2e-2
    return Peer(f"onnxruntime int4, level {accuracy_level}", blob.nbytes + scales.nbytes, tolerance, make, exact)


def _session(blob: np.ndarray, scales: np.ndarray, m: int, k: int, level: int, threads: int, copies: int):
    """Return a session of one graph with `copies` products, each with weights of its own."""
    import onnx
    import onnxruntime

    n = len(blob)
    nodes, weights = [], []
    for i in range(copies):
        # Rolled, so that no two weights are equal: what is equal could be merged.
        packed, scale = np.roll(blob, i, axis=0), np.roll(scales, i, axis=0).ravel()
        weights += [onnx.numpy_helper.from_array(packed, f"w{i}"), onnx.numpy_helper.from_array(scale, f"s{i}")]
        attributes = {"K": k, "N": n, "bits": 4, "block_size": GROUP, "accuracy_level": level}
        inputs = ["x", f"w{i}", f"s{i}"]
        nodes.append(onnx.helper.make_node("MatMulNBits", inputs, [f"y{i}"], domain="com.microsoft", **attributes))
    f32 = onnx.TensorProto.FLOAT
    outputs = [onnx.helper.make_tensor_value_info(f"y{i}", f32, [m, n]) for i in range(copies)]
    graph = onnx.helper.make_graph(
        nodes, "products", [onnx.helper.make_tensor_value_info("x", f32, [m, k])], outputs, weights
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _f64(tensor: torch.Tensor) -> np.ndarray:
    result: np.ndarray = tensor.double().numpy()
    return result
