"""Which network is best on one core: teachers of Fashion-MNIST at equal CPU time.

    python tests/cpu_networks.py FOLDER_OF_THE_DATA figures/cpu_networks.csv --seconds 90

Each trains for as long by its own processor time, which other programs do not lengthen, and is
sampled in 16 steps. Distances are of 28x28 pixels, and in the committed classifier's features.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from tract.base.compute import Compute, use_threads
from tract.base.provenance import provenance
from tract.data import Data, to_uint8, to_unit
from tract.datasets.load import load_data
from tract.denoiser import Denoiser
from tract.jobs.cost import network_flops
from tract.levels import cosine
from tract.metrics.classifier import read_classifier
from tract.metrics.distances import Moments, frechet_distance, moments_of
from tract.metrics.features import pixels
from tract.metrics.samples import fixed_noise, sample_batches
from tract.networks.build import build_denoiser, count_parameters
from tract.settings import Training
from tract.train import start_training, train_teacher

LEVELS = cosine(1024)
SAMPLES, STEPS, REAL = 1024, 16, 10_000  # images, and how many real ones
MODELS = Path(__file__).parents[1] / "figures" / "models"
# Image size, patch, channels, their multiples, blocks for each, and how it is computed.
NETWORKS = [
    (28, 2, 32, [1, 2], 1, "bf16"),
    (28, 4, 96, [1], 2, "bf16+channels_last"),
    (28, 2, 48, [1, 2], 1, "bf16"),
    (28, 1, 16, [1, 2, 4], 1, "bf16"),
    (32, 2, 32, [1, 2, 2], 1, "bf16"),
    (28, 2, 32, [1, 2], 1, "fp32+channels_last"),
    (32, 1, 16, [1, 1, 2], 1, "fp32"),
]


def described(size: int, patch: int, channels: int, mult: list[int], blocks: int) -> dict:
    """The network, with attention at its 8x8 or 7x7 pixels, as `build_denoiser` takes it."""
    options = {"image_size": size, "image_channels": 1, "patch": patch, "channels": channels}
    options |= {"emb_channels": 4 * channels, "channel_mult": mult, "num_blocks": blocks}
    options |= {"attention": [size // 4], "groups": 8}
    return {"net": "unet", "prediction": "edm", "sigma_data": 0.7, "options": options}


def trained(config: dict, data: Data, compute: Compute, seconds: float) -> tuple[Denoiser, int]:
    """A teacher of so many seconds, and the images that it saw."""
    images = 64 * 11  # whose time tells how many there will be
    for _ in range(2):
        settings = Training(train_images=images, batch_size=64)
        state = start_training(build_denoiser(config), settings)
        records = train_teacher(state, data, LEVELS, settings, compute)
        next(records)
        start = time.process_time()
        steps = sum(1 for _ in records)
        images = int(seconds * steps / (time.process_time() - start)) * 64
    return state.ema, settings.train_images


def moments(images: Tensor) -> dict[str, Moments]:
    """Of uint8 images (N, 1, H, W) without their padding, by the name of the distance."""
    classifier, _ = read_classifier(MODELS / "fashion_mnist_28_classifier.safetensors")
    border = (images.shape[-1] - 28) // 2
    images = images[..., border : border + 28, border : border + 28]
    features = torch.cat([classifier.features(to_unit(x)) for x in images.split(256)])
    return {"fd_classifier": moments_of(features), "fd_pixels": moments_of(pixels(images))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir")
    parser.add_argument("table", type=Path)
    parser.add_argument("--seconds", type=float, default=90)
    options = parser.parse_args()
    use_threads(1)
    names = {28: "fashion_mnist_28", 32: "fashion_mnist"}
    data = {size: load_data(n, options.data_dir).unlabelled() for size, n in names.items()}
    reference = moments(data[28].samples[:REAL])
    for *network, how in NETWORKS:
        config, compute = described(*network), Compute.of(how.split("+"))
        teacher, images = trained(config, data[network[0]], compute, options.seconds)
        eps, _ = fixed_noise(data[network[0]], SAMPLES, seed=0)
        samples = to_uint8(sample_batches(teacher, eps, LEVELS, STEPS, compute=compute))
        row = dict(zip(("image_size", "patch", "channels", "mult", "blocks"), network, strict=True))
        row["mult"] = "/".join(map(str, row["mult"]))
        row |= {"compute": how, "parameters": count_parameters(config)}
        row |= {"mflop": round(network_flops(config) / 1e6, 1), "cpu_seconds": options.seconds}
        row |= {"images": images, "samples": SAMPLES, "steps": STEPS}
        for name, mine in moments(samples).items():
            row[name] = round(frechet_distance(mine, reference[name]), 4)
        row["commit"] = provenance()["commit"]
        pd.DataFrame([row]).to_csv(
            options.table, mode="a", header=not options.table.exists(), index=False
        )
        print(row, flush=True)


if __name__ == "__main__":
    main()
