"""OpenAI's ImageNet-64 networks, written out once more from their names: shared by nothing."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from tract.levels import ddpm_cosine, karras
from tract.networks.build import build_denoiser
from tract.teachers import openai
from tract.teachers.load import load_teacher
from tract.teachers.paper_unet import describe

# consistency_models', then what differs in guided-diffusion: three more outputs, 1d convolutions.
TINY = {"channels": 128, "mult": (1, 1, 1, 2), "blocks": 1, "attentive": (2, 3), "classes": 5}
SMALL = TINY | {"mult": (1, 1, 1)}
FULL = {"channels": 192, "mult": (1, 2, 3, 4), "blocks": 3, "attentive": (1, 2, 3), "classes": 1000}
GUIDED = {"out": 6, "dims": 1}


def random_state(*, channels, mult, blocks, attentive, classes, out=3, dims=2):
    """A state_dict of UNetModel in which everything acts on the output."""
    torch.manual_seed(0)
    found, emb = {}, 4 * channels

    def layer(name, *shape):
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 25
        found[f"{name}.weight"] = torch.randn(shape) / fan_in**0.5 + (len(shape) == 1)
        found[f"{name}.bias"] = torch.randn(shape[:1]) / 5

    def res(name, c_in, c_out):
        layer(f"{name}.in_layers.0", c_in)
        layer(f"{name}.in_layers.2", c_out, c_in, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * c_out, emb)
        layer(f"{name}.out_layers.0", c_out)
        layer(f"{name}.out_layers.3", c_out, c_out, 3, 3)
        if c_in != c_out:
            layer(f"{name}.skip_connection", c_out, c_in, 1, 1)

    def attention(name, width):
        layer(f"{name}.norm", width)
        layer(f"{name}.qkv", 3 * width, width, *[1] * dims)
        layer(f"{name}.proj_out", width, width, *[1] * dims)

    layer("time_embed.0", emb, channels)
    layer("time_embed.2", emb, emb)
    if classes:
        found["label_emb.weight"] = torch.randn(classes, emb)
    layer("input_blocks.0.0", channels, 3, 3, 3)
    width, skips = channels, [channels]
    for level, times in enumerate(mult):
        for _ in range(blocks):
            res(f"input_blocks.{len(skips)}.0", width, channels * times)
            width = channels * times
            if level in attentive:
                attention(f"input_blocks.{len(skips)}.1", width)
            skips.append(width)
        if level < len(mult) - 1:
            res(f"input_blocks.{len(skips)}.0", width, width)
            skips.append(width)
    res("middle_block.0", width, width)
    attention("middle_block.1", width)
    res("middle_block.2", width, width)
    count = len(skips)
    for level in reversed(range(len(mult))):
        for i in range(blocks + 1):
            name = f"output_blocks.{count - len(skips)}"
            res(f"{name}.0", width + skips.pop(), channels * mult[level])
            width = channels * mult[level]
            if level in attentive:
                attention(f"{name}.1", width)
            if level and i == blocks:
                res(f"{name}.{1 + (level in attentive)}", width, width)
    layer("out.0", width)
    layer("out.2", out, width, 3, 3)
    return found


def forward(state, x, time, labels, mult, blocks):
    """The network's output (B, out, H, W), in float64, for times (B,) as they are embedded."""
    state = {name: tensor.double() for name, tensor in state.items()}

    def norm(x, name):
        return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def conv(x, name, padding=1):
        weight = state[f"{name}.weight"]
        weight = weight.reshape(*weight.shape[:2], *(weight.shape[2:] * 2)[:2])  # of 1d, too
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=padding)

    def dense(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def res(x, name, resample=lambda x: x):
        h = conv(resample(F.silu(norm(x, f"{name}.in_layers.0"))), f"{name}.in_layers.2")
        scale, shift = dense(F.silu(emb), f"{name}.emb_layers.1")[:, :, None, None].chunk(2, 1)
        h = F.silu(norm(h, f"{name}.out_layers.0") * (1 + scale) + shift)
        x, h = resample(x), conv(h, f"{name}.out_layers.3")
        skip = f"{name}.skip_connection"
        return h + (conv(x, skip, 0) if f"{skip}.weight" in state else x)

    def attention(x, name):
        """Heads of 64 channels; rows of qkv are those of all q, then all k, then all v."""
        qkv = conv(norm(x, f"{name}.norm"), f"{name}.qkv", 0).flatten(2)
        q, k, v = (part.unflatten(1, (-1, 64)) for part in qkv.chunk(3, 1))
        out = v @ (q.mT @ k / 8).softmax(3).mT
        return x + conv(out.reshape(x.shape), f"{name}.proj_out", 0)

    def attend(x, name):
        return attention(x, name) if f"{name}.qkv.weight" in state else x

    half = len(state["input_blocks.0.0.bias"]) // 2
    angles = time.double()[:, None] * 10_000 ** (-torch.arange(half, dtype=torch.float64) / half)
    emb = dense(torch.cat([angles.cos(), angles.sin()], 1), "time_embed.0")
    emb = dense(F.silu(emb), "time_embed.2")
    if labels is not None:
        emb = emb + state["label_emb.weight"][labels]
    h = conv(x.double(), "input_blocks.0.0")
    skips, count = [h], len(mult) * (blocks + 1)
    for i in range(1, count):
        if i % (blocks + 1) == 0:
            h = res(h, f"input_blocks.{i}.0", lambda x: F.avg_pool2d(x, 2))
        else:
            h = attend(res(h, f"input_blocks.{i}.0"), f"input_blocks.{i}.1")
        skips.append(h)
    h = res(attention(res(h, "middle_block.0"), "middle_block.1"), "middle_block.2")
    for i in range(count):
        h = attend(
            res(torch.cat([h, skips.pop()], 1), f"output_blocks.{i}.0"), f"output_blocks.{i}.1"
        )
        if i % (blocks + 1) == blocks and i < count - 1:
            last = 2 if f"output_blocks.{i}.1.qkv.weight" in state else 1
            double = lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
            h = res(h, f"output_blocks.{i}.{last}", double)
    return conv(F.silu(norm(h, "out.0")), "out.2")


def by_hand(kind, state, x_t, index, labels, shape):
    """x0 as the projects' own formulas have it, at these levels."""
    if kind == "guided":  # eps, from x_t and the level's number from 0 on
        gamma = ddpm_cosine(1000).alpha[index] ** 2
        eps = forward(state, x_t, index - 1, labels, *shape)[:, :3]
        return (x_t - (1 - gamma).sqrt()[:, None, None, None] * eps) / gamma.sqrt()[
            :, None, None, None
        ]
    sigma, s, least = karras(40).sigma[index], 0.5, 0.002 if kind == "cd" else 0
    c_skip = s**2 / ((sigma - least) ** 2 + s**2)
    c_out = (sigma - least) * s / (sigma**2 + s**2) ** 0.5
    c_skip, c_out, c_in = (
        c[:, None, None, None] for c in (c_skip, c_out, (sigma**2 + s**2) ** -0.5)
    )
    time = 1000 * 0.25 * (sigma + 1e-44).log()
    return c_skip * x_t + c_out * forward(state, c_in * x_t, time, labels, *shape)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each kind, and its state_dict; their networks take images of any size."""
    folder, made = tmp_path_factory.mktemp("openai"), {}
    names = {"guided": "64x64_diffusion.pt", "edm": "edm_imagenet64_ema.pt", "cd": "cd_lpips.pt"}
    for kind, name in names.items():
        made[kind] = folder / name, random_state(**TINY | (GUIDED if kind == "guided" else {}))
        torch.save(made[kind][1], made[kind][0])
    return made


@pytest.mark.parametrize(
    ("kind", "levels", "said"),
    [
        (
            "guided",
            ddpm_cosine(1000),
            "guided-diffusion: network adm of .* eps, 1000 steps of ddpm",
        ),
        ("edm", karras(40), "consistency_models: .* predicts edm, 40 steps of karras levels, 5 cl"),
        ("cd", karras(40), "consistency_models: .* predicts consistency, 40 steps of karras"),
    ],
)
def test_x0_is_that_of_the_projects_own_formulas(files, kind, levels, said):
    path, state = files[kind]
    teacher = load_teacher(path)
    assert re.search(said, teacher.description)
    denoise = teacher.denoiser.double()
    index = torch.tensor([levels.num_steps, levels.num_steps // 2, 1])
    labels = torch.tensor([4, 0, 2])
    level = levels[index]
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    x_t = x * (level.alpha**2 + level.sigma**2).sqrt()[:, None, None, None]
    expected = by_hand(kind, state, x_t, index, labels, (TINY["mult"], TINY["blocks"]))
    ours = denoise(x_t, level, labels)
    # eps at the noisiest level counts sigma / alpha = 20,000 times.
    scale = (level.sigma / level.alpha).clamp(min=1)[:, None, None, None]
    assert ((ours - expected) / scale).abs().max() < 1e-5
    unchanged = torch.allclose(ours[2], x_t[2], rtol=0, atol=1e-12)  # at sigma_min
    assert unchanged is (kind == "cd")


def test_float32_is_as_near_as_its_rounding(files):
    path, state = files["edm"]
    x, logsnr, labels = torch.randn(2, 3, 16, 16), torch.tensor([-8.0, 4.0]), torch.tensor([1, 3])
    expected = forward(state, x, -125 * logsnr, labels, TINY["mult"], TINY["blocks"])
    ours = load_teacher(path).denoiser.net(x, logsnr, labels)
    torch.testing.assert_close(
        ours.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item()
    )


@pytest.mark.parametrize(("more", "count"), [(GUIDED, 295_904_454), ({}, 295_899_267)])
def test_the_published_networks_are_edms_of_imagenet_64(tmp_path, more, count):
    with torch.device("meta"):
        state = random_state(**FULL | more)
        assert len(state) == 541
        assert sum(t.numel() for t in state.values()) == count
        config = describe(tmp_path, dict(state), openai._options)
        assert config["options"].pop("out_channels") == more.get("out", 3)
        net = build_denoiser(config | {"net": "adm"}).net
        taken = {}

        def take(name, shape):
            taken[name] = shape
            return state[name]

        ours = dict(openai._weights(net, take, guided=bool(more)))
    assert taken == {n: tuple(t.shape) for n, t in state.items()}
    assert {n: t.shape for n, t in ours.items()} == {
        n: t.shape for n, t in net.state_dict().items()
    }
    assert sum(p.numel() for p in net.parameters()) == 295_899_267


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("middle_block.1.qkv.bias"), r"lacks middle_block\.1\.qkv\.bias"),
        (lambda t: t.update({"out.9": torch.ones(1)}), r"has out\.9, which is not a part"),
        (lambda t: t.update({"out.2.bias": torch.ones(4)}), "makes 4 channels of 3"),
        (lambda t: t.pop("out.2.bias"), "holds no network of this kind"),
        (lambda t: t.clear() or t.update(random_state(**SMALL)), "of 32 pixels and 128 channels"),
    ],
)
def test_what_is_missing_or_left_over_is_named(files, tmp_path, change, message):
    tensors = dict(files["edm"][1])
    change(tensors)
    with pytest.raises(ValueError, match=message):
        openai.read_openai(tmp_path / "edm.pt", tensors)


def test_a_name_that_does_not_tell_the_preconditioning_is_refused(files, tmp_path):
    with pytest.raises(ValueError, match=r"model\.pt .* let its name begin with edm, cd or ct"):
        openai.read_openai(tmp_path / "model.pt", files["cd"][1])
