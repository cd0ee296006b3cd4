"""The demonstration: quantize a real model's linear layers, run it on the CPU, check it, look at its GPU kernels."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from tilus.demo.accuracy import LayerErrors, cosines, layer_errors
from tilus.demo.floors import floor
from tilus.demo.model import SentenceEncoder, load_encoder
from tilus.demo.report import GpuResult, Report, TypeResult
from tilus.demo.sentences import SENTENCES
from tilus.dtypes import DataType, f16
from tilus.errors import TilusError
from tilus.kernels.cost import matmul_cost
from tilus.kernels.linear import QuantLinear
from tilus.kernels.sample import sample_product
from tilus.runtime.knobs import knobs
from tilus.runtime.weights.quantize import quantize

BATCH_TILE = 8
CHECKED_SHAPE = 8, 128, 1024  # M, N, K of the product that the GPU's code runs on the CPU
ROUNDS = 9
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What to demonstrate.

    Attributes
    ----------
    types : tuple of DataType
    group_size : int
    sentences : Path, optional
        A text file, one sentence per line, read after the demo's own.
    target : str
        A CUDA target.
    layers : int, optional
        Quantize the first few linear layers only.
    """

    types: tuple[DataType, ...]
    group_size: int = 32
    sentences: Path | None = None
    target: str = "sm_90a"
    layers: int | None = None


@dataclass(frozen=True, slots=True)
class _Variant:
    """The model's layers in one weight type, and what was found out about them."""

    kind: DataType
    layers: Mapping[str, QuantLinear]
    errors: tuple[LayerErrors, ...]
    cosine: float
    least_cosine: float
    checked_cosine: float


def run_demo(options: Options) -> Report:
    """Run the demonstration.

    Raises
    ------
    TilusError
        If a package is missing or an option does not fit. What the demo's checks find is in the report.
    """
    if not options.types:
        raise TilusError("no types to show", hint="for instance --types u4,u3")
    start = time.perf_counter()
    # The bar goes to stderr, where it is seen but in no pipe's way; on anything but a terminal there is none.
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("loading the model", total=5 * len(options.types) + 2)

        def step(what: str) -> None:
            progress.update(task, description=what, advance=1)

        with knobs.scope(target="cpu"):
            return _run(options, step, start)


def _run(options: Options, step: Step, start: float) -> Report:
    sentences = SENTENCES + _read_sentences(options.sentences)
    encoder = load_encoder(sentences)
    names = list(encoder.linears)[: options.layers]
    originals = {name: encoder.linears[name] for name in names}
    data, full = encoder.capture(), encoder.embed()
    variants = []
    for kind in options.types:
        step(f"{kind}: quantizing {len(names)} layers")
        layers = {name: _quantized(layer, kind, options.group_size) for name, layer in originals.items()}
        step(f"{kind}: comparing layers")
        errors = tuple(layer_errors(layers[name], originals[name], data[name]) for name in names)
        step(f"{kind}: running the model")
        encoder.install(layers)
        cosine = cosines(encoder.embed(), full)
        checked = float(cosine[: len(SENTENCES)].mean())
        variants.append(_Variant(kind, layers, errors, float(cosine.mean()), float(cosine.min()), checked))
    step("timing")
    times = _milliseconds(encoder, [originals, *(v.layers for v in variants)])
    types = tuple(_type_result(v, ms, options.group_size) for v, ms in zip(variants, times[1:], strict=True))
    gpu = tuple(_gpu_result(v, options, step) for v in variants)
    weights = sum(layer.weight.numel() for layer in originals.values())
    return Report(
        model="all-MiniLM-L6-v2",
        layers=len(names),
        weights=weights,
        sentences=len(sentences),
        tokens=int(encoder.mask.sum()),
        group_size=options.group_size,
        f32_megabytes=4e-6 * weights,
        f32_milliseconds=times[0],
        threads=torch.get_num_threads(),
        target=options.target,
        activation=f16.name,
        batch_tile=BATCH_TILE,
        types=types,
        gpu=gpu,
        problems=tuple(_problems(variants, gpu, options)),
        seconds=time.perf_counter() - start,
    )


