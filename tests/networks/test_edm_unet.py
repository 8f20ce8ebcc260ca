"""EDM's networks: published sizes and names, and their output against one written out by hand."""

import hashlib

import pytest
import torch
from naive_edm import Weights, edm_denoised

from tract.data import Data
from tract.distill import distill, start_distillation
from tract.levels import Level, karras
from tract.networks.build import build_denoiser, count_parameters, named_network
from tract.networks.edm_blocks import double, halve, low_pass
from tract.networks.edm_unet import ADMUNet, SongUNet
from tract.networks.weights import load_state, save_state
from tract.optimize import check_fits
from tract.settings import Distillation

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


SONG_SMALL = {"variant": "ddpm++", "channels": 8, "channel_mult": [1, 2, 2], "num_blocks": 1}


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


# Names and shapes of all tensors, hashed. Taken from another implementation, NVIDIA's port of EDM
# to its package modulus (0.9.0), which also gives our outputs at full size to 1e-7 in float64.
FULL_SIZE = [
    ("edm_cifar10_ddpmpp", 0, 55_733_891, 425, "7fac419af4b1c9c5"),
    ("edm_cifar10_ddpmpp", 10, 55_735_299, 427, "2c62785be254eec5"),
    ("edm_cifar10_ncsnpp", 0, 56_397_827, 432, "cc1ae33cd4dc4daf"),
    ("edm_imagenet64_adm", 1000, 295_899_267, 553, "ffc3048cd3b63796"),
]


@pytest.mark.parametrize(("name", "classes", "parameters", "tensors", "digest"), FULL_SIZE)
def test_sizes_names_and_shapes_are_the_published_ones(name, classes, parameters, tensors, digest):
    config = named_network(name)
    config["options"]["num_classes"] = classes
    assert count_parameters(config) == parameters
    with torch.device("meta"):
        state = build_denoiser(config).net.state_dict()
    assert len(state) == tensors
    text = "\n".join(sorted(f"{n} {tuple(t.shape)}" for n, t in state.items()))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_names_that_the_published_files_are_known_to_have():
    with torch.device("meta"):
        ncsn = build_denoiser(named_network("edm_cifar10_ncsnpp")).net.state_dict()
        adm = build_denoiser(named_network("edm_imagenet64_adm")).net.state_dict()
    assert ncsn.keys() >= {
        "map_augment.weight",
        "enc.32x32_conv.bias",
        "enc.16x16_aux_residual.resample_filter",
        "enc.16x16_block3.qkv.weight",
        "dec.8x8_in0.proj.bias",
        "dec.16x16_block4.norm2.weight",
        "dec.32x32_up.skip.weight",
        "dec.32x32_aux_norm.bias",
        "dec.32x32_aux_conv.weight",
    }
    assert ncsn["map_noise.freqs"].shape == (128,)
    assert "dec.16x16_block3.qkv.weight" not in ncsn  # only the last block of a size attends
    assert "dec.32x32_block0.qkv.weight" in adm
    assert {"map_label.weight", "out_norm.weight", "out_conv.bias"} <= adm.keys()
    assert "map_label.bias" not in adm
    assert "enc.32x32_down.skip.weight" not in adm


@pytest.mark.parametrize("case", CASES)
def test_no_label_is_no_class(case):
    net, options, published = CASES[case]
    denoiser = alive(build_denoiser(described(net, options)))
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 5.0], dtype=torch.float64)
    classes = torch.zeros(2, published["label_dim"])
    expected = edm_denoised(Weights(denoiser.net.state_dict()), published, x, sigma, classes)
    ours = denoiser(x, Level(torch.ones_like(sigma), sigma))
    torch.testing.assert_close(ours, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["ddpm++", "adm"])
def test_labels_without_classes_are_refused(case):
    net, options, _ = CASES[case]
    denoiser = build_denoiser(described(net, options))
    with pytest.raises(ValueError, match="takes no labels, got labels=tensor"):
        denoiser.net(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.tensor([0]))


@pytest.mark.parametrize("case", CASES)
def test_sigma_0_returns_what_it_is_given(case):
    net, options, _ = CASES[case]
    denoiser = alive(build_denoiser(described(net, options)))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(denoiser(x, karras(4)[0]), x)


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_network_starts_near_zero_and_can_learn(case):
    net, options, _ = CASES[case]
    denoiser = build_denoiser(described(net, options))
    output = denoiser.net(torch.randn(2, 3, 8, 8), torch.zeros(2))
    assert output.abs().max() < 1e-3
    output.square().sum().backward()
    assert all(p.grad is not None for p in denoiser.parameters())


