"""Build networks from the description stored with their weights."""

from pathlib import Path

import torch

from tract.base.checks import check_choice, is_number, reading, shown
from tract.denoiser import Denoiser
from tract.networks.diffusers_unet import DiffusersUNet
from tract.networks.edm_unet import ADMUNet, SongUNet
from tract.networks.mlp import MLP
from tract.networks.named import named_network
from tract.settings import Distillation
from tract.unet import UNet

MOST_OPTIONS, LARGEST, MOST_BLOCKS = 200, 2**17, 1000  # far beyond published networks


def build_denoiser(config: dict, seed: int = 0) -> Denoiser:
    """Return a freshly initialised denoiser for a description, which it keeps as `config`.

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
    _check_bounded(config["options"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nets[config["net"]](**config["options"])
    denoiser = Denoiser(net, config["prediction"], config["sigma_data"])
    denoiser.config = config
    return denoiser


def _check_bounded(options: dict) -> None:
    """Raise ValueError for options with implausibly many or large layers.

    A few bytes of a file can claim any size: its description is checked before anything is built.
    """
    found, ahead = [], [options]
    while ahead and len(found) + len(ahead) <= MOST_OPTIONS:
        value = ahead.pop()
        inner = value.values() if isinstance(value, dict) else value
        if isinstance(inner, list | tuple | type({}.values())):
            ahead += inner
        elif is_number(inner):
            found.append(inner)
    if ahead:
        raise ValueError(f"more than {MOST_OPTIONS} options")
    if odd := [number for number in found if not abs(number) <= LARGEST]:
        raise ValueError(f"{shown(odd[0])} among its options, more than {LARGEST:,}")
    every = options | options.get("unet", {})
    deep = max(every.get(name, 1) for name in ("num_blocks", "layers_per_block"))
    stages = max(len(every.get(name, "1")) for name in ("channel_mult", "block_out_channels"))
    if deep * stages > MOST_BLOCKS:
        raise ValueError(f"{deep * stages} blocks, more than {MOST_BLOCKS}")


def student_for(teacher: Denoiser, settings: Distillation) -> Denoiser | None:
    """Return the student if a distillation changes the teacher's network or prediction, else None.

    A named network starts from random weights. Another prediction, "v" or "x0", starts from the
    teacher's weights, whose output then changes its meaning. To eps, v is nearer than x0: v =
    (alpha eps - sigma x0) / n equals eps at low noise. Raises ValueError if this is impossible.
    """
    name, prediction = settings.student_network, settings.student_prediction
    if not (name or prediction):
        return None
    if not hasattr(teacher, "config"):
        raise ValueError(
            f"student_network is {name!r} and student_prediction {prediction!r}, which change the "
            "teacher's description, but this teacher has none: give start_distillation a network"
        )
    if name:
        config = named_network(name)
        config["options"]["num_classes"] = teacher.config["options"].get("num_classes", 0)
    elif teacher.prediction == "x0_eps":
        raise ValueError(
            f"student_prediction is {prediction!r}, but the teacher predicts both x0 and eps: "
            "leave it empty, this form suits few steps as well"
        )
    else:
        config = teacher.config
    config = config | ({"prediction": prediction} if prediction else {})
    student = build_denoiser(config, settings.seed)
    if not name:
        student.load_state_dict(teacher.state_dict())
    return student.to(next(teacher.parameters()).device)


def outline(config: dict, path: str | Path = "network") -> Denoiser:
    """Return the described denoiser with shapes but no values, which takes no memory.

    path: the file that the description comes from, named by the ValueError for an invalid one.
    """
    bad = "describes no network to build"
    with reading(path, bad, "restore it, or use another"), torch.device("meta"):
        return build_denoiser(config)


def count_parameters(config: dict) -> int:
    """Count the trainable parameters of the described network, without allocating them."""
    return sum(parameter.numel() for parameter in outline(config).parameters())