def _read_sentences(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise TilusError(f"cannot read sentences from {path}: {error}", hint="a UTF-8 text, one per line") from error
    if not lines:
        raise TilusError(f"{path} has no sentences", hint="write one per line")
    return lines


def _quantized(layer: torch.nn.Linear, kind: DataType, group_size: int) -> QuantLinear:
    bias = None if layer.bias is None else layer.bias
    return QuantLinear(quantize(layer.weight, kind, group_size, scale_dtype=f16), bias).eval()


def _milliseconds(encoder: SentenceEncoder, variants: Sequence[Mapping[str, torch.nn.Module]]) -> list[float]:
    """Return the median time of a forward pass with each set of layers, taken in turns."""
    times: list[list[float]] = [[] for _ in variants]
    for _ in range(ROUNDS):
        for layers, found in zip(variants, times, strict=True):
            encoder.install(layers)
            begin = time.perf_counter()
            encoder.forward()
            found.append(1e3 * (time.perf_counter() - begin))
    encoder.install(variants[0])
    return [median(found) for found in times]


def _type_result(variant: _Variant, milliseconds: float, group_size: int) -> TypeResult:
    weights = [layer.weight for layer in variant.layers.values()]
    nbytes = sum(weight.nbytes for weight in weights)
    return TypeResult(
        name=variant.kind.name,
        bits=8 * nbytes / sum(n * k for n, k in (weight.shape for weight in weights)),
        megabytes=nbytes / 1e6,
        weight_error=fmean(e.weight for e in variant.errors),
        output_error=fmean(e.output for e in variant.errors),
        kernel_error=fmean(e.kernel for e in variant.errors),
        of_bound=max(e.of_bound for e in variant.errors),
        cosine=variant.cosine,
        least_cosine=variant.least_cosine,
        floor=floor(variant.kind, group_size),
        milliseconds=milliseconds,
    )


def _gpu_result(variant: _Variant, options: Options, step: Step) -> GpuResult:
    step(f"{variant.kind}: compiling for {options.target}")
    form = next(iter(variant.layers.values())).weight.format
    cost = matmul_cost(form, f16, f16, bm=BATCH_TILE, target=options.target)
    threads = cost.compiled.ir.num_threads
    assert threads is not None
    step(f"{variant.kind}: running the code for {options.target}")
    (_, args), *_ = sample_product(variant.kind, f16, options.group_size, CHECKED_SHAPE)
    at = [param.var.name for param in cost.compiled.ir.params].index("y")
    y = np.zeros(CHECKED_SHAPE[:2], np.float16)  # of blocks that take all of K, where others would share it
    certificate = cost.compiled.check(*args[:at], y, *args[at + 1 :])
    return GpuResult(
        name=variant.kind.name,
        registers=cost.registers,
        spill_bytes=cost.spills,
        instructions_per_weight=cost.instructions_per_weight,
        bank_conflicts=cost.bank_conflicts,
        shared_bytes=cost.shared_bytes,
        blocks_per_sm=cost.compiled.resources.occupancy(threads),
        findings=len(certificate.faults),
        races=certificate.count("race"),
        run_conflicts=certificate.conflicts,
    )


def _problems(variants: Sequence[_Variant], gpu: Sequence[GpuResult], options: Options) -> list[str]:
    """Return what the demo's checks found wrong."""
    found = []
    for variant in variants:
        for name, errors in zip(variant.layers, variant.errors, strict=True):
            if not errors.of_bound <= 1:
                found.append(
                    f"{variant.kind}: layer {name} is off by {errors.of_bound:.3g} times what rounding allows "
                    f"(relative error {errors.kernel:.2g}): the kernel is wrong"
                )
        least = floor(variant.kind, options.group_size)
        if least is not None and not variant.checked_cosine >= least:
            found.append(
                f"{variant.kind}: the embeddings' mean cosine is {variant.checked_cosine:.4f}, expected {least:.4f} "
                "at least: the quantization or the kernel is wrong"
            )
    found += [f"{row.name}: {row.spill_bytes} bytes spilled on {options.target}" for row in gpu if row.spill_bytes]
    found += [f"{row.name}: {row.findings} findings in the code for {options.target}" for row in gpu if row.findings]
    return found
