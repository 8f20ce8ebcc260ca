"""Read the paper's authors' own checkpoints (.pt files).

Their network is Google's with norms that add 1e-5, not 1e-6, to the variance. A file holds its
weights, or all networks of a training run: then the average that is sampled from is read.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from tract.denoiser import Denoiser
from tract.teachers.fill import Take, fill
from tract.teachers.paper_unet import describe, layers, numbers
from tract.unet import Attention, DownBlock, UNet, UpBlock

NORM_EPS = 1e-5
HEAD_CHANNELS = 64  # of their networks with classes; the others have one head

INNER = {"emb_proj": "time.1", "shortcut": "skip", "proj_out": "out"}
ROLES = ("model_eval.module.", "module.", "")  # prefixes of names: of a run's average, of DDP


def read_apple(path: Path, content: dict[str, Tensor]) -> Denoiser:
    """The network in a file's named tensors; ValueError, with the name, for any others."""
    tensors = _tensors(content, path)
    return fill(path, tensors, describe(path, tensors, _options), _weights)


def write_apple(denoiser: Denoiser, path: str | Path) -> None:
    """Write a network of the authors' as the .pt that their fid_model.py loads.

    ValueError for any other network.
    """
    config = getattr(denoiser, "config", {"net": "", "options": {}})
    if config["net"] != "unet" or config["options"].get("norm_eps") != NORM_EPS:
        raise ValueError(
            f"{path}: only a student of one of the authors' networks can be written as .pt: use "
            "NAME.safetensors"
        )
    net, tensors = denoiser.net, {}
    for ours, layer, theirs in layers(net, _names(net), INNER):
        for name, tensor in layer.state_dict().items():
            if theirs.endswith("/qkv"):
                heads = net.get_submodule(ours.removesuffix(".qkv")).num_heads
                tensor = tensor.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)
            tensors[f"{theirs.replace('/', '.')}.{name}"] = tensor.cpu()
    torch.save(tensors, path)


def _tensors(content: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Named tensors of the network to read."""
    role = next((r for r in ROLES if f"{r}down.0.weight" in content), None)
    if role is None:
        raise ValueError(
            f"{path} lacks down.0.weight: use a checkpoint of TRACT's authors or of OpenAI's for "
            "ImageNet-64"
        )
    return {n.removeprefix(role): t for n, t in content.items() if n.startswith(role)}


def _options(tensors: dict[str, Tensor]) -> dict:
    """Options for `describe`."""
    channels, image_channels = tensors["down.0.weight"].shape[:2]
    halving = numbers(tensors, r"down\.(\d+)\.conv1\.bias")  # blocks between two sizes
    first = [f"down.{i + 1}" for i in (0, *halving)]  # of each size
    widths = [len(tensors[f"{block}.resblocks.conv1.bias"]) for block in first]
    num_classes = tensors["class_emb.weight"].shape[1] if "class_emb.weight" in tensors else 0
    return {
        "image_channels": image_channels,
        "out_channels": len(tensors["out.2.bias"]),
        "channels": channels,
        "emb_channels": len(tensors["time.0.bias"]),
        "channel_mult": [width // channels for width in widths],
        "num_blocks": halving[0] - 1,
        "attentive": [i for i, b in enumerate(first) if f"{b}.attention.qkv.weight" in tensors],
        "head_channels": HEAD_CHANNELS if num_classes else None,
        "norm_eps": NORM_EPS,
        "num_classes": num_classes,
    }


def _names(net: UNet) -> dict[str, str]:
    """The authors' names of our blocks, and of our layers that are in none."""
    names = {"emb.dense0": "time.0", "emb.dense1": "time.2", "emb.class_emb": "class_emb"}
    names |= {"conv_in": "down.0", "norm_out": "out.0", "conv_out": "out.2"}
    names |= {"middle.0": "mid.0/resblocks", "middle.1": "mid.0/attention"}
    names |= {"middle.2": "mid.1/resblocks"}
    for i, block in enumerate(net.down, start=1):
        for j, layer in enumerate(block):
            names[f"down.{i - 1}.{j}"] = f"down.{i}{_part(layer)}"
    index = 0  # theirs count a block that doubles as one of its own
    for i, block in enumerate(net.up):
        for j, layer in enumerate(block):
            index += isinstance(layer, UpBlock)
            names[f"up.{i}.{j}"] = f"up.{index}{_part(layer)}"
        index += 1
    return names


def _part(layer: nn.Module) -> str:
    if isinstance(layer, DownBlock | UpBlock):
        return ""
    return "/attention" if isinstance(layer, Attention) else "/resblocks"


def _weights(net: UNet, take: Take) -> Iterator[tuple[str, Tensor]]:
    """Our weights from the authors' tensors."""
    for ours, layer, theirs in layers(net, _names(net), INNER):
        theirs = theirs.replace("/", ".")
        for name, parameter in layer.named_parameters():
            tensor = take(f"{theirs}.{name}", tuple(parameter.shape))
            if theirs.endswith(".qkv"):  # rows of q, k and v, head by head
                heads = net.get_submodule(ours.removesuffix(".qkv")).num_heads
                tensor = tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
            yield f"{ours}.{name}", tensor
