"""EDM's networks: published sizes and names, and their output against one written out by hand."""

import pytest
import torch
from naive_edm import Weights, edm_denoised

from tract.edm_unet import ADMUNet, FourierAngles, SongUNet
from tract.levels import Level
from tract.presets import build_denoiser, count_parameters, preset

SONG = {"image_size": 8, "image_channels": 3, "channels": 8, "channel_mult": [1, 2, 2]}
SONG |= {"num_blocks": 2, "attention": [8, 4]}
ADM = {"image_size": 8, "image_channels": 3, "channels": 32, "channel_mult": [1, 4]}
ADM |= {"num_blocks": 1, "attention": [4]}

# Options of ours, and the arguments of the published constructors that mean the same.
SONG_PUBLISHED = {"model_type": "SongUNet", "img_resolution": 8, "img_channels": 3}
SONG_PUBLISHED |= {"model_channels": 8, "channel_mult": [1, 2, 2], "num_blocks": 2}
SONG_PUBLISHED |= {"attn_resolutions": [8, 4], "label_dim": 0, "decoder_type": "standard"}
DDPMPP = {"embedding_type": "positional", "encoder_type": "standard", "channel_mult_noise": 1}
NCSNPP = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}
DDPMPP = SONG_PUBLISHED | DDPMPP | {"resample_filter": [1, 1], "augment_dim": 9}
NCSNPP = SONG_PUBLISHED | NCSNPP | {"resample_filter": [1, 3, 3, 1], "augment_dim": 9}
ADM_PUBLISHED = {"model_type": "DhariwalUNet", "img_resolution": 8, "img_channels": 3}
ADM_PUBLISHED |= {"model_channels": 32, "channel_mult": [1, 4], "num_blocks": 1}
ADM_PUBLISHED |= {"attn_resolutions": [4], "label_dim": 0}

CASES = {
    "ddpm++": ("song", SONG | {"variant": "ddpm++", "augment_dim": 9}, DDPMPP),
    "ncsn++": ("song", SONG | {"variant": "ncsn++", "augment_dim": 9}, NCSNPP),
    "ddpm++ with classes": (
        "song",
        SONG | {"variant": "ddpm++", "augment_dim": 9, "num_classes": 3},
        DDPMPP | {"label_dim": 3},
    ),
    "adm": ("adm", ADM, ADM_PUBLISHED),
    "adm with classes": ("adm", ADM | {"num_classes": 3}, ADM_PUBLISHED | {"label_dim": 3}),
}


def alive(denoiser, seed=0):
    """Random numbers in all weights, of sizes with which every layer matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in denoiser.named_parameters():
            fan_in = p[0].numel() if p.ndim > 1 else 25
            p.normal_(0, fan_in**-0.5, generator=generator).add_("norm" in name and p.ndim == 1)
    return denoiser.eval()


def described(net, options):
    return {"net": net, "prediction": "edm", "sigma_data": 0.5, "options": options}


@pytest.mark.parametrize("case", CASES)
def test_the_denoiser_is_the_published_one(case):
    net, options, published = CASES[case]
    denoiser = alive(build_denoiser(described(net, options)))
    weights = Weights(denoiser.net.state_dict())
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.002, 0.7, 80.0], dtype=torch.float64)
    labels = torch.tensor([2, 0, 1]) if published["label_dim"] else None
    classes = torch.eye(3)[[2, 0, 1]] if published["label_dim"] else torch.zeros(3, 0)
    x = x * (1 + sigma.float()[:, None, None, None])
    expected = edm_denoised(weights, published, x, sigma, classes)
    assert weights.unused <= {"map_augment.weight"}  # of augmentation labels, which are zero
    level = Level(torch.ones(3, dtype=torch.float64), sigma)
    ours = denoiser(x, level, labels)
    torch.testing.assert_close(ours, expected.float(), rtol=1e-5, atol=1e-5)
    exact = denoiser.double()(x.double(), level, labels)
    torch.testing.assert_close(exact, expected, rtol=1e-10, atol=1e-10)
