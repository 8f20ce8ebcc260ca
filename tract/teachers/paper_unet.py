"""Describe a U-Net by another project's tensors, and name the layers of the paper's."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor, nn

from tract.base.checks import reading
from tract.unet import UNet

SMALLEST = 8  # pixels at the last resolution of every published one, of 32, 64 or 128 pixels


def describe(
    path: Path, tensors: dict[str, Tensor], read_options: Callable[[dict[str, Tensor]], dict]
) -> dict:
    """Description, for `build_denoiser`, of the paper's network that these tensors are of.

    read_options: from tensors to options of UNet, but for what follows from the image's size, and
    "attentive", the indices of resolutions with attention. ValueError if there is no such network.
    """
    with reading(path, "holds no network of this kind", "use another"):
        options = read_options(tensors)
        options["image_size"] = SMALLEST * 2 ** (len(options["channel_mult"]) - 1)
        options["attention"] = [options["image_size"] // 2**i for i in options.pop("attentive")]
    outputs, channels = options["out_channels"], options["image_channels"]
    if outputs not in (channels, 2 * channels):
        raise ValueError(
            f"{path} makes {outputs} channels of {channels}: use a network that makes as many, or "
            "twice as many"
        )
    prediction = "x0" if outputs == channels else "x0_eps"
    return {"net": "unet", "prediction": prediction, "sigma_data": 0.5, "options": options}


def numbers(tensors: dict[str, Tensor], pattern: str) -> list[int]:
    """Numbers, rising, that a pattern's group stands for in names that match it."""
    found = (re.fullmatch(pattern, name) for name in tensors)
    return sorted(int(match[1]) for match in found if match)


def layers(
    net: UNet, names: dict[str, str], inner: dict[str, str]
) -> Iterator[tuple[str, nn.Module, str]]:
    """Our name, the layer, and another project's name, with a "/" before what is inside a block.

    names: of our blocks, and of layers that are in none; inner: of layers in blocks, where they
    differ from ours.
    """
    for ours, layer in net.named_modules():
        if not list(layer.parameters(recurse=False)):
            continue
        if ours in names:
            yield ours, layer, names[ours]
        else:
            block, _, name = ours.rpartition(".")
            yield ours, layer, f"{names[block]}/{inner.get(name, name)}"
