"""`tilus.matmul`: activations times a quantized weight, on the device where they live."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import cache, partial
from math import prod
from typing import Any

import numpy as np

from tilus.dtypes import DataType
from tilus.errors import LaunchError
from tilus.kernels.calls import Call, Kernels, Operands
from tilus.kernels.candidates import ANY_SCALE, Configuration, Problem, bucket, default_configuration
from tilus.kernels.configure import adding_kernel, ending, matmul_program, rows_per_block
from tilus.kernels.configure_cpu import CPU_BATCH_TILES
from tilus.kernels.epilogues import result_columns
from tilus.kernels.fixed import fixed_calls, is_wanted
from tilus.kernels.tuning import Timer, choose
from tilus.runtime.arguments import element_type, is_torch
from tilus.runtime.cuda_timer import event_seconds
from tilus.runtime.knobs import knobs
from tilus.runtime.launch_cuda import device_name
from tilus.runtime.targets import Device, code_device
from tilus.runtime.weights.packing import native_packs
from tilus.runtime.weights.weight import QuantizedWeight, WeightFormat

MOST_ROWS = (1 << 31) - 1  # kernels count rows in i32
ACTIVATIONS = ("f16", "bf16", "f32")


def matmul(x: Any, weight: QuantizedWeight, bias: Any | None = None, activation: str = "none") -> Any:
    """Return `activation(x @ weight.dequantize().T + bias)`, computed in f32, in the type of `x`.

    On a CPU, with weights of integers, x of f16 or bf16 is rounded to 16-bit integers, in groups of at most 128 columns
    with a scale each: an error of at most 1 / 65534 of the largest of a group. `knobs.cpu_activations` chooses.

    Parameters
    ----------
    x : array [..., K] of f16, bf16 or f32
        NumPy or torch, as the weight is; need not be contiguous.
    weight : QuantizedWeight
        [N, K]
    bias : array [N] of the type of `x`, optional
    activation : {"none", "relu", "gelu", "gelu_tanh", "silu", "silu_mul"}
        What results go through before they are rounded and written; `gelu_tanh` is the usual approximation of gelu.
        For `silu_mul` the weight is that of a gate, rows [0, N / 2), and of an up projection: `silu(gate) * up`,
        [..., N / 2], is returned.

    Raises
    ------
    LaunchError
        Shapes, types or devices that do not fit, an unknown activation.
    """
    if not isinstance(weight, QuantizedWeight):
        raise LaunchError(
            f"the weight must be a QuantizedWeight, got {type(weight).__name__}", hint="tilus.quantize makes one"
        )
    n, k = weight.shape
    check_activations(x)
    if x.shape[-1] != k:
        raise LaunchError(f"x has shape {tuple(x.shape)}, expected [..., {k}] for a weight of [{n}, {k}]")
    check_home("weight", weight.words, x)
    if bias is not None:
        check_home("bias", bias, x)
    weight = weight.packed_for(device_kind(x))
    operands = (x, weight.words, weight.scales, weight.zero_points, bias)
    if not is_torch(x):
        return run(*operands, weight.format, n, activation)
    return _torch_operator()(*operands, weight.format_text, n, activation)


def _torch_operator() -> Any:
    """Return `torch.ops.tilus.quantized_matmul`, registered when the first tensor comes."""
    global _operator
    if _operator is None:
        _operator = importlib.import_module("tilus.kernels.torch_ops").QUANTIZED_MATMUL
    return _operator


_operator: Any = None  # no functools.cache: torch.compile warns of it, here and in what `matmul` calls


def run(
    x: Any,
    words: Any,
    scales: Any,
    zero_points: Any | None,
    bias: Any | None,
    form: WeightFormat,
    n: int,
    activation: str,
) -> Any:
    """Check the operands and run the kernel: what `torch.ops.tilus.quantized_matmul` calls."""
    check_operands(x, words, scales, zero_points, bias, form, n)
    k = x.shape[-1]
    m, columns = prod(x.shape[:-1]), result_columns(activation, n)
    if m > MOST_ROWS:
        raise LaunchError(f"x has {m} rows, a call takes at most {MOST_ROWS}", hint="call it for parts of x")
    y = x.new_empty((m, columns)) if is_torch(x) else np.empty((m, columns), x.dtype)
    if m and n:
        operands = Operands(x.reshape(m, k), words, scales, zero_points, bias, y, form)
        for launch, args in prepare(operands, activation):
            launch(*args)
    return y.reshape(*x.shape[:-1], columns)


def prepare(operands: Operands, epilogue: str = "none") -> list[Call]:
    """Return the kernels for a product, and what to call them with, in this order."""
    x, scales, form, has_bias = operands.x, operands.scales, operands.form.of_stored, operands.bias is not None
    if not x.shape[1]:
        return [operands.sums_of_nothing(epilogue)]
    any_scale = form if form.tensor_scale == 1.0 else replace(form, tensor_scale=ANY_SCALE)
    m, n, k, device = x.shape[0], operands.rows, x.shape[1], device_kind(x)
    if device == "cpu":
        _check_order(form, device)
        if is_wanted(form, x):
            return fixed_calls(operands, any_scale, *_types(form, x.dtype, scales.dtype), epilogue)
        rows = min(m, CPU_BATCH_TILES[-1])
        return operands.calls(_on_cpu(any_scale, x.dtype, scales.dtype, rows, has_bias, epilogue))
    x_type, scale_type = _types(form, x.dtype, scales.dtype)
    problem = Problem(any_scale, x_type, scale_type, has_bias, bucket(m, form, x_type), n, k, epilogue)
    return operands.calls(_chosen(problem, _gpu(x), partial(_seconds, operands)))


def _seconds(operands: Operands, configuration: Configuration) -> float:
    """Return the time of a product on the GPU where its operands live."""

    def run_all() -> None:
        for kernel, args in operands.calls(Kernels.of(configuration)):
            kernel(*args)

    return event_seconds(run_all, operands.x.device.index)


def _gpu(x: Any) -> str | None:
    """Return what the driver calls the GPU where an array lives; None on the CPU, and where a target is forced."""
    if not is_torch(x) or x.device.type != "cuda" or knobs.target:
        return None
    return device_name(str(x.device))


_CHOSEN: dict[tuple[Problem, str | None, bool], Kernels] = {}


def _chosen(problem: Problem, gpu: str | None, timer: Timer) -> Kernels:
    """Return the kernels for a GPU: the model's choice, or the fastest where the knob `tune` says to measure."""
    key = problem, gpu, knobs.tune
    found = _CHOSEN.get(key)
    if found is None:
        _check_order(problem.form, "cuda")
        chosen = choose(problem, gpu, timer if knobs.tune else None) if gpu else default_configuration(problem)
        found = _CHOSEN[key] = Kernels.of(chosen)
    return found


