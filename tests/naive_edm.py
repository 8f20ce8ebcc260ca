"""EDM's networks once more, written out step by step on named tensors: slow, and shared by nothing.

From the constructor arguments and weight names of the published files. All in float64.
"""

import math

import torch
import torch.nn.functional as F


class Weights(dict):
    """Named tensors in float64 that remembers which were asked for."""

    def __init__(self, tensors):
        super().__init__({name: tensor.double() for name, tensor in tensors.items()})
        self.unused = set(self)

    def __getitem__(self, name):
        self.unused.discard(name)
        return super().__getitem__(name)


def normalised(x, weights, name, eps):
    """Every group of every image to mean 0 and variance 1, every channel scaled and shifted."""
    channels = x.shape[1]
    groups = min(32, channels // 4)
    rows = []
    for image in x:
        parts = []
        for part in image.reshape(groups, -1):
            variance = ((part - part.mean()) ** 2).mean()
            parts.append((part - part.mean()) / (variance + eps) ** 0.5)
        rows.append(torch.stack(parts).reshape(image.shape))
    scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return torch.stack(rows) * scale[:, None, None] + shift[:, None, None]


def convolved(x, weights, name, pad):
    """A convolution with so many rows of zeros around x."""
    x = F.pad(x, (pad, pad, pad, pad))
    return F.conv2d(x, weights[f"{name}.weight"]) + weights[f"{name}.bias"][:, None, None]


def halved(x, taps, pad):
    """out[i, j] = sum over a, b of taps[a, b] x[2 i + a, 2 j + b], x padded with zeros."""
    x = F.pad(x, (pad, pad, pad, pad))
    size, k = (x.shape[-1] - len(taps)) // 2 + 1, len(taps)
    out = torch.zeros(*x.shape[:2], size, size, dtype=x.dtype)
    for i in range(size):
        for j in range(size):
            window = x[:, :, 2 * i : 2 * i + k, 2 * j : 2 * j + k]
            out[:, :, i, j] = (window * taps).sum((-1, -2))
    return out


def doubled(x, taps, pad):
    """Every pixel spreads 4 taps over the pixels from 2 i - pad on."""
    size, k = x.shape[-1], len(taps)
    out = torch.zeros(*x.shape[:2], 2 * size + k, 2 * size + k, dtype=x.dtype)
    for i in range(size):
        for j in range(size):
            spread = 4 * taps * x[:, :, i, j, None, None]
            out[:, :, 2 * i : 2 * i + k, 2 * j : 2 * j + k] += spread
    return out[:, :, pad : pad + 2 * size, pad : pad + 2 * size]


def filter_of(taps):
    taps = torch.tensor(taps, dtype=torch.float64)
    return torch.outer(taps, taps) / taps.sum() ** 2


def attention(x, weights, name, heads, eps):
    """Softmax of products; channel (head, c, q|k|v) of qkv, the last changing fastest."""
    batch, channels, height, width = x.shape
    per_head = channels // heads
    qkv = convolved(normalised(x, weights, f"{name}.norm2", eps), weights, f"{name}.qkv", 0)
    out = torch.zeros_like(x)
    for head in range(heads):
        first = 3 * per_head * head
        rows = qkv[:, first : first + 3 * per_head].reshape(batch, 3 * per_head, -1)
        q, k, v = rows[:, 0::3], rows[:, 1::3], rows[:, 2::3]  # (batch, c, pixels)
        products = torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(per_head)
        shares = products.exp() / products.exp().sum(2, keepdim=True)
        mixed = torch.einsum("bqk,bck->bcq", shares, v).reshape(batch, per_head, height, width)
        out[:, per_head * head : per_head * (head + 1)] = mixed
    return convolved(out, weights, f"{name}.proj", 0)


def song(weights, kwargs, x, c_noise, classes):
    """SongUNet: "positional" and "standard" are DDPM++, "fourier" and "residual" NCSN++."""
    size, channels, depth = kwargs["img_resolution"], kwargs["model_channels"], 0
    taps = filter_of(kwargs["resample_filter"])
    pad = (len(taps) - 1) // 2

    if kwargs["embedding_type"] == "positional":
        half = channels // 2
        angles = torch.stack([c_noise * 10_000 ** (-i / (half - 1)) for i in range(half)], 1)
    else:
        angles = torch.stack([2 * math.pi * f * c_noise for f in weights["map_noise.freqs"]], 1)
    emb = torch.cat([angles.sin(), angles.cos()], 1)
    if kwargs["label_dim"]:
        scaled = classes * math.sqrt(kwargs["label_dim"])
        emb = emb + scaled @ weights["map_label.weight"].T + weights["map_label.bias"]
    for layer in ("map_layer0", "map_layer1"):
        emb = F.silu(emb @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"])

    def block(x, name, attend, resampled=None):
        assert not resampled or torch.equal(weights[f"{name}.conv0.resample_filter"][0, 0], taps)
        move = (lambda x: resampled(x, taps, pad)) if resampled else (lambda x: x)
        h = F.silu(normalised(x, weights, f"{name}.norm0", 1e-6))
        h = convolved(move(h), weights, f"{name}.conv0", 1)
        shift = emb @ weights[f"{name}.affine.weight"].T + weights[f"{name}.affine.bias"]
        h = F.silu(normalised(h + shift[:, :, None, None], weights, f"{name}.norm1", 1e-6))
        h = convolved(h, weights, f"{name}.conv1", 1)
        if resampled:
            assert torch.equal(weights[f"{name}.skip.resample_filter"][0, 0], taps)
        if resampled or x.shape[1] != h.shape[1]:
            x = convolved(move(x), weights, f"{name}.skip", 0)
        x = (x + h) / math.sqrt(2)
        return (x + attention(x, weights, name, 1, 1e-6)) / math.sqrt(2) if attend else x

    skips, aux = [], x
    for mult in kwargs["channel_mult"]:
        here = f"{size >> depth}x{size >> depth}"
        if depth == 0:
            x = convolved(x, weights, f"enc.{here}_conv", 1)
        else:
            x = block(x, f"enc.{here}_down", False, halved)
            if kwargs["encoder_type"] == "residual":
                name = f"enc.{here}_aux_residual"
                assert torch.equal(weights[f"{name}.resample_filter"][0, 0], taps)
                aux = halved(convolved(aux, weights, name, 1 + pad), taps, 0)
                x = aux = (x + aux) / math.sqrt(2)
        skips.append(x)
        for i in range(kwargs["num_blocks"]):
            x = block(x, f"enc.{here}_block{i}", size >> depth in kwargs["attn_resolutions"])
            assert x.shape[1] == channels * mult
            skips.append(x)
        depth += 1
    x = block(block(x, f"dec.{here}_in0", True), f"dec.{here}_in1", False)
    while depth:
        depth -= 1
        here = f"{size >> depth}x{size >> depth}"
        if depth < len(kwargs["channel_mult"]) - 1:
            x = block(x, f"dec.{here}_up", False, doubled)
        for i in range(kwargs["num_blocks"] + 1):
            last = i == kwargs["num_blocks"]
            attend = last and size >> depth in kwargs["attn_resolutions"]
            x = block(torch.cat([x, skips.pop()], 1), f"dec.{here}_block{i}", attend)
    x = F.silu(normalised(x, weights, f"dec.{here}_aux_norm", 1e-6))
    return convolved(x, weights, f"dec.{here}_aux_conv", 1)


def dhariwal(weights, kwargs, x, c_noise, classes):
    """DhariwalUNet, which is ADM."""
    size, half, depth = kwargs["img_resolution"], kwargs["model_channels"] // 2, 0
    taps = filter_of([1, 1])

    def dense(emb, name):
        return emb @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    angles = torch.stack([c_noise * 10_000 ** (-i / half) for i in range(half)], 1)
    emb = dense(torch.cat([angles.cos(), angles.sin()], 1), "map_layer0")
    emb = dense(F.silu(emb), "map_layer1")
    if kwargs["label_dim"]:
        emb = emb + classes @ weights["map_label.weight"].T
    emb = F.silu(emb)

    def block(x, name, attend, resampled=None):
        move = (lambda x: resampled(x, taps, 0)) if resampled else (lambda x: x)
        h = F.silu(normalised(x, weights, f"{name}.norm0", 1e-5))
        h = convolved(move(h), weights, f"{name}.conv0", 1)
        scale, shift = dense(emb, f"{name}.affine")[:, :, None, None].split(h.shape[1], dim=1)
        h = F.silu(normalised(h, weights, f"{name}.norm1", 1e-5) * (scale + 1) + shift)
        h = convolved(h, weights, f"{name}.conv1", 1)
        if resampled:
            assert torch.equal(weights[f"{name}.conv0.resample_filter"][0, 0], taps)
            assert torch.equal(weights[f"{name}.skip.resample_filter"][0, 0], taps)
        x = move(x) if x.shape[1] == h.shape[1] else convolved(x, weights, f"{name}.skip", 0)
        x = x + h
        return x + attention(x, weights, name, x.shape[1] // 64, 1e-5) if attend else x

    skips = []
    for mult in kwargs["channel_mult"]:
        here = f"{size >> depth}x{size >> depth}"
        if depth == 0:
            x = convolved(x, weights, f"enc.{here}_conv", 1)
        else:
            x = block(x, f"enc.{here}_down", False, halved)
        skips.append(x)
        for i in range(kwargs["num_blocks"]):
            x = block(x, f"enc.{here}_block{i}", size >> depth in kwargs["attn_resolutions"])
            assert x.shape[1] == kwargs["model_channels"] * mult
            skips.append(x)
        depth += 1
    x = block(block(x, f"dec.{here}_in0", True), f"dec.{here}_in1", False)
    while depth:
        depth -= 1
        here = f"{size >> depth}x{size >> depth}"
        if depth < len(kwargs["channel_mult"]) - 1:
            x = block(x, f"dec.{here}_up", False, doubled)
        for i in range(kwargs["num_blocks"] + 1):
            attend = size >> depth in kwargs["attn_resolutions"]
            x = block(torch.cat([x, skips.pop()], 1), f"dec.{here}_block{i}", attend)
    return convolved(F.silu(normalised(x, weights, "out_norm", 1e-5)), weights, "out_conv", 1)


NETS = {"SongUNet": song, "DhariwalUNet": dhariwal}


def edm_denoised(weights, kwargs, x, sigma, classes, sigma_data=0.5):
    """D(x; sigma) of Karras et al. 2022, equation 7 and table 1; x (B, C, H, W), sigma (B,)."""
    x, sigma = x.double(), sigma.double()
    total = sigma**2 + sigma_data**2
    c_skip, c_out, c_in = sigma_data**2 / total, sigma * sigma_data / total.sqrt(), total**-0.5
    net = NETS[kwargs["model_type"]]
    inputs = c_in[:, None, None, None] * x
    F_x = net(weights, kwargs, inputs, sigma.log() / 4, classes.double())
    return c_skip[:, None, None, None] * x + c_out[:, None, None, None] * F_x
