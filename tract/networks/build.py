"""Networks by name, and networks built from the description stored with their weights."""

import torch

from tract.base.checks import check_choice
from tract.denoiser import Denoiser
from tract.networks.diffusers_unet import DiffusersUNet
from tract.networks.edm_unet import ADMUNet, SongUNet
from tract.networks.mlp import MLP
from tract.settings import Distillation
from tract.unet import UNet

_PAPER = {"channel_mult": [1, 1, 1], "num_blocks": 3, "attention": [16, 8], "emb_channels": 1024}
_CIFAR10 = {"image_size": 32, "image_channels": 3, **_PAPER}
_EDM_CIFAR10 = {
    "net": "song",
    "prediction": "edm",
    "image_size": 32,
    "image_channels": 3,
    "channels": 128,
    "channel_mult": [2, 2, 2],
    "num_blocks": 4,
    "attention": [16],
    "augment_dim": 9,
    "dropout": 0.13,
}

_GREY32 = {
    "prediction": "edm",
    "sigma_data": 0.66,
    "image_size": 32,
    "image_channels": 1,
    "channel_mult": [1, 2, 4, 4],
    "num_blocks": 1,
    "attention": [8, 4],
    "groups": 8,
}

# Each: the kind of network if it is not UNet, what it predicts, the standard deviation of its data
# if it is not 0.5, and the network's options.
NETWORKS = {
    # Trains on the 8x8 digits in one to two minutes on one core.
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
    # A smaller student for it.
    "digits_small": {
        "prediction": "edm",
        "sigma_data": 0.75,
        "image_size": 8,
        "image_channels": 1,
        "channels": 16,
        "emb_channels": 64,
        "channel_mult": [1, 1],
        "num_blocks": 1,
        "attention": [4],
        "groups": 8,
    },
    # For grey 32x32 images, on one GPU: 5,364,449 parameters.
    "fashion_mnist": {**_GREY32, "channels": 32, "emb_channels": 128},
    # A smaller student for it, of a quarter of the parameters.
    "fashion_mnist_small": {**_GREY32, "channels": 16, "emb_channels": 64},
    # For the same images on one core, in half an hour: to see the whole way, not to judge by.
    "fashion_mnist_tiny": {
        **_GREY32,
        "channels": 16,
        "emb_channels": 64,
        "channel_mult": [1, 1, 2],
        "attention": [8],
    },
    # For the same images without padding, on one core: patches fill its vectors as channels, and
    # attention, slow there, is in the middle alone. Chosen by tests/cpu_networks.py.
    "fashion_mnist_cpu": {
        "prediction": "edm",
        "sigma_data": 0.7,
        "image_size": 28,
        "image_channels": 1,
        "patch": 2,
        "channels": 32,
        "emb_channels": 128,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "groups": 8,
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
    # EDM's networks for CIFAR-10: 55,733,891 parameters (with 10 classes 55,735,299), and
    # 56,397,827.
    "edm_cifar10_ddpmpp": {**_EDM_CIFAR10, "variant": "ddpm++"},
    "edm_cifar10_ncsnpp": {**_EDM_CIFAR10, "variant": "ncsn++"},
    # EDM's network for ImageNet-64, class-conditional: 295,899,267 parameters.
    "edm_imagenet64_adm": {
        "net": "adm",
        "prediction": "edm",
        "image_size": 64,
        "image_channels": 3,
        "channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attention": [32, 16, 8],
        "num_classes": 1000,
        "dropout": 0.1,
    },
}


def named_network(name: str) -> dict:
    """Description of a named network, for `build_denoiser`. ValueError for an unknown name."""
    check_choice("network", name, NETWORKS)
    options = dict(NETWORKS[name])
    return {
        "net": options.pop("net", "unet"),
        "prediction": options.pop("prediction"),
        "sigma_data": options.pop("sigma_data", 0.5),
        "options": options,
    }


def build_denoiser(config: dict, seed: int = 0) -> Denoiser:
    """A freshly initialised denoiser from its description, which it carries as `config`.

    config: {"net": "unet", "song", "adm", "diffusers" or "mlp", "prediction", "sigma_data",
    "options"}; options are the arguments of UNet, SongUNet, ADMUNet, DiffusersUNet or MLP.
    """
    nets = {
        "unet": UNet,
        "song": SongUNet,
        "adm": ADMUNet,
        "diffusers": DiffusersUNet,
        "mlp": MLP,
    }
    check_choice("net", config["net"], nets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nets[config["net"]](**config["options"])
    denoiser = Denoiser(net, config["prediction"], config["sigma_data"])
    denoiser.config = config
    return denoiser


def student_for(teacher: Denoiser, settings: Distillation) -> Denoiser | None:
    """The student of a distillation that changes its teacher's network or prediction, else None.

    A named network starts from random weights. Another prediction, "v" or "x0", starts from the
    teacher's own weights, whose output is then to mean something else. Of an eps network v is the
    nearer: v = (alpha eps - sigma x0) / n is eps where there is little noise. ValueError for a
    teacher that this cannot be done with.
    """
    name, prediction = settings.student_network, settings.student_prediction
    if not (name or prediction):
        return None
    if not hasattr(teacher, "config"):
        raise ValueError(
            f"student_network is {name!r} and student_prediction {prediction!r}, which change the "
            "teacher's description, and this teacher has none: give start_distillation a network"
        )
    if name:
        config = named_network(name)
        config["options"]["num_classes"] = teacher.config["options"].get("num_classes", 0)
    elif teacher.prediction == "x0_eps":
        raise ValueError(
            f"student_prediction is {prediction!r}, and its teacher predicts both x0 and eps: "
            "leave it empty, few steps are no harm to that form"
        )
    else:
        config = teacher.config
    config = config | ({"prediction": prediction} if prediction else {})
    student = build_denoiser(config, settings.seed)
    if not name:
        student.load_state_dict(teacher.state_dict())
    return student.to(next(teacher.parameters()).device)


def count_parameters(config: dict) -> int:
    """Number of trainable parameters of the described network, without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_denoiser(config).parameters())
