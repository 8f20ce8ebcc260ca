"""The U-Net and the MLP: published sizes, shapes, and the parts against formulas written out."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from tract.data import Data
from tract.datasets.load import load_data
from tract.networks.build import build_denoiser, count_parameters
from tract.networks.mlp import MLP, MLPBlock
from tract.networks.named import NETWORKS, named_network
from tract.optimize import check_fits
from tract.unet import Attention, DownBlock, Embedding, ResBlock, UNet, UpBlock

SMALL = {
    "channels": 8,
    "emb_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attention": [4],
    "groups": 4,
}
NORM = partial(nn.GroupNorm, 2, eps=1e-6)


def wake(net, seed=0):
    """Give the layers that start at zero some weights, so that everything acts."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        if not parameter.any():
            with torch.no_grad():
                parameter.normal_(0, 0.1, generator=generator)
    return net


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return wake(UNet(8, 1, **SMALL))


@pytest.mark.parametrize(
    ("name", "count"),
    [("cifar10", 60_004_099), ("cifar10_small", 19_419_011), ("imagenet64", 295_905_222)],
)
def test_parameter_counts_are_the_published_ones(name, count):
    assert count_parameters(named_network(name)) == count


@pytest.mark.parametrize("name", NETWORKS)
def test_every_preset_maps_an_image_to_outputs_of_its_size(name):
    config = named_network(name)
    options = config["options"]
    size, channels = options["image_size"], options["image_channels"]
    with torch.device("meta"):
        net = build_denoiser(config).net
        labels = torch.zeros(2, dtype=torch.int64) if options.get("num_classes") else None
        output = net(torch.zeros(2, channels, size, size), torch.zeros(2), labels)
    outputs = 2 * channels if config["prediction"] == "x0_eps" else channels
    assert output.shape == (2, outputs, size, size)


def test_attention_is_softmax_of_products_between_all_pixels():
    torch.manual_seed(0)
    attention = wake(Attention(8, 4, NORM).double())
    x = torch.randn(1, 8, 2, 3, dtype=torch.float64)
    normed = attention.norm(x)[0].flatten(1)  # (C, pixels)
    q, k, v = (attention.qkv.weight[:, :, 0, 0] @ normed + attention.qkv.bias[:, None]).chunk(3)
    mixed = []
    for head in (slice(0, 4), slice(4, 8)):
        products = q[head].T @ k[head] / math.sqrt(4)  # (query, key)
        shares = products.exp() / products.exp().sum(1, keepdim=True)
        mixed.append(v[head] @ shares.T)
    projected = attention.proj_out(torch.cat(mixed).reshape(1, 8, 2, 3))
    torch.testing.assert_close(attention(x, None), x + projected, rtol=1e-12, atol=1e-12)


def test_a_residual_block_scales_and_shifts_by_the_embedding():
    torch.manual_seed(0)
    block = wake(ResBlock(4, 8, 6, NORM).double())
    x, emb = torch.randn(2, 4, 4, 4).double(), torch.randn(2, 6).double()
    scale, shift = block.emb_proj(emb).reshape(2, 2, 8, 1, 1).unbind(1)
    h = block.conv1(torch.nn.functional.silu(block.norm1(x)))
    h = block.norm2(h) * (1 + scale) + shift
    h = block.conv2(torch.nn.functional.silu(h))
    expected = h + block.shortcut(x)
    torch.testing.assert_close(block(x, emb), expected, rtol=1e-12, atol=1e-12)


