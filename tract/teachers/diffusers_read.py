"""Read pixel-space pipelines of diffusers, from a folder or from the hub.

A UNet2DModel and its scheduler lie in sub-folders, or all in one folder as in early ones.
"""

import fnmatch
import re
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tract.base.checks import shown
from tract.denoiser import Denoiser
from tract.networks.weights import parse_object
from tract.teachers.containers import read_torch
from tract.teachers.fill import Take, fill

INDEX = "model_index.json"
UNET = ("unet/config.json",)
SCHEDULER = ("scheduler/scheduler_config.json",)
# Of the weights, in the order in which they are taken: whole, in parts by an index, of a variant
# such as fp16.
FILE = "diffusion_pytorch_model"
ENDINGS = ("safetensors", "bin", "safetensors.index.json", "bin.index.json")
ENDINGS += ("safetensors.index.*.json", "bin.index.*.json", "*.safetensors", "*.bin")

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


def read_pipeline(folder: str | Path) -> Denoiser:
    """The network of a pipeline in a folder; its process and number of levels are its options.

    What was taken of several files, and ignored of a description, is printed. FileNotFoundError
    names a file that is missing, ValueError what is damaged or not supported.
    """
    folder = Path(folder)
    _check_components(folder)
    scheduler, unet = _find(folder, *SCHEDULER), _find(folder, *UNET)
    levels = _read_levels(scheduler)
    options = _read_options(unet)
    weights = _weight_file(folder)
    tensors = _read_weights(weights)
    other = "; their average over the training is in unet_ema" * (folder / "unet_ema").is_dir()
    print(f"{folder}: weights of {weights.relative_to(folder)}{other}")
    prediction = levels.pop("prediction")
    config = {"net": "diffusers", "prediction": prediction, "sigma_data": 0.5}
    return fill(weights, tensors, config | {"options": options | levels}, _weights)


def _find(folder: Path, *places: str) -> Path:
    """The first of some files that is there, in its sub-folder or beside the others."""
    for place in places:
        # A unet_ema of a training has its scheduler beside it.
        for path in (folder / place, folder / Path(place).name, folder.parent / place):
            if path.is_file():
                return path
    raise FileNotFoundError(
        f"{folder} has no {' and no '.join(places)}: give a folder that save_pretrained wrote, "
        "whole, of a pipeline with a UNet2DModel"
    )


def _weight_file(folder: Path) -> Path:
    """The file of a network's weights, or the index of its parts."""
    for place in (folder / "unet", folder):
        for ending in ENDINGS:
            if found := sorted(place.glob(f"{FILE}.{ending}")):
                return found[0]
    raise FileNotFoundError(
        f"{folder} has no unet/{FILE}.safetensors and no {FILE}.bin: give a folder that "
        "save_pretrained wrote, whole, of a pipeline with a UNet2DModel"
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
            f"{path} has beta_schedule {shown(schedule)}: use one of {list(NOISE_SCHEDULES)}"
        )
    unsupported = [
        name for name in ("trained_betas", "rescale_betas_zero_snr") if scheduler.get(name)
    ]
    if schedule == "linear":
        unsupported += [n for n, usual in LINEAR.items() if scheduler.get(n, usual) != usual]
    if unsupported:
        raise ValueError(
            f"{path} has {unsupported[0]} {shown(scheduler[unsupported[0]])}: use a pipeline "
            "without, or with the usual value"
        )
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in list(PREDICTIONS):
        raise ValueError(
            f"{path} has prediction_type {shown(prediction)}: use one of {list(PREDICTIONS)}"
        )
    num_steps = scheduler.get("num_train_timesteps", 1000)
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
            raise ValueError(f"{path} has {name} {shown(config[name])}: use a network of {usual!r}")
    size, channels = config.get("sample_size"), config.get("in_channels", 3)
    if type(size) is not int:
        raise ValueError(f"{path} has sample_size {shown(size)}: write the images' size there")
    if config.get("out_channels", 3) != channels:
        raise ValueError(
            f"{path} makes {config.get('out_channels', 3)} channels of {channels}: use a network "
            "with as many, without learned variances"
        )
    from diffusers import UNet2DModel  # takes seconds

    known = signature(UNet2DModel.__init__).parameters
    names = {name for name in config if not name.startswith("_")}
    if unknown := sorted(names - set(known)):
        print(f"{path}: {', '.join(unknown)} unknown to diffusers' UNet2DModel, ignored")
    given = {"sample_size", "in_channels", "out_channels", "num_class_embeds"}
    return {
        "image_size": size,
        "image_channels": channels,
        "num_classes": config.get("num_class_embeds") or 0,
        "unet": {name: config[name] for name in config if name in names & set(known) - given},
    }


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a file, or of all that an index names, by the names of today."""
    if path.suffix == ".json":
        parts = _read_json(path).get("weight_map")
        names = set(parts.values()) if isinstance(parts, dict) else set()
        if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
            raise ValueError(f"{path} names no files beside it: fetch it again")
        shards = [_read_weights(path.with_name(name)) for name in sorted(names)]
        return {name: tensor for shard in shards for name, tensor in shard.items()}
    if not path.is_file():
        raise FileNotFoundError(f"{path}, which an index names, is missing: fetch it too")
    if path.suffix == ".bin":
        tensors = read_torch(path)
    else:
        try:
            tensors = load_file(path)
        except (SafetensorError, RuntimeError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): fetch it again") from error
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
        for places in ((INDEX,), SCHEDULER, UNET, [f"unet/{FILE}.{end}" for end in ENDINGS]):
            either = [n for place in places for n in (place, Path(place).name)]
            wanted = [n for pattern in either for n in sorted(fnmatch.filter(found, pattern))][:1]
            if any(".index." in n for n in wanted):
                wanted += fnmatch.filter(found, "*-of-*")
            for file in wanted:
                hf_hub_download(name, file, etag_timeout=TIMEOUT)
    except Exception as error:  # of network, name or hub, in the classes of several libraries
        reason = f" ({type(error).__name__}: {' '.join(str(error).split()):.200})"
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as error:  # nothing was fetched, or it can be no name
        raise FileNotFoundError(
            f"there is no file or folder {name}, and no pipeline of that name on the hub{reason}: "
            "correct it, or copy the folder here from a machine with network"
        ) from error
