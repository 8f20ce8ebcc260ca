"""Named networks: descriptions for `build_denoiser`, and their sizes."""

from tract.base.checks import check_choice

_RGB32 = {"image_size": 32, "image_channels": 3}
_SMALL = {"prediction": "edm", "image_channels": 1, "num_blocks": 1, "groups": 8}
_DIGITS = _SMALL | {"sigma_data": 0.75, "image_size": 8, "channel_mult": [1, 1], "attention": [4]}
_GREY32 = _SMALL | {"sigma_data": 0.66, "image_size": 32}
_GREY32 |= {"channel_mult": [1, 2, 4, 4], "attention": [8, 4]}
_CIFAR10 = _RGB32 | {"prediction": "x0", "emb_channels": 1024}
_CIFAR10 |= {"channel_mult": [1, 1, 1], "num_blocks": 3, "attention": [16, 8]}
_EDM_CIFAR10 = _RGB32 | {"net": "song", "prediction": "edm", "augment_dim": 9, "dropout": 0.13}
_EDM_CIFAR10 |= {"channels": 128, "channel_mult": [2, 2, 2], "num_blocks": 4, "attention": [16]}
_IMAGENET64 = {"image_size": 64, "image_channels": 3, "num_classes": 1000, "dropout": 0.1}
_IMAGENET64 |= {"channels": 192, "channel_mult": [1, 2, 3, 4]}
_IMAGENET64 |= {"num_blocks": 3, "attention": [32, 16, 8]}

# Each has the kind of network unless UNet, its prediction, the standard deviation of its data
# unless 0.5, and the network's options.
NETWORKS = {
    # For the 8x8 digits: trains in one to two minutes on one core; and a smaller student.
    "digits": _DIGITS | {"channels": 32, "emb_channels": 128},
    "digits_small": _DIGITS | {"channels": 16, "emb_channels": 64},
    # For grey 32x32 images, on one GPU; and a smaller student.
    "fashion_mnist": _GREY32 | {"channels": 32, "emb_channels": 128},
    "fashion_mnist_small": _GREY32 | {"channels": 16, "emb_channels": 64},
    # For the same images without padding, on one core: patches as channels fill its vector units,
    # and attention, slow there, is only in the middle. Chosen by tests/cpu_networks.py.
    "fashion_mnist_cpu": _SMALL
    | {"sigma_data": 0.7, "image_size": 28, "patch": 2, "channel_mult": [1, 2]}
    | {"channels": 32, "emb_channels": 128},
    # The paper's networks: for CIFAR-10, its smaller student, and for ImageNet-64.
    "cifar10": _CIFAR10 | {"channels": 256, "dropout": 0.2},
    "cifar10_small": _CIFAR10 | {"channels": 128},
    "imagenet64": _IMAGENET64
    | {"prediction": "x0_eps", "out_channels": 6, "emb_channels": 768, "head_channels": 64},
    # EDM's networks. With 10 classes the first has 55,735,299 parameters.
    "edm_cifar10_ddpmpp": _EDM_CIFAR10 | {"variant": "ddpm++"},
    "edm_cifar10_ncsnpp": _EDM_CIFAR10 | {"variant": "ncsn++"},
    "edm_imagenet64_adm": _IMAGENET64 | {"net": "adm", "prediction": "edm"},
}

# Parameters and FLOP per image of each, verified by a test, so that listing them needs no torch.
SIZES = {
    "digits": (352_801, 17_514_496),
    "digits_small": (89_361, 4_429_824),
    "fashion_mnist": (5_364_449, 951_656_448),
    "fashion_mnist_small": (1_346_929, 239_912_960),
    "fashion_mnist_cpu": (777_764, 110_000_384),
    "cifar10": (60_004_099, 35_794_714_624),
    "cifar10_small": (19_419_011, 9_090_367_488),
    "imagenet64": (295_905_222, 219_357_573_120),
    "edm_cifar10_ddpmpp": (55_733_891, 42_383_051_008),
    "edm_cifar10_ncsnpp": (56_397_827, 42_791_856_640),
    "edm_imagenet64_adm": (295_899_267, 219_329_851_392),
}


def named_network(name: str) -> dict:
    """Return the description of a named network; raises ValueError for an unknown name."""
    check_choice("network", name, NETWORKS)
    options = dict(NETWORKS[name])
    return {
        "net": options.pop("net", "unet"),
        "prediction": options.pop("prediction"),
        "sigma_data": options.pop("sigma_data", 0.5),
        "options": options,
    }