def test_initial_weights_have_the_published_spread():
    # Uniform of variance 2 / (fan_in + fan_out), times 0.2 before attention; uniform 1 / fan_in,
    # which is variance 1 / (3 fan_in).
    song = SongUNet(8, 3, variant="ddpm++", channels=64, channel_mult=[1], num_blocks=1)
    assert song.map_layer1.weight.var().item() == pytest.approx(2 / (256 + 256), rel=0.05)
    block = song.dec["8x8_in0"]
    assert block.conv0.weight.var().item() == pytest.approx(1 / (9 * 64), rel=0.05)
    assert block.qkv.weight.var().item() == pytest.approx(0.2 * 2 / (64 + 192), rel=0.05)
    assert block.proj.weight.std().item() == pytest.approx(1e-5 * 64**-0.5, rel=0.05)
    assert not any(m.bias.any() for m in song.modules() if isinstance(m, torch.nn.Conv2d))
    ncsn = SongUNet(8, 3, variant="ncsn++", channels=512, channel_mult=[1], num_blocks=0)
    assert ncsn.map_noise.freqs.std().item() == pytest.approx(16, rel=0.1)
    adm = ADMUNet(8, 3, channels=64, channel_mult=[1], num_blocks=1, num_classes=50)
    assert adm.map_label.weight.var().item() == pytest.approx(1, rel=0.05)
    assert adm.dec["8x8_in0"].conv0.weight.var().item() == pytest.approx(1 / (27 * 64), rel=0.05)
    assert not adm.dec["8x8_in0"].proj.weight.any()


def test_filters_keep_constants_and_halve_as_averages():
    x = torch.randn(1, 2, 4, 4)
    averages = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    assert torch.allclose(halve(x, low_pass([1, 1])), averages, atol=1e-6)
    assert torch.equal(
        double(x, low_pass([1, 1])), x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    ones = torch.ones(1, 1, 8, 8)
    assert torch.equal(
        double(ones, low_pass([1, 3, 3, 1]))[:, :, 2:-2, 2:-2], ones.new_ones(1, 1, 12, 12)
    )
    assert torch.equal(
        halve(ones, low_pass([1, 3, 3, 1]))[:, :, 1:-1, 1:-1], ones.new_ones(1, 1, 2, 2)
    )


def test_dropout_acts_in_training_only():
    denoiser = alive(build_denoiser(described("adm", ADM | {"dropout": 0.5})))
    x, level = torch.randn(1, 3, 8, 8), karras(4)[2]
    assert torch.equal(denoiser(x, level), denoiser(x, level))
    denoiser.train()
    assert not torch.equal(denoiser(x, level), denoiser(x, level))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SongUNet(8, 3, **{**SONG_SMALL, "variant": "edm"}),
            "variant is 'edm': choose one",
        ),
        (lambda: SongUNet(6, 3, **SONG_SMALL), "image_size is 6, which cannot be halved 2 times"),
        (
            lambda: ADMUNet(8, 3, channels=32, channel_mult=[1], num_blocks=1),
            "attention is at a size with 32 channels, less than one head of 64",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_presets_fit_their_data():
    pictures = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    check_fits(named_network("edm_cifar10_ncsnpp"), Data("pictures", pictures))
    with pytest.raises(ValueError, match="0 classes, the network takes 1000"):
        check_fits(named_network("edm_imagenet64_adm"), Data("p", torch.zeros(4, 3, 64, 64).byte()))


def test_a_distillation_from_it_stops_and_resumes(tmp_path):
    # Weights that never act, those of the augmentation labels, are saved and restored too.
    net, options, _ = CASES["ncsn++"]
    teacher = alive(build_denoiser(described(net, options)))
    data = Data("pictures", torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8))
    settings = Distillation(train_images=16, batch_size=4, step_schedule=(4, 2, 1), solver="heun")
    states = [start_distillation(teacher, settings) for _ in range(2)]
    steps = distill(states[0], data, karras(4), settings)
    for _ in range(3):
        next(steps)
    save_state(tmp_path / "state", states[0], {})
    load_state(tmp_path / "state", states[1])
    losses = [[r.loss for r in distill(state, data, karras(4), settings)] for state in states]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 1
