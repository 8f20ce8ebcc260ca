"""Read Google's progressive-distillation checkpoints (Salimans & Ho 2022) without JAX.

Their network is the paper's, `tract.unet.UNet`. A block's name has a dot in it but is one level,
as in "down_0.block_1/conv1/kernel"; arrays have their output channels last.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from tract.denoiser import Denoiser
from tract.teachers.containers import flax_int, flax_tensors, read_flax
from tract.teachers.fill import Take, fill
from tract.teachers.paper_unet import describe, layers, numbers
from tract.unet import DownBlock, UNet, UpBlock

TEACHER_STEPS = 1024  # of their samplers, for networks that were trained in continuous time

INNER = {"emb_proj": "temb_proj", "shortcut": "nin_shortcut"}


def read_google(path: str | Path) -> tuple[Denoiser, int]:
    """The averaged network of a checkpoint, and its number of steps on the cosine levels.

    ValueError, with the array's name, if the file is damaged or does not hold such a network.
    """
    path = Path(path)
    entries = read_flax(path, {"ema_params", "num_sample_steps"})
    if "ema_params" not in entries:
        raise ValueError(f"{path} has no ema_params: use a checkpoint of progressive distillation")
    arrays = flax_tensors(entries["ema_params"], f"{path}: ema_params")
    arrays = {name: _flat(array) if "norm" in name else array for name, array in arrays.items()}
    steps = flax_int(entries.get("num_sample_steps", 0), f"{path}: num_sample_steps")
    denoiser = fill(path, arrays, describe(path, arrays, _options), _weights)
    return denoiser, steps or TEACHER_STEPS


def _options(arrays: dict[str, Tensor]) -> dict:
    """Options for `describe`."""
    _, _, image_channels, channels = arrays["conv_in/kernel"].shape
    sizes = numbers(arrays, r"down_(\d+)\.block_0/conv1/bias")
    widths = [len(arrays[f"down_{i}.block_0/conv1/bias"]) for i in sizes]
    queries = [bias for name, bias in arrays.items() if name.endswith("/q/bias")]  # (heads, C)
    head_channels = {bias.shape[1] for bias in queries if len(bias) > 1}
    if len(head_channels) > 1:
        raise ValueError(f"heads of {sorted(head_channels)} channels")
    return {
        "image_channels": image_channels,
        "out_channels": len(arrays["conv_out/bias"]),
        "channels": channels,
        "emb_channels": len(arrays["dense0/bias"]),
        "channel_mult": [width // channels for width in widths],
        "num_blocks": len(numbers(arrays, r"down_0\.block_(\d+)/conv1/bias")),
        "attentive": numbers(arrays, r"down_(\d+)\.attn_0/q/bias"),
        "head_channels": head_channels.pop() if head_channels else None,
        "num_classes": len(arrays.get("class_emb/kernel", ())),
    }


def _flat(array: Tensor) -> Tensor:
    """Without the leading dimensions of length 1 that norms have in old files."""
    return array.flatten() if set(array.shape[:-1]) == {1} else array


def _names(net: UNet) -> dict[str, str]:
    """Google's names of our blocks, and of our layers that are in none."""
    names = {name: name for name in ("conv_in", "norm_out", "conv_out")}
    names |= {f"emb.{name}": name for name in ("dense0", "dense1", "class_emb")}
    names |= {"middle.0": "mid.block_1", "middle.1": "mid.attn_1", "middle.2": "mid.block_2"}
    level = index = 0
    for i, block in enumerate(net.down):
        if isinstance(block[0], DownBlock):
            names[f"down.{i}.0"] = f"down_{level}.downsample"
            level, index = level + 1, 0
        else:
            names[f"down.{i}.0"] = f"down_{level}.block_{index}"
            names[f"down.{i}.1"] = f"down_{level}.attn_{index}"
            index += 1
    index = 0
    for i, block in enumerate(net.up):
        names[f"up.{i}.0"] = f"up_{level}.block_{index}"
        names[f"up.{i}.1"] = f"up_{level}.attn_{index}"
        index += 1
        if isinstance(block[-1], UpBlock):
            names[f"up.{i}.{len(block) - 1}"] = f"up_{level}.upsample"
            level, index = level - 1, 0
    return names


def _weights(net: UNet, take: Take) -> Iterator[tuple[str, Tensor]]:
    """Our weights from Google's arrays."""
    for ours, layer, theirs in layers(net, _names(net), INNER):
        shape = tuple(layer.weight.shape)
        block, _, name = theirs.rpartition("/")
        heads = getattr(net.get_submodule(ours.rpartition(".")[0]), "num_heads", None)
        if name == "qkv":
            weight, bias = _joint(block, shape[1], heads, take)
        else:
            bias = take(f"{theirs}/bias", shape[:1])
            if isinstance(layer, nn.GroupNorm):
                weight = take(f"{theirs}/scale", shape)
            elif name == "proj_out":
                kernel = take(f"{theirs}/kernel", (heads, shape[1] // heads, shape[0]))
                weight = kernel.flatten(0, 1).T
            elif shape[2:] == (3, 3):
                weight = take(f"{theirs}/kernel", (3, 3, shape[1], shape[0])).permute(3, 2, 0, 1)
            else:
                weight = take(f"{theirs}/kernel", (shape[1], shape[0])).T
        yield f"{ours}.weight", weight.reshape(shape)
        yield f"{ours}.bias", bias


def _joint(block: str, channels: int, heads: int, take: Take) -> tuple[Tensor, Tensor]:
    """Weight and bias of one layer that makes q, k and v, each with its heads one by one."""
    split = (heads, channels // heads)
    kernels = [take(f"{block}/{name}/kernel", (channels, *split)) for name in "qkv"]
    biases = [take(f"{block}/{name}/bias", split) for name in "qkv"]
    return torch.cat([k.flatten(1).T for k in kernels]), torch.cat([b.flatten() for b in biases])
