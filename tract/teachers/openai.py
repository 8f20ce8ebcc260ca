"""Read OpenAI's ImageNet-64 networks: guided-diffusion's, and those of consistency_models.

Both are `tract.networks.edm_unet.ADMUNet` under other names, which count blocks; rows of qkv are
those of q, then k, then v. guided-diffusion's predicts eps, and variances, which are not read.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from tract.denoiser import Denoiser
from tract.networks.edm_blocks import low_pass
from tract.networks.edm_unet import BOX, ADMUNet
from tract.teachers.fill import Take, fill
from tract.teachers.paper_unet import describe, numbers

FIRST = "input_blocks.0.0"  # the first convolution, by which a file is recognised
STAGES, LEAST_CHANNELS = 4, 128  # 64 to 8 pixels; with fewer channels their norms have other groups
NUMBERED = {"noise_schedule": "ddpm_cosine", "num_steps": 1000}  # levels of guided-diffusion
TIME_SCALE = {"time_scale": 1000.0}  # of consistency_models
# By what a name of consistency_models begins with: the weights alone do not tell.
PREDICTIONS = {"edm": "edm", "cd": "consistency", "ct": "consistency"}

OUTER = {"map_layer0": "time_embed.0", "map_layer1": "time_embed.2", "map_label": "label_emb"}
OUTER |= {"out_norm": "out.0", "out_conv": "out.2"}
RESIDUAL = {"norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1"}
RESIDUAL |= {"norm1": "out_layers.0", "conv1": "out_layers.3", "skip": "skip_connection"}
ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}
FLAT = ("qkv", "proj")  # one-dimensional convolutions in guided-diffusion


def read_openai(path: Path, tensors: dict[str, Tensor]) -> Denoiser:
    """The network of a state_dict; ValueError, with the name, for what is missing or left over."""
    config = describe(path, tensors, _options)
    options = config["options"]
    guided = options.pop("out_channels") > options["image_channels"]
    if len(options["channel_mult"]) != STAGES or options["channels"] < LEAST_CHANNELS:
        raise ValueError(
            f"{path} is a network of {options['image_size']} pixels and {options['channels']} "
            "channels: use one of OpenAI's for ImageNet at 64 pixels"
        )
    prediction = "eps" if guided else PREDICTIONS.get(path.name[:3].rstrip("_").lower())
    if prediction is None:
        raise ValueError(
            f"{path} is a network of consistency_models, which preconditions those of EDM and of "
            "consistency in two ways: let its name begin with edm, cd or ct, as published"
        )
    config |= {"net": "adm", "prediction": prediction}
    config["options"] = options | (NUMBERED if guided else TIME_SCALE)
    return fill(path, tensors, config, partial(_weights, guided=guided))


def _options(tensors: dict[str, Tensor]) -> dict:
    """Options for `describe`."""
    channels, image_channels = tensors[f"{FIRST}.weight"].shape[:2]
    ends = numbers(tensors, r"output_blocks\.(\d+)\.[12]\.in_layers\.2\.bias")  # they double
    num_blocks = ends[0]
    first = [f"input_blocks.{1 + i * (num_blocks + 1)}" for i in range(len(ends) + 1)]
    widths = [len(tensors[f"{block}.0.out_layers.3.bias"]) for block in first]
    return {
        "image_channels": image_channels,
        "out_channels": len(tensors["out.2.bias"]),
        "channels": channels,
        "channel_mult": [width // channels for width in widths],
        "num_blocks": num_blocks,
        "attentive": [i for i, block in enumerate(first) if f"{block}.1.qkv.bias" in tensors],
        "num_classes": len(tensors.get("label_emb.weight", ())),
    }


def _names(net: ADMUNet) -> dict[str, str]:
    """OpenAI's names of our layers."""
    first, *down = net.enc
    names = OUTER | {f"enc.{first}": FIRST}

    def add(block: str, theirs: str, index: int = 0) -> None:
        for layers in (RESIDUAL, ATTENTION):
            names.update({f"{block}.{n}": f"{theirs}.{index}.{m}" for n, m in layers.items()})
            index += 1

    for i, name in enumerate(down, start=1):
        add(f"enc.{name}", f"input_blocks.{i}")
    middle, last, *up = net.dec
    add(f"dec.{middle}", "middle_block")
    add(f"dec.{last}", "middle_block", 2)
    i, before = -1, False  # number of their block, and whether it attends
    for name in up:
        doubles = name.endswith("_up")  # in the same block of theirs as the layers before
        i += not doubles
        add(f"dec.{name}", f"output_blocks.{i}", doubles * (1 + before))
        before = net.dec[name].num_heads > 0
    return names


def _weights(net: ADMUNet, take: Take, *, guided: bool) -> Iterator[tuple[str, Tensor]]:
    """Our weights from OpenAI's."""
    names = _names(net)
    for name, ours in net.state_dict().items():
        layer, _, kind = name.rpartition(".")
        shape, last = tuple(ours.shape), layer.rpartition(".")[2]
        if kind == "resample_filter":
            yield name, low_pass(BOX)
            continue
        theirs = f"{names[layer]}.{kind}"
        if last == "map_label":  # a row for each class
            tensor = take(theirs, shape[::-1]).T
        elif last == "out_conv" and guided:
            tensor = take(theirs, (2 * shape[0], *shape[1:]))[: shape[0]]  # eps, then variances
        else:
            tensor = take(theirs, shape[:3] if guided and last in FLAT else shape)
        if last == "qkv":  # ours: q, k and v of each channel of a head are neighbours
            heads = net.get_submodule(layer.removesuffix(".qkv")).num_heads
            tensor = tensor.unflatten(0, (3, heads, -1)).movedim(0, 2).flatten(0, 2)
        yield name, tensor.reshape(shape)
