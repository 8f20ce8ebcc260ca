"""Read pixel-space pipelines of diffusers, from a folder or from the hub.

A UNet2DModel and its scheduler lie in sub-folders, or all in one folder as in early ones.
"""

import fnmatch
import re
from inspect import signature
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tract.base.checks import check_choice, check_whole, reading, shown
from tract.denoiser import Denoiser
from tract.networks.weights import parse_object
from tract.teachers.containers import read_torch
from tract.teachers.fill import fill, same_names

INDEX, UNET, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
# Names of weight files in order of preference: whole, in parts with an index, of a variant such as
# fp16.
FILE = "diffusion_pytorch_model"
ENDINGS = ("safetensors", "bin", "safetensors.index.json", "bin.index.json")
ENDINGS += ("safetensors.index.*.json", "bin.index.*.json", "*.safetensors", "*.bin")

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
NOISE_SCHEDULES = {"linear": "ddpm_linear", "squaredcos_cap_v2": "ddpm_cosine"}  # by beta_schedule
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02}
# Supported values of a U-Net and of a scheduler.
USUAL_UNET = {"_class_name": "UNet2DModel", "time_embedding_type": "positional"}
USUAL_UNET |= {"class_embed_type": None}
USUAL_SCHEDULER = {"trained_betas": None, "rescale_betas_zero_snr": False}
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
TIMEOUT = 10  # seconds to wait for the hub


def read_pipeline(folder: str | Path) -> Denoiser:
    """The network of a pipeline in a folder; its process and number of levels are its options.

    Prints which of several files was read, and what was ignored. FileNotFoundError names a missing
    file, ValueError what is damaged or not supported.
    """
    folder = Path(folder)
    _check_components(folder)
    # A unet_ema of a training has its scheduler beside it.
    scheduler = _find([SCHEDULER], folder / "scheduler", folder, folder.parent / "scheduler")
    prediction, levels = _read_levels(scheduler)
    options = _read_options(_find([UNET], folder / "unet", folder))
    weights = _find([f"{FILE}.{ending}" for ending in ENDINGS], folder / "unet", folder)
    tensors = _read_weights(weights)
    other = "; their average over the training is in unet_ema" * (folder / "unet_ema").is_dir()
    print(f"{folder}: weights of {weights.relative_to(folder)}{other}")
    config = {"net": "diffusers", "prediction": prediction, "sigma_data": 0.5}
    config |= {"options": options | levels}
    return fill(weights, tensors, config, lambda net, take: same_names(net, take, _theirs))


def _theirs(name: str) -> str:
    return name.removeprefix("unet.")


def _find(names: list[str], *folders: Path) -> Path:
    """The first file of these names, which may have wildcards, in the first folder that has any."""
    for folder in folders:
        for name in names:
            if found := sorted(folder.glob(name)):
                return found[0]
    raise FileNotFoundError(
        f"{folders[0]} has no {' or '.join(names[:2])}: give the complete folder, as "
        "save_pretrained writes it, of a pipeline with a UNet2DModel"
    )


def _read_json(path: Path) -> dict:
    return parse_object(path.read_bytes(), path)


def _check_components(folder: Path) -> None:
    """ValueError for a pipeline that does not make its images by the U-Net alone."""
    index = folder / INDEX
    others = set(_read_json(index) if index.is_file() else ()) - {"unet", "scheduler"}
    others = sorted(name for name in others if not name.startswith("_"))
    if others:
        raise ValueError(
            f"{index} names {', '.join(others)} besides unet and scheduler: use a pipeline that "
            "works on pixels"
        )


def _check_usual(path: Path, config: dict, usual: dict) -> None:
    """ValueError for an entry that has another value than the usual one, its default."""
    for name, value in usual.items():
        if config.get(name, value) != value:
            raise ValueError(f"{path} has {name} {shown(config[name])}: use one of {value!r}")


def _read_levels(path: Path) -> tuple[str, dict]:
    """Prediction, and noise schedule and number of steps, of a scheduler's file."""
    scheduler = _read_json(path)
    schedule = scheduler.get("beta_schedule")
    check_choice(f"{path}: beta_schedule", schedule, NOISE_SCHEDULES)
    _check_usual(path, scheduler, USUAL_SCHEDULER | (LINEAR if schedule == "linear" else {}))
    prediction = scheduler.get("prediction_type", "epsilon")
    check_choice(f"{path}: prediction_type", prediction, PREDICTIONS)
    num_steps = scheduler.get("num_train_timesteps", 1000)
    levels = {"noise_schedule": NOISE_SCHEDULES[schedule], "num_steps": num_steps}
    return PREDICTIONS[prediction], levels


def _read_options(path: Path) -> dict:
    """Options of DiffusersUNet, but for its levels, of a model's file."""
    config = _read_json(path)
    size, channels = config.get("sample_size"), config.get("in_channels", 3)
    check_whole(f"{path}: sample_size", size, 1)
    # As many outputs as inputs: a network that learns variances has twice as many.
    _check_usual(path, config, USUAL_UNET | {"out_channels": channels})
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
    """Named tensors of a file, or of all that an index names, under today's names."""
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
        with reading(path):
            tensors = load_file(path)
    return {
        re.sub(r"(?<=\.)(query|key|value|proj_attn)(?=\.)", lambda old: OLD_NAMES[old[0]], name): t
        for name, t in tensors.items()
    }


def fetch(name: str) -> Path:
    """Folder of a pipeline by its hub name, downloaded or found in the local cache.

    FileNotFoundError, after some seconds, if there is no network or no such name.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    reason = ""
    try:
        found = {file.rfilename for file in HfApi().model_info(name, timeout=TIMEOUT).siblings}
        weights = [f"unet/{FILE}.{ending}" for ending in ENDINGS]
        for names in ([INDEX], [f"scheduler/{SCHEDULER}"], [f"unet/{UNET}"], weights):
            either = [n for name in names for n in (name, Path(name).name)]
            wanted = [n for pattern in either for n in sorted(fnmatch.filter(found, pattern))][:1]
            if any(".index." in n for n in wanted):
                wanted += fnmatch.filter(found, "*-of-*")
            for file in wanted:
                hf_hub_download(name, file, etag_timeout=TIMEOUT)
    except Exception as error:  # of the network, the name or the hub, of several libraries
        reason = f" ({type(error).__name__}: {' '.join(str(error).split()):.200})"
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as error:  # nothing was fetched, or it can be no name
        raise FileNotFoundError(
            f"there is no file or folder {name}, and no pipeline of that name on the hub{reason}: "
            "correct it, or copy the folder here from a machine with network"
        ) from error
