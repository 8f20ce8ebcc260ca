"""Device, threads, precision, memory format and compilation.

None of these changes a result by more than rounding, so they are not part of a run's settings.
"""

import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tract.base.checks import check_choice, check_flag, check_whole

PRECISIONS = ("fp32", "tf32", "bf16")
FLAGS = ("channels_last", "compile", "recompute", "autotune")
MOST_THREADS = torch.get_num_threads()  # torch's default, or OMP_NUM_THREADS
GRAPHS = 64  # of torch.compile: one for each network, batch size, precision and format


def device() -> str:
    """Return the device to compute on: a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_threads(count: int, processes: int = 1) -> None:
    """Use this many CPU threads; 0 shares the idle cores among the processes of a run.

    Threads wait for each other at every layer, and so for any program that shares their cores. A
    resumed run uses the number on its card again. Raises ValueError if count is negative.
    """
    check_whole("threads", count, 0, 1024)  # 100,000 cause a segmentation fault
    torch.set_num_threads(count or max(1, idle_cores() // processes))


def idle_cores(seconds: float = 0.3) -> int:
    """Count the cores not used by other programs, at least 1 and at most torch's threads."""
    if not hasattr(os, "sched_getaffinity"):  # only on Linux
        return MOST_THREADS
    before = _idle_seconds()
    time.sleep(seconds)
    return max(1, min(MOST_THREADS, round((_idle_seconds() - before) / seconds)))


def _idle_seconds() -> float:
    """Seconds since boot in which this process's cores were idle or did low-priority work.

    The load average would include programs that have just ended, such as the previous notebook.
    """
    import psutil

    times, cores = psutil.cpu_times(percpu=True), os.sched_getaffinity(0)
    return sum(times[core].idle + times[core].nice + times[core].iowait for core in cores)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How networks are computed. Raises ValueError for an invalid or unavailable option.

    Weights, gradients, the optimizer and averages are always float32, and levels float64.
    """

    precision: str = "fp32"  # of products and convolutions: fp32, tf32, or bf16 by autocast
    channels_last: bool = False  # memory format, which tensor cores prefer
    compile: bool = False  # by torch.compile: takes minutes, then saves memory traffic
    recompute: bool = False  # blocks in the backward pass, to save memory
    autotune: bool = False  # choose cudnn's fastest algorithms: repeatable up to rounding
    micro_batch: int = 0  # the student's images per pass; 0 for the whole batch

    def __post_init__(self):
        check_choice("precision", self.precision, PRECISIONS)
        for name in FLAGS:
            check_flag(name, getattr(self, name))
        check_whole("micro_batch", self.micro_batch, 0)
        self._check_device()

    def _check_device(self) -> None:
        cuda = device() == "cuda"
        capability = torch.cuda.get_device_capability() if cuda else (0, 0)
        name = torch.cuda.get_device_name() if cuda else "the CPU"
        if capability < (8, 0) and self.precision in (("tf32", "bf16") if cuda else ("tf32",)):
            raise ValueError(f"{name} has no {self.precision.upper()}: use precision fp32")
        compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
        found = importlib.util.find_spec("triton") if cuda else any(map(shutil.which, compilers))
        if self.compile and not found:
            needed = "the package triton" if cuda else "a C++ compiler (g++, clang++ or $CXX)"
            raise ValueError(f"compile needs {needed}, which is missing: install it, or omit it")

    @classmethod
    def of(cls, words: str | Sequence[str]) -> "Compute":
        """Parse words in a list or joined by +: ["bf16", "compile"], "bf16+compile"."""
        words = [words] if isinstance(words, str) else words
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"compute is {words!r}: use a list, such as ['bf16', 'channels_last']")
        options = {}
        for word in "+".join(words).split("+") if words else ():
            name, _, number = word.partition("=")
            if name == "micro_batch" and number.isdecimal():
                value = int(number)
            else:
                check_choice("compute", word, (*PRECISIONS, *FLAGS, "micro_batch=64"))
                name, value = ("precision", word) if word in PRECISIONS else (word, True)
            if options.setdefault(name, value) != value:
                raise ValueError(f"compute gives {name} twice, {options[name]} and {value}: choose")
        return cls(**options)

    def __str__(self) -> str:
        words = [self.precision, *(name for name in FLAGS if getattr(self, name))]
        return "+".join(words + [f"micro_batch={self.micro_batch}"] * bool(self.micro_batch))

    def parts(self, *tensors: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
        """Split tensors (B, ...) into the parts (b, ...) of a micro-batch; None stays None."""
        batch = len(tensors[0])
        size = self.micro_batch or batch
        for start in range(0, batch, size):
            rows = slice(start, start + size)
            yield tuple(None if tensor is None else tensor[rows] for tensor in tensors)


EAGER = Compute()


def peak_memory(*, reset: bool = False) -> dict[str, float]:
    """Return the peak of tensor memory on the GPU since the last reset; {} without a GPU."""
    if device() == "cpu":
        return {}
    peak = torch.cuda.max_memory_allocated() / 1e6
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return {"peak_memory_mb": round(peak, 1)}


@contextmanager
def matmul_precision(compute: Compute) -> Iterator[None]:
    """Compute float32 products and convolutions in full, or in TF32 if compute says so; repeatable.

    By default torch rounds inputs of convolutions on a GPU to TF32, but not those of matrix
    products. Without autotune cudnn uses deterministic algorithms.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    tf32 = compute.precision == "tf32"
    wanted = [
        (products, "allow_tf32", tf32),
        (convolutions, "allow_tf32", tf32),
        (convolutions, "benchmark", compute.autotune),
        (convolutions, "deterministic", not compute.autotune),
    ]
    before = [getattr(backend, name) for backend, name, _ in wanted]
    for backend, name, value in wanted:
        setattr(backend, name, value)
    try:
        yield
    finally:
        for (backend, name, _), value in zip(wanted, before, strict=True):
            setattr(backend, name, value)


