"""Train and load a small classifier, whose last hidden layer serves as features."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tract.base.checks import MOST_SAMPLES, check_whole, reading
from tract.base.compute import EAGER, matmul_precision
from tract.base.progress import progress
from tract.base.provenance import provenance
from tract.data import Data, to_unit
from tract.networks.weights import read_tensors, write_tensors
from tract.seeds import Stream, generator_for

BATCH_SIZE = 128
LEARNING_RATE = 2e-3  # of Adam, falling to 0 as a cosine
CLASSIFIED = 256  # images that are classified at a time, after training
HELD_OUT = 0.1  # share of the data that is not trained on
CARD = {"classifier", "data", "data_sha256", "held_out", "accuracy"}  # in every file


class Classifier(nn.Module):
    """Convolutions that halve an image (C, H, W) down to about 4 pixels, and a linear layer."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, num_features: int = 64):
        super().__init__()
        channels, height, width = shape
        layers, size, wide = [*_convolution(channels, 32)], min(height, width), 32
        while size > 4:
            layers += _convolution(wide, min(2 * wide, 128), stride=2)
            size, wide = (size + 1) // 2, min(2 * wide, 128)
            layers += _convolution(wide, wide)
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, num_features), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(num_features, num_classes)

    def features(self, x0: Tensor) -> Tensor:
        """Features (B, num_features) of images (B, C, H, W) in [-1, 1]."""
        return self.body(x0)

    def forward(self, x0: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W) in [-1, 1]."""
        return self.head(self.features(x0))


def _convolution(channels: int, wide: int, stride: int = 1) -> list[nn.Module]:
    # Groups, not batches, are normalised: an image's features do not depend on its neighbours.
    return [nn.Conv2d(channels, wide, 3, stride, 1), nn.GroupNorm(8, wide), nn.SiLU()]


@matmul_precision(EAGER)
def fit_classifier(
    data: Data, path: str | Path, *, epochs: int = 20, seed: int = 0
) -> tuple[Classifier, dict]:
    """Train a classifier under a progress bar, write it in half precision, and read it back.

    Returns it with its card: data, settings, and the accuracy on the share that was held out. The
    same seed gives the same weights on the same device. Raises ValueError for data without labels.
    """
    check_whole("epochs", epochs, 1, MOST_SAMPLES)
    check_whole("seed", seed, 0)
    if data.labels is None:
        raise ValueError(f"{data.name} has no labels to train a classifier on: use other features")
    device = data.samples.device
    order = torch.randperm(len(data), generator=generator_for("cpu", seed, Stream.CLASSIFIER, 0))
    held_out, rest = (part.to(device) for part in order.tensor_split([int(HELD_OUT * len(data))]))
    network = {"shape": data.shape, "num_classes": data.num_classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for("cpu", seed, Stream.CLASSIFIER, 1).initial_seed())
        classifier = Classifier(**network).to(device)
    trained_on = Data(data.name, data.samples[rest], data.labels[rest], data.flip)
    _train(classifier, trained_on, epochs, seed)
    classifier = classifier.half().float().eval()  # as it will be read
    card = {
        "classifier": network,
        "data": data.name,
        "data_sha256": data.sha256,
        "settings": {"epochs": epochs, "seed": seed},
        "held_out": len(held_out),
        "accuracy": accuracy(classifier, data.samples[held_out], data.labels[held_out]),
        "provenance": provenance(),
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, classifier.half().state_dict(), card)
    return read_classifier(path, device)


def _train(classifier: Classifier, data: Data, epochs: int, seed: int) -> None:
    batch = min(BATCH_SIZE, len(data))
    num_steps = epochs * len(data) // batch
    optimizer = torch.optim.Adam(classifier.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for step in progress(f"classifier of {data.name}", num_steps, iterable=range(num_steps)):
        generator = generator_for(data.samples.device, seed, Stream.CLASSIFIER, 2, step)
        x0, labels = data.batch(batch, generator)
        loss = F.cross_entropy(classifier(x0), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of uint8 images (N, C, H, W) whose label (N,) has the largest logit."""
    pairs = zip(images.split(CLASSIFIED), labels.split(CLASSIFIED), strict=True)
    right = [(classifier(to_unit(x)).argmax(1) == label).sum().item() for x, label in pairs]
    return sum(right) / len(labels)


def read_classifier(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[Classifier, dict]:
    """A classifier in evaluation mode, and its card, as `fit_classifier` wrote them.

    Raises ValueError if the file is damaged or holds something else.
    """
    tensors, card = read_tensors(path)
    with reading(path, "holds no classifier", "give the file that one was written to"):
        if missing := CARD - card.keys():
            raise KeyError(*missing)
        with torch.device("meta"):  # shapes alone, so that no description can claim memory
            classifier = Classifier(**card["classifier"])
        weights = {name: tensor.float() for name, tensor in tensors.items()}
        classifier.load_state_dict(weights, assign=True)
    return classifier.to(device).eval().requires_grad_(False), card