def test_fresh_blocks_only_average_or_repeat_pixels():
    # Their last convolution starts at zero, so what is left is the resampled input.
    x, emb = torch.randn(1, 4, 4, 4), torch.randn(1, 6)
    halved = DownBlock(4, 4, 6, NORM)(x, emb)
    assert torch.allclose(halved, x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)), atol=1e-6)
    doubled = UpBlock(4, 4, 6, NORM)(x, emb)
    assert torch.equal(doubled, x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_the_level_is_embedded_as_waves_of_its_angle():
    # u = atan(exp(-logsnr / 2)) / (pi / 2), times 1000, as in attention with base 10,000.
    emb = Embedding(6, 6, 0)
    for dense in (emb.dense0, emb.dense1):
        nn.init.eye_(dense.weight)
        nn.init.zeros_(dense.bias)
    for logsnr in (-20.0, -1.0, 0.0, 7.0, 20.0):
        time = 1000 * math.atan(math.exp(-logsnr / 2)) / (math.pi / 2)
        angles = [time * 10_000 ** (-i / 2) for i in range(3)]
        waves = torch.tensor([f(x) for f in (math.sin, math.cos) for x in angles])
        expected = nn.functional.silu(nn.functional.silu(waves))
        # Angles up to 1000 have float32 steps of 6e-5.
        ours = emb(torch.tensor([logsnr]), None)[0]
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-4)


def test_classes_move_the_embedding_by_their_own_vectors():
    emb = Embedding(6, 4, 3)
    nn.init.zeros_(emb.dense1.weight)
    nn.init.ones_(emb.dense1.bias)  # all that is left of the level
    labels = torch.tensor([2, 0])
    expected = nn.functional.silu(1 + emb.class_emb.weight.T[labels] + emb.class_emb.bias)
    assert torch.allclose(emb(torch.zeros(2), labels), expected)


def test_a_fresh_unet_says_zero_for_every_input():
    net = UNet(8, 1, **SMALL)
    assert not net(torch.randn(2, 1, 8, 8), torch.zeros(2)).any()


def test_patches_are_channels_of_a_smaller_image():
    patched, plain = wake(UNet(8, 1, patch=2, **SMALL)), UNet(4, 4, **SMALL)
    plain.load_state_dict(patched.state_dict())
    x, logsnr = torch.randn(2, 1, 8, 8), torch.tensor([-3.0, 3.0])
    corners = [(i, j) for i in range(2) for j in range(2)]
    channels = plain(torch.stack([x[:, 0, i::2, j::2] for i, j in corners], 1), logsnr)
    output = patched(x, logsnr)
    for channel, (i, j) in enumerate(corners):
        assert torch.equal(output[:, 0, i::2, j::2], channels[:, channel])


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image_size is 28, .* patches of 2 and then halved 2"):
        UNet(28, 1, patch=2, **SMALL | {"channel_mult": [1, 1, 1]})


def test_the_unet_depends_on_the_level(unet):
    x = torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1)
    noisy, clean = unet(x, torch.tensor([-5.0, 5.0]))
    assert (noisy - clean).abs().max() > 1e-3


def test_samples_of_a_batch_do_not_see_each_other(unet):
    x, logsnr = torch.randn(3, 1, 8, 8), torch.tensor([-5.0, 0.0, 5.0])
    together = unet(x, logsnr)
    for row in range(3):
        alone = unet(x[row : row + 1], logsnr[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda: UNet(8, 1, **SMALL, num_classes=3), lambda: MLP(2, num_classes=3)]
)
def test_the_network_depends_on_the_label(make):
    net = wake(make())
    x = torch.randn(1, 1, 8, 8) if isinstance(net, UNet) else torch.randn(1, 2)
    one, two = (net(x, torch.zeros(1), torch.tensor([label])) for label in (1, 2))
    assert (one - two).abs().max() > 1e-4


def test_the_mlp_depends_on_the_level():
    one, two = MLP(2)(torch.ones(2, 2), torch.tensor([-5.0, 5.0]))
    assert (one - two).abs().max() > 1e-3


def test_the_mlp_sees_coordinates_and_their_waves():
    net, seen = MLP(1), []
    net.dense_in.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(torch.tensor([[0.3]]), torch.zeros(1))
    angles = [0.3, 0.6, 1.2, 2.4]
    expected = [0.3, *map(math.sin, angles), *map(math.cos, angles)]
    assert seen[0][0].tolist() == pytest.approx(expected, rel=1e-6)


