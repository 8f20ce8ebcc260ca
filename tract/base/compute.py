"""Device, threads, precision, memory format and compilation.

None of it changes a result by more than rounding: it belongs to where and when something ran.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tract.base.checks import check_choice, check_flag, check_whole

PRECISIONS = ("fp32", "tf32", "bf16")
FLAGS = ("channels_last", "compile", "recompute")


def device() -> str:
    """The device to compute on: a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_threads(count: int) -> None:
    """Compute with so many CPU threads; 0 leaves the number to torch. ValueError below 0.

    Threads wait for each other at every layer: with small layers two are hardly faster than one,
    and far slower as soon as another program wants one of their cores.
    """
    check_whole("threads", count, 0)
    if count:
        torch.set_num_threads(count)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How networks are computed. ValueError names what cannot be, or cannot be on this device.

    Weights, gradients, the optimizer and averages are float32 and levels float64 throughout.
    """

    precision: str = "fp32"  # of products and convolutions: in full, in TF32, or by bf16 autocast
    channels_last: bool = False  # pixel by pixel in memory, as tensor cores want it
    compile: bool = False  # by torch.compile: minutes once, then fewer passes over memory
    recompute: bool = False  # blocks once more in the backward pass, instead of keeping them
    micro_batch: int = 0  # images that the student sees at a time; 0 for the whole batch

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
        if self.precision == "tf32" and capability < (8, 0):
            raise ValueError(f"{name} has no TF32: use precision fp32")
        if self.precision == "bf16" and cuda and capability < (8, 0):
            raise ValueError(f"{name} has no bf16: use precision fp32")
        if self.compile and not (_has_triton() if cuda else _has_compiler()):
            needed = "the package triton" if cuda else "a C++ compiler (g++, clang++ or $CXX)"
            raise ValueError(f"compile needs {needed}, and there is none: install it, or leave out")

    @classmethod
    def of(cls, words: Sequence[str]) -> "Compute":
        """From words, as parameters and commands give them: ["bf16", "micro_batch=64"]."""
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"compute is {words!r}: use a list, such as ['bf16', 'channels_last']")
        options = {}
        for word in words:
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
        """Rows of tensors (B, ...) that the student sees at a time; None stays None."""
        batch = len(tensors[0])
        size = self.micro_batch or batch
        for start in range(0, batch, size):
            rows = slice(start, start + size)
            yield tuple(None if tensor is None else tensor[rows] for tensor in tensors)


EAGER = Compute()


def compute_of(text: str) -> Compute:
    """What `str` made a text of, such as bf16+channels_last; ValueError for any other text."""
    return Compute.of(text.split("+"))


def peak_memory(*, reset: bool = False) -> dict[str, float]:
    """The most memory that tensors had on the GPU since the last reset, if there is one."""
    if device() == "cpu":
        return {}
    peak = torch.cuda.max_memory_allocated() / 1e6
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return {"peak_memory_mb": round(peak, 1)}


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


@contextmanager
def matmul_precision(compute: Compute) -> Iterator[None]:
    """Products and convolutions of float32 in full, or in TF32 if compute says so.

    Left alone, torch rounds the inputs of convolutions on a GPU to TF32 and those of matrix
    products not.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = compute.precision == "tf32"
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


class Recomputable(nn.Module):
    """A block that can be computed again in the backward pass, so that its inside is not kept."""

    recompute = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(super().__call__, *inputs, use_reentrant=False)
        return super().__call__(*inputs)


def prepare_network(network: nn.Module, compute: Compute) -> None:
    """Set what compute asks of a network itself: its memory format, and what it keeps.

    ValueError if it is to recompute blocks and has none that can.
    """
    if compute.channels_last:
        network.to(memory_format=torch.channels_last)
    blocks = [part for part in network.modules() if hasattr(part, "recompute")]
    if compute.recompute and not blocks:
        raise ValueError("recompute is asked of a network without blocks for it: leave it out")
    for block in blocks:
        block.recompute = compute.recompute


def with_precision(denoise: Callable[..., Tensor], compute: Compute) -> Callable[..., Tensor]:
    """The same denoiser in the precision of compute, and compiled; oracles stay as they are."""
    if not isinstance(denoise, nn.Module):
        return denoise
    run = torch.compile(denoise) if compute.compile else denoise
    if compute.precision != "bf16":
        return run

    def autocast(x_t: Tensor, *inputs) -> Tensor:
        with torch.autocast(x_t.device.type, torch.bfloat16):
            return run(x_t, *inputs)

    return autocast
