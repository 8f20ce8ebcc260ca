"""The paper's U-Net: residual blocks conditioned on the noise level, attention at small sizes.

The network of Salimans & Ho 2022, which the paper distils; compatible with its published weights
layer by layer. `net(x, logsnr, labels)` returns a tensor shaped like x, or with out_channels.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tract.base.compute import Float32Conv2d, Recomputable

Norm = Callable[[int], nn.Module]  # makes a norm layer of this many channels


class Embedding(nn.Module):
    """Embed log-SNR (B,) and labels (B,) as one conditioning vector (B, emb_channels)."""

    def __init__(self, channels: int, emb_channels: int, num_classes: int):
        super().__init__()
        half = channels // 2
        exponents = torch.arange(half, dtype=torch.float64) / (half - 1)
        self.register_buffer("frequencies", (10_000.0**-exponents).float(), persistent=False)
        self.dense0 = nn.Linear(channels, emb_channels)
        self.dense1 = nn.Linear(emb_channels, emb_channels)
        self.num_classes = num_classes
        self.class_emb = nn.Linear(num_classes, emb_channels) if num_classes else None

    def forward(self, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        if (labels is None) != (self.class_emb is None):
            wants = f"labels in 0..{self.num_classes - 1}" if self.num_classes else "no labels"
            raise ValueError(f"this network takes {wants}, got labels={labels}")
        # Angle of the level on the VP quarter circle, 0 = clean, 1 = noise; sinusoidal embedding.
        time = torch.atan(torch.exp(-logsnr.float() / 2)) / (torch.pi / 2)
        angles = 1000 * time[:, None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], 1)  # (B, channels)
        emb = self.dense1(F.silu(self.dense0(waves.to(self.dense0.weight.dtype))))
        if labels is not None:
            emb = emb + self.class_emb(F.one_hot(labels, self.num_classes).to(emb.dtype))
        return F.silu(emb)


class ResBlock(Recomputable):
    """Two convolutions around a scale and shift by the embedding; may halve or double the size."""

    def __init__(self, c_in: int, c_out: int, emb_channels: int, norm: Norm, dropout: float = 0.0):
        super().__init__()
        self.norm1 = norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb_proj = nn.Linear(emb_channels, 2 * c_out)
        self.norm2 = norm(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def resample(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        scale, shift = self.emb_proj(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        h = self.conv2(self.dropout(F.silu(h)))
        return self.shortcut(self.resample(x)) + h


class DownBlock(ResBlock):
    """A residual block that halves height and width by averaging."""

    def resample(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)


class UpBlock(ResBlock):
    """A residual block that doubles height and width by repeating pixels."""

    def resample(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")


class Attention(Recomputable):
    """Self-attention over all pixels, added to its input; the embedding is not used."""

    def __init__(self, channels: int, head_channels: int, norm: Norm):
        super().__init__()
        self.num_heads = channels // head_channels
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        qkv = pixels(self.qkv(self.norm(x))).unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, H W, channels / heads)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.proj_out(h.flatten(2).transpose(1, 2).reshape(x.shape))


def pixels(x: Tensor) -> Tensor:
    """Reshape images (B, C, H, W) to sequences (B, H W, C), contiguous as fused attention needs.

    Channels-last images are not copied.
    """
    return x.flatten(2).transpose(1, 2).contiguous()


class UNet(nn.Module):
    """Residual blocks at image_size, image_size / 2, ... and back, with skip connections.

    patch: each patch x patch square becomes the channels of one pixel, and back at the end; sizes
    are then those of image_size / patch. channel_mult: width of each resolution in units of
    channels; attention: sizes in pixels at which attention follows every block; head_channels: None
    for one head; num_classes: 0 for no labels. Raises ValueError if a size does not fit.
    """

    def __init__(
        self,
        image_size: int,
        image_channels: int,
        *,
        channels: int,
        emb_channels: int,
        channel_mult: Sequence[int],
        num_blocks: int,
        attention: Sequence[int] = (),
        head_channels: int | None = None,
        groups: int = 32,
        norm_eps: float = 1e-6,
        num_classes: int = 0,
        dropout: float = 0.0,
        out_channels: int | None = None,
        patch: int = 1,
    ):
        super().__init__()
        self.patch = patch
        sizes = halved_sizes(image_size, len(channel_mult), patch)
        stages = [
            (channels * mult, size in attention)
            for size, mult in zip(sizes, channel_mult, strict=True)
        ]
        norm = partial(nn.GroupNorm, groups, eps=norm_eps)

        def res(c_in: int, c_out: int, kind: type[ResBlock] = ResBlock) -> ResBlock:
            return kind(c_in, c_out, emb_channels, norm, dropout)

        def attend(width: int) -> Attention:
            return Attention(width, head_channels or width, norm)

        self.emb = Embedding(channels, emb_channels, num_classes)
        self.conv_in = nn.Conv2d(image_channels * patch**2, channels, 3, padding=1)
        self.down, self.up, self.middle = _blocks(stages, channels, num_blocks, res, attend)
        width = stages[0][0]
        self.norm_out = norm(width)
        outputs = (out_channels or image_channels) * patch**2
        self.conv_out = zero_init(Float32Conv2d(width, outputs, 3, padding=1))

    def forward(self, x: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = self.emb(logsnr, labels)
        h = self.conv_in(F.pixel_unshuffle(x, self.patch))
        skips = [h]
        for block in self.down:
            for layer in block:
                h = layer(h, emb)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, emb)
        for block in self.up:
            h = torch.cat([h, skips.pop()], 1)
            for layer in block:
                h = layer(h, emb)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)


def _blocks(
    stages: Sequence[tuple[int, bool]], width: int, num_blocks: int, res: Callable, attend: Callable
) -> tuple[nn.ModuleList, nn.ModuleList, nn.ModuleList]:
    """Return the blocks on the way down, on the way up and in the middle.

    stages: width of each resolution, finest first, and whether its blocks have attention. width:
    that of the first block's input. Each block up also takes the output of one on the way down.
    """
    down, up, skips = nn.ModuleList(), nn.ModuleList(), [width]

    def block(c_in: int, c_out: int, attention: bool) -> nn.ModuleList:
        return nn.ModuleList([res(c_in, c_out), *([attend(c_out)] if attention else [])])

    for i, (c_out, attention) in enumerate(stages):
        if i > 0:
            down.append(nn.ModuleList([res(width, width, DownBlock)]))
            skips.append(width)
        for _ in range(num_blocks):
            down.append(block(width, c_out, attention))
            width = c_out
            skips.append(width)
    middle = nn.ModuleList([res(width, width), attend(width), res(width, width)])
    for i, (c_out, attention) in reversed(list(enumerate(stages))):
        for _ in range(num_blocks + 1):
            up.append(block(width + skips.pop(), c_out, attention))
            width = c_out
        if i > 0:
            up[-1].append(res(width, width, UpBlock))
    return down, up, middle


def halved_sizes(image_size: int, count: int, patch: int = 1) -> list[int]:
    """Return image_size / patch, half of it, ...; raises ValueError if it is odd before the end."""
    sizes = [image_size // patch // 2**i for i in range(count)]
    if sizes[-1] * 2 ** (count - 1) * patch != image_size:
        patches = f"split into patches of {patch} and then " if patch > 1 else ""
        raise ValueError(
            f"image_size is {image_size}, which cannot be {patches}halved {count - 1} times: "
            "pad the images or give fewer entries in channel_mult"
        )
    return sizes


def zero_init(layer: nn.Conv2d) -> nn.Conv2d:
    """Initialise a layer with zeros, so that its residual branch starts as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