class Float32Conv2d(nn.Conv2d):
    """A convolution that autocast leaves in the precision of its weights.

    For the first and last layer: few FLOP, but most of bf16's error at low noise.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta:  # counting FLOP, without autocast
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class Recomputable(nn.Module):
    """A block that can be recomputed in the backward pass instead of storing its activations."""

    recompute = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            # Only training mode draws random numbers, and needs their state preserved.
            options = {"use_reentrant": False, "preserve_rng_state": self.training}
            return checkpoint(super().__call__, *inputs, **options)
        return super().__call__(*inputs)


def prepare_network(network: nn.Module, compute: Compute) -> None:
    """Set a network's memory format and whether its blocks recompute.

    Raises ValueError if they should but it has no such blocks.
    """
    if compute.channels_last:
        network.to(memory_format=torch.channels_last)
    blocks = [part for part in network.modules() if hasattr(part, "recompute")]
    if compute.recompute and not blocks:
        raise ValueError("recompute is set, but this network has no blocks for it: omit it")
    for block in blocks:
        block.recompute = compute.recompute


def with_precision(denoise: Callable[..., Tensor], compute: Compute) -> Callable[..., Tensor]:
    """Return the denoiser in compute's precision, and compiled; oracles are returned unchanged."""
    if not isinstance(denoise, nn.Module):
        return denoise
    run = _compiled(denoise) if compute.compile else denoise
    if compute.precision != "bf16":
        return run

    def autocast(x_t: Tensor, *inputs) -> Tensor:
        with torch.autocast(x_t.device.type, torch.bfloat16):
            return run(x_t, *inputs)

    return autocast


def _compiled(denoise: nn.Module) -> Callable[..., Tensor]:
    """Return the denoiser compiled; smaller batches are padded, because a new graph takes minutes.

    All networks share the code of one `forward`, and torch falls back to eager mode after a few
    graphs of it. Here GRAPHS are allowed; one more, or a graph break, is an error.
    """
    run, most = torch.compile(denoise, fullgraph=True, dynamic=False), 0
    torch._dynamo.config.recompile_limit = GRAPHS

    def padded(x_t: Tensor, level, labels: Tensor | None = None) -> Tensor:
        nonlocal most
        count, most = len(x_t), max(len(x_t), most)
        if count < most:
            rows = torch.arange(most, device=x_t.device).clamp(max=count - 1)
            x_t, labels = x_t[rows], None if labels is None else labels[rows]
            level = level[rows] if level.alpha.ndim else level
        return run(x_t, level, labels)[:count]

    return padded
