"""Networks by name, and networks from the plain description that travels with their weights."""

import torch

from tract.checks import check_choice
from tract.data import Data
from tract.denoiser import Denoiser
from tract.mlp import MLP
from tract.unet import UNet

_PAPER = {"channel_mult": [1, 1, 1], "num_blocks": 3, "attention": [16, 8], "emb_channels": 1024}
_CIFAR10 = {"image_size": 32, "image_channels": 3, **_PAPER}

# Each: what the network predicts, the standard deviation of its data, and the options of UNet.
PRESETS = {
    # Trains on the 8x8 digits in about a minute on two cores.
    "digits": {
        "prediction": "edm",
        "sigma_data": 0.75,
        "image_size": 8,
        "image_channels": 1,
        "channels": 32,
        "emb_channels": 128,
        "channel_mult": [1, 1],
        "num_blocks": 1,
        "attention": [4],
        "groups": 8,
    },
    # For grey 32x32 images, on one GPU.
    "fashion_mnist": {
        "prediction": "edm",
        "sigma_data": 0.66,
        "image_size": 32,
        "image_channels": 1,
        "channels": 96,
        "emb_channels": 384,
        "channel_mult": [1, 2, 2],
        "num_blocks": 2,
        "attention": [16, 8],
        "head_channels": 64,
        "dropout": 0.1,
    },
    # The paper's network for CIFAR-10: 60,004,099 parameters.
    "cifar10": {"prediction": "x0", **_CIFAR10, "channels": 256, "dropout": 0.2},
    # Its smaller student: 19,419,011 parameters.
    "cifar10_small": {"prediction": "x0", **_CIFAR10, "channels": 128},
    # The paper's network for ImageNet-64, class-conditional: 295,905,222 parameters.
    "imagenet64": {
        "prediction": "x0_eps",
        "image_size": 64,
        "image_channels": 3,
        "channels": 192,
        "emb_channels": 768,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attention": [32, 16, 8],
        "head_channels": 64,
        "num_classes": 1000,
        "out_channels": 6,
        "dropout": 0.1,
    },
}


def preset(name: str) -> dict:
    """Description of a named network, for `build_denoiser`. ValueError for an unknown name."""
    check_choice("preset", name, PRESETS)
    options = dict(PRESETS[name])
    return {
        "net": "unet",
        "prediction": options.pop("prediction"),
        "sigma_data": options.pop("sigma_data", 0.5),
        "options": options,
    }


def check_fits(config: dict, data: Data) -> None:
    """ValueError if samples of this data, or their labels, do not fit the described network."""
    options = config["options"]
    if config["net"] == "mlp":
        kind, shape = "points of shape", (options["point_dim"],)
    else:
        kind, size = "images (channels, height, width) of shape", options["image_size"]
        shape = (options["image_channels"], size, size)
    if data.shape != shape:
        raise ValueError(
            f"{data.name} has samples of shape {data.shape}, the network takes {kind} {shape}: "
            "choose another preset or other data"
        )
    if data.num_classes != options.get("num_classes", 0):
        raise ValueError(
            f"{data.name} comes with {data.num_classes} classes, the network is made for "
            f"{options.get('num_classes', 0)}: set conditional or num_classes to match"
        )


def build_denoiser(config: dict, seed: int = 0) -> Denoiser:
    """A freshly initialised denoiser from its description, which it carries as `config`.

    config: {"net": "unet" or "mlp", "prediction", "sigma_data", "options"}; options are the
    arguments of UNet or MLP.
    """
    nets = {"unet": UNet, "mlp": MLP}
    check_choice("net", config["net"], nets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nets[config["net"]](**config["options"])
    denoiser = Denoiser(net, config["prediction"], config["sigma_data"])
    denoiser.config = config
    return denoiser


def count_parameters(config: dict) -> int:
    """Number of trainable parameters of the described network, without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_denoiser(config).parameters())
