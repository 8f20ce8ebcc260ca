"""Google's network and its container, written out from their description alone.

Arrays are float32 tensors in flax's layouts, by names such as "down_0.block_1/conv1/kernel".
"""

import math
import struct

import torch
import torch.nn.functional as F

TINY = {"channels": 32, "emb": 16, "mult": (1, 2), "blocks": 1, "attentive": (1,)}
CIFAR = {"channels": 256, "emb": 1024, "mult": (1, 1, 1), "blocks": 3, "attentive": (1, 2)}
IMAGENET = {"channels": 192, "emb": 768, "mult": (1, 2, 3, 4), "blocks": 3, "attentive": (1, 2, 3)}
BOTH = {"head": 64, "classes": 1000, "out": 6}  # more of IMAGENET


def shapes(*, channels, emb, mult, blocks, attentive, head=None, classes=0, out=3):
    """Shapes of all arrays by name."""
    found = {}

    def layer(name, shape, kind="kernel"):
        found[f"{name}/{kind}"] = shape
        found[f"{name}/bias"] = shape[-1:]

    def res(name, c_in, c_out):
        layer(f"{name}/norm1", (c_in,), "scale")
        layer(f"{name}/conv1", (3, 3, c_in, c_out))
        layer(f"{name}/temb_proj", (emb, 2 * c_out))
        layer(f"{name}/norm2", (c_out,), "scale")
        layer(f"{name}/conv2", (3, 3, c_out, c_out))
        if c_in != c_out:
            layer(f"{name}/nin_shortcut", (c_in, c_out))

    def attention(name, width):
        heads = width // (head or width)
        layer(f"{name}/norm", (width,), "scale")
        for part in "qkv":
            found[f"{name}/{part}/kernel"] = (width, heads, width // heads)
            found[f"{name}/{part}/bias"] = (heads, width // heads)
        layer(f"{name}/proj_out", (heads, width // heads, width))

    layer("dense0", (channels, emb))
    layer("dense1", (emb, emb))
    if classes:
        layer("class_emb", (classes, emb))
    layer("conv_in", (3, 3, 3, channels))
    width, skips = channels, [channels]
    for level, times in enumerate(mult):
        for block in range(blocks):
            res(f"down_{level}.block_{block}", width, channels * times)
            width = channels * times
            if level in attentive:
                attention(f"down_{level}.attn_{block}", width)
            skips.append(width)
        if level < len(mult) - 1:
            res(f"down_{level}.downsample", width, width)
            skips.append(width)
    res("mid.block_1", width, width)
    attention("mid.attn_1", width)
    res("mid.block_2", width, width)
    for level in reversed(range(len(mult))):
        for block in range(blocks + 1):
            res(f"up_{level}.block_{block}", width + skips.pop(), channels * mult[level])
            width = channels * mult[level]
            if level in attentive:
                attention(f"up_{level}.attn_{block}", width)
        if level:
            res(f"up_{level}.upsample", width, width)
    layer("norm_out", (width,), "scale")
    layer("conv_out", (3, 3, width, out))
    return found


def random_arrays(seed=0, **network):
    """Arrays of a network in which everything acts on the output."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes(**network).items():
        noise = torch.randn(shape, generator=generator)
        fan_in = math.prod(shape[:-1]) if "kernel" in name else 100
        found[name] = noise / fan_in**0.5 + ("scale" in name)
    return found


def forward(arrays, x, logsnr, labels=None, *, attentive, norm_eps=1e-6):
    """The network on images (B, C, H, W), layer by layer, in float64."""
    arrays = {name: array.double() for name, array in arrays.items()}

    def dense(name, h):
        return h @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"]

    def conv(name, h):  # (B, H, W, C)
        kernel = arrays[f"{name}/kernel"].permute(3, 2, 0, 1)
        out = F.conv2d(h.permute(0, 3, 1, 2), kernel, padding=1).permute(0, 2, 3, 1)
        return out + arrays[f"{name}/bias"]

    def norm(name, h):
        b, height, width, c = h.shape
        groups = h.reshape(b, height * width, 32, c // 32)
        groups = groups - groups.mean((1, 3), keepdim=True)
        groups = groups / (groups.square().mean((1, 3), keepdim=True) + norm_eps).sqrt()
        return groups.reshape(h.shape) * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]

    def halve(h):
        return (h[:, ::2, ::2] + h[:, 1::2, ::2] + h[:, ::2, 1::2] + h[:, 1::2, 1::2]) / 4

    def double(h):
        return h.repeat_interleave(2, 1).repeat_interleave(2, 2)

    def res(name, h, resample=lambda h: h):
        inner = conv(f"{name}/conv1", resample(silu(norm(f"{name}/norm1", h))))
        both = dense(f"{name}/temb_proj", silu(emb))[:, None, None]
        scale, shift = both[..., : both.shape[-1] // 2], both[..., both.shape[-1] // 2 :]
        inner = norm(f"{name}/norm2", inner) * (1 + scale) + shift
        inner = conv(f"{name}/conv2", silu(inner))
        h = resample(h)
        if f"{name}/nin_shortcut/kernel" in arrays:
            h = dense(f"{name}/nin_shortcut", h)
        return h + inner

    def attention(name, h):
        b, height, width, c = h.shape
        pixels = norm(f"{name}/norm", h).reshape(b, height * width, c)
        q, k, v = (
            torch.einsum("bpc,chd->bphd", pixels, arrays[f"{name}/{part}/kernel"])
            + arrays[f"{name}/{part}/bias"]
            for part in "qkv"
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
        out = torch.einsum("bphd,hdc->bpc", mixed, arrays[f"{name}/proj_out/kernel"])
        return h + (out + arrays[f"{name}/proj_out/bias"]).reshape(h.shape)

    silu = F.silu
    channels = arrays["dense0/kernel"].shape[0]
    u = 1000 * torch.atan(torch.exp(-logsnr.double().clamp(-20, 20) / 2)) / (math.pi / 2)
    angles = u[:, None] * 10_000 ** (-torch.arange(channels // 2).double() / (channels // 2 - 1))
    emb = dense("dense1", silu(dense("dense0", torch.cat([angles.sin(), angles.cos()], 1))))
    if labels is not None:
        emb = emb + arrays["class_emb/kernel"][labels] + arrays["class_emb/bias"]

    levels = 1 + max(int(n[5]) for n in arrays if n.startswith("down_"))
    blocks = sum(n.startswith("down_0.block") and n.endswith("conv1/bias") for n in arrays)
    h = conv("conv_in", x.double().permute(0, 2, 3, 1))
    skips = [h]
    for level in range(levels):
        for block in range(blocks):
            h = res(f"down_{level}.block_{block}", h)
            h = attention(f"down_{level}.attn_{block}", h) if level in attentive else h
            skips.append(h)
        if level < levels - 1:
            h = res(f"down_{level}.downsample", h, halve)
            skips.append(h)
    h = res("mid.block_2", attention("mid.attn_1", res("mid.block_1", h)))
    for level in reversed(range(levels)):
        for block in range(blocks + 1):
            h = res(f"up_{level}.block_{block}", torch.cat([h, skips.pop()], -1))
            h = attention(f"up_{level}.attn_{block}", h) if level in attentive else h
        if level:
            h = res(f"up_{level}.upsample", h, double)
    return conv("conv_out", silu(norm("norm_out", h))).permute(0, 3, 1, 2)


def nested(arrays):
    """{"a/b": array} as {"a": {"b": array}}."""
    tree = {}
    for name, array in arrays.items():
        *branches, leaf = name.split("/")
        branch = tree
        for part in branches:
            branch = branch.setdefault(part, {})
        branch[leaf] = array
    return tree


def encoded(value):
    """msgpack bytes of maps, texts, lists, numbers, True, None, bytes and tensors."""
    if value is None:
        return b"\xc0"
    if value is True:
        return b"\xc3"
    if isinstance(value, int):
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"\xdb" + struct.pack(">I", len(value)) + value.encode()
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, dict):
        pairs = b"".join(encoded(k) + encoded(v) for k, v in value.items())
        return b"\xdf" + struct.pack(">I", len(value)) + pairs
    if isinstance(value, list):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(encoded, value))
    return extension(1, list(value.shape), str(value.dtype).removeprefix("torch."), raw(value))


def extension(code, *parts):
    """One of flax's extensions, which holds a list of parts."""
    payload = encoded(list(parts))
    return b"\xc9" + struct.pack(">IB", len(payload), code) + payload


def raw(tensor):
    """Its bytes in C order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
