"""Measure the speed of a training step against bare network calls and matrix products."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from tract.base.compute import Compute, device, matmul_precision, with_precision
from tract.distill import DistillationState
from tract.experiments.results import replace_rows
from tract.jobs.cost import image_flops
from tract.jobs.synthetic import begin, memory, random_data
from tract.levels import levels_of
from tract.networks.build import named_network
from tract.settings import Distillation

ROUNDS = 5
ROUND_SECONDS = 0.5  # a round makes as many steps as fit, but at least one
WIDTH = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product defines the ceiling
ROW = ["network", "device", "batch", "options"]  # the columns that identify a row
MEASURED = ["images_per_second", "overhead_ratio", "utilisation", "peak_memory_mb"]
MEASURED += ["ceiling_tflops"]
# Default batch sizes on a CPU; otherwise 256.
CPU_BATCH = {"digits": 128, "digits_small": 128, "fashion_mnist": 32}
# Compared by default: full float32 with each faster option, and with all of them.
_ALL = "bf16+channels_last+compile"
OPTIONS = {"cpu": ["fp32", "fp32+channels_last", "fp32+compile"]}
OPTIONS["cuda"] = ["fp32", "tf32", "fp32+compile", "bf16", "bf16+channels_last", "bf16+compile"]
OPTIONS["cuda"] += [_ALL, f"{_ALL}+autotune", f"{_ALL}+recompute"]
# Networks whose float32 activations of a whole batch exceed the memory of a GPU.
MICRO_BATCH = {"imagenet64": 64, "edm_imagenet64_adm": 64}


def usual_ways(network_name: str) -> list[Compute]:
    """Return the options compared by default for a named network on this device."""
    size = MICRO_BATCH.get(network_name, 0)
    return [replace(Compute.of(way), micro_batch=size) for way in OPTIONS[device()]]


def bench(network_name: str, batch: int, computes: Iterable[Compute]) -> Iterator[dict]:
    """Yield a row for each way to compute a TRACT step of a named network, on this device.

    batch: images per step; 0 for a default. images_per_second: of training. overhead_ratio: time of
    a step over that of its bare network calls. utilisation: FLOP rate of these calls as a share of
    the ceiling. peak_memory_mb: CUDA's own; otherwise the sum of weights, gradients, moments and
    activations. note: "out of memory" in a row without numbers.
    """
    config = named_network(network_name)
    batch = batch or (CPU_BATCH.get(network_name, 256) if device() == "cpu" else 256)
    images = 2 * 10**6 * batch
    settings = Distillation(train_images=images, batch_size=batch, step_schedule=[1024, 32, 1])
    for compute in computes:
        row = {
            "network": network_name,
            "device": torch.cuda.get_device_name() if device() == "cuda" else "cpu",
            "batch": batch,
            "options": str(compute),
            **dict.fromkeys(MEASURED),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "note": "",
        }
        try:
            row |= _measured(config, settings, compute)
        except torch.OutOfMemoryError:
            row["note"] = "out of memory"
        yield row


def _measured(config: dict, settings: Distillation, compute: Compute) -> dict[str, float]:
    """Return the numbers of a row, by their names in MEASURED."""
    batch = settings.batch_size
    state, records = begin(config, settings, "cosine", 0, compute)
    memory_mb = sum(memory(state, records)) / 1e6
    step, bare = _in_turns(partial(next, records), _bare_calls(state, config, batch, compute))
    speed, ceiling = batch / statistics.median(step), product_flops(compute)
    overhead = statistics.median(a / b for a, b in zip(step, bare, strict=True))
    utilisation = image_flops(config, settings)[0] * speed / ceiling
    numbers = speed, overhead, utilisation, memory_mb, ceiling / 1e12
    return dict(zip(MEASURED, numbers, strict=True))


def _bare_calls(
    state: DistillationState, config: dict, batch: int, compute: Compute
) -> Callable[[], object]:
    """Return the bare network calls of a TRACT step: two forwards, one with its backward."""
    data, levels = random_data(config, batch), levels_of("cosine", 1024).to(device())
    i_t = torch.randint(1, 1025, (batch,), device=device())
    noisy = torch.randn(batch, *data.shape, device=device())
    networks = state.teacher, state.self_teacher, state.student
    *guides, student = (with_precision(network, compute) for network in networks)

    def calls() -> None:
        state.optimizer.zero_grad(set_to_none=True)
        with matmul_precision(compute):
            for x, i, labels in compute.parts(noisy, i_t, data.labels):
                with torch.no_grad():
                    for guide in guides:
                        guide(x, levels[i], labels)
                student(x, levels[i], labels).backward(x)

    return calls


def product_flops(compute: Compute) -> float:
    """Return FLOP per second of a large matrix product in a precision, the median of ROUNDS."""
    kind = torch.bfloat16 if compute.precision == "bf16" else torch.float32
    width = WIDTH[device()]
    a = torch.randn(width, width, device=device(), dtype=kind)
    with matmul_precision(compute):
        times = [_seconds(partial(torch.matmul, a, a), 1) for _ in range(1 + ROUNDS)]
    return 2 * width**3 / statistics.median(times[1:])


def _in_turns(one: Callable, other: Callable) -> tuple[list[float], list[float]]:
    """Return seconds per call of both functions in each of ROUNDS, after a warm-up."""
    for call in (one, other):
        call()
    slowest = max(_seconds(call, 1) for call in (one, other))
    calls = max(1, int(ROUND_SECONDS / slowest))
    rounds = [(_seconds(one, calls), _seconds(other, calls)) for _ in range(ROUNDS)]
    return tuple(map(list, zip(*rounds, strict=True)))


def _seconds(call: Callable, calls: int) -> float:
    """Return mean seconds per call, including the GPU's work."""
    alone = device() == "cpu" and torch.get_num_threads() == 1
    # A single thread is timed by processor time, which other programs do not affect.
    clock = time.process_time if alone else time.perf_counter
    start = clock()
    for _ in range(calls):
        call()
    if device() == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) / calls


def write_throughput(path: str | Path, rows: Iterable[dict]) -> None:
    """Add rows to the table at path, replacing those with the same values of ROW.

    Raises ValueError if the existing table has other columns.
    """
    replace_rows(path, pd.DataFrame(list(rows)).round(4).to_dict("records"), ROW)
