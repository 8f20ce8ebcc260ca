"""Export a student as one safetensors file or as a diffusers pipeline."""

import json
from pathlib import Path

import torch

from tract.base.files import check_new, new_folder
from tract.denoiser import Denoiser
from tract.experiments.results import RESULTS, read_results
from tract.levels import Level, levels_of
from tract.networks.diffusers_unet import DiffusersUNet
from tract.networks.weights import load_model, save_model
from tract.phases import first_grid
from tract.samplers import step_indices
from tract.teachers.apple import write_apple
from tract.teachers.diffusers_read import LINEAR, NOISE_SCHEDULES, PREDICTIONS

CARD = """\
---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [tract, distillation, few-step]
---
# {method}: images of {size}x{size} pixels in {steps}

A network of {parameters:,} parameters that predicts {prediction}, distilled with the package
`tract`, the method and step schedule of its card below (Berthelot et al. 2023, arXiv 2303.04248).

```python
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("{name}")
images = pipeline(batch_size=4, num_inference_steps={num_steps}, {arguments}).images
```

The scheduler's steps end at the levels that the student was distilled for; do not use other numbers
of steps. `pipeline.push_to_hub("owner/{name}")` publishes this folder.

## Measured
{metrics}

## Card
```json
{card}
```
"""


def export_run(run_dir: str | Path, target: str | Path, *, half: bool = False) -> None:
    """Write the model of a finished run, with its card and measured results.

    target: NAME.safetensors, which `load_teacher` reads, for any model; NAME.pt for one of the
    authors' networks, see `write_apple`; or a folder for `save_pipeline`, for a student. half: the
    first in half precision. Raises FileExistsError if target exists, ValueError if it is invalid.
    """
    run_dir, target = Path(run_dir), Path(target)
    is_file = target.suffix in (".safetensors", ".pt")
    if half and target.suffix != ".safetensors":
        raise ValueError(f"half is given, but {target} is not a file NAME.safetensors: omit it")
    denoiser, card = load_model(run_dir)
    try:
        noise_schedule, clamp = (card["experiment"][name] for name in ("noise_schedule", "clamp"))
        schedule = None if is_file else card["settings"]["step_schedule"]
    except (KeyError, TypeError) as error:
        needed = "run of an experiment" if is_file else "distillation of an experiment"
        raise ValueError(f"{run_dir} is not a {needed}: give another") from error
    table = read_results(run_dir.parent / RESULTS)
    rows = table[table["run"] == run_dir.name][["metric", "value", "nfe", "samples"]]
    if len(rows) or "measured" not in card:  # an exported file has its own
        card = card | {"measured": rows.to_dict("records")}
    if is_file:
        check_new(target)
        target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".pt":
        write_apple(denoiser, target)
    elif is_file:
        save_model(target, denoiser, card, half=half)
    else:
        levels = levels_of(noise_schedule, first_grid(schedule))
        save_pipeline(denoiser, target, levels, schedule[-1], card, clamp=clamp)


def save_pipeline(
    denoiser: Denoiser,
    folder: str | Path,
    levels: Level,
    num_steps: int,
    card: dict,
    *,
    clamp: bool = True,
) -> None:
    """Write a folder that diffusers' DDIMPipeline loads, to sample like `samplers.sample`.

    levels, num_steps, clamp: those of our sampler. With clamp, several steps need the pipeline's
    use_clipped_model_output=True, as in the README; then both agree from the same x_T. The
    pipeline's x_T has standard deviation 1, ours sigma_T. card: contents of the README. Raises
    ValueError if a pipeline cannot express the model, FileExistsError if the folder exists.
    """
    folder = Path(folder)
    scheduler = _scheduler(denoiser, levels, clamp)
    step_indices(levels.num_steps, num_steps)
    from diffusers import DDIMPipeline, DDIMScheduler  # takes seconds

    pipeline = DDIMPipeline(denoiser.net.unet, DDIMScheduler(**scheduler))
    with new_folder(folder) as copy:
        pipeline.save_pretrained(copy)
        readme = _readme(denoiser, folder.name, num_steps, card, clamp)
        (copy / "README.md").write_text(readme)


def _scheduler(denoiser: Denoiser, levels: Level, clamp: bool) -> dict:
    """Return arguments for a DDIMScheduler that steps through these levels with this network."""
    net = denoiser.net
    if not isinstance(net, DiffusersUNet):
        raise ValueError(
            f"this network is a {type(net).__name__}, but diffusers' pipelines take its own "
            "UNet2DModel: distil a diffusers teacher, or give a file NAME.safetensors"
        )
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if denoiser.prediction not in names:
        raise ValueError(
            f"the student predicts {denoiser.prediction!r}, which diffusers does not know: use one "
            f"of {list(names)}"
        )
    options = denoiser.config["options"]
    own = levels_of(options["noise_schedule"], options["num_steps"])
    if not (len(own) == len(levels) and torch.allclose(own.logsnr, levels.logsnr, rtol=1e-9)):
        raise ValueError(
            f"the network numbers the {options['num_steps']} levels of "
            f"{options['noise_schedule']}, but these levels differ: distil on the teacher's own"
        )
    if options["num_classes"]:
        raise ValueError(
            f"the network takes {options['num_classes']} classes, but DDIMPipeline gives none: "
            "give a file NAME.safetensors"
        )
    schedules = {ours: theirs for theirs, ours in NOISE_SCHEDULES.items()}
    return {
        **LINEAR,
        "num_train_timesteps": options["num_steps"],
        "beta_schedule": schedules[options["noise_schedule"]],
        "prediction_type": names[denoiser.prediction],
        "timestep_spacing": "trailing",  # ours begin at the noisiest level
        "set_alpha_to_one": True,  # and end at clean data
        "clip_sample": clamp,
    }


def _readme(denoiser: Denoiser, name: str, num_steps: int, card: dict, clamp: bool) -> str:
    rows = card.get("measured", [])
    table = [f"| {' | '.join(map(str, row.values()))} |" for row in rows]
    if rows:
        table = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|", *table]
    return CARD.format(
        method=card.get("method", "A student"),
        size=denoiser.config["options"]["image_size"],
        steps="1 step" if num_steps == 1 else f"{num_steps} steps",
        parameters=sum(p.numel() for p in denoiser.parameters()),
        prediction=denoiser.prediction,
        name=name,
        num_steps=num_steps,
        arguments=f"use_clipped_model_output={clamp}",
        metrics="\n".join(table) or "Nothing was measured.",
        card=json.dumps({n: v for n, v in card.items() if n != "measured"}, indent=1),
    )