def _types(form: WeightFormat, activation: Any, scale: Any) -> tuple[DataType, DataType]:
    """Return the types of activations and scales, from arrays that were checked."""
    x_type, scale_type = element_type(activation), form.scale or element_type(scale)
    assert x_type is not None, "check_operands ran"
    assert scale_type is not None, "check_operands ran"
    return x_type, scale_type


@cache
def _on_cpu(form: WeightFormat, activation: Any, scale: Any, m: int, bias: bool, epilogue: str) -> Kernels:
    """Return the kernel for a batch of `m`, where the largest tile stands for all that is more."""
    x_type, scale_type = _types(form, activation, scale)
    bm = rows_per_block(m, "cpu", form.dtype, x_type)
    program, constants = matmul_program(form, x_type, scale_type, bm, bias)
    constants |= ending(epilogue)
    return Kernels(program.bind(**constants), adding_kernel(constants))


def _check_order(form: WeightFormat, device: Device) -> None:
    native = native_packs(form.dtype, device)
    if form.pack not in native:
        raise LaunchError(
            f"the words are packed as {form.pack}, this machine's kernels for {device} read {native[0]}",
            hint="QuantizedWeight.packed_for repacks them",
        )


def device_kind(x: Any) -> Device:
    """Return the kind of device whose packed order the kernels for `x` read."""
    if not is_torch(x):
        return code_device("cpu")
    import torch  # x is a tensor: torch is loaded already

    place = x.device.type
    if torch.compiler.is_compiling():  # which cannot read knobs
        return "cuda" if place == "cuda" else "cpu"
    return code_device(place)


