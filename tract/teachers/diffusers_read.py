"""Read pixel-space pipelines of diffusers, from a folder or from the hub.

A UNet2DModel and its scheduler lie in sub-folders, or all in one folder as in early ones.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tract.denoiser import Denoiser
from tract.networks.weights import parse_object
from tract.teachers.containers import read_torch
from tract.teachers.fill import Take, fill

INDEX = "model_index.json"
UNET = ("unet/config.json",)
SCHEDULER = ("scheduler/scheduler_config.json",)
WEIGHTS = tuple(f"unet/diffusion_pytorch_model.{suffix}" for suffix in ("safetensors", "bin"))

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
NOISE_SCHEDULES = {"linear": "ddpm_linear", "squaredcos_cap_v2": "ddpm_cosine"}  # by beta_schedule
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02}
USUAL = {  # of UNet2DModel; others are made for other levels or conditions
    "_class_name": "UNet2DModel",
    "time_embedding_type": "positional",
    "class_embed_type": None,
}
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
TIMEOUT = 10  # seconds that the hub has for an answer

STEPS_LIMIT = 100_000  # of a scheduler; published ones have 1000


def read_pipeline(folder: str | Path) -> Denoiser:
    """The network of a pipeline in a folder; its process and number of levels are its options.

    FileNotFoundError names a file that is missing, ValueError what is damaged or not supported.
    """
    folder = Path(folder)
    _check_components(folder)
    scheduler, unet, weights = (_find(folder, *places) for places in (SCHEDULER, UNET, WEIGHTS))
    levels = _read_levels(scheduler)
    options = _read_options(unet)
    tensors = _read_weights(weights)
    layers = options["unet"].get("layers_per_block", 2)
    if type(layers) is not int or layers > len(tensors):  # before they are built
        raise ValueError(f"{unet} has {layers!r:.60} layers_per_block: fetch it again")
    prediction = levels.pop("prediction")
    config = {"net": "diffusers", "prediction": prediction, "sigma_data": 0.5}
    return fill(weights, tensors, config | {"options": options | levels}, _weights)


def _find(folder: Path, *places: str) -> Path:
    """The first of some files that is there, in its sub-folder or beside the others."""
    for place in places:
        for path in (folder / place, folder / Path(place).name):
            if path.is_file():
                return path
    raise FileNotFoundError(
        f"{folder} has no {' and no '.join(places)}: give a folder that save_pretrained wrote, "
        "whole, of a pipeline with a UNet2DModel"
    )


def _read_json(path: Path) -> dict:
    try:
        return parse_object(path.read_text(), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again") from error


def _check_components(folder: Path) -> None:
    """ValueError for a pipeline that does not make its images by the U-Net alone."""
    index = folder / INDEX
    others = set(_read_json(index) if index.is_file() else ()) - {"unet", "scheduler"}
    others = sorted(name for name in others if not name.startswith("_"))
    if others:
        raise ValueError(
            f"{index} names {', '.join(others)} beside unet and scheduler: use a pipeline that "
            "works on pixels"
        )


def _read_levels(path: Path) -> dict:
    """Prediction, process and number of steps of a scheduler's file."""
    scheduler = _read_json(path)
    schedule = scheduler.get("beta_schedule")
    if schedule not in list(NOISE_SCHEDULES):  # what is there may not be hashable
        raise ValueError(
            f"{path} has beta_schedule {schedule!r}: use one of {list(NOISE_SCHEDULES)}"
        )
    unsupported = [
        name for name in ("trained_betas", "rescale_betas_zero_snr") if scheduler.get(name)
    ]
    if schedule == "linear":
        unsupported += [n for n, usual in LINEAR.items() if scheduler.get(n, usual) != usual]
    if unsupported:
        raise ValueError(
            f"{path} has {unsupported[0]} {scheduler[unsupported[0]]!r:.60}: use a pipeline "
            "without, or with the usual value"
        )
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in list(PREDICTIONS):
        raise ValueError(
            f"{path} has prediction_type {prediction!r}: use one of {list(PREDICTIONS)}"
        )
    num_steps = scheduler.get("num_train_timesteps", 1000)
    if isinstance(num_steps, int) and num_steps > STEPS_LIMIT:  # a few bytes can claim any memory
        raise ValueError(
            f"{path} has num_train_timesteps {num_steps}, more than {STEPS_LIMIT:,}: fetch it again"
        )
    return {
        "prediction": PREDICTIONS[prediction],
        "noise_schedule": NOISE_SCHEDULES[schedule],
        "num_steps": num_steps,
    }


def _read_options(path: Path) -> dict:
    """Options of DiffusersUNet, but for its levels, of a model's file."""
    config = _read_json(path)
    for name, usual in USUAL.items():
        if config.get(name, usual) != usual:
            raise ValueError(f"{path} has {name} {config[name]!r:.60}: use a network of {usual!r}")
    size, channels = config.get("sample_size"), config.get("in_channels", 3)
    if type(size) is not int:
        raise ValueError(f"{path} has sample_size {size!r}: write the images' size there")
    if config.get("out_channels", 3) != channels:
        raise ValueError(
            f"{path} makes {config.get('out_channels', 3)} channels of {channels}: use a network "
            "with as many, without learned variances"
        )
    given = {"sample_size", "in_channels", "out_channels", "num_class_embeds"}
    return {
        "image_size": size,
        "image_channels": channels,
        "num_classes": config.get("num_class_embeds") or 0,
        "unet": {n: v for n, v in config.items() if n not in given and not n.startswith("_")},
    }


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a file, by the names of today."""
    if path.suffix == ".bin":
        tensors = read_torch(path)
    else:
        try:
            tensors = load_file(path)
        except (SafetensorError, RuntimeError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): fetch it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise ValueError(f"{path} holds no named weights: fetch it again")
    return {
        re.sub(r"(?<=\.)(query|key|value|proj_attn)(?=\.)", lambda old: OLD_NAMES[old[0]], name): t
        for name, t in tensors.items()
    }


def _weights(net: nn.Module, take: Take) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in net.state_dict().items():
        yield name, take(name.removeprefix("unet."), tuple(parameter.shape))


def fetch(name: str) -> Path:
    """Folder of a pipeline by its hub name, fetched there or found among what was fetched before.

    FileNotFoundError, after some seconds, without network or without such a name.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    reason = ""
    try:
        found = {file.rfilename for file in HfApi().model_info(name, timeout=TIMEOUT).siblings}
        for places in ((INDEX,), SCHEDULER, UNET, WEIGHTS):
            wanted = [n for place in places for n in (place, Path(place).name) if n in found]
            if wanted:
                hf_hub_download(name, wanted[0], etag_timeout=TIMEOUT)
    except Exception as error:  # of network, name or hub, in the classes of several libraries
        reason = f" ({type(error).__name__}: {' '.join(str(error).split()):.200})"
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as error:  # nothing was fetched, or it can be no name
        raise FileNotFoundError(
            f"there is no file or folder {name}, and no pipeline of that name on the hub{reason}: "
            "correct it, or copy the folder here from a machine with network"
        ) from error