def standardised(h):
    """Every row with mean 0 and variance 1, up to the layers' 1e-5."""
    centred = h - h.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()


def test_a_block_of_the_mlp_scales_and_shifts_by_the_embedding():
    torch.manual_seed(0)
    block = MLPBlock(4).double()
    h, emb = torch.randn(2, 3, 4, dtype=torch.float64)
    scale, shift = block.emb_proj(emb)[:, :4], block.emb_proj(emb)[:, 4:]
    silu = nn.functional.silu
    update = standardised(block.dense1(silu(standardised(h))))  # new norms only standardise
    expected = h + block.dense2(silu(update * (1 + scale) + shift))
    torch.testing.assert_close(block(h, emb), expected, rtol=1e-12, atol=1e-12)


def test_a_conditional_network_demands_labels():
    with pytest.raises(ValueError, match=r"takes labels in 0\.\.2, got labels=None"):
        UNet(8, 1, **SMALL, num_classes=3)(torch.zeros(1, 1, 8, 8), torch.zeros(1))


@pytest.mark.parametrize("net", [UNet(8, 1, **SMALL), MLP(2)])
def test_an_unconditional_network_refuses_labels(net):
    x = torch.zeros(1, 1, 8, 8) if isinstance(net, UNet) else torch.zeros(1, 2)
    with pytest.raises(ValueError, match="takes no labels, got labels=tensor"):
        net(x, torch.zeros(1), torch.tensor([0]))


@pytest.mark.parametrize("size", [28, 6, 33])
def test_an_image_that_cannot_be_halved_is_refused_with_its_size(size):
    options = SMALL | {"channel_mult": [1, 1, 1, 1]}
    with pytest.raises(ValueError, match=f"image_size is {size}, .*halved 3 times: pad"):
        UNet(size, 1, **options)


def test_dropout_acts_in_training_only():
    net = wake(UNet(8, 1, **SMALL, dropout=0.5))
    x, logsnr = torch.randn(1, 1, 8, 8), torch.zeros(1)
    assert not torch.equal(net(x, logsnr), net(x, logsnr))
    net.eval()
    assert torch.equal(net(x, logsnr), net(x, logsnr))


def test_a_seed_gives_one_network_and_leaves_global_randomness_alone():
    config = {"net": "mlp", "prediction": "edm", "sigma_data": 1.0, "options": {"point_dim": 2}}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (build_denoiser(config, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["net.dense_in.weight"], other["net.dense_in.weight"])


def test_a_denoiser_is_built_as_its_description_says():
    config = {"net": "mlp", "prediction": "v", "sigma_data": 0.3, "options": {"point_dim": 5}}
    denoiser = build_denoiser(config)
    assert (denoiser.prediction, denoiser.sigma_data) == ("v", 0.3)
    assert denoiser.net.dense_out.out_features == 5
    assert denoiser.config == config


def test_presets_are_not_changed_by_their_users():
    named_network("digits")["options"]["channels"] = 1
    assert named_network("digits")["options"]["channels"] != 1


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="network is 'cifar': choose one of .*'cifar10'"):
        named_network("cifar")


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 8), (1, 8, 16)])
def test_data_of_another_shape_than_the_network_is_refused_with_both(shape):
    data = Data("pictures", torch.zeros(4, *shape, dtype=torch.uint8))
    with pytest.raises(
        ValueError, match=rf"(?=.*{shape[1]}, {shape[2]}\))(?=.*\(1, 8, 8\))"
    ) as refusal:
        check_fits(named_network("digits"), data)
    assert "pictures" in str(refusal.value)
    assert "choose another network" in str(refusal.value)


def test_data_of_another_number_of_classes_is_refused_with_both():
    with pytest.raises(ValueError, match="10 classes, the network takes 0: set conditional"):
        check_fits(named_network("digits"), load_data("digits"))


def test_the_digits_fit_their_preset():
    check_fits(named_network("digits"), load_data("digits").unlabelled())