def check_home(name: str, array: Any, x: Any) -> None:
    """Raise `LaunchError` unless two arrays can be worked on together: of one library, on one device."""
    if home(array) != home(x):
        raise LaunchError(
            f"x is {_words(x)}, but the {name} is {_words(array)}",
            hint="quantize and call with arrays of one library and device",
        )


def home(x: Any) -> Any:
    """Return the library and device of an array, as something to compare."""
    return x.device if is_torch(x) else np.ndarray if isinstance(x, np.ndarray) else type(x)


def _words(x: Any) -> str:
    if is_torch(x):
        return f"a torch tensor on {x.device}"
    return "a NumPy array" if isinstance(x, np.ndarray) else f"a {type(x).__name__}"


def check_activations(x: Any) -> None:
    """Raise `LaunchError` unless `x` is an array of one or more dimensions and a type that kernels multiply."""
    if not is_torch(x) and not isinstance(x, np.ndarray):
        raise LaunchError(
            f"x must be a NumPy array or a torch tensor, got {type(x).__name__}", hint="numpy.asarray(x) makes one"
        )
    kind = element_type(x.dtype)
    if kind is None or kind.name not in ACTIVATIONS:
        raise LaunchError(f"x must be an array of {', '.join(ACTIVATIONS)}, got dtype {x.dtype}", hint="convert it")
    if not x.shape:
        raise LaunchError("x must have shape [..., K], got a scalar")
    if is_torch(x) and x.device.type not in ("cpu", "cuda", "meta"):
        raise LaunchError(f"there are no kernels for device {x.device}", hint="move x to the CPU or an NVIDIA GPU")


def check_operands(
    x: Any, words: Any, scales: Any, zero_points: Any | None, bias: Any | None, form: WeightFormat, n: int
) -> None:
    """Raise `LaunchError` unless the operands of the operator fit together: a kernel reads what these shapes say."""
    check_activations(x)
    k = x.shape[-1]
    per_group = (form.groups(k), n)
    _check_operand("words", words, x, form.pack.packed_shape(n, k), ("u32", "i32"))
    _check_operand("scales", scales, x, per_group, ACTIVATIONS if form.scale is None else ("u8",))
    if (zero_points is None) == (form.zero_point == "tensor"):
        raise LaunchError(
            f"the weight's format has zero points '{form.zero_point}', but zero_points "
            f"{'is missing' if zero_points is None else 'is given'}"
        )
    if zero_points is not None:
        _check_operand("zero_points", zero_points, x, per_group, ("i8",) if form.dtype.is_signed else ("u8",))
    if bias is not None:
        kind = element_type(x.dtype)
        _check_operand("bias", bias, x, (n,), (str(kind),))


def _check_operand(name: str, array: Any, x: Any, shape: tuple[int, ...], kinds: tuple[str, ...]) -> None:
    check_home(name, array, x)
    kind: DataType | None = element_type(array.dtype)
    if tuple(array.shape) != shape or kind is None or kind.name not in kinds:
        raise LaunchError(
            f"{name} must be an array {list(shape)} of {' or '.join(kinds)} for x of shape {list(x.shape)}, "
            f"got {list(array.shape)} of {kind or array.dtype}"
        )
